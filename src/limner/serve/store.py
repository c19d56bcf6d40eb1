"""The store: what was accepted is on the disk before anybody is told so, and nothing that ended changes."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, and_, func, select, update

from limner.serve import gallery as pictures
from limner.serve import keys, queue, rows, running
from limner.serve.database import Database, one_at_a_time, version
from limner.serve.files import inside
from limner.serve.jobs import Drawn, Failure, Job, Key, NewJob, NotFound, State, new_id
from limner.serve.tables import VERSION, jobs


class Store:
    """Jobs, pictures and keys in one database; the pictures' files lie in the folder `pictures`.

    `url` is SQLAlchemy's: sqlite:///FILE (made when it is missing), or postgresql://USER@HOST/NAME. Every
    method may be called from any thread and any number of processes, and each is one transaction: it
    happened, or it did not. They raise Unavailable when the database is locked, full or out of reach.
    """

    def __init__(self, url: str, pictures: Path) -> None:
        """Open the database; an empty one is set up, one of an older Limner is brought up to date. Raises
        EngineError for a newer one, and for what is no database of Limner's."""
        self.pictures = pictures
        self._database = Database(url)
        self._unheard: set[str] = set()  # claims whose answer was lost
        try:
            self._database.write(_prepared)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    # -- jobs, as owners see them

    def submit(
        self,
        new: NewJob,
        *,
        idempotency: str | None = None,  # the client's name for this submission; None: each is a new one
        body: str = "",  # what it sent, to see whether a repeat is one
        most_waiting: int,  # unfinished jobs of everybody
        waiting_of_owner: int | None = None,  # unfinished jobs of this owner; None or 0: no bound of its own
        budget: float = 0.0,  # cost that the owner may spend within an hour; 0: no bound
    ) -> tuple[Job, bool]:
        """Accept a job; False beside it: the same was submitted before, this is that job.

        Raises QueueFull, TooMany, Conflict when `idempotency` came with another body, and NotFound when a
        picture of the request is not the owner's.
        """
        bounds = (most_waiting, waiting_of_owner or 0, budget)

        def work(connection: Connection) -> tuple[Job, bool]:
            id, fresh = queue.submit(connection, new, idempotency, body, *bounds)
            return _job(connection, id, None), fresh

        return self._database.write(work)

    def get(self, id: str, owner: str | None = None) -> Job:
        """One job, of `owner` or (None) of anybody. Raises NotFound."""
        return self._database.read(lambda c: _job(c, id, owner))

    def listed(
        self, owner: str | None, *, state: State | None = None, before: str | None = None, limit: int = 50
    ) -> list[Job]:
        """Jobs, newest first; `before` is `cursor` of the last one of the page before. Raises RequestError
        for a cursor that is none."""
        query = select(jobs)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if state is not None:
            query = query.where(jobs.c.state == state.value)
        query = rows.page(query, jobs.c.created, jobs.c.id, before, limit)
        return self._database.read(lambda c: rows.read_jobs(c, query))

    def cancel(self, id: str, owner: str | None = None) -> Job:
        """Ask for a job to stop: one that waits is cancelled at once, one that runs will be. One that has
        ended stays as it is. Raises NotFound."""

        def work(connection: Connection) -> Job:
            one_at_a_time(connection)
            _job(connection, id, owner)
            queue.leave(connection, id)
            runs = (jobs.c.id == id) & running.RUNS
            connection.execute(update(jobs).where(runs).values(cancel=True))
            return _job(connection, id, owner)

        return self._database.write(work)

    def spent(self, owner: str, since: float) -> float:
        """Cost of the owner's jobs that were submitted since `since` (seconds since 1970): what waits, runs
        or is done, and not what failed or was cancelled."""
        paid = (jobs.c.owner == owner) & (jobs.c.created >= since) & jobs.c.state.in_(queue.PAID)
        query = select(func.coalesce(func.sum(jobs.c.cost), 0.0)).where(paid)
        return self._database.read(lambda c: float(c.execute(query).scalar_one()))

    def counts(self, owner: str | None = None) -> dict[State, int]:
        """How many jobs there are in each state, of `owner` or of everybody."""
        query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        found = self._database.read(lambda c: {State(state): count for state, count in c.execute(query)})
        return {state: found.get(state, 0) for state in State}

    # -- jobs, as the engine sees them

    def claim(
        self, worker: str, most: Callable[[Job], int] | int = 1, models: Sequence[str] | None = None
    ) -> list[Job]:
        """The jobs to draw next, now running: up to `most` of one shape, of the models named (None: of any).
        `most` may be a function of the first of them; it is called within the transaction, so it has to be
        quick, must not write to the store, and may be called again. Empty: nothing waits. No two calls ever
        get the same attempt of a job."""
        token = new_id()
        unheard = tuple(self._unheard)

        def work(connection: Connection) -> list[Job]:
            if unheard:
                running.unclaim(connection, unheard)
            return running.claim(connection, worker, most, models, token)

        try:
            claimed = self._database.write(work)
        except BaseException:  # the commit may have come through all the same
            self._unheard.add(token)
            raise
        self._unheard.difference_update(unheard)
        return claimed

    def progress(self, id: str, attempt: int, share: float, stage: str) -> bool:
        """Note how far a running job is, 0 to 1, and what is being done. False: this attempt has ended.
        Alone of all that is written, this may be lost in a power cut."""
        return self._database.light(lambda c: running.progress(c, id, attempt, share, stage))

    def finish(
        self,
        id: str,
        attempt: int,
        drawn: Sequence[Drawn],
        seeds: Sequence[int],
        notices: Sequence[str] = (),
        warnings: Sequence[str] = (),
    ) -> bool:
        """Record pictures, whose files are on the disk, and end the job as done. False: this attempt had
        ended before, by cancelling or because another was begun; nothing was recorded."""
        work = partial(running.finish, id=id, attempt=attempt, drawn=drawn, seeds=seeds)
        return self._database.write(lambda c: work(c, notices=notices, warnings=warnings))

    def fail(self, id: str, attempt: int, failure: Failure) -> bool:
        """End a running job as failed. False: this attempt had ended before."""
        return self._database.write(lambda c: running.fail(c, id, attempt, failure))

    def give_back(self, id: str, attempt: int, why: str, *, blame: bool = True) -> State:
        """Put a running job back to its place in the queue, and say in which state it is then: failed as
        "poison" at the third time, cancelled when it was to stop. `blame` False: the job had no part in it
        (the server shuts down) and it does not count. An attempt that had ended changes nothing. Raises
        NotFound."""
        return self._database.write(lambda c: running.give_back(c, id, attempt, why, blame))

    def cancelled(self, id: str, attempt: int) -> bool:
        """End a running job as cancelled: the engine has stopped it. False: this attempt had ended before."""
        return self._database.write(lambda c: running.cancelled(c, id, attempt))

    def asked_to_stop(self, ids: Sequence[str]) -> set[str]:
        """Those of the jobs that need not be drawn on: to be cancelled, ended, or unknown."""
        return self._database.read(lambda c: running.asked_to_stop(c, ids))

    def recover(self, worker: str | None = None) -> list[str]:
        """At the start: give back every job that `worker` (None: anybody) was running, and name them."""
        return self._database.write(lambda c: running.recover(c, worker))

    def beat(self, worker: str) -> None:
        """Say that a worker is alive."""
        self._database.light(lambda c: running.beat(c, worker))

    def recover_silent(self, seconds: float) -> list[str]:
        """Give back the jobs of workers that have not beaten for `seconds`, and name them."""
        return self._database.write(lambda c: running.recover_silent(c, seconds))

    # -- pictures

    def gallery(
        self,
        owner: str | None,
        *,
        search: str | None = None,  # words that the prompt holds, in any order and case
        starred: bool | None = None,
        model: str | None = None,
        before: str | None = None,  # `cursor` of the last one of the page before
        limit: int = 50,
    ) -> list[Drawn]:
        """Drawn pictures, newest first; uploads are not among them. Raises RequestError for a cursor that is
        none, and for a search of more than 1,000 characters."""
        found = partial(pictures.gallery, owner=owner, search=search, starred=starred, model=model)
        return self._database.read(lambda c: found(c, before=before, limit=limit))

    def picture(self, id: str, owner: str | None = None) -> Drawn:
        """One picture, drawn or uploaded, of `owner` or (None) of anybody. Raises NotFound."""
        return self._database.read(lambda c: pictures.picture(c, id, owner))

    def add_upload(self, owner: str, drawn: Drawn) -> None:
        """Record a picture that a client sent, whose file is on the disk. Saying it again changes nothing."""
        self._database.write(lambda c: pictures.add_upload(c, owner, drawn))

    def rate(
        self, id: str, owner: str | None, *, starred: bool | None = None, rating: int | None = None
    ) -> Drawn:
        """Star a picture or rate it from 1 to 5 (0 takes the rating back); None leaves as it is. Raises
        NotFound, and RequestError for another rating."""
        return self._database.write(lambda c: pictures.rate(c, id, owner, starred, rating))

    def remove(self, id: str, owner: str | None) -> None:
        """Forget a picture and delete its file. Raises NotFound, and Conflict while a job that waits or runs
        begins with it."""
        gone = self._database.write(lambda c: pictures.remove(c, id, owner))
        with contextlib.suppress(OSError):  # it is an orphan now, which the next start sweeps
            (self.pictures / inside(gone.file)).unlink()

    def files(self) -> set[str]:
        """Every file that is recorded, as `Drawn.file` has it: what `files.sweep` must not touch."""
        return self._database.read(pictures.files)

    # -- keys

    def add_key(
        self, name: str, *, metadata: str = "full", waiting: int = 0, budget: float = 0.0
    ) -> tuple[Key, str]:
        """A new key and its secret, "limner-...", which is not kept and cannot be shown again."""
        return self._database.write(lambda c: keys.add(c, name, metadata, waiting, budget))

    def key_of(self, secret: str) -> Key | None:
        """The key that a secret belongs to; None when there is none or it was revoked."""
        return self._database.read(lambda c: keys.of_secret(c, secret))

    def keys(self) -> list[Key]:
        """Every key, the revoked ones too, oldest first."""
        return self._database.read(keys.listed)

    def revoke(self, id: str) -> Key:
        """Make a key worthless, for good. Raises NotFound."""
        return self._database.write(lambda c: keys.revoke(c, id))


def _prepared(connection: Connection) -> None:
    one_at_a_time(connection)  # two servers may start at once
    if version(connection) != VERSION:
        from limner.serve.migrations import migrate  # Alembic is seldom needed, and slow to import

        migrate(connection)


def _job(connection: Connection, id: str, owner: str | None) -> Job:
    this = jobs.c.id == pictures.clean(id)
    found = rows.found_jobs(connection, this if owner is None else and_(this, jobs.c.owner == owner))
    if not found:
        raise NotFound(f"there is no job {id[:64]!r}")
    return found[0]
