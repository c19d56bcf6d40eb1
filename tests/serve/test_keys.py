"""Keys: a secret is shown once, kept as a hash, compared in constant time, and can be revoked."""

import hmac
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from limner.errors import RequestError
from limner.serve.jobs import NotFound
from limner.serve.store import Store


def test_a_key_is_known_by_its_secret(store: Store) -> None:
    key, secret = store.add_key("laptop", metadata="minimal", waiting=3, budget=12.5)
    assert re.fullmatch(r"limner-[0-9a-f]{32}-[0-9a-f]{64}", secret)
    assert (key.name, key.metadata, key.waiting, key.budget) == ("laptop", "minimal", 3, 12.5)
    assert key.revoked is None
    assert store.key_of(secret) == key
    other, second = store.add_key("laptop")
    assert (other.metadata, other.waiting, other.budget) == ("full", 0, 0.0)
    assert other.id != key.id
    assert store.key_of(second) == other
    assert store.keys() == [key, other]


def test_what_is_no_key(store: Store) -> None:
    key, secret = store.add_key("x")
    other, _ = store.add_key("y")
    last = "0" if secret[-1] != "0" else "1"
    wrong = [secret[:-1] + last, secret + "0", secret[:-1], secret.upper(), secret.replace(key.id, other.id)]
    wrong += [
        "",
        "limner-",
        "\0",
        "ключ",
        "\ud800",
        f" {secret}",
        f"{secret}\n",
        "x" * 100_000,
        "' or 1=1 --",
    ]
    for text in wrong:
        assert store.key_of(text) is None, text[:200]
    assert store.key_of(secret) == key


def test_a_revoked_key_is_worth_nothing(store: Store) -> None:
    key, secret = store.add_key("x")
    gone = store.revoke(key.id)
    assert gone.revoked is not None
    assert store.key_of(secret) is None
    assert store.revoke(key.id) == gone
    assert store.keys() == [gone]
    for unknown in ("0" * 32, "\0", ""):
        with pytest.raises(NotFound):
            store.revoke(unknown)


@pytest.mark.parametrize(
    "name, metadata, waiting, budget, match",
    [
        ("", "full", 0, 0.0, "name"),
        ("x" * 101, "full", 0, 0.0, "name"),
        ("a\nb", "full", 0, 0.0, "name"),
        ("x", "some", 0, 0.0, "metadata"),
        ("x", "full", -1, 0.0, "bounds"),
        ("x", "full", 0, -1.0, "bounds"),
        ("x", "full", 0, float("nan"), "bounds"),
        ("x", "full", 0, float("inf"), "bounds"),
    ],
)
def test_what_cannot_be_a_key(
    sqlite, tmp_path: Path, name: str, metadata: str, waiting: int, budget: float, match: str
) -> None:
    from contextlib import closing

    with closing(Store(sqlite(), tmp_path)) as store:
        with pytest.raises(RequestError, match=match):
            store.add_key(name, metadata=metadata, waiting=waiting, budget=budget)
        assert store.keys() == []


def test_the_secret_is_not_in_the_database(sqlite, tmp_path: Path) -> None:
    url = sqlite()
    store = Store(url, tmp_path)
    _, secret = store.add_key("x")
    store.key_of(secret)
    store.close()
    file = Path(urlsplit(url).path[1:] if url.startswith("sqlite:////") else urlsplit(url).path)
    kept = b"".join(path.read_bytes() for path in file.parent.glob(f"{file.name}*"))
    assert secret.split("-")[1].encode() in kept
    assert secret.split("-")[2].encode() not in kept


def test_comparing_takes_no_shortcut(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of a well-formed secret is wrong, its hash goes through compare_digest."""
    _, secret = store.add_key("x")
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    store.key_of("limner-" + "0" * 32 + "-" + "0" * 64)
    store.key_of(secret[:-4] + "0000")
    assert len(compared) == 2
    assert all(re.fullmatch("[0-9a-f]{64}", sent) for sent, _ in compared)
