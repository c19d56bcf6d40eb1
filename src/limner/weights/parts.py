"""The published models that Limner knows: their networks, and where each lies in folders and in single files.

A model is a value. What it is called is decided in `detect`, by names and shapes, never by a file's name.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from limner.models import clip, kl_vae, unet
from limner.weights.keymap import KeyMap
from limner.weights.maps import clip as clip_maps
from limner.weights.maps import kl_vae as vae_maps
from limner.weights.maps import unet as unet_maps
from limner.weights.settings import text_settings, unet_settings, vae_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of network: how it is built and called."""

    build: Callable[[Any], nn.Module]  # from its configuration
    folder_keys: Callable[[Any], KeyMap]  # names in a diffusers folder <-> ours
    settings: Callable[[Any], dict[str, object]]  # its config.json
    library: str  # in model_index.json
    stem: str  # of its weights in a folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One network of a model."""

    folder: str  # in a diffusers folder; also the part's name
    kind: Kind
    config: Any  # the configuration of its network
    prefix: str  # in a single file
    single_keys: Callable[[Any, str], KeyMap]  # names in a single file, prefix and all <-> ours

    def build(self) -> nn.Module:
        """The network, as `files.fill` wants to be given it."""
        return self.kind.build(self.config)

    @property
    def class_name(self) -> str:
        """In model_index.json."""
        return str(self.kind.settings(self.config).get("_class_name") or self._architecture())

    def _architecture(self) -> str:
        return "CLIPTextModelWithProjection" if self.config.projection else "CLIPTextModel"


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A published model, whatever its weights were trained on."""

    name: str  # one word
    title: str
    parts: tuple[Part, ...]
    predictions: tuple[str, ...]  # what its networks may predict, the usual first: "eps", "v"
    size: int  # side in pixels that it was trained at
    pipeline: str  # in model_index.json

    def part(self, folder: str) -> Part:
        """The part called `folder`."""
        return next(part for part in self.parts if part.folder == folder)


UNET = Kind(
    build=unet.UNet,
    folder_keys=unet_maps.diffusers_unet,
    settings=unet_settings,
    library="diffusers",
    stem="diffusion_pytorch_model",
)
VAE = Kind(
    build=kl_vae.KLVAE,
    folder_keys=lambda config: vae_maps.diffusers_vae(),
    settings=vae_settings,
    library="diffusers",
    stem="diffusion_pytorch_model",
)
TEXT = Kind(
    build=clip.CLIPText,
    folder_keys=clip_maps.transformers_text,
    settings=text_settings,
    library="transformers",
    stem="model",
)


def unet_part(config: unet.UNetConfig) -> Part:
    """A U-Net."""
    return Part(
        folder="unet",
        kind=UNET,
        config=config,
        prefix="model.diffusion_model.",
        single_keys=unet_maps.ldm_unet,
    )


def vae_part(config: kl_vae.KLVAEConfig) -> Part:
    """An autoencoder."""
    return Part(
        folder="vae", kind=VAE, config=config, prefix=vae_maps.LDM_PREFIX, single_keys=vae_maps.ldm_vae
    )


def text_part(config: clip.CLIPTextConfig, prefix: str, folder: str = "text_encoder") -> Part:
    """A text encoder. The prefix tells in which of two namings single files have it."""
    openclip = prefix.endswith(".model.")
    keys = clip_maps.openclip_text if openclip else clip_maps.transformers_text
    return Part(folder=folder, kind=TEXT, config=config, prefix=prefix, single_keys=keys)


SD15 = Model(
    name="sd15",
    title="Stable Diffusion 1",
    parts=(unet_part(unet.SD15), vae_part(kl_vae.SD), text_part(clip.TEXT_L, clip_maps.SD1_PREFIX)),
    predictions=("eps", "v"),
    size=512,
    pipeline="StableDiffusionPipeline",
)
SD15_INPAINTING = replace(
    SD15,
    name="sd15-inpainting",
    title="Stable Diffusion 1 for inpainting",
    parts=(unet_part(unet.SD15_INPAINTING), *SD15.parts[1:]),
    pipeline="StableDiffusionInpaintPipeline",
)
SD21 = Model(
    name="sd21",
    title="Stable Diffusion 2",
    parts=(unet_part(unet.SD21), vae_part(kl_vae.SD), text_part(clip.TEXT_H_SD2, clip_maps.SD2_PREFIX)),
    predictions=("v", "eps"),  # 768 pixels and 512 (base): one shape
    size=768,
    pipeline="StableDiffusionPipeline",
)
SD21_INPAINTING = replace(
    SD21,
    name="sd21-inpainting",
    title="Stable Diffusion 2 for inpainting",
    parts=(unet_part(unet.SD21_INPAINTING), *SD21.parts[1:]),
    predictions=("eps", "v"),
    size=512,
    pipeline="StableDiffusionInpaintPipeline",
)
SDXL = Model(
    name="sdxl",
    title="Stable Diffusion XL",
    parts=(
        unet_part(unet.SDXL),
        vae_part(kl_vae.SDXL),
        text_part(clip.TEXT_L, clip_maps.SDXL_FIRST_PREFIX),
        text_part(clip.TEXT_G, clip_maps.SDXL_SECOND_PREFIX, "text_encoder_2"),
    ),
    predictions=("eps", "v"),
    size=1024,
    pipeline="StableDiffusionXLPipeline",
)
SDXL_INPAINTING = replace(
    SDXL,
    name="sdxl-inpainting",
    title="Stable Diffusion XL for inpainting",
    parts=(unet_part(unet.SDXL_INPAINTING), *SDXL.parts[1:]),
    pipeline="StableDiffusionXLInpaintPipeline",
)
SDXL_REFINER = Model(
    name="sdxl-refiner",
    title="Stable Diffusion XL refiner",
    parts=(
        unet_part(unet.SDXL_REFINER),
        vae_part(kl_vae.SDXL),
        text_part(clip.TEXT_G, clip_maps.SDXL_REFINER_PREFIX, "text_encoder_2"),
    ),
    predictions=("eps",),
    size=1024,
    pipeline="StableDiffusionXLImg2ImgPipeline",
)
MODELS = (SD15, SD15_INPAINTING, SD21, SD21_INPAINTING, SDXL, SDXL_INPAINTING, SDXL_REFINER)
