"""The same service as a Ray Serve deployment: each replica is the whole application with an engine of its
own. They share one PostgreSQL database, from which each takes its jobs, and one folder of pictures.

A replica that is lost gives no more signs of life, and the others take its jobs back into the queue.

    limner serve --ray                      a cluster of this machine, or with --address one that runs
    serve run limner.serve.cluster:app      by Ray's own command; settings as NAME=VALUE or LIMNER_NAME
"""

import asyncio
import ipaddress
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from types import FrameType
from typing import Any

from fastapi import FastAPI
from pydantic import Field
from sqlalchemy.engine import make_url
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from limner.errors import ConfigError
from limner.serve import listening
from limner.serve.app import create_app
from limner.serve.engine import Engine, LocalEngine
from limner.serve.messages import Drawer
from limner.serve.settings import Settings
from limner.serve.store import Store

NAME = "limner"  # of the deployment and of the application
LOCAL = "local"  # the address of a cluster that is started here and ends with us
OPENING = 900.0  # seconds for the first model, before a replica is given requests without one
SLACK = 20.0  # seconds for a replica to end, besides what it may drain
QUIET = {  # what Ray reads from the environment, where nothing else is said there
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # 5 are few on a machine that draws
}
ALONE = {  # the same for a cluster of this machine
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # also on Linux: all that can listens to loopback alone
    "RAY_AUTH_MODE": "token",  # for what cannot
}
MISSING = 'Ray is missing; install it with pip install "limner[serve,cluster]"'

log = logging.getLogger(__name__)


class ClusterSettings(Settings):
    """How to serve with Ray: what `Settings` has, and how many of what."""

    replicas: int = Field(2, ge=1, le=1000)  # of the application, each with an engine
    cpus: float = Field(1.0, gt=0, le=1024)  # cores for each, which Ray sets aside and it draws with
    gpus: float = Field(0.0, ge=0, le=64)  # the same of GPUs
    silent: float = Field(60.0, ge=5, le=3600)  # seconds after which a replica that says nothing is lost
    address: str = Field(LOCAL, min_length=1, max_length=300)  # "auto" or HOST:PORT of a cluster that runs


def settings_of(settings: Settings, **more: object) -> ClusterSettings:
    """`settings`, and what is said about the cluster in `more` and in the environment. Raises pydantic's
    ValidationError."""
    told = {name: getattr(settings, name) for name in settings.model_fields_set}
    return ClusterSettings(**told | more)


def app(settings: ClusterSettings) -> Any:
    """For `serve run limner.serve.cluster:app`: an application of Ray Serve's. Raises ConfigError where Ray
    or one of the settings is not as it has to be."""
    return bound(settings)


def bound(settings: ClusterSettings, drawer: Callable[[str], Drawer] | None = None) -> Any:
    """An application for `ray.serve.run`. `drawer` is as `LocalEngine` takes it."""
    _, serve = _ray()
    listening.engine_settings(settings)
    settings = settings.model_copy(update={"data": settings.data.resolve()})
    options: dict[str, Any] = {
        "name": NAME,
        "num_replicas": settings.replicas,
        "max_ongoing_requests": settings.connections,
        "graceful_shutdown_timeout_s": settings.drain + SLACK,
        "health_check_timeout_s": 60,
        "ray_actor_options": {"num_cpus": settings.cpus, "num_gpus": settings.gpus},
    }
    deployment = serve.deployment(**options)(serve.ingress(Replica(settings, drawer))(Place))
    return deployment.bind(settings)


