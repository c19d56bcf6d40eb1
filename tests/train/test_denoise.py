from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from limner.data.world.scene import World
from limner.text.lexicon import load_lexicon
from limner.text.words import picture_order
from limner.train.objectives import denoise as denoise_file
from limner.train.objectives.denoise import SHEET, Batch, Denoise, DenoiseConfig, patch_labels

CPU = torch.device("cpu")


def objective(config: DenoiseConfig) -> Denoise:
    made = Denoise(config, CPU)
    made.model.initialize(torch.Generator().manual_seed(0))
    return made


def test_a_batch_is_all_of_its_seed(denoise: DenoiseConfig) -> None:
    first, again = objective(denoise).batch(6, 5), objective(denoise).batch(6, 5)
    other = objective(denoise).batch(6, 6)
    for part, same, different in zip(first, again, other, strict=True):
        assert torch.equal(part, same)
        assert part.shape != different.shape or not torch.equal(part, different)


def test_what_a_batch_holds(denoise: DenoiseConfig) -> None:
    made = objective(denoise)
    batch = made.batch(16, 1)
    assert batch.x0.shape == batch.noise.shape == (16, 3, 16, 16)
    assert -1 <= batch.x0.min() <= batch.x0.max() <= 1
    assert 0 <= batch.t.min() <= batch.t.max() <= 1
    assert batch.tokens.shape[1] in (24, 32, 40, 48)
    assert batch.labels.shape == (16, 16)
    assert batch.labels.min() >= 0
    assert batch.labels.max() <= 6
    assert (batch.labels > 0).any()
    assert batch.weight.mean().item() == pytest.approx(1, abs=1e-5)
    assert (batch.weight.max() / batch.weight.min()).item() == pytest.approx(3, abs=0.01)


def test_pictures_and_captions_are_of_the_same_scenes(denoise: DenoiseConfig) -> None:
    made = objective(replace(denoise, drop_text=0.0))
    batch = made.batch(8, 3)
    scenes = made.world.sample(8, torch.Generator().manual_seed(3))
    picture, _ = made.world.render(scenes, 16)
    assert torch.equal(picture, batch.x0)
    for row, (text, words) in enumerate(made.captioner.captions(scenes, 3)):
        assert made.tokenizer.decode(batch.tokens[row].tolist()) == list(picture_order(words))
        assert load_lexicon().read(text, frozenset(made.world.atlas.objects)).words == words


def test_captions_are_dropped_as_often_as_asked(denoise: DenoiseConfig) -> None:
    batch = objective(replace(denoise, drop_text=0.3)).batch(300, 0)
    made = objective(denoise)
    empty = (batch.tokens != made.tokenizer.pad).sum(1) == 2  # <bos> and <eos>
    assert empty.float().mean().item() == pytest.approx(0.3, abs=0.08)


def test_as_many_as_asked_see_nothing_but_the_text(denoise: DenoiseConfig) -> None:
    blind = Denoise(replace(denoise, t_one=0.5), CPU).batch(400, 3).t == 1
    assert 0.4 < float(blind.float().mean()) < 0.6
    assert not (Denoise(replace(denoise, t_one=0.0), CPU).batch(400, 3).t == 1).any()


def test_the_loss_is_the_velocity_error_of_what_the_network_says(denoise: DenoiseConfig) -> None:
    """A network that answers x0 = 0, as a new one does, and then one that knows the picture."""
    made = objective(denoise)
    batch = made.batch(4, 2)
    parts = made.loss(batch)
    expected = (batch.weight * batch.x0.square()).flatten(1).mean(1) / batch.t.clamp(min=0.05).square()
    torch.testing.assert_close(parts["velocity"], expected.mean())
    classes = len(made.world.atlas.objects) + 1
    assert parts["label"].item() == pytest.approx(
        made.config.label_weight * torch.tensor(float(classes)).log().item(), rel=0.5
    )
    made.model.features = lambda *_: (batch.x0, torch.zeros(4, 16, 32))  # type: ignore[method-assign, assignment]
    assert made.loss(batch)["velocity"] == 0


