"""What the service remembers: jobs, the pictures that came of them, keys, and what it refuses.

A job is one request of one owner. It is accepted once it is on the disk, waits, runs, and ends in one of
three states that never change:

    queued -> running -> done
      |  ^------|   \\--> failed      given back after a crash, and failed as "poison" at the third time
      \\-> cancelled <-/
"""

import math
import re
import uuid
from dataclasses import dataclass
from enum import StrEnum

from limner.errors import EngineError, RequestError

ATTEMPTS = 3  # a job that was given back so often is poison
CURSOR = re.compile(r"([0-9]{1,12}\.[0-9]{6})_([0-9A-Za-z-]{1,64})")


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether a job stays in this state for good."""
        return self not in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a job failed, in a word for programs and in a sentence for people."""

    code: str  # "refused", "weights", "broken" (not finite), "memory", "poison", "hung" or "internal"
    message: str  # without paths and internals: clients read it


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A picture on the disk: one of a job, or an upload."""

    id: str  # as new_id() gives
    job: str | None = None  # None: an upload
    index: int = 0  # which of the job's pictures, from 0
    seed: int | None = None  # None: an upload
    width: int  # pixels
    height: int  # pixels
    file: str  # below the pictures folder, with "/" between names
    sha256: str  # of the file, in hex
    starred: bool = False
    rating: int | None = None  # 1 to 5
    created: float  # seconds since 1970
    prompt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A job that is about to be submitted."""

    owner: str  # id of a key, or "local"
    request: dict[str, object]  # Request.to_dict() with pictures as {"picture": id}; its seed is settled
    model: str  # the name that the engine knows it by
    shape: str  # jobs of equal shape can be drawn in one batch
    cost: float  # above 0; what the owner is charged, in the unit of budgets
    parent: str | None = None  # the job that an action was pressed on
    action: str | None = None  # such as "vary_subtle"
    index: int | None = None  # which picture of the parent
    metadata: str = "full"  # what the files tell: "none", "minimal" or "full"

    def __post_init__(self) -> None:
        if not 0 < self.cost < math.inf:  # the queue is ordered by sums of it; false for NaN, too
            raise RequestError(f"a job costs more than 0 and not without end, got {self.cost}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job as it stood when the store was asked."""

    id: str
    owner: str
    request: dict[str, object]  # as in NewJob
    model: str
    shape: str
    cost: float
    parent: str | None
    action: str | None
    index: int | None
    state: State
    attempts: int  # how often it was begun; who finishes it has to name the attempt
    position: int | None  # in the queue, 1 is next; None: not waiting
    progress: float  # 0 to 1
    stage: str  # what is being done, such as "drawing"; "" before
    seeds: tuple[int, ...]  # of the pictures, once done
    pictures: tuple[Drawn, ...]  # in order of index
    notices: tuple[str, ...]
    warnings: tuple[str, ...]
    failure: Failure | None
    metadata: str  # "none", "minimal" or "full"
    created: float  # seconds since 1970
    started: float | None  # begun for the last time
    ended: float | None
    cancel: bool  # its owner asked for it to stop


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """Somebody who may use the service. Its secret is not kept."""

    id: str
    name: str  # for people
    metadata: str  # what the files of its pictures tell: "none", "minimal" or "full"
    waiting: int  # most unfinished jobs; 0: as many as the queue holds
    budget: float  # cost an hour; 0: none
    created: float  # seconds since 1970
    revoked: float | None  # None: it is good


class NotFound(RequestError):
    """There is no such job, picture or key, or it is another owner's, which is not told apart."""

    code = "not_found"


class Conflict(RequestError):
    """What was asked for contradicts what was asked before."""

    code = "conflict"


class Busy(EngineError):
    """The service could do it later: `retry_after` says in how many whole seconds to ask again."""

    code = "busy"

    def __init__(self, message: str, retry_after: float | int) -> None:
        super().__init__(message)
        self.retry_after = max(1, math.ceil(retry_after))


class QueueFull(Busy):
    """As many jobs wait as the service takes."""

    code = "queue_full"


class TooMany(Busy):
    """This owner has as many jobs waiting, or has spent as much, as is allowed."""

    code = "too_many"


class Unavailable(Busy):
    """The database is locked, full or out of reach. What was being written may be asked for again."""

    code = "store_unavailable"


def new_id() -> str:
    """A name that nobody can guess, for a job, a picture or a key: 32 hex digits."""
    return uuid.uuid4().hex


def cursor(item: Job | Drawn) -> str:
    """Where a list goes on after `item`: the `before` of its next page."""
    return f"{item.created:.6f}_{item.id}"


def read_cursor(text: str) -> tuple[float, str]:
    """(created, id) out of what `cursor` made. Raises RequestError for anything else."""
    if (found := CURSOR.fullmatch(text)) is None:
        raise RequestError("this is no place in a list; take `next` of the page before")
    return float(found[1]), found[2]
