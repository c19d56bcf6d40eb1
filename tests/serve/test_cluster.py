"""The service on a Ray cluster. The slow tests start one: of two nodes with PostgreSQL, one of which dies."""

import ast
import builtins
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from drawers import Sketcher, encoded
from fakes import FakeEngine

from limner.errors import ConfigError
from limner.serve import cluster
from limner.serve.cluster import ClusterSettings, Replica, settings_of
from limner.serve.jobs import State
from limner.serve.settings import Settings
from limner.serve.store import Store

DEADLINE = 240  # seconds; Ray takes its time on a busy machine
SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


def until(what: Callable[[], object]) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def test_settings_go_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIMNER_REPLICAS", "5")
    monkeypatch.setenv("LIMNER_QUEUE", "7")
    found = settings_of(Settings(data=tmp_path, model=("a=mini",)), address="auto")
    assert (found.replicas, found.queue, found.data, found.model) == (5, 7, tmp_path, ("a=mini",))
    assert (found.address, found.gpus, found.silent) == ("auto", 0, 60)
    assert settings_of(Settings(), replicas=3).replicas == 3
    with pytest.raises(ValueError, match="replicas"):
        settings_of(Settings(), replicas=0)


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    for name in {**cluster.QUIET, **cluster.ALONE, "RAY_AUTH_TOKEN": ""}:
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back afterwards what `run` sets
    with pytest.raises(ConfigError, match=r'pip install "limner\[serve,cluster\]"'):
        cluster.run(ClusterSettings(data=tmp_path), print)
    with pytest.raises(ConfigError, match=r"limner\[serve,cluster\]"):
        cluster.app(ClusterSettings(data=tmp_path))


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Puts a stand-in for Ray with so many nodes that are alive, and a dead one, in its place."""

    class Ray:
        alive = 1

        @classmethod
        def nodes(cls) -> list[dict[str, object]]:
            return [{"Alive": True}] * cls.alive + [{"Alive": False}]

    monkeypatch.setattr(cluster, "_ray", lambda alone=False: (Ray, None))
    return partial(setattr, Ray, "alive")


def test_several_nodes_need_postgresql(nodes: Callable[[int], None], tmp_path: Path) -> None:
    on_file = ClusterSettings(data=tmp_path)
    nodes(1)
    cluster.check_nodes(on_file)
    nodes(2)
    with pytest.raises(ConfigError, match=r"2 nodes.*postgresql\+psycopg://"):
        cluster.check_nodes(on_file)
    cluster.check_nodes(ClusterSettings(data=tmp_path, database="postgresql+psycopg://anna@db/limner"))


def test_a_cluster_elsewhere_needs_a_port(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name one with --port"):
        cluster._port(ClusterSettings(data=tmp_path, port=0, address="auto"))
    assert cluster._port(ClusterSettings(data=tmp_path, port=0)) > 0


class Serve:
    """A stand-in for Ray Serve, and for Ray, that notes what it was asked."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.asked: list[str] = []

    def nodes(self) -> list[dict[str, object]]:
        return [{"Alive": True}]

    def is_initialized(self) -> bool:
        return False

    def init(self, **said: Any) -> None:
        self.note("init", said["address"])

    def start(self, proxy_location: str, http_options: dict[str, Any]) -> None:
        self.note("start", f"{proxy_location} {http_options['host']}")

    def run(self, target: object, name: str, route_prefix: str) -> None:
        self.note("run", f"{name} {route_prefix}")

    def shutdown(self) -> None:
        self.note("shutdown")

    def delete(self, name: str) -> None:
        self.note("delete", name)

    def note(self, what: str, how: str = "") -> None:
        self.asked.append(f"{what} {how}".strip())
        if what == self.broken:
            raise (ConnectionError if what == "init" else RuntimeError)("it failed\n\n  nobody is there\n")


def serve_with(fake: Serve, monkeypatch: pytest.MonkeyPatch, settings: ClusterSettings) -> list[str]:
    """The addresses that `run` says, on a stand-in; it is told to stop as soon as it has said one."""
    monkeypatch.setattr(cluster, "_ray", lambda alone=False: (fake, fake))
    monkeypatch.setattr(cluster, "bound", lambda settings, drawer: None)
    said: list[str] = []

    def told(address: str) -> None:
        said.append(address)
        os.kill(os.getpid(), signal.SIGTERM)

    cluster.run(settings, told)
    return said


