"""What the engine tells the store about its jobs, and those who watch them: until the store has heard it.

The ends of jobs are told in order. While the database is locked or out of reach they wait here; should the
process end before, their jobs are found running at the next start, and drawn again.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Collection
from functools import partial

from limner.serve.events import Event, Hub, event_of
from limner.serve.jobs import Failure, NotFound, State
from limner.serve.messages import Done
from limner.serve.store import Store

log = logging.getLogger(__name__)

LOOKS = 32  # watched jobs that are looked up at once


class Ledger:
    """Belongs to the engine's thread, but for the hub."""

    def __init__(self, store: Store, hub: Hub) -> None:
        self.store = store
        self.hub = hub
        self.owed: deque[Callable[[], None]] = deque()
        self._turn = 0  # which of the watched jobs are looked up next

    def done(self, said: Done) -> None:
        """A job's pictures are on the disk."""
        self.owed.append(partial(self._done, said))

    def failed(self, job: str, attempt: int, failure: Failure) -> None:
        """A job cannot be done."""
        self.owed.append(partial(self._failed, job, attempt, failure))

    def stopped(self, job: str, attempt: int) -> None:
        """A job was stopped, as its owner asked."""
        self.owed.append(partial(self._stopped, job, attempt))

    def give_back(self, job: str, attempt: int, why: str, *, blame: bool) -> None:
        """A job is to be drawn again, from the beginning."""
        self.owed.append(partial(self._give_back, job, attempt, why, blame))

    def pay(self) -> None:
        """Tell all that is owed. Raises what the store raises; the rest is owed still."""
        while self.owed:
            with contextlib.suppress(NotFound):
                self.owed[0]()
            self.owed.popleft()

    def began(self, job: str) -> None:
        """A job is being drawn."""
        self.hub.publish(Event(job=job, state=State.RUNNING))

    def look(self, but: Collection[str]) -> None:
        """What the store says about watched jobs, `but` for these: they wait, or are drawn elsewhere."""
        watched = sorted(self.hub.watched().difference(but))
        self._turn = self._turn if self._turn < len(watched) else 0
        for job in watched[self._turn : self._turn + LOOKS]:
            self._tell(job)
        self._turn += LOOKS
        self.hub.forget(but)

    def _done(self, said: Done) -> None:
        seeds = [picture.seed for picture in said.drawn if picture.seed is not None]
        if self.store.finish(said.job, said.attempt, said.drawn, seeds, said.notices, said.warnings):
            self.hub.publish(Event(job=said.job, state=State.DONE, progress=1.0))
        else:
            log.info("job %s: attempt %d comes too late", said.job, said.attempt)
            self._ended(said.job, said.attempt)

    def _failed(self, job: str, attempt: int, failure: Failure) -> None:
        self.store.fail(job, attempt, failure)
        self._ended(job, attempt)

    def _stopped(self, job: str, attempt: int) -> None:
        self.store.cancelled(job, attempt)
        self._ended(job, attempt)

    def _give_back(self, job: str, attempt: int, why: str, blame: bool) -> None:
        state = self.store.give_back(job, attempt, why, blame=blame)
        log.info("job %s: attempt %d given back (%s), now %s", job, attempt, why, state)
        self._ended(job, attempt)

    def _ended(self, job: str, attempt: int) -> None:
        """An attempt that left no pictures: sweep away what it wrote, and tell how the job stands."""
        folder = self.store.pictures / job
        with contextlib.suppress(OSError):  # what is left is swept away at the next start
            for path in list(folder.glob(f"{attempt}-*.png")):
                path.unlink(missing_ok=True)
            folder.rmdir()
        self._tell(job)

    def _tell(self, job: str) -> None:
        with contextlib.suppress(NotFound):
            self.hub.publish(event_of(self.store.get(job)))
