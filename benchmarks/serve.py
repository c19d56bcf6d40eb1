"""`limner serve` against a plain server around the same pipeline: the same requests by the same clients.

    python benchmarks/serve.py [--clients 32] [--seconds 60] [--rounds 2] [--workers N] [--jobs 2000]
    python benchmarks/serve.py --seconds 15 --rounds 1 --jobs 100        # a look

The peer is what a tutorial comes to: FastAPI, one `def` endpoint that calls `pipeline.draw` and answers with
the PNG. It keeps no queue, shows no progress and loses what it draws when it stops. Both servers are started
afresh for each round and take turns, since other work on a machine comes and goes; each is alone meanwhile.

A request of ours is a job: submitted, watched to its end, and its picture fetched. All clients are busy for
`--warm` seconds before anything is counted. How many pictures at once pay, ours has measured before, as a
server has that stood idle for a while after its first start. A further client asks for /health ten times a
second. At last, `--jobs` small jobs (64 pixels, one step) pass through a fresh server of ours, and the memory
of all its processes is read on the way.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from facts import SRC, machine, report

PROMPTS = (
    "a cat on a blue background",
    "a red apple left of a dog",
    "two birds on a beach",
    "a house at night",
    "three yellow fish in the sea",
    "a bicycle above a tree on a green background",
    "a fox",
)
PEER = """
import io, sys
import uvicorn
from fastapi import Body, FastAPI, Response
import limner
from limner.pipeline.request import Request

pipeline = limner.load(sys.argv[2])
app = FastAPI()

@app.post("/draw")
def draw(asked: dict = Body()):
    file = io.BytesIO()
    pipeline.draw(Request.from_dict(asked)).images[0].save(file, "PNG")
    return Response(file.getvalue(), media_type="image/png")

@app.get("/health")
def health():
    return {"ok": True}

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""
LIMNER = "from limner.cli import main; main()"


class Client:
    """One connection, kept open."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.open = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def ask(self, method: str, path: str, body: dict[str, object] | None = None) -> tuple[int, bytes]:
        """(status, what was answered), waiting as long as a server that is full says."""
        while True:
            data = None if body is None else json.dumps(body).encode()
            self.open.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            answer = self.open.getresponse()
            said = answer.read()
            if answer.status != 429:
                return answer.status, said
            time.sleep(float(answer.headers.get("Retry-After", 1)))

    def need(self, method: str, path: str, body: dict[str, object] | None = None) -> bytes:
        """What was answered; ends the benchmark when that was a refusal."""
        status, said = self.ask(method, path, body)
        if not 200 <= status < 300:
            raise SystemExit(f"{method} {path}: {status} {said[:300]!r}")
        return said


def ours(client: Client, request: dict[str, object]) -> bytes:
    """A picture by a job."""
    job = json.loads(client.need("POST", "/jobs", request))
    events = client.need("GET", f"/jobs/{job['id']}/events").decode()
    ended = json.loads(re.findall(r"^event: end\ndata: (.*)$", events, re.M)[-1])["job"]
    if ended["state"] != "done":
        raise SystemExit(f"a job ended {ended['state']}: {ended['failure']}")
    return client.need("GET", ended["pictures"][0]["url"])


def plain(client: Client, request: dict[str, object]) -> bytes:
    """A picture by the peer."""
    return client.need("POST", "/draw", request)


Ask = Callable[[Client, dict[str, object]], bytes]


@contextlib.contextmanager
def served(command: list[str], port: int, env: dict[str, str]) -> Iterator[int]:
    """A server while it is needed: its process id. It has drawn a picture before it is handed over."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 300
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", port), 1):
                        break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise SystemExit(
                            f"{command[:4]} did not start:\n{log.read().decode()[-3000:]}"
                        ) from None
                    time.sleep(0.1)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@dataclass
class Seen:
    """What the clients of one server saw."""

    pictures: int = 0
    seconds: float = 0.0
    processor: float = 0.0  # seconds of processor time of all its processes
    waits: list[float] = field(default_factory=list)  # of a request, in seconds
    health: list[float] = field(default_factory=list)


