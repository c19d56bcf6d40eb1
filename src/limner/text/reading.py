"""What came of reading a prompt: the canonical words, and an account of every word that was said."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from limner.text import words

Kind = Literal[
    "object", "colour", "count", "size", "relation", "setting", "style", "function", "learned", "quote",
    "dropped", "unknown"
]  # fmt: skip

NOT_A_WORD = "not in the lexicon"
NOT_LEARNED = "this model has not learned it"
NOT_SPELLED = "only letters, digits and spaces can be spelled"
NEGATED = "a prompt cannot say what to leave out; use the negative prompt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Unknown:
    """A word that nothing was made of: never swallowed, always reported."""

    word: str  # as it was said
    position: int  # character offset in the NFC-normalised prompt
    nearest: tuple[str, ...] = ()  # up to three known words, best first
    reason: str = NOT_A_WORD

    def __str__(self) -> str:
        offer = f"; nearest: {', '.join(self.nearest)}" if self.nearest else ""
        return f'"{self.word}": {self.reason}{offer}'


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One stretch of the prompt and what it became."""

    said: str  # the stretch as it was typed, one word or one expression
    position: int  # character offset of its first character
    kind: Kind
    words: tuple[str, ...] = ()  # canonical words; empty when dropped or unknown
    became: str | None = None  # what it was resolved to, where the word itself changed
    unknown: Unknown | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A prompt, read. `parts` covers every word of the prompt in order; the rest are views of it."""

    parts: tuple[Part, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """Canonical words in order, for a tokenizer. A plural noun is its singular followed by `<plural>`."""
        return tuple(word for part in self.parts for word in part.words)

    @property
    def resolved(self) -> tuple[tuple[str, str], ...]:
        """(said, became) for synonyms and other spellings; plain plurals and phrasings are not listed."""
        return tuple((part.said, part.became) for part in self.parts if part.became is not None)

    @property
    def unknown(self) -> tuple[Unknown, ...]:
        """The words that were not understood, each with its position and the nearest known words."""
        return tuple(part.unknown for part in self.parts if part.unknown is not None)

    @property
    def quoted(self) -> tuple[str, ...]:
        """The words in quotes, as typed, that are spelled letter by letter."""
        return tuple(part.said for part in self.parts if part.kind == "quote")

    @property
    def dropped(self) -> tuple[str, ...]:
        """Filler that carries nothing to draw ("the", "please", "picture"), as typed."""
        return tuple(part.said for part in self.parts if part.kind == "dropped")

    @property
    def objects(self) -> tuple[str, ...]:
        """The names of the objects to draw, in order; empty when only a background is left."""
        return tuple(part.words[0] for part in self.parts if part.kind == "object")


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One word of a prompt, or one quotation."""

    text: str  # as typed (a quotation without its marks)
    key: str  # case-folded, without accents and apostrophes
    start: int
    end: int
    quoted: bool = False
    joined: bool = True  # no comma, full stop or bracket stands between this word and the one before


# A quotation in double quotes, a single word in single quotes, a word (apostrophes inside), a sign or emoji.
SAID = re.compile(
    r"""["“”„«](?P<double>[^"“”„«»]*)["“”„»] | (?<![^\W_])['‘](?P<single>[^\W_]+)['’](?![^\W_])"""
    r"""| (?P<word>\d+\.\d[^\W_]*|[^\W_]+(?:['’][^\W_]+)*)"""
    r"""| (?P<sign>[&+]|[©®‼⁉™〰〽㊗㊙\u2190-\u2bff\U0001f000-\U0001faff]+)""",
    re.VERBOSE,
)
BREAK = re.compile(r"[,.;:!?()\[\]{}|\n/]")


def fold(text: str) -> str:
    """Case-folded, without accents and apostrophes: "Piñata" -> "pinata", "King's" -> "kings"."""
    bare = text.replace("'", "").replace("’", "").casefold()
    if bare.isascii():
        return bare
    return "".join(c for c in unicodedata.normalize("NFKD", bare) if not unicodedata.combining(c)).casefold()


def scan(prompt: str) -> Iterator[Said]:
    """The words and quotations of a prompt (NFC-normalised, see `Said.start`) in order."""
    end = 0
    for match in SAID.finditer(prompt):
        name = match.lastgroup
        assert name is not None  # every alternative of SAID is named
        text = match[name]
        if name == "double" and not text.strip():
            continue
        yield Said(
            text=text,
            key=fold(text),
            start=match.start(),
            end=match.end(),
            quoted=name in ("double", "single"),
            joined=not BREAK.search(prompt, end, match.start()),
        )
        end = match.end()


def spell(word: Said) -> Part:
    """A quotation letter by letter between two quote tokens; what cannot be spelled is reported."""
    letters: list[str] = []
    unspelled = ""
    for character in " ".join(word.key.split()):
        if character == " ":
            letters.append(words.SPACE)
        elif f"<{character}>" in words.LETTERS:
            letters.append(f"<{character}>")
        else:
            unspelled += character
    unknown = Unknown(word=unspelled, position=word.start, reason=NOT_SPELLED) if unspelled else None
    tokens = (words.QUOTE, *letters, words.QUOTE) if letters else ()
    return Part(said=word.text, position=word.start, kind="quote", words=tokens, unknown=unknown)
