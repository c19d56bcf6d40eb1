"""Keys: who may use the service. A secret is shown once, and what is kept of it is of no use to a thief.

A plain SHA-256 is enough here, where a password would need a slow hash: slowness makes guessing dear, and 256
random bits cannot be guessed at any price. No two keys have the same, so tables of hashes worked out
beforehand are worth nothing either; the id in the text that is hashed is their salt. A slow one would only
give everybody who sends nonsense a way to keep the server busy.
"""

import hashlib
import hmac
import math
import re
import secrets
import time

from sqlalchemy import Connection, insert, select, update

from limner.errors import RequestError
from limner.serve.gallery import clean
from limner.serve.jobs import Key, NotFound, new_id
from limner.serve.rows import key_of
from limner.serve.tables import keys

SECRET = re.compile(r"limner-([0-9a-f]{32})-[0-9a-f]{64}")
LONGEST_NAME = 100  # characters
METADATA = ("none", "minimal", "full")


def add(connection: Connection, name: str, metadata: str, waiting: int, budget: float) -> tuple[Key, str]:
    """See `Store.add_key`."""
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise RequestError(f"a key's name has 1 to {LONGEST_NAME} printable characters, got {name[:200]!r}")
    if metadata not in METADATA:
        raise RequestError(f'metadata is {", ".join(METADATA)}, got "{metadata}"')
    if waiting < 0 or not 0 <= budget < math.inf:
        raise RequestError(f"bounds of a key are 0 (none) or more, got {waiting} jobs and {budget:g} an hour")
    id = new_id()
    secret = f"limner-{id}-{secrets.token_hex(32)}"
    row: dict[str, object] = {"id": id, "name": clean(name), "digest": _digest(secret), "metadata": metadata}
    row |= {"waiting": waiting, "budget": float(budget), "created": round(time.time(), 6)}
    connection.execute(insert(keys).values(row))
    return one(connection, id), secret


def of_secret(connection: Connection, secret: str) -> Key | None:
    """See `Store.key_of`."""
    if (found := SECRET.fullmatch(secret)) is None:
        return None
    row = connection.execute(select(keys).where(keys.c.id == found[1])).one_or_none()
    same = hmac.compare_digest(_digest(secret), "" if row is None else row.digest)
    return key_of(row) if row is not None and same and row.revoked is None else None


def listed(connection: Connection) -> list[Key]:
    """See `Store.keys`."""
    return [key_of(row) for row in connection.execute(select(keys).order_by(keys.c.created, keys.c.id))]


def one(connection: Connection, id: str) -> Key:
    """The key of an id. Raises NotFound."""
    row = connection.execute(select(keys).where(keys.c.id == clean(id))).one_or_none()
    if row is None:
        raise NotFound(f"there is no key {id[:64]!r}; `limner keys list` shows them")
    return key_of(row)


def revoke(connection: Connection, id: str) -> Key:
    """See `Store.revoke`."""
    good = (keys.c.id == clean(id)) & keys.c.revoked.is_(None)
    connection.execute(update(keys).where(good).values(revoked=time.time()))
    return one(connection, id)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()
