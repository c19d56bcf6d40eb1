import hashlib
import itertools
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from limner.data.world.art import Atlas
from limner.data.world.backgrounds import PALETTE
from limner.data.world.scene import (
    COLOURS,
    KINDS,
    LAYOUTS,
    LETTER_HEIGHT,
    MIX,
    PLACES,
    Scenes,
    World,
    WorldConfig,
    held_out,
    recolour,
    spelled,
)
from limner.errors import DataError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world(atlas: Atlas) -> World:
    return World(atlas)


def same(first: Scenes, second: Scenes) -> bool:
    return all(torch.equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(Scenes))


def lone(
    world: World, objects: list[str], *, centre: tuple[float, float] = (0.5, 0.5), side: float = 0.5
) -> Scenes:
    """One scene per object, as drawn, on plain white."""
    count = len(objects)
    scenes = world.sample(count, seeded())
    places = torch.full((count, PLACES), -1)
    indices = places.clone()
    indices[:, 0] = torch.tensor([world.atlas.objects.index(name) for name in objects])
    return replace(
        scenes,
        kind=torch.zeros(count, dtype=torch.long),
        layout=torch.zeros(count, dtype=torch.long),
        object=indices,
        colour=places.clone(),
        centre=torch.tensor(centre).expand(count, PLACES, 2).clone(),
        side=torch.full((count, PLACES), side),
        background=torch.zeros(count, dtype=torch.long),
        background_colour=torch.full((count, 2), COLOURS.index("white")),
    )


PINNED_COLOURS = [
    ("apple", "white"),
    ("umbrella", "yellow"),
    ("tree", "blue"),
    ("rocket", "brown"),
    ("key", "orange"),
    ("key", "purple"),
]
PINNED_RELATIONS = [
    ("dog", "left of", "key"),
    ("tree", "left of", "apple"),
    ("rocket", "above", "umbrella"),
    ("hot dog", "left of", "rocket"),
    ("key", "above", "dog"),
]

# -- the rule of what is held out -------------------------------------------------------------------------


def test_the_rule_never_drifts() -> None:
    """Pinned: what a published model has never seen follows from these."""
    names = ("apple", "cat", "dog", "umbrella", "tree", "rocket", "hot dog", "key")
    colours = held_out(names, ("",), COLOURS)[:, 0]
    found = [(names[row], COLOURS[column]) for row, column in colours.nonzero().tolist()]
    assert found == PINNED_COLOURS
    relations = held_out(names, ("left of", "above"), names)
    triples = [(names[a], ("left of", "above")[r], names[b]) for a, r, b in relations.nonzero().tolist()]
    assert triples == PINNED_RELATIONS


def test_the_rule_is_what_its_docstring_says() -> None:
    def signed(x: int) -> int:
        return (x + 2**63) % 2**64 - 2**63

    def digest(name: str) -> int:
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 30)) * 0x94D049BB133111EB % 2**64
        return signed(x ^ (x >> 31))

    names, relations = ("cat", "dog", "hot dog", "umbrella"), ("", "left of", "above")
    expected = [
        [
            [mix((digest(a) + 3 * digest(r) + 7 * digest(b)) % 2**64) % 20 == 0 for b in COLOURS]
            for r in relations
        ]
        for a in names
    ]
    assert held_out(names, relations, COLOURS).tolist() == expected


def test_one_case_in_twenty_is_held_out(core_atlas: Atlas) -> None:
    world = World(core_atlas)
    assert world.held_out_colour.float().mean().item() == pytest.approx(0.05, abs=0.01)
    for relation in world.held_out_relation.unbind(1):
        assert relation.float().mean().item() == pytest.approx(0.05, abs=0.01)


def test_the_rule_looks_at_names_alone() -> None:
    """Another vocabulary, another order: the same cases."""
    names = ("cat", "dog", "apple", "tree", "key")
    forth = held_out(names, ("left of", "above"), names)
    back = held_out(names[::-1], ("above", "left of"), names[::-1])
    assert torch.equal(forth, back.flip(0, 1, 2))


