"""The U-Net agrees with diffusers' on small random weights, for every kind of published network."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from limner.models import unet
from limner.models.unet import Control, UNet, UNetConfig
from limner.weights.keymap import to_ours
from limner.weights.maps.unet import diffusers_unet

TOLERANCE = 1e-5
BATCH, SIDE, LENGTH = 2, 8, 7


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A small network of a published kind: our configuration and the arguments of theirs."""

    ours: UNetConfig
    theirs: dict[str, Any]


def crossed(*where: bool) -> dict[str, tuple[str, ...]]:
    """The block types of levels with transformers and without."""
    return {
        "down_block_types": tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in where),
        "up_block_types": tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(where)),
    }


COMMON = {"norm_num_groups": 8, "layers_per_block": 2, "sample_size": SIDE}
FOUR = {"block_out_channels": (16, 32, 48, 48), "cross_attention_dim": 24, **crossed(True, True, True, False)}
THREE = {"block_out_channels": (16, 32, 48), "cross_attention_dim": 40, **crossed(False, True, True)}
SD1 = replace(unet.SD15, channels=(16, 32, 48, 48), context=24, groups=8, heads=2)
SD2 = replace(unet.SD21, channels=(16, 32, 48, 48), context=24, groups=8, head_channels=8)
XL = replace(
    unet.SDXL, channels=(16, 32, 48), depths=(0, 1, 2), middle=2, context=40, groups=8, head_channels=8,
    pooled=20, size_channels=8,
)  # fmt: skip
LINEAR = {"use_linear_projection": True}
TEXT_TIME = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
KINDS = {
    "sd1": Kind(ours=SD1, theirs={**FOUR, "attention_head_dim": 2}),
    "sd1-inpainting": Kind(
        ours=replace(SD1, inputs=9), theirs={**FOUR, "attention_head_dim": 2, "in_channels": 9}
    ),
    "sd2": Kind(ours=SD2, theirs={**FOUR, **LINEAR, "attention_head_dim": (2, 4, 6, 6)}),
    "sd2-unclip": Kind(
        ours=replace(SD2, pooled=20),
        theirs={
            **FOUR, **LINEAR, "attention_head_dim": (2, 4, 6, 6), "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": 20,
        },
    ),
    "xl": Kind(
        ours=XL,
        theirs={
            **THREE, **LINEAR, **TEXT_TIME, "attention_head_dim": (2, 4, 6),
            "transformer_layers_per_block": (1, 1, 2), "projection_class_embeddings_input_dim": 20 + 6 * 8,
        },
    ),
    "xl-refiner": Kind(
        ours=replace(XL, channels=(16, 32, 48, 48), depths=(0, 2, 2, 0), sizes=5),
        theirs={
            **FOUR, **crossed(False, True, True, False), **LINEAR, **TEXT_TIME, "cross_attention_dim": 40,
            "attention_head_dim": (2, 4, 6, 6), "transformer_layers_per_block": 2,
            "projection_class_embeddings_input_dim": 20 + 5 * 8,
        },
    ),
    "x4": Kind(
        ours=replace(unet.X4, channels=(16, 32, 48, 48), context=24, groups=8, heads=2),
        theirs={
            **FOUR, **crossed(False, True, True, True), **LINEAR, "attention_head_dim": 2, "in_channels": 7,
            "num_class_embeds": 1000, "only_cross_attention": (True, True, True, False),
        },
    ),
}  # fmt: skip


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(kind: Kind) -> tuple[UNet, UNet2DConditionModel]:
    """Ours and theirs with the same weights, none of them at a value that could hide a mistake."""
    theirs = UNet2DConditionModel(**COMMON, **kind.theirs).eval().requires_grad_(False)
    for index, tensor in enumerate(theirs.state_dict().values()):
        tensor.add_(0.05 * draw(*tensor.shape, seed=index))
    with torch.device("meta"):
        ours = UNet(kind.ours)
    weights = to_ours(diffusers_unet(kind.ours), theirs.state_dict(), "tiny")
    ours.load_state_dict(weights, strict=True, assign=True)
    return ours.eval().requires_grad_(False), theirs


