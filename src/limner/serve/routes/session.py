"""A browser shows its key once and is known by a cookie from then on."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from limner.serve.deps import CallerNeeded, house_of, needs_key
from limner.serve.errors import Refused
from limner.serve.schemas import PROBLEMS, SessionIn
from limner.serve.sessions import COOKIE

router = APIRouter(tags=["session"], responses=PROBLEMS)


class SessionOut(BaseModel):
    """Who you are."""

    name: str = Field(max_length=200)  # of the key
    needed: bool  # whether this server asks for keys at all


@router.post("/session", response_model=SessionOut)
async def sign_in(asked: SessionIn, request: Request, response: Response) -> dict[str, object]:
    """Show a key, and get a cookie that scripts cannot read and other sites cannot send."""
    house = house_of(request)
    key = await run_in_threadpool(house.store.key_of, asked.key)
    if key is None or key.revoked is not None:
        raise Refused(401, "invalid_api_key", "this is no key of this server", param="key")
    response.set_cookie(
        COOKIE,
        house.sessions.cookie(key),
        max_age=house.sessions.seconds,
        path="/",
        secure=request.scope["scheme"] == "https",
        httponly=True,
        samesite="strict",
    )
    return {"name": key.name, "needed": await needs_key(house)}


@router.get("/session", response_model=SessionOut)
async def who_am_i(request: Request, who: CallerNeeded) -> dict[str, object]:
    """Who you are."""
    return {"name": who.key.name if who.key else who.owner, "needed": await needs_key(house_of(request))}


@router.delete("/session", status_code=204, response_class=Response)
async def sign_out(response: Response) -> Response:
    """Forget the cookie."""
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return answer
