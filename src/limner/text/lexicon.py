"""The words that Limner can draw: about 1,250 objects with plurals and synonyms, and how a prompt is read.

The objects stand in `lexicon.json`, one per line, reviewed by hand; their art is an icon name that four free
icon sets share. Synonyms were chosen with WordNet (Fellbaum 1998) at hand; keywords, which only serve
searching, come from the Unicode CLDR annotations. `scripts/build_lexicon.py` proposes both, so reading a
prompt needs neither.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from limner.errors import RequestError
from limner.text import words
from limner.text.nouns import pluralise, with_article
from limner.text.reading import (
    NEGATED,
    NOT_A_WORD,
    NOT_LEARNED,
    Kind,
    Part,
    Reading,
    Said,
    Unknown,
    fold,
    scan,
    spell,
)

CATEGORIES: tuple[str, ...] = (
    "animals", "food", "plants", "vehicles", "buildings", "places", "household", "tools", "stationery",
    "electronics", "instruments", "clothes", "sports", "toys", "celebration", "weather", "characters",
    "faces", "people", "body",
)  # fmt: skip


BETWEEN = re.compile(r"[\W_]+")


def surface_key(text: str) -> str:
    """What the spellings of one expression share: "T-Shirt" and "t shirt" are both "t shirt"."""
    if text.islower() and text.isascii() and text.replace(" ", "").isalnum():
        return text  # most of the lexicon, so loading stays quick
    folded = fold(text)
    return BETWEEN.sub(" ", folded).strip() or folded


class Form(NamedTuple):
    """What an expression stands for."""

    kind: Kind
    words: tuple[str, ...]  # canonical words, without <plural>
    became: str  # the canonical way to say it
    plural: bool = False
    either: bool = False  # the same expression says one and many: "two sheep", "two scissors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One object of the drawn world."""

    name: str  # canonical, lower case, 1 to 4 words: the model's token
    plural: str  # equals the name where English has one form for both
    art: str  # icon name, the same in all four sets
    category: str  # one of CATEGORIES
    synonyms: tuple[str, ...] = ()  # interchangeable when drawn; resolved and reported
    keywords: tuple[str, ...] = ()  # for searching only
    core: bool = False  # among the 299 that the built-in model learns first
    one: str | None = None  # how to say one of it, where "a NAME" is not English: "a pair of scissors"

    @property
    def singular(self) -> str:
        """With its article, for a caption: "an apple", "a pair of scissors"."""
        return self.one or with_article(self.name)


FIXED: dict[str, Form] = {
    surface_key(said): Form(kind, (word,), word)  # type: ignore[arg-type]
    for kind, members in words.CLASSES.items()
    for word, synonyms in members.items()
    for said in (word, *synonyms)
} | {surface_key(said): Form("dropped", (), said) for said in words.DROPPED}
FIXED |= {surface_key(said): Form("unknown", (), said) for said in words.UNSUPPORTED}
REPORTED = frozenset({"colour", "size", "setting", "style"})  # kinds whose synonyms are reported as resolved
LONGEST = 8  # words in the longest expression; checked by `catalogue.problems`


