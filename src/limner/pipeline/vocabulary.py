"""What a model can draw: its words, without loading it."""

from pathlib import Path

from limner.text.catalogue import search
from limner.text.lexicon import load_lexicon
from limner.text.words import CLASSES
from limner.weights.header import listed, read_metadata

MINI = Path(__file__).parents[1] / "weights" / "mini"
Word = tuple[str, str, tuple[str, ...], str]  # word, category, also called, the art's name


def objects(model: str) -> frozenset[str]:
    """The objects that a model has learned, read from the header of its weights: no torch is needed."""
    folder = MINI if model == "mini" else Path(model)
    prior = folder / "prior.safetensors"  # of a DALL-E
    path = prior if prior.is_file() else folder / "base.safetensors"
    return frozenset(listed(read_metadata(path), "objects", path))


def words_of(query: str, known: frozenset[str]) -> list[Word]:
    """The fixed words and then the objects that match; all of them for ""."""
    fixed = [
        (word, kind, synonyms, "")
        for kind, members in CLASSES.items()
        for word, synonyms in members.items()
        if kind != "function" and (query.lower() in (kind, word, *synonyms) or not query)
    ]
    found = search(load_lexicon(), query, known)
    return fixed + [(entry.name, entry.category, entry.synonyms, entry.art) for entry in found]
