"""The pixel U-Net agrees with diffusers' on small random weights, for every kind of published network."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from limner.models import pixel_unet
from limner.models.pixel_unet import PixelUNet, PixelUNetConfig
from limner.weights.keymap import to_ours, to_theirs
from limner.weights.maps.pixel_unet import diffusers_pixel_unet, original_pixel_unet

TOLERANCE = 1e-5
BATCH, SIDE, LENGTH = 2, 8, 7


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A small network of a published kind: our configuration and the arguments of theirs."""

    ours: PixelUNetConfig
    theirs: dict[str, Any]
    plain: bool = False  # a UNet2DModel


def levels(*looks: bool) -> dict[str, tuple[str, ...]]:
    """The block types of levels with attention and without."""
    down = tuple("SimpleCrossAttnDownBlock2D" if here else "ResnetDownsampleBlock2D" for here in looks)
    up = tuple("SimpleCrossAttnUpBlock2D" if here else "ResnetUpsampleBlock2D" for here in reversed(looks))
    return {"down_block_types": down, "up_block_types": up}


SMALL: dict[str, Any] = {
    "channels": (16, 32, 32), "layers": (2, 2, 2), "looks": (False, True, True), "groups": 8,
    "head_channels": 8, "context": 32, "time": 64,
}  # fmt: skip
THEIRS: dict[str, Any] = {
    "sample_size": SIDE, "block_out_channels": (16, 32, 32), "layers_per_block": 2, "norm_num_groups": 8,
    "resnet_time_scale_shift": "scale_shift", "attention_head_dim": 8, "in_channels": 3, "out_channels": 6,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "cross_attention_dim": 32, **levels(False, True, True),
}  # fmt: skip
IF = {
    "act_fn": "gelu", "cross_attention_norm": "group_norm", "encoder_hid_dim": 24,
    "addition_embed_type": "text", "addition_embed_type_num_heads": 4,
}  # fmt: skip
IF_ONE = replace(pixel_unet.IF_I_XL, **SMALL, text=24, pool_heads=4)
KINDS = {
    "if-I": Kind(ours=IF_ONE, theirs={**THEIRS, **IF}),
    "if-II": Kind(
        ours=replace(IF_ONE, inputs=6, layers=(1, 2, 3), looks=(False, False, True), time=32, level=True,
                     picture=False, divisor=1.414),
        theirs={**THEIRS, **IF, **levels(False, False, True), "in_channels": 6, "layers_per_block": (1, 2, 3),
                "time_embedding_dim": 32, "class_embed_type": "timestep", "time_embedding_act_fn": "gelu",
                "resnet_skip_time_act": True, "resnet_out_scale_factor": 1.414,
                "mid_block_scale_factor": 1.414, "only_cross_attention": True},
    ),
    "karlo-decoder": Kind(
        ours=replace(pixel_unet.KARLO_DECODER, **SMALL), theirs={**THEIRS, "class_embed_type": "identity"}
    ),
    "karlo-super-res": Kind(
        ours=replace(pixel_unet.KARLO_SUPER_RES, **{**SMALL, "looks": (False,) * 3, "context": 0}),
        theirs={
            "sample_size": SIDE, "block_out_channels": (16, 32, 32), "layers_per_block": 2,
            "norm_num_groups": 8, "in_channels": 6, "out_channels": 3, "add_attention": False,
            **levels(False, False, False),
        },
        plain=True,
    ),
}  # fmt: skip


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def theirs_of(kind: Kind) -> Any:
    """A random network of theirs, no weight at a value that could hide a mistake."""
    network = (UNet2DModel if kind.plain else UNet2DConditionModel)(**kind.theirs)
    for index, tensor in enumerate(network.eval().requires_grad_(False).state_dict().values()):
        tensor.add_(0.05 * draw(*tensor.shape, seed=index))
    return network


