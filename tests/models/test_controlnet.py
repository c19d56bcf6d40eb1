"""Control networks agree with diffusers' on small random weights, alone and in twos."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, MultiControlNetModel
from torch import Tensor

from limner.models import controlnet, unet
from limner.models.controlnet import ControlNet, ControlNetConfig
from limner.models.unet import Control
from limner.weights.keymap import to_ours
from limner.weights.maps.controlnet import diffusers_controlnet

TOLERANCE = 1e-5
SD1 = ControlNetConfig(
    unet=replace(unet.SD15, channels=(16, 32, 48, 48), context=24, groups=8, heads=2), channels=(4, 8, 12, 16)
)
XL = ControlNetConfig(
    unet=replace(
        unet.SDXL, channels=(16, 32, 48), depths=(0, 1, 2), middle=2, context=24, groups=8, head_channels=8,
        pooled=20, size_channels=8,
    ),
    channels=(4, 8, 12, 16),
)  # fmt: skip
COMMON = {
    "norm_num_groups": 8,
    "layers_per_block": 2,
    "cross_attention_dim": 24,
    "conditioning_embedding_out_channels": (4, 8, 12, 16),
}
KINDS: dict[str, tuple[ControlNetConfig, dict[str, Any]]] = {
    "sd1": (SD1, {"block_out_channels": (16, 32, 48, 48), "attention_head_dim": 2}),
    "xl": (
        XL,
        {
            "block_out_channels": (16, 32, 48),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "attention_head_dim": (2, 4, 6),
            "transformer_layers_per_block": (1, 1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 20 + 6 * 8,
        },
    ),
}
X, TIMESTEP = (
    torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(1)),
    torch.tensor([700.0, 20.0]),
)
CONTEXT = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(2))
PICTURES = [torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]
POOLED, SIZES = torch.linspace(-1, 1, 40).reshape(2, 20), torch.tensor([[64.0, 128, 0, 8, 64, 96]] * 2)
ADDED: dict[str, Any] = {"sd1": None, "xl": (POOLED, SIZES)}
SAID: dict[str, Any] = {"sd1": None, "xl": {"text_embeds": POOLED, "time_ids": SIZES}}


def pair(name: str, seed: int) -> tuple[ControlNet, ControlNetModel]:
    """Ours and theirs with the same weights; the convolutions that start at zero are not left there."""
    config, arguments = KINDS[name]
    generator = torch.Generator().manual_seed(seed)
    theirs = ControlNetModel(**COMMON, **arguments).eval().requires_grad_(False)
    for tensor in theirs.state_dict().values():
        tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    with torch.device("meta"):
        ours = ControlNet(config)
    weights = to_ours(diffusers_controlnet(config), theirs.state_dict(), "tiny")
    ours.load_state_dict(weights, strict=True, assign=True)
    return ours.eval().requires_grad_(False), theirs


def agree(ours: Control, down: list[Tensor], middle: Tensor) -> None:
    for one, other in zip((*ours.down, ours.middle), (*down, middle), strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= TOLERANCE * other.abs().max()


@pytest.mark.parity
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("weight", [1.0, 0.35])
def test_control_is_that_of_the_reference(name: str, weight: float) -> None:
    ours, theirs = pair(name, 5)
    down, middle = theirs(
        X, TIMESTEP, CONTEXT, PICTURES[0], weight, added_cond_kwargs=SAID[name], return_dict=False
    )
    seen = ours.look(PICTURES[0])
    agree(ours(X, TIMESTEP, CONTEXT, seen, added=ADDED[name], weight=weight), down, middle)
    once = ours.text_kv(CONTEXT)
    agree(ours(X, TIMESTEP, once, seen, added=ADDED[name], weight=weight), down, middle)


@pytest.mark.parity
@pytest.mark.parametrize("name", KINDS)
def test_two_networks_with_two_weights(name: str) -> None:
    (first, their_first), (second, their_second) = pair(name, 5), pair(name, 6)
    weights = [0.8, 0.25]
    down, middle = MultiControlNetModel([their_first, their_second])(
        X, TIMESTEP, CONTEXT, PICTURES, weights, added_cond_kwargs=SAID[name], return_dict=False
    )
    one, other = (
        network(X, TIMESTEP, CONTEXT, network.look(picture), added=ADDED[name], weight=weight)
        for network, picture, weight in zip((first, second), PICTURES, weights, strict=True)
    )
    agree(one + other, down, middle)


def test_one_condition_serves_every_picture_of_a_batch() -> None:
    ours, _ = pair("sd1", 5)
    picture = PICTURES[0][:1]
    shared = ours(X, TIMESTEP, CONTEXT, ours.look(picture))
    each = ours(X, TIMESTEP, CONTEXT, ours.look(picture.expand(2, -1, -1, -1)))
    torch.testing.assert_close(shared.middle, each.middle)


@pytest.mark.parametrize(
    "config, parameters",  # as counted in the published files
    [
        (controlnet.CONTROLNET_SD15, 361_279_120),
        (controlnet.CONTROLNET_SD21, 364_228_240),
        (controlnet.CONTROLNET_SDXL, 1_251_014_160),
    ],
)
def test_published_networks_have_as_many_parameters(config: ControlNetConfig, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in ControlNet(config).parameters()) == parameters
