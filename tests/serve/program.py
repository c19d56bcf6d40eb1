"""A server as a process of its own, started as people start it, for tests of the whole."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

HERE = Path(__file__).parent
DEADLINE = 90  # seconds


def until(what: Callable[[], object], seconds: float = DEADLINE) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


class Program:
    """A `limner` that runs, and what it says."""

    def __init__(self, command: list[str], folder: Path, log: IO[bytes], env: dict[str, str]) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            command, env=os.environ | env, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
        )
        self.address = ""

    def wait_for_address(self) -> None:
        """Until it says where it serves."""
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if found := [word for word in line.split() if word.startswith("http://")]:
                self.address = found[0].rstrip("/")
                return
        raise AssertionError(f"it ended with {self.process.wait()}: {said}\n{self.log()}")

    def log(self) -> str:
        """What it wrote to standard error."""
        return (self.folder / "server.log").read_text("utf-8")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(DEADLINE)

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> int:
        """Its exit code."""
        return self.process.wait(DEADLINE)


@contextmanager
def limner(folder: Path, *arguments: str, light: bool = True, **env: str) -> Iterator[Program]:
    """`limner ARGUMENTS` in `folder`, drawing plain colours unless `light` is False. Killed at the end, if it
    still runs."""
    command = [sys.executable, str(HERE / "light.py")] if light else [sys.executable, "-c", MAIN]
    with (folder / "server.log").open("ab") as log:
        program = Program([*command, *arguments], folder, log, {"LIGHT": str(folder), **env})
        try:
            yield program
        finally:
            if program.process.poll() is None:
                program.process.kill()
            program.process.communicate()


@contextmanager
def serving(folder: Path, *arguments: str, light: bool = True, **env: str) -> Iterator[Program]:
    """`limner serve` on a free port, once it draws."""
    with limner(folder, "serve", "--port", "0", *arguments, light=light, **env) as program:
        program.wait_for_address()
        with httpx.Client(base_url=program.address) as client:
            until(lambda: client.get("/health").status_code == 200)
        yield program


MAIN = "from limner.cli import main; main()"
