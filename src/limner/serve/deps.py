"""What routes ask for: who calls, the store, the engine; and the way of every job into the queue."""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from limner.errors import LimnerError, RequestError
from limner.serve.engine import Engine, Event
from limner.serve.errors import Refused
from limner.serve.jobs import Job, Key, State
from limner.serve.limits import Pace, prepared
from limner.serve.metrics import Metrics
from limner.serve.sessions import COOKIE, Sessions
from limner.serve.settings import Settings
from limner.serve.store import Store
from limner.serve.uploads import Thumbnails

LOCAL = "local"  # who everybody is where there are no keys
bearer = HTTPBearer(auto_error=False, description="A key made by `limner keys add NAME`.")


@dataclass(kw_only=True, slots=True)
class House:
    """What an application holds, as `app.state.house`."""

    store: Store
    engine: Engine
    settings: Settings
    sessions: Sessions
    pace: Pace
    thumbnails: Thumbnails
    metrics: Metrics
    streams: dict[str, int]  # owner -> event streams that are open
    images: CapacityLimiter  # pictures that are decoded or encoded at once: each takes a core, and memory
    draining: bool = False  # no new jobs: the server is about to stop
    locked: bool = False  # keys are needed; once they are, until the server stops


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who sent a request."""

    owner: str  # of jobs and pictures: the id of a key, or LOCAL
    key: Key | None  # None: there are none, and this machine alone can call
    metadata: str  # what files may say: none, minimal, full


def house_of(connection: HTTPConnection) -> House:
    """What the application of this request holds."""
    house = connection.app.state.house
    assert isinstance(house, House)
    return house


def get_store(connection: HTTPConnection) -> Store:
    """The queue and the gallery."""
    return house_of(connection).store


def get_engine(connection: HTTPConnection) -> Engine:
    """Who draws."""
    return house_of(connection).engine


def get_settings(connection: HTTPConnection) -> Settings:
    """How this server serves."""
    return house_of(connection).settings


async def caller(
    connection: HTTPConnection,
    _shown: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)] = None,  # for the OpenAPI page
) -> Caller:
    """Who sent this request, by a bearer key, HTTP Basic (the key as password), or the page's cookie.

    Raises Refused, 401, unless there are no keys at all and the interface is this machine's own.
    """
    if isinstance(known := connection.scope.get("limner.caller"), Caller):  # the guard has asked
        return known
    house = house_of(connection)
    header = connection.headers.get("authorization", "")
    if header:
        secret = secret_of(header)
        key = await run_in_threadpool(house.store.key_of, secret) if secret else None
    elif cookie := connection.cookies.get(COOKIE):
        key = await run_in_threadpool(house.sessions.key_of, cookie, house.store)
    else:
        key = None
    if key is not None and key.revoked is None:
        return Caller(owner=key.id, key=key, metadata=key.metadata)
    if await needs_key(house):  # else any will do: OpenAI's clients cannot be without one
        raise Refused(
            401,
            "invalid_api_key" if header else "no_api_key",
            "a valid key is needed: Authorization: Bearer KEY",
        )
    return Caller(owner=LOCAL, key=None, metadata=house.settings.metadata)


async def needs_key(house: House) -> bool:
    """Whether nobody may call without a key: where others can reach the interface, or once keys were made."""
    if not house.locked:
        house.locked = not house.settings.loopback or bool(await run_in_threadpool(house.store.keys))
    return house.locked


def secret_of(header: str) -> str | None:
    """The key in an Authorization header, or None."""
    kind, _, value = header.partition(" ")
    value = value.strip()
    if kind.lower() == "bearer":
        return value or None
    if kind.lower() == "basic":
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            return base64.b64decode(value, validate=True).decode().partition(":")[2] or None
    return None


CallerNeeded = Annotated[Caller, Depends(caller)]
StoreNeeded = Annotated[Store, Depends(get_store)]
EngineNeeded = Annotated[Engine, Depends(get_engine)]
SettingsNeeded = Annotated[Settings, Depends(get_settings)]


async def submit(
    connection: HTTPConnection,
    who: Caller,
    asked: Mapping[str, object],
    *,
    parent: str | None = None,
    action: str | None = None,
    index: int | None = None,
    idempotency: str | None = None,
    body: str = "",
) -> tuple[Job, bool]:
    """Check what is asked for against the model and the caller's limits, and queue it; wake the engine.

    `asked` is as Request.from_dict takes it, but that pictures are {"picture": ID}, of the caller's own; or
    {"upscale": {"picture": ID, "scale": 2}}. `body` is what an equal request would say again (any text), from
    `asked` if not given. Returns the job, and False where `idempotency` had made it before. Raises
    RequestError for what cannot be drawn, NotFound for a picture that is not the caller's, QueueFull and
    TooMany when there is too much of it, Conflict when the idempotency key was used for something else, and
    Refused, 503, when the server is about to stop.
    """
    house = house_of(connection)
    if house.draining:
        raise Refused(
            503, "stopping", "this server is about to stop; send it again in a moment", retry_after=10
        )
    house.pace.step(who.owner)
    told = body or json.dumps(asked, sort_keys=True, default=str)
    digest = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()

    def queued() -> tuple[Job, bool]:
        new = prepared(
            asked,
            models=house.engine.models(),
            settings=house.settings,
            pictures=lambda picture: house.store.picture(picture, who.owner),
            owner=who.owner,
            metadata=who.metadata,
            parent=parent,
            action=action,
            index=index,
        )
        if who.key is not None and 0 < who.key.budget < new.cost:
            raise RequestError(
                f"this costs {new.cost:,.0f}, and the budget of this key is {who.key.budget:,.0f} an hour"
            )
        return house.store.submit(
            new,
            idempotency=idempotency,
            body=digest,
            most_waiting=house.settings.queue,
            waiting_of_owner=(who.key and who.key.waiting) or house.settings.waiting,
            budget=0.0 if who.key is None else who.key.budget,
        )

    job, new = await run_in_threadpool(queued)
    if new:
        house.engine.wake()
    return job, new


async def wait(connection: HTTPConnection, job: str, seconds: float, owner: str | None = None) -> Job:
    """The job once it has ended, or as it is after so many seconds. Raises NotFound."""
    house = house_of(connection)
    found = await run_in_threadpool(house.store.get, job, owner)
    deadline = asyncio.get_running_loop().time() + seconds
    watched = house.engine.watch(job)
    following: asyncio.Task[Event | None] | None = None
    try:
        while not found.state.terminal and (left := deadline - asyncio.get_running_loop().time()) > 0:
            if following is None:
                following = asyncio.ensure_future(anext(watched, None))
            done, _ = await asyncio.wait({following}, timeout=min(left, 1.0))
            if done:
                event = following.result()
                following = None
                if event is None and house.draining:
                    return await run_in_threadpool(house.store.get, job, owner)
                if event is None:  # nothing more will be heard of it here: look now and then
                    watched = _silence()
                elif not event.last:
                    continue
            found = await run_in_threadpool(house.store.get, job, owner)
    finally:
        if following is not None:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, LimnerError):
                await following
        if (close := getattr(watched, "aclose", None)) is not None:
            await close()
    return found


async def _silence() -> AsyncIterator[Event]:
    """Says nothing, for ever."""
    await asyncio.Event().wait()
    yield Event(job="", state=State.QUEUED)
