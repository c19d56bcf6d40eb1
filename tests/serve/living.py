"""A short life of the service, and faults at every point of it where something is written.

`Life` plays the clients and the engine against a store. It remembers what it was told, and nothing else: what
it was told has to be true for ever after.
"""

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from making import drawn, new
from sqlalchemy import event

from limner.errors import EngineError
from limner.serve import files
from limner.serve.jobs import Drawn, Job, State
from limner.serve.store import Store
from limner.serve.tables import metadata


class PowerCut(BaseException):
    """Nothing after this happens."""


class Life:
    """Three jobs and an upload: one is finished at once, one at the second attempt, one cancelled.

    With `fail`, everything that is asked of the store fails at its first point, then at its second, and so
    on, until there is none left; see `fault`.
    """

    def __init__(self, pictures: Path, fail: Callable[[str], None] | None = None) -> None:
        self.pictures = pictures
        self.fail = fail
        self.accepted: dict[str, str] = {}  # name -> job
        self.finished: dict[str, list[Drawn]] = {}  # job -> pictures
        self.cancelled: list[str] = []
        self.upload = drawn(job=None)
        self.uploaded: list[Drawn] = []
        self.errors = 0

    def live(self, store: Store) -> None:
        """From the beginning, or from where it was interrupted; a submission that was not answered is sent
        again under its name, as clients do."""
        self.store = store
        for name in ("first", "second", "third"):
            if name not in self.accepted:
                job, _ = self.told(lambda name=name: store.submit(new(), idempotency=name, most_waiting=9))
                self.accepted[name] = job.id
        if not self.uploaded:
            upload = self.kept(self.upload, b"upload")
            self.told(lambda: store.add_upload("anna", upload))
            self.uploaded.append(upload)
        if not self.cancelled:
            self.told(lambda: store.cancel(self.accepted["third"]))
            self.cancelled.append(self.accepted["third"])
        while jobs := self.told(lambda: store.claim("w", 2)):
            for job in jobs:
                self.draw(store, job)

    def draw(self, store: Store, job: Job) -> None:
        """The second job is given back at its first attempt."""
        self.told(lambda: store.progress(job.id, job.attempts, 0.5, "drawing"))
        if job.id == self.accepted["second"] and job.attempts == 1:
            self.told(lambda: store.give_back(job.id, 1, "the worker died"))
            return
        plain = [drawn(job=job.id, index=index, attempt=job.attempts) for index in (0, 1)]
        made = [self.kept(one, f"{job.id} {one.index}".encode() * 100) for one in plain]
        if self.told(lambda: store.finish(job.id, job.attempts, made, [1, 2])):
            self.finished[job.id] = made

    def kept(self, picture: Drawn, data: bytes) -> Drawn:
        from dataclasses import replace

        self.told(lambda: files.keep(self.pictures, picture.file, data))
        return replace(picture, sha256=hashlib.sha256(data).hexdigest())

    def told(self, ask: Callable[[], Any]) -> Any:
        """The answer; to an error, the same is asked again: once, or as long as `fail` has it fail."""
        nth = 0
        while True:
            nth += 1
            try:
                if self.fail is None:
                    return ask()
                with fault(self.store, nth, self.fail) as passed:
                    answer = ask()
                assert len(passed) < nth
                return answer
            except EngineError:
                self.errors += 1
                assert self.fail is not None or self.errors == 1

    def holds(self, store: Store) -> None:
        """What was told is so, every recorded file is there and whole, and nothing is left in between."""
        listed = {job.id: job for job in store.listed(None)}
        assert len(listed) == 3, "a submission was lost, or became two jobs"
        assert set(self.accepted.values()) == set(listed)
        states = [listed[self.accepted[name]].state for name in ("first", "second", "third")]
        assert states == [State.DONE, State.DONE, State.CANCELLED]
        for id, pictures in self.finished.items():
            assert listed[id].pictures == tuple(pictures)
        names = [Path(file).stem for file in store.files() if file.startswith(files.UPLOADS)]
        uploads = [store.picture(name) for name in names]
        assert {picture.id for picture in self.uploaded} <= {picture.id for picture in uploads}
        recorded = [*uploads, *(picture for job in listed.values() for picture in job.pictures)]
        assert len(recorded) == 4 + len(uploads)
        for picture in recorded:
            data = (self.pictures / picture.file).read_bytes()
            assert hashlib.sha256(data).hexdigest() == picture.sha256
        files.sweep(self.pictures, store.files().__contains__)
        there = [path for path in self.pictures.rglob("*") if path.is_file()]
        assert {path.relative_to(self.pictures).as_posix() for path in there} == {
            picture.file for picture in recorded
        }


def begun_anew(store: Store) -> None:
    """As a server that is started again: nothing is left but the disk. (A new Store would do; this one has
    its statements compiled already, which is most of the time that a test takes.)"""
    store.close()
    store._unheard.clear()
    store.recover()
    files.sweep(store.pictures, store.files().__contains__)


def emptied(store: Store, pictures: Path, fail: Callable[[str], None] | None = None) -> Life:
    """A life to begin with nothing there."""
    store.close()
    store._unheard.clear()
    store.pictures = pictures
    for table in reversed(metadata.sorted_tables):
        store._database.light(lambda c, table=table: c.execute(table.delete()).close())
    return Life(pictures, fail)


@contextmanager
def fault(store: Store, nth: int, fail: Callable[[str], None]) -> Iterator[list[str]]:
    """At the Nth point `fail` is called with its name; gives the names of all points that were passed.

    A statement and a flush are one point, before. A commit and a move are two, before and after: the answer
    may be lost. Writing a file is one, half-way.
    """
    passed: list[str] = []

    def point(name: str) -> None:
        passed.append(name)
        if len(passed) == nth:
            fail(name)

    def both(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def act(*arguments: Any) -> None:
            point(f"before {name}")
            real(*arguments)
            point(f"after {name}")

        return act

    def half(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        point("half of a file")
        path.unlink()
        write(path, data)

    def statement(cursor: object, text: str, *rest: object) -> None:
        point(f"statement {text[:40]}")

    engine = store._database.engine
    dialect, write = engine.dialect, files._write
    hooks: list[tuple[Any, str, Any]] = [
        (dialect, "do_commit", both("commit", dialect.do_commit)),
        (files, "_write", half),
        (files, "_move", both("move", files._move)),
        (files, "_flush", lambda folder, real=files._flush: (point("flush"), real(folder))),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in hooks]
    event.listen(engine, "do_execute", statement)
    for owner, name, hook in hooks:
        setattr(owner, name, hook)
    try:
        yield passed
    finally:
        for owner, name, real in before:
            setattr(owner, name, real)
        event.remove(engine, "do_execute", statement)


def die(name: str) -> None:
    """As a power cut does, as far as the files of others are concerned."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":  # URL, pictures, N: live, and be killed at the Nth point
    opened = Store(sys.argv[1], Path(sys.argv[2]))
    with fault(opened, int(sys.argv[3]), die):
        Life(Path(sys.argv[2])).live(opened)
    opened.close()
