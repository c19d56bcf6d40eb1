"""What happens to jobs, told to those who watch: from the engine's thread to any number of event loops.

The newest event of a job is kept, and a slow listener is given that one alone: nothing piles up.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, replace
from threading import Lock

from limner.serve.jobs import Job, State

KEPT = 1000  # ended jobs whose last event is kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A job as it is now."""

    job: str
    state: State
    progress: float = 0.0  # 0 to 1
    stage: str = ""  # what is being done
    position: int | None = None  # in the queue, the next one 1; None: it is not waiting
    previews: tuple[bytes, ...] | None = None  # JPEG, one for each picture; None: no new ones
    number: int = 0  # counts the events of a job

    @property
    def last(self) -> bool:
        """Whether nothing will come after it."""
        return self.state.terminal


def event_of(job: Job) -> Event:
    """What the store says about a job, as an event."""
    return Event(job=job.id, state=job.state, progress=job.progress, stage=job.stage, position=job.position)


class _Listener:
    """One who watches a job: a slot for the newest event, and a bell in its event loop."""

    __slots__ = ("bell", "event", "loop")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.bell = asyncio.Event()
        self.event: Event | None = None

    def give(self, event: Event) -> bool:
        """Replace what was not taken yet, but for its previews. False when nobody can be listening."""
        if event.previews is None and self.event is not None:
            event = replace(event, previews=self.event.previews)
        self.event = event
        return self.ring()

    def ring(self) -> bool:
        try:
            self.loop.call_soon_threadsafe(self.bell.set)
        except RuntimeError:  # its loop is closed
            return False
        return True


class Hub:
    """Where events are published and watched. Every method may be called from any thread; `watch` belongs to
    the event loop that it is called in."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._latest: dict[str, Event] = {}  # of jobs that have not ended, with their newest previews
        self._ended: OrderedDict[str, Event] = OrderedDict()
        self._listeners: dict[str, set[_Listener]] = {}
        self._closed = False

    def publish(self, event: Event, *, first: bool = False) -> None:
        """Tell everybody; `number` is counted here. Nothing is told after a last event, of what is known
        already, or with `first` of a job about which anything is known."""
        with self._lock:
            known = self._ended.get(event.job) or self._latest.get(event.job)
            if self._closed or (known and (first or known.last or _same(known, event))):
                return
            event = replace(event, number=known.number + 1 if known else 1)
            if event.last:
                self._latest.pop(event.job, None)
                self._ended[event.job] = replace(event, previews=None)
                while len(self._ended) > KEPT:
                    self._ended.popitem(last=False)
            else:
                kept = event.previews or (known.previews if known else None)
                self._latest[event.job] = replace(event, previews=kept)
            gone = {one for one in self._listeners.get(event.job, ()) if not one.give(event)}
            self._leave(event.job, gone)

    def latest(self, job: str) -> Event | None:
        """The newest event with the newest previews; None where none is known."""
        with self._lock:
            return self._latest.get(job) or self._ended.get(job)

    def watched(self) -> set[str]:
        """The jobs that somebody watches."""
        with self._lock:
            return set(self._listeners)

    def forget(self, but: Collection[str]) -> None:
        """Drop what is known of jobs that have not ended and that nobody watches, `but` for these."""
        with self._lock:
            for job in self._latest.keys() - self._listeners.keys() - set(but):
                del self._latest[job]

    async def watch(self, job: str) -> AsyncGenerator[Event, None]:
        """The newest event, if there is one, and all that follow, up to the last one or until the hub is
        closed."""
        listener = _Listener()
        with self._lock:
            self._listeners.setdefault(job, set()).add(listener)
            listener.event = self._latest.get(job) or self._ended.get(job)
        try:
            while True:
                with self._lock:
                    event, listener.event = listener.event, None
                    closed = self._closed
                if event is not None:
                    yield event
                if closed or (event is not None and event.last):
                    return
                await listener.bell.wait()
                listener.bell.clear()
        finally:
            with self._lock:
                self._leave(job, {listener})

    def close(self) -> None:
        """Let everybody go; nothing can be published any more."""
        with self._lock:
            self._closed = True
            for listener in (one for some in self._listeners.values() for one in some):
                listener.ring()

    def _leave(self, job: str, gone: set[_Listener]) -> None:
        """With the lock held."""
        if job in self._listeners:
            self._listeners[job] -= gone
            if not self._listeners[job]:
                del self._listeners[job]


def _same(known: Event, event: Event) -> bool:
    return event.previews is None and replace(event, number=known.number, previews=known.previews) == known
