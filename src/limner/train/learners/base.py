"""A family as training sees it: what its network is told and asked, and how what it has learned is drawn with
and written.

pixels -> latents: x0 -> x_t -> predict(x_t, t, say(captions)) -> eps, v, x0 or flow
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limner.diffusion.paths import Path as DiffusionPath
from limner.errors import ConfigError
from limner.families.base import Model as Drawing
from limner.families.base import Order
from limner.families.conditions import Tower
from limner.families.sd_files import fingerprint
from limner.families.shelf import Shelf
from limner.models.clip import CLIPText, CLIPTextOutput
from limner.models.kl_vae import KLVAE
from limner.nn.lora import LowRank
from limner.text.clip_tokenizer import BEGIN, END, CLIPTokenizer
from limner.text.emphasis import Chunk, frame, split
from limner.text.prompt import Line, Segment
from limner.util.rng import NoiseSource
from limner.weights import described, detect, files, folders
from limner.weights.convert import tokenizers
from limner.weights.detect import Found
from limner.weights.keymap import KeyMap
from limner.weights.published import ALL

Sides = tuple[int, int]  # (height, width) in pixels, or (top, left) of a crop
STAMPED = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")  # what makes what is cached


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """Captions as a network is told them, a row for each."""

    context: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b p"] | None = None
    sizes: Float[Tensor, "b k"] | None = None  # of XL: original, crop and target in pixels
    mask: Tensor | None = None  # b n, whether a row of the context is said; None: all are

    def cached(self) -> dict[str, Tensor]:
        """What depends on the captions alone, to be kept on the disk: all but the sizes."""
        parts = {"context": self.context, "pooled": self.pooled, "mask": self.mask}
        return {name: part for name, part in parts.items() if part is not None}


class Networks(nn.ModuleDict):
    """The networks of a model by the names of its parts. They come filled, so `initialize` has nothing to
    do."""

    def initialize(self, generator: torch.Generator) -> None:
        """As the training loop wants it."""


@runtime_checkable
class Learner(Protocol):
    """A model that is trained. Nothing of it is, until something `requires_grad`."""

    @property
    def networks(self) -> Networks:
        """Its networks by the family's names: "unet" or "transformer", "text_encoder", "vae" ..."""

    @property
    def main(self) -> str:
        """The name of the network that predicts."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The names of those that read CLIP's tokens: they can be trained, and given new words."""

    @property
    def path(self) -> DiffusionPath:
        """Where t runs."""

    @property
    def prediction(self) -> str:
        """What the network predicts: "eps", "v", "x0" or "flow"."""

    @property
    def multiple(self) -> int:
        """What heights and widths in pixels are multiples of."""

    @property
    def size(self) -> int:
        """Side in pixels that the model was made for."""

    @property
    def stamp(self) -> str:
        """Short hash of what makes latents and contexts: what is cached is stale with another one."""

    def latents(
        self, pixels: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h2 w2"]:
        """x0 of pixels in [-1, 1], without gradients; the pixels themselves where there is no autoencoder.
        Drawn from the posterior with the CPU's `generator`; None: its mean."""

    def say(
        self,
        captions: Sequence[str],
        sizes: Sequence[Sides] | None = None,  # of the original pictures; None: as they are shown
        crops: Sequence[Sides] | None = None,  # where they were cut out; None: at 0, 0
        target: Sides | None = None,  # as they are shown; None: `size`, square
    ) -> Said:
        """With gradients where a text encoder, or a word of it, is trained."""

    def predict(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        said: Said,
        condition: Float[Tensor, "b 3 H W"] | None = None,  # pixels in [-1, 1], for the control branch
    ) -> Float[Tensor, "b c h w"]:
        """What the network says of x_t at t of the path, with gradients."""

    def shift(self, size: Sides) -> float:
        """How far the model's path lies towards noise for pictures of `size`; 1: not at all."""

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int | None = None,  # None: what the family draws best with, here as in the others
        guidance: float | None = None,
        size: Sides | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [-1, 1] by the family's own plan, from the weights as they are."""

    def write(self, folder: Path, averaged: Mapping[str, Tensor] | None = None) -> list[Path]:
        """The whole model as its family publishes it, in the types that its files had. `averaged` by names
        in `networks` stand in for the weights as they are. What stood at `folder` is whole until the new is.
        Raises WeightsError for what the family cannot write."""

    def keys(self, part: str) -> KeyMap:
        """Published names <-> ours of a network."""

    def learn(self, word: str, vectors: Mapping[str, Float[Tensor, "n _"]]) -> None:
        """Have `word`, wherever a caption has it, stand for `vectors` of each text encoder, in place."""

    def spelled(self, like: str, count: int) -> Mapping[str, Float[Tensor, "n _"]]:
        """`count` vectors for each text encoder to begin a new word with: those of `like`, over and over;
        noise as wide as the table's own where it is empty. Raises ConfigError as `learn` does."""

    def measures(
        self,
        count: int,
        sizes: Sequence[Sides] | None = None,
        crops: Sequence[Sides] | None = None,
        target: Sides | None = None,
    ) -> Float[Tensor, "b k"] | None:
        """`Said.sizes` for `count` pictures, as in `say`; None where the network is not told."""

    def branch(self) -> nn.Module:
        """A new control branch, begun from the main network's weights, now among the `networks` as
        "controlnet". Raises ConfigError where the family knows none that can be trained."""

    def write_branch(self, folder: Path, averaged: Mapping[str, Tensor]) -> list[Path]:
        """The control branch alone, as it is published; `averaged` as in `write`."""

    def blocks(self) -> list[nn.Module]:
        """Parts of the main network that are called by `forward` alone, in the order in which they run."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Origin:
    """Where a model comes from: files, or nothing but their settings."""

    found: Found
    fresh: bool  # the main network begins with random weights

    def networks(self, device: torch.device) -> Networks:
        """All of them in float32, copied, so that training writes into no file. Random is what is fresh, and
        what a fresh model's folder describes and does not hold."""
        networks = Networks()
        for part in self.found.model.parts:
            main = part.folder == self.found.model.main
            if part.folder in self.found.absent and not (self.fresh and not main):
                continue
            if self.fresh and (main or part.folder not in self.found.tensors):
                network = part.build()
            else:
                tensors = {
                    name: tensor.to(device, torch.float32 if tensor.is_floating_point() else None, copy=True)
                    for name, tensor in detect.ours(self.found, part.folder).items()
                }
                network = files.fill(part.build, tensors, f"{self.found.path} ({part.folder})")
            networks[part.folder] = network.to(device).requires_grad_(False)
        return networks

    def write(self, folder: Path, networks: Networks, averaged: Mapping[str, Tensor] | None) -> list[Path]:
        """As `Learner.write`."""
        found, model = self.found, self.found.model
        parts = {}
        for part in model.parts:
            if part.folder not in networks:
                continue
            stored = next(iter(found.tensors.get(part.folder, {}).values()), None)
            kind = torch.float32 if stored is None or not stored.is_floating_point() else stored.dtype
            tensors = state(networks, part.folder, averaged)
            parts[part.folder] = {
                name: tensor.to(kind) if tensor.is_floating_point() else tensor
                for name, tensor in tensors.items()
            }
        extras = folders.extras(found.path) if found.path.is_dir() else {}
        target = beside(folder)
        folders.write(
            target,
            model,
            parts,
            prediction=found.prediction,
            table=found.table,
            tables=found.tables,
            extras=extras or tokenizers(model),
        )
        return [swap(target, folder)]

    def stamp(self) -> str:
        """As `Learner.stamp`. Of a fresh model it is that of what was read."""
        held = {name: part for name, part in self.found.tensors.items() if name in STAMPED}
        return fingerprint(replace(self.found, tensors=held), torch.float32)


def opened(
    path: Path, *, fresh: bool = False, prediction: str | None = None, zero_terminal_snr: bool = False
) -> Origin:
    """What lies at `path`, a diffusers folder or a single file. A fresh model needs no more than the folder's
    settings: model_index.json, and config.json of each part.

    Raises WeightsError when it is no model that Limner knows, ConfigError for a prediction that it cannot
    learn or that does not go with the path.
    """
    if prediction is not None and not fresh:
        raise ConfigError(
            f"prediction = {prediction!r} is for fresh networks: {path} has learned what it predicts already"
        )
    if fresh and path.is_dir():
        found = described.folder(path, prediction)
    else:
        own = described.unpublished(path)
        found = detect.identify(path, prediction=prediction, models=own or ALL)
    if zero_terminal_snr:
        if found.prediction not in ("v", "x0"):
            raise ConfigError(
                f"zero_terminal_snr needs a model that predicts v or x0, and this one predicts "
                f"{found.prediction}: where no picture is left, the noise tells nothing of it"
            )
        found = replace(found, table={**found.table, "rescale_betas_zero_snr": True})
    return Origin(found=found, fresh=fresh)


def state(networks: Networks, part: str, averaged: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of a network, without what is laid over it, under our names; of `averaged`, where they have
    some, theirs."""
    start = f"{part}."
    tensors = {
        name.replace(".layer.", "."): tensor.detach() for name, tensor in networks[part].state_dict().items()
    }
    for name, tensor in (averaged or {}).items():
        if name.startswith(start):
            tensors[name.removeprefix(start).replace(".layer.", ".")] = tensor.detach()
    return tensors


def beside(folder: Path) -> Path:
    """A place next to `folder` where nothing stands, to write what is to take its place."""
    target = folder.with_name(folder.name + ".new")
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def swap(target: Path, folder: Path) -> Path:
    """Put `target` in the place of `folder`; whenever the process dies, one of the two is whole."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    target.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def chunks(captions: Sequence[str], lengths: Mapping[str, int], tokenizer: CLIPTokenizer) -> list[Chunk]:
    """The first 75 tokens of each caption, plain text; `lengths` are those of learned words."""
    lines = (Line(1.0, ((Segment(caption, 1.0),),)) for caption in captions)
    return [split(line, tokenizer.encode, lengths, backtrack=0)[0] for line in lines]


def heard(tower: Tower, said: Sequence[Chunk], words: Mapping[str, Float[Tensor, "n _"]]) -> CLIPTextOutput:
    """What a text tower makes of chunks, a row for each, with gradients; `words` are the learned ones."""
    network = tower.network
    rows = [frame(chunk, bos=BEGIN, eos=END, pad=tower.pad)[0] for chunk in said]
    tokens = torch.tensor(rows, device=network.position.device)
    vectors = network.embed(tokens)
    if any(chunk.embeddings for chunk in said):
        vectors = vectors.clone()
    for row, chunk in enumerate(said):
        for position, name in chunk.embeddings:
            learned = words[name]
            vectors[row, position + 1 : position + 1 + len(learned)] = learned.to(vectors)
    out: CLIPTextOutput = network(vectors, tokens, skip=tower.skip, norm=tower.norm)
    return out


def beginning(network: CLIPText, like: str, count: int, tokenizer: CLIPTokenizer) -> Float[Tensor, "n d"]:
    """As `Learner.spelled`, of one tower."""
    table = network.token.weight.detach()
    ids = list(tokenizer.encode(like))
    if not ids:
        return table.mean(0) + table.std(0) * torch.randn(count, table.shape[1]).to(table)
    return table[[ids[index % len(ids)] for index in range(count)]].clone()


def recalled(
    learner: Learner,
    cached: Mapping[str, Tensor],
    sizes: Sequence[Sides],
    crops: Sequence[Sides],
    target: Sides,
) -> Said:
    """What `Said.cached` kept, with the sizes of these pictures, on the learner's device in float32."""
    device = next(learner.networks.parameters()).device
    kept = {
        name: part.to(device, torch.float32 if part.is_floating_point() else None)
        for name, part in cached.items()
    }
    measured = learner.measures(len(kept["context"]), sizes, crops, target)
    return Said(kept["context"], kept.get("pooled"), measured, kept.get("mask"))


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """What a learner makes of pictures and captions before training, in the form in which it is kept."""

    learner: Learner

    @property
    def stamp(self) -> str:
        return self.learner.stamp

    def latents(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c y x"]:
        """The means: nothing is left to chance."""
        return self.learner.latents(pixels)

    def say(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return self.learner.say(captions).cached()


def trained(modules: Sequence[nn.Module], more: Sequence[Tensor] = ()) -> bool:
    """Whether anything that these hold, or lies over them, is to be trained."""
    own = (tensor for module in modules for tensor in module.parameters())
    return any(tensor.requires_grad for tensor in (*own, *_laid_over(modules), *more))


def _laid_over(modules: Sequence[nn.Module]) -> list[Tensor]:
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, LowRank))
    return [side for layer in layers for down, up, _ in layer.updates.values() for side in (down, up)]


@torch.no_grad()
def drawn(
    model: Drawing,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    size: Sides | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """As `Learner.sample`, of a loaded model; each picture by itself, as the pipeline draws it."""
    usual, pictures = model.defaults, []
    for prompt, seed in zip(prompts, seeds, strict=True):
        order = Order(
            prompt=prompt,
            negative_prompt="",
            steps=usual.steps if steps is None else steps,
            guidance=usual.guidance if guidance is None else guidance,
            sampler=usual.sampler,
            size=usual.size if size is None else size,
            style=None,
        )
        noise, x = NoiseSource([seed]), None
        for stage in model.plan(order).stages:
            for step in stage.run(x, noise):
                last = step.x
            x = last
        assert x is not None  # every plan has a stage
        pictures.append(x.clamp(-1, 1))
    return torch.cat(pictures)


def posterior(
    vae: KLVAE, pixels: Float[Tensor, "b 3 h w"], generator: torch.Generator | None
) -> Float[Tensor, "b c h2 w2"]:
    """Latents of pixels, as `Learner.latents`."""
    found = vae.encode(pixels)
    if generator is None:
        return vae.scaled(found.mean)
    noise = torch.randn(found.mean.shape, generator=generator).to(found.mean)
    return vae.scaled(found.sample(noise))


def bound(networks: Networks, shelf: Shelf) -> None:
    """Have a family's shelf hand out `networks`, which are trained, in place of those in its files: whatever
    stands among them when the shelf was last told to `forget`."""
    for name in networks:
        if name in shelf.loaders:
            shelf.loaders[name] = _handing(networks, name)


def _handing(networks: Networks, name: str) -> Callable[[torch.device], nn.Module]:
    return lambda device: networks[name]
