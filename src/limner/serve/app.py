"""The application: `create_app` puts an engine, a store and settings behind the routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware

from limner import __version__
from limner.serve import errors
from limner.serve.deps import House, caller
from limner.serve.engine import Engine
from limner.serve.guard import Guard
from limner.serve.limits import Pace
from limner.serve.metrics import Metrics
from limner.serve.routes import a1111, jobs, openai, ops, page, pictures, session
from limner.serve.sessions import Sessions
from limner.serve.settings import Settings
from limner.serve.store import Store
from limner.serve.uploads import Thumbnails

IMAGES = 4  # pictures that are decoded or encoded at once


def create_app(engine: Engine, store: Store, settings: Settings) -> FastAPI:
    """An ASGI application over this engine and this store. It starts the engine when it is started, and stops
    it with itself; the store stays the caller's to close."""

    @asynccontextmanager
    async def living(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(engine.start)
        try:
            yield
        finally:
            house.draining = True
            await run_in_threadpool(lambda: engine.stop(drain=settings.drain))

    shapes: dict[str, errors.Shape] = {}
    metrics = Metrics()
    app = FastAPI(
        title="Limner",
        version=__version__,
        summary="Words to pictures, on your own machine.",
        docs_url=None,  # these pages fetch scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=living,
        middleware=[Middleware(Guard, settings=settings, shapes=shapes, admit=caller, seen=metrics.seen)],
    )
    app.state.house = house = House(
        store=store,
        engine=engine,
        settings=settings,
        sessions=Sessions(settings),
        pace=Pace(settings.rate, settings.burst),
        thumbnails=Thumbnails(),
        metrics=metrics,
        streams={},
        images=CapacityLimiter(IMAGES),
    )
    for part in (jobs, pictures, ops, session, page):
        app.include_router(part.router)
    for foreign in (openai, a1111):
        app.include_router(foreign.router)
        shapes.update(foreign.SHAPES)
    errors.install(app, shapes)
    return app
