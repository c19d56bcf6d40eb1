"""What is said of a picture beside it: text files, JSON, and folders named as kohya's trainers name them."""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from limner.errors import DataError

TEXTS = (".txt", ".caption")  # suffixes of plain captions, the first that is there counts
SIDECARS = frozenset({*TEXTS, ".json"})
CAPTIONS = ("caption", "text", "prompt", "description")  # what a caption may be called, in this order
LONG = ("long_caption", "long", "detailed_caption")
LONGEST = 1_000_000  # bytes of a text beside a picture, at most
REPEATED = re.compile(r"(\d+)_(.*)", re.DOTALL)  # "10_sks dog": ten times an epoch, and what it shows
MOST_REPEATS = 1_000  # a larger number is a year or a count, no wish: "2023_holiday"


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What is known of a picture before anybody looks at it."""

    caption: str = ""
    long_caption: str = ""
    facts: dict[str, object] = field(default_factory=dict, hash=False)  # what JSON or a table can hold


def read(texts: Mapping[str, bytes], facts: tuple[str, ...] = ()) -> Said:
    """What files beside a picture say; `texts` is their content by suffix. A plain text goes before JSON.

    Raises DataError when one is no UTF-8, no JSON, or longer than a million bytes, and for captions that are
    no text.
    """
    said = Said()
    if ".json" in texts:
        try:
            table = json.loads(_text(texts[".json"]))
        except (ValueError, RecursionError) as error:
            raise DataError(f"its JSON is broken: {error}") from None
        if not isinstance(table, dict):
            raise DataError("its JSON is no table of names and values")
        said = of_table(table, facts, "" if any(suffix in texts for suffix in TEXTS) else None)
    for suffix in TEXTS:
        if suffix in texts:
            return Said(caption=clean(_text(texts[suffix])), long_caption=said.long_caption, facts=said.facts)
    return said


def of_table(table: Mapping[str, object], facts: tuple[str, ...] = (), column: str | None = None) -> Said:
    """What a row or a JSON file says: its caption, under `column` or a usual name, and the named `facts`.
    Raises DataError for captions that are no text."""
    return Said(
        caption=_first(table, CAPTIONS if column is None else (column,)),
        long_caption=_first(table, LONG),
        facts={name: table[name] for name in facts if name in table and not _missing(table[name])},
    )


def of_folders(names: Iterable[str]) -> tuple[int, str]:
    """(repeats, caption) by the innermost folder called as kohya does, such as "10_sks dog"; (1, "") if none
    is. A number over a thousand is taken for a year."""
    for name in reversed(list(names)):
        match = REPEATED.fullmatch(name)
        if match is not None and 1 <= int(match[1]) <= MOST_REPEATS:
            return int(match[1]), clean(match[2])
    return 1, ""


def clean(text: str) -> str:
    """One line of visible Unicode: white space is a single blank, controls are gone, letters are composed."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return unicodedata.normalize("NFC", "".join(c for c in text if unicodedata.category(c) != "Cc"))


def suffix_of(name: str) -> str:
    return PurePath(name).suffix.lower()


def _first(table: Mapping[str, object], names: Iterable[str]) -> str:
    """The first that is there; of several captions of one picture, the first."""
    for name in names:
        value = table.get(name)
        if isinstance(value, list):
            value = next((one for one in value if isinstance(one, str)), value[0] if value else None)
        if isinstance(value, str):
            return clean(value)
        if not _missing(value):
            raise DataError(f"its {name} is {repr(value)[:40]}, and no text")
    return ""


def _missing(value: object) -> bool:
    """Whether a cell is empty; tables say so by a number that is none, too."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(content: bytes) -> str:
    if len(content) > LONGEST:
        raise DataError(f"the text beside it has over {LONGEST:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"the text beside it is not UTF-8 ({error.reason} at byte {error.start})") from None
