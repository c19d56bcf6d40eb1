"""What draws the jobs, to those who stand above: a protocol, and the engine of this machine's devices."""

import asyncio
import atexit
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from limner.serve import files
from limner.serve.events import Event as Event
from limner.serve.events import event_of
from limner.serve.foreman import Foreman
from limner.serve.messages import Drawer
from limner.serve.messages import EngineSettings as EngineSettings
from limner.serve.messages import ModelInfo as ModelInfo
from limner.serve.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """How the engine is."""

    ok: bool  # whether jobs are being drawn, or would be
    workers: int  # processes that are ready
    wanted: int  # processes that there should be
    running: int  # jobs being drawn here
    restarts: int  # processes that died or hung, since the start
    reason: str = ""  # why it is not ok, without paths


@runtime_checkable
class Engine(Protocol):
    """What the routes know of whatever draws. Every method may be called from any thread."""

    def start(self) -> None:
        """Begin to draw what waits. Returns at once; models appear as they have been opened."""

    def stop(self, *, drain: float) -> None:
        """Claim nothing more, give what runs `drain` seconds to end, the rest back to the queue; return when
        all is still. A second call, from another thread, may shorten that."""

    def wake(self) -> None:
        """There is something new in the store: a job, or a wish to cancel."""

    def models(self) -> tuple[ModelInfo, ...]:
        """What can be drawn with, the default first; those that are not open yet are missing."""

    def healthy(self) -> Health:
        """How it is, at once, whatever is being drawn."""

    def watch(self, job: str) -> AsyncIterator[Event]:
        """A job as it is, and all that happens to it up to its end. Raises NotFound when there is none."""

    def latest(self, job: str) -> Event | None:
        """The newest event, with the newest previews; None: nothing has happened to it here."""


class LocalEngine:
    """An `Engine` of this machine's devices.

    `drawer` makes what draws on a device, in the worker process, so that it has to be picklable; None: the
    pipeline. Several engines may share one store: each needs a `name` of its own, the same after a restart.
    """

    def __init__(
        self,
        store: Store,
        settings: EngineSettings = EngineSettings(),
        drawer: Callable[[str], Drawer] | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self._foreman = Foreman(store, settings, drawer)
        self._hub = self._foreman.hub
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """See `Engine.start`. Takes back what was running when the engine ended, and sweeps away files of
        which nobody knows. Raises Unavailable when the store cannot be reached."""
        if self._thread is not None:
            return
        shared = self.settings.name is not None
        self.store.recover(self.settings.name)
        recorded = self.store.files()
        files.sweep(self.store.pictures, recorded.__contains__, older=3600.0 if shared else 0.0)
        atexit.register(self._at_exit)
        self._thread = threading.Thread(target=self._foreman.run, name="limner-engine", daemon=True)
        self._thread.start()

    def stop(self, *, drain: float) -> None:
        """See `Engine.stop`."""
        self._foreman.end_by(time.monotonic() + max(0.0, drain))
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self._at_exit)
        self._hub.close()

    def _at_exit(self) -> None:
        """The interpreter ends and nobody has called `stop`."""
        self.stop(drain=0.0)

    def wake(self) -> None:
        """See `Engine.wake`."""
        self._foreman.inbox.put(None)

    def models(self) -> tuple[ModelInfo, ...]:
        """See `Engine.models`."""
        infos = self._foreman.infos
        return tuple(infos[name] for name in self.settings.models if name in infos)

    def healthy(self) -> Health:
        """See `Engine.healthy`."""
        foreman = self._foreman
        ready = sum(hand.ready for hand in foreman.hands)
        reasons = list(dict(foreman.faults).values())
        if self._thread is None:
            reasons.append("it was not started")
        elif foreman.deadline is not None:
            reasons.append("it is stopping")
        elif not ready:
            reasons.append("no process is ready to draw")
        elif not foreman.infos:
            reasons.append("no model is open")
        return Health(
            ok=not reasons,
            workers=ready,
            wanted=len(foreman.hands),
            running=sum(len(hand.held) for hand in foreman.hands),
            restarts=foreman.restarts,
            reason="; ".join(reasons),
        )

    async def watch(self, job: str) -> AsyncIterator[Event]:
        """See `Engine.watch`."""
        if self._hub.latest(job) is None:
            known = await asyncio.to_thread(self.store.get, job)
            self._hub.publish(event_of(known), first=True)
        async with contextlib.aclosing(self._hub.watch(job)) as events:
            async for event in events:
                yield event

    def latest(self, job: str) -> Event | None:
        """See `Engine.latest`."""
        return self._hub.latest(job)
