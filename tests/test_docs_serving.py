"""What docs/serving.md says is so: its snippets run against a server that draws plain colours, its tables
are those of the code, and what other programs are given can be read by them.
"""

import ast
import configparser
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "serve"))

from house import served  # noqa: E402
from postgresql import programs, server  # noqa: E402
from program import HERE, limner, serving, until  # noqa: E402

from limner.cli import app  # noqa: E402
from limner.errors import ConfigError  # noqa: E402
from limner.serve import cluster, errors, keys, listening  # noqa: E402
from limner.serve.cluster import ClusterSettings  # noqa: E402
from limner.serve.settings import Settings  # noqa: E402
from limner.serve.store import Store  # noqa: E402

PAGE = ROOT / "docs" / "serving.md"
TEXT = PAGE.read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: ([\w ]+))?\n(.*?)^```$", TEXT, re.M | re.S)
ADDRESS = "http://127.0.0.1:7860"
DATABASE = "limner:secret@db.example/"


def blocks(language: str, how: str = "") -> list[str]:
    """The code of the blocks that begin so, in order."""
    return [code for first, second, code in BLOCKS if (first, second) == (language, how)]


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    below = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = [line for line in below.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[2:]]


def ran(code: str, folder: Path, *, path: str = "") -> str:
    """What a shell says to a block; a command that fails fails all of it."""
    shims = folder / "bin"
    shims.mkdir(exist_ok=True)
    (shims / "limner").write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "light.py"} "$@"\n')
    (shims / "limner").chmod(0o755)
    env = os.environ | {"PATH": f"{shims}:{path}:{os.environ['PATH']}", "LIGHT": str(folder)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_is_looked_at_by_one_of_these() -> None:
    kinds = {(first, second) for first, second, _ in BLOCKS}
    assert kinds == {
        ("sh", ""),
        ("sh", "keys"),
        ("sh", "serve"),
        ("sh", "serve postgresql"),
        ("sh", "serve ray"),
        ("sh", "ray"),
        ("sh", "postgresql"),
        ("python", ""),
        ("nginx", ""),
        ("caddy", ""),
        ("ini", ""),
    }


def test_what_clients_do(tmp_path: Path) -> None:
    """The server of the first block, asked by all of the clients, saved and brought back."""
    pytest.importorskip("openai", reason="needs openai, which [dev] brings")
    for tool in ("bash", "curl", "jq", "sqlite3"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    assert blocks("sh", "serve")[0] == "limner serve\n"
    with serving(tmp_path) as program:
        said = [ran(code.replace(ADDRESS, program.address), tmp_path) for code in blocks("sh")]
        script = "\n".join(blocks("python")).replace(ADDRESS, program.address)
        python = subprocess.run(
            [sys.executable, "-W", "error::DeprecationWarning", "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert python.returncode == 0, python.stderr
        metrics_are_told(httpx.get(f"{program.address}/metrics").text)
    events = (tmp_path / "events.txt").read_text()
    assert events.count("event: end") == 1
    assert len(list(tmp_path.glob("picture-*.png"))) == 2
    drawn = [*tmp_path.glob("[0-9]*.png"), *tmp_path.glob("picture-*.png")]
    for path in (*drawn, tmp_path / "boat.png", tmp_path / "dog.png"):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert image.format == "PNG"
            image.load()
    assert len(drawn) == 4 + 2
    assert "100%" in python.stdout
    assert python.stdout.count("image_generation.completed") == 1
    assert "a brown dog" in python.stdout
    assert '"status":"ok"' in "".join(said)
    restored_is_whole(tmp_path)


def metrics_are_told(text: str) -> None:
    """The page's metrics are those that there are."""
    there = {
        name for name in re.findall(r"^# TYPE (limner_\w+) ", text, re.M) if not name.endswith("_created")
    }
    told = {name for row in rows("Health and numbers") for name in re.findall(r"`(limner_\w+)`", row[0])}
    assert told == there


def restored_is_whole(folder: Path) -> None:
    """The copy that the page says to make has every picture that its database knows."""
    with closing(
        Store(f"sqlite:///{folder / 'restored' / 'limner.db'}", folder / "restored" / "pictures")
    ) as store:
        assert len(store.listed(None)) >= 1
        known = store.files()
        assert len(known) >= 2
        assert all((store.pictures / name).is_file() for name in known)


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made, listed = (
        CliRunner().invoke(app, line.split()[1:]) for line in blocks("sh", "keys")[0].splitlines()
    )
    assert (made.exit_code, listed.exit_code) == (0, 0)
    secret = next(line for line in made.stdout.splitlines() if line.startswith("limner-"))
    with closing(Store(Settings().database_url, tmp_path)) as store:
        key = store.key_of(secret)
    assert key is not None
    assert (key.name, key.metadata, key.waiting, key.budget) == ("anna", "minimal", 20, 5000)
    assert key.id in listed.stdout
    assert {row[0].strip("`") for row in rows("Keys, and what files tell")} == set(keys.METADATA)


