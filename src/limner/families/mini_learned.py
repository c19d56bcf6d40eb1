"""What its user has taught the built-in model: LoRAs that a prompt names, and learned words.

A learned word is one or more rows of the text encoder's table of tokens. It comes from a file of its own
(textual inversion), or in the file of a LoRA that was trained together with it (DreamBooth), and is then
known wherever the prompt names that LoRA. The loaded model is never changed: with something learned it is
another `Mini` that shares its weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from limner.errors import WeightsError
from limner.models.pixel_dit import PixelDiT
from limner.nn import lora as low_rank
from limner.text.lexicon import surface_key
from limner.text.prompt import NETWORK, Lora, Part, Prompt, parse
from limner.text.tokenizers import WordTokenizer
from limner.text.words import LEARNED
from limner.weights import embeddings, files, lora
from limner.weights.keymap import Rule

if TYPE_CHECKING:
    from limner.families.mini import Mini

PART = "transformer"  # what the network is called in files of LoRAs
ENCODER = "text_encoder"  # whose words `embeddings` reads


def tokens_of(word: str, count: int) -> tuple[str, ...]:
    """The tokens that a learned word of `count` rows stands for: `<learned sks>`, or `<learned sks 2>`."""
    bare = surface_key(word)
    more = (f"{LEARNED}{bare} {index}>" for index in range(2, count + 1))
    return (f"{LEARNED}{bare}>", *more)


def typeable(word: str) -> bool:
    """Whether a prompt can have it: whether there is a letter or a digit in it."""
    return any(character.isalnum() for character in word)


def with_words(model: "Mini", words: Mapping[str, Float[Tensor, "n d"]]) -> "Mini":
    """The model with further words, {what is typed: its rows}; one that it has learned before is replaced.

    Raises WeightsError for rows of another width, and for a word without a letter or digit.
    """
    if not words:
        return model
    width = model.base.config.width
    new: dict[str, Tensor] = {}
    for word, rows in words.items():
        if rows.shape[-1] != width:
            raise WeightsError(
                f'the word "{word}" has rows of {rows.shape[-1]} numbers, and this model needs {width}; it '
                "was made for another"
            )
        if not typeable(word):
            raise WeightsError(f'the learned word "{word}" cannot be typed: it has no letter and no digit')
        if surface_key(word) in new:
            raise WeightsError(f'the word "{word}" is there twice, perhaps in another spelling')
        new[surface_key(word)] = rows
    gone = {token for key in new for token in model.learned.get(key, ())}
    kept = [at for at, token in enumerate(model.tokenizer.vocabulary) if token not in gone]
    learned = dict(model.learned) | {key: tokens_of(key, len(rows)) for key, rows in new.items()}
    vocabulary = (
        *(model.tokenizer.vocabulary[at] for at in kept),
        *(token for key in new for token in learned[key]),
    )
    table = model.base.text.token.weight
    rows = torch.cat([table[kept] if gone else table, *(row.to(table) for row in new.values())])
    return replace(
        model,
        base=twin(model.base, rows),
        tokenizer=WordTokenizer(vocabulary),
        learned=learned,
    )


def twin(base: PixelDiT, table: Float[Tensor, "v d"] | None = None) -> PixelDiT:
    """A network of its own with the weights of `base`, which are shared, and perhaps another table of tokens;
    without the updates that lie over `base`."""
    held = {name.replace(".layer.", "."): tensor for name, tensor in base.state_dict().items()}
    if table is not None:
        held["text.token.weight"] = table
    shape = replace(base.config, vocabulary=len(held["text.token.weight"]))
    return files.fill(lambda: PixelDiT(shape), held, "the built-in model")


def place(base: PixelDiT) -> lora.Place:
    """Where LoRAs may lie: layers are called as they are here, with dots or, as kohya does, without."""
    names: dict[str, tuple[Rule, tuple[str, ...]]] = {}
    for name, module in base.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            rule = Rule(f"{name}.weight", f"{name}.weight")
            names[name] = names[name.replace(".", "_")] = rule, (name,)
    return lora.Place(base, names)


class Wardrobe:
    """What a model can be asked to put on: the LoRAs in a folder. The last choice is kept at hand."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.worn: "tuple[tuple[Lora, ...], Mini] | None" = None
        self.replaced: tuple[str, ...] = ()  # what is to be told of it

    def wear(self, model: "Mini", prompt: str) -> "tuple[Mini, str, tuple[str, ...]]":
        """As `families.mini.Wear`. Raises as `dress` does, and RequestError for a weight that is none."""
        bare, networks = without_networks(prompt)
        loras, warnings = networks.loras()
        dressed = self.dress(model, loras)
        return dressed, bare, (*warnings, *(self.replaced if loras else ()))

    def dress(self, model: "Mini", wanted: tuple[Lora, ...]) -> "Mini":
        """The model with these LoRAs over it, and the words that came with them.

        Raises RequestError for a name that no file has, and WeightsError for a file that does not fit or fits
        in part only.
        """
        if not wanted:
            return model
        if self.worn is not None and self.worn[0] == wanted:
            return self.worn[1]
        read = [lora.read(lora.find(one.name, self.folder)) for one in wanted]
        words: dict[str, Tensor] = {}
        for file in read:
            for word, rows in file.words.items():
                if set(rows) != {"emb_params"} or rows["emb_params"].ndim != 2:
                    raise WeightsError(f'{file.path}: the word "{word}" was made for another model')
                if surface_key(word) in words:
                    raise WeightsError(
                        f'{file.path} brings the word "{word}", as another of these LoRAs does'
                    )
                words[surface_key(word)] = rows["emb_params"]
        replaced = tuple(
            f'the learned word "{word}" is meant as its LoRA has it, not as the file of its own'
            for word in words
            if word in model.learned
        )
        dressed = with_words(model, words)
        if dressed is model:
            dressed = replace(model, base=twin(model.base))
        places = {PART: place(dressed.base)}
        for index, (one, file) in enumerate(zip(wanted, read, strict=True)):
            found, unmatched = lora.match(file, places)
            if unmatched:
                raise WeightsError(
                    f"{file.path}: {len(unmatched)} of {len(file.updates)} layers are not in this model: "
                    f"{', '.join(unmatched[:5])}; it was made for another"
                )
            for weight, updates in _by_weight(one, found[PART]).items():
                name = f"{index}: {one.name} at {weight:g}"
                try:
                    low_rank.attach(dressed.base, name, updates, weight)
                except WeightsError as error:
                    raise WeightsError(f"{file.path}: {error}") from None
        self.worn, self.replaced = (wanted, dressed), replaced
        return dressed


