"""The page: what lies in serve/web, nothing else. Everybody may read it; it asks for a key where needed."""

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from limner.serve.errors import Refused

WEB = Path(__file__).parents[1] / "web"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """index.html."""
    return await _file("index.html", request)


@router.api_route("/web/{name:path}", methods=["GET", "HEAD"])
async def asset(name: str, request: Request) -> Response:
    """A file of the page. 404 for whatever is not in its folder."""
    return await _file(name, request)


async def _file(name: str, request: Request) -> Response:
    path = (await run_in_threadpool(_files)).get(name)
    if path is None:
        raise Refused(404, "not_found", "there is nothing here")
    data = await run_in_threadpool(path.read_bytes)
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=TYPES[path.suffix])


def _files() -> dict[str, Path]:
    """What may be served, by name: no name that a client sends ever becomes a path."""
    return {
        path.relative_to(WEB).as_posix(): path
        for path in WEB.rglob("*")
        if path.suffix in TYPES and path.is_file() and not path.is_symlink()
    }