class Lexicon:
    """All entries, and the index of everything that a person may type for them.

    Args:
        entries: in the order of the file; `catalogue.problems` says whether they are consistent.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries: tuple[Entry, ...] = tuple(entries)
        self._by_name = {entry.name: entry for entry in self.entries}
        self.objects: dict[str, Form] = {}  # by surface key
        self._squashed: dict[str, Form] = {}
        index = self.objects.setdefault
        squash = self._squashed.setdefault
        for entry in self.entries:
            for said, plural, either in surfaces(entry):
                form = Form("object", (entry.name,), entry.plural if plural else entry.name, plural, either)
                key = surface_key(said)
                index(key, form)
                if " " in key:
                    squash(key.replace(" ", ""), form)

    def __len__(self) -> int:
        return len(self.entries)

    def entry(self, name: str) -> Entry:
        """The entry with this canonical name; without one, RequestError names the nearest."""
        found = self._by_name.get(name)
        if found is None:
            nearest = ", ".join(self.nearest(name))
            raise RequestError(f"{name!r} is not the name of an object; the nearest are: {nearest or 'none'}")
        return found

    def has(self, said: str) -> bool:
        """Whether an expression is understood, as an object or as one of the fixed words."""
        key = surface_key(said)
        return key in self.objects or key in FIXED or key.replace(" ", "") in self._squashed

    def with_words(self, learned: Mapping[str, tuple[str, ...]]) -> "Lexicon":
        """This lexicon with further words, {what is typed: its tokens}; they come before words of its own
        that are typed alike."""
        more = copy(self)
        forms = {surface_key(said): Form("learned", tokens, said) for said, tokens in learned.items()}
        more.objects = self.objects | forms
        return more

    def read(self, prompt: str, known: frozenset[str] | None = None) -> Reading:
        """Read a prompt into canonical words; any string is read, none raises.

        Args:
            prompt: as typed. The longest expression wins; case, accents, punctuation, hyphens and spaces
            inside
                an expression do not matter; words in quotes are spelled. Typing errors are reported, not
                mended.
            known: names of the objects that a model has learned; None means all of the lexicon. An object
            outside
                is reported as unknown, unless shorter expressions that are known say the same words.
        """
        prompt = unicodedata.normalize("NFC", prompt)
        said = list(scan(prompt))
        parts: list[Part] = []
        position = 0
        many = False  # a count above one waits for its noun
        while position < len(said):
            word = said[position]
            if word.quoted:
                parts.append(spell(word))
                position += 1
                continue
            length, form = self._match(said, position, known)
            typed = prompt[word.start : said[position + length - 1].end]
            if form is None or form.kind == "unknown" or (form.kind == "object" and not learned(form, known)):
                parts.append(self._report(word, typed, form, known))
                many = False
            else:
                became = None
                if form.kind == "object":
                    plural = form.plural or (many and form.either)
                    became = form.became if differs(typed, self._by_name[form.words[0]]) else None
                    tokens = (*form.words, words.PLURAL) if plural else form.words
                else:
                    tokens = form.words
                    if form.kind in REPORTED and surface_key(typed) != surface_key(form.became):
                        became = form.became
                    if surface_key(typed) in FILLERS and parts and parts[-1].words == ("a",):
                        parts[-1] = replace(parts[-1], kind="dropped", words=())
                parts.append(
                    Part(said=typed, position=word.start, kind=form.kind, words=tokens, became=became)
                )
                if form.kind == "count":
                    many = form.words != ("one",)
                elif form.kind not in ("colour", "size", "learned"):
                    many = False
            position += length
        return Reading(parts=tuple(parts))

    def nearest(self, word: str, known: frozenset[str] | None = None, limit: int = 3) -> tuple[str, ...]:
        """Up to `limit` words that may have been meant, best first: close spellings and objects of that
        keyword or category, each object once."""
        key = surface_key(word)
        hints = words.UNSUPPORTED.get(key, words.HINTS.get(key))
        if hints is not None:
            return tuple(hint for hint in hints if self._usable(hint, known))[:limit]
        described = self._described.get(key) or self._described.get(key.removesuffix("s"), [])
        related = [(RELATED, name) for name in described if learned_name(name, known)]
        close = [(ratio, said) for ratio, said in self._close(key) if self._usable(said, known)]
        ranked = sorted(close + related, key=lambda pair: -pair[0])
        offered: dict[str, str] = {}
        for _, said in ranked:
            form = self.objects.get(surface_key(said)) or FIXED[surface_key(said)]
            offered.setdefault(form.words[0], said)
        return tuple(offered.values())[:limit]

    def _match(
        self, said: Sequence[Said], start: int, known: frozenset[str] | None, longest: int = LONGEST
    ) -> tuple[int, Form | None]:
        """The longest expression that begins at `start`: (number of words, what it stands for or None)."""
        reach = 1
        while reach < longest and start + reach < len(said):
            following = said[start + reach]
            if following.quoted or not following.joined:
                break
            reach += 1
        for length in range(reach, 0, -1):
            form = self._look_up(said, start, length)
            if form is None:
                continue
            unlearned = form.kind == "object" and not learned(form, known)
            if unlearned and length > 1 and self._covered(said, start, length, known):
                continue
            if form.words == ("two",) and said[start].key == "a":  # "a pair of scissors" is one
                inner, noun = self._match(said, start + 1, known)
                if noun is not None and noun.kind == "object" and inner >= length:
                    return 1, FIXED["a"]
            if form.words == ("two",) and self._pair_of_one(said, start, length):
                return length, FIXED["a"]
            return length, form
        return 1, None

    def _pair_of_one(self, said: Sequence[Said], start: int, length: int) -> bool:
        """Whether "a pair of" is said of one thing, whose colour or size stands between: "of red jeans"."""
        keys = [word.key for word in said[start : start + length]]
        noun = start + length
        while noun < len(said) and not said[noun].quoted and said[noun].joined:
            form = FIXED.get(said[noun].key)
            if form is None or not (form.kind in ("colour", "size") or form.words == ("and",)):
                break
            noun += 1
        else:
            return False
        return keys[-2:] == ["pair", "of"] and f"pair of {said[noun].key}" in self.objects

    def _look_up(self, said: Sequence[Said], start: int, length: int) -> Form | None:
        """What exactly these words stand for."""
        keys = [word.key for word in said[start : start + length]]
        if length == 1:
            text = said[start].text
            key = keys[0][:-1] if text.endswith(("'s", "’s")) else keys[0]
            if key == "orange" and self._is_colour(said, start):
                return FIXED[key]
            form = self.objects.get(key) or FIXED.get(key) or self._squashed.get(key)
            return form or FIXED.get(spelling(key))
        key = " ".join(keys)
        form = self.objects.get(key) or FIXED.get(key)
        if form is None and not any(part in FIXED for part in keys):
            form = self.objects.get("".join(keys)) or self._squashed.get("".join(keys))
            if form is None:
                form = self.objects.get(" ".join(map(spelling, keys)))
        return form

    def _is_colour(self, said: Sequence[Said], start: int) -> bool:
        """Whether "orange" is the colour here: before a noun or a background, or after "is" or "to"."""
        if start and said[start - 1].key in ("is", "are", "to"):
            return True
        after = start + 1
        if after < len(said) and not said[after].joined:
            return False
        last = "colour"
        while after < len(said) and not said[after].quoted:
            form = FIXED.get(said[after].key)
            if form is None or not (form.kind in ("colour", "size") or form.words in (("and",), ("to",))):
                break
            if said[after].key == "orange" and after + 1 == len(said):
                break
            last = form.kind if form.kind != "function" else form.words[0]
            after += 1
        if after >= len(said) or said[after].quoted:
            return False
        if last == "to":
            return self._match(said, after - 1, None)[0] == 1 and last != "and"
        form = self._match(said, after, None)[1]
        return (
            last != "and"
            and form is not None
            and (form.kind in ("object", "setting", "learned") or form.words in GROUNDS)
        )

    def _covered(self, said: Sequence[Said], start: int, length: int, known: frozenset[str] | None) -> bool:
        """Whether shorter expressions that the model knows say all of these words."""
        position, end = start, start + length
        while position < end:
            size, form = self._match(said, position, known, min(length - 1, end - position))
            if form is None or (form.kind == "object" and not learned(form, known)):
                return False
            position += size
        return True

    def _report(self, word: Said, typed: str, form: Form | None, known: frozenset[str] | None) -> Part:
        """The part for a word, or an expression, that nothing can be made of."""
        if form is not None and form.kind == "object":
            reason, nearest = NOT_LEARNED, self._relatives(form.words[0], known)
        elif word.key in words.NEGATIONS:
            reason, nearest = NEGATED, ()
        else:
            reason, nearest = NOT_A_WORD, self.nearest(typed, known)
        unknown = Unknown(word=typed, position=word.start, nearest=nearest, reason=reason)
        return Part(said=typed, position=word.start, kind="unknown", unknown=unknown)

    def _relatives(self, name: str, known: frozenset[str] | None, limit: int = 3) -> tuple[str, ...]:
        """Learned objects of the same category, those that share most words and keywords first; then others
        that share some."""
        from difflib import SequenceMatcher

        entry = self._by_name[name]
        about = describing(entry)
        learned_here = [
            other
            for other in self.entries
            if other.category == entry.category and learned_name(other.name, known)
        ]
        rated = sorted(
            ((len(about & describing(other)), SequenceMatcher(None, name, other.name).ratio(), other.name))
            for other in learned_here
        )
        found = [other for _, _, other in reversed(rated)][:limit]
        if len(found) < limit:
            strangers = (other for other in self.entries if learned_name(other.name, known))
            shared = sorted(
                ((len(about & describing(other)), other.name) for other in strangers), reverse=True
            )
            found += [other for count, other in shared if count and other not in found]
        return tuple(found[:limit])

    def _usable(self, said: str, known: frozenset[str] | None) -> bool:
        form = self.objects.get(surface_key(said))
        taught = form is not None and form.kind == "learned"
        return form is None or taught or surface_key(said) in FIXED or learned(form, known)

    def _close(self, key: str) -> list[tuple[float, str]]:
        """(similarity, expression) of those spelled much like `key`; shared letter pairs choose whom to
        compare."""
        from difflib import SequenceMatcher

        sayings, holders = self._pairs
        mine = pairs(key)
        shared = Counter(index for pair in mine for index in holders.get(pair, ()))
        likely = [index for index, count in shared.items() if 4 * count >= len(sayings[index]) + len(key)]
        matcher = SequenceMatcher(None, "", key)  # caches what it knows of its second text
        close = []
        for index in likely:
            matcher.set_seq1(sayings[index])
            ratio = matcher.ratio() if matcher.real_quick_ratio() >= ALIKE_SHORT else 0.0
            if ratio >= (ALIKE_SHORT if len(key) <= 4 else ALIKE):
                close.append((ratio, sayings[index]))
        return close

    @cached_property
    def _described(self) -> dict[str, list[str]]:
        """For each keyword and category ("animals", "animal") the names of its entries."""
        names: dict[str, list[str]] = {}
        for entry in self.entries:
            for word in {entry.category, entry.category.removesuffix("s"), *entry.keywords}:
                names.setdefault(word, []).append(entry.name)
        return names

    @cached_property
    def _pairs(self) -> tuple[list[str], dict[str, list[int]]]:
        """All singular expressions, and for each pair of letters those that contain it."""
        sayings = [key for key, form in FIXED.items() if form.words and key[0].isalpha()]
        sayings += [surface_key(said) for entry in self.entries for said in (entry.name, *entry.synonyms)]
        holders: dict[str, list[int]] = {}
        for index, said in enumerate(sayings):
            for pair in pairs(said):
                holders.setdefault(pair, []).append(index)
        return sayings, holders


ALIKE, ALIKE_SHORT = 0.71, 0.66  # least similarity of a suggestion, and of one for a word of up to 4 letters
RELATED = 0.86  # a shared keyword is better than a spelling less alike than this
GROUNDS = (("background",), ("gradient",))
FILLERS = frozenset(map(surface_key, words.FILLER_NOUNS))


def surfaces(entry: Entry) -> Iterator[tuple[str, bool, bool]]:
    """Everything that may be said for an entry: (expression, is it plural, does it say one and many
    alike)."""
    yield entry.name, False, entry.one is not None or entry.plural == entry.name
    if entry.plural != entry.name:
        yield entry.plural, True, False
    if entry.one is not None:
        yield entry.one.partition(" ")[2], False, False  # without its article
    for said in entry.synonyms:
        listed = entry.one is not None and said.endswith("s")  # "shades", "trousers": a plural already
        plural = said if listed else pluralise(said)
        yield said, False, plural == said
        if plural != said:
            yield plural, True, False


def describing(entry: Entry) -> set[str]:
    """The single words that an entry's name, synonyms and keywords are made of."""
    phrases = (entry.name, *entry.synonyms, *entry.keywords)
    return {word for said in phrases for word in surface_key(said).split()}


