"""Who is let in: every route and method, every host, every site; and what every answer carries."""

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from house import Served, picture, served
from starlette.routing import BaseRoute

OPEN = {  # what anybody may ask, whatever they hold
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/web/{name:path}"),
    ("HEAD", "/web/{name:path}"),
    ("GET", "/health"),
    ("POST", "/session"),  # where a key is shown
    ("DELETE", "/session"),  # forgets a cookie, and looks at nothing
    ("GET", "/openapi.json"),
    ("HEAD", "/openapi.json"),
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def house(sqlite: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """On loopback, without keys."""
    with served(sqlite(), tmp_path_factory.mktemp("open"), burst=10_000) as house:
        yield house


@pytest.fixture(scope="module")
def locked(sqlite: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With a key."""
    with served(sqlite(), tmp_path_factory.mktemp("locked"), burst=10_000) as house:
        house.store.add_key("somebody")
        yield house


def routes_of(app: FastAPI) -> Iterator[tuple[str, BaseRoute]]:
    """(path, route), those of included routers among them."""

    def walked(routes: list[BaseRoute], prefix: str) -> Iterator[tuple[str, BaseRoute]]:
        for route in routes:
            if (inner := getattr(route, "original_router", None)) is not None:
                yield from walked(inner.routes, prefix + route.include_context.prefix)  # type: ignore[attr-defined]
            else:
                path = getattr(route, "path", None)
                assert path is not None, f"{route!r} is of a kind that this test does not know"
                yield prefix + path, route

    return walked(app.routes, "")


def filled(path: str) -> str:
    """A path that a client could send."""
    return re.sub(r"\{[^}]*\}", "0" * 32, path)


def test_nothing_answers_without_a_key_but_what_is_listed(locked: Served) -> None:
    seen, methods = set(), dict[str, set[str]]()
    for path, route in routes_of(locked.app):
        declared = getattr(route, "methods", None)
        assert declared, f"{path} is no route of HTTP; say here how it is guarded"
        methods.setdefault(path, set()).update(declared)
    for path, declared in methods.items():
        for method in METHODS:
            status = locked.ask(method, filled(path)).status_code
            if method not in declared:
                assert status in (401, 405), (method, path, status)
            elif (method, path) in OPEN:
                seen.add((method, path))
                assert status != 401, (method, path)
            else:
                assert status == 401, (method, path, status)
                for header in ("Bearer limner-wrong", "Bearer ", "Basic eDp5", "Basic %%", "Digest x", "é"):
                    said = locked.ask(method, filled(path), headers={"authorization": header.encode()})
                    assert said.status_code == 401, (method, path, header)
                said = locked.ask(method, filled(path), headers={"cookie": "limner_session=a.9999999999.b"})
                assert said.status_code == 401, (method, path)
    assert seen == OPEN


def test_a_body_that_is_wrong_tells_nothing_without_a_key(locked: Served) -> None:
    for body in (b"{", b'{"prompt": 1}', b"[]"):
        assert locked.ask("POST", "/jobs", content=body, headers=JSON).status_code == 401


def test_no_route_takes_a_web_socket(locked: Served, house: Served) -> None:
    for kind in (locked, house):
        for path, _ in routes_of(kind.app):
            for origin in (b"http://127.0.0.1:7860", b"https://evil.example"):
                assert closed(kind, filled(path), origin), path


def closed(house: Served, path: str, origin: bytes) -> bool:
    """Whether a web socket is refused."""
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:7860"), (b"origin", origin)],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 7860),
        "subprotocols": [],
    }
    sent: list[dict[str, Any]] = []

    async def asked() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await asyncio.wait_for(house.app(scope, receive, send), 30)

    house.runner.run(asked())
    return [message["type"] for message in sent] == ["websocket.close"]


def test_a_key_opens_and_a_revoked_one_does_not(sqlite: Callable[[], str], tmp_path: Path) -> None:
    with served(sqlite(), tmp_path) as house:
        assert house.get("/jobs").status_code == 200
        key, secret = house.store.add_key("anna")
        _, other = house.store.add_key("bert")
        assert house.get("/jobs").status_code == 401
        bearer = {"authorization": f"Bearer {secret}"}
        job = house.post("/jobs", {"prompt": "a cat"}, headers=bearer).json()
        assert house.get(f"/jobs/{job['id']}", headers=bearer).status_code == 200
        for path in (f"/jobs/{job['id']}", f"/jobs/{job['id']}/events"):
            assert house.get(path, headers={"authorization": f"Bearer {other}"}).status_code == 404
        done = house.get(f"/jobs/{job['id']}", headers=bearer).json()
        url = done["pictures"][0]["url"]
        assert house.get(url, headers={"authorization": f"Bearer {other}"}).status_code == 404
        image = {"picture": done["pictures"][0]["id"]}
        said = house.post(
            "/jobs", {"prompt": "x", "image": image}, headers={"authorization": f"Bearer {other}"}
        )
        assert said.status_code == 404
        house.store.revoke(key.id)
        assert house.get("/jobs", headers=bearer).status_code == 401
        house.store.revoke(house.store.keys()[1].id)
        assert house.get("/jobs").status_code == 401  # no good key is left: that opens nothing


def test_without_keys_any_key_is_as_good_as_none(house: Served) -> None:
    for header in ("Bearer sk-whatever", "Basic eDp5", "x"):
        assert house.get("/jobs", headers={"authorization": header}).status_code == 200


def test_an_interface_that_others_reach_is_never_open(sqlite: Callable[[], str], tmp_path: Path) -> None:
    with served(sqlite(), tmp_path, host="0.0.0.0") as house:
        assert house.get("/jobs").status_code == 401
        assert house.get("/health").status_code == 200


def test_a_browser_signs_in_stays_so_after_a_restart_and_signs_out(
    sqlite: Callable[[], str], tmp_path: Path
) -> None:
    url = sqlite()
    with served(url, tmp_path) as house:
        key, secret = house.store.add_key("anna")
        assert house.post("/session", {"key": "limner-wrong"}).status_code == 401
        said = house.post("/session", {"key": secret})
        assert said.json() == {"name": "anna", "needed": True}
        cookie = said.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert secret not in cookie
        assert house.get("/session").json()["name"] == "anna"
        kept = {"cookie": cookie.partition(";")[0]}
    with served(url, tmp_path) as house:
        assert house.get("/jobs", headers=kept).status_code == 200
        forged = kept["cookie"][:-1] + ("0" if kept["cookie"][-1] != "0" else "1")
        assert house.get("/jobs", headers={"cookie": forged}).status_code == 401
        gone = house.ask("DELETE", "/session", headers=kept)
        assert gone.status_code == 204
        assert 'limner_session="";' in gone.headers["set-cookie"]
        house.store.revoke(key.id)
        assert house.get("/jobs", headers=kept).status_code == 401
    with served(url, tmp_path, session_days=1e-9) as house:
        _, secret = house.store.add_key("bert")
        house.post("/session", {"key": secret})
        assert house.get("/jobs").status_code == 401


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7860",
        "x/health?y=",
        "127.0.0.1/health?x=",
        "127.0.0.1:7860@evil.example",
        "127.0.0.1 evil.example",
        "localhost.evil.example",
        "169.254.169.254",
        "0.0.0.0",
        "",
        ":7860",
        "[::1",
        "127.0.0.1:port",
        "2130706433",
        "0x7f.1",
    ],
)
def test_a_host_that_is_not_ours_is_a_bad_request(house: Served, locked: Served, host: str) -> None:
    for kind in (house, locked):
        for method, path in (("GET", "/jobs"), ("POST", "/jobs"), ("GET", "/health"), ("GET", "/")):
            said = kind.ask(method, path, headers={"host": host})
            assert said.status_code == 400, (method, path)
            assert said.json()["error"]["code"] == "bad_host"


def test_hosts_that_are_ours(sqlite: Callable[[], str], tmp_path: Path, house: Served) -> None:
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:7860", "127.8.9.10"):
        assert house.get("/jobs", headers={"host": host}).status_code == 200, host
    assert (
        house.ask("GET", "/jobs", headers=[("host", "localhost"), ("host", "localhost")]).status_code == 400
    )
    with served(sqlite(), tmp_path, host="0.0.0.0", hosts="art.example") as reached:
        for host, status in (("art.example", 200), ("192.168.1.5:7860", 200), ("other.example", 400)):
            assert reached.get("/health", headers={"host": host}).status_code == status


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:7861"},
        {"origin": "https://127.0.0.1.evil.example"},
        {"origin": "http://localhost:7860"},  # another name of ours is another site
        {"origin": "file://"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:7860"},
    ],
)
def test_pages_of_other_sites_change_nothing(house: Served, method: str, headers: dict[str, str]) -> None:
    for path in ("/jobs", f"/jobs/{'0' * 32}/cancel", f"/pictures/{'0' * 32}", "/session", "/pictures"):
        said = house.ask(method, path, headers=headers)
        assert (said.status_code, said.json()["error"]["code"]) == (403, "cross_site"), path
    assert "access-control-allow-origin" not in said.headers


def test_our_own_page_and_programs_may(sqlite: Callable[[], str], tmp_path: Path, house: Served) -> None:
    for headers in (
        {},
        {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ):
        assert house.post("/jobs", {"prompt": "x"}, headers=headers).status_code == 202
    with served(sqlite(), tmp_path, origins="https://art.example") as trusting:
        headers = {"origin": "https://art.example", "sec-fetch-site": "cross-site"}
        assert trusting.post("/jobs", {"prompt": "x"}, headers=headers).status_code == 202


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", "", "a/b"]
)
def test_what_a_plain_form_can_send_is_refused(house: Served, kind: str) -> None:
    body = b'{"prompt": "x"}'
    for path in ("/jobs", f"/jobs/{'0' * 32}/actions", "/session"):
        assert house.ask("POST", path, content=body, headers={"content-type": kind}).status_code == 415
    said = house.ask("POST", "/pictures", content=body, headers={"content-type": kind})
    assert said.status_code in (400, 415, 422)


def test_bodies_have_an_end(sqlite: Callable[[], str], tmp_path: Path) -> None:
    with served(sqlite(), tmp_path, body_bytes=2048, upload_bytes=200_000) as house:
        assert house.ask("POST", "/jobs", content=b"x" * 3000, headers=JSON).status_code == 413
        assert house.bring(b"x" * 300_000).status_code == 413
        for size in ("-1", "x", "1e3", "9" * 30):
            said = house.ask("POST", "/jobs", content=b"{}", headers={**JSON, "content-length": size})
            assert said.status_code in (400, 413), size

        async def endless() -> Any:
            for _ in range(1000):
                yield b" " * 100

        said = house.ask("POST", "/jobs", content=endless(), headers=JSON)
        assert (said.status_code, said.json()["error"]["code"]) == (413, "too_large")


def test_a_body_that_does_not_come_is_given_up(sqlite: Callable[[], str], tmp_path: Path) -> None:
    with served(sqlite(), tmp_path, body_seconds=0.05) as house:

        async def slow() -> Any:
            yield b"{"
            await asyncio.Event().wait()

        said = house.ask("POST", "/jobs", content=slow(), headers=JSON)
        assert (said.status_code, said.json()["error"]["code"]) == (408, "too_slow")


def test_a_large_body_is_not_read_of_somebody_without_a_key(locked: Served) -> None:
    read = 0

    async def large() -> Any:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 10_000

    kind = {"content-type": "multipart/form-data; boundary=x"}
    for headers in (kind, {**kind, "authorization": "Bearer limner-wrong"}):
        assert locked.ask("POST", "/pictures", content=large(), headers=headers).status_code == 401
    assert read == 0


def test_every_answer_is_dressed(house: Served, locked: Served) -> None:
    url = house.bring(picture()).json()["url"]
    names = set()
    for said in (
        house.get("/jobs"),
        house.get("/nowhere"),
        house.get("/"),
        house.get("/health"),
        house.get(url),
        house.get("/jobs", headers={"host": "evil.example"}),
        locked.get("/jobs"),
        house.post("/jobs", {"prompt": 1}),
    ):
        assert said.headers["x-content-type-options"] == "nosniff"
        assert said.headers["referrer-policy"] == "no-referrer"
        assert said.headers["cross-origin-resource-policy"] == "same-origin"
        policy = said.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert said.headers["cache-control"] in ("no-store", "no-cache", "private, no-cache")
        names.add(said.headers["x-request-id"])
    assert len(names) == 8
    assert locked.get("/jobs").headers["www-authenticate"] == "Bearer"


def test_errors_have_one_shape(house: Served) -> None:
    for said in (
        house.get("/nowhere"),
        house.ask("PUT", "/jobs"),
        house.get("/jobs/abc"),
        house.post("/jobs", {}),
        house.post("/jobs", {"prompt": 1}),
        house.get("/jobs?limit=0"),
        house.ask("POST", "/jobs", content=b"{", headers=JSON),
        house.get("/jobs?before=1_x"),
    ):
        assert said.status_code >= 400
        assert set(said.json()) == {"error"}
        assert set(said.json()["error"]) == {"message", "type", "param", "code"}
    assert house.ask("PUT", "/jobs").headers["allow"]
