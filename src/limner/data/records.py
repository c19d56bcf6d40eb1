"""A data set on the disk: what is known of each picture, in parquet parts that each step writes anew.

    SET/set.json                          the format, and every finished step with its settings and counts
    SET/NN-name/part-00000.parquet        what step NN kept, at most 1,000 records
    SET/NN-name/rejects-00000.parquet     what it dropped of the same part, and why

The pictures themselves stay where they are. Every file is written beside its place, flushed to the disk and
moved there in one step, so that a part that exists is whole.
"""

import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

FORMAT = "limner data 1"
PART = 1_000  # records of a part, at most
TORN = re.compile(r"\.set\.json\.[0-9a-f]{32}\.tmp")  # left by a kill while a set was made
LOST = "fetch it from a copy, or import the set anew into another folder"
Fact = str | int | float


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One picture of a set, and what is known of it."""

    key: str  # its name: unique within the set, letters, digits, "-" and "_"
    picture: str  # where it is: an absolute path, or that of a tar, "::" and the member's name
    width: int = 0  # pixels, as it is looked at: after its EXIF orientation; 0 before it was measured
    height: int = 0  # pixels
    caption: str = ""  # "" if it has none
    long_caption: str = ""  # "" if it has none
    repeats: int = 1  # how often an epoch shows it
    facts: dict[str, Fact] = field(
        default_factory=dict, hash=False
    )  # what steps found out; columns of the parts


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """A picture that a step left out."""

    key: str
    picture: str
    reason: str  # one short fixed word, such as "blurred"
    detail: str = ""  # what exactly, in words


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A step that was taken."""

    name: str  # such as "filter"
    folder: str  # below the set, such as "03-filter"
    settings: dict[str, object] = field(hash=False)  # as JSON has them
    kept: int  # records that it left
    rejects: dict[str, int] = field(hash=False)  # reason -> how many
    seconds: float  # wall time of its last run


RESERVED = frozenset(f.name for f in fields(Record))  # no fact may be called so


class DataSet:
    """A folder with `set.json`. Reading it never holds more than one part in memory."""

    def __init__(self, folder: Path, steps: tuple[Finished, ...], sign: str = "") -> None:
        self.folder = folder
        self.steps = steps
        self.sign = sign  # of this very set: what was made for one that lay here before is of another

    @classmethod
    def create(cls, folder: Path) -> "DataSet":
        """A new, empty set. Raises DataError when there is one already, when other files lie in the folder
        (steps clear away what is in theirs), or when it cannot be written."""
        if (folder / "set.json").exists():
            raise DataError(f"{folder} is a data set already; choose another folder, or open it")
        try:
            held = [path for path in folder.iterdir() if not TORN.fullmatch(path.name)]
        except FileNotFoundError:
            held = []
        except OSError as error:
            raise DataError(f"cannot make a data set of {folder}: {error.strerror}") from None
        if held:
            raise DataError(
                f"{folder} is not empty (it holds {min(held).name}) and no data set; name a new folder, such "
                f"as {folder / 'set'}"
            )
        data = cls(folder.absolute(), (), uuid.uuid4().hex)
        data._save()
        return data

    @classmethod
    def open(cls, folder: Path) -> "DataSet":
        """The set in `folder`. Raises DataError when there is none or `set.json` is broken."""
        path = folder / "set.json"
        try:
            table = json.loads(path.read_bytes())
            if table["format"] != FORMAT:
                raise DataError(f"{path} has the format {table['format']!r}, this is Limner for {FORMAT!r}")
            steps = tuple(Finished(**step) for step in table["steps"])
            return cls(folder.absolute(), steps, str(table.get("sign", "")))
        except FileNotFoundError:
            raise DataError(
                f"{folder} is no data set; make one with `limner data import SOURCE {folder}`"
            ) from None
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is broken ({error}); import the set again") from None

    def reread(self) -> None:
        """See what other processes have made of the set meanwhile. Raises as `open` does."""
        there = DataSet.open(self.folder)
        self.steps, self.sign = there.steps, there.sign

    def parts(self) -> list[Path]:
        """The parts of the newest finished step, in order. Raises DataError when no step is finished, and for
        a part that is lost where what the step dropped of it is there."""
        if not self.steps:
            raise DataError(f"nothing was imported into {self.folder} yet; `limner data import` does it")
        folder = self.folder / self.steps[-1].folder
        parts = sorted(folder.glob("part-*.parquet"))
        names = {path.name for path in parts}
        for path in sorted(folder.glob("rejects-*.parquet")):
            if (name := path.name.replace("rejects", "part")) not in names:
                raise DataError(f"{folder / name} is lost; {LOST}")
        return parts

    def records(self) -> Iterator[Record]:
        """Every record of the newest finished step, in order. Raises DataError when a part of it is lost."""
        count = 0
        for path in self.parts():
            for record in read_records(path):
                count += 1
                yield record
        self.complete(count)

    def complete(self, count: int) -> None:
        """Raises DataError when `count` records were found where the newest step has noted another number."""
        if count != len(self):
            raise DataError(
                f"{self.folder / self.steps[-1].folder} holds {count} records and should hold {len(self)}: a "
                f"part of it is lost; {LOST}"
            )

    def rejects(self) -> Iterator[Reject]:
        """Whatever any step left out, in the order of the steps."""
        for step in self.steps:
            for path in sorted((self.folder / step.folder).glob("rejects-*.parquet")):
                yield from read_rejects(path)

    def __len__(self) -> int:
        return self.steps[-1].kept if self.steps else 0

    def add(self, step: Finished) -> None:
        """Note that a step is finished: from now on the set is what it kept."""
        self.steps = (*self.steps, step)
        self._save()

    def _save(self) -> None:
        table = {"format": FORMAT, "sign": self.sign, "steps": [asdict(step) for step in self.steps]}
        write_whole(self.folder / "set.json", json.dumps(table, indent=1, ensure_ascii=False).encode())


