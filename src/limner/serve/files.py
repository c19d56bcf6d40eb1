"""Pictures onto the disk: whole or not at all, and nothing left over.

A file is written beside its place, flushed, moved there in one step, and the folder is flushed too. Only then
may it be recorded. What was written and never recorded is swept away at the next start.
"""

import contextlib
import os
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from limner.errors import EngineError

UPLOADS = "uploads"  # folder of the pictures that clients sent
NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")  # of a file or folder that is kept
PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")
OURS = re.compile(rf"(?:[0-9a-f]{{32}}/[0-9]+-[0-9]+|{UPLOADS}/[0-9a-f]{{32}})\.(?:png|jpg|webp)")


def keep(folder: Path, name: str, data: bytes) -> Path:
    """Write `data` to `name` below `folder`, such as "JOB/1-0.png", and return where it is: once this
    returns, it is there after a power cut. Folders are made as needed; a file of this name is replaced.

    Raises EngineError, and leaves neither a part of the file nor a change to the old one, when the disk is
    full or the folder cannot be written, and for a name that leads elsewhere.
    """
    path = folder / inside(name)
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        _folders(path.parent)
        try:
            _write(partial, data)
            _move(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        _flush(path.parent)
    except OSError as error:
        raise EngineError(
            f"a picture cannot be saved: {error.strerror or 'the disk failed'}; see to the disk of the server"
        ) from error
    return path


def inside(name: str) -> PurePosixPath:
    """`name` as a path below some folder. Raises EngineError when it leads anywhere else."""
    parts = name.split("/")
    if not all(NAME.fullmatch(part) for part in parts):
        raise EngineError(f'"{name}" is no name of a picture; use letters, digits, "-", "_" and "."')
    return PurePosixPath(*parts)


def sweep(folder: Path, known: Callable[[str], bool], *, older: float = 0.0) -> int:
    """Remove what nobody knows: parts of files, and pictures `known` denies. Returns how many files went.

    `known` is asked with names as they were given to `keep`. Only files that `keep` and the service could
    have made are touched, should the folder be somebody's own. Where other machines write to it, give
    `older`, the seconds for which a file must have lain untouched: one of theirs may be about to be recorded.
    """
    removed = 0
    before = time.time() - older
    for path in sorted(folder.glob("*/*")) + sorted(folder.glob(".*.partial")):
        name = path.relative_to(folder).as_posix()
        ours = PARTIAL.fullmatch(path.name) or (OURS.fullmatch(name) and not known(name))
        with contextlib.suppress(OSError):  # another process swept it, or it cannot be removed: next time
            if ours and path.is_file() and path.lstat().st_mtime <= before:
                path.unlink()
                removed += 1
                if path.parent != folder:
                    path.parent.rmdir()
    return removed


def _folders(path: Path) -> None:
    """Make `path` and its parents, so that they too are there after a power cut."""
    missing = [one for one in (path, *path.parents) if not one.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for one in missing:
        _flush(one.parent)


# The three that touch the disk, kept this small so that tests can make the Nth of them fail.


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _move(source: Path, target: Path) -> None:
    source.replace(target)


def _flush(folder: Path) -> None:
    """The entries of `folder` onto the disk."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
