"""A worker process as the engine sees it: started, spoken to, killed, and what was given to it."""

import contextlib
import multiprocessing
import threading
import time
from collections import deque
from multiprocessing.connection import Connection
from queue import SimpleQueue

from limner.serve.jobs import Job
from limner.serve.messages import Bench, Draw, Measure, Open, Quit, Said, Stop
from limner.serve.worker import work

Key = tuple[str, int]  # a job's id and which attempt at it
Inbox = SimpleQueue["tuple[Hand, Said | None] | None"]  # (who, what; None: it is gone), or None: look around
LINGER = 5.0  # seconds in which a process that has closed its pipe has to end


class Hand:
    """One process on one device, again and again. All but `seen` belongs to the engine's thread."""

    def __init__(self, bench: Bench, inbox: Inbox) -> None:
        self.bench = bench
        self.inbox = inbox
        self.alive = False  # there is a process
        self.ready = False  # ... and it has a drawer
        self.busy = False  # ... that is at work
        self.opening = False  # ... on opening a model
        self.leaving = False  # it was told to quit
        self.left_at = 0.0  # when
        self.hung = False  # it was killed because it gave no sign
        self.seen = 0.0  # when it last said something, by the monotonic clock
        self.start_at = 0.0  # when to start it
        self.deaths = 0  # one after the other, without a finished task between
        self.models: list[str] = []  # that it has opened, the one used last at the end
        self.measured: set[str] = set()  # of which it knows how many pictures are best drawn at once
        self.measuring: str | None = None  # a model of which it finds that out
        self.tasks = 0  # that it was given since it was started
        self.switched = 0.0  # when it went to that one
        self.surveys: str | None = None  # a model that it opens so that it is known
        self.todo: deque[list[Job]] = deque()  # what it will draw next
        self.held: dict[Key, Job] = {}  # what it draws
        self.noted: dict[Key, float] = {}  # when its progress was last written to the store
        self.stopping: set[Key] = set()  # of those it draws, what it was told to stop

    @property
    def idle(self) -> bool:
        """Whether it could be given something."""
        return self.ready and not (self.busy or self.leaving or self.hung or self.todo)

    def jobs(self) -> list[Job]:
        """All that was given to it and has not ended."""
        return [*self.held.values(), *(job for jobs in self.todo for job in jobs)]

    def start(self) -> None:
        """A new process."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, self.bench), daemon=True)
        try:
            self.process.start()
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()  # or the pipe would not end with the process
        self.alive, self.ready, self.busy, self.opening, self.hung = True, False, False, True, False
        self.models, self.measured, self.tasks, self.seen = [], set(), 0, time.monotonic()
        threading.Thread(target=self._listen, args=(self.pipe,), daemon=True).start()

    def _listen(self, pipe: Connection) -> None:
        while True:
            try:
                said: Said = pipe.recv()
            except Exception:  # the end, or half a message of a process that was killed
                self.inbox.put((self, None))
                return
            self.seen = time.monotonic()
            self.inbox.put((self, said))

    def send(self, message: Open | Measure | Draw | Stop | Quit) -> None:
        """Say something; to a process that is gone it is said in vain."""
        with contextlib.suppress(OSError):
            self.pipe.send(message)
        if isinstance(message, Open | Measure | Draw):
            self.busy, self.seen = True, time.monotonic()

    def leave(self) -> None:
        """Tell it to quit, for good."""
        self.leaving, self.left_at = True, time.monotonic()
        self.send(Quit())

    def kill(self) -> None:
        """End the process at once. That it is gone comes through the inbox, after all that it had said."""
        if self.alive:
            self.process.kill()

    def bury(self) -> None:
        """Tidy up after a process that is gone."""
        self.process.join(LINGER)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()
        self.pipe.close()
        self.alive = self.ready = self.busy = self.opening = False
        self.surveys = self.measuring = None
        self.models = []
        self.held.clear()
        self.noted.clear()
        self.stopping.clear()

    def measure(self) -> None:
        """Have it find out how many pictures of the model that it has open are best drawn at once."""
        self.measuring = self.models[-1]
        self.measured.add(self.measuring)
        self.send(Measure())

    def use(self, model: str, keep: int) -> None:
        """It has opened this model, and holds so many."""
        if self.models[-1:] != [model]:
            self.switched = time.monotonic()
        self.models = [*(one for one in self.models if one != model), model][-keep:]
