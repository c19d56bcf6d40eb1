"""Rows of the tables as the values that `jobs.py` describes."""

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select
from sqlalchemy.sql.elements import SQLColumnExpression

from limner.errors import RequestError
from limner.serve.jobs import Drawn, Failure, Job, Key, State, read_cursor
from limner.serve.tables import jobs, pictures

LONGEST_PAGE = 500
_other = jobs.alias()
_ahead = or_(
    _other.c.turn < jobs.c.turn, and_(_other.c.turn == jobs.c.turn, _other.c.number <= jobs.c.number)
)
PLACE = (  # how many of those who wait are not behind a job
    select(func.count())
    .where(_other.c.state == State.QUEUED.value, _ahead)
    .correlate(jobs)
    .scalar_subquery()
    .label("place")
)


def found_jobs(connection: Connection, where: ColumnElement[bool]) -> list[Job]:
    """The jobs that `where` is true of, with pictures and positions, in order of arrival."""
    return read_jobs(connection, select(jobs).where(where).order_by(jobs.c.number))


def read_jobs(connection: Connection, query: Select[Any]) -> list[Job]:
    """The jobs of a query for rows of `jobs`, with pictures and positions."""
    rows = connection.execute(query.add_columns(PLACE)).all()
    drawn: dict[str, list[Drawn]] = {row.id: [] for row in rows if row.state == State.DONE.value}
    if drawn:
        of_these = select(pictures).where(pictures.c.job.in_(drawn)).order_by(pictures.c.index)
        for row in connection.execute(of_these):
            drawn[row.job].append(drawn_of(row))
    return [job_of(row, drawn.get(row.id, ()), row.place) for row in rows]


def job_of(row: Any, drawn: Iterable[Drawn] = (), place: int | None = None) -> Job:
    """A row of `jobs`; `place` is meant only for a job that waits."""
    state = State(row.state)
    return Job(
        id=row.id,
        owner=row.owner,
        request=json.loads(row.request),
        model=row.model,
        shape=row.shape,
        cost=row.cost,
        parent=row.parent,
        action=row.action,
        index=row._mapping["index"],
        state=state,
        attempts=row.attempts,
        position=place if state is State.QUEUED else None,
        progress=row.progress,
        stage=row.stage,
        seeds=tuple(json.loads(row.seeds)),
        pictures=tuple(drawn),
        notices=tuple(json.loads(row.notices)),
        warnings=tuple(json.loads(row.warnings)),
        failure=None if row.code is None else Failure(code=row.code, message=row.message),
        metadata=row.metadata,
        created=row.created,
        started=row.started,
        ended=row.ended,
        cancel=row.cancel,
    )


def drawn_of(row: Any) -> Drawn:
    """A row of `pictures`."""
    return Drawn(
        id=row.id,
        job=row.job,
        index=row._mapping["index"],
        seed=row.seed,
        width=row.width,
        height=row.height,
        file=row.file,
        sha256=row.sha256,
        starred=row.starred,
        rating=row.rating,
        created=row.created,
        prompt=json.loads(row.prompt),
    )


def key_of(row: Any) -> Key:
    """A row of `keys`, without what its secret is compared with."""
    return Key(
        id=row.id,
        name=row.name,
        metadata=row.metadata,
        waiting=row.waiting,
        budget=row.budget,
        created=row.created,
        revoked=row.revoked,
    )


def page(
    query: Select[Any],
    created: SQLColumnExpression[float],
    id: SQLColumnExpression[str],
    before: str | None,
    limit: int,
) -> Select[Any]:
    """The newest `limit` rows of `query` that come after the place `before`. Raises RequestError for a place
    that is none and for a limit outside of 1 to LONGEST_PAGE."""
    if not 1 <= limit <= LONGEST_PAGE:
        raise RequestError(f"a page has 1 to {LONGEST_PAGE} entries, got {limit}")
    if before is not None:
        at, last = read_cursor(before)
        query = query.where(or_(created < at, and_(created == at, id < last)))
    return query.order_by(created.desc(), id.desc()).limit(limit)
