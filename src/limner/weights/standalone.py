"""Networks that are published alone: control networks and autoencoders, in files and in folders of their
own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from limner.errors import WeightsError
from limner.models import controlnet, kl_vae, tiny_vae, unet
from limner.models.controlnet import ControlNetConfig
from limner.weights import files, folders
from limner.weights.keymap import KeyMap, to_ours
from limner.weights.maps.controlnet import diffusers_controlnet, ldm_controlnet
from limner.weights.maps.kl_vae import diffusers_vae, ldm_vae
from limner.weights.maps.tiny_vae import diffusers_tiny_vae
from limner.weights.settings import differing, tiny_vae_settings, unet_settings, unknown, vae_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Standalone:
    """A network, and the spellings of its tensors in which it is published."""

    name: str  # "controlnet", "vae" or "tiny_vae"
    title: str
    build: Callable[[], nn.Module]
    keys: tuple[KeyMap, ...]
    settings: Mapping[str, object]  # what a config.json beside it may not contradict

    def spelling(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """`tensors` under our names, if they are just this network's in one of the spellings."""
        wanted = {name: tensor.shape for name, tensor in files.empty(self.build).state_dict().items()}
        for keys in self.keys:
            try:
                ours = to_ours(keys, tensors, "")
            except WeightsError:
                continue
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


def known() -> tuple[Standalone, ...]:
    """The networks that are published alone."""
    return (
        control("a ControlNet for Stable Diffusion 1", ControlNetConfig(unet=unet.SD15)),
        control("a ControlNet for Stable Diffusion 2", ControlNetConfig(unet=unet.SD21)),
        control("a ControlNet for Stable Diffusion XL", ControlNetConfig(unet=unet.SDXL)),
        autoencoder("an autoencoder for Stable Diffusion 1, 2 or XL", kl_vae.SD),
        small_autoencoder("a small autoencoder for previews (TAESD)", tiny_vae.TAESD),
    )


def identify_network(path: Path, kinds: tuple[Standalone, ...] | None = None) -> Network:
    """The network at `path`: one safetensors file, or a folder with config.json. `kinds` None: all known.

    Raises WeightsError when it is none of them.
    """
    kinds = known() if kinds is None else kinds
    tensors, notices = folders.read_part(path) if path.is_dir() else (files.read(path), [])
    for kind in kinds:
        if (ours := kind.spelling(tensors)) is None:
            continue
        beside = path / "config.json"
        theirs = files.read_json(beside) if path.is_dir() and beside.is_file() else {}
        theirs.pop("scaling_factor", None)  # one shape, and several factors: whoever uses it knows which
        if wrong := differing(dict(kind.settings), theirs):
            told = ", ".join(f"{key} is {said!r}, not {our!r}" for key, (our, said) in wrong.items())
            raise WeightsError(f"{path}: tensors as of {kind.title}, but in config.json {told}")
        notices += unknown(dict(kind.settings), theirs, path.name)
        return Network(kind=kind, path=path, tensors=ours, notices=tuple(notices))
    names = ", ".join(kind.title for kind in kinds)
    raise WeightsError(f"{path} is none of the networks that Limner can load alone: {names}")