# -- what starts a server ------------------------------------------------------------------------------------


def commands(*how: str) -> Iterator[list[str]]:
    """The words of every `limner serve` on the page."""
    for one in how:
        for code in blocks("sh", one):
            words = shlex.split(code)
            assert words[:2] == ["limner", "serve"]
            yield words[1:]


def test_every_way_to_start_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Settings] = []
    for module in (listening, cluster):
        monkeypatch.setattr(module, "run", lambda settings, told: asked.append(settings))
    for words in commands("serve", "serve postgresql", "serve ray"):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    first, models, others, proxied, restored, shared, ray, several = asked
    assert first == Settings()
    assert models.models == {"mini": "mini", "photos": "/models/sd_xl_base_1.0.safetensors"}
    assert models.device == ("cuda:0", "cuda:1")
    assert (others.loopback, others.hosts, proxied.hosts) == (False, ("art.example",), ("art.example",))
    assert restored.data == Path("restored")
    assert (shared.name, shared.database_url) == ("machine-1", f"postgresql+psycopg://{DATABASE}limner")
    assert isinstance(ray, ClusterSettings)
    assert isinstance(several, ClusterSettings)
    assert (ray.replicas, ray.address) == (2, "local")
    assert (several.replicas, several.address, several.data) == (4, "auto", Path("/shared/limner"))


def test_others_are_let_in_once_there_is_a_key(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, host="0.0.0.0")
    with closing(Store(settings.database_url, settings.pictures)) as store:
        with pytest.raises(ConfigError, match="limner keys add"):
            listening.check_reach(settings, store)
        store.add_key("anna")
        listening.check_reach(settings, store)


def test_rays_own_command_names_settings() -> None:
    started, run = blocks("sh", "ray")
    assert "ray start --head" in started
    words = shlex.split(run)
    assert words[:3] == ["serve", "run", "limner.serve.cluster:app"]
    settings = ClusterSettings.model_validate(dict(word.split("=", 1) for word in words[3:]))
    assert (settings.replicas, settings.data) == (4, Path("/shared/limner"))
    assert callable(cluster.app)


@pytest.mark.slow
def test_ray_knows_its_options() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="needs ray, which [cluster] brings")
    for line in blocks("sh", "ray")[0].splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["ray", "start"]:
            scripts.start.make_context("start", words[2:])


@pytest.mark.slow
def test_postgresql_is_served_saved_and_restored(tmp_path: Path) -> None:
    psycopg = pytest.importorskip("psycopg", reason="needs psycopg, which [cluster] brings")
    if (bin := programs()) is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    (words,) = commands("serve postgresql")
    dump, restore = blocks("sh", "postgresql")
    with server(bin) as url:
        for name in ("limner", "restored"):
            with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
        database = url.format("limner").replace("postgresql://", "postgresql+psycopg://")
        said = [word.replace(f"postgresql+psycopg://{DATABASE}limner", database) for word in words]
        said = [word.replace("/shared/limner", "shared") for word in said]
        with limner(tmp_path, *said, "--port", "0") as program:
            program.wait_for_address()
            with httpx.Client(base_url=program.address, timeout=60) as client:
                until(lambda: client.get("/health").status_code == 200)
                id = client.post("/jobs", json={"prompt": "a cat", "count": 1}).json()["id"]
                until(lambda: client.get(f"/jobs/{id}").json()["state"] == "done")
            (tmp_path / "backup").mkdir()
            for code in (dump, restore):
                for name in ("limner", "restored"):
                    code = code.replace(f"postgresql://{DATABASE}{name}", f"'{url.format(name)}'")
                ran(code, tmp_path, path=str(bin))
        with closing(Store(url.format("restored"), tmp_path / "shared" / "pictures")) as store:
            assert [job.id for job in store.listed(None)] == [id]
            assert all((store.pictures / name).is_file() for name in store.files())


@pytest.mark.slow
def test_what_was_restored_is_served(tmp_path: Path) -> None:
    with serving(tmp_path) as program:
        ran(blocks("sh")[0].replace(ADDRESS, program.address), tmp_path)
        for code in blocks("sh")[1:3]:
            ran(code, tmp_path)
    with serving(tmp_path, "--data", "restored") as program, httpx.Client(base_url=program.address) as client:
        shown = client.get("/pictures").json()["items"]
        assert len(shown) == 2
        assert all(client.get(picture["url"]).status_code == 200 for picture in shown)


# -- what other programs are given ---------------------------------------------------------------------------


def directives(code: str) -> list[str]:
    """What a block of nginx's or Caddy's sets, one line each. The braces have to match."""
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in code.splitlines()]
    depth = 0
    for line in lines:
        depth += line.endswith("{") - (line == "}")
        assert depth >= 0
    assert depth == 0
    return [line for line in lines if line and line != "}"]


