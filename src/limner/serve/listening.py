"""From an application to a port: uvicorn, with limits for slow clients, and an orderly end."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from uvicorn.protocols.http.h11_impl import H11Protocol

from limner.errors import ConfigError, EngineError, LimnerError
from limner.serve.app import create_app
from limner.serve.deps import House
from limner.serve.engine import EngineSettings, LocalEngine
from limner.serve.settings import Settings
from limner.serve.store import Store

HEADER_SECONDS = 20.0  # within which the headers of a request must have come
HEADER_BYTES = 32 << 10  # of them all
LINGER = 5.0  # seconds for what is still being answered at the end


def run(settings: Settings, told: Callable[[str], None]) -> None:
    """Serve until a signal comes. `told` is called with the address once it can be asked.

    Raises ConfigError for an interface that others reach while there is no key, when another server uses the
    folder, and when the port is taken.
    """
    make_folder(settings.data)
    with alone(settings), closing(Store(settings.database_url, settings.pictures)) as store:
        check_reach(settings, store)
        check_models(settings)
        engine = LocalEngine(store, engine_settings(settings))
        app = create_app(engine, store, settings)
        with closing(listening(settings)) as port:
            server = Server(app, settings, told)
            server.run(sockets=[port])
            if not server.started:
                raise EngineError("the server could not start; its log says why")


def make_folder(folder: Path) -> None:
    """Make the folder where a service keeps everything. Raises ConfigError where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"cannot use the folder {folder}: {error.strerror}; choose another one") from None


def check_models(settings: Settings) -> None:
    """Raises ConfigError for a model that is not there; the hub is asked when one is opened."""
    from limner.pipeline.load import find
    from limner.weights import hub

    for what in settings.models.values():
        if not hub.is_id(what):
            try:
                find(what)
            except LimnerError as error:
                raise ConfigError(str(error)) from None


def check_reach(settings: Settings, store: Store) -> None:
    """Raises ConfigError where others could draw without a key."""
    known = store.keys()
    if not settings.loopback and all(key.revoked is not None for key in known):
        raise ConfigError(
            f"others can reach {settings.host}, and there is no key yet: make one with "
            "`limner keys add NAME`, or serve 127.0.0.1"
        )


def engine_settings(settings: Settings) -> EngineSettings:
    """What of the settings is the engine's. Raises ConfigError for folders that are not there."""
    for name in ("loras", "embeddings", "controls"):
        folder = getattr(settings, name)
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"{name}: there is no folder {folder}")
    return EngineSettings(
        models=settings.models,
        devices=settings.device,
        workers=settings.workers,
        loras=settings.loras,
        embeddings=settings.embeddings,
        controls=settings.controls,
        upscaler=settings.upscaler,
        keep=settings.keep,
        batch=settings.batch,
        measured=settings.data / "measured",
        dtype=settings.dtype,
        offload=settings.offload,
        name=settings.name,
    )


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """While this is the only server of its folder: a second one would take the first one's jobs for lost.
    Where several share a database by their names, there is nothing to guard."""
    if settings.name is not None or sys.platform == "win32":
        yield
        return
    import fcntl

    with (settings.data / "limner.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another server uses {settings.data}; stop it, or choose another folder with --data"
            ) from None
        yield


def listening(settings: Settings) -> socket.socket:
    """Where requests come in. Raises ConfigError when that cannot be."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        port = socket.socket(family, kind)
        try:
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port.bind(address)
        except BaseException:
            port.close()
            raise
    except OSError as error:
        said = error.strerror or "it is no address"
        raise ConfigError(f"cannot serve {settings.host} port {settings.port}: {said}") from None
    return port


class Protocol(H11Protocol):
    """HTTP to a client who must send the headers of a request within HEADER_SECONDS, or is left."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._idle_since = time.monotonic()
        self._clock: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """The next request may begin."""
        self._idle_since = time.monotonic()
        super().on_response_complete()

    def _look(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        left = HEADER_SECONDS - (time.monotonic() - self._idle_since) if idle else HEADER_SECONDS
        if left <= 0:
            self._clock = None
            self.transport.close()
        else:
            self._clock = self.loop.call_later(left, self._look)


class Server(uvicorn.Server):
    """uvicorn, but that a first signal lets what is drawn end, and a second ends at once."""

    def __init__(self, app: FastAPI, settings: Settings, told: Callable[[str], None]) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=Protocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=settings.connections,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=int(LINGER),
            h11_max_incomplete_event_size=HEADER_BYTES,
        )
        super().__init__(config)
        house = app.state.house
        assert isinstance(house, House)
        self.house = house
        self.told = told  # is called with the address
        self._asked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            self.told(f"http://{f'[{host}]' if ':' in host else host}:{port}/")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: take no new jobs, let what runs end, and stop. The second: exit with its number."""
        if self._asked or self._loop is None:
            os._exit(128 + sig)
        self._asked = True
        self.house.draining = True
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._ending = asyncio.ensure_future(self._drained())

    async def _drained(self) -> None:
        seconds = self.house.settings.drain
        try:
            await run_in_threadpool(lambda: self.house.engine.stop(drain=seconds))
        finally:
            self.should_exit = True
