import json
from dataclasses import replace
from typing import cast

import pytest
import torch
from PIL import Image

from limner.data.world.scene import COLOURS, World, WorldConfig
from limner.models.detector import Detection, Maps, Seen
from limner.train.objectives.detect import (
    BACKGROUNDS,
    Batch,
    Detect,
    DetectConfig,
    WearConfig,
    background,
    covered,
    focal,
    hide,
    ink,
    marked,
    named,
    quantise,
    slack,
    targets,
    wear,
)

CPU = torch.device("cpu")
UNWORN = WearConfig(chance=0.0)


def objective(config: DetectConfig) -> Detect:
    made = Detect(config, CPU)
    made.model.initialize(torch.Generator().manual_seed(0))
    return made


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def box(*sides: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = sides
    return left, top, right, bottom


# -- data ----------------------------------------------------------------------------------------------------


def test_a_batch_is_all_of_its_seed(detect: DetectConfig) -> None:
    first, again = objective(detect).batch(8, 5), objective(detect).batch(8, 5)
    other = objective(detect).batch(8, 6)
    for part, same, different in zip(first, again, other, strict=True):
        assert torch.equal(part, same)
        assert not torch.equal(part, different)
    assert first.pixels.shape == (8, 3, 64, 64)
    assert first.pixels.abs().max() <= 1


def test_boxes_are_around_the_ink(detect: DetectConfig) -> None:
    """What the renderer says each place covers has its box, to a pixel."""
    made = objective(detect)
    scenes = made.world.sample(24, seeded(), unseen=None)
    boxes, kinds, _ = made.things(scenes)
    _, cover = made.world.render(scenes, 128)
    checked = 0
    for picture, place in (scenes.object >= 0).nonzero().tolist():
        shown = cover[picture, place]
        if shown.max() < 0.9 or (cover[picture].sum(0) > 1.01).any():
            continue
        inside = ink((255 * shown).to(torch.uint8))
        torch.testing.assert_close(boxes[picture, place], inside, atol=1.6 / 128, rtol=0)
        assert kinds[picture, place] == scenes.object[picture, place]
        checked += 1
    assert checked > 24


def test_boxes_of_letters_are_where_the_letters_are_drawn(detect: DetectConfig) -> None:
    made = objective(replace(detect, world=WorldConfig(word=1.0, gradient=0.0, setting=0.0)))
    scenes = made.world.sample(24, seeded(), unseen=None)
    boxes, kinds, colours = made.things(scenes)
    with_words, _ = made.world.render(scenes, 128)
    scenes.letters.fill_(-1)
    without, _ = made.world.render(scenes, 128)
    written = (with_words - without).abs().sum(1)
    told = kinds[:, 5:] >= 0
    assert told.any(1).sum() > 3
    for picture in told.any(1).nonzero().squeeze(1).tolist():
        changed = written[picture] > 0.25 * written[picture].max()
        letters = boxes[picture, 5:][told[picture]]
        whole = torch.cat([letters[:, :2].amin(0), letters[:, 2:].amax(0)])
        around = ink((255 * changed).to(torch.uint8))
        torch.testing.assert_close(around, whole, atol=1.6 / 128, rtol=0)
        assert (letters[1:, 0] > letters[:-1, 2]).all()  # they stand side by side
        assert (colours[picture, 5:][told[picture]] == scenes.letter_colour[picture]).all()
    assert (kinds[:, 5:][told] >= len(made.names.objects)).all()
    assert (kinds[:, 5:][~told] == -1).all()


def test_only_recoloured_objects_have_a_colour(detect: DetectConfig) -> None:
    made = objective(detect)
    scenes = made.world.sample(64, seeded(), unseen=None)
    _, kinds, colours = made.things(scenes)
    assert torch.equal(colours[:, :5], scenes.colour)
    objects = colours[:, :5][kinds[:, :5] >= 0]
    assert 0.1 < (objects >= 0).float().mean() < 0.6


def test_scenes_that_generators_never_see_are_seen(detect: DetectConfig) -> None:
    made = objective(detect)
    scenes = made.world.sample(400, seeded(), unseen=None)
    assert 0 < made.world.breaks_rule(scenes).sum() < 400


def test_backgrounds_have_their_names(detect: DetectConfig) -> None:
    made = objective(detect)
    scenes = made.world.sample(64, seeded(), unseen=None)
    for index, kind, colour in zip(
        background(scenes).tolist(),
        scenes.background.tolist(),
        scenes.background_colour[:, 0].tolist(),
        strict=True,
    ):
        assert (BACKGROUNDS[index] == COLOURS[colour]) == (kind == 0)
        assert (BACKGROUNDS[index] == "gradient") == (kind == 1)
    assert len(BACKGROUNDS) == 20
    assert len(set(BACKGROUNDS)) == 20
    assert background(scenes).max() < 20


def test_ink_is_the_box_around_what_shows() -> None:
    alpha = torch.zeros(3, 8, 16, dtype=torch.uint8)
    alpha[0, 2:5, 4:6] = 255
    alpha[1, 7, 15] = 64
    alpha[2] = 63
    alpha[2, 0, 0] = 200
    expected = [[0.25, 0.25, 0.375, 0.625], [15 / 16, 7 / 8, 1.0, 1.0], [0.0, 0.0, 1 / 16, 1 / 8]]
    assert ink(alpha).tolist() == expected


def test_what_is_hidden_is_not_asked_for(detect: DetectConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made = objective(detect)
    before = made.batch(4, 1)

    def all_of_the_first(
        pixels: torch.Tensor, _: WearConfig, __: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rectangles = torch.zeros(len(pixels), 1, 4)
        rectangles[0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
        return pixels, rectangles

    monkeypatch.setattr("limner.train.objectives.detect.wear", all_of_the_first)
    after = made.batch(4, 1)
    assert (after.kinds[0] == -1).all()
    assert (after.colours[0] == -1).all()
    assert (before.kinds[0] >= 0).any()
    assert torch.equal(after.boxes, before.boxes)


# -- targets and losses --------------------------------------------------------------------------------------


def test_targets_of_a_handmade_scene() -> None:
    boxes = torch.tensor([[[0.25, 0.125, 0.5, 0.625], [0.9, 0.9, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
    goal = targets(boxes, torch.tensor([[3, 0, -1]]), 16)
    assert goal.heat.shape == (1, 16, 16)
    assert (goal.heat == 1).nonzero().tolist() == [[0, 6, 6], [0, 15, 15]]
    assert goal.cell[0, :2].tolist() == [6 * 16 + 6, 15 * 16 + 15]
    torch.testing.assert_close(goal.offset[0, :2], torch.tensor([[0.0, 0.0], [0.2, 0.2]]))
    torch.testing.assert_close(goal.extent[0, :2], torch.tensor([[4.0, 8.0], [1.6, 1.6]]))
    deviation = max(0.3, slack(torch.tensor([[[4.0, 8.0]]])).item() / 3)
    beside = torch.exp(torch.tensor(-1 / (2 * deviation**2)))
    torch.testing.assert_close(goal.heat[0, 6, 7], beside)
    torch.testing.assert_close(goal.heat[0, 5, 5], beside**2)
    assert goal.heat[0, 0, 0] < 1e-6  # the empty slot leaves no trace


def test_where_two_meet_the_larger_heat_counts() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.1, 0.0, 1.0, 1.0]]])
    both = targets(boxes, torch.tensor([[0, 1]]), 16).heat
    alone = [targets(boxes, kinds, 16).heat for kinds in (torch.tensor([[0, -1]]), torch.tensor([[-1, 1]]))]
    torch.testing.assert_close(both, torch.maximum(*alone))


@pytest.mark.parametrize("extent", [(4.0, 8.0), (10.0, 10.0), (1.0, 30.0)])
def test_slack_is_how_far_a_box_may_move(extent: tuple[float, float]) -> None:
    width, height = extent
    moved = slack(torch.tensor([[extent]])).item()
    shared = (width - moved) * (height - moved)
    assert shared / (2 * width * height - shared) == pytest.approx(0.7, abs=1e-4)


def test_focal_loss_by_hand() -> None:
    heat = torch.tensor([[[1.0, 0.5, 0.0]]])
    logits = torch.tensor([[[0.0, 0.0, 2.0]]])
    half, likely = torch.tensor(0.5), torch.tensor(2.0).sigmoid()
    expected = -(half**2 * half.log() + 0.5**4 * half**2 * half.log() + likely**2 * (1 - likely).log())
    torch.testing.assert_close(focal(logits, heat), expected)
    assert focal(torch.tensor([[[20.0, -20.0]]]), torch.tensor([[[1.0, 0.0]]])) < 1e-6


def test_what_has_no_name_costs_nothing() -> None:
    logits = torch.randn(2, 3, 4, generator=seeded())
    wanted = torch.tensor([[1, -1, -1], [-1, 2, -1]])
    expected = (-logits[0, 0].log_softmax(0)[1] - logits[1, 1].log_softmax(0)[2]) / 2
    torch.testing.assert_close(named(logits, wanted), expected)
    assert named(logits, torch.full((2, 3), -1)) == 0


def test_the_parts_of_the_loss(detect: DetectConfig) -> None:
    made = objective(detect)
    batch = made.batch(8, 1)
    parts = made.loss(batch)
    assert set(parts) == {"centre", "offset", "extent", "class", "colour", "picture"}
    assert all(part.isfinite() and part > 0 for part in parts.values())
    nothing = torch.full_like(batch.kinds, -1)
    empty = made.loss(batch._replace(kinds=nothing, colours=nothing))
    assert all(empty[name] == 0 for name in ("offset", "extent", "class", "colour"))
    assert empty["centre"].isfinite()


def test_the_right_answer_costs_next_to_nothing(
    detect: DetectConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And `read` gives it back: target maps and decoding are inverse to each other."""
    made = objective(detect)
    model = made.model
    with torch.no_grad():
        model.prototypes.copy_(torch.eye(len(made.names.classes), detect.model.embedding))
        model.sharpness.fill_(4.6)
    batch = objective(replace(detect, wear=UNWORN)).batch(8, 2)
    maps = right(made, batch)
    monkeypatch.setattr(model, "forward", lambda _: maps)
    parts = made.loss(batch)
    assert {name: round(float(part.detach()), 3) for name, part in parts.items()} == dict.fromkeys(parts, 0.0)
    check(made, batch, model.detect(batch.pixels), overlap=0.999)


def right(made: Detect, batch: Batch) -> Maps:
    """The maps that a perfect network would give."""
    side = made.config.model.size // 4
    goal = targets(batch.boxes, batch.kinds, side)
    count, dimensions = len(batch.pixels), made.config.model.embedding
    maps = Maps(
        centre=torch.where(goal.heat == 1, 12.0, -12.0),
        offset=torch.zeros(count, 2, side, side),
        extent=torch.zeros(count, 2, side, side),
        colour=torch.zeros(count, 10, side, side),
        embedding=torch.ones(count, dimensions, side, side),
        style=99 * torch.eye(len(made.names.styles))[batch.style],
        background=99 * torch.eye(20)[batch.background],
        features=torch.zeros(count, 4),
    )
    for picture, thing in (batch.kinds >= 0).nonzero().tolist():
        row, column = divmod(int(goal.cell[picture, thing]), side)
        maps.offset[picture, :, row, column] = goal.offset[picture, thing]
        maps.extent[picture, :, row, column] = goal.extent[picture, thing]
        maps.embedding[picture, :, row, column] = torch.eye(dimensions)[batch.kinds[picture, thing]]
        colour = int(batch.colours[picture, thing])
        if colour >= 0:
            maps.colour[picture, colour, row, column] = 99.0
    return maps


def check(made: Detect, batch: Batch, seen: list[Seen], overlap: float = 0.5) -> None:
    """Every thing of the batch was seen, once, under its name, in its place; and nothing else."""
    for picture, told in enumerate(seen):
        found = list(told.objects + told.letters)
        assert len(found) == (batch.kinds[picture] >= 0).sum()
        for kind, colour, place in zip(
            batch.kinds[picture].tolist(),
            batch.colours[picture].tolist(),
            batch.boxes[picture].tolist(),
            strict=True,
        ):
            if kind < 0:
                continue
            best = max(found, key=lambda thing: shared(thing.box, box(*place)))
            assert shared(best.box, box(*place)) > overlap
            assert best.label == made.names.classes[kind]
            assert colour < 0 or best.colour == COLOURS[colour]
        assert told.style == made.names.styles[int(batch.style[picture])]
        assert told.background == BACKGROUNDS[int(batch.background[picture])]


def shared(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inside = max(0.0, width) * max(0.0, height)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (one, other)]
    return inside / (sum(areas) - inside)


def test_a_small_network_learns_a_few_pictures(detect: DetectConfig) -> None:
    made = objective(replace(detect, wear=UNWORN, sides=(64,), mosaic=0.0, world=WorldConfig(word=1.0)))
    batches = (made.batch(4, seed) for seed in range(99))
    batch = next(batch for batch in batches if (batch.kinds >= len(made.names.objects)).any())  # with letters
    optim = torch.optim.AdamW(made.model.parameters(), lr=6e-3)
    for step in range(60):
        for group in optim.param_groups:
            group["lr"] = 6e-3 * min(1.0, (step + 1) / 10, (60 - step) / 30)
        torch.stack(list(made.loss(batch).values())).sum().backward()
        optim.step()
        optim.zero_grad()
    check(made, batch, made.model.detect(batch.pixels))


# -- wear ----------------------------------------------------------------------------------------------------


def noise(count: int = 16, side: int = 64) -> torch.Tensor:
    """Pictures that reach both ends of the range."""
    return (3 * torch.randn(count, 3, side, side, generator=seeded(9))).clamp(-1, 1)


def test_wear_is_seeded_and_keeps_the_range() -> None:
    config = WearConfig(chance=1.0)
    first, rectangles = wear(noise(), config, seeded(1))
    again, same = wear(noise(), config, seeded(1))
    other, _ = wear(noise(), config, seeded(2))
    assert torch.equal(first, again)
    assert torch.equal(rectangles, same)
    assert not torch.equal(first, other)
    assert first.abs().max() <= 1
    assert first.isfinite().all()
    assert rectangles.min() >= 0
    assert rectangles.max() <= 1
    assert (rectangles[..., 2:] - rectangles[..., :2]).max() <= 0.3


def test_without_a_chance_nothing_is_worn() -> None:
    pixels, rectangles = wear(noise(), UNWORN, seeded())
    torch.testing.assert_close(pixels, noise())
    assert (rectangles[..., 2:] == rectangles[..., :2]).all()


@pytest.mark.parametrize("kind", ["blur", "noise", "contrast", "quantisation", "occlusion"])
def test_each_kind_of_wear_falls_on_its_share_of_the_pictures(kind: str) -> None:
    none = WearConfig(chance=0.4, blur=0.0, noise=0.0, contrast=0.0, quantisation=0.0, occlusion=0.0)
    config = replace(none, **{kind: getattr(WearConfig(), kind)})
    plain = noise(200, 32) / 2
    worn, _ = wear(plain, config, seeded())
    change = (worn - plain).flatten(1).abs().amax(1)
    assert (change > 1e-3).float().mean().item() == pytest.approx(0.4, abs=0.1)


def test_coarser_quantisation_takes_more_away_and_repeating_it_nothing() -> None:
    pixels = noise(3, 32) / 2
    worn = quantise(pixels, torch.tensor([0.0, 0.5, 2.0]))
    assert torch.equal(worn[0], pixels[0])
    error = (worn - pixels).square().mean((1, 2, 3))
    assert 0 < error[1] < error[2]
    torch.testing.assert_close(quantise(worn, torch.tensor([0.0, 0.5, 2.0])), worn, atol=1e-4, rtol=0)


def test_quantisation_rounds_the_mean_of_a_block() -> None:
    """The first coefficient of a constant block is 8 times its value, in steps of 16 levels."""
    worn = quantise(torch.full((1, 3, 8, 8), 5 / 127.5), torch.tensor([1.0]))
    torch.testing.assert_close(worn, torch.full((1, 3, 8, 8), 4 / 127.5))


def test_rectangles_hide_what_they_say() -> None:
    pixels = torch.zeros(2, 3, 8, 8)
    rectangles = torch.tensor([[[0.25, 0.5, 0.5, 1.0]], [[0.0, 0.0, 0.0, 0.0]]])
    hidden = hide(pixels, rectangles, torch.tensor([[[0.1, 0.2, 0.3]], [[1.0, 1.0, 1.0]]]))
    assert (hidden[0, 1] == 0.2).nonzero().tolist() == [[y, x] for y in range(4, 8) for x in (2, 3)]
    assert (hidden[1] == 0).all()


def test_covered_is_a_share_of_each_box() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.2, 0.2, 0.2, 0.2]]])
    rectangles = torch.tensor([[[0.25, 0.0, 0.75, 0.25], [0.0, 0.4, 0.5, 0.6]]])
    torch.testing.assert_close(covered(boxes, rectangles), torch.tensor([[0.25 + 0.2, 0.0, 0.0]]))


# -- what is shown and said ----------------------------------------------------------------------------------


def test_the_sheet_shows_boxes(detect: DetectConfig) -> None:
    made = objective(detect)
    assert made.draw(made.model).size == (4 * (128 + 4) + 4, 3 * (128 + 4) + 4)
    thing = Detection(label="cat", score=0.9, box=(0.25, 0.5, 0.75, 1.0), colour="red")
    letter = replace(thing, label="A", box=(0.0, 0.0, 0.2, 0.2))
    seen = Seen(objects=(thing,), letters=(letter,), style="flat", background="sky", features=torch.zeros(1))
    shown = marked(Image.new("RGB", (64, 64)), seen)
    assert shown.size == (128, 128)
    for corner in ((32, 100), (96, 100), (10, 0)):
        assert cast(tuple[int, int, int], shown.getpixel(corner)) == (0, 255, 0)


def test_the_header_says_all_that_it_takes_to_load(detect: DetectConfig) -> None:
    made = objective(detect)
    header = {key: json.loads(value) for key, value in made.header().items()}
    assert header["network"]["Detector"]["size"] == 64
    assert header["objects"] == list(made.names.objects)
    assert header["letters"][:2] == ["A", "B"]
    assert (header["colours"], header["backgrounds"]) == (list(COLOURS), list(BACKGROUNDS))
    assert header["styles"] == ["flat", "glossy"]
    assert header["sources"]["flat"]["licence"] == "MIT"
    assert made.published() == {name for name, _ in made.model.named_parameters()}
    assert isinstance(made.world, World)
