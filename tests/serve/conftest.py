"""Stores for the tests of the service: each test that takes one runs with SQLite and with PostgreSQL."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for drawers and fakes, which spawned children import too


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a server for the whole run, to be formatted with a database's name. Skips where PostgreSQL
    or its driver is not installed."""
    pytest.importorskip("psycopg", reason="needs psycopg, which [serve] brings")
    from postgresql import programs, server

    if (bin := programs()) is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with server(bin) as url:
        yield url


@pytest.fixture(scope="session")
def postgresql(postgresql_server: str) -> Callable[[], str]:
    """Each call empties the database and says its URL: a new one for each test would be a thousand files."""
    import psycopg

    from limner.serve.store import Store
    from limner.serve.tables import metadata

    with psycopg.connect(postgresql_server.format("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE limner")
    url = postgresql_server.format("limner")
    Store(url, Path()).close()

    def fresh() -> str:
        with psycopg.connect(url, autocommit=True) as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(f"DELETE FROM {table.name}")
        return url

    return fresh


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Each call makes a database file with Limner's tables and says its URL."""
    from limner.serve.store import Store

    folder = tmp_path_factory.mktemp("sqlite")
    names = (f"{number}.db" for number in count())
    Store(f"sqlite:///{folder / 'limner.db'}", Path()).close()

    def fresh() -> str:
        name = next(names)
        shutil.copyfile(folder / "limner.db", folder / name)
        return f"sqlite:///{folder / name}"

    return fresh


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store, once of each kind."""
    return str(request.getfixturevalue(request.param)())


@pytest.fixture
def open_store(database_url: str, tmp_path: Path) -> Iterator[Callable[[], object]]:
    """Opens a store on `database_url`: one more server each time. They are closed after the test."""
    from limner.serve.store import Store

    with ExitStack() as stack:

        def opened() -> Store:
            store = Store(database_url, tmp_path / "pictures")
            stack.callback(store.close)
            return store

        yield opened


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Callable[[], str]], object]]:
    """One store of each kind for the whole run: most of a small test's time would be a new one's first use of
    each statement, which SQLAlchemy has to compile."""
    from limner.serve.store import Store

    with ExitStack() as stack:
        opened: dict[Callable[[], str], Store] = {}

        def shared(kind: Callable[[], str]) -> Store:
            if kind not in opened:
                opened[kind] = Store(kind(), Path())
                stack.callback(opened[kind].close)
            return opened[kind]

        yield shared


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, shared_store: Callable[[object], object], tmp_path: Path) -> object:
    """An empty store, once of each kind."""
    from living import emptied

    store = shared_store(request.getfixturevalue(request.param))
    emptied(store, tmp_path / "pictures")
    return store
