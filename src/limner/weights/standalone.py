"""Networks that are published alone: control networks, autoencoders and upscalers, in files and in folders of
their own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from limner.errors import WeightsError
from limner.models import controlnet, flux, kl_vae, tiny_vae, unet
from limner.models.controlnet import ControlNetConfig
from limner.models.flux_control import FluxControlNet
from limner.models.gan_upscaler import Compact, CompactConfig, RRDBNet, RRDBNetConfig
from limner.models.mmdit_control import MMDiTControl, MMDiTControlConfig
from limner.weights import files, folders
from limner.weights.keymap import KeyMap, to_ours
from limner.weights.maps import gan_upscaler as gan_maps
from limner.weights.maps import mmdit as mmdit_maps
from limner.weights.maps.controlnet import diffusers_controlnet, ldm_controlnet
from limner.weights.maps.flux import diffusers_flux_control
from limner.weights.maps.kl_vae import diffusers_vae, ldm_vae
from limner.weights.maps.tiny_vae import diffusers_tiny_vae
from limner.weights.settings import (
    differing,
    flux_settings,
    mmdit_control_settings,
    tiny_vae_settings,
    unet_settings,
    unknown,
    vae_settings,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Standalone:
    """A network, and the spellings of its tensors in which it is published."""

    name: str  # "controlnet", "vae", "tiny_vae" or "upscaler"
    title: str
    build: Callable[[], nn.Module]
    keys: tuple[KeyMap, ...]
    settings: Mapping[str, object]  # what a config.json beside it may not contradict

    def spelling(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """`tensors` under our names, if they are just this network's in one of the spellings."""
        wanted: dict[str, torch.Size] | None = None
        for keys in self.keys:
            try:
                ours = to_ours(keys, tensors, "")
            except WeightsError:
                continue
            if wanted is None:  # built only when its names are known
                wanted = {name: tensor.shape for name, tensor in files.empty(self.build).state_dict().items()}
            if {name: tensor.shape for name, tensor in ours.items()} == wanted:
                return ours
        return None

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether `tensors` are just this network's."""
        return self.spelling(tensors) is not None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Network:
    """A network found alone, not loaded yet."""

    kind: Standalone
    path: Path
    tensors: Mapping[str, Tensor]  # under our names, memory-mapped
    notices: tuple[str, ...] = ()  # about the choice of files, and settings that Limner does not know

    @property
    def title(self) -> str:
        """What it is."""
        return self.kind.title

    def load(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
        """The network, ready to be asked. `dtype` None: as stored."""
        return files.fill(self.kind.build, self.tensors, self.path, device=device, dtype=dtype)


def control(title: str, config: ControlNetConfig) -> Standalone:
    """A control network of this shape."""
    settings = unet_settings(config.unet) | {
        "_class_name": "ControlNetModel",
        "conditioning_embedding_out_channels": list(config.channels),
    }
    return Standalone(
        name="controlnet",
        title=title,
        build=lambda: controlnet.ControlNet(config),
        keys=(diffusers_controlnet(config), ldm_controlnet(config), ldm_controlnet(config, "")),
        settings=settings,
    )


def autoencoder(title: str, config: kl_vae.KLVAEConfig) -> Standalone:
    """An autoencoder of this shape."""
    return Standalone(
        name="vae",
        title=title,
        build=lambda: kl_vae.KLVAE(config),
        keys=(diffusers_vae(), ldm_vae(config, ""), ldm_vae(config)),
        settings=vae_settings(config),
    )


def small_autoencoder(title: str, config: tiny_vae.TinyVAEConfig) -> Standalone:
    """A small autoencoder of this shape."""
    return Standalone(
        name="tiny_vae",
        title=title,
        build=lambda: tiny_vae.TinyVAE(config),
        keys=(diffusers_tiny_vae(),),
        settings=tiny_vae_settings(config),
    )


def upscaler(config: RRDBNetConfig | CompactConfig) -> Standalone:
    """An upscaler of this shape, in any of its namings."""
    namings: list[KeyMap] = []
    for prefix in gan_maps.PREFIXES:
        if isinstance(config, CompactConfig):
            namings.append(gan_maps.compact(config, prefix))
        else:
            names = gan_maps.realesrgan, gan_maps.esrgan, gan_maps.first_esrgan
            namings += [naming(config, prefix) for naming in names]
    kind = "Compact" if isinstance(config, CompactConfig) else f"RRDBNet of {config.blocks} blocks"
    return Standalone(
        name="upscaler",
        title=f"an upscaler to {config.factor} times the size ({kind})",
        build=lambda: Compact(config) if isinstance(config, CompactConfig) else RRDBNet(config),
        keys=tuple(namings),
        settings={},
    )


def upscalers(tensors: Mapping[str, Tensor]) -> tuple[Standalone, ...]:
    """The upscaler that these could be: they are published in many sizes, which only shapes tell."""
    config = gan_maps.shape_of(tensors)
    return () if config is None else (upscaler(config),)


def flux_controls(tensors: Mapping[str, Tensor]) -> tuple[Standalone, ...]:
    """The control network for FLUX that these could be: they have as many blocks as their makers liked."""
    blocks = [
        len({name.split(".")[1] for name in tensors if name.startswith(f"controlnet_{kind}")})
        for kind in ("blocks.", "single_blocks.")
    ]
    if "controlnet_x_embedder.weight" not in tensors:
        return ()
    told = "time_text_embed.guidance_embedder.linear_1.weight" in tensors
    config = replace(flux.FLUX_DEV, double=blocks[0], single=blocks[1], guidance=told)
    return (flux_control(f"a ControlNet for FLUX of {blocks[0]} and {blocks[1]} blocks", config),)


def flux_control(title: str, config: flux.FluxConfig) -> Standalone:
    """A control network for FLUX of this shape."""
    return Standalone(
        name="controlnet",
        title=title,
        build=lambda: FluxControlNet(config),
        keys=(diffusers_flux_control(),),
        settings=flux_settings(config) | {"_class_name": "FluxControlNetModel", "num_mode": None},
    )


def mmdit_controls(tensors: Mapping[str, Tensor]) -> tuple[Standalone, ...]:
    """The control network for Stable Diffusion 3 that these could be, likewise."""
    config = mmdit_maps.control_shape(tensors)
    return () if config is None else (mmdit_control("a ControlNet for Stable Diffusion 3", config),)


def mmdit_control(title: str, config: MMDiTControlConfig) -> Standalone:
    """A control network for Stable Diffusion 3 of this shape."""
    return Standalone(
        name="controlnet",
        title=title,
        build=lambda: MMDiTControl(config),
        keys=(mmdit_maps.diffusers_mmdit_control(config),),
        settings=mmdit_control_settings(config),
    )


def known() -> tuple[Standalone, ...]:
    """The networks that are published alone in a few sizes."""
    return (
        control("a ControlNet for Stable Diffusion 1", ControlNetConfig(unet=unet.SD15)),
        control("a ControlNet for Stable Diffusion 2", ControlNetConfig(unet=unet.SD21)),
        control("a ControlNet for Stable Diffusion XL", ControlNetConfig(unet=unet.SDXL)),
        autoencoder("an autoencoder for Stable Diffusion 1, 2 or XL", kl_vae.SD),
        autoencoder("an autoencoder of 16 channels, for Stable Diffusion 3 or FLUX", kl_vae.SD3),
        small_autoencoder("a small autoencoder for previews (TAESD)", tiny_vae.TAESD),
        small_autoencoder("a small autoencoder for previews of 16 channels (TAESD3, TAEF1)", tiny_vae.TAESD3),
    )


def candidates(tensors: Mapping[str, Tensor]) -> tuple[Standalone, ...]:
    """What these could be: all that is known, and what is published in any size, in theirs."""
    return (*known(), *upscalers(tensors), *flux_controls(tensors), *mmdit_controls(tensors))


def identify_network(path: Path, kinds: tuple[Standalone, ...] | None = None) -> Network:
    """The network at `path`: one safetensors file, or a folder with config.json. `kinds` None: all known.

    Raises WeightsError when it is none of them.
    """
    tensors, notices = folders.read_part(path) if path.is_dir() else (files.read(path), [])
    kinds = candidates(tensors) if kinds is None else kinds
    for kind in kinds:
        if (ours := kind.spelling(tensors)) is None:
            continue
        beside = path / "config.json"
        theirs = files.read_json(beside) if path.is_dir() and beside.is_file() else {}
        for one in ("scaling_factor", "shift_factor"):  # one shape, and several: whoever uses it knows which
            theirs.pop(one, None)
        if wrong := differing(dict(kind.settings), theirs):
            told = ", ".join(f"{key} is {said!r}, not {our!r}" for key, (our, said) in wrong.items())
            raise WeightsError(f"{path}: tensors as of {kind.title}, but in config.json {told}")
        notices += unknown(dict(kind.settings), theirs, path.name)
        return Network(kind=kind, path=path, tensors=ours, notices=tuple(notices))
    names = ", ".join(kind.title for kind in kinds)
    raise WeightsError(f"{path} is none of the networks that Limner can load alone: {names}")
