"""Published families of a few kilobytes, as diffusers folders with random weights."""

from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from limner.models import clip, flux, kl_vae, mmdit, t5, unet
from limner.weights import folders, parts, parts_flux, parts_sd3
from limner.weights.parts import Model

VAE = replace(kl_vae.SD, channels=(8, 16), layers=1, groups=4)
TEXT = replace(clip.TEXT_L, width=24, depth=2, heads=2, inner=48)
TEXT_2 = replace(clip.TEXT_G, width=16, depth=2, heads=2, inner=32, projection=20)
T5 = t5.T5Config(vocabulary=40, width=40, head_width=8, heads=3, depth=1, inner=32)
SMALL = {"channels": (16, 32), "layers": 1, "groups": 8}
SD1 = replace(
    parts.SD15,
    name="small-sd1",
    parts=(
        parts.unet_part(replace(unet.SD15, depths=(1, 0), context=24, heads=2, **SMALL)),
        parts.vae_part(VAE),
        parts.text_part(TEXT, "cond_stage_model.transformer."),
    ),
    predictions=("eps", "v", "x0"),
)
XL = replace(
    parts.SDXL,
    name="small-xl",
    parts=(
        parts.unet_part(
            replace(
                unet.SDXL, depths=(0, 1), middle=1, context=40, head_channels=8, pooled=20, size_channels=8,
                **SMALL,
            )
        ),
        parts.vae_part(replace(VAE, scale_factor=0.13025)),
        parts.text_part(TEXT, "conditioner.embedders.0.transformer."),
        parts.text_part(TEXT_2, "conditioner.embedders.1.model.", "text_encoder_2"),
    ),
    predictions=("eps", "v", "x0"),
)  # fmt: skip
FLOW_VAE = replace(kl_vae.SD3, channels=(8, 16), layers=1, groups=4, latents=4)
SD3 = replace(
    parts_sd3.SD3_MEDIUM,
    name="small-sd3",
    parts=(
        parts_sd3.transformer_part(
            mmdit.MMDiTConfig(
                latents=4, depth=2, heads=2, head_width=8, context=48, pooled=44, positions=16, normed=True
            )
        ),
        parts.vae_part(FLOW_VAE),
        *parts_sd3.texts(replace(TEXT, projection=24), TEXT_2, replace(T5, width=48)),
    ),
)
FLUX = replace(
    parts_flux.FLUX_DEV,
    name="small-flux",
    parts=(
        parts_flux.flux_part(
            flux.FluxConfig(
                latents=4, inputs=4, heads=2, axes=(2, 4, 4), double=1, single=1, context=40, pooled=24
            )
        ),
        replace(parts.vae_part(FLOW_VAE), prefix="vae."),
        parts.text_part(TEXT, parts_flux.CLIP_PREFIX),
        parts.t5_part(T5, "text_encoder_2"),
    ),
)


def letters() -> bytes:
    """T5's layout of a vocabulary, of single letters."""
    pieces = ["<pad>", "</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyz,"]
    model = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    model.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    return str(model.to_str()).encode()


def publish(model: Model, folder: Path, prediction: str | None = None, seed: int = 0) -> Path:
    """`model` as a folder. No branch of it is silent, and it listens to its text."""
    torch.manual_seed(seed)
    tensors = {}
    for part in model.parts:
        network = part.build()
        held = network.state_dict()
        for name, tensor in held.items():
            if name.endswith("position") or tensor.ndim == 1:
                tensor += 0.05 * torch.randn(tensor.shape)
            if ".text." in name and tensor.ndim == 2:
                tensor *= 2
        tensors[part.folder] = {name: tensor.detach() for name, tensor in held.items()}
    extras = {}
    for part in model.parts:
        if part.kind.tokenizer == "T5TokenizerFast":
            extras[f"{part.tokenizer}/tokenizer.json"] = letters()
    folders.write(folder, model, tensors, prediction=prediction, extras=extras)
    return folder
