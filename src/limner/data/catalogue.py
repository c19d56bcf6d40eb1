"""What there is to train with, as columns: a packed set, a set, or simply a folder of pictures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from limner.data import pack
from limner.data.pictures import PictureError, measure, open_picture
from limner.data.records import DataSet, Record
from limner.data.sources import scan
from limner.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from PIL import Image

Numbers = npt.NDArray[np.int64]
COLUMNS = ("key", "picture", "width", "height", "caption", "long_caption", "repeats")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Catalogue:
    """All pictures, a row each. Texts stay in Arrow's memory: about a hundred bytes a picture."""

    table: "pa.Table"
    packed: Path | None  # the folder with the shards, if the pictures lie in such
    widths: Numbers
    heights: Numbers
    repeats: Numbers
    left_out: tuple[tuple[str, str], ...] = ()  # key, and why it is not among the rows

    def __len__(self) -> int:
        return len(self.widths)

    def text(self, column: str, row: int) -> str:
        """The key, caption, long caption or place of a row."""
        value: str = self.table.column(column)[row].as_py()
        return value

    def without(self, missing: Mapping[int, str]) -> "Catalogue":
        """All rows but these, {row: why}, which are told as left out. Raises DataError when none is left."""
        kept = np.array([row for row in range(len(self)) if row not in missing], np.int64)
        if not len(kept):
            raise DataError(f"none of these {len(self)} pictures can be used; the first: {missing[0]}")
        told = tuple((self.text("key", row), why) for row, why in sorted(missing.items()))
        return replace(
            self,
            table=self.table.take(kept),
            widths=self.widths[kept],
            heights=self.heights[kept],
            repeats=self.repeats[kept],
            left_out=(*self.left_out, *told),
        )

    def open(self, row: int) -> "Image.Image":
        """The picture of a row: RGB, upright. Raises DataError when it cannot be read."""
        if self.packed is None:
            return open_picture(self.text("picture", row))
        shard = self.packed / self.text("shard", row)
        offset, size = (self.table.column(name)[row].as_py() for name in ("offset", "size"))
        content = pack.read_packed(shard, offset, size)
        return open_picture(f"{shard}::{self.text('key', row)}", content=content)


def catalogue(folder: Path) -> Catalogue:
    """What lies in `folder`: a packed set (itself, or the one in a set), a set, or pictures with captions in
    .txt files beside them, in kohya's folders (`10_sks dog`) or not.

    A set that has changed since it was packed is read as it is now. Raises DataError when there is nothing.
    """
    folder = pack.whole(folder.expanduser())
    if (folder / pack.TOLD).exists():
        return _packed(folder)
    if (folder / "set.json").exists():
        data = DataSet.open(folder)
        return (
            _packed(pack.whole(data.folder / pack.FOLDER))
            if pack.current(data)
            else _listed(data.records(), folder)
        )
    found = scan(folder)
    return _listed(found.kept, folder, [(one.key, one.detail or one.reason) for one in found.rejects])


def _packed(folder: Path) -> Catalogue:
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    pack.told(folder)
    try:
        table = pq.ParquetFile(folder / pack.INDEX).read().combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{folder / pack.INDEX} is not whole ({error}); pack the set again") from None
    return _columns(table, folder, (), folder)


def _listed(records: Iterable[Record], folder: Path, left_out: Iterable[tuple[str, str]] = ()) -> Catalogue:
    """Records as they come; those that nobody has measured yet are measured by their heads."""
    import pyarrow as pa

    columns: dict[str, list[str | int]] = {name: [] for name in COLUMNS}
    left_out = list(left_out)
    for record in records:
        width, height = record.width, record.height
        if not (width and height):
            try:
                width, height = measure(record.picture, whole=False)
            except PictureError as error:
                left_out.append((record.key, str(error)))
                continue
        for name in COLUMNS:
            columns[name].append(getattr(record, name))
        columns["width"][-1], columns["height"][-1] = width, height
    return _columns(pa.table(columns), None, tuple(left_out), folder)


def _columns(
    table: "pa.Table", packed: Path | None, left_out: tuple[tuple[str, str], ...], folder: Path
) -> Catalogue:
    if not len(table):
        broken = f"; {len(left_out)} could not be read, such as: {left_out[0][1]}" if left_out else ""
        raise DataError(f"there is no picture in {folder} to train with{broken}")
    widths, heights, repeats = (
        table.column(name).to_numpy().astype(np.int64) for name in ("width", "height", "repeats")
    )
    return Catalogue(
        table=table, packed=packed, widths=widths, heights=heights, repeats=repeats, left_out=left_out
    )
