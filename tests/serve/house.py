"""An application for tests: a fake engine, a real store on SQLite, and a client that is asked in turn."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fakes import FakeEngine
from fastapi import FastAPI
from PIL import Image

from limner.serve.app import create_app
from limner.serve.settings import Settings
from limner.serve.store import Store

BASE = "http://127.0.0.1:7860"


@dataclass(kw_only=True, slots=True)
class Served:
    """What a test holds."""

    app: FastAPI
    store: Store
    engine: FakeEngine
    settings: Settings
    runner: asyncio.Runner
    client: httpx.AsyncClient

    def ask(self, method: str, path: str, **said: Any) -> httpx.Response:
        """One request, to the end."""
        return self.runner.run(self.client.request(method, path, **said))

    def get(self, path: str, **said: Any) -> httpx.Response:
        return self.ask("GET", path, **said)

    def post(self, path: str, body: Any = None, **said: Any) -> httpx.Response:
        return self.ask("POST", path, json=body, **said)

    def raw(self, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
        """Status and JSON of a request whose path is sent as it stands: clients tidy theirs."""
        head = [(b"host", b"127.0.0.1:7860"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [*head, (b"content-length", str(len(body)).encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 7860),
        }
        sent: list[dict[str, Any]] = []
        asked = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return asked.pop() if asked else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        self.runner.run(asyncio.wait_for(self.app(scope, receive, send), 30))
        told = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], json.loads(told) if told.startswith(b"{") else {}

    def job(self, **asked: Any) -> dict[str, Any]:
        """Submit, and what there is of it afterwards."""
        said = self.post("/jobs", {"prompt": "a red cat", **asked})
        assert said.status_code == 202, said.text
        return dict(self.get(f"/jobs/{said.json()['id']}").json())

    def bring(self, data: bytes, name: str = "picture.png", kind: str = "image/png") -> httpx.Response:
        """Upload a file."""
        return self.post("/pictures", files={"file": (name, data, kind)})


Serve = Callable[..., Served]


@contextmanager
def served(url: str, folder: Path, *, at_once: bool = True, **settings: Any) -> Iterator[Served]:
    """An application on the database `url`; at_once draws what is submitted."""
    chosen = Settings(data=folder, database=url, **settings)
    store = Store(url, chosen.pictures)
    engine = FakeEngine(store, at_once=at_once)
    app = create_app(engine, store, chosen)
    transport = httpx.ASGITransport(app)
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=transport, base_url=BASE)
        try:
            yield Served(app=app, store=store, engine=engine, settings=chosen, runner=runner, client=client)
        finally:
            runner.run(client.aclose())
            store.close()


def picture(size: tuple[int, int] = (64, 48), kind: str = "PNG", **said: Any) -> bytes:
    """The file of a small picture of (width, height)."""
    encoded = io.BytesIO()
    Image.new("RGB", size, "seagreen").save(encoded, kind, **said)
    return encoded.getvalue()
