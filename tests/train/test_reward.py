import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limner.data.world.scene import World
from limner.errors import ConfigError
from limner.evaluate.composition import judge
from limner.evaluate.prompts import Clause, Prompt
from limner.models.detector import Detection, Seen
from limner.models.pixel_dit import PixelDiT
from limner.text.words import OPPOSITE
from limner.train import state
from limner.train.config import LoopConfig, RunConfig
from limner.train.ema import EMA
from limner.train.loop import fit
from limner.train.objectives import Objective
from limner.train.objectives import best_of as best_of_file
from limner.train.objectives.best_of import BestOf, BestOfConfig, draw_scenes
from limner.train.objectives.denoise import Denoise, DenoiseConfig
from limner.train.objectives.detect import Detect, DetectConfig
from limner.train.objectives.nft import NFT, NFTConfig, goodness
from limner.train.optim import OptimConfig
from limner.train.reward import Reward, asked, reward
from limner.weights import detector as detectors
from limner.weights.detector import load_detector
from limner.weights.header import read_metadata

CPU = torch.device("cpu")
Publish = Callable[[Objective, Path], Path]
OPTIM = OptimConfig(muon_lr=0.0, adam_lr=1e-3, warmup=4, decay=0.0)


@pytest.fixture
def weights(
    denoise: DenoiseConfig, detect: DetectConfig, publish: Publish, tmp_path: Path
) -> dict[str, Path]:
    """Published weights of a base, of a detector that evaluates, and of one for rewards; none has learned."""
    made = {
        "base": Denoise(denoise, CPU),
        "judge": Detect(detect, CPU),
        "reward": Detect(replace(detect, role="reward"), CPU),
    }
    return {name: publish(objective, tmp_path / f"{name}.safetensors") for name, objective in made.items()}


def test_no_detector_does_both(
    weights: dict[str, Path], denoise: DenoiseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="evaluates, so nothing that draws may be trained with it"):
        Reward(weights["judge"], CPU)
    with pytest.raises(ConfigError, match="what was trained to please it cannot be judged by it"):
        load_detector(weights["reward"])
    assert load_detector(weights["judge"]).names == Reward(weights["reward"], CPU).detector.names
    for objective, config in ((BestOf, BestOfConfig), (NFT, NFTConfig)):
        with pytest.raises(ConfigError, match=r"detector-reward\.toml"):
            objective(config(detector=str(weights["judge"]), base=denoise), CPU)  # type: ignore[arg-type]
    monkeypatch.setattr(detectors, "SHIPPED", weights["reward"])  # whatever the header says
    with pytest.raises(ConfigError, match="evaluates"):
        Reward(weights["reward"], CPU)


def test_a_detector_has_one_of_two_roles(detect: DetectConfig) -> None:
    with pytest.raises(ValueError, match="role is judge or reward, got 'both'"):
        replace(detect, role="both")


def thing(label: str, score: float, left: float, colour: str | None = None) -> Detection:
    return Detection(label=label, score=score, box=(left, 0.4, left + 0.2, 0.6), colour=colour)


def seen(*things: Detection, background: str = "red") -> Seen:
    return Seen(objects=things, letters=(), style="flat", background=background, features=torch.zeros(2))


def test_a_reward_is_clauses_and_confidence() -> None:
    prompt = Prompt(
        task="single_object",
        text="",
        include=(Clause(object="tree"), Clause(object="cat", colour="red", position=("left of", 0))),
        background="blue",
    )
    right = seen(thing("cat", 0.9, 0.1, "red"), thing("tree", 0.7, 0.7), background="blue")
    assert reward(prompt, right) == pytest.approx(0.8 + 0.2 * 0.8)
    other_ground = replace(right, background="red")
    assert reward(prompt, other_ground) == pytest.approx(0.8 * 2 / 3 + 0.2 * 0.8)
    wrong_side = seen(thing("cat", 0.9, 0.7, "red"), thing("tree", 0.7, 0.1), background="blue")
    assert reward(prompt, wrong_side) == pytest.approx(0.8 * 2 / 3 + 0.2 * 0.8)
    assert reward(prompt, seen()) == 0


