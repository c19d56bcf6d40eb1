"""A worker, spoken to as the engine does, in a thread of the tests: halves, blame, cancelling, previews."""

import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import pytest
from drawers import Sketcher, encoded

from limner.errors import EngineError
from limner.serve import files
from limner.serve.jobs import new_id
from limner.serve.messages import (
    Bench,
    Done,
    Draw,
    Failed,
    Idle,
    Measure,
    Open,
    Opened,
    Pays,
    Piece,
    Quit,
    Ready,
    Steps,
    Stop,
    Stopped,
    Tight,
    Unopened,
    Unsaved,
)
from limner.serve.worker import Worker

DEADLINE = 60  # seconds
Kind = TypeVar("Kind")


class Engine:
    """The other end of the pipe."""

    def __init__(self, pipe: Connection, folder: Path) -> None:
        self.pipe = pipe
        self.folder = folder

    def hear(self) -> Any:
        assert self.pipe.poll(DEADLINE), "the worker says nothing"
        return self.pipe.recv()

    def until_idle(self) -> list[Any]:
        said = []
        while not isinstance(now := self.hear(), Idle):
            said.append(now)
        return said

    def draw(self, *pieces: Piece) -> list[Any]:
        self.pipe.send(Draw(pieces))
        return self.until_idle()

    def tried(self) -> list[str]:
        """What the drawer was asked for, without its process's id."""
        lines = [line.split(maxsplit=1)[1] for line in (self.folder / "log").read_text().splitlines()]
        return [line for line in lines if line.startswith(("draw", "relieve"))]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


@pytest.fixture
def worker(tmp_path: Path, pictures: Path) -> Iterator[Engine]:
    yield from talking(tmp_path, pictures)


def talking(folder: Path, pictures: Path, side: int = 64) -> Iterator[Engine]:
    ours, theirs = Pipe()
    bench = Bench(
        make=lambda device: Sketcher(folder, 4, device),
        device="cpu",
        pictures=pictures,
        preview_seconds=0.0,
        preview_side=side,
    )
    thread = threading.Thread(target=Worker(theirs, bench).run)
    thread.start()
    engine = Engine(ours, folder)
    try:
        assert engine.hear() == Ready()
        yield engine
    finally:
        ours.send(Quit())
        thread.join(DEADLINE)
        assert not thread.is_alive()
        ours.close()
        theirs.close()


def piece(prompt: str, count: int = 1, model: str = "mini", **more: object) -> Piece:
    request = {"prompt": prompt, "seed": 7, "count": count, "size": [16, 16]}
    told = {"job": new_id(), "attempt": 1, "request": request, "shape": "s", "metadata": "full"} | more
    return Piece(model=model, count=count, **told)  # type: ignore[arg-type]


def of(kind: type[Kind], said: list[Any]) -> list[Kind]:
    return [one for one in said if isinstance(one, kind)]


def test_a_model_is_opened_and_measured(worker: Engine) -> None:
    worker.pipe.send(Open("mini"))
    (opened,) = of(Opened, worker.until_idle())
    assert opened.info.name == "mini"
    worker.pipe.send(Measure())
    assert of(Pays, worker.until_idle()) == [Pays("mini", 4)]
    worker.pipe.send(Open("torn"))
    (unopened,) = of(Unopened, worker.until_idle())
    assert unopened.model == "torn"
    assert "/secret/folder/torn.safetensors" in unopened.why


def test_jobs_are_drawn_together_and_every_picture_is_on_the_disk(worker: Engine, pictures: Path) -> None:
    one, two = piece("a cat", 2), piece("a dog", attempt=3)
    done = {answer.job: answer for answer in of(Done, worker.draw(one, two))}
    assert worker.tried() == ["draw a cat+0x2 a dog+0x1"]
    assert [picture.file for picture in done[one.job].drawn] == [f"{one.job}/1-{i}.png" for i in (0, 1)]
    assert [picture.file for picture in done[two.job].drawn] == [f"{two.job}/3-0.png"]
    assert (pictures / f"{one.job}/1-1.png").read_bytes() == encoded(8)
    assert (done[one.job].notices, done[one.job].warnings) == (("as sketched",), ())


