"""The process that draws: one for each device. It owns the models, so that whatever happens to them happens
to it alone, and the engine starts another one.

    engine -> Open, Measure, Draw, Stop, Quit -> worker -> Ready, Opened, Steps, Done, ..., Idle -> engine

What memory is too small for is drawn in halves, down to one picture, then in the way of a `lean` drawer, and
then that job alone fails. Nothing here imports torch: a drawer does.
"""

import contextlib
import gc
import os
import re
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from limner.errors import EngineError, LimnerError, RequestError, WeightsError
from limner.serve import files
from limner.serve.jobs import Drawn, Failure, new_id
from limner.serve.messages import (
    Bench,
    Done,
    Draw,
    Drawer,
    EngineSettings,
    Failed,
    Idle,
    Look,
    Measure,
    Open,
    Opened,
    Opening,
    Pays,
    Piece,
    Quit,
    Ready,
    Said,
    Sick,
    Steps,
    Stop,
    Stopped,
    Tight,
    Unopened,
    Unsaved,
)

STEP_SECONDS = 0.05  # between two messages about steps, at least
PATH = re.compile(
    r"(?<![\w./\\])(?:[A-Za-z]:)?(?:[/\\][^\s/\\\"',;:()]+)+[/\\]([^\s/\\\"',;:()]*)"
)  # absolute


def work(pipe: Connection, bench: Bench) -> None:
    """The whole life of the process: until it is told to quit, or the engine is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the engine says when to stop
        signal.signal(number, signal.SIG_IGN)
    Worker(pipe, bench).run()


def pipeline_drawer(settings: EngineSettings, pictures: Path, device: str) -> Drawer:
    """What draws where nothing else is asked for. It brings torch, so it is called in worker processes."""
    from limner.serve.drawer import PipelineDrawer

    return PipelineDrawer(settings, pictures, device)


@dataclass(frozen=True, slots=True)
class Group:
    """Pieces that are tried together."""

    pieces: tuple[Piece, ...]
    lean: bool = False


@dataclass(slots=True)
class Sheet:
    """What there is of a job's pictures."""

    count: int  # of its pictures
    share: float = 0.0  # of its steps, as it was told
    drawn: dict[int, Drawn] = field(default_factory=dict)  # index -> what is on the disk
    shown: dict[int, bytes] = field(default_factory=dict)  # index -> its last preview
    notices: dict[str, None] = field(default_factory=dict)  # in order, each once
    warnings: dict[str, None] = field(default_factory=dict)


