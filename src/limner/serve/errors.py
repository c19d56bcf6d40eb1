"""What clients are told when something goes wrong: what, which, what to do. Never a path, never an internal.

The shape is OpenAI's, {"error": {"message", "type", "param", "code"}}; a router may have its own.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from limner.errors import EngineError, LimnerError, RequestError
from limner.serve.jobs import Busy, Conflict, NotFound, Unavailable

log = logging.getLogger("limner.serve")

KINDS = {  # status -> OpenAI's word for what kind of error it is
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
HTTP = {  # status -> our code and message for what the framework raises
    400: ("bad_request", "the body cannot be read"),
    405: ("method_not_allowed", "this method does not apply here"),
}
PATHS = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[\\/](?:[^\s\\/'\":;,]+[\\/])+([^\s\\/'\":;,]*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that went wrong, as a client is told."""

    status: int  # of HTTP
    message: str  # what was wrong, which value, what to do
    code: str  # stable, for programs
    param: str | None = None  # which field
    retry_after: int | None = None  # seconds
    details: tuple[Mapping[str, object], ...] = ()  # every field that is wrong: "loc", "msg", "type"
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        return KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")


class Refused(RequestError):
    """Raised by routes: what HTTP has a status for."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.problem = Problem(
            status=status, code=code, message=message, param=param, retry_after=retry_after
        )


class Stopped(HTTPException):
    """Raised while a body is read; FastAPI lets an HTTPException alone through."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.status, problem.message)
        self.problem = problem


Shape = Callable[[Problem], tuple[int, Mapping[str, object]]]  # a problem as status and JSON


def own_shape(problem: Problem) -> tuple[int, Mapping[str, object]]:
    """As OpenAI writes errors, and we."""
    told = {"message": problem.message, "type": problem.kind, "param": problem.param, "code": problem.code}
    return problem.status, {"error": told}


def problem_of(error: Exception) -> Problem:
    """What to tell of an error that we know; of any other, that there was one."""
    if isinstance(error, Refused | Stopped):
        return error.problem
    if isinstance(error, NotFound):
        return Problem(status=404, code=error.code, message=plain(error))
    if isinstance(error, Conflict):
        return Problem(status=409, code=error.code, message=plain(error))
    if isinstance(error, Busy):
        status = 503 if isinstance(error, Unavailable) else 429
        return Problem(status=status, code=error.code, message=plain(error), retry_after=error.retry_after)
    if isinstance(error, RequestError):
        return Problem(status=400, code="refused", message=plain(error))
    if isinstance(error, EngineError):
        return Problem(status=503, code="engine", message=plain(error), retry_after=5)
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _plain_http(error)
    return INTERNAL


MISSING = Problem(status=404, code="not_found", message="there is nothing here")
INTERNAL = Problem(
    status=500, code="internal", message="something went wrong in the server; its log has this x-request-id"
)


def plain(error: object) -> str:
    """The message on one line, of any file no more than its name."""
    return " ".join(PATHS.sub(r"\1", str(error)).split())[:2000]


def response_of(problem: Problem, shape: Shape = own_shape) -> JSONResponse:
    """The answer that tells of a problem."""
    status, body = shape(problem)
    headers = dict(problem.headers)
    if problem.retry_after is not None:
        headers["Retry-After"] = str(max(1, problem.retry_after))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(dict(body), status, headers)


def install(app: FastAPI, shapes: Mapping[str, Shape]) -> None:
    """Make an application answer so; `shapes` has those of paths that begin otherwise, such as "/sdapi/"."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, LimnerError | RequestValidationError | HTTPException):
            raise error
        return response_of(problem_of(error), shape_for(request.scope["path"], shapes))

    for kind in (LimnerError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def shape_for(path: str, shapes: Mapping[str, Shape]) -> Shape:
    """How errors of a path are written."""
    return next((shape for start, shape in shapes.items() if path.startswith(start)), own_shape)


def _invalid(error: RequestValidationError) -> Problem:
    """Of the fields that are wrong, the first; never what was sent, which may be a secret or a megabyte."""
    if any(one["loc"][:1] == ("path",) for one in error.errors()):
        return MISSING  # no id of ours looks like this one
    details = tuple(
        {"loc": [str(part)[:100] for part in one["loc"]], "msg": str(one["msg"])[:500], "type": one["type"]}
        for one in error.errors()[:20]
    )
    wrong = error.errors()[0] if details else {"loc": (), "msg": "the request cannot be read", "type": ""}
    if wrong["type"] == "json_invalid":
        return Problem(status=400, code="bad_json", message="the body is no JSON", details=details)
    name = ".".join(str(part)[:100] for part in wrong["loc"][1:])
    said = f"{name}: {wrong['msg']}" if name else str(wrong["msg"])
    return Problem(status=422, code="invalid", message=said[:1000], param=name or None, details=details)


def _plain_http(error: HTTPException) -> Problem:
    if error.status_code == 404:
        return MISSING
    code, said = HTTP.get(error.status_code, ("refused", plain(error.detail)))
    return Problem(status=error.status_code, code=code, message=said, headers=dict(error.headers or {}))