def test_steps_are_told_with_previews(worker: Engine) -> None:
    one = piece("a cat", 2)
    steps = of(Steps, worker.draw(one))
    shares = [step.shares[one.job, 1][0] for step in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert steps[-1].shares[one.job, 1][1] == "sketch"
    previews = [step.previews[one.job] for step in steps if step.previews]
    assert previews
    assert all(len(some) == 2 and some[0].startswith(b"\xff\xd8") for some in previews)


def test_without_previews_none_are_made(tmp_path: Path, pictures: Path) -> None:
    for worker in talking(tmp_path, pictures, side=0):
        assert not any(step.previews for step in of(Steps, worker.draw(piece("a cat"))))


def test_where_memory_is_short_halves_are_drawn_and_remembered(worker: Engine, pictures: Path) -> None:
    one = piece("memory:2 a cat", 5)
    said = worker.draw(one)
    (done,) = of(Done, said)
    assert [picture.seed for picture in done.drawn] == [7, 8, 9, 10, 11]
    assert [(pictures / picture.file).read_bytes() for picture in done.drawn] == [
        encoded(7 + i) for i in range(5)
    ]
    assert of(Tight, said) == [Tight("s", 2), Tight("s", 1)]
    name = "memory:2 a cat"
    tried = [f"draw {name}+0x5", "relieve", f"draw {name}+0x2", f"draw {name}+2x3", "relieve"]
    assert worker.tried() == [*tried, f"draw {name}+2x1", f"draw {name}+3x2"]
    shares = [step.shares[one.job, 1][0] for step in of(Steps, said)]
    assert shares == sorted(shares)

    before = len(worker.tried())
    assert len(of(Done, worker.draw(piece(name, 2)))) == 1
    assert worker.tried()[before:] == [f"draw {name}+0x1", f"draw {name}+1x1"]


def test_one_picture_is_drawn_lean_and_then_its_job_alone_fails(worker: Engine) -> None:
    lean, never, fine = piece("memory:lean"), piece("memory:0"), piece("a cat")
    said = worker.draw(lean, never, fine)
    assert {done.job for done in of(Done, said)} == {lean.job, fine.job}
    (failed,) = of(Failed, said)
    assert (failed.job, failed.failure.code) == (never.job, "memory")
    assert "smaller" in failed.failure.message
    assert "draw lean memory:lean+0x1" in worker.tried()


@pytest.mark.parametrize(
    "prompt, code, words",
    [
        ("refuse", "refused", "words.txt knows no such thing; ask for a cat"),
        ("broken", "broken", "seeds 7"),
        ("boom", "internal", "the server's log"),
        ("mute", "internal", "the server's log"),
    ],
)
def test_who_is_at_fault_fails_and_nobody_else(worker: Engine, prompt: str, code: str, words: str) -> None:
    bad, good = piece(prompt), piece("a cat")
    said = worker.draw(good, bad)
    assert [done.job for done in of(Done, said)] == [good.job]
    (failed,) = of(Failed, said)
    assert (failed.job, failed.failure.code) == (bad.job, code)
    assert words in failed.failure.message
    assert "secret" not in failed.failure.message
    assert "Error" in failed.detail


def test_a_model_that_cannot_be_opened_fails_its_jobs_without_a_path(worker: Engine) -> None:
    one, two = piece("a cat", model="torn"), piece("a dog", model="torn")
    failed = of(Failed, worker.draw(one, two))
    assert {answer.job for answer in failed} == {one.job, two.job}
    assert {answer.failure.code for answer in failed} == {"weights"}
    assert not any("secret" in answer.failure.message for answer in failed)


def test_what_is_cancelled_stops_within_a_step_and_the_rest_goes_on(worker: Engine, pictures: Path) -> None:
    endless, other = piece("endless"), piece("wait:go a cat")
    worker.pipe.send(Draw((endless, other)))
    while not isinstance(worker.hear(), Steps):
        pass
    worker.pipe.send(Stop(frozenset({(endless.job, 1), (other.job, 1)})))
    stopped = of(Stopped, worker.until_idle())
    assert {(answer.job, answer.attempt) for answer in stopped} == {(endless.job, 1), (other.job, 1)}
    assert not pictures.exists()

    waiting, other = piece("wait:gate"), piece("a cat")
    worker.pipe.send(Draw((other, waiting)))
    worker.pipe.send(Stop(frozenset({(other.job, 1)})))
    (worker.folder / "gate").touch()
    said = worker.until_idle()
    assert [done.job for done in of(Done, said)] == [waiting.job]
    assert [answer.job for answer in of(Stopped, said)] == [other.job]


def test_what_was_cancelled_before_it_began_is_not_drawn(worker: Engine) -> None:
    first, second = piece("wait:gate"), piece("a cat")
    worker.pipe.send(Draw((first,)))
    worker.pipe.send(Draw((second,)))
    worker.pipe.send(Stop(frozenset({(second.job, 1)})))
    (worker.folder / "gate").touch()
    assert len(of(Done, worker.until_idle())) == 1
    assert worker.until_idle() == [Stopped(second.job, 1)]
    assert worker.tried() == ["draw wait:gate+0x1"]


def test_pictures_that_cannot_be_saved_are_said_so(worker: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    keep: Callable[..., Path] = files.keep

    def full(folder: Path, name: str, data: bytes) -> Path:
        if name.endswith("1-1.png"):
            raise EngineError("a picture cannot be saved: No space left on device; see to the disk")
        return keep(folder, name, data)

    monkeypatch.setattr(files, "keep", full)
    bad, good = piece("a cat", 2), piece("a dog")
    said = worker.draw(bad, good)
    assert [done.job for done in of(Done, said)] == [good.job]
    (unsaved,) = of(Unsaved, said)
    assert unsaved.job == bad.job
    assert "No space left" in unsaved.why