class Worker:
    """One task after the other, while a second thread listens."""

    def __init__(self, pipe: Connection, bench: Bench) -> None:
        self.pipe = pipe
        self.bench = bench
        self.tasks: SimpleQueue[Open | Measure | Draw | Quit] = SimpleQueue()
        self.stopped: set[tuple[str, int]] = set()  # to be stopped: written by the listener
        self.over: set[tuple[str, int]] = set()  # of this task: about these nothing more is said
        self.jobs: dict[tuple[str, int], Sheet] = {}  # of this task
        self.fits: dict[str, int] = {}  # shape -> pictures at once for which memory lasts
        self.model = ""  # opened last
        self.told = self.shown = float("-inf")  # when steps, and previews, were last sent

    def run(self) -> None:
        """Until told to quit."""
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.drawer = self.bench.make(self.bench.device)
        except Exception:
            self._say(Sick(traceback.format_exc()))
            return
        self._say(Ready())
        while not isinstance(task := self.tasks.get(), Quit):
            if isinstance(task, Open):
                self._open(task.model)
            elif isinstance(task, Measure):
                self._measure()
            else:
                self._draw(task.pieces)
                self.stopped.difference_update(self.jobs)
            self._say(Idle())

    def _listen(self) -> None:
        while True:
            try:
                said = self.pipe.recv()
            except (EOFError, OSError):  # the engine is gone, and nobody would take what is drawn
                os._exit(1)
            if isinstance(said, Stop):
                self.stopped |= said.keys
                continue
            self.tasks.put(said)
            if isinstance(said, Quit):
                return

    def _say(self, said: Said) -> None:
        try:
            self.pipe.send(said)
        except OSError:
            os._exit(1)

    # -- models --

    def _open(self, model: str) -> Exception | None:
        """Why it cannot be opened, if it cannot."""
        self._say(Opening(model))
        for last in (False, True):
            try:
                self._say(Opened(self.drawer.open(model)))
                self.model = model
                return None
            except Exception as error:
                detail = str(error) if isinstance(error, LimnerError) else traceback.format_exc()
                failed = _let_go(error)
            self._die_if_sick(detail)
            self.drawer.relieve()
            if last or not _of_memory(failed):
                break
        self._say(Unopened(model, detail))
        return failed

    def _measure(self) -> None:
        self._say(Opening(self.model))
        try:
            self._say(Pays(self.model, self.drawer.pays()))
        except Exception as error:  # then they are drawn one by one
            detail = traceback.format_exc()
            _let_go(error)
            self._die_if_sick(detail)

    def _die_if_sick(self, detail: str) -> None:
        try:
            sound = self.drawer.sound()
        except Exception:
            sound = False
        if not sound:
            self._say(Sick(detail))
            os._exit(1)  # a broken device may hang whatever tidies up

    # -- drawing --

    def _draw(self, pieces: tuple[Piece, ...]) -> None:
        self.jobs = {_key(piece): Sheet(count=piece.count) for piece in pieces}
        self.over.clear()
        self.told = self.shown = float("-inf")
        self._drop_stopped()
        if len(self.over) == len(pieces):
            return
        if (error := self._open(pieces[0].model)) is not None:
            for piece in pieces:
                self._fail(piece, _failure_of(error, opening=True), "its model cannot be opened")
            return
        todo = deque(_fitting(pieces, self.fits.get(pieces[0].shape)))
        while todo:
            group = todo.popleft()
            live = tuple(piece for piece in group.pieces if _key(piece) not in self.over)
            if live:
                todo.extendleft(reversed(self._tried(live, group.lean)))

    def _tried(self, pieces: tuple[Piece, ...], lean: bool) -> list[Group]:
        """Draw them; what to try instead, where that failed."""
        try:
            self._drawn(pieces, lean)
            return []
        except Exception as error:
            # All that follows stands outside of this block: while the error is being handled, its frames
            # keep their tensors (https://github.com/pytorch/pytorch/issues/18853).
            detail, failed = traceback.format_exc(), _let_go(error)
        self._die_if_sick(detail)
        pictures = sum(piece.count for piece in pieces)
        if _of_memory(failed):
            self.drawer.relieve()
            if pictures > 1:
                self.fits[pieces[0].shape] = pictures // 2
                self._say(Tight(pieces[0].shape, pictures // 2))
                return _halved(pieces, lean)
            if not lean:
                return [Group(pieces, lean=True)]
        elif len(pieces) > 1:  # which of them it was is seen when each is drawn alone
            return [Group((piece,), lean) for piece in pieces]
        self._fail(pieces[0], _failure_of(failed), detail)
        return []

    def _drawn(self, pieces: tuple[Piece, ...], lean: bool) -> None:
        finished = set()
        with contextlib.closing(_generator(self.drawer.draw(pieces, lean=lean))) as steps:
            for looks in steps:
                self._drop_stopped()
                live = [(p, look) for p, look in zip(pieces, looks, strict=True) if _key(p) not in self.over]
                if not live:
                    return
                self._show(live)
                for piece, look in live:
                    if look.painted:
                        finished.add(_key(piece))
                        self._keep(piece, look)
        missing = {_key(piece) for piece in pieces} - finished - self.over
        if missing:
            raise EngineError("the drawing ended without pictures")

    def _drop_stopped(self) -> None:
        for key in (self.stopped & self.jobs.keys()) - self.over:
            self.over.add(key)
            self._say(Stopped(*key))

    def _keep(self, piece: Piece, look: Look) -> None:
        """The pictures onto the disk; when they are the job's last, say so."""
        key, job = _key(piece), self.jobs[_key(piece)]
        for index, painted in enumerate(look.painted, piece.first):
            name = f"{piece.job}/{piece.attempt}-{index}.png"
            try:
                files.keep(self.bench.pictures, name, painted.data)
            except EngineError as error:
                self.over.add(key)
                self._say(Unsaved(*key, str(error)))
                return
            job.drawn[index] = Drawn(
                id=new_id(),
                job=piece.job,
                index=index,
                seed=painted.seed,
                width=painted.width,
                height=painted.height,
                file=name,
                sha256=sha256(painted.data).hexdigest(),
                created=time.time(),
                prompt=_prompt(piece),
            )
        job.notices |= dict.fromkeys(look.notices)
        job.warnings |= dict.fromkeys(look.warnings)
        if len(job.drawn) == job.count:
            self.over.add(key)
            drawn = tuple(job.drawn[index] for index in sorted(job.drawn))
            self._say(Done(*key, drawn, tuple(job.notices), tuple(job.warnings)))

    def _fail(self, piece: Piece, failure: Failure, detail: str) -> None:
        self.over.add(_key(piece))
        self._say(Failed(*_key(piece), failure, detail))

    # -- showing --

    def _show(self, live: Sequence[tuple[Piece, Look]]) -> None:
        """Say how far they are, with previews now and then."""
        now = time.monotonic()
        if now - self.told < STEP_SECONDS and not any(look.painted for _, look in live):
            return
        self.told = now
        shares = {}
        for piece, look in live:
            job = self.jobs[_key(piece)]
            share = (len(job.drawn) + look.share * piece.count) / job.count
            job.share = min(1.0, max(share, job.share))  # what is drawn a second time does not count back
            shares[_key(piece)] = (job.share, look.stage)
        previews = dict[str, tuple[bytes, ...]]()
        if self.bench.preview_side and now - self.shown >= self.bench.preview_seconds:
            for piece, look in live:
                previews |= self._previews(piece, look)
            self.shown = time.monotonic()
        self._say(Steps(shares, previews))

    def _previews(self, piece: Piece, look: Look) -> dict[str, tuple[bytes, ...]]:
        """Of all pictures of a job: those that are not begun look as the first of those that are."""
        job = self.jobs[_key(piece)]
        try:
            job.shown |= dict(enumerate(look.preview(self.bench.preview_side), piece.first))
        except Exception as error:  # a picture is not lost for want of a preview
            _let_go(error)
        if not job.shown:
            return {}
        usual = next(iter(job.shown.values()))
        return {piece.job: tuple(job.shown.get(index, usual) for index in range(job.count))}


def _key(piece: Piece) -> tuple[str, int]:
    return piece.job, piece.attempt


def _prompt(piece: Piece) -> str:
    """What the pictures are found by: their prompt, or that of the picture that was made larger."""
    said = piece.request.get("prompt")
    if isinstance(said, str):
        return said
    return next((picture.prompt for picture in piece.pictures.values()), "")


def _generator(steps: Iterator[Sequence[Look]]) -> Generator[Sequence[Look], None, None]:
    """Any iterator as a generator, which can be closed."""
    yield from steps


def _fitting(pieces: tuple[Piece, ...], most: int | None) -> list[Group]:
    """All together, or in halves until none has over `most` pictures."""
    if most is None or sum(piece.count for piece in pieces) <= most:
        return [Group(pieces)]
    return [group for half in _halved(pieces, lean=False) for group in _fitting(half.pieces, most)]


def _halved(pieces: tuple[Piece, ...], lean: bool) -> list[Group]:
    if len(pieces) == 1:
        return [Group((half,), lean) for half in pieces[0].halves()]
    half = len(pieces) // 2
    return [Group(pieces[:half], lean), Group(pieces[half:], lean)]


def _let_go(error: Exception) -> Exception:
    """An error without the frames that it came through, and all that they hold."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    gc.collect()
    return error


def _of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's, torch's, or as the pipeline says it."""
    if isinstance(error, MemoryError) or any(
        one.__name__ == "OutOfMemoryError" for one in type(error).__mro__
    ):
        return True
    said = str(error)
    if isinstance(error, EngineError):
        return said.startswith("memory ran out")
    return isinstance(error, RuntimeError) and "allocate memory" in said


def _failure_of(error: Exception, *, opening: bool = False) -> Failure:
    """What clients are told: no paths, nothing of the inside."""
    if _of_memory(error):
        doing = (
            "the model cannot be opened" if opening else "this cannot be drawn, even one picture at a time"
        )
        return Failure(code="memory", message=f"memory ran out: {doing}; ask for smaller pictures")
    if opening or isinstance(error, WeightsError):
        what = "the model" if opening else "a file that the request names"
        return Failure(code="weights", message=f"{what} cannot be opened; the server's log says why")
    if isinstance(error, RequestError):
        return Failure(code="refused", message=PATH.sub(r"\1", str(error)))
    if isinstance(error, LimnerError) and "not finite" in str(error):
        return Failure(code="broken", message=str(error))
    return Failure(code="internal", message="drawing failed; the server's log says why")
