"""The Nth write fails, for every N: no accepted job is lost, no picture is gone, no torn file is recorded."""

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from living import Life, PowerCut, begun_anew, emptied, fault

from limner.serve import database
from limner.serve.store import Store

LIVING = Path(__file__).with_name("living.py")


def points(store: Store, folder: Path) -> list[str]:
    """Where something can fail in a life without faults."""
    life = emptied(store, folder / "0")
    with fault(store, 0, lambda name: None) as passed:
        life.live(store)
    life.holds(store)
    assert life.errors == 0
    return passed


def broken(driver: type[Exception], words: str, number: int = errno.EIO) -> Callable[[str], None]:
    """Fails as the disk does: the driver's error for the database, the system's for files."""

    def fail(name: str) -> None:
        if "statement" in name or "commit" in name:
            raise driver(words)
        raise OSError(number, os.strerror(number))

    return fail


def cut(name: str) -> None:
    raise PowerCut(name)


@pytest.fixture
def on_sqlite(sqlite: Callable[[], str], tmp_path: Path) -> Iterator[Store]:
    with closing(Store(sqlite(), tmp_path)) as store:
        yield store


@pytest.fixture
def on_postgresql(postgresql: Callable[[], str], tmp_path: Path) -> Iterator[Store]:
    with closing(Store(postgresql(), tmp_path)) as store:
        yield store


@pytest.mark.parametrize(
    "words, number",
    [("disk I/O error", errno.EIO), ("database or disk is full", errno.ENOSPC)],
    ids=["broken", "full"],
)
def test_the_disk_fails(on_sqlite: Store, tmp_path: Path, words: str, number: int) -> None:
    """At every point. The service runs on, and who was told of an error asks again."""
    total = len(points(on_sqlite, tmp_path))
    life = emptied(on_sqlite, tmp_path / "1", broken(sqlite3.OperationalError, words, number))
    life.live(on_sqlite)
    assert life.errors > 0.7 * total > 70  # an answer that was lost after the commit shortens the next try
    life.holds(on_sqlite)


def test_the_connection_is_lost(on_postgresql: Store, tmp_path: Path) -> None:
    """At every point, also after a commit, when nobody hears that it came through."""
    import psycopg

    total = len(points(on_postgresql, tmp_path))
    fail = broken(psycopg.OperationalError, "the server closed the connection unexpectedly")
    life = emptied(on_postgresql, tmp_path / "1", fail)
    life.live(on_postgresql)
    assert life.errors > 0.7 * total > 70  # an answer that was lost after the commit shortens the next try
    life.holds(on_postgresql)


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 7))])
def test_the_power_goes(on_sqlite: Store, tmp_path: Path, part: int) -> None:
    """At every point, a seventh of them at a time. Started again, it is asked again by who had no answer."""
    for nth in range(1 + part, len(points(on_sqlite, tmp_path)) + 1, 7):
        life = emptied(on_sqlite, tmp_path / f"{nth}")
        with fault(on_sqlite, nth, cut), pytest.raises(PowerCut):
            life.live(on_sqlite)
        begun_anew(on_sqlite)
        life.live(on_sqlite)
        life.holds(on_sqlite)


def test_a_lock_is_not_noticed(on_sqlite: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever SQLite may come upon one: where a transaction begins and, in a checkpoint, where it ends."""
    monkeypatch.setattr(database, "PAUSE", 0.0)
    for nth, name in enumerate(points(on_sqlite, tmp_path), 1):
        if ("BEGIN" in name or "before commit" in name) and nth % 5 == 0:
            life = emptied(on_sqlite, tmp_path / f"{nth}")
            with fault(on_sqlite, nth, broken(sqlite3.OperationalError, "database is locked")):
                life.live(on_sqlite)
            assert life.errors == 0, name
            life.holds(on_sqlite)


def test_a_deadlock_is_not_noticed(
    on_postgresql: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    monkeypatch.setattr(database, "PAUSE", 0.0)
    errors = (
        psycopg.errors.DeadlockDetected,
        psycopg.errors.SerializationFailure,
        psycopg.errors.LockNotAvailable,
    )
    for nth, name in enumerate(points(on_postgresql, tmp_path), 1):
        if "before commit" in name and nth % 3 == 0:
            life = emptied(on_postgresql, tmp_path / f"{nth}")
            with fault(on_postgresql, nth, broken(errors[nth // 3 % 3], "try again")):
                life.live(on_postgresql)
            assert life.errors == 0, name
            life.holds(on_postgresql)


@pytest.mark.slow
def test_kill_9(sqlite: Callable[[], str], on_sqlite: Store, tmp_path: Path) -> None:
    """A process that is really killed, at one point of five."""
    for nth in range(1, len(points(on_sqlite, tmp_path)) + 1, 5):
        life, url = Life(tmp_path / f"{nth}"), sqlite()
        command = [sys.executable, LIVING, url, life.pictures, f"{nth}"]
        killed = subprocess.run(command, cwd=LIVING.parent, capture_output=True, timeout=120)
        assert killed.returncode == -9, killed.stderr.decode()
        with closing(Store(url, life.pictures)) as store:
            begun_anew(store)
            life.live(store)
            life.holds(store)
