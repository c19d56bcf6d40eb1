"""Files: whole or not at all, wherever the disk fails; and sweeping takes only what nobody knows."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from limner.errors import EngineError
from limner.serve import files

JOB = "0123456789abcdef0123456789abcdef"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_keep(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    path = files.keep(folder, f"{JOB}/1-0.png", b"one")
    assert path == folder / JOB / "1-0.png"
    assert path.read_bytes() == b"one"
    files.keep(folder, f"{JOB}/1-0.png", b"two")
    assert path.read_bytes() == b"two"
    assert names(folder) == {f"{JOB}/1-0.png"}


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/x",
        "a/../x",
        "a//x",
        "a/",
        ".hidden",
        "a\\x",
        "a\0",
        "C:x",
        "a/" + "x" * 101,
        "ä",
        "a\n",
    ],
)
def test_no_name_leads_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(EngineError, match="no name of a picture"):
        files.keep(tmp_path, name, b"x")
    assert names(tmp_path) == set()


def test_everything_is_flushed_and_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data before the name, the name before it is recorded, and new folders as well."""
    done: list[str] = []
    flush, move = files._flush, files._move

    def flushed(handle: int) -> None:
        done.append(f"fsync {Path(f'/proc/self/fd/{handle}').readlink().name}")
        fsync(handle)

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(files, "_move", lambda a, b: done.append(f"move {a.suffix} {b.name}") or move(a, b))
    files.keep(tmp_path / "p", f"{JOB}/1-0.png", b"x")
    partial = done.index("move .partial 1-0.png")
    assert [line.endswith(".partial") for line in done[:partial]].count(True) == 1
    assert done[partial + 1 :] == [f"fsync {JOB}"]
    assert set(done[:partial]) > {f"fsync {tmp_path.name}", "fsync p"}
    assert flush is files._flush


class Broken:
    """Makes the Nth call of a hook of `files` fail, before it does anything or half-way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int, error: OSError, half: bool) -> None:
        self.calls = 0
        for name in ("_write", "_move", "_flush"):
            monkeypatch.setattr(files, name, self.hook(getattr(files, name), nth, error, half))

    def hook(self, real: Callable[..., None], nth: int, error: OSError, half: bool) -> Callable[..., None]:
        def called(*arguments: object) -> None:
            self.calls += 1
            if self.calls != nth:
                return real(*arguments)
            if half and real.__name__ == "_write":
                path, data = arguments
                path.write_bytes(data[: len(data) // 2])
            elif half:
                real(*arguments)
            raise error

        called.__name__ = real.__name__
        return called


ERRORS = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError(errno.EIO, os.strerror(errno.EIO))]


@pytest.fixture(params=ERRORS, ids=["full", "broken"])
def error(request: pytest.FixtureRequest) -> OSError:
    return request.param


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("before", [None, b"old"])
def test_the_nth_write_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, half: bool, before: bytes | None
) -> None:
    """For every N: the file is the old one or the new one, whole, and nothing else lies about."""
    name, new = f"{JOB}/1-0.png", b"new" * 1000
    steps = 3 if before else 5  # write, move, flush; for a new folder and its parent, a flush of each
    for nth in range(1, steps + 2):
        folder = tmp_path / f"{nth}"
        if before is not None:
            files.keep(folder, name, before)
        with monkeypatch.context() as patch:
            broken = Broken(patch, nth, error, half)
            if nth > steps:
                assert files.keep(folder, name, new).read_bytes() == new
                assert broken.calls == steps
                break
            with pytest.raises(EngineError, match=os.strerror(error.errno)) as told:
                files.keep(folder, name, new)
            assert str(folder) not in str(told.value)
        kept = {name} if (folder / name).exists() else set()
        assert names(folder) == kept
        assert not kept or (folder / name).read_bytes() in (before, new)
        assert kept or before is None


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"")
    with pytest.raises(EngineError, match="cannot be saved") as told:
        files.keep(tmp_path / "p", "uploads/x.png", b"x")
    assert str(tmp_path) not in str(told.value)


def test_sweep(tmp_path: Path) -> None:
    known = {f"{JOB}/1-0.png", f"uploads/{JOB}.png"}
    orphans = {f"{JOB}/2-0.png", f"{JOB[::-1]}/1-0.png", f"{JOB[::-1]}/1-1.png", f"uploads/{JOB[::-1]}.webp"}
    torn = {f"{JOB}/.{JOB}.partial", f".{JOB}.partial", f"uploads/.{JOB}.partial"}
    strange = {
        "holiday.png",
        "2024/1-0.png",
        f"{JOB}/notes.txt",
        f"{JOB}/1-0/1-0.png",
        ".x.partial",
        "uploads/me.png",
    }
    for name in known | orphans | torn | strange:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if not (tmp_path / name).is_dir():
            (tmp_path / name).write_bytes(b"x")
    asked: list[str] = []
    assert files.sweep(tmp_path, lambda name: asked.append(name) or name in known) == len(orphans | torn)
    assert names(tmp_path) == known | strange
    assert set(asked) == known | orphans
    assert not (tmp_path / JOB[::-1]).exists()  # its last file is gone
    assert files.sweep(tmp_path, known.__contains__) == 0


def test_sweep_leaves_what_is_being_made(tmp_path: Path) -> None:
    old, young = f"{JOB}/1-0.png", f"{JOB}/1-1.png"
    files.keep(tmp_path, old, b"x")
    files.keep(tmp_path, young, b"x")
    long_ago = time.time() - 7200
    os.utime(tmp_path / old, (long_ago, long_ago))
    assert files.sweep(tmp_path, lambda name: False, older=3600.0) == 1
    assert names(tmp_path) == {young}
    assert files.sweep(tmp_path, lambda name: False) == 1
    assert names(tmp_path) == set()


def test_sweep_of_nothing(tmp_path: Path) -> None:
    assert files.sweep(tmp_path / "missing", lambda name: False) == 0


def test_sweep_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"x")
    folder = tmp_path / "p" / JOB
    folder.mkdir(parents=True)
    (folder / "1-0.png").symlink_to(outside)
    files.sweep(tmp_path / "p", lambda name: False)
    assert outside.exists()
