"""Near duplicates: found, told whose they are, and left out. The largest of each group stays.

Two steps over a set: `Hash` (or `Embed`, from embeddings.py) notes what a picture looks like, and `Dedup`
compares. Pictures are taken from the largest to the smallest, and one is left out when it is near one that
stays; so whatever goes is really near what is kept, and not by way of a third picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from limner.data.embeddings import FACT, decode
from limner.data.hashes import FURTHEST, Index, phash, same_tint, tint
from limner.data.pictures import LARGEST, PictureError, open_picture
from limner.data.records import DataSet, Fact, Record, Reject
from limner.data.steps import Outcome
from limner.errors import ConfigError, DataError

BLOCK = 512  # embeddings that are compared at once
DISTANCE = 8  # bits
SIMILARITY = 0.96  # cosine


@dataclass(frozen=True, kw_only=True, slots=True)
class Hash:
    """A step that notes each picture's perceptual hash and tint, as the facts `phash` and `tint`. What cannot
    be read is left out."""

    name: ClassVar[str] = "hash"
    largest: int = LARGEST  # pixels of a picture, at most

    def part(self, records: list[Record]) -> Outcome:
        """Raises nothing: a broken picture is a reject."""
        kept: list[Record] = []
        rejects: list[Reject] = []
        for record in records:
            try:
                picture = open_picture(record.picture, largest=self.largest)
            except PictureError as error:
                rejects.append(
                    Reject(key=record.key, picture=record.picture, reason=error.reason, detail=str(error))
                )
                continue
            told: dict[str, Fact] = {
                "phash": f"{phash(picture):016x}",
                "tint": tint(picture).tobytes().hex(),
            }
            width, height = picture.size
            kept.append(replace(record, width=width, height=height, facts=record.facts | told))
        return Outcome(kept=kept, rejects=rejects)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dedup:
    """A step that leaves out near duplicates by the facts of `Hash` or of `Embed`. Exact for the hashes and
    for the embeddings alike; 100,000 hashes take about 20 seconds of one core at distance 8."""

    name: ClassVar[str] = "dedup"
    by: Literal["hash", "embedding"] = "hash"
    distance: int = DISTANCE  # bits of 64 that the hashes of duplicates differ in, at most
    similarity: float = SIMILARITY  # cosine of the embeddings of duplicates, at least
    source: str = ""  # of the embeddings: kept with the settings, so that a change of it is seen
    verdicts: dict[str, tuple[str, str]] = field(
        default_factory=dict, hash=False
    )  # key -> what it duplicates, how near; filled in by `gather`

    def __post_init__(self) -> None:
        if self.by not in ("hash", "embedding"):
            raise ConfigError(f'duplicates are found by "hash" or "embedding", got {self.by!r}')
        if not 0 <= self.distance <= FURTHEST:
            raise ConfigError(f"the distance is from 0 to {FURTHEST} bits, got {self.distance}")
        if not 0 < self.similarity <= 1:
            raise ConfigError(f"the similarity is above 0 and at most 1, got {self.similarity}")

    def gather(self, data: DataSet) -> "Dedup":
        """With the verdicts over the whole set. Raises DataError when a record lacks the facts."""
        found = self._by_hash(data) if self.by == "hash" else self._by_embedding(data)
        return replace(self, verdicts=dict(found))

    def part(self, records: list[Record]) -> Outcome:
        """Leave out what has a verdict; the rest keeps its `phash`, and nothing else of what was compared."""
        kept: list[Record] = []
        rejects: list[Reject] = []
        for record in records:
            if (verdict := self.verdicts.get(record.key)) is not None:
                told = f"of {verdict[0]}: {verdict[1]}"
                rejects.append(
                    Reject(key=record.key, picture=record.picture, reason="duplicate", detail=told)
                )
            else:
                facts = {name: fact for name, fact in record.facts.items() if name not in ("tint", FACT)}
                kept.append(replace(record, facts=facts))
        return Outcome(kept=kept, rejects=rejects)

    def _by_hash(self, data: DataSet) -> Iterator[tuple[str, tuple[str, str]]]:
        rows, facts = _from_largest(data, ("phash", "tint"))
        hashes = [int(row[0], 16) for row in facts]
        tints = [np.frombuffer(bytes.fromhex(row[1]), np.uint8).reshape(-1, 3) for row in facts]
        index = Index(self.distance)
        places: list[_Row] = []
        for row in rows:
            for bits, place in index.near(hashes[row.place]):
                other = places[place]
                if same_tint(tints[other.place], tints[row.place]):
                    yield row.key, (other.key, f"{bits} of 64 bits differ")
                    break
            else:
                index.add(hashes[row.place])
                places.append(row)

    def _by_embedding(self, data: DataSet) -> Iterator[tuple[str, tuple[str, str]]]:
        rows, facts = _from_largest(data, (FACT,))
        if not rows:
            return
        vectors = np.stack([decode(facts[row.place][0]) for row in rows])
        vectors /= np.maximum(1e-12, np.linalg.norm(vectors, axis=1, keepdims=True))
        stays = np.zeros(len(rows), bool)
        for start in range(0, len(rows), BLOCK):
            block = vectors[start : start + BLOCK]
            best, of = _nearest(block, vectors, np.flatnonzero(stays[:start]))
            inside = block @ block.T
            for row in range(len(block)):
                earlier = np.flatnonzero(stays[start : start + row])
                near, other = best[row], of[row]
                if len(earlier) and inside[row, earlier].max() > near:
                    near = inside[row, earlier].max()
                    other = start + earlier[inside[row, earlier].argmax()]
                if near >= self.similarity:
                    yield rows[start + row].key, (rows[other].key, f"cosine {near:.3f}")
                else:
                    stays[start + row] = True


@dataclass(frozen=True, slots=True)
class _Row:
    """What deciding needs of a record."""

    key: str
    area: int
    captioned: bool
    place: int  # in the set


def _from_largest(data: DataSet, names: tuple[str, ...]) -> tuple[list[_Row], list[tuple[str, ...]]]:
    """Rows from the largest picture to the smallest, of two alike the one with a caption first, then in the
    order of the set; and of each record, in that order of the set, the facts of these names."""
    rows: list[_Row] = []
    facts: list[tuple[str, ...]] = []
    for place, record in enumerate(data.records()):
        if missing := [name for name in names if name not in record.facts]:
            raise DataError(
                f"{record.key} lacks {' and '.join(missing)}, by which duplicates are found; "
                "`limner data dedup` takes the step that notes it first"
            )
        area = record.width * record.height
        rows.append(_Row(record.key, area, bool(record.caption), place))
        facts.append(tuple(str(record.facts[name]) for name in names))
    rows.sort(key=lambda row: (-row.area, not row.captioned, row.place))
    return rows, facts


def _nearest(
    block: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], kept: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """For each row of the block the best cosine among the rows `kept`, and which row that is."""
    best = np.full(len(block), -2, np.float32)
    of = np.zeros(len(block), np.intp)
    for start in range(0, len(kept), 16 * BLOCK):
        some = kept[start : start + 16 * BLOCK]
        cosines = block @ vectors[some].T
        at = cosines.argmax(1)
        value = cosines[np.arange(len(block)), at]
        of = np.where(value > best, some[at], of)
        best = np.maximum(best, value)
    return best, of
