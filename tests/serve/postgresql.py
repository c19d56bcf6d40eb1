"""A PostgreSQL server of the tests' own: Debian's, in a temporary folder, reached through a socket there."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEADLINE = 30  # seconds
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",  # no test cuts the power, and the machine's disk is shared
    "shared_buffers": "16MB",
    "max_connections": "80",
    "autovacuum": "off",
}


def programs() -> Path | None:
    """The newest folder with Debian's server in it, or that of the PATH; None: it is not installed."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    found = shutil.which("initdb")
    folders = [*reversed(debian), *([Path(found).parent] if found else [])]
    return next(
        (path for path in folders if (path / "initdb").exists() and (path / "postgres").exists()), None
    )


@contextmanager
def server(bin: Path) -> Iterator[str]:
    """Start one and say its URL, up to the database's name: its user may do everything. It refuses to run as
    root, so root hands it to nobody."""
    import psycopg

    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="limner-pg-"))  # a socket's path may have 107 characters
    try:
        if user:
            shutil.chown(folder, user)
        data = folder / "data"
        made = [
            bin / "initdb",
            "-D",
            data,
            "-U",
            "limner",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        subprocess.run(made, user=user, cwd=folder, check=True, capture_output=True, timeout=4 * DEADLINE)
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        with (folder / "log").open("wb") as log:
            command = [bin / "postgres", "-D", data, "-k", folder, *settings]
            process = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=log)
        try:
            url = f"postgresql://limner@/{{}}?host={folder}"
            until = time.monotonic() + DEADLINE
            while True:
                try:
                    psycopg.connect(url.format("postgres"), connect_timeout=5).close()
                    break
                except psycopg.OperationalError:
                    assert process.poll() is None, (folder / "log").read_text()
                    assert time.monotonic() < until, (folder / "log").read_text()
                    time.sleep(0.05)
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # "fast shutdown": connections are cut
            process.wait(DEADLINE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
