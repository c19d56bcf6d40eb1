"""The queue: who may join it, in which order it is served, and how one leaves it.

Start-time fair queuing (Goyal, Vin and Cheng 1996, section 2), with owners for flows and costs for lengths.
Each job gets a turn when it arrives: the later of the turn that is being served now and of where its owner's
job before it ends. The queue is served in order of (turn, number), so that whoever asks for little is not
kept waiting by who asks for much, a place in the queue is a count, and nothing has to be worked out anew at a
claim.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping

from sqlalchemy import Connection, case, func, insert, select, update

from limner.errors import RequestError
from limner.serve.database import one_at_a_time, put
from limner.serve.jobs import Conflict, NewJob, NotFound, QueueFull, State, TooMany, new_id
from limner.serve.tables import jobs, owners, pictures, repeats

HOUR = 3600.0  # seconds, over which budgets are counted
UNFINISHED = (State.QUEUED.value, State.RUNNING.value)
PAID = (*UNFINISHED, State.DONE.value)
WAITS = jobs.c.state == State.QUEUED.value


def submit(
    connection: Connection,
    new: NewJob,
    idempotency: str | None,
    body: str,
    most_waiting: int,
    waiting_of_owner: int,  # 0: no bound
    budget: float,  # 0: none
) -> tuple[str, bool]:
    """Id of the accepted job, and whether it is a new one. Raises as `Store.submit`."""
    one_at_a_time(connection)
    name, digest = _digest(idempotency or ""), _digest(body)
    if idempotency is not None:
        same = (repeats.c.owner == new.owner) & (repeats.c.name == name)
        if (found := connection.execute(select(repeats).where(same)).one_or_none()) is not None:
            if found.body != digest:
                raise Conflict(
                    "this idempotency key came with another request before; use a new key for each request"
                )
            return str(found.job), False
    _admit(connection, new, most_waiting, waiting_of_owner, budget)
    id, turn = new_id(), _turn(connection, new.owner)
    connection.execute(
        insert(jobs).values(
            id=id,
            owner=new.owner,
            request=json.dumps(new.request),
            model=new.model,
            shape=new.shape,
            cost=new.cost,
            parent=new.parent,
            action=new.action,
            index=new.index,
            metadata=new.metadata,
            state=State.QUEUED.value,
            turn=turn,
            attempts=0,
            strikes=0,
            progress=0.0,
            stage="",
            cancel=False,
            seeds="[]",
            notices="[]",
            warnings="[]",
            created=round(time.time(), 6),
        )
    )
    put(connection, owners, {"owner": new.owner, "finish": turn + new.cost})
    if idempotency is not None:
        connection.execute(insert(repeats).values(owner=new.owner, name=name, body=digest, job=id))
    return id, True


def _admit(
    connection: Connection, new: NewJob, most_waiting: int, waiting_of_owner: int, budget: float
) -> None:
    """Raises QueueFull, TooMany, RequestError for a job that no hour's budget pays, NotFound for its
    pictures."""
    if budget and new.cost > budget:
        raise RequestError(
            f"this costs {new.cost:g} and the budget of an hour is {budget:g}; ask for fewer or smaller "
            "pictures, or fewer steps"
        )
    for id in sorted(set(pictures_of(new.request))):
        mine = (pictures.c.id == id) & (pictures.c.owner == new.owner)
        if connection.execute(select(pictures.c.id).where(mine)).one_or_none() is None:
            raise NotFound(f"there is no picture {id[:64]!r}")
    own = func.sum(case((jobs.c.owner == new.owner, 1), else_=0))
    counted = select(func.count(), func.coalesce(own, 0)).where(jobs.c.state.in_(UNFINISHED))
    everybody, owned = connection.execute(counted).one()
    if everybody >= most_waiting:
        raise QueueFull(
            f"{everybody} jobs are waiting, which is as many as are taken; try again later", pace(connection)
        )
    if waiting_of_owner and owned >= waiting_of_owner:
        raise TooMany(
            f"{owned} of your jobs are waiting, which is as many as you may have; wait for one to end",
            pace(connection),
        )
    if budget:
        _afford(connection, new, budget)


def _afford(connection: Connection, new: NewJob, budget: float) -> None:
    """Raises TooMany, telling when enough of what was spent is an hour old."""
    now = time.time()
    costs = select(jobs.c.cost, jobs.c.created).where(
        jobs.c.owner == new.owner, jobs.c.created > now - HOUR, jobs.c.state.in_(PAID)
    )
    rows = connection.execute(costs.order_by(jobs.c.created)).all()
    over = sum(row.cost for row in rows) + new.cost - budget
    if over <= 0:
        return
    for row in rows:
        over -= row.cost
        if over <= 0:
            raise TooMany(
                f"the budget of {budget:g} an hour is spent; wait, or ask for less", row.created + HOUR - now
            )


def _turn(connection: Connection, owner: str) -> float:
    """The later of the turn being served and of where the owner's last job ends."""
    own = connection.execute(select(owners.c.finish).where(owners.c.owner == owner)).scalar_one_or_none()
    served = connection.execute(select(func.min(jobs.c.turn)).where(WAITS)).scalar_one()
    if served is None:  # the end of a busy time: v(t) is the largest finish (section 2, step 2)
        served = connection.execute(select(func.max(owners.c.finish))).scalar_one()
    return max(float(own or 0.0), float(served or 0.0))


def leave(connection: Connection, id: str) -> None:
    """Cancel a job that waits, and move the later ones of its owner up: what is not drawn is not charged."""
    row = connection.execute(select(jobs).where(jobs.c.id == id, WAITS).with_for_update()).one_or_none()
    if row is None:
        return
    stopped = {"state": State.CANCELLED.value, "cancel": True, "ended": time.time()}
    connection.execute(update(jobs).where(jobs.c.id == id, WAITS).values(stopped))
    earlier = jobs.c.turn - row.cost
    later = (jobs.c.owner == row.owner) & WAITS & (jobs.c.turn > row.turn)
    moved = case((earlier < row.turn, row.turn), else_=earlier)
    connection.execute(update(jobs).where(later).values(turn=moved))
    end = owners.c.finish - row.cost
    shorter = case((end < row.turn, row.turn), else_=end)
    connection.execute(update(owners).where(owners.c.owner == row.owner).values(finish=shorter))


def pace(connection: Connection) -> float:
    """Seconds from one job's end to the next one's of late, 1 to 60; 5 where nothing is known yet."""
    ended = select(jobs.c.ended).where(jobs.c.ended.is_not(None)).order_by(jobs.c.ended.desc()).limit(10)
    times = connection.execute(ended).scalars().all()
    if len(times) < 2:
        return 5.0
    return min(60.0, max(1.0, float(times[0] - times[-1]) / (len(times) - 1)))


def pictures_of(value: object) -> Iterator[str]:
    """The ids of the pictures in a request's plain values, where they stand as {"picture": id}."""
    if isinstance(value, Mapping):
        if isinstance(id := value.get("picture"), str):
            yield id
        for part in value.values():
            yield from pictures_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from pictures_of(part)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