def told_again(world: World, scenes: Scenes) -> tuple[list[bool], list[bool]]:
    """The rule read one picture at a time: (a held-out colour, a held-out relation) in each scene."""
    names = world.atlas.objects
    colours = held_out(names, ("",), COLOURS)[:, 0].tolist()
    relations = held_out(names, ("left of", "above"), names).tolist()
    coloured, related = [], []
    for objects, said, centres in zip(
        scenes.object.tolist(), scenes.colour.tolist(), scenes.centre.tolist(), strict=True
    ):
        there = [k for k in range(PLACES) if objects[k] >= 0]
        coloured.append(any(said[k] >= 0 and colours[objects[k]][said[k]] for k in there))
        broken = False
        for a, b in itertools.permutations(there, 2):
            dx, dy = (centres[b][axis] - centres[a][axis] for axis in (0, 1))
            relation, ahead = (1, dy > 0) if abs(dy) > abs(dx) else (0, dx > 0)
            if ahead and objects[a] != objects[b]:
                broken |= relations[objects[a]][relation][objects[b]]
        related.append(broken)
    return coloured, related


def test_breaking_the_rule_is_seen(core_atlas: Atlas) -> None:
    world = World(core_atlas, WorldConfig(coloured=0.8))
    scenes = world._draw(300, seeded())
    coloured, related = told_again(world, scenes)
    assert any(coloured)
    assert any(related)
    expected = [c or r for c, r in zip(coloured, related, strict=True)]
    assert world.breaks_rule(scenes).tolist() == expected


def test_training_never_sees_what_is_held_out(core_atlas: Atlas) -> None:
    world = World(core_atlas, WorldConfig(coloured=0.5))
    scenes = world.sample(20_000, seeded())
    assert not world.breaks_rule(scenes).any()
    assert not world._repeats(scenes).any()


def test_unseen_scenes_all_hold_something_that_training_never_saw(core_atlas: Atlas) -> None:
    world = World(core_atlas)
    scenes = world.sample(50, seeded(), unseen=True)
    assert world.breaks_rule(scenes).all()
    assert not world._repeats(scenes).any()


def test_a_judge_may_see_both(core_atlas: Atlas) -> None:
    world = World(core_atlas)
    scenes = world.sample(2_000, seeded(), unseen=None)
    assert 0 < world.breaks_rule(scenes).sum() < 400
    assert not world._repeats(scenes).any()


def test_too_few_objects_to_keep_the_rule(core_atlas: Atlas) -> None:
    one = replace(
        core_atlas,
        objects=core_atlas.objects[:1],
        tiles={size: tiles[:, :1] for size, tiles in core_atlas.tiles.items()},
    )
    with pytest.raises(DataError, match="1 objects are too few for scenes that break"):
        World(one, WorldConfig(coloured=0.0)).sample(10, seeded(), unseen=True)


# -- sampling ---------------------------------------------------------------------------------------------


def test_scenes_repeat_with_the_generator(core_atlas: Atlas) -> None:
    world = World(core_atlas, WorldConfig(word=0.3))
    generator = seeded(5)
    first, second = world.sample(64, generator), world.sample(64, generator)
    assert same(first, world.sample(64, seeded(5)))
    assert not same(first, second)
    assert len(first) == 64
    assert same(first[10:20], first[torch.arange(10, 20)])


