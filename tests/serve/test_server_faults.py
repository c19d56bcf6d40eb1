"""`limner serve` as a process, which is killed, told to stop, and started again: what was accepted is drawn,
what was finished is there, and nothing that is served is half a file.
"""

import hashlib
import io
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from PIL import Image
from program import Program, serving, until

QUICK = ("--data", "data", "--workers", "2")


@contextmanager
def asked(folder: Path, *arguments: str, light: bool = True) -> Iterator[tuple[Program, httpx.Client]]:
    """A server, and a client of it."""
    with ExitStack() as stack:
        server = stack.enter_context(serving(folder, *arguments, light=light))
        yield server, stack.enter_context(httpx.Client(base_url=server.address, timeout=60))


def more_done(client: httpx.Client, ids: list[str], count: int) -> bool:
    """Whether more than `count` of these jobs are done."""
    return sum(state(client, id) == "done" for id in ids) > count


def submit(client: httpx.Client, prompt: str, seed: int = 7, count: int = 2) -> str:
    """The id of a job that was accepted."""
    told = {"prompt": prompt, "seed": seed, "count": count, "size": [64, 64], "steps": 4}
    said = client.post("/jobs", json=told)
    assert said.status_code == 202, said.text
    return str(said.json()["id"])


def state(client: httpx.Client, id: str) -> str:
    return str(client.get(f"/jobs/{id}").json()["state"])


def whole(client: httpx.Client, id: str) -> list[str]:
    """The hashes of a job's pictures, every one of which can be read to its end."""
    job = client.get(f"/jobs/{id}").json()
    assert job["state"] == "done", job
    assert len(job["pictures"]) == job["request"]["count"]
    hashes = []
    for picture in job["pictures"]:
        said = client.get(picture["url"])
        assert said.status_code == 200
        with Image.open(io.BytesIO(said.content)) as image:
            image.load()
            assert image.size == (picture["width"], picture["height"])
        hashes.append(hashlib.sha256(said.content).hexdigest())
    return hashes


def agree(folder: Path) -> None:
    """The files on the disk are those that are recorded, whole."""
    with closing(sqlite3.connect(folder / "data" / "limner.db")) as connection:
        rows = dict(connection.execute("SELECT file, sha256 FROM pictures").fetchall())
    found = {
        path.relative_to(folder / "data" / "pictures").as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in (folder / "data" / "pictures").rglob("*")
        if path.is_file()
    }
    assert found == rows


def test_killed_at_every_stage_of_a_job_and_told_to_stop(tmp_path: Path) -> None:
    """One server with a job at each stage, killed; the next one, which ends as it should."""
    with asked(tmp_path, *QUICK) as (first, client):
        recorded = submit(client, "recorded")
        until(lambda: state(client, recorded) == "done")
        before = whole(client, recorded)
        running = submit(client, "wait:go running")
        until(lambda: state(client, running) == "running")
        written = submit(client, "unrecorded")
        until((tmp_path / "unrecorded").exists)
        accepted = submit(client, "accepted")
        assert state(client, accepted) == "queued"
        first.kill()
    (tmp_path / "go").touch()
    with asked(tmp_path, *QUICK) as (second, client):
        for id in (recorded, running, written, accepted):
            until(lambda id=id: state(client, id) == "done")
            whole(client, id)
        assert whole(client, recorded) == before
        agree(tmp_path)
        (tmp_path / "go").unlink()
        drains(second, client, tmp_path)
    agree(tmp_path)


def drains(server: Program, client: httpx.Client, folder: Path) -> None:
    """The first signal lets what is drawn end, refuses what is new, and keeps what waits."""
    running = [submit(client, f"wait:go last {number}", seed=number) for number in range(2)]
    until(lambda: all(state(client, id) == "running" for id in running))
    waiting = submit(client, "wait:go waiting", seed=5)
    server.terminate()
    until(lambda: client.get("/health").json()["status"] == "stopping")
    refused = client.post("/jobs", json={"prompt": "too late"})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert [state(client, id) for id in (*running, waiting)] == ["running", "running", "queued"]
    (folder / "go").touch()
    assert server.end() == 0
    with closing(sqlite3.connect(folder / "data" / "limner.db")) as connection:
        states = dict(connection.execute("SELECT id, state FROM jobs").fetchall())
    assert [states[id] for id in (*running, waiting)] == ["done", "done", "queued"]


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with asked(tmp_path, "--data", "data") as (server, client):
        stuck = submit(client, "wait:never")
        until(lambda: state(client, stuck) == "running")
        server.terminate()
        until(lambda: client.get("/health").json()["status"] == "stopping")
        server.terminate()
        assert server.end() == 128 + signal.SIGTERM
    with closing(sqlite3.connect(tmp_path / "data" / "limner.db")) as connection:
        assert connection.execute("SELECT state FROM jobs").fetchall() == [
            ("running",)
        ]  # found at the next start


# -- the storm -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["accepted", "running", "torn", "unrecorded", "recorded"])
def test_killed_at(tmp_path: Path, stage: str) -> None:
    """Each stage by itself, alone and with jobs that wait; killed in the middle of a file, too."""
    prompts = {"accepted": "wait:go x", "running": "wait:go x", "recorded": "x"}
    with asked(tmp_path, "--data", "data") as (first, client):
        id = submit(client, prompts.get(stage, stage))
        others: list[str] = []
        if stage == "torn":
            first.process.wait(60)
        else:
            others = [submit(client, f"other {number}", seed=number) for number in range(3)]
        if stage == "running":
            until(lambda: state(client, id) == "running")
        elif stage == "unrecorded":
            until((tmp_path / "unrecorded").exists)
        elif stage == "recorded":
            until(lambda: state(client, id) == "done")
        first.kill()
    (tmp_path / "go").touch()
    with asked(tmp_path, "--data", "data") as (_, client):
        for one in (id, *others):
            until(lambda one=one: state(client, one) == "done")
            whole(client, one)
        agree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("light", [True, False], ids=["light", "built-in"])
def test_a_storm(tmp_path: Path, light: bool) -> None:
    """Killed again and again while it draws; what it had said to be finished stays as it was."""
    finished: dict[str, list[str]] = {}
    accepted: list[str] = []
    for life in range(4):
        with asked(tmp_path, *QUICK, light=light) as (server, client):
            before = list(accepted)
            for number in range(6 if light else 2):
                accepted.append(submit(client, "slow red cat", seed=10 * life + number))
            for id, hashes in finished.items():
                assert whole(client, id) == hashes
            until(partial(more_done, client, before, len(before) - 1), 300)  # or the third time were poison
            until(partial(more_done, client, accepted, len(before)), 300)
            for id in accepted:
                if state(client, id) == "done":
                    finished.setdefault(id, whole(client, id))
            server.kill()
    with asked(tmp_path, *QUICK, light=light) as (server, client):
        until(partial(more_done, client, accepted, len(accepted) - 1), 300)
        for id in accepted:
            hashes = whole(client, id)
            assert finished.get(id, hashes) == hashes
        server.terminate()
        assert server.end() == 0
    agree(tmp_path)
