from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limner.data.world.art import LETTERS, load_atlas
from limner.data.world.backgrounds import SETTINGS
from limner.data.world.scene import COLOURS, Scenes, World, WorldConfig
from limner.errors import DataError, RequestError
from limner.evaluate.composition import relations
from limner.evaluate.prompts import Clause, Prompt
from limner.evaluate.sources import compose, composed, drawn, nearest, world_of
from limner.pipeline.load import load
from limner.pipeline.request import Request
from limner.util.images import pixels_from_images


@pytest.fixture(scope="module")
def world(atlas_folder: Path) -> World:
    return World(load_atlas(atlas_folder, sizes=(16, 32, 64)), WorldConfig(word=0.1))


def scenes_of(world: World, *include: Clause, **more: object) -> Scenes:
    asked = Prompt(task="position", text="", include=include, **more)  # type: ignore[arg-type]
    return compose(asked, world, 20, torch.Generator().manual_seed(1))


def boxes(scenes: Scenes, world: World, row: int) -> dict[str, tuple[float, float, float, float]]:
    """Where the objects of a scene stand."""
    found = {}
    for place, index in enumerate(scenes.object[row].tolist()):
        if index >= 0:
            x, y, side = *scenes.centre[row, place].tolist(), scenes.side[row, place].item()
            found[world.atlas.objects[index]] = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    return found


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_relations_are_composed_as_the_rule_sees_them(world: World, relation: str) -> None:
    scenes = scenes_of(world, Clause(object="cat"), Clause(object="apple", position=(relation, 0)))
    for row in range(len(scenes)):
        at = boxes(scenes, world, row)
        assert set(at) == {"cat", "apple"}
        assert relations(at["apple"], at["cat"]) == {relation}


def test_counts_colours_and_several_objects(world: World) -> None:
    scenes = scenes_of(world, Clause(object="cat", count=4, colour="red"))
    assert ((scenes.object >= 0).sum(1) == 4).all()
    assert (scenes.colour[:, :4] == COLOURS.index("red")).all()
    assert (scenes.background_colour[scenes.background < 2] != COLOURS.index("red")).all()
    three = scenes_of(world, *(Clause(object=name) for name in ("cat", "apple", "tree")))
    assert ((three.object >= 0).sum(1) == 3).all()
    assert (three.colour == -1).all()
    assert len(three.layout.unique()) > 1


def test_grounds_styles_sizes_and_words(world: World) -> None:
    cat = Clause(object="cat")
    assert (scenes_of(world, cat, background="gradient").background == 1).all()
    snow = scenes_of(world, cat, background="snow", style="glossy")
    assert (snow.background == 2 + list(SETTINGS).index("snow")).all()
    assert (snow.style == world.atlas.styles.index("glossy")).all()
    blue = scenes_of(world, cat, background="blue")
    assert (blue.background == 0).all()
    assert (blue.background_colour[:, 0] == COLOURS.index("blue")).all()
    small, large = (scenes_of(world, cat, size=size).side[:, 0] for size in ("small", "large"))
    assert small.max() < 0.72 * 0.787
    assert large.min() > 0.72
    said = scenes_of(world, cat, word="HI")
    assert (said.letters[:, :2] == torch.tensor([LETTERS.index("H"), LETTERS.index("I")])).all()
    assert (said.letters[:, 2:] == -1).all()
    assert (said.centre[:, 0, 1] < 0.45).all()
    assert (said.letter_colour != said.background_colour[:, 0]).all()


@pytest.mark.parametrize(
    ("include", "more", "message"),
    [
        ((Clause(object="unicorn"),), {}, 'the atlas has no object "unicorn"'),
        ((Clause(object="cat"),), {"style": "sticker"}, 'no style "sticker"'),
        ((Clause(object="cat"),), {"word": "LONGWORD"}, 'no room for the word "LONGWORD"'),
        ((Clause(object="cat", count=6),), {}, "no layout for 6 objects"),
        (
            (Clause(object="cat", count=2), Clause(object="apple", position=("above", 0))),
            {},
            "two single objects only",
        ),
    ],
)
def test_what_the_world_cannot_show(
    world: World, include: tuple[Clause, ...], more: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        scenes_of(world, *include, **more)


def test_composed_pictures_depend_on_their_seed_alone(world: World) -> None:
    source = composed(world, 64)
    asked = Prompt(task="colors", text="a red cat", include=(Clause(object="cat", colour="red"),))
    first = source(asked, 7, 2)
    assert first.shape == (2, 3, 64, 64)
    assert torch.equal(first, source(asked, 7, 2))
    assert not torch.equal(first, source(asked, 8, 2))


def test_the_nearest_caption_shows_what_was_asked(world: World) -> None:
    """Two thousand scenes of ten objects hold every object alone on every colour."""
    source = nearest(world, 64, captions=2000)
    asked = Prompt(task="background", text="a tree on a blue background", include=(Clause(object="tree"),))
    pictures = source(asked, 0, 3)
    corner = pictures[:, :, 0, 0].add(1).mul(127.5).round()
    assert corner.tolist() == [[52, 112, 220]] * 3
    assert torch.equal(pictures, source(asked, 5, 3)), "a seed changes nothing"


def test_a_world_of_what_is_named(atlas_folder: Path) -> None:
    prompts = [
        Prompt(task="colors", text="", include=(Clause(object=name),)) for name in ("key", "cat", "cow boy")
    ]
    world = world_of(prompts, atlas_folder, ("flat",), 64)
    assert set(world.atlas.objects) == {"key", "cat"}
    assert sorted(world.atlas.tiles) == [16, 32, 64]
    with pytest.raises(DataError, match="lacks sticker"):
        world_of(prompts, atlas_folder, ("sticker",), 64)


def test_a_models_pictures_are_the_pipelines(tiny: Path) -> None:
    pipeline = load(tiny)
    request = Request(prompt="", steps=2, guidance=1.0, sampler="euler")
    asked = Prompt(task="single_object", text="a cat", include=(Clause(object="cat"),))
    pixels = drawn(pipeline, request)(asked, 5, 2)
    result = pipeline("a cat", seed=5, count=2, steps=2, guidance=1.0, sampler="euler")
    assert torch.equal(pixels, pixels_from_images(result.images))
    with pytest.raises(RequestError, match="nothing that this model can draw"):
        drawn(pipeline, request)(replace(asked, text="xqzt"), 5, 2)
