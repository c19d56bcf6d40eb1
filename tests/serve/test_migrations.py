"""Databases of other versions, of other programs, and none at all."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from making import new
from sqlalchemy import create_engine, text

from limner.errors import EngineError
from limner.serve import migrations, store, tables
from limner.serve.database import Database, version
from limner.serve.store import Store

SECOND = '''
"""What a later Limner might do."""

import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{newest}"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("mood", sa.Text, nullable=False, server_default="calm"))
    op.create_index("jobs_by_mood", "jobs", ["mood"])
    {then}
'''


def later(monkeypatch: pytest.MonkeyPatch, folder: Path, then: str = "") -> None:
    """From now on this is a later Limner, with one more migration."""
    shutil.copytree(migrations.FOLDER, folder)
    (folder / "versions" / "next.py").write_text(SECOND.format(newest=tables.VERSION, then=then))
    monkeypatch.setattr(store, "VERSION", "next")
    monkeypatch.setattr(migrations, "FOLDER", folder)


def test_the_migrations_make_the_tables(database_url: str, tmp_path: Path) -> None:
    """`tables.py` and the scripts say the same, and VERSION is the newest script."""
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(migrations.FOLDER))
    assert ScriptDirectory.from_config(config).get_current_head() == tables.VERSION
    Store(database_url, tmp_path).close()
    with closing(Database(database_url)) as database:
        options = {"version_table": tables.VERSION_TABLE, "compare_type": True}

        def differences(connection: object) -> list[object]:
            return compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata)

        assert database.read(differences) == []
        assert database.read(version) == tables.VERSION


def test_an_older_database_is_brought_up_to_date(
    tmp_path: Path, sqlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = sqlite()
    with closing(Store(url, tmp_path)) as old:
        job, _ = old.submit(new(), most_waiting=9)
    later(monkeypatch, tmp_path / "later")
    for _ in range(2):
        with closing(Store(url, tmp_path)) as fresh:
            assert fresh.get(job.id) == job
    with closing(Database(url)) as database:
        moods = database.read(lambda c: c.execute(text("SELECT mood FROM jobs")).scalars().all())
        assert moods == ["calm"]
        assert database.read(version) == "next"


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, sqlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = sqlite()
    with closing(Store(url, tmp_path)) as old:
        job, _ = old.submit(new(), most_waiting=9)
    with monkeypatch.context() as patch:
        later(patch, tmp_path / "later", then="raise KeyboardInterrupt")
        with pytest.raises(KeyboardInterrupt):
            Store(url, tmp_path)
    with closing(Store(url, tmp_path)) as same:
        assert same.get(job.id) == job


def test_a_newer_database_is_refused(database_url: str, tmp_path: Path) -> None:
    Store(database_url, tmp_path).close()
    with closing(Database(database_url)) as database:
        table = tables.VERSION_TABLE
        change = f"UPDATE {table} SET version_num = '{{}}'"
        database.write(lambda c: c.exec_driver_sql(change.format("99")).close())
        try:
            for _ in range(2):
                with pytest.raises(EngineError, match=r"newer Limner.*99"):
                    Store(database_url, tmp_path)
            assert database.read(version) == "99"
        finally:
            database.write(lambda c: c.exec_driver_sql(change.format(tables.VERSION)).close())


def test_another_programs_tables_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "theirs.db"
    with closing(sqlite3.connect(file)) as theirs:
        theirs.execute("CREATE TABLE jobs (id INTEGER)")
        theirs.commit()
    with pytest.raises(EngineError, match=r"another program .jobs."):
        Store(f"sqlite:///{file}", tmp_path)
    with closing(sqlite3.connect(file)) as theirs:
        assert [row[0] for row in theirs.execute("SELECT name FROM sqlite_master")] == ["jobs"]


def test_an_empty_postgresql_is_set_up(postgresql_server: str, tmp_path: Path) -> None:
    import psycopg

    with psycopg.connect(postgresql_server.format("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
    url = postgresql_server.format("empty")
    with closing(Store(url, tmp_path)) as fresh:
        job, _ = fresh.submit(new(), most_waiting=9)
    with closing(Store(url, tmp_path)) as again:
        assert again.get(job.id) == job


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 500])
def test_what_is_no_database(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.db"
    file.write_bytes(content)
    with pytest.raises(EngineError, match="no database") as told:
        Store(f"sqlite:///{file}", tmp_path)
    assert str(file) not in str(told.value)
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "url, match",
    [
        ("", "cannot be read"),
        ("limner.db", "cannot be read"),
        ("mysql://x:secret@y/z", "got a URL of mysql"),
        ("sqlite://", "has to be kept"),
        ("sqlite:///:memory:", "has to be kept"),
        ("sqlite:///file:x?mode=memory&uri=true", "has to be kept"),
        ("sqlite:////proc/nowhere/x.db", "cannot be opened"),
        ("postgresql://u:secret@127.0.0.1:1/z", "out of reach"),
        ("postgresql+asyncpg://u:secret@127.0.0.1:1/z", "out of reach"),
    ],
)
def test_what_is_no_url(tmp_path: Path, url: str, match: str) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises(EngineError, match=match) as told:
        Store(url, tmp_path)
    assert "secret" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_a_new_database_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "x.db"
    with closing(Store(f"sqlite:///{file}", tmp_path)) as fresh:
        fresh.submit(new(), most_waiting=9)
        kept = sorted(file.parent.iterdir())
        assert [path.name for path in kept] == ["x.db", "x.db-shm", "x.db-wal"]
        assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}


def test_sqlite_is_set_up_to_last(tmp_path: Path, sqlite) -> None:
    with closing(Database(sqlite())) as database:

        def pragma(name: str):
            return lambda c: c.exec_driver_sql(f"PRAGMA {name}").scalar_one()

        assert database.write(pragma("journal_mode")) == "wal"
        assert database.write(pragma("synchronous")) == 2  # FULL
        assert database.light(pragma("synchronous")) == 1  # NORMAL: what progress is written with
        assert database.write(pragma("synchronous")) == 2  # FULL
        assert database.write(pragma("foreign_keys")) == 1
        assert database.write(pragma("busy_timeout")) == 2000


def test_other_programs_can_read_it(tmp_path: Path, sqlite) -> None:
    """A copy for safe keeping is made while the service runs, as docs say: with SQLite's own backup."""
    url = sqlite()
    with closing(Store(url, tmp_path)) as fresh:
        job, _ = fresh.submit(new(), most_waiting=9)
        source = sqlite3.connect(url.removeprefix("sqlite:///"))
        with closing(source), closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
            source.backup(copy)
    with closing(Store(f"sqlite:///{tmp_path / 'copy.db'}", tmp_path)) as restored:
        assert restored.get(job.id) == job


def test_foreign_keys_hold(database_url: str, tmp_path: Path) -> None:
    nowhere = tables.repeats.insert().values(owner="a", name="b", body="c", job="d")
    with closing(Database(database_url)) as database, pytest.raises(EngineError, match="refused"):
        database.write(lambda c: c.execute(nowhere).close())


def test_nothing_of_sqlalchemy_is_left_open(tmp_path: Path, sqlite) -> None:
    url = sqlite()
    Store(url, tmp_path).close()
    engine = create_engine(url)
    with engine.connect() as connection:  # nobody else holds it, so the log can be taken away
        assert connection.exec_driver_sql("PRAGMA journal_mode=DELETE").scalar_one() == "delete"
    engine.dispose()
