"""Groups that nobody labelled: pictures that are alike, named by the words of their captions."""

import io
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import nsmallest
from pathlib import Path
from typing import ClassVar

import numpy as np

from limner.data.clusters import choose, k_means, principal
from limner.data.embeddings import FACT, LOOKS, decode
from limner.data.pictures import thumbnails
from limner.data.records import DataSet, Record, write_whole
from limner.data.steps import Outcome, Progress, write
from limner.errors import ConfigError, DataError

GROUPS = 100  # at most
SHOWN = 48  # pictures on a sheet
THUMBNAIL = 96  # pixels of the longer side
SURE = 1.96  # standard deviations that a word's log-odds are away from chance, at least
PRIOR = 0.05  # strength of what is expected of a word, as a share of all words said
WORD = re.compile(r"[^\W\d_]{3,30}")
COMMON = frozenset(
    "the and with for from that this its his her are was has one two three four very some photo picture "  # noqa: SIM905
    "image drawing painting illustration style into onto over under above below left right top bottom "
    "background front behind next near".split()
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A step that puts every record into a group, as the fact `group`, by its embedding."""

    name: ClassVar[str] = "group"
    groups: int | None = None  # how many; None: as many as fit best, 12 at most
    seed: int = 0
    source: str = LOOKS  # of the embeddings: kept with the settings, so that a change of it is seen
    verdicts: dict[str, str] = field(default_factory=dict, hash=False)  # key -> group; filled in by `gather`

    def __post_init__(self) -> None:
        if self.groups is not None and not 1 <= self.groups <= GROUPS:
            raise ConfigError(f"there are from 1 to {GROUPS} groups, got {self.groups}")

    def gather(self, data: DataSet) -> "Group":
        """With the group of each record. Raises DataError when a record lacks the fact `embedding`, or there
        are fewer different pictures than groups."""
        keys, captions, rows = [], [], []
        for record in data.records():
            if FACT not in record.facts:
                raise DataError(
                    f"{record.key} lacks an embedding, by which pictures are grouped; "
                    "`limner data group` takes the step that notes it first"
                )
            keys.append(record.key)
            captions.append(record.caption or record.long_caption)
            rows.append(decode(str(record.facts[FACT])))
        if not rows:
            return self
        if len({row.shape for row in rows}) > 1:
            raise DataError("the embeddings of this set have several lengths; make them all by one model")
        vectors = principal(np.stack(rows))
        count = choose(vectors, self.seed) if self.groups is None else self.groups
        try:
            labels = k_means(vectors, count, self.seed).tolist()
        except ValueError:
            told = f"{len(keys)} pictures, some of them alike, are too few for {count} groups"
            raise DataError(told) from None
        called = names(captions, labels, count)
        return replace(self, verdicts={key: called[label] for key, label in zip(keys, labels, strict=True)})

    def part(self, records: list[Record]) -> Outcome:
        """The embedding goes; it has done its work."""
        kept = [
            replace(
                record,
                facts={name: fact for name, fact in record.facts.items() if name != FACT}
                | {"group": self.verdicts[record.key]},
            )
            for record in records
        ]
        return Outcome(kept=kept)


def names(captions: Sequence[str], labels: Sequence[int], count: int) -> list[str]:
    """A name for each of `count` groups: the word that its captions say more often than the others', by
    log-odds with a prior (Monroe et al. 2008, equation 22); where that could be chance, "group-3", counted
    from 1.

    All are different, of lower-case letters, digits and "-", so that they can name files.
    """
    said = [Counter[str]() for _ in range(count)]
    for caption, label in zip(captions, labels, strict=True):
        words = {word for word in WORD.findall(caption.lower()) if word not in COMMON}
        said[label].update(words)
    total = Counter[str]()
    for words_of in said:
        total.update(words_of)
    taken: set[str] = set()
    called = [""] * count
    ranked = [(score, group, word) for group in range(count) for word, score in _odds(said[group], total)]
    for score, group, word in sorted(ranked, key=lambda one: (-one[0], one[1], one[2])):
        if score >= SURE and not called[group] and word not in taken:
            called[group] = word
            taken.add(word)
    return [name or f"group-{number}" for number, name in enumerate(called, 1)]


def sheets(data: DataSet, folder: Path) -> dict[str, Path]:
    """A contact sheet of each group of a grouped set, SHOWN pictures of it by lot, as folder/NAME.png. Raises
    DataError when the set has no groups, or a file cannot be written."""
    from limner.util.images import sheet  # brings torch, which the workers of a step need not wait for

    for old in folder.glob("*.png"):
        old.unlink()
    written: dict[str, Path] = {}
    for name in sizes(data):
        members = (record for record in data.records() if record.facts.get("group") == name)
        chosen = nsmallest(SHOWN, members, key=lambda one: (zlib.crc32(one.key.encode()), one.key))
        shown = list(thumbnails((one.picture for one in chosen), THUMBNAIL))
        if shown:
            encoded = io.BytesIO()
            sheet(shown).save(encoded, "PNG", optimize=True)
            written[name] = folder / f"{name}.png"
            write_whole(written[name], encoded.getvalue())
    return written


def sizes(data: DataSet) -> dict[str, int]:
    """How many records each group has, the largest first. Raises DataError when the set has no groups."""
    counts: Counter[str] = Counter()
    for record in data.records():
        if not isinstance(group := record.facts.get("group"), str):
            raise DataError(f"{data.folder} has no groups; `limner data group` finds them")
        counts[group] += 1
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def split(data: DataSet, folder: Path) -> Iterator[tuple[Path, Progress]]:
    """A set of its own for each group, in folder/NAME; the pictures stay where they are. Cut short, it goes
    on: sets that it has made of this very grouping stay. Raises DataError when another one is there."""
    for name in sizes(data):
        members = (record for record in data.records() if record.facts.get("group") == name)
        told: dict[str, object] = {
            "of": str(data.folder),
            "group": name,
            "set": data.sign,
            "step": data.steps[-1].folder,
        }
        there = (folder / name / "set.json").exists()
        own = DataSet.open(folder / name) if there else DataSet.create(folder / name)
        if own.steps and (own.steps[0].name, own.steps[0].settings) == ("split", told):
            continue
        if own.steps:
            raise DataError(f"{own.folder} is a set of something else already; move it elsewhere")
        for progress in write(own, "split", told, members):
            yield own.folder, progress


def _odds(words: Counter[str], total: Counter[str]) -> Iterator[tuple[str, float]]:
    """(word, z) for each word of a group against all others."""
    inside, everywhere = words.total(), total.total()
    outside = everywhere - inside
    if outside == 0:
        return
    for word, count in words.items():
        prior = max(0.01, PRIOR * total[word])
        all_prior = max(1.0, PRIOR * everywhere)
        others = total[word] - count
        here = math.log((count + prior) / max(1e-9, inside + all_prior - count - prior))
        there = math.log((others + prior) / max(1e-9, outside + all_prior - others - prior))
        yield word, (here - there) / math.sqrt(1 / (count + prior) + 1 / (others + prior))