def ours_of(kind: Kind, weights: dict[str, Tensor]) -> PixelUNet:
    with torch.device("meta"):
        network = PixelUNet(kind.ours)
    network.load_state_dict(weights, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def pair(name: str) -> tuple[PixelUNet, Any]:
    """Ours and theirs with the same weights."""
    theirs = theirs_of(KINDS[name])
    return ours_of(
        KINDS[name], to_ours(diffusers_pixel_unet(KINDS[name].ours), theirs.state_dict(), "")
    ), theirs


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parity
@pytest.mark.parametrize("name", ["if-I", "if-II"])
def test_stages_of_if_are_those_of_the_reference(name: str) -> None:
    ours, theirs = pair(name)
    x, t = draw(BATCH, ours.config.inputs, SIDE, 2 * SIDE, seed=1), torch.tensor([981.0, 3.0])
    context = draw(BATCH, LENGTH, 24, seed=2)
    level = torch.tensor([250.0, 0.0]) if ours.config.level else None
    found = ours(x, t, ours.read(context), level=level)
    assert difference(found, theirs(x, t, context, class_labels=level).sample) < TOLERANCE


@pytest.mark.parity
def test_karlos_decoder_hears_rows_that_are_left_out_no_more_than_the_reference_masked_ones() -> None:
    ours, theirs = pair("karlo-decoder")
    x, t, context = draw(BATCH, 3, SIDE, SIDE, seed=1), torch.tensor([981.0, 3.0]), draw(BATCH, 7, 32, seed=2)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[:, 3:] = False
    added = draw(BATCH, 64, seed=3)
    found = ours(x, t, ours.read(context[:, :3]), added=added)
    wanted = theirs(x, t, context, class_labels=added, attention_mask=mask).sample
    assert difference(found, wanted) < TOLERANCE
    whole = theirs(x, t, context, class_labels=added).sample
    assert difference(ours(x, t, ours.read(context), added=added), whole) < TOLERANCE
    assert difference(whole, wanted) > 100 * TOLERANCE


@pytest.mark.parity
def test_karlos_super_resolution_is_that_of_the_reference() -> None:
    ours, theirs = pair("karlo-super-res")
    x, t = draw(BATCH, 6, SIDE, SIDE, seed=1), torch.tensor([981.0, 3.0])
    assert difference(ours(x, t), theirs(x, t).sample) < TOLERANCE


def test_a_text_is_read_once_and_serves_several_pictures() -> None:
    ours, _ = pair("if-I")
    x, t, context = draw(4, 3, SIDE, SIDE, seed=1), torch.tensor([5.0]).expand(4), draw(2, LENGTH, 24, seed=2)
    whole = ours(x, t, ours.read(context).repeated(2))
    assert torch.allclose(whole, ours(x, t, ours.read(context.repeat_interleave(2, 0))), atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_the_original_naming_holds_the_same_weights(name: str) -> None:
    config = KINDS[name].ours
    mine = PixelUNet(config).state_dict()
    for tensor in mine.values():
        tensor.normal_()
    theirs = to_theirs(original_pixel_unet(config, "model."), mine)
    again = to_ours(original_pixel_unet(config, "model."), theirs, "original")
    assert again.keys() == mine.keys()
    assert all(torch.equal(again[key], mine[key]) for key in mine)


def test_heads_lie_side_by_side_in_the_original_files() -> None:
    """qkv.reshape(b * heads, 3 * width, n).split(width, 1): q, k and v of head 0, then of head 1, ..."""
    config = KINDS["if-I"].ours
    mine = PixelUNet(config).state_dict()
    weight = to_theirs(original_pixel_unet(config), mine)["input_blocks.4.1.qkv.weight"]
    assert weight.shape == (96, 32, 1)
    assert torch.equal(weight[24:32, :, 0], mine["down.1.blocks.0.attention.q.weight"][8:16])
    assert torch.equal(weight[8:16, :, 0], mine["down.1.blocks.0.attention.k.weight"][:8])


def test_what_a_network_must_be_told_is_asked_for() -> None:
    ours, _ = pair("if-II")
    x, t, text = draw(1, 6, SIDE, SIDE, seed=1), torch.tensor([5.0]), ours.read(draw(1, LENGTH, 24, seed=2))
    with pytest.raises(ValueError, match="must be told the level"):
        ours(x, t, text)
    with pytest.raises(ValueError, match="must be told the text"):
        ours(x, t, level=t)
    plain, _ = pair("karlo-super-res")
    with pytest.raises(ValueError, match="cannot be told the level"):
        plain(x, t, level=t)
    with pytest.raises(ValueError, match="same levels"):
        PixelUNetConfig(layers=(3, 3))
    with pytest.raises(ValueError, match="need a text"):
        PixelUNetConfig(context=0)