def write_records(path: Path, records: Sequence[Record]) -> None:
    """One part. Facts that only some records have are empty in the others' rows.

    Raises DataError for a fact that is called like a field of Record, is a word here and a number there, or
    is no 64-bit number; and when the disk is full.
    """
    import pyarrow as pa

    columns: dict[str, pa.Array] = {
        name: pa.array(
            [getattr(record, name) for record in records],
            pa.int64() if name in ("width", "height", "repeats") else pa.string(),
        )
        for name in (f.name for f in fields(Record))
        if name != "facts"
    }
    for name in dict.fromkeys(name for record in records for name in record.facts):
        if name in RESERVED:
            raise DataError(
                f"a fact cannot be called {name!r}, as a record has a field of that name; rename it"
            )
        columns[name] = _facts(name, [record.facts.get(name) for record in records])
    _write_table(path, pa.table(columns))


def read_records(path: Path) -> list[Record]:
    """The records of a part. Raises DataError when the file is missing or broken."""
    rows = _rows(path)
    return [
        Record(
            **{name: value for name, value in row.items() if name in RESERVED},
            facts={name: value for name, value in row.items() if name not in RESERVED and value is not None},
        )
        for row in rows
    ]


def write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    """What a step left out of one part. Raises DataError when the disk is full."""
    import pyarrow as pa

    names = [f.name for f in fields(Reject)]
    columns = {name: pa.array([getattr(one, name) for one in rejects], pa.string()) for name in names}
    _write_table(path, pa.table(columns))


def read_rejects(path: Path) -> list[Reject]:
    """What a step left out of one part. Raises DataError when the file is missing or broken."""
    return [Reject(**row) for row in _rows(path)]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is either as it was or all there, whatever happens. Raises DataError."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror}") from None


def _facts(name: str, values: Sequence[Fact | None]) -> "pa.Array":
    """One column: words, whole numbers or numbers, whatever all its values are."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {str}:
        kind = pa.string()
    elif kinds <= {int, bool}:
        kind = pa.int64()
    elif kinds <= {int, bool, float}:
        kind = pa.float64()
        values = [None if value is None else float(value) for value in values]
    else:
        told = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"the fact {name!r} is of several kinds ({told}); make all words, or all numbers")
    try:
        return pa.array([int(value) if isinstance(value, bool) else value for value in values], kind)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise DataError(f"the fact {name!r} cannot be stored ({error}); numbers have 64 bits") from None


def _write_table(path: Path, table: "pa.Table") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(path, sink.getvalue().to_pybytes())


def _rows(path: Path) -> list[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[Mapping[str, Any]] = pq.ParquetFile(path).read(use_threads=False).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is not a whole part of a data set ({error}); take its step again") from None
    return rows
