"""A set packed for training: tar shards that are read from front to back, and one index of what lies where.

    SET/packed/shard-00000.tar   KEY.jpg, KEY.txt and KEY.json of each picture, as webdataset reads them
    SET/packed/index.parquet     a row per picture: its shard, where in it, its size, its bucket, its captions
    SET/packed/pack.json         how it was packed, and how long each shard is; written last

A shard is one part of the set. Everything is prepared in SET/packed.partial, which a run that was cut short
goes on with; what was packed before stays in place until the new one is whole, whatever happens.
"""

import errno
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from limner.data import buckets
from limner.data.pictures import PictureError, ending, measure, open_picture, read_bytes
from limner.data.records import DataSet, Fact, Record, Reject, write_whole
from limner.data.steps import Outcome, Progress, alone, run_alone, settings_of
from limner.errors import DataError

FORMAT = "limner pack 1"
FOLDER = "packed"
INDEX = "index.parquet"
TOLD = "pack.json"
LONGEST = {"webp": 16_383, "jpeg": 65_500}  # pixels of a side that these formats hold
BLOCK = 512  # bytes; a tar pads its members to whole blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """The step that writes shards; what it finds are facts of records: shard, offset, bytes, bucket."""

    name: ClassVar[str] = "pack"
    size: int = 512  # side of the square whose area all buckets have
    bucket_step: int = 64  # sides of buckets are multiples of it
    bucket_upscale: bool = True  # small pictures count as large as their bucket
    encode: str = ""  # jpeg, png or webp: written anew in this format; empty: the bytes as they are
    quality: int = 95  # of jpeg and webp
    shrink: bool = False  # what is written anew is no larger than covers its bucket
    turn: int = 0  # which packing of the set this is, where an earlier one of these settings was lost
    folder: str = ""  # where the shards go; filled in by `gather`
    numbers: tuple[tuple[str, int], ...] = ()  # first key and number of each part; by `gather` too

    def __post_init__(self) -> None:
        if self.encode not in ("", "jpeg", "png", "webp"):
            raise DataError(f"pictures can be encoded as jpeg, png or webp, got {self.encode!r}")
        if self.shrink and not self.encode:
            raise DataError("to shrink pictures they have to be written anew: say how with --encode")
        if not 1 <= self.quality <= 100:
            raise DataError(f"the quality is a number from 1 to 100, got {self.quality}")

    @property
    def shapes(self) -> buckets.BucketConfig:
        """The buckets that pictures are assigned to. Raises DataError when there can be none."""
        try:
            return buckets.BucketConfig(size=self.size, step=self.bucket_step, upscale=self.bucket_upscale)
        except ValueError as error:
            raise DataError(str(error)) from None

    def gather(self, data: DataSet) -> "Pack":
        """The same, knowing where to write and which part is which."""
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        numbers = []
        for number, path in enumerate(data.parts()):
            keys = pq.read_table(path, columns=["key"], use_threads=False).column("key")
            if len(keys):
                numbers.append((keys[0].as_py(), number))
        fresh = data.folder / f"{FOLDER}.partial"
        fresh.mkdir(exist_ok=True)
        return replace(self, folder=str(fresh), numbers=tuple(numbers))

    def part(self, records: list[Record]) -> Outcome:
        """Write one shard. Pictures that cannot be read are rejects. Raises DataError for a full disk."""
        if not records:
            return Outcome(kept=[])
        path = Path(self.folder) / shard_name(dict(self.numbers)[records[0].key])
        beside = path.with_suffix(".tmp")
        kept: list[Record] = []
        rejects: list[Reject] = []
        try:
            with beside.open("wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                    for record in records:
                        try:
                            content, ending, (width, height) = self._content(record)
                        except PictureError as error:
                            rejects.append(
                                Reject(
                                    key=record.key,
                                    picture=record.picture,
                                    reason=error.reason,
                                    detail=str(error),
                                )
                            )
                            continue
                        sized = replace(record, width=width, height=height)
                        kept.append(self._add(tar, path.name, sized, content, ending))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "; make room, then give the same command again, it goes on where it stopped"
            raise DataError(f"cannot write {path}: {error.strerror}{advice if full else ''}") from None
        finally:
            beside.unlink(missing_ok=True)
        if not kept:
            path.unlink()
        return Outcome(kept=kept, rejects=rejects)

    def _content(self, record: Record) -> tuple[bytes, str, buckets.Side]:
        """The bytes of a picture, their format, and how large it was before: width and height, turned."""
        if not self.encode:
            content = read_bytes(record.picture)
            size = (record.width, record.height)
            if not all(size):
                size = measure(record.picture, whole=False)
            return content, _ending(content, record.picture), size
        picture = open_picture(record.picture)
        size = picture.size
        if self.shrink:
            (bucket,) = buckets.assign([size[0]], [size[1]], self.shapes)
            if picture.width > bucket[0] and picture.height > bucket[1]:
                picture = buckets.cover(picture, bucket)
        if max(picture.size) > (most := LONGEST.get(self.encode, max(picture.size))):
            told = f"{record.picture} has {buckets.name(picture.size)} pixels, and {self.encode} holds {most}"
            raise PictureError("too-large", f"{told} a side; use --shrink or another --encode")
        out = io.BytesIO()
        try:
            picture.save(out, self.encode, quality=self.quality)
        except (OSError, ValueError) as error:
            raise PictureError("broken", f"{record.picture} cannot be encoded: {error}") from None
        return out.getvalue(), self.encode.replace("jpeg", "jpg"), size

    def _add(self, tar: tarfile.TarFile, shard: str, record: Record, content: bytes, ending: str) -> Record:
        """Put a picture and what is said of it into the shard; gives the record and its place."""
        stem = record.key.replace("%", "%25").replace(".", "%2E")  # webdataset's keys end at the first dot
        (bucket,) = buckets.assign([record.width], [record.height], self.shapes)
        told = {
            "key": record.key,
            "width": record.width,
            "height": record.height,
            "long_caption": record.long_caption,
            "repeats": record.repeats,
            **{name: value for name, value in record.facts.items() if name not in PLACED},
        }
        offset = _member(tar, f"{stem}.{ending}", content)
        _member(tar, f"{stem}.json", json.dumps(told, ensure_ascii=False).encode())
        _member(tar, f"{stem}.txt", record.caption.encode())
        facts: dict[str, Fact] = {
            "shard": shard,
            "offset": offset,
            "bytes": len(content),
            "bucket": buckets.name(bucket),
        }
        return replace(record, facts=record.facts | facts)


PLACED = ("shard", "offset", "bytes", "bucket")  # facts that packing finds out


def pack(data: DataSet, step: Pack, *, workers: int = 1, ray: bool = False) -> Iterator[Progress]:
    """Pack the newest state of a set into SET/packed. Gives how far it is, one shard after the other.

    Cut short, it goes on; asked again with nothing changed, it has nothing to do. Raises DataError as
    `steps.run` does, and when the disk is full: what was packed before is then still there.
    """
    place, fresh = data.folder / FOLDER, data.folder / f"{FOLDER}.partial"
    if workers < 1:
        raise DataError(f"a step needs at least one worker, got {workers}")
    with alone(data):
        mend(place)
        if (
            place.is_dir()
            and not any((place / name).exists() for name in (TOLD, INDEX))
            and any(place.iterdir())
        ):
            raise DataError(f"{place} is no packed set, and would be replaced by one; move it elsewhere")
        step = replace(step, turn=_turn(data, step))
        coming = data.folder / f"{len(data.steps) + 1:02d}-{step.name}"
        for part in coming.glob("part-*.parquet"):  # of a run that was cut short: its shards may be gone
            if _rows(part) and not (fresh / shard_name(int(part.stem[-5:]))).exists():
                part.unlink()
        yield from run_alone(data, step, workers=workers, ray=ray)
        if not current(data):
            _finish(data, settings_of(step), fresh)
            swap(fresh, place)


def current(data: DataSet) -> bool:
    """Whether SET/packed holds exactly what the set's newest step left."""
    try:
        there = told(whole(data.folder / FOLDER))
        return bool(data.steps) and (there["set"], there["step"]) == (data.sign, data.steps[-1].folder)
    except (DataError, KeyError):
        return False


def told(folder: Path) -> Mapping[str, object]:
    """What pack.json says. Raises DataError when it is not there, or a shard or the index is not whole."""
    path = folder / TOLD
    try:
        table = json.loads(path.read_bytes())
        if table["format"] != FORMAT:
            raise DataError(f"{path} has the format {table['format']!r}, this is Limner for {FORMAT!r}")
        lengths: dict[str, int] = table["files"]
        for name, length in lengths.items():
            there = (folder / name).stat().st_size if (folder / name).is_file() else None
            if there != length:
                found = "is missing" if there is None else f"has {there} bytes instead of {length}"
                raise DataError(f"{folder / name} {found}; pack the set again: limner data pack SET")
    except OSError as error:
        raise DataError(f"{folder} is no packed set: {error.strerror} ({TOLD})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is broken ({error}); pack the set again") from None
    result: Mapping[str, object] = table
    return result


def shard_name(number: int) -> str:
    """Such as shard-00012.tar."""
    return f"shard-{number:05d}.tar"


def read_packed(shard: Path, offset: int, length: int) -> bytes:
    """The bytes of one picture. Raises DataError when the shard is missing or too short."""
    try:
        with shard.open("rb") as file:
            file.seek(offset)
            content = file.read(length)
    except OSError as error:
        raise DataError(f"cannot read {shard}: {error.strerror}") from None
    if len(content) != length:
        raise DataError(
            f"{shard} is cut short: {len(content)} of {length} bytes at {offset}; pack the set again"
        )
    return content


def swap(fresh: Path, place: Path) -> None:
    """Put a finished folder in the place of an older one. Cut short, `mend` ends it, and readers find the
    older one by `whole`."""
    old = _before(place)
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.replace(old)
    fresh.replace(place)
    shutil.rmtree(old, ignore_errors=True)


def mend(place: Path, sign: str = TOLD) -> None:
    """End a `swap` that was cut short. `sign` is the file that is written last into a folder; one without it
    is none of ours. For those who write into what `place` lies in."""
    place = place.absolute()
    if (there := whole(place, sign)) != place:
        there.replace(place)


def whole(place: Path, sign: str = TOLD) -> Path:
    """Where the newest whole folder lies: at `place`, unless a `swap` was cut short, which this leaves so."""
    place = place.absolute()  # "." has no name
    if place.exists() or not place.name:
        return place
    old, fresh = _before(place), place.with_name(f"{place.name}.partial")
    if not (old / sign).exists():
        return place
    return fresh if (fresh / sign).exists() else old


def _before(place: Path) -> Path:
    """Where `swap` puts what was at `place`: called as no user calls a folder, for it is removed."""
    return place.with_name(f".{place.name}.before")


def _turn(data: DataSet, step: Pack) -> int:
    """Which packing is wanted: the last one, if it had these settings and nothing of it was lost."""
    before = [done for done in data.steps if done.name == step.name]
    if not before or data.steps[-1].name != step.name:
        return len(before)
    last = data.steps[-1]
    turn = last.settings.get("turn")
    if last.settings | {"turn": 0} != settings_of(replace(step, turn=0)) or not isinstance(turn, int):
        return len(before)
    return turn if current(data) or _all_there(data) else len(before)


def _all_there(data: DataSet) -> bool:
    """Whether the shards of the newest step lie ready, so that only the index is missing."""
    fresh = data.folder / f"{FOLDER}.partial"
    return all((fresh / shard_name(int(part.stem[-5:]))).exists() for part in data.parts() if _rows(part))


def _rows(part: Path) -> int:
    import pyarrow.parquet as pq

    rows: int = pq.read_metadata(part).num_rows
    return rows


def _finish(data: DataSet, settings: dict[str, object], fresh: Path) -> None:
    """Write the index and pack.json from the parts of the step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.int64()
    schema = pa.schema(
        {
            "key": text,
            "shard": text,
            "offset": number,
            "size": number,
            "width": number,
            "height": number,
            "bucket": text,
            "caption": text,
            "long_caption": text,
            "repeats": number,
        }
    )
    renamed = {"size": "bytes"}
    fresh.mkdir(exist_ok=True)
    beside = fresh / f"{INDEX}.tmp"
    shards: set[str] = set()
    try:
        with beside.open("wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for part in data.parts():
                    if not _rows(part):
                        continue
                    columns = [renamed.get(name, name) for name in schema.names]
                    table = pq.read_table(part, columns=columns, use_threads=False).select(columns)
                    writer.write_table(table.rename_columns(schema.names))
                    shards |= set(table.column("shard").to_pylist())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(fresh / INDEX)
    except OSError as error:
        raise DataError(
            f"cannot write {fresh / INDEX}: {error.strerror}; what was packed before is untouched"
        ) from None
    finally:
        beside.unlink(missing_ok=True)
    for left in fresh.iterdir():
        if left.name not in shards and left.name != INDEX:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    lengths = {name: (fresh / name).stat().st_size for name in (*sorted(shards), INDEX)}
    table = {
        "format": FORMAT,
        "set": data.sign,
        "step": data.steps[-1].folder,
        "settings": settings,
        "files": lengths,
    }
    write_whole(fresh / TOLD, json.dumps(table, indent=1, ensure_ascii=False).encode())


def _ending(content: bytes, where: str) -> str:
    """What the name of a picture ends in, by how its bytes begin. Raises PictureError for others."""
    if found := ending(content):
        return found
    raise PictureError("not-a-picture", f"{where} does not begin like JPEG, PNG, WEBP, BMP, TIFF or AVIF")


def _member(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a file to a tar; the same bytes whenever and by whomever. Gives where its content begins."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o644
    tar.addfile(entry, io.BytesIO(content))
    return tar.offset - -(-len(content) // BLOCK) * BLOCK