def requests(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Requests without end: other words, another seed."""
    for number in itertools.count():
        request: dict[str, object] = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "count": 1}
        yield request | ({} if arguments.steps is None else {"steps": arguments.steps})


def busy(port: int, root: int, ask: Ask, arguments: argparse.Namespace, seen: Seen) -> None:
    """All clients at once, each as fast as it is answered; what came while it counted is added to `seen`."""
    todo, lock = requests(arguments), threading.Lock()
    until(lambda: ask(Client(port), next(todo)))
    start = time.perf_counter() + arguments.warm
    end = start + arguments.seconds
    failed: list[BaseException] = []

    def counted() -> bool:
        return start <= time.perf_counter() < end

    def draw() -> None:
        client = Client(port)
        while time.perf_counter() < end:
            with lock:
                request = next(todo)
            asked = time.perf_counter()
            ask(client, request)
            if counted():
                with lock:
                    seen.waits.append(time.perf_counter() - asked)
                    seen.pictures += 1

    def look() -> None:
        client = Client(port)
        while time.perf_counter() < end:
            asked = time.perf_counter()
            client.need("GET", "/health")
            if counted():
                seen.health.append(time.perf_counter() - asked)
            time.sleep(0.1)

    def tried(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    calls = [draw] * arguments.clients + [look]
    threads = [threading.Thread(target=tried, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, start - time.perf_counter()))
    before = processor(root)
    time.sleep(max(0.0, end - time.perf_counter()))
    seen.processor += processor(root) - before
    seen.seconds += arguments.seconds
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def until(call: Callable[[], object]) -> None:
    """Ask again while a server is still opening its model."""
    deadline = time.monotonic() + 300
    while True:
        try:
            call()
            return
        except SystemExit:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def family(root: int) -> Iterator[Path]:
    """A process and all below it, as folders of /proc."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    todo = [root]
    while todo:
        process = todo.pop()
        todo += parents.get(process, [])
        yield Path(f"/proc/{process}")


def measured(folder: Path) -> None:
    """Wait until a server that nobody asks has measured how many pictures at once pay."""
    deadline = time.monotonic() + 300
    while not any((folder / "measured").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.5)
    found = [path.read_text() for path in (folder / "measured").glob("*.json")]
    print(f"what pays at once: {', '.join(found) or 'not measured'}", flush=True)


def memory(root: int) -> float:
    """MB that a process and all below it hold in memory; what they share is shared out among them (PSS)."""
    total = 0
    for process in family(root):
        with contextlib.suppress(OSError):
            rolled = (process / "smaps_rollup").read_text()
            total += int(re.findall(r"^Pss:\s+(\d+)", rolled, re.M)[0])
    return total / 1024


def processor(root: int) -> float:
    """Seconds of processor time that a process and all below it have used."""
    ticks = 0
    for process in family(root):
        with contextlib.suppress(OSError):
            ticks += sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def many(port: int, root: int, arguments: argparse.Namespace) -> list[tuple[int, float]]:
    """(jobs done, MB) while small jobs pass through a server of ours."""
    left, lock = iter(range(arguments.jobs)), threading.Lock()
    seen: list[tuple[int, float]] = []
    failed: list[BaseException] = []
    every = max(1, arguments.jobs // 10)

    def draw() -> None:
        client = Client(port)
        try:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                request = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "count": 1}
                ours(client, request | {"size": [64, 64], "steps": 1})
                if (number + 1) % every == 0:
                    seen.append((number + 1, memory(root)))
        except BaseException as error:
            failed.append(error)

    first = Client(port)
    until(lambda: ours(first, {"prompt": PROMPTS[0], "count": 1, "size": [64, 64], "steps": 1}))
    threads = [threading.Thread(target=draw) for _ in range(arguments.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sorted(seen)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def share(values: list[float], part: float) -> float:
    """The value that so large a part of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60, help="of each server in each round")
    parser.add_argument("--warm", type=float, default=30, help="seconds before those that are counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of the sampler; the model's own if not given")
    parser.add_argument("--workers", type=int, default=None, help="as `limner serve` has it")
    parser.add_argument("--jobs", type=int, default=2000, help="small ones, for memory; 0: none")
    arguments = parser.parse_args()
    env = os.environ | {
        "PYTHONPATH": SRC,
        "LIMNER_RATE": "10000",
        "LIMNER_BURST": "100000",
        "LIMNER_STREAMS": "1000",
    }
    found: dict[str, Seen] = {"limner": Seen(), "plain": Seen()}

    def house(folder: str, port: int) -> list[str]:
        command = [sys.executable, "-c", LIMNER, "serve", "--port", str(port), "--data", folder]
        command += ["--model", arguments.model]
        return command + ([] if arguments.workers is None else ["--workers", str(arguments.workers)])

    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        with served(house(folder, port := free_port()), port, env):
            until(lambda: ours(Client(port), next(requests(arguments))))
            measured(Path(folder))
        for number in range(arguments.rounds):
            for name, ask in (("limner", ours), ("plain", plain)):
                port, seen = free_port(), found[name]
                peer = [sys.executable, "-c", PEER, str(port), arguments.model]
                command = house(folder, port) if name == "limner" else peer
                before = seen.pictures, seen.seconds
                with served(command, port, env) as root:
                    busy(port, root, ask, arguments, seen)
                pictures, seconds = seen.pictures - before[0], seen.seconds - before[1]
                told = f"round {number + 1}: {name} {pictures} pictures in {seconds:.0f} s"
                print(f"{told}, load {os.getloadavg()[0]:.1f}", flush=True)
        ours_seen, peer_seen = found["limner"], found["plain"]
        report(
            f"pictures a second, {arguments.clients} clients",
            ours_seen.pictures / ours_seen.seconds,
            peer_seen.pictures / peer_seen.seconds,
            "pictures/s",
            "FastAPI around the pipeline",
            more_is_better=True,
        )
        report(
            "pictures for a second of processor time, which other work on the machine does not touch",
            ours_seen.pictures / ours_seen.processor,
            peer_seen.pictures / peer_seen.processor,
            "pictures/s",
            "the same",
            more_is_better=True,
        )
        for part, name in ((0.5, "half"), (0.99, "99 of 100")):
            report(
                f"seconds in which {name} of the pictures came",
                share(ours_seen.waits, part),
                share(peer_seen.waits, part),
                "s",
                "the same",
                more_is_better=False,
            )
        report(
            "/health while busy, 99 of 100 answers",
            1000 * share(ours_seen.health, 0.99),
            1000 * share(peer_seen.health, 0.99),
            "ms",
            "the same",
            more_is_better=False,
        )
        half = 1000 * statistics.median(ours_seen.health)
        print(f"  limner's, half of them: {half:.1f} ms; {len(ours_seen.health)} were asked for")
        if arguments.jobs:
            port = free_port()
            with served(house(folder, port), port, env) as root:
                begun = time.perf_counter()
                grown = many(port, root, arguments)
                seconds = time.perf_counter() - begun
            pace = arguments.jobs / seconds
            print(f"memory of all processes over {arguments.jobs} small jobs, {pace:.1f} a second")
            print("  " + ", ".join(f"{jobs}: {size:.0f} MB" for jobs, size in grown))


if __name__ == "__main__":
    main()
