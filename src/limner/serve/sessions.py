"""A browser that has shown its key once: a signed cookie that names the key, and nothing secret."""

import contextlib
import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

from limner.serve.jobs import Key
from limner.serve.settings import Settings
from limner.serve.store import Store

COOKIE = "limner_session"
FILE = "session.secret"


class Sessions:
    """Makes and reads the cookie: KEY-ID.EXPIRES.SIGNATURE. It outlives the server, and dies with its key."""

    def __init__(self, settings: Settings) -> None:
        self.seconds = int(settings.session_days * 86_400)
        told = settings.secret.get_secret_value().encode() if settings.secret else _kept(settings.data)
        self._secret = hashlib.sha256(b"limner session " + told).digest()

    def cookie(self, key: Key) -> str:
        """For a browser that has shown this key."""
        told = f"{key.id}.{int(time.time()) + self.seconds}"
        return f"{told}.{self._signed(told)}"

    def key_of(self, cookie: str, store: Store) -> Key | None:
        """The key that a cookie stands for; None if it is forged, too old, or its key was revoked."""
        told, _, signature = cookie.rpartition(".")
        name, _, expires = told.rpartition(".")
        if not hmac.compare_digest(self._signed(told).encode(), signature.encode("utf-8", "replace")):
            return None
        if int(expires) < time.time():  # we signed it: it is a number
            return None
        known = store.keys()
        return next((key for key in known if key.id == name and key.revoked is None), None)

    def signature(self, told: str) -> str:
        """Of a text, which is never taken for that of a cookie: 64 hex digits."""
        return self._signed(f"text {told}")

    def _signed(self, told: str) -> str:
        return hmac.new(self._secret, told.encode("utf-8", "replace"), "sha256").hexdigest()


def _kept(folder: Path) -> bytes:
    """The secret in a folder, made there by whoever comes first; readable by its owner alone."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    beside = folder / f".{secrets.token_hex(8)}.partial"
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)  # fails where there is one: then that one holds
    finally:
        beside.unlink(missing_ok=True)
    return path.read_bytes()