def test_the_network_sees_the_noised_picture(denoise: DenoiseConfig) -> None:
    made = objective(denoise)
    batch = made.batch(2, 2)
    seen = []

    def features(x_t: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(x_t)
        return x_t, torch.zeros(2, 16, 32)

    made.model.features = features  # type: ignore[method-assign, assignment]
    made.loss(batch._replace(t=torch.tensor([0.0, 1.0])))
    assert torch.equal(seen[0][0], batch.x0[0])
    assert torch.equal(seen[0][1], batch.noise[1])


def test_without_labels_the_head_is_left_away(denoise: DenoiseConfig) -> None:
    made = objective(replace(denoise, label_weight=0.0))
    assert made.model.label is None
    assert set(made.loss(made.batch(2, 0))) == {"velocity"}
    with_head = objective(denoise)
    assert with_head.published() == made.published() == {name for name, _ in made.model.named_parameters()}


def test_patch_labels_name_what_covers_the_patch(denoise: DenoiseConfig) -> None:
    scenes = objective(denoise).world.sample(2, torch.Generator().manual_seed(0))
    scenes.object[:, :2] = torch.tensor([4, 1])
    cover = torch.zeros(2, 5, 8, 8)
    cover[0, 0, :4, :4] = 1
    cover[0, 1, :4, 4:] = 0.5
    cover[0, 1, 4:, :2] = 0.6  # 30 % of the patch
    assert patch_labels(scenes, cover, 4).tolist() == [[5, 2, 0, 0], [0, 0, 0, 0]]


def test_long_captions_are_padded_to_few_lengths(denoise: DenoiseConfig) -> None:
    made = objective(denoise)
    assert made.tokens([["cat"], []]).shape == (2, 24)
    assert made.tokens([["cat"] * 23]).shape == (1, 32)
    assert made.tokens([["cat"] * 90]).shape == (1, 48)
    row = made.tokens([["a", "cat"]])[0].tolist()
    assert made.tokenizer.decode(row) == ["a", "cat"]
    assert row[4:] == [made.tokenizer.pad] * 20


def test_the_sheet_draws_every_prompt_and_repeats(denoise: DenoiseConfig) -> None:
    made = objective(denoise)
    made.model.eval()
    first = made.draw(made.model, ["a cat on a blue background", "two apple <plural>"], seed=1)
    assert first.size == (4 * 20 + 4, 24)
    assert (
        first.tobytes()
        == made.draw(made.model, ["a cat on a blue background", "two apple <plural>"], seed=1).tobytes()
    )


def test_prompts_of_the_sheet_are_canonical_words() -> None:
    known = {word for entry in load_lexicon().entries for word in (entry.name,)}
    for prompt in SHEET:
        words = denoise_file.split(prompt)
        assert all(load_lexicon().has(word) or word == "<plural>" for word in words)
        assert known & set(words)
    assert "left of" in denoise_file.split("a dog left of a tree")


def test_scenes_are_those_of_the_held_out_rule(
    denoise: DenoiseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = objective(denoise)
    seen = []
    render = World.render
    monkeypatch.setattr(
        World, "render", lambda self, scenes, size: seen.append(scenes) or render(self, scenes, size)
    )
    made.batch(64, 0)
    assert not made.world.breaks_rule(seen[0]).any()


def test_weights_cost_objects_more(denoise: DenoiseConfig) -> None:
    made = objective(replace(denoise, object_weight=1.0))
    batch = made.batch(4, 0)
    assert isinstance(batch, Batch)
    assert torch.equal(batch.weight, torch.ones_like(batch.weight))
    loss = made.loss(batch)["velocity"]
    plain = F.mse_loss(torch.zeros_like(batch.x0), batch.x0, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(loss, (plain / batch.t.clamp(min=0.05).square()).mean())
