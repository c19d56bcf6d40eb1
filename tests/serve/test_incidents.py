"""Break-ins and losses that befell others, each as a test of this server, or a sentence why there is none.

The rows are those of the table of incidents that the service was designed by.
"""

import ast
import asyncio
import io
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from house import Served, picture, served
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import limner
import limner.serve
from limner.serve import uploads

ELSEWHERE = {
    3: "no route takes weights; reading old ones without torch.load is tests/weights/test_unpickle.py",
    5: "nothing scans for pickles, and no route takes one; their magic bytes are tested in tests/weights",
    6: "no route takes a configuration or names a class; folders of models are tested in tests/weights",
    7: "no route takes safetensors; their headers are tested in tests/weights",
    8: "the same; what a picture declares is row 21",
    11: "a prompt stays text: tests/serve/web, in a real browser; row 10 has what the server adds",
    17: "there are no plug-ins, and nothing is installed at run time; versions stand in constraints.txt",
    18: "there are no tunnels and no scripts: which routes there are is told in test_guard.py",
    23: "aiohttp comes with the bot, which is no part of the server; row 12 has that nothing imports it",
    25: "workers that run out of memory, hang or die: test_worker.py, test_engine.py, test_faults.py",
    26: "the cluster keeps to loopback unless told otherwise: test_cluster.py, docs/serving.md",
}
TRAVERSALS = (
    "..",
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "..\\..\\windows\\win.ini",
    "..%5c..%5cwindows",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "//etc/passwd",
    "\\\\host\\share",
    "C:\\windows\\win.ini",
    "%00",
    "x%00.png",
    "..%c0%af..%c0%afetc",
    "%252e%252e%252fetc",
    "uploads/x.png",
    "limner.db",
    "." * 300,
    "0" * 31,
    "0" * 33,
    "A" * 32,
    "é" * 32,
)
BODIES = {("PATCH", ""): b'{"starred": true}', ("POST", "/actions"): b'{"action": "reroll"}'}
ADDRESSES = (
    "http://169.254.169.254/latest/meta-data",
    "http://127.0.0.1:1/x.png",
    "http://[::1]/x.png",
    "http://0x7f.1/x.png",
    "http://2130706433/",
    "https://rebind.example/x.png",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "ftp://127.0.0.1/x",
    "//127.0.0.1/x",
)


