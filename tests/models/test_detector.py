import math
from dataclasses import replace

import pytest
import torch

from limner.models.detector import Detector, DetectorConfig, Maps, Names, peaks, resize

NAMES = Names(
    objects=("apple", "cat", "tree"),
    letters=("A", "B"),
    colours=("red", "green", "blue"),
    styles=("flat", "glossy"),
    backgrounds=("red", "green", "blue", "gradient", "sky"),
)
SMALL = DetectorConfig(size=64, channels=16, growth=8, levels=3, embedding=8)
SIDE = 16  # cells of SMALL


def network(config: DetectorConfig = SMALL, seed: int = 0) -> Detector:
    model = Detector(config, NAMES)
    model.initialize(torch.Generator().manual_seed(seed))
    return model.eval()


def pictures(count: int = 2, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("config", [SMALL, DetectorConfig(), replace(SMALL, levels=1)])
def test_maps_have_a_cell_for_every_four_pixels(config: DetectorConfig) -> None:
    maps = network(config)(pictures(side=config.size))
    side = config.size // 4
    assert maps.centre.shape == (2, side, side)
    assert maps.offset.shape == maps.extent.shape == (2, 2, side, side)
    assert maps.colour.shape == (2, 3, side, side)
    assert maps.embedding.shape == (2, config.embedding, side, side)
    assert (maps.style.shape, maps.background.shape) == ((2, 2), (2, 5))
    assert maps.features.shape == (2, 4 * config.channels)


def test_the_default_network_is_small() -> None:
    objects = tuple(f"object {i}" for i in range(300))
    letters = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    with torch.device("meta"):
        model = Detector(DetectorConfig(), replace(NAMES, objects=objects, letters=letters))
    assert 1_000_000 < sum(p.numel() for p in model.parameters()) < 1_500_000


def test_a_new_network_sees_nothing() -> None:
    maps = network()(pictures())
    assert maps.centre.sigmoid().mean().item() == pytest.approx(0.01, abs=0.005)
    assert all(not seen.objects and not seen.letters for seen in network().detect(pictures()))


def test_every_parameter_matters() -> None:
    model = network()
    maps = model(pictures())
    kinds = model.classify(maps.embedding.movedim(1, -1))
    parts = (maps.centre, maps.offset, maps.extent, maps.colour, kinds, maps.style, maps.background)
    torch.stack([part.square().mean() for part in parts]).sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert unused == []


def test_initialisation_sets_every_weight_and_repeats() -> None:
    first, second = network(), network(seed=5)
    with torch.no_grad():
        for p in second.parameters():
            p.fill_(torch.nan)
    second.initialize(torch.Generator().manual_seed(0))
    for (name, p), (_, q) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def test_no_picture_depends_on_another() -> None:
    both = network()(pictures())
    alone = network()(pictures()[1:])
    for part, same in zip(both, alone, strict=True):
        torch.testing.assert_close(part[1:], same, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 40}, "size is a multiple of 16, got 40"),
        ({"size": 0}, "size is a multiple of 16, got 0"),
        ({"levels": 0}, "levels are 1 to 8, got 0"),
        ({"channels": 12}, "multiples of 8, got 12 and 8"),
        ({"growth": 3}, "multiples of 8, got 16 and 3"),
    ],
)
def test_shapes_that_cannot_be_built(change: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **change)


# -- from maps to detections ---------------------------------------------------------------------------------


def blank(count: int = 1) -> Maps:
    """Maps that see nothing, on a flat red picture; embeddings as `sharp` wants them."""
    style = torch.tensor([[1.0, 0.0]]).repeat(count, 1)
    background = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]).repeat(count, 1)
    return Maps(
        centre=torch.full((count, SIDE, SIDE), -20.0),
        offset=torch.zeros(count, 2, SIDE, SIDE),
        extent=torch.zeros(count, 2, SIDE, SIDE),
        colour=torch.zeros(count, 3, SIDE, SIDE),
        embedding=torch.ones(count, 8, SIDE, SIDE),
        style=style,
        background=background,
        features=torch.zeros(count, 64),
    )


def sharp() -> Detector:
    """A network whose class i is direction i of the embedding, with hardly a doubt."""
    model = network()
    with torch.no_grad():
        model.prototypes.copy_(torch.eye(5, 8))
        model.sharpness.fill_(math.log(100))
    return model


def mark(
    maps: Maps,
    row: int,
    column: int,
    kind: int,
    chance: float,
    offset: tuple[float, float] = (0.5, 0.5),
    extent: tuple[float, float] = (2.0, 4.0),
    colour: int = 0,
    picture: int = 0,
) -> None:
    at = (picture, slice(None), row, column)
    maps.centre[picture, row, column] = math.log(chance / (1 - chance))
    maps.offset[at], maps.extent[at] = torch.tensor(offset), torch.tensor(extent)
    maps.colour[at] = 9 * torch.eye(3)[colour]
    maps.embedding[at] = 3 * torch.eye(8)[kind]