def test_nginx(tmp_path: Path) -> None:
    (code,) = blocks("nginx")
    found = directives(code)
    assert all(line.endswith((";", "{")) for line in found)
    for needed in (
        "proxy_buffering off;",
        "proxy_http_version 1.1;",
        "proxy_set_header Host $host;",
        "proxy_set_header X-Forwarded-Proto $scheme;",
        f"client_max_body_size {Settings().upload_bytes >> 20}m;",
        "proxy_pass http://127.0.0.1:7860;",
    ):
        assert needed in found
    if (nginx := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")) is not None:
        plain = re.sub(r"ssl_certificate\w* .*", "", code).replace("443 ssl", "127.0.0.1:8443")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        here = "".join(f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in kinds) + "access_log off;\n"
        (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\n{here}{plain}}}\n")
        tried = subprocess.run(
            [nginx, "-t", "-p", tmp_path, "-e", tmp_path / "log", "-c", tmp_path / "nginx.conf"],
            capture_output=True,
            text=True,
        )
        assert tried.returncode == 0, tried.stderr


def test_caddy(tmp_path: Path) -> None:
    (code,) = blocks("caddy")
    found = directives(code)
    assert "flush_interval -1" in found
    assert "reverse_proxy 127.0.0.1:7860 {" in found
    assert f"max_size {Settings().upload_bytes >> 20}MB" in found
    if (caddy := shutil.which("caddy")) is not None:
        (tmp_path / "Caddyfile").write_text(code)
        tried = [caddy, "adapt", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile"]
        subprocess.run(tried, check=True, capture_output=True)


def test_a_proxy_passes_on_what_the_server_looks_at(tmp_path: Path) -> None:
    """The name in Host: a page at https://art.example is one of ours, no other is."""
    asked = {"prompt": "a cat", "count": 1}
    with served(f"sqlite:///{tmp_path / 'limner.db'}", tmp_path, hosts=("art.example",)) as house:
        for host, origin, status in (
            ("art.example", "https://art.example", 202),
            ("art.example", "https://other.example", 403),
            ("other.example", "https://other.example", 400),
        ):
            headers = {"host": host, "origin": origin}
            assert house.post("/jobs", asked, headers=headers).status_code == status


def test_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(blocks("ini")[0])
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/limner")
    asked: list[Settings] = []
    monkeypatch.setattr(listening, "run", lambda settings, told: asked.append(settings))
    assert CliRunner().invoke(app, words).exit_code == 0
    assert asked[0].drain + 10 < float(unit["Service"]["TimeoutStopSec"])
    assert unit["Service"]["KillMode"] == "mixed"  # the workers are told by the server when to stop


# -- the tables ----------------------------------------------------------------------------------------------


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_settings_are_those_of_the_code() -> None:
    written = script("write_settings")
    assert PAGE.read_text("utf-8") == written.page(), "run python scripts/write_settings.py"
    assert list(written._wrong()) == []
    told = set(re.findall(r"^\| `LIMNER_(\w+)`", TEXT, re.M))
    assert told == {name.upper() for name in ClusterSettings.model_fields}
    assert all(
        written.comments(kind).get(name) for kind in written.TABLES.values() for name in kind.__annotations__
    )


def test_options_that_are_named_are_there() -> None:
    known = {name for command in ("serve", "keys") for name in options_of(command)}
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S)
    named = set(re.findall(r"`(?:limner [\w ]+)?(--[\w-]+)[^`]*`", prose))
    assert named - known == set()
    variables = set(re.findall(r"LIMNER_(\w+)", TEXT))
    assert variables <= {name.upper() for name in ClusterSettings.model_fields}


def options_of(command: str) -> set[str]:
    from typer.main import get_command

    found = get_command(app).commands[command]  # type: ignore[attr-defined]
    inner = list(getattr(found, "commands", {}).values()) or [found]
    return {option for one in inner for parameter in one.params for option in parameter.opts}


def test_every_answer_is_explained() -> None:
    """The statuses and codes of the page are those that the server's source can answer with."""
    told = {
        (int(row[0]), code)
        for row in rows("Limits, and what answers mean")
        for code in re.findall(r"`(\w+)`", row[1])
    }
    assert told == set(answers())


def answers() -> Iterator[tuple[int, str]]:
    """(status, code) of everything that is raised for clients."""
    yield from {(404, "not_found"), (409, "conflict"), (429, "queue_full"), (429, "too_many")}
    yield (503, "store_unavailable")
    yield (405, errors.HTTP[405][0])
    for path in sorted((ROOT / "src" / "limner" / "serve").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            said = {word.arg: word.value for word in node.keywords}
            if node.func.id == "Refused" and len(node.args) > 1:
                said |= {"status": node.args[0], "code": node.args[1]}
            elif node.func.id != "Problem":
                continue
            status, code = said.get("status"), said.get("code")
            if isinstance(status, ast.Constant) and isinstance(code, ast.Constant | ast.IfExp):
                for one in ast.walk(code):
                    if isinstance(one, ast.Constant) and isinstance(one.value, str):
                        yield status.value, one.value
