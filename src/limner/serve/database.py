"""One database under the store: SQLite or PostgreSQL, transactions tried again, errors in plain words.

SQLite: the write-ahead log with synchronous=FULL, so a commit is on the disk when it returns; a writer takes
its lock at BEGIN IMMEDIATE, where waiting is safe, and never half-way. PostgreSQL: READ COMMITTED and row
locks.
"""

import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.schema import Table

from limner.errors import EngineError
from limner.serve.jobs import Unavailable
from limner.serve.tables import VERSION_TABLE

Result = TypeVar("Result")
Mode = Literal["read", "write", "light"]
BUSY = 2.0  # seconds for which SQLite waits for a lock by itself
PATIENCE = 10.0  # seconds for which a transaction is tried again
PAUSE = 0.02  # seconds between two tries, at most
AGAIN = {  # what PostgreSQL reports when trying again is the cure
    "40001",  # serialisation failure
    "40P01",  # deadlock
    "55P03",  # a lock was not to be had in time
}
QUEUE_LOCK = 0x6C696D6E6572  # "limner", the name of PostgreSQL's lock for what must happen one at a time
POOL: dict[str, Any] = {
    "pool_size": 8,  # connections that are kept
    "max_overflow": 24,  # and so many more in a rush
    "hide_parameters": True,  # prompts are no business of the log's
}
log = logging.getLogger(__name__)


class Database:
    """Runs functions of a Connection as transactions. They may be run more than once, so nothing outside the
    database may come of them before they return.

    Raises EngineError for a URL that is none, and Unavailable where the database cannot do it now.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self._modes = {
            mode: self._engine.execution_options(limner=mode) for mode in ("read", "write", "light")
        }
        self._one = threading.Lock() if self._engine.dialect.name == "sqlite" else None

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, whose events tests listen to."""
        return self._engine

    def close(self) -> None:
        """Close every connection that nobody uses."""
        self._engine.dispose()

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Of one moment, with SQLite; PostgreSQL's statements each see what is committed by then."""
        return self._run("read", work)

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """On the disk once it returns. When it raises Unavailable, it has nearly always not happened; only a
        connection that was lost during the commit itself leaves that open."""
        return self._run("write", work)

    def light(self, work: Callable[[Connection], Result]) -> Result:
        """Written without waiting for the disk: a power cut may undo it, and nothing but it."""
        return self._run("light", work)

    def _run(self, mode: Mode, work: Callable[[Connection], Result]) -> Result:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self._turn(mode, deadline), self._modes[mode].begin() as connection:
                    return work(connection)
            except (DBAPIError, NoConnection) as error:
                if not locked(error) or time.monotonic() >= deadline:
                    raise told(error) from error
                log.info("the database is locked, trying again")
            time.sleep(random.uniform(0, PAUSE))

    @contextmanager
    def _turn(self, mode: Mode, deadline: float) -> Iterator[None]:
        """SQLite's writers of this process queue up here: waiting for its file lock means polling, and who
        polls least often starves."""
        if self._one is None or mode == "read":
            yield
        elif self._one.acquire(timeout=max(0.0, deadline - time.monotonic())):
            try:
                yield
            finally:
                self._one.release()
        else:
            raise _locked()


def one_at_a_time(connection: Connection) -> None:
    """Keep every other transaction that says the same waiting for this one's end, as SQLite's writers do."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:name)"), {"name": QUEUE_LOCK})


def now(connection: Connection) -> float:
    """Seconds since 1970 by a clock that everybody who shares the database has in common."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return time.time()


def put(connection: Connection, table: Table, values: dict[str, Any]) -> None:
    """Insert a row, or update the one with this primary key."""
    made = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    names = [column.name for column in table.primary_key]
    changes = {name: value for name, value in values.items() if name not in names}
    connection.execute(made.values(values).on_conflict_do_update(index_elements=names, set_=changes))


def version(connection: Connection) -> str | None:
    """The newest migration that was run on this database; None: it is empty, or another program's."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar_one_or_none()
    return None if found is None else str(found)


def locked(error: SQLAlchemyError) -> bool:
    """Whether the same transaction may succeed if it is tried again: it came upon another one's lock."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.OperationalError):
        return "locked" in str(cause) or "busy" in str(cause)
    return getattr(cause, "sqlstate", None) in AGAIN


def told(error: SQLAlchemyError) -> EngineError:
    """The same in words that may go to a client: no statement, no path, no address."""
    cause = getattr(error, "orig", None)
    words = str(cause).lower()
    if locked(error):
        return _locked()
    if "disk is full" in words or getattr(cause, "sqlstate", None) == "53100":
        return Unavailable("the disk of the database is full; free some space on it", 60)
    if "i/o error" in words or "readonly" in words or "read-only" in words:
        return Unavailable("the database cannot be written; see to its disk", 60)
    if "not a database" in words or "malformed" in words:
        return EngineError("the database is damaged, or no database at all; restore it from a copy")
    gone = isinstance(error, OperationalError | InterfaceError) and not isinstance(cause, sqlite3.Error)
    if gone or isinstance(error, NoConnection) or "unable to open" in words:
        return Unavailable("the database is out of reach; see whether it runs and takes connections", 10)
    log.error("the database refused a statement", exc_info=error)
    return EngineError("the database refused what the store asked of it; the server's log says more")


def _locked() -> Unavailable:
    return Unavailable(
        f"the database was locked for {PATIENCE:g} seconds; another program holds it, close that or wait", 5
    )


def _engine(url: str) -> Engine:
    try:
        made = make_url(url)
    except ArgumentError:
        raise EngineError(
            "the store's URL cannot be read; give sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
        ) from None
    if made.get_backend_name() == "postgresql":
        return _postgresql(made.set(drivername="postgresql+psycopg"))
    if made.get_backend_name() != "sqlite":
        raise EngineError(
            f"a store is kept in SQLite or PostgreSQL, got a URL of {made.get_backend_name()}; give "
            "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
        )
    if made.database in (None, "", ":memory:") or made.database.startswith("file:"):
        raise EngineError("a store has to be kept; name its file, as in sqlite:///limner.db")
    return _sqlite(made, Path(made.database))


def _sqlite(url: URL, file: Path) -> Engine:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Prompts are nobody else's business. A file that is there is not touched: closing it would take away
        # the locks that SQLite holds on it for another store of this process.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise EngineError(f"the store {file} cannot be opened: {error.strerror}") from None
    engine = create_engine(url, connect_args={"timeout": BUSY}, **POOL)

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not guessed by the driver
        connection.execute("PRAGMA journal_mode=WAL").close()
        connection.execute("PRAGMA foreign_keys=ON").close()

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        mode = connection.get_execution_options().get("limner", "write")
        connection.exec_driver_sql(f"PRAGMA synchronous={'NORMAL' if mode == 'light' else 'FULL'}")
        connection.exec_driver_sql("BEGIN" if mode == "read" else "BEGIN IMMEDIATE")

    return engine


def _postgresql(url: URL) -> Engine:
    try:
        import psycopg
    except ModuleNotFoundError:
        raise EngineError("PostgreSQL needs psycopg; install it with pip install 'limner[serve]'") from None
    settings = f"-c lock_timeout={BUSY:g}s -c idle_in_transaction_session_timeout=60s"
    engine = create_engine(
        url,
        connect_args={"connect_timeout": 5, "options": settings},
        pool_pre_ping=True,  # a server that was restarted costs no request
        **POOL,
    )

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        if connection.get_execution_options().get("limner") == "light":
            connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")

    log.debug("psycopg %s", psycopg.__version__)
    return engine