def test_boxes_labels_and_colours_are_read_exactly() -> None:
    maps = blank()
    mark(maps, 4, 6, kind=1, chance=0.9, offset=(0.25, 0.75), extent=(4.0, 2.0), colour=2)
    (seen,) = sharp().read(maps, 0.3)
    (cat,) = seen.objects
    assert (cat.label, cat.colour) == ("cat", "blue")
    assert cat.score == pytest.approx(0.9, abs=1e-5)
    assert cat.box == pytest.approx((4.25 / 16, 3.75 / 16, 8.25 / 16, 5.75 / 16))
    assert (seen.letters, seen.style, seen.background) == ((), "flat", "red")
    assert seen.features.shape == (64,)


def test_boxes_end_at_the_edge_of_the_picture() -> None:
    maps = blank()
    mark(maps, 0, 15, kind=0, chance=0.9, extent=(6.0, 6.0))
    mark(maps, 8, 8, kind=0, chance=0.8, extent=(-3.0, 2.0))
    corner, thin = sharp().read(maps, 0.3)[0].objects
    assert corner.box == pytest.approx((12.5 / 16, 0, 1, 3.5 / 16))
    assert thin.box[0] == thin.box[2]


def test_the_best_comes_first_and_letters_are_read_from_left_to_right() -> None:
    maps = blank(2)
    for row, column, kind, chance in ((2, 2, 2, 0.5), (2, 8, 0, 0.9), (8, 3, 1, 0.7)):
        mark(maps, row, column, kind, chance)
    for column, kind, chance in ((9, 4, 0.6), (12, 3, 0.9), (3, 4, 0.8)):
        mark(maps, 14, column, kind, chance, picture=1)
    first, second = sharp().read(maps, 0.3)
    assert [thing.label for thing in first.objects] == ["apple", "cat", "tree"]
    assert [letter.label for letter in second.letters] == ["B", "B", "A"]
    assert (first.letters, second.objects) == ((), ())


def test_the_score_is_the_chance_of_the_centre_times_that_of_the_class() -> None:
    maps, model = blank(), sharp()
    mark(maps, 4, 4, kind=0, chance=0.8)
    maps.embedding[0, 2, 4, 4] = 3.0  # as much a tree as an apple
    (thing,) = model.read(maps, 0.3)[0].objects
    assert thing.score == pytest.approx(0.4, abs=1e-4)


def test_only_what_is_above_the_threshold_is_told() -> None:
    maps = blank()
    mark(maps, 2, 2, kind=0, chance=0.31)
    mark(maps, 9, 9, kind=1, chance=0.29)
    labels = {
        threshold: [thing.label for thing in sharp().read(maps, threshold)[0].objects]
        for threshold in (0.2, 0.3, 0.4)
    }
    assert labels == {0.2: ["apple", "cat"], 0.3: ["apple"], 0.4: []}


def test_of_neighbours_only_the_highest_is_a_centre() -> None:
    maps = blank()
    for row, column, chance in ((5, 5, 0.8), (5, 6, 0.9), (6, 6, 0.7), (5, 8, 0.6)):
        mark(maps, row, column, kind=0, chance=chance)
    assert [round(thing.score, 3) for thing in sharp().read(maps, 0.3)[0].objects] == [0.9, 0.6]
    chance, cell = peaks(maps.centre)
    assert cell[0, :2].tolist() == [5 * SIDE + 6, 5 * SIDE + 8]
    assert chance[0, :2].tolist() == pytest.approx([0.9, 0.6])


def test_at_most_sixteen_things_the_best_ones() -> None:
    maps = blank()
    for index in range(20):
        row, column = divmod(index, 5)
        mark(maps, 3 * row, 3 * column, kind=0, chance=0.5 + 0.02 * index)
    scores = [thing.score for thing in sharp().read(maps, 0.3)[0].objects]
    assert scores == pytest.approx([0.5 + 0.02 * index for index in range(19, 3, -1)], abs=1e-5)


def test_pictures_of_another_size_are_resized() -> None:
    large = pictures(side=96)
    assert torch.equal(resize(pictures(), 64), pictures())
    model = network()
    asked, same = model.detect(large, threshold=0.0), model.detect(resize(large, 64), threshold=0.0)
    assert [seen.objects for seen in asked] == [seen.objects for seen in same]
    assert len(asked[0].objects) > 0
    assert asked[0].features.requires_grad is False


def test_resizing_keeps_a_plain_picture_and_smooths() -> None:
    assert torch.allclose(resize(torch.full((1, 3, 48, 48), 0.25), 128), torch.tensor(0.25))
    checks = (torch.arange(128) % 2 * 2.0 - 1).expand(1, 3, 128, 128).contiguous()
    assert resize(checks, 64)[..., 2:-2].abs().max() < 0.3
