"""Stable Diffusion 3 and FLUX as training sees them: transformers along a straight path, told by CLIP and T5.

t in [0, 1], 1 is noise; prediction: eps - x0, the velocity
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from limner.diffusion.paths import FlowPath
from limner.errors import ConfigError
from limner.families import flux_files, sd3_files
from limner.families.base import Wishes
from limner.families.conditions import Tower
from limner.families.flux import Flux as FluxFamily
from limner.families.sd3 import LENGTH, StableDiffusion3
from limner.models.clip import CLIPText
from limner.models.flux import Flux
from limner.models.kl_vae import KLVAE
from limner.models.mmdit import MMDiT
from limner.models.t5 import T5Encoder
from limner.nn.joint import Modulation
from limner.text.clip_tokenizer import CLIPTokenizer
from limner.text.t5_tokenizer import T5Tokenizer
from limner.train.learners.base import (
    Networks,
    Origin,
    Said,
    Sides,
    beginning,
    bound,
    chunks,
    drawn,
    heard,
    posterior,
    trained,
)
from limner.weights import detect
from limner.weights.keymap import KeyMap

MIDDLE = 64  # side in patches of SD3's first pictures, over which the waves of positions are laid out
WORDLESS = "FLUX makes its context of T5's tokens alone and is given no new words; train [lora] instead"
LONGEST_WAVE = 10_000.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FlowLearner:
    """What SD3 and FLUX have in common; `load_sd3` and `load_flux` make `Learner`s of it."""

    origin: Origin
    networks: Networks
    family: StableDiffusion3 | FluxFamily  # draws with `networks`
    device: torch.device
    main: str = "transformer"
    prediction: str = "flow"
    told: float = 1.0  # scale of guidance that FLUX.1 dev hears in training

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(name for name, network in self.networks.items() if isinstance(network, CLIPText))

    @property
    def path(self) -> FlowPath:
        return FlowPath()

    @property
    def multiple(self) -> int:
        return self.family.canvas.side

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

    def shift(self, size: Sides) -> float:
        family = self.family
        by_tokens = family.shift if isinstance(family, FluxFamily) else family.shift.by_tokens
        if by_tokens is None:
            assert isinstance(family, StableDiffusion3)
            return family.shift.factor
        return by_tokens(math.prod(length // self.multiple for length in size))

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

    def measures(
        self,
        count: int,
        sizes: Sequence[Sides] | None = None,
        crops: Sequence[Sides] | None = None,
        target: Sides | None = None,
    ) -> None:
        return None

    def branch(self) -> nn.Module:
        raise ConfigError(
            f"control branches are trained for Stable Diffusion 1, 2 and XL; {self.origin.found.path} is "
            f"{self.origin.found.model.title}"
        )

    def write_branch(self, folder: Path, averaged: Mapping[str, Tensor]) -> list[Path]:
        raise ConfigError("there is no control branch to write")

    def blocks(self) -> list[nn.Module]:
        network = self.networks[self.main]
        return list(network.blocks) if isinstance(network, MMDiT | Flux) else []

    def _long(self, captions: Sequence[str], name: str, tokenizer: T5Tokenizer, length: int) -> Tensor:
        """What T5, which is never trained, makes of captions."""
        t5 = self.networks[name]
        assert isinstance(t5, T5Encoder)
        rows = [tokenizer.encode(caption, length)[0] for caption in captions]
        with torch.no_grad():
            return torch.as_tensor(t5(torch.tensor(rows, device=self.device)))


class SD3Learner(FlowLearner):
    """Stable Diffusion 3 and 3.5."""

    __slots__ = ()

    def say(
        self,
        captions: Sequence[str],
        sizes: Sequence[Sides] | None = None,
        crops: Sequence[Sides] | None = None,
        target: Sides | None = None,
    ) -> Said:
        """CLIP's rows, filled up with zeros to the width of T5's, come first."""
        family = self.family
        assert isinstance(family, StableDiffusion3)
        towers = [tower() if callable(tower) else tower for one in family.encoders for tower in one.towers]
        learned = [rows for one in family.encoders for every in one.embeddings.values() for rows in every]
        contexts, pooled = [], []
        gradients = trained([tower.network for tower in towers], learned)
        with nullcontext() if gradients else torch.no_grad():
            for tower, encoder in zip(towers, family.encoders, strict=True):
                words = {name: rows[0] for name, rows in encoder.embeddings.items()}
                lengths = {name: len(rows) for name, rows in words.items()}
                out = heard(tower, chunks(captions, lengths, encoder.tokenizer), words)
                contexts.append(out.context)
                if out.projected is not None:
                    pooled.append(out.projected)
        context = torch.cat(contexts, -1)
        context = F.pad(context, (0, family.config.context - context.shape[-1]))
        if family.tokenizer is None:
            long = context.new_zeros(len(captions), LENGTH, family.config.context)
        else:
            long = self._long(captions, sd3_files.T5, family.tokenizer, LENGTH).to(context)
        return Said(torch.cat([context, long], 1), torch.cat(pooled, -1))

    def predict(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        said: Said,
        condition: Float[Tensor, "b 3 H W"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        return torch.as_tensor(self.networks[self.main](x_t, 1000 * t, said.context, said.pooled))

    def spelled(self, like: str, count: int) -> dict[str, Float[Tensor, "n _"]]:
        towers = {name: self.networks[name] for name in sd3_files.CLIPS}
        tokenizer = CLIPTokenizer()
        return {
            name: beginning(tower, like, count, tokenizer)
            for name, tower in towers.items()
            if isinstance(tower, CLIPText)
        }

    def learn(self, word: str, vectors: Mapping[str, Float[Tensor, "n _"]]) -> None:
        """T5 hears the word as it is spelled."""
        assert isinstance(self.family, StableDiffusion3)
        for name, encoder in zip(sd3_files.CLIPS, self.family.encoders, strict=True):
            encoder.embeddings[word] = (vectors[name],)


class FluxLearner(FlowLearner):
    """FLUX.1 dev and schnell."""

    __slots__ = ()

    def say(
        self,
        captions: Sequence[str],
        sizes: Sequence[Sides] | None = None,
        crops: Sequence[Sides] | None = None,
        target: Sides | None = None,
    ) -> Said:
        family, network = self.family, self.networks["text_encoder"]
        assert isinstance(family, FluxFamily)
        assert isinstance(network, CLIPText)
        tower = Tower(network=network)
        with nullcontext() if trained([network]) else torch.no_grad():
            pooled = heard(tower, chunks(captions, {}, CLIPTokenizer()), {}).pooled
        return Said(self._long(captions, "text_encoder_2", family.tokenizer, family.length), pooled)

    def predict(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        said: Said,
        condition: Float[Tensor, "b 3 H W"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        assert isinstance(self.family, FluxFamily)
        told = torch.full_like(t, self.told) if self.family.config.guidance else None
        asked = self.networks[self.main](x_t, t, said.context, said.pooled, guidance=told)
        return torch.as_tensor(asked)

    def spelled(self, like: str, count: int) -> dict[str, Float[Tensor, "n _"]]:
        raise ConfigError(WORDLESS)

    def learn(self, word: str, vectors: Mapping[str, Float[Tensor, "n _"]]) -> None:
        raise ConfigError(WORDLESS)


def load_sd3(origin: Origin, device: torch.device) -> SD3Learner:
    """A learner of Stable Diffusion 3. Raises WeightsError where a part is absent."""
    networks = origin.networks(device)
    _begin(networks["transformer"], origin.fresh)
    _project(networks["text_encoder"])
    family = sd3_files.assemble(origin.found, device, Wishes(dtype="float32"))
    bound(networks, family.shelf)
    return SD3Learner(origin=origin, networks=networks, family=family, device=device)


def load_flux(origin: Origin, device: torch.device) -> FluxLearner:
    """A learner of FLUX. Raises WeightsError where a part is absent."""
    networks = origin.networks(device)
    _begin(networks["transformer"], origin.fresh)
    family = flux_files.assemble(origin.found, device, Wishes(dtype="float32"))
    bound(networks, family.shelf)
    return FluxLearner(origin=origin, networks=networks, family=family, device=device)


def _begin(network: nn.Module, fresh: bool) -> None:
    """A fresh transformer's blocks change nothing at first (adaLN-Zero, Peebles & Xie 2023, section 3.2), and
    its table of places holds waves, which are nothing to be trained."""
    if fresh:
        for module in network.modules():
            if isinstance(module, Modulation):
                for tensor in module.parameters():
                    nn.init.zeros_(tensor)
    if isinstance(network, MMDiT) and network.patches.position is not None:
        table = network.patches.position.detach()
        if fresh:
            table = places(network.patches.side, network.config.width).to(table)
        del network.patches.position
        network.patches.register_buffer("position", table)


def places(side: int, width: int) -> Float[Tensor, "1 n d"]:
    """A table of places for `side` x `side` patches, row by row: sines and cosines of the column, then of the
    row, a quarter of the width each (Vaswani et al. 2017, in two dimensions as DiT has it)."""
    at = torch.arange(side, dtype=torch.float64) * (min(side, MIDDLE) / side)
    waves = LONGEST_WAVE ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = at[:, None] * waves
    one = torch.cat([angles.sin(), angles.cos()], 1)
    columns, rows = one[None, :, :].expand(side, -1, -1), one[:, None, :].expand(-1, side, -1)
    return rearrange(torch.cat([columns, rows], -1), "h w d -> 1 (h w) d").float()


def _project(network: nn.Module) -> None:
    """The first tower with the projection that its file may lack: the identity."""
    assert isinstance(network, CLIPText)
    if network.projection is None:
        width = network.config.width
        network.projection = nn.Linear(width, width, bias=False)
        network.projection.weight = nn.Parameter(torch.eye(width).to(network.position), requires_grad=False)