def run(
    settings: ClusterSettings,
    told: Callable[[str], None],
    drawer: Callable[[str], Drawer] | None = None,
) -> None:
    """Serve until a signal comes: the first lets what is drawn end, the second ends at once. `told` is called
    with the address once it can be asked.

    Raises ConfigError where Ray is missing, for SQLite with more than one node, for an interface that others
    reach while there is no key, and when the cluster cannot be reached.
    """
    alone = settings.address == LOCAL
    ray, serve = _ray(alone=alone)
    listening.make_folder(settings.data)
    listening.check_models(settings)
    with ExitStack() as stack:
        if _sqlite(settings):
            stack.enter_context(listening.alone(settings))
        with closing(Store(settings.database_url, settings.pictures)) as store:
            listening.check_reach(settings, store)
        port = _port(settings)
        if not ray.is_initialized():
            _joined(ray, settings)
            stack.callback(ray.shutdown)
        check_nodes(settings)
        stop = _signals(stack)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="EveryNode", http_options={"host": settings.host, "port": port})
        stack.callback(serve.shutdown if alone else lambda: serve.delete(NAME))
        try:
            serve.run(bound(settings, drawer), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise ConfigError(f"the replicas cannot be started: {_last_line(error)}") from None
        told(f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}/")
        while not stop.wait(1.0):
            pass


def check_nodes(settings: ClusterSettings) -> None:
    """Raises ConfigError where a cluster of several nodes would each have an SQLite file of its own."""
    ray, _ = _ray()
    nodes = sum(node["Alive"] for node in ray.nodes())
    if nodes > 1 and _sqlite(settings):
        raise ConfigError(
            f"this cluster has {nodes} nodes, which cannot share an SQLite file: give them PostgreSQL with "
            "--database postgresql+psycopg://USER:PASSWORD@HOST/NAME"
        )


class Place:
    """Where a replica runs; made before its application is."""

    def __init__(self, settings: ClusterSettings) -> None:
        """Raises ConfigError when it cannot run here."""
        check_nodes(settings)


class Replica:
    """An ASGI application that is made where and when it is started. It says that it is ready as soon as a
    model is open."""

    def __init__(self, settings: ClusterSettings, drawer: Callable[[str], Drawer] | None) -> None:
        self.settings = settings
        self.drawer = drawer
        self.app: FastAPI | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Live, or answer."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        assert self.app is not None
        if self.settings.loopback and not _near(scope):  # Ray's proxy listens elsewhere than we were told
            self.app.state.house.locked = True
        await self.app(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self.settings
        store = await run_in_threadpool(Store, settings.database_url, settings.pictures)
        with closing(store):
            threads = max(1, int(settings.cpus / (len(settings.device) * settings.workers)))
            chosen = listening.engine_settings(settings)
            chosen = replace(chosen, name=_name(), silent_seconds=settings.silent, threads=threads)
            engine = LocalEngine(store, chosen, self.drawer)
            self.app = create_app(engine, store, settings)

            async def sent(message: Message) -> None:
                if message["type"] == "lifespan.startup.complete":
                    await _opened(engine)
                await send(message)

            await self.app(scope, receive, sent)


def _ray(*, alone: bool = False) -> tuple[Any, Any]:
    """Ray and its Serve. Raises ConfigError where one is not installed."""
    for name, value in (QUIET | (ALONE if alone else {})).items():
        os.environ.setdefault(name, value)
    if alone and os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
        from ray import serve
    except ImportError:
        raise ConfigError(MISSING) from None
    return ray, serve


def _joined(ray: Any, settings: ClusterSettings) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if settings.address == LOCAL:
        cores = max(os.cpu_count() or 1, int(settings.replicas * settings.cpus + 0.999))
        ray.init(address=LOCAL, num_cpus=cores, include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=settings.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"there is no Ray cluster at {settings.address}: {_last_line(error)}; begin one with `ray start "
            "--head`, or leave out --address"
        ) from None


def _port(settings: ClusterSettings) -> int:
    """Where Ray's proxies listen. Raises ConfigError when it is taken here."""
    if settings.port == 0 and settings.address != LOCAL:
        raise ConfigError("every machine of a cluster serves the same port; name one with --port")
    if settings.address != LOCAL:
        return settings.port
    with closing(listening.listening(settings)) as found:
        return int(found.getsockname()[1])


def _signals(stack: ExitStack) -> threading.Event:
    """Set by the first signal; the second exits."""
    asked = threading.Event()

    def heard(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            os._exit(128 + number)
        asked.set()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, heard))
    return asked


def _sqlite(settings: Settings) -> bool:
    return make_url(settings.database_url).get_backend_name() == "sqlite"


def _near(scope: Scope) -> bool:
    """Whether a request comes from this machine."""
    client = scope.get("client")
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def _name() -> str:
    """Of this replica, which no other has or had."""
    _, serve = _ray()
    return str(serve.get_replica_context().replica_tag)


async def _opened(engine: Engine) -> None:
    until = time.monotonic() + OPENING
    while not engine.models() and time.monotonic() < until:
        await asyncio.sleep(0.05)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
