"""The built-in model as training sees it: pixels are its latents, its words are those of the drawn world."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from limner.diffusion.paths import Path as DiffusionPath
from limner.errors import ConfigError, DataError
from limner.families import mini, mini_files
from limner.families.drawn import DrawnWords, drawable
from limner.families.mini import BASE, UPSCALER, grid_shift
from limner.families.mini_learned import ENCODER, PART, tokens_of
from limner.models.detector import resize
from limner.models.pixel_dit import PixelDiT
from limner.text.lexicon import load_lexicon, surface_key
from limner.text.tokenizers import WordTokenizer
from limner.text.words import PLURAL, UNK
from limner.train.learners.base import Networks, Said, Sides, beside, drawn, state, swap
from limner.weights import files, header
from limner.weights.keymap import KeyMap, Rule


class Taught(nn.Module):
    """The table of tokens, and below it the rows of words that are being learned. Those rows belong to who
    trains them; the table lies inside as `layer`."""

    def __init__(self, layer: nn.Embedding, rows: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.rows = rows

    @property
    def weight(self) -> Float[Tensor, "v d"]:
        """The whole table."""
        return torch.cat([self.layer.weight, *self.rows])

    def forward(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        return F.embedding(tokens, self.weight)


class MiniLearner:
    """See `Learner`. Made by `load`."""

    main = PART
    texts = (ENCODER,)
    prediction = "x0"

    def __init__(self, model: mini.Mini, folder: Path) -> None:
        self.model = model  # draws with the networks that are trained
        self.folder = folder  # whose upscaler and header go with what is written
        self.networks = Networks({PART: model.base})
        self.vectors: dict[str, Tensor] = {}  # learned word -> its rows

    @property
    def base(self) -> PixelDiT:
        """The network that predicts, with its text encoder."""
        network = self.networks[PART]
        assert isinstance(network, PixelDiT)
        return network

    @property
    def path(self) -> DiffusionPath:
        return self.model.path

    @property
    def size(self) -> int:
        return self.base.config.size

    @property
    def multiple(self) -> int:
        return self.base.config.size  # its pictures have one size

    @property
    def stamp(self) -> str:
        return self.model.fingerprint

    def latents(
        self, pixels: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 s s"]:
        """The pixels, smoothed down to the size of the network. Raises DataError for what is no square."""
        if pixels.shape[2] != pixels.shape[3]:
            height, width = pixels.shape[2:]
            raise DataError(f"the built-in model draws squares, and these pictures are {width}x{height}")
        return resize(pixels.to(self.model.device), self.size)

    def read(self, caption: str) -> tuple[str, ...]:
        """The tokens of a caption; words that the model does not know are left out."""
        return self.model.read(caption).words

    def unknown(self, captions: Sequence[str]) -> dict[str, str]:
        """{word that means nothing to this model: why, and what is near}, each once."""
        words = (word for caption in captions for word in self.model.read(caption).unknown)
        return {word.word: str(word) for word in words}

    def say(
        self,
        captions: Sequence[str],
        sizes: Sequence[Sides] | None = None,
        crops: Sequence[Sides] | None = None,
        target: Sides | None = None,
    ) -> Said:
        """Padded to the longest caption. Sizes and crops are nothing that this model is told."""
        rows = [self.read(caption) for caption in captions]
        length = min(self.base.config.text_length, 2 + max(map(len, rows), default=0))
        tokens = torch.tensor(
            [self.model.tokenizer.encode(row, length)[0] for row in rows], device=self.model.device
        )
        mask = tokens != self.model.tokenizer.pad
        context, pooled = self.base.encode(tokens, mask)
        return Said(context, pooled, mask=mask)

    def measures(
        self,
        count: int,
        sizes: Sequence[Sides] | None = None,
        crops: Sequence[Sides] | None = None,
        target: Sides | None = None,
    ) -> None:
        """This model is told none."""

    def predict(
        self,
        x_t: Float[Tensor, "b 3 s s"],
        t: Float[Tensor, " b"],
        said: Said,
        condition: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b 3 s s"]:
        if condition is not None or said.pooled is None or said.mask is None:
            raise ConfigError("the built-in model follows no control pictures; take another model")
        prediction: Tensor = self.base(x_t, t, said.context, said.pooled, said.mask)
        return prediction

    def shift(self, size: Sides) -> float:
        return grid_shift(size[0])

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        size: Sides | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Pictures of the upscaler's size, or of `size` where they are wanted so; grey for a prompt, such as
        an empty caption, that names nothing to draw."""
        native = self.model.defaults.size
        pixels = torch.zeros(len(prompts), 3, *native, device=self.model.device)
        rows = [row for row, prompt in enumerate(prompts) if drawable(self.model.read(prompt))]
        if rows:
            said, chance = [prompts[row] for row in rows], [seeds[row] for row in rows]
            model = replace(self.model, base=self.base)  # which another may stand in for
            pixels[rows] = drawn(model, said, chance, steps=steps, guidance=guidance)
        return pixels if size is None or size[0] != size[1] else resize(pixels, size[0])

    def write(self, folder: Path, averaged: Mapping[str, Tensor] | None = None) -> list[Path]:
        """A folder for --model: the base in bfloat16, and the upscaler that it came with."""
        tensors = state(self.networks, PART, averaged)
        said = header.read_metadata(self.folder / BASE)
        target = beside(folder)
        target.mkdir()
        files.save({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, target / BASE, said)
        shutil.copyfile(self.folder / UPSCALER, target / UPSCALER)
        return [swap(target, folder)]

    def keys(self, part: str) -> KeyMap:
        """Names are published as they are."""
        return tuple(Rule(name, name) for name in state(self.networks, part))

    def learn(self, word: str, vectors: Mapping[str, Float[Tensor, "n _"]]) -> None:
        """Raises ConfigError for a word that the model knows already, or that nobody could type."""
        self.refuse(word)
        if set(vectors) != {ENCODER} or vectors[ENCODER].shape[-1] != self.base.config.width:
            raise ConfigError(f'rows for the word "{word}" are {self.base.config.width} numbers each')
        text = self.base.text
        layer = text.token.layer if isinstance(text.token, Taught) else text.token
        assert isinstance(layer, nn.Embedding)
        self.vectors[surface_key(word)] = vectors[ENCODER]
        learned = {said: tokens_of(said, len(rows)) for said, rows in self.vectors.items()}
        known = len(layer.weight)
        more = [token for tokens in learned.values() for token in tokens]
        text.token = Taught(layer, tuple(self.vectors.values()))  # type: ignore[assignment]  # asked alike
        vocabulary = (*self.model.tokenizer.vocabulary[:known], *more)
        self.model = replace(self.model, tokenizer=WordTokenizer(vocabulary), learned=learned)

    def refuse(self, word: str) -> None:
        """Raises ConfigError unless `word` can be taught."""
        refuse(word, self.model)

    def spelled(self, like: str, count: int) -> dict[str, Float[Tensor, "n d"]]:
        """Rows to begin a word with: those of the objects, colours and so on in `like`, over and over, or one
        that is their mean; without any, the mean of all objects and noise as wide as they differ."""
        table = self.base.text.token.weight.detach()
        ids = [self.model.tokenizer.vocabulary.index(word) for word in self._names(like)]
        if ids and count == 1:
            return {ENCODER: table[ids].mean(0, keepdim=True)}
        if ids:
            return {ENCODER: table[[ids[index % len(ids)] for index in range(count)]].clone()}
        objects = table[[self.model.tokenizer.vocabulary.index(word) for word in sorted(self.model.objects)]]
        noise = torch.randn(count, table.shape[1], generator=torch.Generator().manual_seed(0))
        return {ENCODER: objects.mean(0) + objects.std(0) * noise.to(table)}

    def _names(self, said: str) -> Iterator[str]:
        """The objects, colours and so on that are named in a text, as tokens of this model."""
        for part in self.model.read(said).parts:
            if part.kind not in ("function", "count", "quote"):
                yield from (word for word in part.words if word not in (PLURAL, UNK))

    def branch(self) -> nn.Module:
        raise ConfigError("the built-in model has no control branch to train; take another model")

    def write_branch(self, folder: Path, averaged: Mapping[str, Tensor]) -> list[Path]:
        raise ConfigError("the built-in model has no control branch to write")

    def blocks(self) -> list[nn.Module]:
        return list(self.base.blocks)


def refuse(word: str, model: mini.Mini | DrawnWords) -> None:
    """Raises ConfigError for a word that cannot be taught to `model`: it knows it, or nobody could type
    it."""
    key = surface_key(word)
    if not any(character.isalnum() for character in key):
        raise ConfigError(f'"{word}" cannot be typed as a word: it has no letter and no digit; try "sks"')
    lexicon = load_lexicon()
    form = lexicon.objects.get(key)
    unlearned = form is not None and form.kind == "object" and form.words[0] not in model.objects
    if lexicon.has(word) and not unlearned:
        became = form.became if form is not None else word
        meant = f' ("{became}")' if surface_key(became) != key else ""
        raise ConfigError(
            f'"{word}" is already a word of the built-in model{meant}; call what is new by a word that means '
            'nothing yet, such as "sks"'
        )


def load(folder: Path, device: torch.device, *, fresh: bool = False) -> MiniLearner:
    """The model in `folder`, in float32, of which nothing is trained yet; `fresh` with random weights.

    Raises WeightsError as `families.mini.load` does, and ConfigError for a model that draws in few steps: its
    loss is not the one of diffusion.
    """
    model = mini_files.load(folder, device)
    if model.scales is not None:
        raise ConfigError(f"{folder} holds a model distilled to few steps; train the one it came from")
    base = PixelDiT(model.base.config).to(device)
    if fresh:
        base.initialize(torch.Generator(device).manual_seed(0))
    else:  # copied: training writes into no file
        base.load_state_dict(model.base.state_dict())
    return MiniLearner(replace(model, base=base.requires_grad_(False)), folder)