def differs(typed: str, entry: Entry) -> bool:
    """Whether the noun itself was another one, and not only its number, case or hyphens."""
    bare = surface_key(typed.removesuffix("'s").removesuffix("’s")).replace(" ", "")
    own = (entry.name, entry.plural, (entry.one or "").partition(" ")[2])
    return bare not in [surface_key(said).replace(" ", "") for said in own]


def learned_name(name: str, known: frozenset[str] | None) -> bool:
    return known is None or name in known


def learned(form: Form, known: frozenset[str] | None) -> bool:
    return learned_name(form.words[0], known)


def spelling(key: str) -> str:
    return words.SPELLINGS.get(key, key)


def pairs(key: str) -> set[str]:
    """Letter pairs with both ends marked: "cat" -> " c", "ca", "at", "t "."""
    marked = f" {key} "
    return {marked[i : i + 2] for i in range(len(marked) - 1)}


@cache
def load_lexicon() -> Lexicon:
    """The lexicon that comes with the package; read once, when first asked for."""
    rows = json.loads(Path(__file__).with_name("lexicon.json").read_bytes())
    return Lexicon(
        Entry(
            name=row["name"],
            plural=row["plural"],
            art=row["art"],
            category=row["category"],
            synonyms=tuple(row["synonyms"]),
            keywords=tuple(row["keywords"]),
            core=row["core"],
            one=row.get("one"),
        )
        for row in rows
    )
