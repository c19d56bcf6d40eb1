"""An application on a port of this machine, in a thread: for clients that open connections of their own."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import uvicorn
from fastapi import FastAPI

DEADLINE = 30.0  # seconds


@contextmanager
def ported(app: FastAPI) -> Iterator[str]:
    """Its address, such as http://127.0.0.1:40123, while it is served."""
    with closing(socket.create_server(("127.0.0.1", 0))) as port:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="on", ws="none", loop="asyncio", http="h11",
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [port]}, daemon=True)
        thread.start()
        until(lambda: server.started or not thread.is_alive())
        try:
            yield f"http://127.0.0.1:{port.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(DEADLINE)
            assert not thread.is_alive()


def until(true: Callable[[], object]) -> None:
    """Wait for something to be true."""
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)
