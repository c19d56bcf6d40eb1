from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor

from limner.models.flux import FLUX_DEV, FLUX_SCHNELL, Flux, FluxConfig, FluxControl
from limner.models.flux_control import FluxControlNet
from limner.weights import files
from limner.weights.keymap import to_ours
from limner.weights.maps.flux import diffusers_flux, diffusers_flux_control
from limner.weights.settings import flux_settings

TINY = FluxConfig(
    latents=4, inputs=4, heads=2, axes=(4, 6, 6), double=2, single=3, context=24, pooled=12, guidance=True
)


def reference(config: FluxConfig) -> FluxTransformer2DModel:
    settings = flux_settings(config)
    settings.pop("_class_name")
    return shaken(FluxTransformer2DModel(**settings))


def shaken(theirs: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for weight in theirs.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return theirs.eval().requires_grad_(False)


def ours_of(theirs: torch.nn.Module, config: FluxConfig) -> Flux:
    tensors = to_ours(diffusers_flux(config), theirs.state_dict(), "test")
    return files.fill(lambda: Flux(config), tensors, "test")


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def given(config: FluxConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, t, context and pooled of two pictures, 8 latents high and 6 wide."""
    generator = torch.Generator().manual_seed(1)
    shapes = (2, config.inputs, 8, 6), (2, 5, config.context), (2, config.pooled)
    x, context, pooled = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, torch.tensor([0.9, 0.25]), context, pooled


def asked(theirs: Any, config: FluxConfig, **more: object) -> Any:
    """The reference's prediction, unpacked again; of a control network, its findings."""
    x, t, context, pooled = given(config)
    packed = FluxPipeline._pack_latents(x, 2, config.inputs, 8, 6)
    places = FluxPipeline._prepare_latent_image_ids(2, 4, 3, x.device, x.dtype)
    out = theirs(
        hidden_states=packed,
        timestep=t,
        encoder_hidden_states=context,
        pooled_projections=pooled,
        img_ids=places,
        txt_ids=torch.zeros(5, 3),
        return_dict=False,
        **more,
    )
    return out if len(out) == 2 else FluxPipeline._unpack_latents(out[0], 64, 48, 8)


@pytest.mark.parity
@pytest.mark.parametrize("guidance", [True, False])
@pytest.mark.parametrize("inputs", [4, 8])
def test_network_equals_the_reference(guidance: bool, inputs: int) -> None:
    config = replace(TINY, guidance=guidance, inputs=inputs)
    theirs = reference(config)
    scale = torch.tensor([3.5, 7.0]) if guidance else None
    got = ours_of(theirs, config)(*given(config), guidance=scale)
    assert far(got, asked(theirs, config, guidance=scale)) < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("double, single", [(2, 0), (1, 3), (0, 2)])
def test_control_equals_the_reference(double: int, single: int) -> None:
    config = replace(TINY, guidance=False)
    theirs = reference(config)
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randn(2, 12, 32, generator=generator) for _ in range(double + single)]
    control = FluxControl(tuple(rows[:double]), tuple(rows[double:]))
    want = asked(
        theirs,
        config,
        controlnet_block_samples=rows[:double] or None,
        controlnet_single_block_samples=rows[double:] or None,
    )
    ours = ours_of(theirs, config)
    assert far(ours(*given(config), control=control), want) < 1e-5
    assert far(ours(*given(config)), want) > 0.1
    both = control + FluxControl(single=tuple(-row for row in rows[double:]))
    assert len(both.double) == double
    assert all(not row.any() for row in both.single)


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")  # theirs, of their own import
@pytest.mark.parity
@pytest.mark.parametrize("guidance, single", [(True, 2), (False, 0)])
def test_control_network_equals_the_reference(guidance: bool, single: int) -> None:
    config = replace(TINY, guidance=guidance, single=single)
    settings = flux_settings(config)
    settings = {key: value for key, value in settings.items() if key not in ("_class_name", "out_channels")}
    theirs = shaken(FluxControlNetModel(**settings))
    tensors = to_ours(diffusers_flux_control(), theirs.state_dict(), "test")
    ours = files.fill(lambda: FluxControlNet(config), tensors, "test")
    x, t, context, pooled = given(config)
    condition = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    scale = torch.tensor([3.5, 7.0]) if guidance else None
    got = ours(x, t, context, pooled, condition, guidance=scale, weight=0.7)
    want = asked(
        theirs,
        config,
        guidance=scale,
        controlnet_cond=FluxPipeline._pack_latents(condition, 2, config.latents, 8, 6),
        conditioning_scale=0.7,
    )
    assert [len(got.double), len(got.single)] == [len(want[0]), len(want[1] or ())] == [2, single]
    for a, b in zip((*got.double, *got.single), (*want[0], *(want[1] or ())), strict=True):
        assert far(a, b) < 1e-5


def test_guidance_is_told_exactly_when_it_is_wanted() -> None:
    torch.manual_seed(0)
    for guidance in (True, False):
        network = Flux(replace(TINY, guidance=guidance))
        with pytest.raises(ValueError, match="must be"):
            network(*given(TINY), guidance=None if guidance else torch.ones(2))


def test_half_precision_stays_finite() -> None:
    theirs = reference(TINY)
    for block in theirs.transformer_blocks:
        block.ff_context.net[2].weight.data *= 3e4
    scale = torch.tensor([3.5, 3.5])
    half = ours_of(theirs, TINY).half()
    got = half(*given(TINY), guidance=scale)
    assert got.dtype == torch.float16
    assert got.isfinite().all()
    close = ours_of(reference(TINY), TINY)
    want = close(*given(TINY), guidance=scale)
    assert far(close.bfloat16()(*given(TINY), guidance=scale).float(), want) < 0.1


def test_sizes_of_the_published_networks() -> None:
    for config, parameters in ((FLUX_DEV, 11_901_408_320), (FLUX_SCHNELL, 11_891_178_560)):
        network = files.empty(lambda config=config: Flux(config))
        assert sum(weight.numel() for weight in network.parameters()) == parameters
        assert len(list(network.blocks)) == 57
