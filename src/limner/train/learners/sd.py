"""Stable Diffusion 1, 2 and XL as training sees them: a U-Net told by CLIP, in an autoencoder's latents."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limner.diffusion.paths import VPPath
from limner.errors import ConfigError
from limner.families import sd_files
from limner.families.base import Wishes
from limner.families.sd import AESTHETIC, StableDiffusion
from limner.models.clip import CLIPText
from limner.models.controlnet import ControlNet, ControlNetConfig
from limner.models.kl_vae import KLVAE
from limner.models.unet import GEGLU, Control, UNet
from limner.nn.resnet import ResBlock
from limner.train.learners.base import (
    Networks,
    Origin,
    Said,
    Sides,
    beginning,
    beside,
    bound,
    chunks,
    drawn,
    heard,
    posterior,
    state,
    swap,
    trained,
)
from limner.weights import detect, files
from limner.weights.keymap import KeyMap, to_theirs
from limner.weights.maps.controlnet import diffusers_controlnet
from limner.weights.published import ALL
from limner.weights.standalone import control

BRANCH = "controlnet"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SDLearner:
    """A `Learner`; `load` makes one."""

    origin: Origin
    networks: Networks
    family: StableDiffusion  # draws with `networks`
    device: torch.device
    main: str = "unet"

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(name for name in self.networks if name.startswith("text_encoder"))

    @property
    def path(self) -> VPPath:
        return self.family.path

    @property
    def prediction(self) -> str:
        return self.family.prediction

    @property
    def multiple(self) -> int:
        """The U-Net halves its latents at each level but the last; odd sides would do, if not as well."""
        return int(self.family.vae_config.factor * 2 ** (len(self.family.unet_config.channels) - 1))

    @property
    def size(self) -> int:
        return self.family.defaults.size[0]

    @property
    def stamp(self) -> str:
        return self.origin.stamp()

    @torch.no_grad()
    def latents(
        self, pixels: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h2 w2"]:
        vae = self.networks["vae"]
        assert isinstance(vae, KLVAE)
        return posterior(vae, pixels.to(self.device), generator)

    def say(
        self,
        captions: Sequence[str],
        sizes: Sequence[Sides] | None = None,
        crops: Sequence[Sides] | None = None,
        target: Sides | None = None,
    ) -> Said:
        encoder = self.family.encoder
        words = encoder.embeddings
        said = chunks(captions, {name: len(rows[0]) for name, rows in words.items()}, encoder.tokenizer)
        towers = [tower() if callable(tower) else tower for tower in encoder.towers]
        learned = [rows for every in words.values() for rows in every]
        contexts, pooled = [], None
        gradients = trained([tower.network for tower in towers], learned)
        with nullcontext() if gradients else torch.no_grad():
            for index, tower in enumerate(towers):
                out = heard(tower, said, {name: rows[index] for name, rows in words.items()})
                contexts.append(out.context)
                pooled = out.projected
        context = torch.cat(contexts, -1)
        if self.family.zeros:  # XL was trained so, and is drawn with so
            there = torch.tensor([[float(bool(caption))] for caption in captions], device=self.device)
            context = context * there[:, :, None]
            pooled = None if pooled is None else pooled * there
        measured = self.measures(len(captions), sizes, crops, target)
        if measured is None:
            return Said(context)
        if pooled is None:
            raise ConfigError("this U-Net wants a pooled text, and its text encoders have no projection")
        return Said(context, pooled, measured)

    def measures(
        self,
        count: int,
        sizes: Sequence[Sides] | None = None,
        crops: Sequence[Sides] | None = None,
        target: Sides | None = None,
    ) -> Float[Tensor, "b k"] | None:
        """SDXL, sections 2.2 and 2.3; the refiner is told how beautiful its pictures are."""
        config = self.family.unet_config
        if not config.sizes:
            return None
        shown = target or (self.size, self.size)
        last = (AESTHETIC[0],) if config.sizes == 5 else shown
        both = zip(sizes or [shown] * count, crops or [(0, 0)] * count, strict=True)
        ids = [(*size, *crop, *last) for size, crop in both]
        return torch.tensor(ids, dtype=torch.float32, device=self.device)

    def predict(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        said: Said,
        condition: Float[Tensor, "b 3 H W"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        unet = self.networks[self.main]
        assert isinstance(unet, UNet)
        added = None if said.pooled is None else (said.pooled, said.sizes)
        steering: Control | None = None
        if condition is not None:
            branch = self.networks[BRANCH]
            assert isinstance(branch, ControlNet)
            seen = branch.look((condition.to(x_t) + 1) / 2)
            steering = branch(x_t, t, said.context, seen, added=added)
        told = torch.zeros_like(t) if self.family.unet_config.guidance else None
        return torch.as_tensor(unet(x_t, t, said.context, added=added, control=steering, guidance=told))

    def shift(self, size: Sides) -> float:
        return 1.0

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        size: Sides | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        self.family.shelf.forget()  # another network may stand in for the one that was drawn with
        return drawn(self.family, prompts, seeds, steps=steps, guidance=guidance, size=size)

    def write(self, folder: Path, averaged: Mapping[str, Tensor] | None = None) -> list[Path]:
        return self.origin.write(folder, self.networks, averaged)

    def keys(self, part: str) -> KeyMap:
        return detect.keys_of(self.origin.found.model.part(part), "folder")

    def learn(self, word: str, vectors: Mapping[str, Float[Tensor, "n _"]]) -> None:
        self.family.encoder.embeddings[word] = tuple(vectors[name] for name in self.texts)

    def spelled(self, like: str, count: int) -> dict[str, Float[Tensor, "n _"]]:
        towers = {name: self.networks[name] for name in self.texts}
        tokenizer = self.family.encoder.tokenizer
        return {
            name: beginning(tower, like, count, tokenizer)
            for name, tower in towers.items()
            if isinstance(tower, CLIPText)
        }

    def branch(self) -> nn.Module:
        """Begun as Zhang et al. 2023 do: the way down of the U-Net, and zeros where it leads back."""
        unet = self.networks[self.main]
        assert isinstance(unet, UNet)
        network = ControlNet(self._control()).to(self.device)
        known = {name: tensor for name, tensor in unet.state_dict().items() if name in network.state_dict()}
        network.load_state_dict(known, strict=False)
        for layer in (network.condition.last, network.middle_out, *network.down_out):
            for tensor in layer.parameters():
                nn.init.zeros_(tensor)
        self.networks[BRANCH] = network
        return network

    def write_branch(self, folder: Path, averaged: Mapping[str, Tensor]) -> list[Path]:
        config, target = self._control(), beside(folder)
        tensors = to_theirs(diffusers_controlnet(config), state(self.networks, BRANCH, averaged))
        files.save_shards(tensors, target / "diffusion_pytorch_model.safetensors")
        files.write_json(dict(control("", config).settings), target / "config.json")
        return [swap(target, folder)]

    def blocks(self) -> list[nn.Module]:
        """Residual blocks and feed-forward layers: what stands around them hands on an iterator."""
        network = self.networks[self.main]
        return [module for module in network.modules() if isinstance(module, ResBlock | GEGLU)]

    def _control(self) -> ControlNetConfig:
        """Of the published shape; where a latent is fewer pixels wide than there, with fewer halvings."""
        channels = ControlNetConfig(unet=self.family.unet_config).channels
        halvings = len(self.family.vae_config.channels) - 1
        return ControlNetConfig(unet=self.family.unet_config, channels=channels[: halvings + 1])


def load(origin: Origin, device: torch.device) -> SDLearner:
    """Raises ConfigError for a model that draws behind masks."""
    model = origin.found.model
    unet, vae = model.part("unet").config, model.part("vae").config
    if unet.inputs != vae.latents:
        raise ConfigError(
            f"{origin.found.path} was made for masks ({unet.inputs} channels go in); training such models is "
            "not known here: take one of the plain ones"
        )
    networks = origin.networks(device)
    family = sd_files.assemble(origin.found, device, Wishes(dtype="float32"), ALL)
    bound(networks, family.shelf)
    return SDLearner(origin=origin, networks=networks, family=family, device=device)