def test_a_signal_ends_what_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    fake = Serve()
    (address,) = serve_with(fake, monkeypatch, ClusterSettings(data=tmp_path, port=0))
    assert address.startswith("http://127.0.0.1:")
    started = ["init local", "start EveryNode 127.0.0.1", "run limner /"]
    assert fake.asked == [*started, "shutdown", "shutdown"]  # of Serve, then of Ray
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_cluster_of_others_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Serve()
    serve_with(fake, monkeypatch, ClusterSettings(data=tmp_path, address="auto"))
    assert fake.asked == [
        "init auto",
        "start EveryNode 127.0.0.1",
        "run limner /",
        "delete limner",
        "shutdown",
    ]


@pytest.mark.parametrize(
    ("broken", "address", "said"),
    [
        ("init", "10.0.0.1:6379", r"no Ray cluster at 10\.0\.0\.1:6379: nobody is there; .*ray start"),
        ("run", "local", "the replicas cannot be started: nobody is there"),
    ],
)
def test_what_fails_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str, address: str, said: str
) -> None:
    fake = Serve(broken)
    with pytest.raises(ConfigError, match=said):
        serve_with(fake, monkeypatch, ClusterSettings(data=tmp_path, address=address))
    assert fake.asked[-1] == ("shutdown" if broken == "run" else "init 10.0.0.1:6379")


def test_others_are_let_in_only_with_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Serve()
    with pytest.raises(ConfigError, match="limner keys add"):
        serve_with(fake, monkeypatch, ClusterSettings(data=tmp_path, host="0.0.0.0"))
    assert fake.asked == []


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sqlite: Callable[[], str]) -> Replica:
    """An application as Ray would start it, without Ray."""
    monkeypatch.setattr(cluster, "_name", lambda: "here")
    monkeypatch.setattr(cluster, "LocalEngine", lambda store, settings, drawer: FakeEngine(store))
    return Replica(ClusterSettings(data=tmp_path, database=sqlite()), None)


