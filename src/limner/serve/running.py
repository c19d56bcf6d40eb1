"""Jobs from the queue to their end: every change asks first whether the attempt that makes it still counts.

A job that runs belongs to one attempt, whose number never comes back. A worker that was given up and wakes
again names an old number, changes nothing, and is told so. Saying the same end twice is no error: the answer
to the first may have been lost.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, and_, insert, or_, select, update

from limner.serve.database import now, put
from limner.serve.files import inside
from limner.serve.gallery import clean, picture_row
from limner.serve.jobs import ATTEMPTS, Drawn, Failure, Job, NotFound, State
from limner.serve.rows import found_jobs, job_of
from limner.serve.tables import jobs, pictures, workers

RUNS = jobs.c.state == State.RUNNING.value
QUEUED = State.QUEUED.value


def claim(
    connection: Connection,
    worker: str,
    most: Callable[[Job], int] | int,
    models: Sequence[str] | None,
    token: str,
) -> list[Job]:
    """The head of the queue and others of its shape, running. See `Store.claim`."""
    beat(connection, worker)
    waits = jobs.c.state == QUEUED
    if models is not None:
        waits = and_(waits, jobs.c.model.in_(models))
    # What another transaction is just claiming is passed over, not waited for; SQLite has one writer anyway.
    order = select(jobs).order_by(jobs.c.turn, jobs.c.number).with_for_update(skip_locked=True)
    first = connection.execute(order.where(waits).limit(1)).one_or_none()
    if first is None:
        return []
    ids = [first.id]
    size = most if isinstance(most, int) else most(job_of(first))
    if size > 1:
        mates = order.where(waits, jobs.c.shape == first.shape, jobs.c.model == first.model)
        ids += [row.id for row in connection.execute(mates.where(jobs.c.id != first.id).limit(size - 1))]
    begun = {
        "state": State.RUNNING.value,
        "attempts": jobs.c.attempts + 1,
        "worker": worker,
        "claim": token,
        "progress": 0.0,
        "stage": "",
        "started": time.time(),
    }
    connection.execute(update(jobs).where(jobs.c.id.in_(ids), jobs.c.state == QUEUED).values(begun))
    return sorted(found_jobs(connection, jobs.c.id.in_(ids)), key=lambda job: ids.index(job.id))


def unclaim(connection: Connection, tokens: Iterable[str]) -> None:
    """Back into the queue with what these calls handed out, if they did: nobody heard the answer."""
    unheard = and_(jobs.c.claim.in_(list(tokens)), RUNS)
    connection.execute(update(jobs).where(unheard).values(state=QUEUED, started=None))


def progress(connection: Connection, id: str, attempt: int, share: float, stage: str) -> bool:
    """See `Store.progress`."""
    values = {"progress": min(1.0, max(0.0, share)), "stage": clean(stage)}
    return _changed(connection, id, attempt, values)


def finish(
    connection: Connection,
    id: str,
    attempt: int,
    drawn: Sequence[Drawn],
    seeds: Sequence[int],
    notices: Sequence[str],
    warnings: Sequence[str],
) -> bool:
    """See `Store.finish`."""
    for picture in drawn:
        inside(picture.file)
    said = {"seeds": seeds, "notices": notices, "warnings": warnings}
    told: dict[str, Any] = {name: json.dumps(list(value)) for name, value in said.items()} | {"progress": 1.0}
    ended, first = _end(connection, id, attempt, State.DONE, told)
    if first and drawn:
        job = connection.execute(select(jobs.c.owner, jobs.c.model).where(jobs.c.id == id)).one()
        rows = [picture_row(picture, job.owner, job=id, model=job.model) for picture in drawn]
        connection.execute(insert(pictures), rows)
    return ended


def fail(connection: Connection, id: str, attempt: int, failure: Failure) -> bool:
    """See `Store.fail`."""
    told = {"code": failure.code, "message": clean(failure.message)}
    return _end(connection, id, attempt, State.FAILED, told)[0]


def cancelled(connection: Connection, id: str, attempt: int) -> bool:
    """See `Store.cancelled`."""
    return _end(connection, id, attempt, State.CANCELLED, {"cancel": True})[0]


def give_back(connection: Connection, id: str, attempt: int, why: str, blame: bool) -> State:
    """See `Store.give_back`."""
    row = connection.execute(select(jobs).where(jobs.c.id == id).with_for_update()).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {id[:64]!r}")
    if row.state != State.RUNNING.value or row.attempts != attempt:
        return State(row.state)
    return _back(connection, row, why, blame)


def recover(connection: Connection, worker: str | None) -> list[str]:
    """See `Store.recover`."""
    runs = RUNS if worker is None else and_(RUNS, jobs.c.worker == worker)
    return _all_back(connection, select(jobs).where(runs), "the server stopped while it was being drawn")


def recover_silent(connection: Connection, seconds: float) -> list[str]:
    """See `Store.recover_silent`."""
    silent = or_(workers.c.beat.is_(None), workers.c.beat < now(connection) - seconds)
    query = select(jobs).join(workers, workers.c.worker == jobs.c.worker, isouter=True).where(RUNS, silent)
    return _all_back(connection, query, "the machine that was drawing it fell silent")


def beat(connection: Connection, worker: str) -> None:
    """See `Store.beat`."""
    put(connection, workers, {"worker": worker, "beat": now(connection)})


def asked_to_stop(connection: Connection, ids: Sequence[str]) -> set[str]:
    """See `Store.asked_to_stop`."""
    wanted = select(jobs.c.id).where(jobs.c.id.in_(ids), RUNS, jobs.c.cancel.is_(False))
    return set(ids) - set(connection.execute(wanted).scalars())


def _all_back(connection: Connection, query: Any, why: str) -> list[str]:
    rows = connection.execute(query.order_by(jobs.c.number).with_for_update(of=jobs, skip_locked=True)).all()
    for row in rows:
        _back(connection, row, why, True)
    return [row.id for row in rows]


def _back(connection: Connection, row: Any, why: str, blame: bool) -> State:
    """What becomes of a running job that nobody draws any longer. It keeps its turn, so it is served next."""
    strikes = row.strikes + blame
    if row.cancel:
        _end(connection, row.id, row.attempts, State.CANCELLED, {})
        return State.CANCELLED
    if strikes >= ATTEMPTS:
        message = f"it was begun {strikes} times and never finished, at last because {clean(why)}"
        told: dict[str, Any] = {"strikes": strikes, "code": "poison", "message": message}
        _end(connection, row.id, row.attempts, State.FAILED, told)
        return State.FAILED
    waits = {"state": QUEUED, "strikes": strikes, "progress": 0.0, "stage": "", "started": None}
    _changed(connection, row.id, row.attempts, waits)
    return State.QUEUED


def _end(
    connection: Connection, id: str, attempt: int, state: State, values: dict[str, Any]
) -> tuple[bool, bool]:
    """Whether the job has ended in `state` by this attempt, and whether it did so now."""
    if _changed(connection, id, attempt, {"state": state.value, "ended": time.time(), **values}):
        return True, True
    before = and_(jobs.c.id == id, jobs.c.state == state.value, jobs.c.attempts == attempt)
    return connection.execute(select(jobs.c.id).where(before)).one_or_none() is not None, False


def _changed(connection: Connection, id: str, attempt: int, values: dict[str, Any]) -> bool:
    """Compare and set: change a job that runs, in this attempt."""
    this = and_(jobs.c.id == id, RUNS, jobs.c.attempts == attempt)
    return connection.execute(update(jobs).where(this).values(values)).rowcount == 1
