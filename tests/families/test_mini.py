"""How the built-in model reads an order."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limner.errors import RequestError, WeightsError
from limner.families import FAMILIES, mini, mini_files
from limner.families.base import Order
from limner.families.drawn import smaller
from limner.families.mini import Mini
from limner.families.mini_stages import rows
from limner.families.stages import DiffusionStage, resize
from limner.util.rng import NoiseSource
from limner.weights.files import save
from limner.weights.header import read_metadata

ORDER = Order(
    prompt="a cat on a blue background",
    negative_prompt="",
    steps=3,
    guidance=3.0,
    sampler="euler",
    size=(64, 64),
    style=None,
)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Mini:
    return mini_files.load(tiny, torch.device("cpu"))


def test_the_family_is_listed_under_its_name() -> None:
    assert all(family.name == name for name, family in FAMILIES.items())
    assert FAMILIES["mini"].folder is not None


def test_size_follows_from_the_networks(model: Mini) -> None:
    assert model.shape == (3, 16, 16)
    assert model.defaults == replace(mini.DEFAULTS, size=(64, 64))


def test_a_plan_has_two_stages(model: Mini) -> None:
    plan = model.plan(ORDER)
    assert [(stage.name, stage.steps) for stage in plan.stages] == [("diffusion", 3), ("upscaler", 1)]
    assert plan.notices == plan.warnings == ()


def test_words_are_accounted_for(model: Mini) -> None:
    plan = model.plan(
        replace(ORDER, prompt="a kitten beside a dragon", negative_prompt="a puppy and a zebra")
    )
    assert plan.notices == (
        'the prompt says "kitten", drawn as cat',
        'the negative prompt says "puppy", drawn as dog',
    )
    assert [warning.split(";")[0] for warning in plan.warnings] == [
        'the prompt says "beside": not in the lexicon',
        'the prompt says "dragon": this model has not learned it',
        'the negative prompt says "zebra": this model has not learned it',
    ]


@pytest.mark.parametrize("prompt", ["", "  ", "the", "xqzt", "a zebra", "red", "two", "a background", "no"])
def test_nothing_drawable_is_refused(model: Mini, prompt: str) -> None:
    with pytest.raises(RequestError, match="the prompt names nothing"):
        model.plan(replace(ORDER, prompt=prompt))


def test_nothing_drawable_says_which_words_and_what_is_near(model: Mini) -> None:
    with pytest.raises(RequestError, match=r'"bicicle": not in the lexicon; nearest: bicycle.*limner words'):
        model.plan(replace(ORDER, prompt="a bicicle"))


def test_words_to_write_are_refused_by_a_model_that_cannot_write(model: Mini) -> None:
    plan = replace(model, spells=False).plan(replace(ORDER, prompt='a cat with the word "HI"'))
    assert plan.warnings == ('the prompt says "HI": this model has not learned to write words',)
    assert replace(model, spells=False).read('a cat with the word "HI"').words == ("a", "cat")


@pytest.mark.parametrize(
    "prompt", ["cat", "the beach at night", "a red background", '"HELLO"', "a blue gradient"]
)
def test_what_is_drawable(model: Mini, prompt: str) -> None:
    assert model.plan(replace(ORDER, prompt=prompt)).stages


def test_a_prompt_beyond_the_context_is_cut_and_reported(model: Mini) -> None:
    plan = model.plan(replace(ORDER, prompt=" and ".join(["a cat"] * 12)))  # 35 words; 24 less two marks fit
    assert plan.warnings == ("the prompt is too long: its last 13 words were left out",)


def test_style_is_added_where_none_is_named(model: Mini) -> None:
    words = ("a", "cat", "in", "glossy", "style")
    assert model.read("a cat", "glossy").words == words
    assert model.read("a cat", "3D").words == words
    assert model.read("a cat in glossy style", "glossy").words == words


def test_two_styles_conflict(model: Mini) -> None:
    with pytest.raises(RequestError, match="asks for flat style, the style setting for glossy"):
        model.read("a flat cat", "glossy")


@pytest.mark.parametrize(
    ("style", "end"),
    [("glosy", 'did you mean "glossy"'), ("sticker", "known: flat, glossy"), ("cat", "known:")],
)
def test_unknown_style(model: Mini, style: str, end: str) -> None:
    with pytest.raises(RequestError, match=f"no style '{style}'; {end}"):
        model.read("a cat", style)


def test_a_style_that_was_not_learned_is_left_out_whole(model: Mini) -> None:
    reading = model.read("a cat in sticker style on a blue background")
    assert reading.words == ("a", "cat", "on", "a", "blue", "background")
    assert [str(unknown) for unknown in reading.unknown] == [
        '"sticker": this model has not learned it; nearest: flat, glossy'
    ]
    assert model.read("a sticker cat").words == ("a", "cat")


@pytest.mark.parametrize("size", [(64, 128), (32, 32), (1025, 1025)])
def test_sizes_beyond_the_model(model: Mini, size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="draws squares"):
        model.plan(replace(ORDER, size=size))


def test_other_squares_are_reported(model: Mini) -> None:
    assert model.plan(replace(ORDER, size=(256, 256))).notices == ("drawn at 64x64 and resized to 256x256",)


def test_empty_negative_is_the_empty_caption(model: Mini) -> None:
    text = model.encode(model.read("a cat"), model.read(""))
    assert text.mask.sum(1).tolist() == [4, 2]
    tokens = torch.tensor([model.tokenizer.encode((), 4)[0]])
    context, pooled = model.base.encode(tokens, tokens != model.tokenizer.pad)
    assert torch.allclose(text.pooled[1:], pooled, atol=1e-6)
    assert torch.allclose(text.context[1:, :2], context[:, :2], atol=1e-6)


def test_every_wish_changes_the_picture(model: Mini) -> None:
    def draw(order: Order) -> torch.Tensor:
        first, _ = model.plan(order).stages
        return list(first.run(None, NoiseSource([1])))[-1].x

    plain = draw(ORDER)
    changes: list[Order] = [
        replace(ORDER, prompt="a dog on a blue background"),
        replace(ORDER, negative_prompt="a dog"),
        replace(ORDER, guidance=1.0),
        replace(ORDER, steps=4),
        replace(ORDER, sampler="heun"),
        replace(ORDER, style="flat"),
    ]
    assert [order for order in changes if torch.equal(draw(order), plain)] == []
    assert torch.equal(draw(ORDER), plain)


def test_a_folder_without_one_of_the_files(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "base.safetensors", tmp_path)
    with pytest.raises(WeightsError, match=r"has no upscaler\.safetensors\. A model folder holds"):
        mini_files.load(tmp_path, torch.device("cpu"))


def test_files_in_each_others_place(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "base.safetensors", tmp_path / "upscaler.safetensors")
    shutil.copy(tiny / "base.safetensors", tmp_path / "base.safetensors")
    with pytest.raises(WeightsError, match="holds the network PixelDiT; here a Upscaler is needed"):
        mini_files.load(tmp_path, torch.device("cpu"))


@pytest.mark.parametrize("key", ["objects", "styles"])
def test_words_that_the_vocabulary_lacks(tiny: Path, tmp_path: Path, key: str) -> None:
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "base.safetensors"
    metadata = read_metadata(path)
    metadata[key] = json.dumps([*json.loads(metadata[key]), "zebra"])
    save(load_file(path), path, metadata)
    with pytest.raises(WeightsError, match="the vocabulary in the header lacks zebra"):
        mini_files.load(tmp_path, torch.device("cpu"))


def test_a_vocabulary_of_another_length(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "base.safetensors"
    metadata = read_metadata(path)
    metadata["vocabulary"] = json.dumps([*json.loads(metadata["vocabulary"]), "zebra"])
    save(load_file(path), path, metadata)
    with pytest.raises(WeightsError, match="words in the header for"):
        mini_files.load(tmp_path, torch.device("cpu"))


def test_larger_pictures_are_decided_in_more_noise() -> None:
    assert (mini.grid_shift(48), mini.grid_shift(96)) == (3, 6)


# -- pictures to begin with ----------------------------------------------------------------------------------


def drawn(model: Mini, order: Order, seed: int = 1) -> torch.Tensor:
    """The pixels of one picture."""
    x: torch.Tensor | None = None
    for stage in model.plan(order).stages:
        *_, last = stage.run(x, NoiseSource([seed]))
        x = last.x
    assert x is not None
    return x


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """64 x 64, smooth enough to be told when it is small."""
    ramp = torch.linspace(-0.9, 0.9, 64)
    return torch.stack([ramp[:, None].expand(64, 64), ramp.expand(64, 64), -ramp.expand(64, 64)])[None]


@pytest.mark.parametrize(("strength", "steps"), [(0.01, 1), (0.3, 1), (0.5, 2), (0.8, 3), (0.9, 4), (1.0, 4)])
def test_strength_says_where_on_the_way_to_begin(
    model: Mini, image: torch.Tensor, strength: float, steps: int
) -> None:
    stage, _ = model.plan(replace(ORDER, steps=4, image=image, strength=strength)).stages
    assert isinstance(stage, DiffusionStage)
    assert stage.steps == steps
    small, noise = resize((16, 16)).change(image), NoiseSource([1]).initial(model.shape)
    begun: list[torch.Tensor] = []

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        begun.append(x)
        return x

    next(iter(replace(stage, denoise=denoise).run(None, NoiseSource([1]))))
    t = strength / (1 + (mini.grid_shift(16) - 1) * strength) * mini.grid_shift(16)
    assert torch.allclose(begun[0], (1 - t) * small + t * noise, atol=1e-6)


def test_at_full_strength_nothing_of_the_picture_is_left(model: Mini, image: torch.Tensor) -> None:
    assert torch.equal(drawn(model, replace(ORDER, image=image, strength=1.0)), drawn(model, ORDER))
    assert not torch.equal(drawn(model, replace(ORDER, image=image, strength=0.7)), drawn(model, ORDER))


@pytest.mark.parametrize("size", [64, 96])
def test_what_a_mask_keeps_comes_back_bit_for_bit(model: Mini, size: int) -> None:
    image = torch.rand(1, 3, size, size) * 2 - 1
    mask = torch.zeros(1, 1, size, size)
    mask[..., 20:40, 20:44], mask[..., 20:40, 44:50] = 1.0, 0.5
    kept = (mask == 0).expand_as(image)
    pixels = drawn(model, replace(ORDER, size=(size, size), image=image, mask=mask, strength=1.0))
    assert pixels.shape == image.shape
    assert torch.equal(pixels[kept], image[kept])
    assert not torch.isclose(pixels[~kept], image[~kept]).any()


def test_a_mask_is_held_to_the_picture_while_it_is_drawn(model: Mini, image: torch.Tensor) -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 5, 9] = 0.1  # touches one small pixel
    first, *_ = model.plan(replace(ORDER, image=image, mask=mask, strength=1.0)).stages
    x0 = [step.x0 for step in first.run(None, NoiseSource([1]))]
    small = resize((16, 16)).change(image)
    changed = (x0[0] != small).any(1)[0]
    assert changed.nonzero().tolist() == [[1, 2]]


def test_around_a_picture_things_are_small(model: Mini, image: torch.Tensor) -> None:
    mask = torch.ones(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 0
    order = replace(ORDER, image=image, mask=mask)
    around = replace(order, extend=(16, 16, 16, 16))
    notices = model.plan(around).notices
    assert notices == ("around the picture things are drawn small, as they are seen from farther away",)
    small = replace(order, prompt="a small cat on a blue background")
    assert torch.equal(drawn(model, around), drawn(model, small))
    assert not torch.equal(drawn(model, around), drawn(model, order))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a large red cat left of two dogs", "a small red cat left of two small dog <plural>"),
        ("apple, small dog on a blue background", "small apple small dog on a blue background"),
        ("a beach", "a beach"),
    ],
)
def test_smaller(model: Mini, prompt: str, words: str) -> None:
    assert " ".join(smaller(model.read(prompt)).words) == words


def test_only_squares_with_a_picture_too(model: Mini) -> None:
    order = replace(ORDER, size=(64, 96), image=torch.zeros(1, 3, 64, 96))
    with pytest.raises(RequestError, match="96x64 is none; try 64, which takes the middle of the picture"):
        model.plan(order)


# -- several orders in one batch -----------------------------------------------------------------------------


def test_rows_go_together_by_length_in_powers_of_two() -> None:
    assert rows([16] * 7, 4) == [[0, 1, 2, 3], [4, 5], [6]]
    assert rows([16, 32, 16, 16, 32], 8) == [[0, 2], [3], [1, 4]]
    assert rows([16, 16, 16], 1) == [[0], [1], [2]]


def test_orders_of_a_batch_are_heard_each_by_its_row(model: Mini) -> None:
    orders = [
        ORDER,
        replace(ORDER, prompt="a red apple left of a dog", guidance=1.5),
        replace(ORDER, prompt=" and ".join(["a dog"] * 6), negative_prompt="a cat"),
        replace(ORDER, style="glossy"),
    ]
    plan = model.plan_together(orders, 4)
    x: torch.Tensor | None = None
    for stage in plan.stages:
        *_, last = stage.run(x, NoiseSource([5, 6, 7, 8]))
        x = last.x
    assert x is not None
    for row, (order, seed) in enumerate(zip(orders, (5, 6, 7, 8), strict=True)):
        assert torch.allclose(x[row], drawn(model, order, seed)[0], atol=1e-4)


@pytest.mark.parametrize("change", [{"steps": 4}, {"sampler": "heun"}, {"size": (96, 96)}])
def test_orders_of_several_shapes_are_not_drawn_together(model: Mini, change: dict[str, object]) -> None:
    name = next(iter(change))
    with pytest.raises(RequestError, match=f"drawn together have the same {name}"):
        model.plan_together([ORDER, replace(ORDER, **change)], 4)  # type: ignore[arg-type]
