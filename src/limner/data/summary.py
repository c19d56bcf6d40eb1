"""What is in a data set, in numbers: for whoever is about to train on it. Reads every record once."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from limner.data.records import DataSet, Finished, Record

ASPECTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.45, 1.7, 2.0, 2.5)  # width / height where bars meet
SIDES = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048)  # pixels of the shorter side where bars meet
LENGTHS = (1, 6, 11, 21, 41, 78)  # words of a caption where bars meet; CLIP reads about 75 tokens
WORDS = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
COMMON = frozenset(
    {"a", "an", "and", "at", "by", "for", "in", "is", "it", "of", "on", "or", "the", "to", "with"}
)
MOST_WORDS = 200_000  # different words that are counted; rare ones are forgotten beyond
SHOWN = 64  # pictures on a contact sheet, at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A set in numbers."""

    steps: tuple[Finished, ...]
    pictures: int
    shown: int  # pictures of an epoch: each counts as often as it is repeated
    pixels: tuple[int, int, int]  # of the smallest, the median (within a tenth) and the largest picture
    sides: dict[str, int]  # bars of the shorter side, in pixels
    aspects: dict[str, int]  # bars of width / height
    captions: dict[str, int]  # bars of words in a caption, "none" among them
    long_captions: int  # pictures that have one
    words: tuple[tuple[str, int], ...]  # the most frequent ones
    repeats: dict[int, int]  # repeats -> pictures
    facts: tuple[str, ...]  # what steps found out of at least one picture
    rejects: dict[str, int]  # "step: reason" -> pictures
    sheet: tuple[Record, ...]  # evenly spread over the set


def summarise(data: DataSet, *, words: int = 20, shown: int = SHOWN) -> Summary:
    """Count what the newest state of a set holds. Raises DataError when a part is missing or broken."""
    sides, aspects, captions = [0] * (len(SIDES) + 1), [0] * (len(ASPECTS) + 1), [0] * (len(LENGTHS) + 1)
    areas: Counter[int] = Counter()  # by tenths of an e-fold, so that their number is bounded
    said: Counter[str] = Counter()
    repeats: Counter[int] = Counter()
    facts: dict[str, None] = {}
    count = long = 0
    least, most = math.inf, 0
    every = max(1, math.ceil(len(data) / shown)) if shown else 0
    sheet = []
    for record in data.records():
        if every and count % every == 0:
            sheet.append(record)
        count += 1
        repeats[record.repeats] += 1
        long += bool(record.long_caption)
        facts.update(dict.fromkeys(record.facts))
        spoken = WORDS.findall(record.caption.lower())
        captions[_bar(LENGTHS, len(record.caption.split()))] += 1
        said.update(word for word in spoken if word not in COMMON)
        if len(said) > MOST_WORDS:
            said = Counter(dict(said.most_common(MOST_WORDS // 2)))
        if record.width and record.height:
            area = record.width * record.height
            least, most = min(least, area), max(most, area)
            areas[round(10 * math.log(area))] += 1
            sides[_bar(SIDES, min(record.width, record.height))] += 1
            aspects[_bar(ASPECTS, record.width / record.height)] += 1
    return Summary(
        steps=data.steps,
        pictures=count,
        shown=sum(times * pictures for times, pictures in repeats.items()),
        pixels=(int(least), _median(areas, int(least), most), most) if areas else (0, 0, 0),
        sides=_bars(SIDES, sides),
        aspects=_bars(ASPECTS, aspects),
        captions={"none" if name == "under 1" else name: n for name, n in _bars(LENGTHS, captions).items()},
        long_captions=long,
        words=tuple(said.most_common(words)),
        repeats=dict(sorted(repeats.items())),
        facts=tuple(facts),
        rejects={f"{step.name}: {reason}": n for step in data.steps for reason, n in step.rejects.items()},
        sheet=tuple(sheet),
    )


def _bar(edges: Sequence[int | float], value: int | float) -> int:
    return sum(value >= edge for edge in edges)


def _bars(edges: Sequence[int | float], counts: Sequence[int]) -> dict[str, int]:
    """Names of the bars, from "under A" over "A to B" to "from Z"."""
    names = [f"under {edges[0]}"]
    names += [f"{low} to {high}" for low, high in pairwise(edges)]
    return dict(zip([*names, f"from {edges[-1]}"], counts, strict=True))


def _median(areas: Counter[int], least: int, most: int) -> int:
    left = areas.total() / 2
    for tenth, count in sorted(areas.items()):
        left -= count
        if left <= 0:
            return min(max(round(math.exp(tenth / 10)), least), most)
    return most
