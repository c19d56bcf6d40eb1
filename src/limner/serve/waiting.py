"""For APIs whose clients wait: one request, one answer. The job behind it is as durable as any other.

Whoever hangs up does not want the pictures any more, or will ask again: the job is cancelled, unless it was
submitted under an Idempotency-Key, by which a repeat finds it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

from anyio import CancelScope, to_thread
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from limner.errors import LimnerError
from limner.serve.deps import Caller, House, house_of, submit, wait
from limner.serve.errors import Refused, plain
from limner.serve.jobs import Drawn, Job, State
from limner.serve.routes.pictures import file_of, keep_upload

Made = TypeVar("Made")
FOREVER = 7 * 86_400.0  # seconds that somebody may wait; clients have limits of their own
HOPELESS = ("refused", "weights", "broken", "memory", "poison")  # failures that a repeat would meet again


class Asked:
    """One request of a waiting client, with the pictures that it brings.

    Used with `async with`: if nothing comes of it, the pictures are removed again.
    """

    def __init__(self, request: Request, who: Caller, once: str | None = None) -> None:
        """`once` is the client's Idempotency-Key."""
        self.request = request
        self.who = who
        self.once = once
        self.brought: list[str] = []  # ids of pictures

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            await self._drop()

    async def bring(self, data: bytes) -> tuple[dict[str, str], Drawn, dict[str, object]]:
        """Keep a picture: what a request calls it, what it is, and how it says that it was drawn. Raises as
        `keep_upload`."""
        drawn, settings = await keep_upload(self.request, self.who.owner, data, metadata=self.who.metadata)
        self.brought.append(drawn.id)
        return {"picture": drawn.id}, drawn, settings or {}

    async def submit(self, told: Mapping[str, object], body: str = "") -> Job:
        """Queue a job, as `deps.submit`. `body` is what a repeat would say again: `told` has new ids then."""
        job, fresh = await submit(self.request, self.who, told, idempotency=self.once, body=body)
        if not fresh:
            await self._drop()
        self.brought.clear()  # they are the job's now
        return job

    async def drawn(self, job: Job) -> Job:
        """The job once it has ended, in whichever way. Raises Refused, 503, when the server stops before."""
        ending = asyncio.ensure_future(wait(self.request, job.id, FOREVER, self.who.owner))
        gone = asyncio.ensure_future(_gone(self.request))
        try:
            await asyncio.wait({ending, gone}, return_when=asyncio.FIRST_COMPLETED)
            found = ending.result() if ending.done() else job
        finally:
            await self.left(job, ending, gone)
        if not found.state.terminal:
            raise Refused(
                503, "stopping", "this server is about to stop; send it again in a moment", retry_after=10
            )
        return found

    async def left(self, job: Job, *watching: "asyncio.Future[Job] | asyncio.Future[None]") -> None:
        """Nobody watches a job any more: stop watching, and the job too unless it ended or has a name."""
        ended = any(
            one.done() and not one.cancelled() and not one.exception() and _ended(one.result())
            for one in watching
        )
        with CancelScope(shield=True):
            for one in watching:
                one.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            if not ended and self.once is None:
                house = house_of(self.request)
                with contextlib.suppress(LimnerError):
                    await run_in_threadpool(house.store.cancel, job.id, self.who.owner)
                house.engine.wake()

    async def _drop(self) -> None:
        store = house_of(self.request).store
        with CancelScope(shield=True):
            while self.brought:
                with contextlib.suppress(LimnerError):
                    await run_in_threadpool(store.remove, self.brought.pop(), self.who.owner)


async def on_pictures(house: House, work: Callable[[], Made]) -> Made:
    """What `work` makes of pictures, in a thread: no more of them at once than the house allows."""
    return await to_thread.run_sync(work, limiter=house.images)


def problem_with(job: Job) -> Refused | None:
    """What to tell of a job that has ended otherwise than well; None: it is done."""
    if job.state is State.DONE:
        return None
    if job.failure is None:
        error = Refused(409, "cancelled", "this was cancelled before it was done")
    elif job.failure.code == "refused":
        error = Refused(400, "refused", plain(job.failure.message))
    else:
        error = Refused(500, job.failure.code, plain(job.failure.message))
    if job.failure is None or job.failure.code in HOPELESS:  # OpenAI's clients repeat 409 and 500 otherwise
        error.problem = replace(error.problem, headers={"x-should-retry": "false"})
    return error


def files_of(house: House, job: Job) -> list[bytes]:
    """The PNGs of a job that is done, in order. Raises NotFound when one was removed meanwhile."""
    return [file_of(house.store, drawn) for drawn in job.pictures]


def _ended(result: Job | None) -> bool:
    return result is not None and result.state.terminal


async def _gone(request: Request) -> None:
    """Until the client hangs up. Its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
