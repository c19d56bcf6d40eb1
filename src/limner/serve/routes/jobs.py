"""Jobs: submit, list, look, cancel, watch, and actions on what was drawn."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, StreamingResponse

from limner.errors import LimnerError
from limner.serve import actions
from limner.serve.deps import Caller, CallerNeeded, House, StoreNeeded, house_of, submit
from limner.serve.engine import Event
from limner.serve.events import event_of
from limner.serve.jobs import Job, State, TooMany, cursor
from limner.serve.schemas import CURSOR, ID, PROBLEMS, ActionIn, JobIn, JobOut, Jobs, job_out

router = APIRouter(tags=["jobs"], responses=PROBLEMS)
JobId = Annotated[str, Path(pattern=ID, min_length=32, max_length=32)]
Once = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        pattern="^[\\x21-\\x7e]+$",
        description="a name for this submission: a repeat is the same job",
    ),
]
Limit = Annotated[int, Query(ge=1, le=200)]
Before = Annotated[str | None, Query(pattern=CURSOR, max_length=60, description="`next` of the page before")]


@router.post("/jobs", status_code=202, response_model=JobOut)
async def submit_job(
    asked: JobIn,
    request: Request,
    who: CallerNeeded,
    store: StoreNeeded,
    once: Once = None,
) -> Response:
    """Queue a job. 202: it is on the disk, and will be drawn whatever happens to the server."""
    told = asked.told()
    parent = told.pop("parent", None)
    if isinstance(parent, str):
        await run_in_threadpool(store.get, parent, who.owner)
    body = json.dumps({**told, "parent": parent}, sort_keys=True)
    named = parent if isinstance(parent, str) else None
    job, _ = await submit(request, who, told, parent=named, idempotency=once, body=body)
    return JSONResponse(job_out(job), 202, {"Location": f"/jobs/{job.id}"})


@router.get("/jobs", response_model=Jobs)
async def list_jobs(
    who: CallerNeeded,
    store: StoreNeeded,
    state: State | None = None,
    before: Before = None,
    limit: Limit = 50,
) -> Response:
    """Your jobs, newest first."""
    found = await run_in_threadpool(store.listed, who.owner, state=state, before=before, limit=limit)
    more = cursor(found[-1]) if len(found) == limit else None
    return JSONResponse({"items": [job_out(job) for job in found], "next": more})


@router.get("/jobs/{id}", response_model=JobOut)
async def get_job(id: JobId, who: CallerNeeded, store: StoreNeeded) -> Response:
    """One of your jobs."""
    return JSONResponse(job_out(await run_in_threadpool(store.get, id, who.owner)))


@router.post("/jobs/{id}/cancel", response_model=JobOut)
async def cancel_job(id: JobId, request: Request, who: CallerNeeded, store: StoreNeeded) -> Response:
    """Stop a job: at once where it waits, within a step where it runs. One that has ended stays as it is."""
    job = await run_in_threadpool(store.cancel, id, who.owner)
    house_of(request).engine.wake()
    return JSONResponse(job_out(job))


@router.post("/jobs/{id}/actions", status_code=202, response_model=JobOut)
async def act_on_job(
    id: JobId,
    asked: ActionIn,
    request: Request,
    who: CallerNeeded,
    store: StoreNeeded,
    once: Once = None,
) -> Response:
    """Do something to a picture of a finished job: that is a new job, and this one its parent."""
    models = house_of(request).engine.models()

    def read() -> dict[str, object]:
        parent = store.get(id, who.owner)
        return actions.request_of(parent, actions.origin(store, parent, who.owner), asked, models)

    told = await run_in_threadpool(read)
    body = json.dumps({**asked.told(), "parent": id}, sort_keys=True)
    job, _ = await submit(
        request,
        who,
        told,
        parent=id,
        action=asked.action,
        index=asked.index,
        idempotency=once,
        body=body,
    )
    return JSONResponse(job_out(job), 202, {"Location": f"/jobs/{job.id}"})


@router.get(
    "/jobs/{id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "progress, preview, end"}},
)
async def watch_job(id: JobId, request: Request, who: CallerNeeded, store: StoreNeeded) -> Response:
    """Server-sent events until the job has ended.

    `progress` {state, progress, stage, position}, `preview` {index, image: JPEG in base64}, and last of all
    `end` {job}.
    """
    house = house_of(request)
    job = await run_in_threadpool(store.get, id, who.owner)
    if house.streams.get(who.owner, 0) >= house.settings.streams:
        raise TooMany(f"{house.settings.streams} event streams at once are the most; close one", 5)
    return StreamingResponse(
        _events(house, who, job), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


async def _events(house: House, who: Caller, job: Job) -> AsyncIterator[str]:
    house.streams[who.owner] = house.streams.get(who.owner, 0) + 1
    watched = house.engine.watch(job.id)
    following: asyncio.Task[Event | None] | None = None
    try:
        yield _told("progress", _progress(event_of(job)))
        while not job.state.terminal:
            if following is None:
                following = asyncio.ensure_future(anext(watched, None))
            done, _ = await asyncio.wait({following}, timeout=house.settings.heartbeat)
            if not done:
                yield ": alive\n\n"
            elif (event := following.result()) is not None:
                following = None
                for index, preview in enumerate(event.previews or ()):
                    image = base64.b64encode(preview).decode()
                    yield _told("preview", {"index": index, "image": image})
                if not event.last:
                    yield _told("progress", _progress(event))
                    continue
            elif house.draining:  # the engine says no more: whoever watches comes back to the next server
                return
            else:
                following = asyncio.ensure_future(_pause(house.settings.heartbeat))
            job = await run_in_threadpool(house.store.get, job.id, who.owner)
        yield _told("end", {"job": job_out(job)})
    finally:
        house.streams[who.owner] -= 1
        if not house.streams[who.owner]:
            del house.streams[who.owner]
        if following is not None:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, LimnerError):
                await following
        if (close := getattr(watched, "aclose", None)) is not None:
            await close()


async def _pause(seconds: float) -> None:
    await asyncio.sleep(min(seconds, 1.0))


def _progress(event: Event) -> dict[str, object]:
    return {
        "state": event.state.value,
        "progress": event.progress,
        "stage": event.stage,
        "position": event.position,
    }


def _told(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"  # JSON has no line breaks of its own
