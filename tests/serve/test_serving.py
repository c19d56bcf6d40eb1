"""limner serve and limner keys: settings, refusals, an address, an end; and clients that are slow."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from fakes import FakeEngine
from typer.testing import CliRunner

from limner.cli import app as cli
from limner.errors import ConfigError
from limner.serve import listening
from limner.serve.app import create_app
from limner.serve.settings import Settings
from limner.serve.store import Store

PATIENCE = 30.0  # seconds


def run(*words: str | Path) -> str:
    """What a command prints. Raises what it raises."""
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


# -- settings


def test_options_stand_over_the_environment_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_PORT", "7861")
    monkeypatch.setenv("LIMNER_MODEL", "mini, sdxl=/models/a.safetensors")
    monkeypatch.setenv("LIMNER_QUEUE", "5")
    chosen = Settings(queue=6)
    assert (chosen.port, chosen.queue, chosen.host) == (7861, 6, "127.0.0.1")
    assert chosen.models == {"mini": "mini", "sdxl": "/models/a.safetensors"}
    assert chosen.database_url.endswith("/limner-data/limner.db")


def test_models_go_by_names_without_folders() -> None:
    assert Settings(model=("/m/dream.safetensors", "org/name", "x=/m/y/")).models == {
        "dream": "/m/dream.safetensors",
        "name": "org/name",
        "x": "/m/y/",
    }
    for model in (("a/x", "b/x"), ("=x",), ("../..",)):
        with pytest.raises(ConfigError, match="--model"):
            Settings(model=model).models


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("127.9.9.9", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_what_is_loopback(host: str, alone: bool) -> None:
    assert Settings(host=host).loopback is alone


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--port", "70000"), "port"),
        (("--workers", "0"), "workers"),
        (("--metadata", "some"), "metadata"),
        (("--host", "0.0.0.0"), "limner keys add"),
        (("--host", "no.such.host.invalid", "--port", "0"), "limner keys add"),
        (("--loras", "nowhere"), "no folder"),
        (("--model", "a/x", "--model", "b/x"), "two models"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run("serve", "--data", tmp_path, *words)


def test_folders_and_models_that_are_not_there_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for data in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        for words in (("serve", "--port", "0"), ("keys", "list")):
            with pytest.raises(ConfigError, match="cannot use the folder"):
                run(*words, "--data", data)
    with pytest.raises(ConfigError, match='there is no model "nosuch"'):
        run("serve", "--port", "0", "--data", tmp_path, "--model", "nosuch")


def test_a_port_that_is_taken_and_a_folder_that_is_served(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"port {port}"):
            run("serve", "--data", tmp_path, "--port", port)
    with listening.alone(Settings(data=tmp_path)), pytest.raises(ConfigError, match="another server"):
        run("serve", "--data", tmp_path, "--port", "0")


# -- keys


def test_keys_are_made_shown_once_listed_and_revoked(tmp_path: Path) -> None:
    secret = run("keys", "add", "anna", "--data", tmp_path, "--budget", "50", "--metadata", "none").strip()
    assert secret.startswith("limner-")
    listed = run("keys", "list", "--data", tmp_path)
    assert "anna" in listed
    assert "none" in listed
    assert secret not in listed
    with closing(Store(Settings(data=tmp_path).database_url, tmp_path)) as store:
        found = store.key_of(secret)
        assert found is not None
        assert (found.name, found.budget, found.metadata) == ("anna", 50, "none")
        assert found.id in listed
        run("keys", "revoke", found.id, "--data", tmp_path)
        assert store.key_of(secret) is None
    assert "revoked" in run("keys", "list", "--data", tmp_path)


def test_help_needs_none_of_the_libraries_of_the_server() -> None:
    code = (
        "import sys\n"
        "from limner.cli import main\n"
        "for words in (['--help'], ['serve', '--help'], ['keys', 'add', '--help']):\n"
        "    sys.argv = ['limner', *words]\n"
        "    try: main()\n"
        "    except SystemExit as stopped: assert not stopped.code\n"
        "print(sorted({'torch', 'fastapi', 'sqlalchemy', 'uvicorn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# -- a server that listens


@contextmanager
def listened(url: str, folder: Path, **settings: float) -> Iterator[tuple[str, listening.Server, FakeEngine]]:
    """Address, server and engine, in a thread of this process."""
    chosen = Settings(data=folder, database=url, port=0, drain=5, **settings)  # type: ignore[arg-type]
    store = Store(url, chosen.pictures)
    engine = FakeEngine(store, at_once=False)
    addresses: list[str] = []
    told = threading.Event()

    def tell(address: str) -> None:
        addresses.append(address)
        told.set()

    server = listening.Server(create_app(engine, store, chosen), chosen, tell)
    with closing(listening.listening(chosen)) as port:
        thread = threading.Thread(target=lambda: server.run(sockets=[port]))
        thread.start()
        try:
            assert told.wait(PATIENCE)
            yield addresses[0], server, engine
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            store.close()
    assert not thread.is_alive()


def test_a_signal_refuses_new_jobs_lets_the_rest_end_and_stops(
    sqlite: Callable[[], str], tmp_path: Path
) -> None:
    with listened(sqlite(), tmp_path) as (address, server, engine), httpx.Client(base_url=address) as client:
        waiting = threading.Event()
        stop = engine.stop

        def slow(*, drain: float) -> None:
            waiting.wait(PATIENCE)
            stop(drain=drain)

        engine.stop = slow  # type: ignore[method-assign]
        job = client.post("/jobs", json={"prompt": "x"}).json()
        server.handle_exit(signal.SIGTERM, None)
        said = client.post("/jobs", json={"prompt": "x"})
        assert (said.status_code, said.headers["retry-after"]) == (503, "10")
        assert client.get(f"/jobs/{job['id']}").json()["state"] == "queued"
        waiting.set()
        deadline = time.monotonic() + PATIENCE
        while not server.should_exit:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert engine.stopped == 5


def test_a_stream_does_not_keep_the_server_from_its_end(sqlite: Callable[[], str], tmp_path: Path) -> None:
    with listened(sqlite(), tmp_path) as (address, server, _), httpx.Client(base_url=address) as client:
        job = client.post("/jobs", json={"prompt": "x"}).json()
        with client.stream("GET", f"/jobs/{job['id']}/events", timeout=PATIENCE) as events:
            lines = events.iter_lines()
            assert next(lines) == "event: progress"
            server.handle_exit(signal.SIGTERM, None)
            assert not any(line == "event: end" for line in lines)  # it ends, and the job has not


def test_slow_clients_are_left_and_harm_nobody(
    sqlite: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HEADER_SECONDS", 0.3)
    with listened(sqlite(), tmp_path) as (address, _, _):
        port = int(address.rstrip("/").rpartition(":")[2])
        slow = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(40)]
        try:
            for one in slow[:20]:
                one.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
            with httpx.Client(base_url=address) as client:
                for _ in range(5):
                    assert client.get("/health").status_code == 200
                many = "bytes=" + ",".join(f"{at}-{at + 1}" for at in range(2000))
                assert client.get("/", headers={"range": many}).status_code == 200
                with contextlib.suppress(httpx.TransportError):  # it may close before all is sent
                    assert client.get("/health", headers={"x-large": "x" * 2_000_000}).status_code == 400
                assert httpx.get(f"{address}health").status_code == 200
            for one in slow:
                assert one.recv(1) == b""  # closed by the server
        finally:
            for one in slow:
                one.close()


def test_health_does_not_wait_for_the_database(sqlite: Callable[[], str], tmp_path: Path) -> None:
    import sqlite3

    url = sqlite()
    with (
        listened(url, tmp_path) as (address, _, _),
        httpx.Client(base_url=address, timeout=PATIENCE) as client,
    ):
        client.post("/jobs", json={"prompt": "x"})
        lock = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        with closing(lock):
            lock.execute("BEGIN EXCLUSIVE")
            waiting = threading.Thread(target=lambda: client.post("/jobs", json={"prompt": "x"}))
            waiting.start()
            for _ in range(10):
                assert httpx.get(f"{address}health", timeout=PATIENCE).status_code == 200
            assert waiting.is_alive()  # a job does wait for it
            lock.execute("ROLLBACK")
            waiting.join(PATIENCE)


@pytest.mark.slow
def test_the_command_serves_drains_and_exits(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from limner.cli import main; main()", "serve", "--data", str(tmp_path)]
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/", served.stdout.readline())
            assert address is not None
            deadline = time.monotonic() + 120
            while httpx.get(f"{address[0]}health").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            asked = {"prompt": "a red cat", "count": 1, "steps": 2}
            job = httpx.post(f"{address[0]}jobs", json=asked).json()["id"]
            with httpx.stream("GET", f"{address[0]}jobs/{job}/events", timeout=120) as events:
                assert "event: end" in list(events.iter_lines())
            assert httpx.get(f"{address[0]}jobs/{job}").json()["state"] == "done"
            served.send_signal(signal.SIGTERM)
            assert served.wait(60) == 0
        finally:
            served.kill()
    refused = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "limner keys add" in refused.stderr


def test_a_second_signal_ends_it_at_once(
    sqlite: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with listened(sqlite(), tmp_path) as (_, server, engine):
        hold = threading.Event()
        engine.stop = lambda *, drain: bool(hold.wait(PATIENCE)) and None  # type: ignore[method-assign]
        server.handle_exit(signal.SIGTERM, None)
        assert ended == []
        server.handle_exit(signal.SIGTERM, None)
        assert ended == [128 + signal.SIGTERM]
        hold.set()