def test_scenes_ask_for_what_they_show(denoise: DenoiseConfig) -> None:
    """A picture of a scene's own boxes and colours satisfies its prompt; one without anything does not."""
    made = Denoise(denoise, CPU)
    scenes = made.world.sample(300, torch.Generator().manual_seed(2))
    captions = [words for _, words in made.captioner.captions(scenes, 2)]
    prompts = asked(made.world.atlas, scenes, captions)
    for row, prompt in enumerate(prompts):
        shown = exact(made.world, row, scenes, prompt)
        wrong = [reason for reason in judge(prompt, shown).reasons if "ordinary side" not in reason]
        assert wrong == [], (captions[row], prompt)
        assert judge(prompt, replace(shown, objects=())).reasons
        assert (
            (prompt.style in captions[row]) if prompt.style else not {"flat", "glossy"} & set(captions[row])
        )
    assert {prompt.task for prompt in prompts} == {"counting", "single_object"}
    assert {clause.position for prompt in prompts for clause in prompt.include} == {
        None,
        ("left of", 0),
        ("above", 0),
    }
    assert any(prompt.word for prompt in prompts)
    assert any(prompt.size for prompt in prompts)
    assert any(prompt.exclude for prompt in prompts)


def exact(world: World, row: int, scenes: object, prompt: Prompt) -> Seen:
    from limner.data.world.scene import COLOURS, Scenes

    assert isinstance(scenes, Scenes)
    things = []
    for index, colour, centre, side in zip(
        scenes.object[row].tolist(),
        scenes.colour[row].tolist(),
        scenes.centre[row].tolist(),
        scenes.side[row].tolist(),
        strict=True,
    ):
        if index >= 0:
            (x, y), half = centre, side / 2
            things.append(
                Detection(
                    label=world.atlas.objects[index],
                    score=0.95,
                    box=(x - half, y - half, x + half, y + half),
                    colour=COLOURS[colour] if colour >= 0 else None,
                )
            )
    letters = tuple(
        Detection(label=letter, score=0.9, box=(i / 9, 0.8, i / 9 + 0.1, 0.9), colour=None)
        for i, letter in enumerate(prompt.word or "")
    )
    return Seen(
        objects=tuple(things),
        letters=letters,
        style=prompt.style or "",
        background=prompt.background or "",
        features=torch.zeros(2),
    )


def started(made: BestOf | NFT, base: Path) -> None:
    made.model.initialize(torch.Generator().manual_seed(0))
    ema = EMA(dict(made.model.named_parameters()), 0.1)
    state.start_from(base, ema, made.inherited())
    made.begin(base, ema.state())


