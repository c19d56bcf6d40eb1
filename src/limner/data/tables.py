"""Rows that name pictures or hold them: CSV, JSON lines, parquet, and what Hugging Face `datasets` saves."""

import csv
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from limner.data.pictures import ending
from limner.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

TABLES = frozenset({".csv", ".tsv", ".jsonl", ".parquet", ".arrow"})
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # an "imagefolder" has one at its top
IMAGES = ("image", "img", "jpg", "png", "picture", "file_name", "path", "file", "filepath", "image_path")
ROWS = 128  # of a table that may hold pictures, read at a time
CELL = 16_000_000  # characters of a cell of a CSV file, at most
SHARD = 256_000_000  # bytes of pictures in one tar of a `Shelf`, about
SHARD_COUNT = 1_000  # pictures in one tar of a `Shelf`
Row = Mapping[str, Any]


def tables_of(source: Path) -> list[Path]:
    """The files of the table at `source`, in order; none when it is something else: one file of TABLES, a
    folder that `datasets` saved, one with a metadata file, or one of parquet files as the hub keeps them.

    Raises DataError for a folder of `datasets` that is not whole.
    """
    if source.is_file():
        return [source] if source.suffix.lower() in TABLES else []
    if (source / "dataset_dict.json").is_file():
        splits = _json(source / "dataset_dict.json").get("splits")
        if not isinstance(splits, list):
            raise DataError(f"{source / 'dataset_dict.json'} names no splits; save the dataset again")
        return [path for split in splits for path in _saved(source / str(split))]
    if (source / "state.json").is_file() and (source / "dataset_info.json").is_file():
        return _saved(source)
    for name in METADATA:
        if (source / name).is_file():
            return [source / name]
    return sorted([*source.glob("*.parquet"), *source.glob("data/*.parquet")])


def rows(path: Path) -> Iterator[tuple[int, Row | str]]:
    """(number, row) of a table, read as it is used; a row that cannot be read is a message instead.

    Raises DataError when the file is none of its kind, or ends too early.
    """
    kind = path.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            csv.field_size_limit(max(csv.field_size_limit(), CELL))
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from enumerate(_lines(csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")))
        elif kind == ".jsonl":
            with path.open("rb") as lines:
                for number, line in enumerate(lines):
                    if line.strip():
                        yield number, _line(line)
        else:
            number = 0
            for batch in _batches(path, kind):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8; save it so") from None
    except (csv.Error, ValueError) as error:  # pyarrow's errors are such, too
        raise DataError(f"{path} cannot be read as {kind[1:]}: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def image_column(row: Row, wanted: str | None, path: Path) -> str:
    """Under which name a row has its picture. Raises DataError with the names that there are."""
    for name in IMAGES if wanted is None else (wanted,):
        if name in row:
            return name
    said = "none of its columns looks like the pictures" if wanted is None else f"it has no column {wanted!r}"
    raise DataError(f"{path}: {said}; it has {', '.join(map(str, row))}. Say which with --image-column")


class Shelf:
    """Where pictures go that only a table holds: tars of about 256 MB, each whole or not there.

    Use it as a context; what an earlier, unfinished run had put there is taken away first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = self._bytes = self._count = 0
        self._tar: tarfile.TarFile | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "Shelf":
        for old in [*self.folder.glob("*.tar"), *self.folder.glob(".*.tmp")]:
            old.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close()
        elif self._file is not None:
            self._file.close()
            self._beside().unlink(missing_ok=True)

    def put(self, content: bytes) -> str:
        """Keep an encoded picture; the place as a `Record` has it. Raises DataError when the disk is full."""
        try:
            if self._tar is None or self._bytes >= SHARD or self._count == SHARD_COUNT:
                self._close()
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = self._beside().open("wb")
                self._tar = tarfile.open(fileobj=self._file, mode="w")  # noqa: SIM115 (closed by _close)
            member = tarfile.TarInfo(f"{self._count:05d}.{ending(content) or 'bin'}")
            member.size = len(content)
            place = f"{self._path()}::{member.name}"
            self._tar.addfile(member, io.BytesIO(content))
        except OSError as error:
            raise DataError(f"cannot write {self._path()}: {error.strerror}") from None
        self._bytes += len(content)
        self._count += 1
        return place

    def _close(self) -> None:
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._beside().replace(self._path())
        self._tar = self._file = None
        self._number, self._bytes, self._count = self._number + 1, 0, 0

    def _path(self) -> Path:
        return self.folder / f"{self._number:05d}.tar"

    def _beside(self) -> Path:
        return self.folder / f".{self._number:05d}.tar.tmp"


def _saved(folder: Path) -> list[Path]:
    """The arrow files of a folder that `Dataset.save_to_disk` wrote, in order."""
    state = _json(folder / "state.json")
    if state.get("_indices_files"):
        raise DataError(f"{folder} is a selection from other rows; call flatten_indices() and save it again")
    files = state.get("_data_files")
    names = (
        [file.get("filename") for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    )
    paths = [folder / str(name) for name in names]
    missing = [path.name for path in paths if path.parent != folder or not path.is_file()]
    if missing or not paths:
        raise DataError(f"{folder} lacks {', '.join(missing) or 'its arrow files'}; save the dataset again")
    return paths


def _batches(path: Path, kind: str) -> "Iterator[pa.RecordBatch]":
    """At most ROWS rows at a time of a parquet or arrow file, which is mapped and not loaded."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    if kind == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=ROWS, use_threads=False)
        return
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:  # the other of arrow's two layouts
            source.seek(0)
            file = pa.ipc.open_file(source)
            reader = (file.get_batch(index) for index in range(file.num_record_batches))
        for batch in reader:
            for start in range(0, batch.num_rows, ROWS):
                yield batch.slice(start, ROWS)


def _lines(table: Iterator[Row]) -> Iterator[Row | str]:
    """The rows of a CSV file; one that breaks its rules is told, and the next line begins another."""
    while True:
        try:
            yield next(table)
        except StopIteration:
            return
        except csv.Error as error:
            long = f"a cell has more than {CELL:,} characters; is a quote never closed?"
            yield long if "field limit" in str(error) else str(error)


def _line(line: bytes) -> Row | str:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    return row if isinstance(row, dict) else "no table of names and values"


def _json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {error}; save the dataset again") from None
    if not isinstance(table, dict):
        raise DataError(f"{path} is no table in JSON; save the dataset again")
    return table
