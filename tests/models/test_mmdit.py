"""MMDiTs and their control networks agree with diffusers' on small random weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet_sd3 import SD3ControlNetModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn

from limner.errors import RequestError
from limner.models.mmdit import MMDiT, MMDiTConfig
from limner.models.mmdit_control import MMDiTControl, MMDiTControlConfig
from limner.weights.keymap import KeyMap, to_ours
from limner.weights.maps.mmdit import diffusers_mmdit, diffusers_mmdit_control

TOLERANCE = 1e-5
TINY = MMDiTConfig(latents=4, depth=4, heads=2, head_width=8, context=24, pooled=20, positions=10)
KINDS = {
    "sd3-medium": TINY,
    "sd35-large": replace(TINY, normed=True, depth=5),
    "sd35-medium": replace(TINY, normed=True, dual=2),
}
X = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1))
TIMESTEP = torch.tensor([937.5, 20.25])
CONTEXT = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(2))
POOLED = torch.randn(2, 20, generator=torch.Generator().manual_seed(3))
SEEN = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(4))


def arguments(config: MMDiTConfig) -> dict[str, Any]:
    return {
        "sample_size": 16,
        "in_channels": config.latents,
        "out_channels": config.latents,
        "num_layers": config.depth,
        "attention_head_dim": config.head_width,
        "num_attention_heads": config.heads,
        "joint_attention_dim": config.context,
        "caption_projection_dim": config.width,
        "pooled_projection_dim": config.pooled,
        "pos_embed_max_size": config.positions,
        "dual_attention_layers": tuple(range(config.dual)),
        "qk_norm": "rms_norm" if config.normed else None,
    }


def shaken(network: nn.Module, seed: int = 5) -> Any:
    """No layer that starts at zero is left there."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return network.eval().requires_grad_(False)


def filled(network: nn.Module, theirs: nn.Module, keys: KeyMap) -> Any:
    network.load_state_dict(to_ours(keys, theirs.state_dict(), "tiny"), strict=True)
    return network.eval().requires_grad_(False)


def pair(config: MMDiTConfig) -> tuple[MMDiT, SD3Transformer2DModel]:
    theirs = shaken(SD3Transformer2DModel(**arguments(config)))
    return filled(MMDiT(config), theirs, diffusers_mmdit(config)), theirs


def agree(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape
    assert (one - other).abs().max() <= TOLERANCE * other.abs().max()


@pytest.mark.parity
@pytest.mark.parametrize("name", KINDS)
def test_velocity_is_that_of_the_reference(name: str) -> None:
    ours, theirs = pair(KINDS[name])
    (expected,) = theirs(X, CONTEXT, POOLED, TIMESTEP, return_dict=False)
    agree(ours(X, TIMESTEP, CONTEXT, POOLED), expected)
    (expected,) = theirs(X, CONTEXT, POOLED, TIMESTEP, return_dict=False, skip_layers=[1, 2])
    agree(ours(X, TIMESTEP, CONTEXT, POOLED, skip=(1, 2)), expected)


CONTROLS = {
    "sd3-medium": (MMDiTControlConfig(network=replace(TINY, depth=2)), TINY),
    "sd35-medium": (
        MMDiTControlConfig(network=replace(KINDS["sd35-medium"], depth=3)),
        KINDS["sd35-medium"],
    ),
    "sd35-large": (
        MMDiTControlConfig(network=replace(TINY, depth=3), joint=False, zeros=False),
        KINDS["sd35-large"],
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", CONTROLS)
def test_control_is_that_of_the_reference(name: str) -> None:
    config, steered = CONTROLS[name]
    more: dict[str, Any] = {"force_zeros_for_pooled_projection": config.zeros}
    if not config.joint:
        more |= {"joint_attention_dim": None, "use_pos_embed": False, "pos_embed_type": None}
    theirs = shaken(SD3ControlNetModel(**(arguments(config.network) | more)))
    ours = filled(MMDiTControl(config), theirs, diffusers_mmdit_control(config))
    network, their_network = pair(steered)
    pooled = torch.zeros_like(POOLED) if config.zeros else POOLED
    x = X if config.joint else their_network.pos_embed(X)
    (expected,) = theirs(x, SEEN, 0.7, CONTEXT if config.joint else None, pooled, TIMESTEP, return_dict=False)
    found = ours(X, TIMESTEP, CONTEXT, POOLED, SEEN, network.patches, weight=0.7)
    for one, other in zip(found, expected, strict=True):
        agree(one, other)
    (expected,) = their_network(
        X, CONTEXT, POOLED, TIMESTEP, block_controlnet_hidden_states=expected, return_dict=False
    )
    agree(network(X, TIMESTEP, CONTEXT, POOLED, control=found), expected)


def test_a_picture_larger_than_the_table_is_refused() -> None:
    ours, _ = pair(TINY)
    with pytest.raises(RequestError, match="11 x 2 patches is larger than the 10 x 10"):
        ours(torch.zeros(1, 4, 4, 22), TIMESTEP[:1], CONTEXT[:1], POOLED[:1])
