"""Pictures: recorded after their files, searched by words of their prompts, forgotten before their files."""

import json
import unicodedata
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select, update

from limner.errors import RequestError
from limner.serve.database import one_at_a_time
from limner.serve.files import inside
from limner.serve.jobs import Conflict, Drawn, NotFound
from limner.serve.queue import UNFINISHED
from limner.serve.rows import drawn_of, page
from limner.serve.tables import jobs, pictures

LONGEST_SEARCH = 1_000  # characters
RATINGS = (1, 5)


def picture_row(
    drawn: Drawn, owner: str, *, job: str | None = None, model: str | None = None
) -> dict[str, Any]:
    """What the table holds of a picture."""
    return {
        "id": drawn.id,
        "owner": owner,
        "job": job,
        "index": drawn.index,
        "seed": drawn.seed,
        "width": drawn.width,
        "height": drawn.height,
        "file": drawn.file,
        "sha256": drawn.sha256,
        "model": model,
        "prompt": json.dumps(drawn.prompt),
        "words": folded(drawn.prompt),
        "starred": drawn.starred,
        "rating": drawn.rating,
        "created": round(drawn.created, 6),
    }


def gallery(
    connection: Connection,
    owner: str | None,
    search: str | None,
    starred: bool | None,
    model: str | None,
    before: str | None,
    limit: int,
) -> list[Drawn]:
    """See `Store.gallery`."""
    query = select(pictures).where(pictures.c.job.is_not(None))
    if owner is not None:
        query = query.where(pictures.c.owner == owner)
    if starred is not None:
        query = query.where(pictures.c.starred.is_(starred))
    if model is not None:
        query = query.where(pictures.c.model == model)
    if search is not None:
        if len(search) > LONGEST_SEARCH:
            raise RequestError(f"a search has {LONGEST_SEARCH} characters at most, got {len(search)}")
        for word in folded(search).split():
            query = query.where(pictures.c.words.contains(word, autoescape=True))
    query = page(query, pictures.c.created, pictures.c.id, before, limit)
    return [drawn_of(row) for row in connection.execute(query)]


def picture(connection: Connection, id: str, owner: str | None) -> Drawn:
    """See `Store.picture`."""
    row = connection.execute(select(pictures).where(_one(id, owner))).one_or_none()
    if row is None:
        raise _missing(id)
    return drawn_of(row)


def add_upload(connection: Connection, owner: str, drawn: Drawn) -> None:
    """See `Store.add_upload`."""
    inside(drawn.file)
    same = and_(_one(drawn.id, owner), pictures.c.file == drawn.file, pictures.c.sha256 == drawn.sha256)
    if connection.execute(select(pictures.c.id).where(same)).one_or_none() is None:
        connection.execute(insert(pictures).values(picture_row(drawn, owner)))


def rate(
    connection: Connection, id: str, owner: str | None, starred: bool | None, rating: int | None
) -> Drawn:
    """See `Store.rate`."""
    values: dict[str, Any] = {} if starred is None else {"starred": starred}
    if rating is not None:
        if rating != 0 and not RATINGS[0] <= rating <= RATINGS[1]:
            raise RequestError("a rating is from {} to {}, or 0 for none, got {}".format(*RATINGS, rating))
        values["rating"] = rating or None
    if values:
        connection.execute(update(pictures).where(_one(id, owner)).values(values))
    return picture(connection, id, owner)


def remove(connection: Connection, id: str, owner: str | None) -> Drawn:
    """Forget a picture; its file is the caller's to delete. See `Store.remove`."""
    one_at_a_time(connection)  # a job that begins with it may be on its way in
    gone = picture(connection, id, owner)
    needed = and_(jobs.c.state.in_(UNFINISHED), jobs.c.request.contains(json.dumps(id), autoescape=True))
    if connection.execute(select(jobs.c.id).where(needed).limit(1)).one_or_none() is not None:
        raise Conflict("a job that has not ended begins with this picture; cancel it, or wait for it")
    connection.execute(delete(pictures).where(_one(id, owner)))
    return gone


def files(connection: Connection) -> set[str]:
    """See `Store.files`."""
    return set(connection.execute(select(pictures.c.file)).scalars())


def folded(text: str) -> str:
    """A text as it is searched: cases and compatible forms of a letter are one, and a database can hold
    it."""
    return clean(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))


def clean(text: str) -> str:
    """Without what PostgreSQL or UTF-8 cannot hold: NUL and halves of characters."""
    return text.replace("\0", "�").encode("utf-8", "replace").decode()


def _one(id: str, owner: str | None) -> ColumnElement[bool]:
    this = pictures.c.id == clean(id)
    return this if owner is None else and_(this, pictures.c.owner == owner)


def _missing(id: str) -> NotFound:
    return NotFound(f"there is no picture {id[:64]!r}")