@pytest.fixture(scope="module")
def house(sqlite: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all that leave nothing behind."""
    with served(sqlite(), tmp_path_factory.mktemp("house"), burst=100_000) as house:
        yield house


def test_every_row_is_a_test_or_a_sentence() -> None:
    tests = {int(name.split("_")[2]) for name in globals() if name.startswith("test_row_")}
    assert tests | set(ELSEWHERE) == set(range(1, 28))
    assert not tests & set(ELSEWHERE)


class Bomb:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_row_1_no_route_takes_a_model(house: Served, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    data = pickle.dumps(Bomb(touched))
    for name in ("x.ckpt", "x.pt", "x.bin", "x.safetensors", "x.png"):
        assert house.bring(data, name=name).status_code == 415
    for model in ("http://127.0.0.1/x.ckpt", str(tmp_path / "x.ckpt"), "../x.safetensors", "org/name"):
        assert house.post("/jobs", {"prompt": "x", "model": model}).status_code == 400
        said = house.post("/jobs", {"prompt": f"<lora:{model}:1>", "controls": [{"model": model}]})
        assert said.status_code == 422
    assert not touched.exists()


def test_row_2_the_floors_of_what_others_repaired() -> None:
    for name, least in (("torch", (2, 10)), ("pillow", (12, 3)), ("starlette", (1, 3, 1))):
        assert tuple(int(part) for part in version(name).split("+")[0].split(".")[: len(least)]) >= least
    assert tuple(map(int, version("python-multipart").split("."))) >= (0, 0, 30)


def test_row_4_nothing_falls_back_to_pickles() -> None:
    package = Path(limner.__file__).parent
    naming = {
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if "pickle" in imports(path)
    }
    assert naming == {"weights/unpickle.py"}  # an allow-list of its own
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("torch", "load"), path


def imports(path: Path) -> set[str]:
    """The modules that a file names in its imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_row_9_clients_name_things_by_id_alone(house: Served) -> None:
    for method, start, end in (
        ("GET", "/pictures/", ""),
        ("GET", "/pictures/", "/settings"),
        ("PATCH", "/pictures/", ""),
        ("DELETE", "/pictures/", ""),
        ("GET", "/jobs/", ""),
        ("GET", "/jobs/", "/events"),
        ("POST", "/jobs/", "/cancel"),
        ("POST", "/jobs/", "/actions"),
        ("GET", "/web/", ""),
    ):
        body = BODIES.get((method, end), b"")
        nothing = house.raw(method, f"{start}{'0' * 32}{end}", body)
        assert nothing[0] == 404
        for name in TRAVERSALS:
            for path in (f"{start}{name}{end}", f"{start}{unquote(name)}{end}"):
                status, told = house.raw(method, path, body)
                assert status == 404, (method, path)
                assert told["error"]["code"] == nothing[1]["error"]["code"]
    for name in TRAVERSALS:
        for field in ("image", "mask", "vary", "blend"):
            said = house.post("/jobs", {"prompt": "x", field: {"picture": name}})
            assert said.status_code == 422, (field, name)


def test_row_9_a_link_out_of_the_folder_is_not_followed(
    sqlite: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limner.serve.routes import page

    web = tmp_path / "web"
    web.mkdir()
    (web / "index.html").write_text("hello")
    (tmp_path / "secret.html").write_text("secret")
    (web / "link.html").symlink_to(tmp_path / "secret.html")
    (web / "notes.txt").write_text("not of a kind that is served")
    monkeypatch.setattr(page, "WEB", web)
    with served(sqlite(), tmp_path) as house:
        assert house.get("/").text == "hello"
        for name in ("link.html", "notes.txt", "../secret.html", "%2e%2e/secret.html", ""):
            assert house.get(f"/web/{name}").status_code == 404, name


HTML = b"<!doctype html><script>alert(1)</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'


def test_row_10_only_pictures_made_here_are_served(house: Served) -> None:
    for data in (HTML, SVG, b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", HTML * 1000):
        for name, kind in (("x.png", "image/png"), ("x.html", "text/html"), ("x.svg", "image/svg+xml")):
            assert house.bring(data, name, kind).status_code in (400, 415)
    said = PngInfo()
    said.add_text("comment", HTML.decode())
    for polyglot in (picture() + HTML, picture(pnginfo=said), picture(kind="JPEG") + HTML):
        told = house.bring(polyglot, "x.html", "text/html").json()
        for query in ("", "?as=jpeg", "?as=webp", "?side=64"):
            file = house.get(told["url"] + query)
            assert file.headers["content-type"] in ("image/png", "image/jpeg", "image/webp")
            assert file.headers["x-content-type-options"] == "nosniff"
            assert b"script" not in file.content


def test_row_12_no_address_is_fetched(house: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def called(*_: object, **__: object) -> None:
        raise AssertionError("somebody calls out")

    monkeypatch.setattr(socket.socket, "connect", called)
    monkeypatch.setattr(socket, "getaddrinfo", called)
    for address in ADDRESSES:
        for field in ("image", "mask", "vary"):
            assert house.post("/jobs", {"prompt": "x", field: address}).status_code == 422
            assert house.post("/jobs", {"prompt": "x", field: {"url": address}}).status_code == 422
    for path in Path(limner.serve.__file__).parent.rglob("*.py"):
        assert not {"urllib", "requests", "httpx", "aiohttp", "http"} & imports(path), path


def test_row_13_a_host_header_opens_nothing(sqlite: Callable[[], str], tmp_path: Path) -> None:
    with served(sqlite(), tmp_path) as house:
        house.store.add_key("somebody")
        for host in ("x/health?y=", "127.0.0.1/health?y=", "127.0.0.1:7860/health#", "localhost/session?"):
            for path in ("/jobs", "/pictures", "/queue", "/metrics", f"/jobs/{'0' * 32}"):
                assert house.get(path, headers={"host": host}).status_code in (400, 401)
        for header in ("x-forwarded-host", "x-original-url", "x-rewrite-url", "x-forwarded-prefix"):
            assert house.get("/jobs", headers={header: "/health"}).status_code == 401


def test_row_14_keys_are_kept_hashed(sqlite: Callable[[], str], tmp_path: Path) -> None:
    """That no route forgets its key is test_nothing_answers_without_a_key_but_what_is_listed."""
    url = sqlite()
    with served(url, tmp_path) as house:
        _, secret = house.store.add_key("anna")
        bearer = {"authorization": f"Bearer {secret}"}
        job = house.post("/jobs", {"prompt": "x"}, headers=bearer).json()
        house.post("/session", {"key": secret})
        answers = [
            house.get(path, headers=bearer).text for path in ("/jobs", "/metrics", "/session", "/queue")
        ]
        assert not any(secret in text for text in answers)
        assert job["id"] in answers[0]
    database = Path(url.removeprefix("sqlite:///"))
    for path in (*database.parent.glob(f"{database.name}*"), *tmp_path.rglob("*")):
        if path.is_file():
            assert secret.removeprefix("limner-").encode() not in path.read_bytes()


def test_row_15_a_page_elsewhere_cannot_draw(house: Served) -> None:
    """More of it in test_guard.py."""
    before = len(house.get("/jobs?limit=200").json()["items"])
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert house.post("/jobs", {"prompt": "x"}, headers=headers).status_code == 403
        kind = {**headers, "content-type": "text/plain"}
        assert house.ask("POST", "/jobs", content=b'{"prompt": "x"}', headers=kind).status_code == 403
    assert len(house.get("/jobs?limit=200").json()["items"]) == before


def test_row_16_others_are_let_in_only_with_a_key(sqlite: Callable[[], str], tmp_path: Path) -> None:
    """That `limner serve` exits with 2 is told in test_serving.py."""
    from limner.errors import ConfigError
    from limner.serve.listening import check_reach
    from limner.serve.settings import Settings
    from limner.serve.store import Store

    store = Store(sqlite(), tmp_path)
    try:
        for host in ("0.0.0.0", "::", "192.168.1.5", "art.example"):
            with pytest.raises(ConfigError, match="limner keys add"):
                check_reach(Settings(host=host), store)
        for host in ("127.0.0.1", "::1", "localhost", "127.3.2.1"):
            check_reach(Settings(host=host), store)
        key, _ = store.add_key("anna")
        check_reach(Settings(host="0.0.0.0"), store)
        store.revoke(key.id)
        with pytest.raises(ConfigError):
            check_reach(Settings(host="0.0.0.0"), store)
    finally:
        store.close()


def test_row_19_ranges_and_large_parts_are_no_trouble(house: Served) -> None:
    url = house.bring(picture()).json()["url"]
    many = "bytes=" + ",".join(f"{start}-{start + 1}" for start in range(10_000))
    for path in (url, "/", "/web/index.html"):
        said = house.get(path, headers={"range": many})
        assert said.status_code == 200
        assert "content-range" not in said.headers
    head = (
        b"--x\r\nContent-Disposition: form-data; name=file; filename="
        + b"y" * 1_000_000
        + b"\r\n\r\n\r\n--x--"
    )
    kind = {"content-type": "multipart/form-data; boundary=x"}

    async def both() -> tuple[int, list[int]]:
        sent = asyncio.ensure_future(house.client.post("/pictures", content=head, headers=kind))
        health = [(await house.client.get("/health")).status_code for _ in range(20)]
        return (await sent).status_code, health

    status, health = house.runner.run(both())
    assert status in (400, 413, 422)
    assert set(health) == {200}
    fields = b"".join(b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n" for _ in range(2000))
    assert house.ask("POST", "/pictures", content=fields + b"--x--", headers=kind).status_code in (400, 422)


def test_row_20_the_name_of_a_file_is_nothing(house: Served) -> None:
    for name in ("../../x", "..\\x.png", "/etc/passwd", "x" * 5000, "x\x00.png", "a\r\nb.png"):
        said = house.bring(picture(), name)
        assert said.status_code in (201, 400, 422)
        if said.status_code == 201:
            drawn = house.store.picture(said.json()["id"])
            assert drawn.file == f"uploads/{drawn.id}.png"
            assert name not in house.get(said.json()["url"]).headers["content-disposition"]
    outside = {path.name for path in house.settings.data.iterdir()}
    assert outside <= {"pictures", "session.secret"}


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO", "PDF", "EPS", "TGA", "PCX", "JPEG2000"])
def test_row_21_other_formats_are_not_tried(house: Served, kind: str) -> None:
    assert house.bring(picture(kind=kind)).status_code == 415


def test_row_21_nor_those_that_nobody_writes(house: Served) -> None:
    fits = b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80)
    for data in (
        fits.ljust(2880),
        b"8BPS\x00\x01" + bytes(100),
        b"%!PS-Adobe\n",
        b"\x00\x00\x00\x0cjP  \r\n",
    ):
        assert house.bring(data).status_code == 415


def png_of(width: int, height: int, data: bytes) -> bytes:
    """A PNG that says it has this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (2**31 - 1, 1), (4001, 4000), (0, 5)])
def test_row_21_a_bomb_is_not_decoded(house: Served, width: int, height: int) -> None:
    bomb = png_of(width, height, zlib.compress(bytes(1000)))
    tracemalloc.start()
    try:
        said = house.bring(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said.status_code in ((413,) if width * height else (400, 415))
    assert peak < 10_000_000


def test_row_21_a_broken_picture_is_a_bad_request(house: Served) -> None:
    whole = picture((64, 48), "JPEG")
    for data in (whole[:300], picture()[:-30], png_of(64, 48, b"no zlib"), picture(kind="WEBP")[:40]):
        assert house.bring(data).status_code in (400, 415)
    text = PngInfo()
    text.add_text("parameters", "x" * 3_000_000, zip=True)
    assert house.bring(picture(pnginfo=text)).status_code in (400, 415)


def test_row_22_extremes_are_answered_and_never_by_a_500(house: Served) -> None:
    extremes = (0, -1, 1e308, 2**63, 2**64, 1e-320, True, "", [], {}, [1e308] * 9)
    before = house.get("/queue").json()["waiting"]
    fields = (
        "count",
        "steps",
        "guidance",
        "strength",
        "size",
        "extend",
        "enlarge",
        "seed",
        "feather",
        "rerank",
    )
    for field in fields:
        for value in extremes:
            said = house.post("/jobs", {"prompt": "x", "size": [64, 64], "count": 1, field: value})
            assert said.status_code in (202, 400, 422), (field, value, said.text)
    assert house.get("/queue").json()["waiting"] == before
    for name in ("limit", "before", "state", "starred", "search"):
        for said in ("-1", "0", "9" * 400, "1e9", "NaN", "%00", "%ff", "x" * 5000):
            for path in ("/jobs", "/pictures"):
                assert house.get(f"{path}?{name}={said}").status_code in (200, 400, 422)


def test_row_24_files_tell_as_much_as_they_may(house: Served) -> None:
    text = PngInfo()
    text.add_text("parameters", "a secret prompt\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 5")
    text.add_text("limner", "{}")
    full = io.BytesIO()
    Image.new("RGB", (64, 48)).save(full, "PNG", pnginfo=text)
    said = picture(pnginfo=text)
    for metadata, told in (("full", True), ("minimal", True), ("none", False)):
        upload = uploads.read_upload(said, 10_000, metadata=metadata)
        assert upload.settings is not None
        assert (b"secret" in upload.data) is told
    for kind in ("png", "jpeg", "webp"):
        kept = uploads.encoded(full.getvalue(), kind)  # type: ignore[arg-type]  # one of the three
        assert (uploads.infotext_in(kept) or "").startswith("a secret prompt"), kind
        small = uploads.encoded(full.getvalue(), kind, 32)  # type: ignore[arg-type]  # one of the three
        bare = uploads.encoded(picture(), kind)  # type: ignore[arg-type]  # one of the three
        for data in (small, bare):
            assert uploads.infotext_in(data) is None
            assert b"secret" not in data


def test_row_27_a_repeat_after_a_crash_is_the_same_job(sqlite: Callable[[], str], tmp_path: Path) -> None:
    """A hundred at once are in test_app.py, as many as its patience allows."""
    url, once = sqlite(), {"Idempotency-Key": "a-name"}
    with served(url, tmp_path, at_once=False) as house:
        first = house.post("/jobs", {"prompt": "x"}, headers=once).json()["id"]  # ... and the answer is lost
    with served(url, tmp_path, at_once=False) as house:
        assert house.post("/jobs", {"prompt": "x"}, headers=once).json()["id"] == first
        assert house.post("/jobs", {"prompt": "y"}, headers=once).status_code == 409
        assert len(house.get("/jobs").json()["items"]) == 1
