"""The drawn world as a source of training pictures: which objects, in which styles, called what."""

from dataclasses import dataclass
from pathlib import Path

from limner.data.world.art import DEFAULT_FOLDER, Atlas, load_atlas
from limner.data.world.caption import Noun
from limner.errors import DataError
from limner.text.lexicon import Entry, load_lexicon


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnConfig:
    """Which part of the drawn world a run learns."""

    folder: str = DEFAULT_FOLDER  # where `limner world prepare` put the atlas
    objects: str = "core"  # core: the few hundred reviewed ones; all: every object of the lexicon
    styles: tuple[str, ...] = ("flat", "glossy")  # names of ART_SETS


def load(config: DrawnConfig, sizes: tuple[int, ...] = (16, 32, 64)) -> tuple[Atlas, list[Noun]]:
    """The atlas and, in its order, what its objects are called. Raises DataError."""
    if config.objects not in ("core", "all"):
        raise DataError(f"objects is 'core' or 'all', got {config.objects!r}.")
    entries = [entry for entry in load_lexicon().entries if entry.core or config.objects == "all"]
    names = [entry.name for entry in entries]
    atlas = load_atlas(Path(config.folder).expanduser(), objects=names, styles=config.styles, sizes=sizes)
    return atlas, [noun(entry) for entry in entries]


def noun(entry: Entry) -> Noun:
    """What the captions may call an entry of the lexicon."""
    _, singular = entry.singular.split(" ", 1)  # without its article
    synonyms = () if entry.one else entry.synonyms  # "a pair of jeans" has no other name
    return Noun(name=entry.name, singular=singular, plural=entry.plural, synonyms=synonyms)
