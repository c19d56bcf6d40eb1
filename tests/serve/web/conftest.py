"""The page in a real browser, before the real application with an engine that draws when it is told to."""

import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for fakes

WAIT = 30_000  # ms for what must happen; nothing waits so long when it does
WATCH = """
window.faults = [];
addEventListener("securitypolicyviolation", (event) =>
  faults.push(`policy: ${event.violatedDirective} ${event.blockedURI}`));
window.blobs = new Set();
const { createObjectURL, revokeObjectURL } = URL;
URL.createObjectURL = (blob) => { const url = createObjectURL.call(URL, blob); blobs.add(url); return url; };
URL.revokeObjectURL = (url) => { blobs.delete(url); revokeObjectURL.call(URL, url); };
"""


class Site:
    """A server on this machine: it can be stopped, and started again on the same port with the same data."""

    def __init__(self, folder: Path, models: tuple[Any, ...] | None = None, **options: Any) -> None:
        from limner.serve.settings import Settings

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.models = models
        self.settings = Settings(data=folder, port=self.port, **options)
        self.url = f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        import uvicorn
        from fakes import MINI, FakeEngine

        from limner.serve.app import create_app
        from limner.serve.store import Store

        self.settings.data.mkdir(exist_ok=True)
        self.store = Store(self.settings.database_url, self.settings.pictures)
        self.engine = FakeEngine(self.store, at_once=False, models=self.models or (MINI,))
        app = create_app(self.engine, self.store, self.settings)
        config = uvicorn.Config(app, port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        started = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self.thread.start()
        assert started.wait(30)

    def _run(self, started: threading.Event) -> None:
        startup = self.server.startup

        async def told(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets)
            started.set()

        self.server.startup = told  # type: ignore[method-assign]
        self.server.run()

    def stop(self) -> None:
        self.engine.hub.close()  # lets the event streams go
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.store.close()

    def draw(self) -> Any:
        """The next job, to the end. Returns it."""
        job = self.engine.begin()
        assert job is not None
        self.engine.show(job, 0.5)
        return self.engine.end(job)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for one file of tests: while Playwright runs, no other event loop can in this thread."""
    pytest.importorskip("fastapi", reason="needs [serve]")
    pytest.importorskip("uvicorn", reason="needs [serve]")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which [dev] brings")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    api.expect.set_options(timeout=WAIT)
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Starts a server; its arguments are those of Settings. Stopped after the test."""
    sites: list[Site] = []

    def opened(**options: Any) -> Site:
        sites.append(Site(tmp_path / f"site{len(sites)}", **options))
        return sites[-1]

    yield opened
    for site in sites:
        site.stop()


@pytest.fixture
def site(open_site: Callable[..., Site]) -> Site:
    """A server without keys."""
    return open_site()


@pytest.fixture
def open_page(browser: Any, open_site: Callable[..., Site]) -> Iterator[Callable[..., Any]]:
    """Opens a site's page in its own browser. After the test nothing may have gone wrong in it: no error, and
    no breach of the content security policy nor request to anybody else. `forgive`: parts of what its console
    may say."""
    faults: list[str] = []
    contexts = []

    def opened(site: Site, forgive: tuple[str, ...] = (), **options: Any) -> Any:
        said = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **options}
        context = browser.new_context(**said)
        contexts.append(context)
        context.set_default_timeout(WAIT)
        context.add_init_script(WATCH)
        page = context.new_page()

        def told(words: str) -> None:
            if not any(part in words for part in forgive):
                faults.append(words)

        page.on("console", lambda one: told(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: told(f"error: {error}"))
        own = (site.url, "blob:", "data:")
        page.on("request", lambda one: None if one.url.startswith(own) else told(f"asked {one.url}"))
        page.goto(site.url)
        page.locator("#feed .job, #welcome:not([hidden]), dialog[open]").first.wait_for()
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            faults.extend(page.evaluate("window.faults ?? []"))
        context.close()
    assert faults == []


@pytest.fixture
def page(site: Site, open_page: Callable[..., Any]) -> Any:
    """The page of `site`, at a desk."""
    return open_page(site)
