"""For people who run or use the server: models, words, the queue, health, numbers."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from limner.serve.deps import CallerNeeded, EngineNeeded, StoreNeeded, house_of
from limner.serve.engine import ModelInfo
from limner.serve.jobs import State
from limner.serve.schemas import PROBLEMS, JobOut, Name, Said, job_out

router = APIRouter(tags=["server"], responses=PROBLEMS)
TEXT = "text/plain; version=0.0.4; charset=utf-8"
Side = Annotated[int, Field(ge=1, le=64_000)]


class ModelOut(BaseModel):
    """A model that can be drawn with."""

    name: Name
    family: Name
    default_size: Annotated[list[Side], Field(min_length=2, max_length=2)]  # height, width
    sizes: Annotated[list[Side], Field(min_length=2, max_length=2)] | None  # least and most side
    styles: Annotated[list[Name], Field(max_length=1000)]
    can: Annotated[list[Name], Field(max_length=50)]
    fingerprint: Annotated[str, Field(max_length=200)]
    defaults: dict[str, Any]


class Models(BaseModel):
    """All models, the default first."""

    items: Annotated[list[ModelOut], Field(max_length=1000)]
    next: None = None


class Word(BaseModel):
    """A word that the built-in model knows."""

    word: Name
    category: Name
    synonyms: Annotated[list[Name], Field(max_length=100)]


class Words(BaseModel):
    """Some words."""

    items: Annotated[list[Word], Field(max_length=5000)]
    next: None = None


class Queue(BaseModel):
    """What waits and what runs."""

    waiting: Annotated[int, Field(ge=0, le=10**9)]  # jobs of everybody
    running: Annotated[int, Field(ge=0, le=10**9)]
    items: Annotated[list[JobOut], Field(max_length=400)]  # yours that have not ended, newest first
    next: None = None


class HealthOut(BaseModel):
    """Whether jobs are drawn."""

    status: Annotated[str, Field(pattern="^(ok|stopping|unwell)$", max_length=8)]
    workers: Annotated[int, Field(ge=0, le=10_000)]
    wanted: Annotated[int, Field(ge=0, le=10_000)]
    running: Annotated[int, Field(ge=0, le=10**9)]
    reason: Said


@router.get("/models", response_model=Models)
async def models(_: CallerNeeded, engine: EngineNeeded) -> Response:
    """What can be drawn with, the default first."""
    return JSONResponse({"items": [_model(model) for model in engine.models()], "next": None})


@router.get("/words", response_model=Words)
async def words(
    _: CallerNeeded,
    search: Annotated[str, Query(max_length=100, pattern="^[^\\x00]*$")] = "",
    limit: Annotated[int, Query(ge=1, le=5000)] = 100,
) -> Response:
    """What the built-in model can draw."""
    found = await run_in_threadpool(_words, search)
    return JSONResponse({"items": found[:limit], "next": None})


@router.get("/queue", response_model=Queue)
async def queue(who: CallerNeeded, store: StoreNeeded) -> Response:
    """How much waits and runs, and your jobs among it."""

    def looked() -> dict[str, object]:
        counts = store.counts()
        own = [
            job_out(job)
            for state in (State.QUEUED, State.RUNNING)
            for job in store.listed(who.owner, state=state, limit=200)
        ]
        return {
            "waiting": counts.get(State.QUEUED, 0),
            "running": counts.get(State.RUNNING, 0),
            "items": own,
            "next": None,
        }

    return JSONResponse(await run_in_threadpool(looked))


@router.get("/health", response_model=HealthOut, responses={503: {"model": HealthOut}})
async def health(request: Request) -> Response:
    """200 while jobs are drawn, else 503. Asks neither the database nor a thread, so it answers when busy."""
    house = house_of(request)
    found = house.engine.healthy()
    status = "stopping" if house.draining else "ok" if found.ok else "unwell"
    told = {
        "status": status,
        "workers": found.workers,
        "wanted": found.wanted,
        "running": found.running,
        "reason": found.reason,
    }
    headers = {} if status == "ok" else {"Retry-After": "10"}
    return JSONResponse(told, 200 if status == "ok" else 503, headers)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "for Prometheus"}},
)
async def metrics(request: Request, _: CallerNeeded, store: StoreNeeded) -> Response:
    """Numbers for Prometheus."""
    house = house_of(request)
    counts = await run_in_threadpool(store.counts)
    return Response(house.metrics.text(counts, house.engine.healthy()), media_type=TEXT)


def _model(model: ModelInfo) -> dict[str, object]:
    return {
        "name": model.name,
        "family": model.family,
        "default_size": list(model.default_size),
        "sizes": None if model.sizes is None else list(model.sizes),
        "styles": list(model.styles),
        "can": sorted(model.can),
        "fingerprint": model.fingerprint,
        "defaults": dict(model.defaults),
    }


def _words(search: str) -> list[dict[str, object]]:
    from limner.pipeline.vocabulary import objects, words_of

    return [
        {"word": name, "category": kind, "synonyms": list(synonyms)}
        for name, kind, synonyms, _ in words_of(search.strip().lower(), objects("mini"))
    ]