def test_shares_follow_the_configuration(core_atlas: Atlas) -> None:
    config = WorldConfig(coloured=0.4, sized=0.2, word=0.5, gradient=0.3, setting=0.1)
    world = World(core_atlas, config)
    scenes = world._draw(20_000, seeded())
    share = torch.bincount(scenes.kind, minlength=len(KINDS)) / 20_000
    assert share.tolist() == pytest.approx(list(MIX.values()), abs=0.02)
    first = scenes.object[:, 0] >= 0
    assert first.all()
    assert (scenes.colour[:, 0] >= 0).float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert (scenes.scale[scenes.kind <= 3, 0] != 0).float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert (scenes.background == 1).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert (scenes.background >= 2).float().mean().item() == pytest.approx(0.1, abs=0.02)
    single = scenes.kind == 0
    assert (scenes.letters[single, 0] >= 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (scenes.letters[~single] == -1).all()


def test_kinds_of_scene_hold_what_they_say(core_atlas: Atlas) -> None:
    scenes = World(core_atlas).sample(4_000, seeded())
    layouts = list(LAYOUTS)
    for row in range(0, 4_000, 7):
        kind = list(KINDS)[int(scenes.kind[row])]
        layout = layouts[int(scenes.layout[row])]
        present = [o for o in scenes.object[row].tolist() if o >= 0]
        assert layout in KINDS[kind]
        assert len(present) == len(LAYOUTS[layout])
        kinds = (
            1 if kind in ("single", "count") else 2 if "relation" in kind or kind == "pair" else len(present)
        )
        assert len(set(present)) == kinds


def test_colours_do_not_vanish_into_plain_backgrounds(core_atlas: Atlas) -> None:
    scenes = World(core_atlas, WorldConfig(coloured=1.0, word=1.0)).sample(2_000, seeded())
    flat = scenes.background < 2
    assert (scenes.colour[flat] != scenes.background_colour[flat, :1]).all()
    assert (scenes.background_colour[:, 0] != scenes.background_colour[:, 1]).all()
    assert (scenes.letter_colour != scenes.background_colour[:, 0]).all()


# -- drawing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 48])
def test_the_same_scene_at_every_size(atlas: Atlas, size: int) -> None:
    world = World(atlas, WorldConfig(word=0.5))
    scenes = world.sample(24, seeded(2))
    small, small_cover = world.render(scenes, size)
    assert small.shape == (24, 3, size, size)
    assert small_cover.shape == (24, PLACES, size, size)
    for factor in (2, 4):
        large, large_cover = world.render(scenes, size * factor)
        assert (F.avg_pool2d(large, factor) - small).abs().mean() < 0.02
        error = (F.avg_pool2d(large_cover, factor) - small_cover).abs()
        assert error.mean() < 0.005
        for place in range(PLACES):
            there = scenes.object[:, place] >= 0
            areas = [cover[there, place].mean((1, 2)) for cover in (small_cover, large_cover)]
            torch.testing.assert_close(*areas, rtol=0.04, atol=0.002)


def test_pictures_and_covers_are_in_range(world: World) -> None:
    scenes = world.sample(64, seeded(4))
    for size in (16, 40, 64):
        picture, cover = world.render(scenes, size)
        assert -1 <= picture.min() <= picture.max() <= 1
        assert cover.min() >= 0
        assert cover.sum(1).max() <= 1 + 1e-5
        absent = scenes.object < 0
        assert (cover[absent] == 0).all()
        assert (cover[~absent].mean((1, 2)) > 0.003).all()


@pytest.mark.parametrize("size", [33, 64, 128, 200])
@pytest.mark.parametrize("side", [0.11, 0.26, 0.37, 0.5, 0.97])
@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.31, 0.62), (0.04, 0.9)])
def test_drawings_stand_where_the_scene_says(
    world: World, size: int, side: float, centre: tuple[float, float]
) -> None:
    """The orange fills its tile with a disc, so what it covers is known, also where the canvas ends."""
    _, cover = world.render(lone(world, ["orange"], centre=centre, side=side), size)
    at = (torch.arange(size) + 0.5) / size
    distance = ((at[None] - centre[0]).square() + (at[:, None] - centre[1]).square()).sqrt()
    disc = ((0.49 * side - distance) * size + 0.5).clamp(0, 1)
    assert (cover[0, 0] - disc).abs().mean() < 0.05 * disc.mean() + 2 / size**2
    middle = [((cover[0, 0] * axis).sum() / cover[0, 0].sum()).item() for axis in (at[None], at[:, None])]
    expected = [((disc * axis).sum() / disc.sum()).item() for axis in (at[None], at[:, None])]
    assert middle == pytest.approx(expected, abs=0.3 / size)


