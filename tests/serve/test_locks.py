"""A database that is locked, full, restarted or gone: it is tried again, and then said in plain words."""

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from making import new

from limner.serve import database
from limner.serve.jobs import State, Unavailable
from limner.serve.store import Store


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY", 0.1)
    monkeypatch.setattr(database, "PATIENCE", 0.3)


def hold(url: str) -> sqlite3.Connection:
    """Another program that has begun to write."""
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    return other


def test_a_locked_database_is_told(sqlite, tmp_path: Path, hurry: None) -> None:
    url = sqlite()
    with closing(Store(url, tmp_path)) as store, closing(hold(url)) as other:
        with pytest.raises(Unavailable, match=r"locked for 0\.3 seconds") as told:
            store.submit(new(), most_waiting=9)
        assert told.value.retry_after == 5
        assert store.counts()[State.QUEUED] == 0  # reading goes on
        begun: list[object] = []
        with pytest.raises(Unavailable):
            store._database.write(begun.append)
        assert begun == []  # it waited before it began, when nothing had been read that could have changed
        other.rollback()
        store.submit(new(), most_waiting=9)


def test_a_lock_that_goes_away_is_not_noticed(
    sqlite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY", 0.0)  # so that it is we who try again
    monkeypatch.setattr(database, "PATIENCE", 30.0)
    tried = threading.Event()
    monkeypatch.setattr(database, "locked", lambda error: tried.set() or True)
    url = sqlite()
    with closing(Store(url, tmp_path)) as store, closing(hold(url)) as other:
        release = threading.Thread(target=lambda: tried.wait(30) and other.rollback())
        release.start()
        store.submit(new(), most_waiting=9)
        release.join(30)
        assert tried.is_set()
        assert store.counts()[State.QUEUED] == 1


def test_a_callback_that_asks_the_store_is_told_so(sqlite, tmp_path: Path, hurry: None) -> None:
    """`most` runs within the transaction; reading there works, writing would wait for itself."""
    with closing(Store(sqlite(), tmp_path)) as store:
        job, _ = store.submit(new(), most_waiting=9)
        assert len(store.claim("w", lambda first: len(store.listed(first.owner)))) == 1
        assert store.give_back(job.id, 1, "x") is State.QUEUED

        def writes(first: object) -> int:
            store.submit(new(), most_waiting=9)
            return 1

        with pytest.raises(Unavailable, match="locked"):
            store.claim("w", writes)
        assert store.counts()[State.QUEUED] == 1


def test_a_full_disk_is_told_and_nothing_is_lost(sqlite, tmp_path: Path) -> None:
    """SQLite's own limit of pages stands in for the disk."""
    with closing(Store(sqlite(), tmp_path)) as store:
        kept = [store.submit(new(), most_waiting=9)[0]]
        engine = store._database.engine
        with engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        from sqlalchemy import event

        event.listen(
            engine, "checkout", lambda raw, *_: raw.execute(f"PRAGMA max_page_count={pages}").close()
        )

        def fill() -> None:
            for _ in range(100):
                kept.append(store.submit(new(request={"prompt": "x" * 10_000}), most_waiting=999)[0])

        with pytest.raises(Unavailable, match="is full; free some space") as told:
            fill()
        assert told.value.retry_after == 60
        assert store.listed("anna", limit=500) == [store.get(job.id) for job in reversed(kept)]
        [claimed] = store.claim("w")
        assert claimed.id == kept[0].id


def test_postgresql_may_be_restarted(postgresql: Callable[[], str], tmp_path: Path) -> None:
    import psycopg

    url = postgresql()
    with closing(Store(url, tmp_path)) as store:
        job, _ = store.submit(new(), most_waiting=9)
        with psycopg.connect(url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            )
        assert store.get(job.id) == job
        assert [claimed.id for claimed in store.claim("w")] == [job.id]


def test_a_connection_lost_within_a_transaction_is_told(
    postgresql: Callable[[], str], tmp_path: Path
) -> None:
    import psycopg

    url = postgresql()
    with closing(Store(url, tmp_path)) as store:
        store.submit(new(), most_waiting=9)

        def cut(first: object) -> int:
            with psycopg.connect(url, autocommit=True) as other:
                other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                )
            return 2

        with pytest.raises(Unavailable, match="out of reach"):
            store.claim("w", cut)
        assert store.counts()[State.QUEUED] == 1
        assert len(store.claim("w")) == 1


def test_postgresql_passes_over_what_another_is_claiming(
    postgresql: Callable[[], str], tmp_path: Path
) -> None:
    """SKIP LOCKED: a claim that takes its time keeps nobody waiting."""
    url = postgresql()
    with closing(Store(url, tmp_path)) as first, closing(Store(url, tmp_path)) as second:
        ids = [first.submit(new(), most_waiting=9)[0].id for _ in range(2)]
        inner: list[str] = []

        def most(job: object) -> int:
            inner.extend(claimed.id for claimed in second.claim("w2"))
            return 1

        began = time.monotonic()
        outer = [job.id for job in first.claim("w1", most)]
        assert (outer, inner) == ([ids[0]], [ids[1]])
        assert time.monotonic() - began < 30


def test_postgresql_tells_of_a_lock(postgresql: Callable[[], str], tmp_path: Path, hurry: None) -> None:
    import psycopg

    url = postgresql()
    with closing(Store(url, tmp_path)) as store, psycopg.connect(url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [database.QUEUE_LOCK])
        with pytest.raises(Unavailable, match="locked"):
            store.submit(new(), most_waiting=9)
        other.rollback()
        store.submit(new(), most_waiting=9)
