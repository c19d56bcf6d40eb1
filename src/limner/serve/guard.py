"""What every request passes before any route sees it. Plain ASGI: no URL is trusted that a header could have
changed, only scope["path"].

Host       one, well formed, and a name of ours: else 400 (a page elsewhere cannot point its own name at us)
Origin     what changes something comes from our own pages or from no browser at all: else 403
type       JSON, or a form where pictures are brought: else 415
key        no body is read, but that of POST /session, before it is known who sent it: else 401
size, pace a body above its limit is 413 before it is read, one that dawdles 408
out        a request id, nosniff and the like on every answer; an unknown error is 500, and told to the log
"""

import asyncio
import ipaddress
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limner.errors import LimnerError
from limner.serve.errors import INTERNAL, Problem, Shape, Stopped, log, problem_of, response_of, shape_for
from limner.serve.settings import Settings

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
HOST = re.compile(
    r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?)(?::([0-9]{1,5}))?"
)
FORMS = frozenset({"/pictures", "/v1/images/edits", "/v1/images/variations"})  # where pictures are brought
LARGE = ("/sdapi/v1/", "/v1/images/")  # ... or stand in the JSON as text
PORTS = {"http": "80", "https": "443"}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
BARE = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

LATE = Problem(status=408, code="too_slow", message="the request's body came too slowly")

OPEN = "/session"  # where a key is brought

Admit = Callable[[HTTPConnection], Awaitable[object]]  # raises Refused for who may not call
Seen = Callable[[Scope, int, float], None]  # is told of every answer: its status, the seconds it took


class Guard:
    """Around an application. `seen` is told of every answer."""

    def __init__(
        self, app: ASGIApp, settings: Settings, shapes: Mapping[str, Shape], admit: Admit, seen: Seen
    ) -> None:
        self.app = app
        self.admit = admit
        self.settings = settings
        self.shapes = shapes
        self.seen = seen
        self.names = {"localhost", settings.host.lower(), *(name.lower() for name in settings.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = _headers(scope)
        if scope["type"] != "http":
            if self._wrong(scope, headers, unsafe=True) is None:
                await self.app(scope, receive, send)
            else:
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        name = f"req-{secrets.token_hex(12)}"
        scope["limner.request_id"] = name
        started = time.monotonic()
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._dress(MutableHeaders(raw=message.setdefault("headers", [])), name)
            await send(message)

        async def refuse(problem: Problem) -> None:
            if status == 0:
                answer = response_of(problem, shape_for(scope["path"], self.shapes))
                answer.headers["Connection"] = "close"
                await answer(scope, receive, sent)

        problem = self._wrong(scope, headers, unsafe=scope["method"] not in SAFE)
        try:
            if problem is None:
                if _brings(headers) and scope["path"] != OPEN:
                    scope["limner.caller"] = await self.admit(HTTPConnection(scope))
                await self.app(scope, self._metered(scope, receive), sent)
            else:
                await refuse(problem)
        except (LimnerError, Stopped) as error:
            await refuse(problem_of(error))
        except Exception:
            log.exception("%s failed", name)
            await refuse(INTERNAL)
        finally:
            self.seen(scope, status, time.monotonic() - started)

    def _wrong(self, scope: Scope, headers: Mapping[bytes, list[str]], *, unsafe: bool) -> Problem | None:
        """Why a request goes no further; None: it does."""
        host = self._host(headers.get(b"host", []))
        if host is None:
            return Problem(
                status=400, code="bad_host", message="this server is not called that; see --allow-host"
            )
        if unsafe and not self._ours(host, headers):
            return Problem(
                status=403, code="cross_site", message="pages of other sites cannot do this; see --origin"
            )
        if scope["type"] != "http" or not unsafe:
            return None
        length = headers.get(b"content-length", [])
        try:
            size = int(length[0]) if length else 0
        except ValueError:
            return Problem(status=400, code="bad_length", message="Content-Length is a number of bytes")
        if len(length) > 1 or size < 0:
            return Problem(status=400, code="bad_length", message="Content-Length is a number of bytes")
        most = self._most(scope["path"])
        if size > most:
            return _too_long(most)
        if size == 0 and b"transfer-encoding" not in headers:
            return None
        kind = "".join(headers.get(b"content-type", [])).partition(";")[0].strip().lower()
        if kind == "application/json" or (kind == "multipart/form-data" and scope["path"] in FORMS):
            return None
        also = ", or multipart/form-data" if scope["path"] in FORMS else ""
        return Problem(
            status=415, code="bad_type", message=f"send it as Content-Type: application/json{also}"
        )

    def _host(self, said: Collection[str]) -> tuple[str, str | None] | None:
        """(name, port) of the one Host header, if it is a name of ours."""
        found = HOST.fullmatch(next(iter(said))) if len(said) == 1 else None
        if found is None:
            return None
        name, port = found[1].lower(), found[2]
        bare = name.strip("[]")
        if bare in self.names:
            return name, port
        try:
            address = ipaddress.ip_address(bare)
        except ValueError:  # a name that is not ours, such as one that somebody's page points at us
            return None
        if address.is_loopback or not self.settings.loopback:
            return name, port  # no page elsewhere has an address of ours as its name
        return None

    def _ours(self, host: tuple[str, str | None], headers: Mapping[bytes, list[str]]) -> bool:
        """Whether this comes from a page of ours, or from no page."""
        origins = headers.get(b"origin", [])
        if any(origin in self.settings.origins for origin in origins) and len(origins) == 1:
            return True
        for said in headers.get(b"sec-fetch-site", []):
            if said.lower() not in ("same-origin", "none"):
                return False
        for origin in origins:
            scheme, separator, rest = origin.partition("://")
            found = HOST.fullmatch(rest)
            if not separator or found is None or scheme not in PORTS or len(origins) != 1:
                return False
            if (found[1].lower(), found[2] or PORTS[scheme]) != (host[0], host[1] or PORTS[scheme]):
                return False
        return True

    def _most(self, path: str) -> int:
        """Bytes of a body."""
        large = path in FORMS or path.startswith(LARGE)
        return self.settings.upload_bytes if large else self.settings.body_bytes

    def _metered(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, which counts what comes and watches the clock until all has come."""
        most = self._most(scope["path"])
        deadline = time.monotonic() + self.settings.body_seconds
        came, whole = 0, False

        async def metered() -> Message:
            nonlocal came, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise Stopped(LATE) from None
            if message["type"] == "http.request":
                came += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if came > most:
                    raise Stopped(_too_long(most))
            return message

        return metered

    def _dress(self, headers: MutableHeaders, name: str) -> None:
        headers["x-request-id"] = name
        for key, value in HEADERS.items():
            headers.setdefault(key, value)
        headers.setdefault("Content-Security-Policy", BARE)
        headers.setdefault("Cache-Control", "no-store")


def _too_long(most: int) -> Problem:
    return Problem(status=413, code="too_large", message=f"{most:,} bytes are the most of this request")


def _brings(headers: Mapping[bytes, list[str]]) -> bool:
    """Whether a request has a body."""
    return b"transfer-encoding" in headers or headers.get(b"content-length", ["0"]) != ["0"]


def _headers(scope: Mapping[str, Any]) -> dict[bytes, list[str]]:
    found: dict[bytes, list[str]] = {}
    for key, value in scope["headers"]:
        found.setdefault(key.lower(), []).append(value.decode("latin-1"))
    return found