def test_a_window_shows_all_that_a_full_canvas_would(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing into windows is an economy: on full canvases, the pictures are the same."""
    scenes = world.sample(48, seeded(8))
    windowed = world.render(scenes, 64)
    split = World._by_size
    monkeypatch.setattr(World, "_by_size", lambda *args: [(tile, 64, rows) for tile, _, rows in split(*args)])
    for part, full in zip(windowed, world.render(scenes, 64), strict=True):
        torch.testing.assert_close(part, full, rtol=0, atol=2e-5)


def test_pictures_do_not_depend_on_the_batch(world: World) -> None:
    scenes = world.sample(12, seeded(6))
    together, cover = world.render(scenes, 64)
    for row in (0, 5, 11):
        alone, cover_alone = world.render(scenes[row : row + 1], 64)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(cover_alone[0], cover[row], rtol=0, atol=1e-5)


def test_later_places_stand_in_front(world: World) -> None:
    """Two oranges on one spot: the second hides the first, and the covers say so."""
    scenes = lone(world, ["orange"], side=0.6)
    scenes.object[0, 1] = scenes.object[0, 0]
    scenes.colour[0, :2] = torch.tensor([COLOURS.index("red"), COLOURS.index("blue")])
    picture, cover = world.render(scenes, 64)
    assert cover[0, 0, 20:44, 20:44].max() < 1e-5
    assert cover[0, 1, 20:44, 20:44].min() > 1 - 1e-5
    assert nearest_colour(picture[0, :, 32, 32]) == "blue"


def nearest_colour(pixel: torch.Tensor) -> str:
    palette = torch.tensor(list(PALETTE.values())) / 127.5 - 1
    return COLOURS[int((palette - pixel).square().sum(1).argmin())]


@pytest.mark.parametrize("name", COLOURS)
def test_recoloured_drawings_have_the_colour_asked_for(world: World, name: str) -> None:
    objects = ["orange", "apple", "cat", "tree", "balloon", "star"]
    scenes = lone(world, objects, side=0.8)
    scenes.colour[:, 0] = COLOURS.index(name)
    picture, cover = world.render(scenes, 64)
    for row in range(len(objects)):
        mean = (picture[row] * cover[row, 0]).sum((1, 2)) / cover[row, 0].sum()
        assert nearest_colour(mean) == name


def test_drawings_keep_their_own_colours_when_none_is_asked(world: World) -> None:
    picture, _ = world.render(lone(world, ["orange"], side=0.8), 64)
    expected = torch.tensor([0xF0, 0x80, 0x20]) / 127.5 - 1
    torch.testing.assert_close(picture[0, :, 32, 32], expected, atol=0.01, rtol=0)


def test_recolouring_keeps_light_and_shade() -> None:
    """Darker than the mean goes towards black, lighter towards white; what is transparent stays so."""
    tile = torch.zeros(1, 4, 1, 4)
    tile[0, 3] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    tile[0, :3] = torch.tensor([0.2, 0.5, 0.9, 0.0])
    painted = recolour(tile, torch.tensor([[0.8, 0.1, 0.1]]), torch.tensor([0.5]))
    dark, middle, light, clear = painted[0, :3, 0].unbind(1)
    torch.testing.assert_close(middle, torch.tensor([0.8, 0.1, 0.1]))
    assert (dark < middle).all()
    assert (light > middle).all()
    assert (clear == 0).all()
    assert torch.equal(painted[:, 3], tile[:, 3])


def test_words_are_written_in_their_colour_below_the_object(atlas: Atlas) -> None:
    world = World(atlas)
    scenes = lone(world, ["orange", "orange"], side=0.3)
    scenes.letters[1, :3] = torch.tensor([7, 7, 7])  # HHH
    scenes.letter_colour[:] = COLOURS.index("black")
    plain, written = world.render(scenes, 128)[0]
    ink = (plain - written).abs().amax(0) > 0.5
    ys, xs = ink.nonzero().unbind(1)
    assert ys.min() >= 128 * 0.8 - 1
    assert ys.max() <= 128 * 0.965 + 1
    assert (xs.min() + xs.max()).item() == pytest.approx(127, abs=3)
    assert nearest_colour(written[:, ys[0], xs[0]]) == "black"
    gaps = (~ink.any(0)[xs.min() : xs.max()]).sum()
    assert gaps > 3


def test_where_the_letters_of_a_word_stand() -> None:
    advance = torch.tensor([1.0, 0.5])
    centres, height = spelled(torch.tensor([[0, 1, -1], [-1, -1, -1]]), advance)
    torch.testing.assert_close(height, torch.full((2,), LETTER_HEIGHT))
    torch.testing.assert_close(centres[0, :2, 0], 0.5 + LETTER_HEIGHT * torch.tensor([-0.25, 0.5]))
    assert centres.isfinite().all()
    _, shrunk = spelled(torch.zeros(1, 10, dtype=torch.long), advance)
    assert shrunk.item() == pytest.approx(0.09)


def test_long_words_shrink_to_the_canvas(atlas: Atlas) -> None:
    world = World(atlas, WorldConfig(word_length=12))
    scenes = lone(world, ["orange", "orange"], side=0.2)
    scenes.letters[1] = atlas.advance.argmax()
    plain, written = world.render(scenes, 128)[0]
    xs = (plain - written).abs().amax((0, 1)).nonzero()
    assert xs.min() >= 128 * 0.04
    assert xs.max() <= 128 * 0.96
