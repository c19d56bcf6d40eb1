"""Where pictures come from: folders, tars of webdataset, tables. Found first, then measured, never moved.

What only a table holds is put into tars in SET/pictures; everything else stays where it is.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import ClassVar

from limner.data import pictures, sidecars, steps, tables
from limner.data.pictures import SUFFIXES, PictureError, members
from limner.data.records import RESERVED, DataSet, Fact, Record, Reject
from limner.data.sidecars import SIDECARS, Said, suffix_of
from limner.data.steps import Outcome, Progress
from limner.data.tables import Shelf
from limner.errors import DataError

UNREAD = frozenset({".gif", ".psd", ".heic", ".heif", ".jxl", ".svg", ".ico", ".tga", ".exr", ".dng"})
PACKED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
MOST = 64_000_000  # pixels of a picture, if nothing else is said; later steps take all that is imported
KEY = 120  # bytes of a key, at most
CONDITION = ".cond"  # before the suffix of a picture to be followed, which is no picture of its own
Found = Record | Reject


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """What is imported, and how it is read."""

    source: str  # a folder, a tar, a table, or a folder that `datasets` saved
    image_column: str | None = None  # of a table; None: the first that is called as such columns are
    caption_column: str | None = None  # of a table; None: the same
    facts: tuple[str, ...] = ()  # fields of a table or of JSON beside a picture that records keep
    kohya: bool = True  # whether a folder such as "10_sks dog" says repeats and caption

    def __post_init__(self) -> None:
        """Raises DataError for a fact that is called as a record's own field."""
        if taken := sorted(RESERVED.intersection(self.facts)):
            raise DataError(
                f"a fact cannot be called {taken[0]!r}, since every record has that; rename the field"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """Look at every picture: is it one, how large, is all of it there."""

    name: ClassVar[str] = "measure"
    largest: int = MOST  # pixels of a picture, at most
    whole: bool = True  # decode it to see that all of it is there; else only its head is read

    def part(self, records: list[Record]) -> Outcome:
        """Records with their sizes; rejects as `pictures.PictureError` says."""
        outcome = Outcome(kept=[])
        for record in records:
            try:
                width, height = pictures.measure(record.picture, largest=self.largest, whole=self.whole)
            except PictureError as error:
                outcome.rejects.append(_reject(record, error.reason, str(error)))
            except DataError as error:  # the tar that holds it
                outcome.rejects.append(_reject(record, "missing", str(error)))
            else:
                outcome.kept.append(replace(record, width=width, height=height))
        return outcome


def bring(
    folder: Path,
    config: SourceConfig,
    *,
    measure: Measure = Measure(),
    workers: int = 1,
    ray: bool = False,
) -> Iterator[Progress]:
    """Import a source into the set at `folder`, which is made if it is not there: the steps "found" and
    "measure". Cut short, the same call goes on; called again, it finds nothing left to do.

    Raises DataError when the set was made from something else, or no picture is found.
    """
    config = replace(config, source=os.path.abspath(Path(config.source).expanduser()))  # noqa: PTH100 (keeps links)
    told = steps.as_json(asdict(config))
    if (folder / "set.json").exists():
        data = DataSet.open(folder)
    else:
        found(config, folder)  # complains before a folder is made
        data = DataSet.create(folder)
    if not data.steps:
        yield from steps.write(data, "found", told, found(config, data.folder))
    elif data.steps[0].name != "found" or data.steps[0].settings != told:
        source = data.steps[0].settings.get("source")
        raise DataError(f"{folder} was imported from {source} or with other settings; choose another folder")
    if len(data.steps) == 1:
        yield from steps.run(data, measure, workers=workers, ray=ray)
    elif data.steps[1].name == measure.name and data.steps[1].settings != steps.settings_of(measure):
        was = ", ".join(f"{name} {value}" for name, value in data.steps[1].settings.items())
        raise DataError(f"{folder} was measured otherwise already ({was}); choose another folder")


def scan(folder: Path, *, kohya: bool = True, whole: bool = False) -> Outcome:
    """The pictures of a plain folder, measured, without a set: everything stays in memory, in the order of
    their names. Raises DataError when there is no such folder, or no picture in it."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; name one with pictures")
    config = SourceConfig(source=os.path.abspath(folder), kohya=kohya)  # noqa: PTH100
    records: list[Record] = []
    rejects: list[Reject] = []
    for one in _named(_folder(config), config.source):
        if isinstance(one, Record):
            records.append(one)
        else:
            rejects.append(one)
    measured = Measure(whole=whole).part(records)
    return Outcome(kept=measured.kept, rejects=rejects + measured.rejects)


def found(config: SourceConfig, folder: Path) -> Iterator[Found]:
    """Every picture of a source, not yet looked at, with what is said of it; and what cannot be one. Pictures
    that only a table holds go to `folder`/pictures.

    Keys are unique, and the same whenever the source is. Raises DataError when there is no such source, when
    it is of no known kind, and at the end when it held no picture at all.
    """
    source = Path(config.source)
    if not source.exists():
        raise DataError(f"there is nothing at {source}; name a folder, a tar or a table")
    if files := tables.tables_of(source):
        return _named(_tables(files, config, folder / "pictures"), config.source)
    if source.is_dir():
        return _named(_folder(config), config.source)
    if source.suffix.lower() == ".tar":
        return _named(_tar(str(source), "", config), config.source)
    packed = " Unpack it first." if source.name.lower().endswith(PACKED) else ""
    kinds = ", ".join(sorted(tables.TABLES))
    raise DataError(f"{source} is no folder, no .tar and no table ({kinds}).{packed}")


def _named(stream: Iterator[Found], source: str) -> Iterator[Found]:
    """Turn the names that pictures have in their source into keys; what lies at one place counts once.

    A hash of each key and each place is remembered: about 20 MB for 100,000 pictures.
    """
    places: set[int] = set()
    keys: set[int] = set()
    kinds: dict[str, bool] = {}  # fact -> whether it is a word
    count = 0
    for one in stream:
        count += 1
        if isinstance(one, Reject):
            yield replace(one, key=_slug(one.key))
            continue
        place = _digest(one.picture)
        if place in places:
            yield _reject(replace(one, key=_slug(one.key)), "duplicate", "named twice")
            continue
        places.add(place)
        if odd := _odd(one, kinds):
            yield _reject(replace(one, key=_slug(one.key)), "fact", odd)
            continue
        key = _slug(one.key)
        for suffix in ("", f"-{place:016x}"[:9], f"-{place:016x}"):
            if (digest := _digest(key + suffix)) not in keys:
                keys.add(digest)
                yield replace(one, key=key + suffix)
                break
    if count == 0:
        listed = ", ".join(sorted(SUFFIXES))
        raise DataError(f"{source} holds no picture ({listed}); name another source")


def _odd(record: Record, kinds: dict[str, bool]) -> str:
    """Which fact cannot stand in a column with those of the records before, and why; "" if all can."""
    for name, value in record.facts.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return f"its {name} has more than 64 bits"
        if kinds.setdefault(name, isinstance(value, str)) != isinstance(value, str):
            wanted = "words" if kinds[name] else "numbers"
            return f"its {name} is {str(value)[:40]!r}, where those before it are {wanted}"
    return ""


def _folder(config: SourceConfig) -> Iterator[Found]:
    """All pictures below a folder, each real folder once; what begins with a dot is left alone."""
    seen: set[tuple[int, int]] = set()
    left = [config.source]
    while left:
        at = left.pop()
        inside = "" if at == config.source else os.path.relpath(at, config.source)
        try:
            if inside and os.path.islink(at) and os.path.realpath(at) in _above(at):  # noqa: PTH114
                told = "a link to a folder that it lies in"
                yield Reject(key=inside, picture=_shown(at), reason="symlink-loop", detail=told)
                continue
            status = os.stat(at)  # noqa: PTH116 (paths are text in this walk: they are many)
            if (status.st_dev, status.st_ino) in seen:
                told = "a link to a folder that was read already"
                yield Reject(key=inside, picture=_shown(at), reason="duplicate", detail=told)
                continue
            seen.add((status.st_dev, status.st_ino))
            names: list[str] = []
            folders: list[str] = []
            with os.scandir(at) as entries:
                for entry in entries:
                    if entry.name[0] != ".":
                        (folders if _is_folder(entry) else names).append(entry.name)
        except OSError as error:
            yield Reject(key=inside, picture=_shown(at), reason="missing", detail=str(error.strerror))
            continue
        if inside and "set.json" in names:
            continue  # a data set, perhaps the one that is being made
        yield from _files(sorted(names), at, inside, config)
        left.extend(os.path.join(at, name) for name in sorted(folders, reverse=True))  # noqa: PTH118


def _files(names: list[str], at: str, inside: str, config: SourceConfig) -> Iterator[Found]:
    """The pictures of one folder, with what stands beside them."""
    beside = {name for name in names if suffix_of(name) in SIDECARS}
    repeats, subject = sidecars.of_folders(Path(inside).parts) if config.kohya else (1, "")
    for name in names:
        path, suffix = os.path.join(at, name), suffix_of(name)  # noqa: PTH118
        key = os.path.join(inside, name[: len(name) - len(suffix)])  # noqa: PTH118
        if suffix == ".tar":
            yield from _tar(path, os.path.splitext(key)[0], config)  # noqa: PTH122
        elif name.lower().endswith(PACKED):
            told = "a compressed tar cannot be read in place; unpack it"
            yield Reject(key=key, picture=_shown(path), reason="compressed", detail=told)
        elif suffix in UNREAD:
            told = f"{suffix} is not read; save it as PNG or JPEG"
            yield Reject(key=key, picture=_shown(path), reason="not-a-picture", detail=told)
        elif suffix in SUFFIXES and not _followed(name, suffix):
            stem = name[: len(name) - len(suffix)]
            record = Record(key=key, picture=path, repeats=repeats)
            try:
                texts = {end: _read(at, stem + end) for end in SIDECARS if stem + end in beside}
            except PictureError as error:
                yield _reject(record, "caption", f"what stands beside it cannot be read: {error}")
                continue
            yield _said(record, texts, config, subject)


def _tar(path: str, inside: str, config: SourceConfig) -> Iterator[Found]:
    """The pictures of a tar as webdataset writes it: what has one name up to its first dot belongs together.

    A member that would leave the folder it is unpacked in is refused, though nothing is ever unpacked.
    """
    held: list[Record] = []
    texts: dict[str, bytes] = {}
    group: str | None = None

    def flush() -> Iterator[Found]:
        yield from (_said(record, texts, config, "") for record in held)
        held.clear()
        texts.clear()

    try:
        with pictures.opened(path, most=None) as file:
            for name, offset, size in members(Path(path)):
                inner = PurePosixPath(name)
                if inner.is_absolute() or ".." in inner.parts or "\\" in name:
                    told = "its name leads out of the tar; whoever made it meant harm or erred"
                    yield Reject(
                        key=name, picture=_shown(f"{path}::{name}"), reason="unsafe-name", detail=told
                    )
                    continue
                stem = str(inner.parent / inner.name.partition(".")[0])
                if stem != group:
                    yield from flush()
                    group = stem
                suffix = suffix_of(name)
                if inner.name.startswith(".") or _followed(name, suffix):
                    continue
                if suffix in SUFFIXES:
                    held.append(Record(key=f"{inside}/{stem}", picture=f"{path}::{name}"))
                elif suffix in UNREAD:
                    told = f"{suffix} is not read; save it as PNG or JPEG"
                    place = _shown(f"{path}::{name}")
                    yield Reject(key=stem, picture=place, reason="not-a-picture", detail=told)
                elif suffix in SIDECARS:
                    file.seek(offset)
                    texts[suffix] = file.read(min(size, sidecars.LONGEST + 1))
        yield from flush()
    except PictureError as error:
        yield Reject(key=inside, picture=_shown(path), reason=error.reason, detail=str(error))
    except DataError as error:
        yield from flush()
        yield Reject(key=inside, picture=_shown(path), reason="broken", detail=str(error))


def _followed(name: str, suffix: str) -> bool:
    """Whether this is a picture to be followed by a control branch, NAME.cond.png beside NAME.png."""
    return name.lower().endswith(f"{CONDITION}{suffix}")


def _tables(files: list[Path], config: SourceConfig, shelf: Path) -> Iterator[Found]:
    """The pictures that rows name or hold; names are taken from where the table lies."""
    with Shelf(shelf) as keep:
        for path in files:
            column: str | None = None
            for number, row in tables.rows(path):
                key = f"{path.stem}-{number:08d}"
                place = f"{path}, row {number}"
                if isinstance(row, str):
                    yield Reject(key=key, picture=place, reason="broken", detail=row)
                    continue
                column = column or tables.image_column(row, config.image_column, path)
                value, name = _held(row.get(column))
                if isinstance(value, str) and "://" in value:
                    told = f"{value} is an address, and nothing is downloaded; fetch the pictures first"
                    yield Reject(key=key, picture=place, reason="missing", detail=told)
                    continue
                if not value:
                    yield Reject(key=key, picture=place, reason="missing", detail=f"its {column} is empty")
                    continue
                where = os.path.abspath(path.parent / value) if isinstance(value, str) else keep.put(value)  # noqa: PTH100
                stem = os.path.splitext(name)[0] if name else key  # noqa: PTH122
                record = Record(key=stem, picture=where)
                try:
                    yield _sound(record, sidecars.of_table(row, config.facts, config.caption_column))
                except DataError as error:
                    yield _reject(record, "caption", str(error))


def _held(cell: object) -> tuple[bytes | str, str]:
    """What a table has of a picture, its bytes or its path, and what it is called."""
    if isinstance(cell, dict):  # as `datasets` has it
        name = str(cell.get("path") or "")
        content = cell.get("bytes")
        return (content, name) if isinstance(content, bytes) and content else (name, name)
    if isinstance(cell, str):
        return cell, cell
    return cell if isinstance(cell, bytes) else b"", ""


def _said(record: Record, texts: dict[str, bytes], config: SourceConfig, subject: str) -> Found:
    """A record with what stands beside it; `subject` is what its folder says."""
    try:
        said = sidecars.read(texts, config.facts)
    except DataError as error:
        return _reject(record, "caption", str(error))
    return _sound(record, replace(said, caption=said.caption or subject))


def _sound(record: Record, said: Said) -> Found:
    """A record with its captions, if its name can be written down."""
    if _shown(record.picture) != record.picture:
        return _reject(record, "name", "its name is not UTF-8; rename it")
    facts: dict[str, Fact] = {}
    for name, value in said.facts.items():
        if not isinstance(value, str | int | float):
            told = f"its {name} is {repr(value)[:40]}, neither words nor a number"
            return _reject(record, "fact", told)
        facts[name] = sidecars.clean(value) if isinstance(value, str) else value
    return replace(record, caption=said.caption, long_caption=said.long_caption, facts=facts)


def _reject(record: Record, reason: str, detail: str) -> Reject:
    return Reject(key=record.key, picture=_shown(record.picture), reason=reason, detail=detail)


def _read(at: str, name: str) -> bytes:
    with pictures.opened(os.path.join(at, name)) as file:  # noqa: PTH118
        return file.read(sidecars.LONGEST + 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _above(path: str) -> set[str]:
    """The real folders above a path, all the way by which it was reached."""
    above = set()
    while (upper := os.path.dirname(path)) != path:  # noqa: PTH120
        above.add(os.path.realpath(upper))
        path = upper
    return above


def _shown(path: str) -> str:
    """A path as text; bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _slug(name: str) -> str:
    """Letters, digits, "-" and "_" of any script, at most KEY bytes."""
    text = unicodedata.normalize("NFC", _shown(name))
    text = re.sub(r"[^\w-]+", "_", text).strip("_")
    return text.encode()[-KEY:].decode("utf-8", "ignore") or "picture"


def _digest(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "big"
    )
