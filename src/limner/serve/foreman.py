"""The engine's thread: it claims jobs, hands them to processes, listens to them, and tells the store.

Whatever happens to a process, its jobs go back to the queue; whatever happens to the store, what is owed to
it is said again until it is heard.
"""

import contextlib
import logging
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from queue import Empty, SimpleQueue

from limner.errors import LimnerError
from limner.serve.events import Event, Hub
from limner.serve.hand import Hand, Inbox
from limner.serve.jobs import Failure, Job, NotFound, State
from limner.serve.ledger import Ledger
from limner.serve.messages import (
    Bench,
    Done,
    Draw,
    Drawer,
    EngineSettings,
    Failed,
    Idle,
    ModelInfo,
    Open,
    Opened,
    Opening,
    Pays,
    Piece,
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
from limner.serve.queue import pictures_of
from limner.serve.store import Store
from limner.serve.worker import pipeline_drawer

log = logging.getLogger(__name__)

TICK = 0.25  # seconds between two looks around, at most
POLL = 1.0  # seconds between two looks into the store when nobody calls, and between two notes of progress
LONGEST_PAUSE = 30.0  # seconds before a process that died is started again, at most
LONGEST_REST = 60.0  # seconds without a new job after pictures could not be saved, at most
SPARE = 64 << 20  # bytes that have to be free on the disk before a job is begun
GRACE = 5.0  # seconds in which idle processes have to end, and the store has to hear what it is owed
OPENINGS = 3  # processes that a model may cost before it is taken to be broken
PATIENCE = 8  # batches that a process draws before it measures a model, should it never find the time
COUNT = 4  # pictures of a request that does not say how many, as in `Request`


class Foreman:
    """Belongs to the thread that `run` is; others look at `hub`, `infos`, `hands`, `faults`, `restarts`."""

    def __init__(
        self, store: Store, settings: EngineSettings, drawer: Callable[[str], Drawer] | None
    ) -> None:
        self.store = store
        self.settings = settings
        self._name = settings.name or "engine"
        self.hub = Hub()
        self._ledger = Ledger(store, self.hub)
        self.inbox: Inbox = SimpleQueue()
        self.hands = [Hand(bench, self.inbox) for bench in _benches(settings, store.pictures, drawer)]
        self._survey = deque(settings.models)  # models that were not opened yet
        self._openings = Counter[str]()  # processes that died while they opened a model
        self.infos: dict[str, ModelInfo] = {}
        self._pays: dict[str, int] = {}  # model -> pictures at once, of its usual size
        self._spared: set[str] = set()  # models whose measuring has killed a process
        self._tight: dict[str, int] = {}  # shape -> pictures at once for which memory lasts
        self.faults: dict[str, str] = {}  # what is wrong -> how to say it
        self.restarts = 0
        self._called = True  # there may be something to claim, or to stop
        self._freed = False  # a process has nothing to do
        self._polled = self._claimed = self._beaten = self._searched = float("-inf")
        self._patience = 5 * POLL if settings.name is None else POLL  # others call nobody here
        self._rest = self._rested = 0.0  # nothing is claimed for so long, which is over then
        self.deadline: float | None = None  # set by `stop`, from another thread
        self._ending = False  # the deadline is over: what is drawn is given back

    def end_by(self, deadline: float) -> None:
        """Come to an end: at once for what is not begun, by `deadline` (of the monotonic clock) for the rest.
        May be called from any thread, and again."""
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)
        self.inbox.put(None)

    # -- the thread ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """What the thread does, until the end that `end_by` sets."""
        while True:
            try:
                self._hear()
                if self.deadline is not None and self._still(self.deadline):
                    break
                self._turn()
                self.faults.pop("store", None)
            except Exception as error:  # nothing may end this thread: it goes on as soon as it can
                self.faults["store"] = "the engine or its database is out of order"
                known = isinstance(error, LimnerError)
                log.warning("the engine was held up: %s", error, exc_info=None if known else error)
                self._called = True
                time.sleep(TICK)

    def _hear(self) -> None:
        """Take in what was said; wait for it a moment."""
        wait = TICK
        with contextlib.suppress(Empty):
            for _ in range(1000):  # whoever talks without end is not to keep the rest from being done
                heard = self.inbox.get(timeout=wait)
                wait = 0.0
                if heard is None:
                    self._called = True
                elif heard[1] is None:
                    self._gone(heard[0])
                else:
                    self._told(heard[0], heard[1])

    def _turn(self) -> None:
        """What is to be done whether or not anything was said."""
        now = time.monotonic()
        for hand in self.hands:
            self._watch_over(hand, now)
        called, self._called = self._called, False
        polls = now - self._polled >= POLL
        if called or polls:
            self._stop_asked()
        try:
            if self.deadline is None:
                self._beat(now)
                self._open_unknown()
                if called or self._freed or now - self._claimed >= self._patience:
                    self._claimed = now
                    self._claim(now)  # before all that is told, so that no process waits for that
        finally:
            self._ledger.pay()
        if polls:
            self._polled = now
            self._ledger.look({job.id for hand in self.hands for job in hand.jobs()})

    def _watch_over(self, hand: Hand, now: float) -> None:
        """Start a process where there is none, and kill one that hangs."""
        if not hand.alive:
            if self.deadline is None and now >= hand.start_at:
                hand.start_at = now + LONGEST_PAUSE  # should that fail
                hand.start()
        elif (hand.busy or not hand.ready) and not hand.hung:
            limit = self.settings.open_seconds if hand.opening else self.settings.step_seconds
            if now - hand.seen > limit:
                log.error("a worker gave no sign of life for %g seconds and is killed", limit)
                hand.hung = True
                hand.kill()

    def _beat(self, now: float) -> None:
        """Of several engines each says that it lives, and looks after the jobs of those that do not."""
        if self.settings.name is None:
            return
        if now - self._beaten >= self.settings.silent_seconds / 6:
            self._beaten = now
            self.store.beat(self._name)
        if now - self._searched >= self.settings.silent_seconds / 2:
            self._searched = now
            if found := self.store.recover_silent(self.settings.silent_seconds):
                log.warning("%d jobs of an engine that fell silent are taken back", len(found))

    def _open_unknown(self) -> None:
        for hand in self.hands:
            if self._survey and hand.idle:
                hand.surveys = self._survey.popleft()
                hand.send(Open(hand.surveys))

    # -- jobs on their way to a process ----------------------------------------------------------------------

    def _claim(self, now: float) -> None:
        """Give every process that has nothing to do the jobs whose turn it is."""
        self._freed = False
        idle = [hand for hand in self.hands if hand.idle]
        if not idle or now < self._rested or not self._room():
            return
        names = list(self.settings.models)
        for hand in idle:  # to change models takes time: not at every job
            if hand.models and now - hand.switched < self.settings.stay_seconds and len(names) > 1:
                self._give(hand, self.store.claim(self._name, self._most, hand.models[-1:]))
        while idle := [hand for hand in self.hands if hand.idle]:
            jobs = self.store.claim(self._name, self._most, names)
            if not jobs:
                break
            has = [hand for hand in idle if jobs[0].model in hand.models]
            self._give(min(has or idle, key=lambda hand: hand.switched), jobs)
        for hand in idle:  # there is nothing else to do
            if not hand.models and not self._openings[names[0]]:
                hand.send(Open(names[0]))
            elif self._unmeasured(hand) and now - hand.seen >= self._lull():
                hand.measure()

    def _lull(self) -> float:
        """Seconds without work before a process measures, which whoever comes next has to wait for. What was
        measured before is at hand at once."""
        folder = self.settings.measured
        return 0.0 if folder is not None and any(folder.glob("*.json")) else self.settings.lull_seconds

    def _unmeasured(self, hand: Hand) -> bool:
        """Whether it should find out how many pictures of its model are best drawn at once."""
        model = hand.models[-1] if hand.models else None
        return model is not None and model not in hand.measured and model not in self._spared

    def _room(self) -> bool:
        """Whether there is room for pictures on the disk."""
        folder = self.store.pictures
        with contextlib.suppress(OSError):
            at = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
            if shutil.disk_usage(at).free < SPARE:
                self.faults["disk"] = "the disk is full"
                return False
        self.faults.pop("disk", None)
        return True

    def _most(self, job: Job) -> int:
        """How many jobs like this one are best drawn together; one by one where a process has died of it."""
        if job.attempts:
            return 1
        pictures = self._pays.get(job.model, 1)
        size = job.request.get("size")
        if isinstance(size, list | tuple) and (info := self.infos.get(job.model)):
            pictures = min(pictures, pictures * prod(info.default_size) // max(1, prod(size)))
        pictures = min(pictures, self.settings.batch or pictures, self._tight.get(job.shape, pictures))
        return max(1, pictures // _count(job.request))

    def _give(self, hand: Hand, jobs: list[Job]) -> None:
        """What was begun before may be what the process died of: it is drawn alone."""
        fresh = [job for job in jobs if job.attempts == 1]
        hand.todo.extend(group for group in (fresh, *([job] for job in jobs if job.attempts > 1)) if group)
        for job in jobs:
            self._ledger.began(job.id)
        self._next(hand)

    def _next(self, hand: Hand) -> None:
        while hand.todo and hand.ready and not hand.busy:
            if hand.tasks >= PATIENCE and self._unmeasured(hand):
                hand.measure()
                return
            jobs = hand.todo.popleft()
            pieces = [(job, piece) for job in jobs if (piece := self._piece(job)) is not None]
            if pieces:
                hand.held = {(job.id, job.attempts): job for job, _ in pieces}
                hand.tasks += 1
                hand.send(Draw(tuple(piece for _, piece in pieces)))

    def _piece(self, job: Job) -> Piece | None:
        try:
            pictures = {id: self.store.picture(id) for id in set(pictures_of(job.request))}
        except NotFound:
            gone = Failure(
                code="refused", message="a picture that the request begins with is gone; give another"
            )
            self._ledger.failed(job.id, job.attempts, gone)
            return None
        except Exception as error:
            log.warning("job %s: its pictures cannot be looked up: %s", job.id, error)
            self._ledger.give_back(job.id, job.attempts, "the store was out of reach", blame=False)
            return None
        return Piece(
            job=job.id,
            attempt=job.attempts,
            request=job.request,
            pictures=pictures,
            model=job.model,
            shape=job.shape,
            metadata=job.metadata,
            count=_count(job.request),
        )

    def _stop_asked(self) -> None:
        """Stop what its owner cancelled, or what is no longer ours."""
        held = [job for hand in self.hands for job in hand.jobs()]
        asked = self.store.asked_to_stop([job.id for job in held]) if held else set[str]()
        for hand in self.hands if asked else ():
            self._stop(hand, frozenset(key for key, job in hand.held.items() if job.id in asked))
            for jobs in hand.todo:
                for job in [one for one in jobs if one.id in asked]:
                    jobs.remove(job)
                    self._ledger.stopped(job.id, job.attempts)

    def _stop(self, hand: Hand, keys: frozenset[tuple[str, int]]) -> None:
        if new := keys - hand.stopping:
            hand.stopping |= new
            hand.send(Stop(new))

    # -- what processes say ----------------------------------------------------------------------------------

    def _told(self, hand: Hand, said: Said) -> None:
        match said:
            case Steps():
                self._steps(hand, said)
            case Done():
                hand.deaths, self._rest, self._rested = 0, 0.0, 0.0
                self.faults.pop("saving", None)
                self._let_go(hand, said.job, said.attempt)
                self._ledger.done(said)
            case Failed():
                level = logging.INFO if said.failure.code == "refused" else logging.ERROR
                log.log(level, "job %s failed as %s: %s", said.job, said.failure.code, said.detail)
                self._let_go(hand, said.job, said.attempt)
                self._ledger.failed(said.job, said.attempt, said.failure)
            case Stopped():
                self._let_go(hand, said.job, said.attempt)
                self._ledger.stopped(said.job, said.attempt)
            case Unsaved():
                self._let_go(hand, said.job, said.attempt)
                self._ledger.give_back(said.job, said.attempt, said.why, blame=False)
                self._rest = min(LONGEST_REST, max(1.0, 2 * self._rest))
                self._rested = time.monotonic() + self._rest
                self.faults["saving"] = said.why
                log.error("job %s: %s", said.job, said.why)
            case Idle():
                self._idle(hand)
            case Tight():
                self._tight[said.shape] = min(said.pictures, self._tight.get(said.shape, said.pictures))
            case Pays():
                hand.opening = False
                self._pays[said.model] = said.pictures
            case Ready():
                hand.ready, hand.opening, self._freed = True, False, True
            case Opening():
                hand.opening = True
                self._opens(hand, said.model, "opening the model")
            case Opened():
                hand.opening = False
                self._opens(hand, said.info.name, "drawing")
                hand.use(said.info.name, self.settings.keep)
                self.infos[said.info.name] = said.info
            case Unopened():
                hand.opening = False
                log.error("the model %s cannot be opened: %s", said.model, said.why)
            case Sick():
                log.error("a worker on %s gives up: %s", hand.bench.device, said.why)

    def _steps(self, hand: Hand, said: Steps) -> None:
        hand.opening = False
        for key, (share, stage) in said.shares.items():
            if key not in hand.held or key in hand.stopping:
                continue
            job, attempt = key
            event = Event(
                job=job,
                state=State.RUNNING,
                progress=share,
                stage=stage,
                previews=said.previews.get(job),
            )
            self.hub.publish(event)
            if hand.seen - hand.noted.get(key, 0.0) >= POLL:
                hand.noted[key] = hand.seen
                if not self.store.progress(job, attempt, share, stage):
                    self._stop(hand, frozenset({key}))

    def _opens(self, hand: Hand, model: str, stage: str) -> None:
        """Tell those whose jobs wait for a model."""
        for job in hand.held.values() if model not in hand.models else ():
            self.hub.publish(Event(job=job.id, state=State.RUNNING, stage=stage))

    def _let_go(self, hand: Hand, job: str, attempt: int) -> None:
        hand.held.pop((job, attempt), None)
        hand.noted.pop((job, attempt), None)
        hand.stopping.discard((job, attempt))

    def _idle(self, hand: Hand) -> None:
        """It has done what it was given."""
        hand.busy = hand.opening = False
        hand.surveys = hand.measuring = None
        self._freed = True
        for job in list(hand.held.values()):  # never heard of again: draw it again
            self._let_go(hand, job.id, job.attempts)
            self._ledger.give_back(job.id, job.attempts, "the worker lost it", blame=True)
        self._next(hand)

    def _gone(self, hand: Hand) -> None:
        """A process has ended, and all that it had said was heard."""
        why = "its worker gave no sign of life" if hand.hung else "its worker died"
        held, meant = list(hand.held.values()), hand.leaving or self._ending
        if hand.measuring is not None:
            self._spared.add(hand.measuring)
        if hand.surveys is not None:
            self._openings[hand.surveys] += 1
            if self._openings[hand.surveys] < OPENINGS:
                self._survey.append(hand.surveys)
        hand.bury()
        for job in held:
            self._ledger.give_back(job.id, job.attempts, why, blame=not self._ending)
        self._put_back(hand)
        if not meant:
            self.restarts += 1
            log.error("a worker on %s is gone: %s", hand.bench.device, why)
        hand.deaths += 1
        pause = self.settings.pause_seconds * 2 ** min(hand.deaths - 1, 16)
        hand.start_at = time.monotonic() + min(pause, LONGEST_PAUSE)

    def _put_back(self, hand: Hand) -> None:
        """What was not begun goes back to the queue, and had no part in anything."""
        for job in (one for jobs in hand.todo for one in jobs):
            self._ledger.give_back(job.id, job.attempts, "it was not begun", blame=False)
        hand.todo.clear()

    # -- the end ---------------------------------------------------------------------------------------------

    def _still(self, deadline: float) -> bool:
        """On the way to the end: whether every process has ended and the store has heard it."""
        now = time.monotonic()
        self._ending = now >= deadline
        for hand in self.hands:
            self._put_back(hand)
            if hand.alive and not hand.held and not hand.leaving:
                hand.leave()
            idles = hand.leaving and (now - hand.left_at >= GRACE or not hand.ready or hand.opening)
            if hand.alive and (self._ending or idles):
                hand.kill()
        if any(hand.alive for hand in self.hands):
            return False
        try:
            self._ledger.pay()
        except Exception as error:
            if now < deadline + GRACE:
                raise
            log.error("%d ends of jobs were not recorded: %s", len(self._ledger.owed), error)
        return True


def _count(request: Mapping[str, object]) -> int:
    """How many pictures a job has."""
    count = request.get("count", 1 if "upscale" in request else COUNT)
    return count if isinstance(count, int) and count > 0 else 1


def _benches(settings: EngineSettings, pictures: Path, drawer: Callable[[str], Drawer] | None) -> list[Bench]:
    """What each process is given."""
    if drawer is None:
        processes = len(settings.devices) * settings.workers
        threads = settings.threads or max(1, (os.cpu_count() or 1) // processes)
        drawer = partial(pipeline_drawer, replace(settings, threads=threads), pictures)
    bench = Bench(
        make=drawer,
        device="",
        pictures=pictures,
        preview_seconds=settings.preview_seconds,
        preview_side=settings.preview_side,
    )
    return [replace(bench, device=device) for device in settings.devices for _ in range(settings.workers)]