def test_the_best_are_learned_from_and_the_worst_are_replaced(
    weights: dict[str, Path], denoise: DenoiseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards by decree: in the first group the last picture is best, in the second none is good enough."""
    config = BestOfConfig(
        detector=str(weights["reward"]), base=replace(denoise, drop_text=0.0), samples=3, repeats=2, steps=2
    )
    made = BestOf(config, CPU)
    started(made, weights["base"])
    kept = []

    def decree(pixels: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        kept.append((pixels, prompts))
        return torch.tensor([0.1, 0.2, 0.95, 0.3, 0.2, 0.1])

    monkeypatch.setattr(made.reward, "of", decree)
    batch = made.batch(8, 4)
    ((pixels, prompts),) = kept
    assert pixels.shape == (6, 3, 16, 16)
    assert prompts[0] is prompts[2] is not prompts[3]
    assert torch.equal(batch.x0[0], pixels[2])
    assert torch.equal(batch.x0[1], pixels[2])
    assert not any(torch.equal(batch.x0[2], picture) for picture in pixels)
    composed = made.base.batch(8, 4)
    assert torch.equal(batch.x0[4:], composed.x0[4:])
    assert torch.equal(batch.noise, composed.noise)
    said = made.base.tokenizer.decode(batch.tokens[0].tolist())
    assert all(word in prompts[0].text for word in set(said) - set(OPPOSITE))
    assert made.loss(batch)["velocity"].item() > 0


def test_what_is_drawn_follows_from_the_average_and_the_seed(
    weights: dict[str, Path], denoise: DenoiseConfig
) -> None:
    base, judged = Denoise(replace(denoise, label_weight=0.0), CPU), Reward(weights["reward"], CPU)
    ema = EMA(dict(base.model.named_parameters()), 0.1)
    state.start_from(weights["base"], ema, base.published())
    wish = {"scenes": 2, "samples": 3, "steps": 2, "scale": 2.0}
    one = draw_scenes(base, base.model, judged, seed=1, **wish)  # type: ignore[arg-type]
    again = draw_scenes(base, base.model, judged, seed=1, **wish)  # type: ignore[arg-type]
    other = draw_scenes(base, base.model, judged, seed=2, **wish)  # type: ignore[arg-type]
    assert one.pixels.shape == (2, 3, 3, 16, 16)
    assert torch.equal(one.pixels, again.pixels)
    assert not torch.equal(one.pixels, other.pixels)
    assert not torch.equal(one.pixels[0, 0], one.pixels[0, 1])
    assert ((one.rewards >= 0) & (one.rewards <= 1)).all()


def test_goodness_is_relative_to_the_group() -> None:
    rewards = torch.tensor([[0.0, 1.0, 0.5, 0.5], [0.7, 0.7, 0.7, 0.7]])
    good = goodness(rewards, 5.0)
    torch.testing.assert_close(good[1], torch.full((4,), 0.5))
    assert good[0, 0] < 0.5 < good[0, 1]
    torch.testing.assert_close(good[0, 2], torch.tensor(0.5))
    torch.testing.assert_close(good[0, 1] - 0.5, 0.5 / rewards[0].std() / 10)


def test_the_policy_moves_towards_good_pictures_and_away_from_bad_ones(
    weights: dict[str, Path], denoise: DenoiseConfig
) -> None:
    """Pictures said to be good, or bad: steps along the gradient bring the network nearer, or away."""
    made = NFT(NFTConfig(detector=str(weights["reward"]), base=denoise, group=4, steps=2, anchor=0.0), CPU)
    distances = {}
    for name, good in (("before", None), ("good", 1.0), ("bad", 0.0), ("middling", 0.5)):
        started(made, weights["base"])
        batch = made.batch(4, 1)
        assert len(batch.x0) == 4
        batch = batch._replace(t=torch.full((4,), 0.6))
        if good is not None:
            optimizer = torch.optim.SGD(made.model.parameters(), 0.05)
            for _ in range(4):
                optimizer.zero_grad()
                made.loss(batch._replace(good=torch.full((4,), good)))["policy"].backward()
                optimizer.step()
        x_t = 0.4 * batch.x0 + 0.6 * batch.noise
        mask = batch.tokens != made.base.tokenizer.pad
        with torch.no_grad():
            said = made.model(x_t, batch.t, *made.model.encode(batch.tokens, mask), mask)
        distances[name] = float((said - batch.x0).square().mean())
    assert distances["good"] < distances["before"] < distances["bad"]
    assert abs(distances["middling"] - distances["before"]) < 0.3 * (distances["before"] - distances["good"])


@pytest.mark.parametrize("kind", ["best_of", "nft"])
def test_a_run_resumes_bit_for_bit_and_says_who_chose(
    kind: str, weights: dict[str, Path], denoise: DenoiseConfig, loop: LoopConfig, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    told = {"detector": str(weights["reward"]), "base": denoise, "steps": 2}
    run = RunConfig(
        name=kind,
        loop=replace(loop, images=16, start=str(weights["base"])),
        optim=OPTIM,
        best_of=BestOfConfig(**told, samples=2, repeats=1) if kind == "best_of" else None,  # type: ignore[arg-type]
        nft=NFTConfig(**told, group=2) if kind == "nft" else None,  # type: ignore[arg-type]
    )
    list(fit(run, tmp_path / "through"))
    steps = fit(run, tmp_path / "halves")
    next(steps), next(steps)
    steps.close()  # type: ignore[attr-defined]
    list(fit(run, tmp_path / "halves", resume=True))
    newest = (max((tmp_path / name / "checkpoints").glob("[0-9]*")) for name in ("through", "halves"))
    one, two = (load_file(path / "state.safetensors") for path in newest)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    header = read_metadata(tmp_path / "through" / "weights.safetensors")
    assert json.loads(header["rewarded_by"]) == Reward(weights["reward"], CPU).fingerprint
    assert str(tmp_path) not in json.dumps(header)


def test_the_average_draws_not_the_network_in_training(
    weights: dict[str, Path], denoise: DenoiseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = BestOf(BestOfConfig(detector=str(weights["reward"]), base=denoise, samples=1, steps=1), CPU)
    started(made, weights["base"])
    drawing: list[PixelDiT] = []
    inner = best_of_file.rollout

    def watched(model: PixelDiT, *rest: torch.Tensor, **more: int) -> torch.Tensor:
        drawing.append(model)
        return inner(model, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(best_of_file, "rollout", watched)
    made.batch(4, 0)
    assert drawing == [made.average]
    assert made.average is not made.model