def asked(replica: Replica, client: str, **headers: str) -> list[int]:
    """What it answers to a client of this address: on /queue, then on /health, while it lives."""
    import asyncio

    async def lived() -> list[int]:
        heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        said: asyncio.Queue[Any] = asyncio.Queue()
        life = asyncio.create_task(replica({"type": "lifespan"}, heard.get, said.put))
        await heard.put({"type": "lifespan.startup"})
        assert (await said.get())["type"] == "lifespan.startup.complete"
        transport = httpx.ASGITransport(replica, client=(client, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7860") as by:
            answers = [(await by.get(path, headers=headers)).status_code for path in ("/queue", "/health")]
        await heard.put({"type": "lifespan.shutdown"})
        assert (await said.get())["type"] == "lifespan.shutdown.complete"
        await life
        return answers

    return asyncio.run(lived())


def test_a_replica_answers_its_own_machine(replica: Replica) -> None:
    assert asked(replica, "127.0.0.1") == [200, 200]
    assert asked(replica, "::1") == [200, 200]


@pytest.mark.parametrize("client", ["192.0.2.7", "nobody", "2001:db8::1"])
def test_whoever_comes_from_elsewhere_needs_a_key(replica: Replica, client: str) -> None:
    """Ray's proxy may listen on interfaces that the settings know nothing of."""
    assert asked(replica, client) == [401, 200]


# -- with Ray ------------------------------------------------------------------------------------------------


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray on a machine that has other things to do, and listens to loopback alone."""
    pytest.importorskip("ray.serve", reason="needs ray[serve], which [cluster] brings")
    monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    here = str(Path(__file__).parent)  # for the drawers
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    )


@pytest.fixture
def two_nodes(calm: None) -> Iterator[Any]:
    """A cluster of two nodes, each with one processor; this process is its driver, on the first."""
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=SMALL, shutdown_at_exit=False)
    try:
        made.add_node(**SMALL)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_node_is_lost_and_no_job(two_nodes: Any, postgresql: Callable[[], str], tmp_path: Path) -> None:
    from ray import serve

    url = postgresql()
    settings = ClusterSettings(
        data=tmp_path / "data",
        database=url,
        replicas=2,
        silent=6,
        port=cluster._port(ClusterSettings(data=tmp_path, port=0)),
        model=("sketch",),
        drain=5,
    )
    drawer = partial(Sketcher, tmp_path, 4)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": settings.port})
    try:
        serve.run(cluster.bound(settings, drawer), name=cluster.NAME, route_prefix="/")
        store = Store(url, settings.pictures)
        try:
            under_load(two_nodes, settings, store, tmp_path)
        finally:
            store.close()
    finally:
        serve.shutdown()


def under_load(two: Any, settings: ClusterSettings, store: Store, folder: Path) -> None:
    """Jobs from many clients; a node dies while both draw; every job that was accepted ends as done."""
    base = f"http://127.0.0.1:{settings.port}"
    accepted: dict[str, int] = {}
    with httpx.Client(base_url=base, timeout=60) as client:

        def submit(number: int, prompt: str) -> None:
            told = {"prompt": prompt, "seed": number, "count": 2, "size": [16, 16], "steps": 4}
            end = time.monotonic() + DEADLINE
            while time.monotonic() < end:  # as a client does whose request met the node that died
                try:
                    said = client.post("/jobs", json=told, headers={"Idempotency-Key": f"job-{number}"})
                except httpx.TransportError:
                    continue
                if said.status_code == 202:
                    accepted[said.json()["id"]] = number
                    return
                assert said.status_code >= 500, said.text
                time.sleep(0.1)
            pytest.fail("nobody took the job")

        for number in range(8):
            submit(number, f"wait:go {number}")
        until(lambda: len(pids(folder)) == 2 and store.counts()[State.RUNNING] >= 2)
        assert len({job.id for job in store.listed(None, state=State.RUNNING)}) >= 2
        (second,) = two.worker_nodes
        two.remove_node(second, allow_graceful=False)
        for number in range(8, 40):
            submit(number, f"slow {number}")
        (folder / "go").touch()
        until(lambda: all(store.get(id).state.terminal for id in accepted))
        assert len(accepted) == 40
        for id, number in accepted.items():
            job = store.get(id)
            assert job.state is State.DONE, (job.state, job.failure)
            assert job.seeds == (number, number + 1)
            told = client.get(f"/jobs/{id}").json()
            for index, picture in enumerate(told["pictures"]):
                assert client.get(picture["url"]).status_code == 200
                file = settings.pictures / job.pictures[index].file
                assert file.read_bytes() == encoded(number + index)
        assert any(store.get(id).attempts > 1 for id in accepted)


def pids(folder: Path) -> set[int]:
    """The processes that have begun to draw."""
    log = folder / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return {int(line.split()[0]) for line in lines if " draw " in line}


@pytest.mark.slow
def test_the_command_listens_to_loopback_alone(calm: None, tmp_path: Path) -> None:
    """`limner serve --ray`, which is asked, then told to stop. Ray opens one port for each replica on every
    interface, whatever it is told, which asks for a token."""
    psutil = pytest.importorskip("psutil", reason="comes with ray")
    command = [sys.executable, str(Path(__file__).parent / "light.py"), "serve", "--ray", "--replicas", "1"]
    env = os.environ | {"LIMNER_CPUS": "1", "LIGHT": str(tmp_path)}
    process = subprocess.Popen(
        [*command, "--port", "0", "--data", str(tmp_path / "data")],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = next(word for word in line.split() if word.startswith("http://"))
        with httpx.Client(base_url=address, timeout=60) as client:
            until(lambda: client.get("/health").status_code == 200)
            id = client.post("/jobs", json={"prompt": "a cat", "count": 1, "size": [16, 16]}).json()["id"]
            until(lambda: client.get(f"/jobs/{id}").json()["state"] == "done")
        family = [process.pid, *(one.pid for one in psutil.Process(process.pid).children(recursive=True))]
        open_to_all = [
            " ".join(psutil.Process(one.pid).cmdline())
            for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
            and one.pid in family
            and one.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
        ]
        assert all("ServeReplica" in one for one in open_to_all), open_to_all
        process.terminate()
        assert process.wait(DEADLINE) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_the_module_can_be_read_without_ray() -> None:
    tree = ast.parse(Path(cluster.__file__).read_text("utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    within = {id(node) for function in functions for node in ast.walk(function)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    of_ray = [node for node in imports if "ray" in ast.unparse(node).replace(",", " ").split()]
    assert of_ray
    assert all(id(node) in within for node in of_ray)