def _by_weight(one: Lora, updates: Mapping[str, low_rank.Update]) -> dict[float, dict[str, low_rank.Update]]:
    """Updates of the text encoder and of the rest, by how much of them is wanted."""
    found: dict[float, dict[str, low_rank.Update]] = {}
    for name, update in updates.items():
        found.setdefault(one.text if name.startswith("text.") else one.unet, {})[name] = update
    return found


def without_networks(text: str) -> tuple[str, Prompt]:
    """The text without its `<kind:...>`, and a prompt of those alone: this model reads the words in a way of
    its own."""
    networks = parse(text).networks
    bare = NETWORK.sub(lambda match: match[0] if match["kind"] is None else "", text)
    return bare if networks else text, Prompt((Part(()),), networks)


def words_in(folder: Path | None, width: int) -> tuple[dict[str, Float[Tensor, "n d"]], tuple[str, ...]]:
    """The words of textual inversion in or below a folder that fit a model of this width, and notices of what
    is none. Those of other models are passed over in silence: folders hold what several use."""
    found: dict[str, Tensor] = {}
    notices = []
    for path in sorted(folder.rglob("*.safetensors")) if folder else []:
        try:
            embedding = embeddings.read(path)
        except WeightsError:
            notices.append(f"{path.name} was passed over: it holds no learned word")
            continue
        if {name: rows.shape[1] for name, rows in embedding.vectors.items()} != {ENCODER: width}:
            continue
        key = surface_key(embedding.name)
        if not typeable(key):
            notices.append(f"{path.name} was passed over: nobody can type its word {embedding.name!r}")
        elif key in found:
            notices.append(f"{path.name} was passed over: another file has the word {embedding.name!r}")
        else:
            found[key] = embedding.vectors[ENCODER]
    return found, tuple(notices)
