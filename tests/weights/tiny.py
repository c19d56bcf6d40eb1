"""A Stable Diffusion of a few kilobytes: the same table entry as the real one, with other numbers in it."""

from dataclasses import replace

import torch
from torch import Tensor

from limner.models import clip, kl_vae, unet
from limner.weights import parts

UNET = replace(unet.SD15, channels=(16, 32), depths=(1, 0), layers=1, context=24, heads=2, groups=8)
VAE = replace(kl_vae.SD, channels=(8, 16), layers=1, groups=4)
TEXT = replace(clip.TEXT_L, width=24, depth=2, heads=2, inner=48)
MODEL = replace(
    parts.SD15,
    name="tiny",
    title="Tiny Diffusion",
    parts=(
        parts.unet_part(UNET),
        parts.vae_part(VAE),
        parts.text_part(TEXT, "cond_stage_model.transformer."),
    ),
    size=64,
)
OTHER = replace(
    MODEL,
    name="other",
    title="Other Diffusion",
    parts=(parts.unet_part(replace(UNET, inputs=9)), *MODEL.parts[1:]),
)
OPEN = replace(
    MODEL,
    name="open",
    title="Open Diffusion",
    parts=(
        parts.unet_part(replace(UNET, pointwise=False, heads=None, head_channels=8)),
        MODEL.parts[1],
        parts.text_part(replace(TEXT, left_out=1), "cond_stage_model.model."),
    ),
    predictions=("v", "eps"),
)
REFINER = replace(
    parts.SDXL_REFINER,
    name="tiny-xl-refiner",
    title="Tiny Refiner",
    predictions=("eps", "v"),
    parts=(
        parts.unet_part(
            replace(
                unet.SDXL_REFINER,
                channels=(16, 32),
                depths=(0, 1),
                middle=1,
                layers=1,
                context=16,
                head_channels=8,
                groups=8,
                pooled=16,
                size_channels=8,
            )
        ),
        parts.vae_part(VAE),
        parts.text_part(
            replace(clip.TEXT_G, width=16, depth=2, heads=2, inner=32, projection=16),
            "conditioner.embedders.0.model.",
            "text_encoder_2",
        ),
    ),
    size=64,
)
MODELS = (OTHER, MODEL, OPEN, REFINER)


def random_tensors(model: parts.Model = MODEL, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """{part: tensors under our names}."""
    generator = torch.Generator().manual_seed(seed)
    return {
        part.folder: {
            name: torch.randn(tensor.shape, generator=generator)
            for name, tensor in part.build().state_dict().items()
        }
        for part in model.parts
    }
