"""Which pictures are fit to learn from: large enough, sharp, not empty, not full of text, not blocked."""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from PIL import Image

from limner.data.hashes import difference, phash
from limner.data.lettering import text_share
from limner.data.looks import aspect, entropy, sharpness, small_grey
from limner.data.pictures import LARGEST, PictureError, open_picture, read_bytes
from limner.data.records import Record, Reject
from limner.data.steps import Outcome
from limner.errors import ConfigError, DataError

NEAR = 8  # bits of a blocked perceptual hash that may differ
BATCH = 16  # pictures that a judge is shown at once
Judge = Callable[[list[Image.Image]], list[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """What is not wanted, whatever it looks like."""

    words: tuple[str, ...] = ()  # in captions: whole words or phrases, whatever their case
    keys: tuple[str, ...] = ()  # patterns with * and ?, such as "web_*"
    phashes: tuple[str, ...] = ()  # 16 hexadecimal digits; what is within 8 bits goes
    sha256: tuple[str, ...] = ()  # 64 hexadecimal digits, of the encoded file

    def __post_init__(self) -> None:
        if not all(word.strip() for word in self.words):
            raise ConfigError("a blocked word is blank, and every caption has that; name one")


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """A step that leaves out what is not fit, says why, and notes `sharpness`, `entropy` and `text` of the
    rest. Cheap tests come first, and one reason is enough."""

    name: ClassVar[str] = "filter"
    size: int = 64  # pixels of the shorter side, at least
    aspect: float = 4.0  # longer side by shorter side, at most
    sharpness: float = 3.0  # of `looks.sharpness`, at least; 0: any. Photographs have 100s, drawings 5 and up
    entropy: float = 0.5  # bits of the grey levels, at least; 0: any
    text: float = 1.0  # share covered by text, at most; 1: any, unmeasured
    largest: int = LARGEST  # pixels of a picture, at most
    block: Block = field(default_factory=Block)
    scores: str = ""  # a .parquet or .csv of key and score; empty: none
    stamp: str = ""  # of that file: kept with the settings, so that a change of it is seen
    score: float = 0.0  # from the file or from `judge`, at least
    judge: Judge | None = None  # says of pictures how good each is; of a module that workers can import

    def __post_init__(self) -> None:
        for name, low, high in (("text", 0, 1), ("entropy", 0, 8), ("aspect", 1, 1e6), ("sharpness", 0, 1e9)):
            if not low <= (value := getattr(self, name)) <= high:
                raise ConfigError(f"{name} is from {low} to {high:g}, got {value}")
        if self.size < 0 or self.largest < 1:
            raise ConfigError(f"sizes are positive numbers of pixels, got {self.size} and {self.largest}")
        if self.scores and self.judge is not None:
            raise ConfigError("scores come from a file or from a judge, not from both")

    def part(self, records: list[Record]) -> Outcome:
        """Raises DataError when the file of scores cannot be read, or the judge does not say a number for
        each picture."""
        kept: list[Record] = []
        rejects: list[Reject] = []
        scores = read_scores(Path(self.scores), [record.key for record in records]) if self.scores else {}
        for first in range(0, len(records), BATCH):
            some: list[Record] = []
            pictures: list[Image.Image] = []  # held for the judge only
            for record in records[first : first + BATCH]:
                looked = self._look(record, scores)
                if isinstance(looked, Reject):
                    rejects.append(looked)
                else:
                    some.append(looked[0])
                    pictures += [looked[1]] if self.judge is not None else []
            for record, score in zip(some, self._judged(pictures, len(some)), strict=True):
                if score is not None and not score >= self.score:
                    rejects.append(_reject(record, "low score", f"{score:.4g}, below {self.score:g}"))
                elif score is not None:
                    kept.append(replace(record, facts=record.facts | {"score": score}))
                else:
                    kept.append(record)
        return Outcome(kept=kept, rejects=rejects)

    def _look(self, record: Record, scores: dict[str, float]) -> tuple[Record, Image.Image] | Reject:
        if why := self._unwanted(record):
            return _reject(record, "blocked", why)
        facts = dict(record.facts)
        if self.scores:
            score = scores.get(record.key)
            if score is None:
                return _reject(record, "unscored", f"{self.scores} has no score of it")
            if score < self.score:
                return _reject(record, "low score", f"{score:.4g}, below {self.score:g}")
            facts["score"] = score
        try:
            picture = open_picture(record.picture, largest=self.largest)
        except PictureError as error:
            return _reject(record, error.reason, str(error))
        width, height = picture.size
        if min(width, height) < self.size:
            return _reject(record, "small", f"{width} x {height}, the shorter side below {self.size}")
        if (long := aspect(width, height)) > self.aspect:
            return _reject(record, "narrow", f"{width} x {height}, {long:.2f} to 1, above {self.aspect:g}")
        grey = small_grey(picture)
        bits, sharp = round(entropy(grey), 3), round(sharpness(grey), 2)
        if bits < self.entropy:
            return _reject(record, "empty", f"entropy {bits}, below {self.entropy:g} bits")
        if sharp < self.sharpness:
            return _reject(record, "blurred", f"sharpness {sharp}, below {self.sharpness:g}")
        facts |= {"entropy": bits, "sharpness": sharp}
        if self.text < 1:
            share = round(text_share(picture), 4)
            if share > self.text:
                return _reject(record, "text", f"on {share:.0%} of it, above {self.text:.0%}")
            facts["text"] = share
        if self.block.phashes:
            own = phash(picture)
            near = [one for one in self.block.phashes if difference(own, int(one, 16)) <= NEAR]
            if near:
                return _reject(record, "blocked", f"looks like the blocked picture {near[0]}")
        return replace(record, width=width, height=height, facts=facts), picture

    def _unwanted(self, record: Record) -> str:
        """Why it is on the block list, before it is opened, or nothing."""
        block = self.block
        if block.words:
            text = f"{record.caption}\n{record.long_caption}"
            if found := _pattern(block.words).search(text):
                return f"its caption says {found[0]!r}"
        for pattern in block.keys:
            if fnmatchcase(record.key, pattern):
                return f"its key is {record.key!r}"
        if block.sha256:
            try:
                digest = hashlib.sha256(read_bytes(record.picture)).hexdigest()
            except PictureError:
                return ""  # it is left out for that soon
            if digest in block.sha256:
                return f"its file is {digest[:12]}..."
        return ""

    def _judged(self, pictures: list[Image.Image], count: int) -> Sequence[float | None]:
        if self.judge is None or count == 0:
            return [None] * count
        said = [float(score) for score in self.judge(pictures)]
        if len(said) != count:
            raise DataError(f"the judge gave {len(said)} scores for {count} pictures")
        return said


def read_block(path: Path) -> Block:
    """A text file of what is not wanted, one a line: a word or phrase of captions, or after "key:", "phash:"
    or "sha256:" one of those. Lines that begin with # say nothing. Raises DataError."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the block list {path}: {error}") from None
    held: dict[str, list[str]] = {"words": [], "keys": [], "phashes": [], "sha256": []}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        kind, colon, value = line.partition(":")
        value = value.strip()
        match kind.strip().lower() if colon else "":
            case "key" if value:
                held["keys"].append(value)
            case "phash" if re.fullmatch(r"[0-9a-fA-F]{16}", value):
                held["phashes"].append(value.lower())
            case "sha256" if re.fullmatch(r"[0-9a-fA-F]{64}", value):
                held["sha256"].append(value.lower())
            case "word" if value:
                held["words"].append(value)
            case "key" | "phash" | "sha256" | "word":
                raise DataError(f"{path}, line {number}: {line!r} has no {kind}")
            case _:
                held["words"].append(line)
    return Block(**{name: tuple(values) for name, values in held.items()})


def read_scores(path: Path, keys: Sequence[str]) -> dict[str, float]:
    """The column `score` of a .parquet or .csv file for these of its column `key`. Raises DataError."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as pc  # type: ignore[import-untyped]
    import pyarrow.csv as pcsv  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        if path.suffix.lower() == ".parquet":
            table = pq.ParquetFile(path).read(columns=["key", "score"], use_threads=False)
        else:
            wanted = pcsv.ConvertOptions(
                include_columns=["key", "score"], column_types={"key": pa.string(), "score": pa.float64()}
            )
            table = pcsv.read_csv(path, convert_options=wanted)
        wanted_keys = pa.array(keys, pa.string())
        table = table.filter(pc.is_in(table["key"].cast(pa.string()), value_set=wanted_keys))
        scores = table["score"].cast(pa.float64()).to_pylist()
        named = zip(table["key"].cast(pa.string()).to_pylist(), scores, strict=True)
        return {key: score for key, score in named if score is not None and not math.isnan(score)}
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(
            f"{path} holds no scores: {error}. It is a .parquet or .csv file with the columns key and score"
        ) from None


@lru_cache(8)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    phrases = sorted((r"\s+".join(map(re.escape, word.split())) for word in words), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", re.IGNORECASE)


def _reject(record: Record, reason: str, detail: str) -> Reject:
    return Reject(key=record.key, picture=record.picture, reason=reason, detail=detail)
