"""Links to pictures that work without a key, for an hour: the path, how to show it, until when, a signature.

    /pictures/ID?as=jpeg&expires=1893456000&signature=...

Whoever has one sees that picture in that form, and nothing else; a removed picture is gone all the same.
"""

import hmac
import time
from typing import Annotated

from fastapi import Query, Security
from fastapi.security import HTTPAuthorizationCredentials
from starlette.requests import HTTPConnection

from limner.serve.deps import bearer, caller, house_of
from limner.serve.errors import Refused
from limner.serve.sessions import Sessions

SECONDS = 3600  # for which a link is good
SIGNATURE = "&signature="


def link(sessions: Sessions, target: str, seconds: float = SECONDS) -> str:
    """`target`, a path with or without a query, to be fetched without a key from now on, for so long."""
    told = f"{target}{'&' if '?' in target else '?'}expires={int(time.time() + seconds)}"
    return f"{told}{SIGNATURE}{sessions.signature(told)}"


def opens(sessions: Sessions, path: str, query: str) -> bool:
    """Whether this is a link that was made here and is still good: all of it, to the letter."""
    told, found, signature = f"{path}?{query}".rpartition(SIGNATURE)
    right = hmac.compare_digest(sessions.signature(told).encode(), signature.encode("utf-8", "replace"))
    if not found or not right:
        return False
    return int(told.rpartition("expires=")[2]) >= time.time()  # we signed it: it is a number


async def viewer(
    connection: HTTPConnection,
    _expires: Annotated[int | None, Query(alias="expires", ge=0, le=10**11)] = None,
    signature: Annotated[
        str | None, Query(max_length=64, description="of a link, in place of a key; it stands last")
    ] = None,
    _shown: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)] = None,
) -> str | None:
    """Whose pictures may be seen: the caller's, or (None) the one that a link leads to.

    Raises Refused, 403, for a link that is too old or was changed, and as `caller` where it is none."""
    if signature is None:
        return (await caller(connection)).owner
    query = connection.scope["query_string"].decode("latin-1")
    if not opens(house_of(connection).sessions, connection.scope["path"], query):
        raise Refused(403, "bad_link", "this link is too old, or not one of this server; ask for another")
    return None