def inputs(config: UNetConfig, height: int = SIDE, width: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    x = draw(BATCH, config.inputs, height, width, seed=1)
    return x, torch.tensor([981.0, 3.5]), draw(BATCH, LENGTH, config.context, seed=2)


def described(config: UNetConfig) -> tuple[unet.Added | None, dict[str, Any]]:
    """What describes the whole picture, as we say it and as they do."""
    pooled = draw(BATCH, config.pooled, seed=3)
    if not config.pooled:
        return None, {}
    if not config.sizes:
        return (pooled, None), {"class_labels": pooled}
    sizes = torch.tensor([[1024, 768, 0, 16, 1024, 1024], [512, 512, 8, 0, 640, 512]]).float()[
        :, : config.sizes
    ]
    return (pooled, sizes), {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parity
@pytest.mark.parametrize("name", KINDS)
def test_predictions_are_those_of_the_reference(name: str) -> None:
    ours, theirs = pair(KINDS[name])
    x, timestep, context = inputs(KINDS[name].ours)
    added, arguments = described(KINDS[name].ours)
    level = torch.tensor([20, 350]) if KINDS[name].ours.levels else None
    if level is not None:
        arguments = {"class_labels": level}
    expected = theirs(x, timestep, context, **arguments).sample
    assert difference(ours(x, timestep, context, added=added, level=level), expected) < TOLERANCE
    # every input counts, or the comparison above would say little about it
    assert difference(ours(x, timestep + 40, context, added=added, level=level), expected) > 1e-3
    assert difference(ours(x, timestep, context + 1, added=added, level=level), expected) > 1e-3
    if level is not None:
        assert difference(ours(x, timestep, context, level=level + 1), expected) > 1e-3
    if added is not None:
        pooled, sizes = added
        assert difference(ours(x, timestep, context, added=(pooled + 1, sizes)), expected) > 1e-3
        if sizes is not None:
            assert difference(ours(x, timestep, context, added=(pooled, sizes + 8)), expected) > 1e-3


@pytest.mark.parity
@pytest.mark.parametrize("size", [(8, 24), (9, 13), (11, 8)])
def test_any_height_and_width(size: tuple[int, int]) -> None:
    ours, theirs = pair(KINDS["sd1"])
    x, timestep, context = inputs(SD1, *size)
    assert difference(ours(x, timestep, context), theirs(x, timestep, context).sample) < TOLERANCE


@pytest.mark.parity
def test_control_is_added_where_the_reference_adds_it() -> None:
    ours, theirs = pair(KINDS["sd2"])
    x, timestep, context = inputs(SD2)
    sides = [8, 8, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1]
    down = tuple(
        draw(BATCH, channels, side, side, seed=10 + index)
        for index, (channels, side) in enumerate(zip(ours.kept, sides, strict=True))
    )
    middle = draw(BATCH, 48, 1, 1, seed=30)
    expected = theirs(
        x, timestep, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    assert difference(ours(x, timestep, context, control=Control(down, middle)), expected) < TOLERANCE
    half = Control(tuple(one / 2 for one in down), middle / 2)
    assert difference(ours(x, timestep, context, control=half + half), expected) < TOLERANCE
    assert difference(ours(x, timestep, context, control=half), expected) > 1e-3


@pytest.mark.parametrize("name", ["sd1", "xl"])
def test_keys_and_values_of_the_text_may_be_computed_once(name: str) -> None:
    ours, _ = pair(KINDS[name])
    x, timestep, context = inputs(KINDS[name].ours)
    added, _ = described(KINDS[name].ours)
    once = ours.text_kv(context)
    assert len(once) == {"sd1": 16, "xl": 2 + 4 + 2 + 3 * 2 + 3}[name]
    assert torch.equal(ours(x, timestep, once, added=added), ours(x, timestep, context, added=added))
    for wrong in (once[:-1], (*once, once[-1])):
        with pytest.raises(ValueError, match=f"for {len(wrong)} blocks; {len(once)} ask"):
            ours(x, timestep, wrong, added=added)


def test_half_precision_stays_half() -> None:
    ours, _ = pair(KINDS["xl"])
    x, timestep, context = inputs(XL)
    added, _ = described(XL)
    expected = ours(x, timestep, context, added=added)
    prediction = ours.to(torch.bfloat16)(x.bfloat16(), timestep, context.bfloat16(), added=added)
    assert prediction.dtype == torch.bfloat16
    assert difference(prediction.float(), expected) < 0.05


def test_what_describes_the_picture_is_asked_for_and_refused() -> None:
    for name, given, message in (
        ("xl", None, "`added` must be given: pooled is 20"),
        ("sd1", (torch.zeros(BATCH, 20), None), "`added` must be None: pooled is 0"),
    ):
        network = UNet(KINDS[name].ours)
        with pytest.raises(ValueError, match=message):
            network(*inputs(KINDS[name].ours), added=given)
    for name, level, message in (("x4", None, "level` must"), ("sd1", torch.tensor([3] * BATCH), "not be")):
        with pytest.raises(ValueError, match=message):
            UNet(KINDS[name].ours)(*inputs(KINDS[name].ours), level=level)


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="of the same levels"):
        UNetConfig(channels=(320, 640), depths=(1,))
    with pytest.raises(ValueError, match="they come together"):
        UNetConfig(sizes=6)
    with pytest.raises(ValueError, match="of the same levels"):
        UNetConfig(blind=(True,))


@pytest.mark.parametrize(
    "config, parameters",  # as counted in the published files
    [
        (unet.SD15, 859_520_964),
        (unet.SD15_INPAINTING, 859_535_364),
        (unet.SD21, 865_910_724),
        (unet.SDXL, 2_567_463_684),
        (unet.SDXL_REFINER, 2_259_526_660),
    ],
)
def test_published_networks_have_as_many_parameters(config: UNetConfig, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in UNet(config).parameters()) == parameters
