"""An engine that draws plain colours, at once or when told to: for tests of what stands on an engine."""

import hashlib
import io
import time
from collections.abc import AsyncIterator

from PIL import Image

from limner.serve import files
from limner.serve.engine import Event, Health, ModelInfo
from limner.serve.events import Hub, event_of
from limner.serve.jobs import Drawn, Failure, Job, State, new_id
from limner.serve.store import Store

MINI = ModelInfo(
    name="mini",
    family="mini",
    default_size=(192, 192),
    sizes=(64, 1024),
    styles=("flat", "glossy"),
    can=frozenset({"image", "mask", "extend", "loras", "negative_prompt"}),
    fingerprint="fake0000",
    defaults={"steps": 16, "guidance": 2.5, "sampler": "ddpm", "size": [192, 192]},
)
COLOURS = ("crimson", "seagreen", "royalblue", "gold", "orchid", "teal", "coral", "slategray")


def painted(size: tuple[int, int], seed: int, kind: str = "PNG") -> bytes:
    """A picture of (height, width) in one colour, which follows from the seed."""
    encoded = io.BytesIO()
    Image.new("RGB", size[::-1], COLOURS[seed % len(COLOURS)]).save(encoded, kind)
    return encoded.getvalue()


class FakeEngine:
    """Draws in the thread that calls it. With `at_once`, `wake` draws all that waits."""

    def __init__(
        self, store: Store, *, at_once: bool = True, models: tuple[ModelInfo, ...] = (MINI,)
    ) -> None:
        self.store = store
        self.at_once = at_once
        self.known = models
        self.hub = Hub()
        self.health = Health(ok=True, workers=1, wanted=1, running=0, restarts=0)  # tests may replace it
        self.woken = 0  # how often
        self.stopped: float | None = None  # the drain of `stop`

    def start(self) -> None:
        self.store.recover(None)

    def stop(self, *, drain: float) -> None:
        self.stopped = drain
        self.hub.close()

    def wake(self) -> None:
        self.woken += 1
        for job in self.hub.watched():
            self.hub.publish(event_of(self.store.get(job)))
        if self.at_once:
            self.draw_all()

    def models(self) -> tuple[ModelInfo, ...]:
        return self.known

    def healthy(self) -> Health:
        return self.health

    async def watch(self, job: str) -> AsyncIterator[Event]:
        self.hub.publish(event_of(self.store.get(job)), first=True)
        async for event in self.hub.watch(job):
            yield event

    def latest(self, job: str) -> Event | None:
        return self.hub.latest(job)

    # -- when told to ----------------------------------------------------------------------------------------

    def draw_all(self) -> list[Job]:
        """Draw everything that waits, to the end."""
        done = []
        while (job := self.begin()) is not None:
            self.show(job, 0.5)
            done.append(self.end(job))
        return done

    def begin(self) -> Job | None:
        """Claim the next job; None when nothing waits."""
        claimed = self.store.claim("fake", 1)
        for job in claimed:
            self.hub.publish(event_of(job))
        return claimed[0] if claimed else None

    def show(self, job: Job, progress: float, stage: str = "drawing") -> None:
        """One step, with previews."""
        self.store.progress(job.id, job.attempts, progress, stage)
        previews = tuple(painted((48, 48), seed, "JPEG") for seed in self._seeds(job))
        shown = Event(job=job.id, state=State.RUNNING, progress=progress, stage=stage, previews=previews)
        self.hub.publish(shown)

    def end(self, job: Job) -> Job:
        """Done, or cancelled where its owner asked for that."""
        if self.store.asked_to_stop([job.id]):
            self.store.cancelled(job.id, job.attempts)
        else:
            drawn = [self._kept(job, index, seed) for index, seed in enumerate(self._seeds(job))]
            self.store.finish(job.id, job.attempts, drawn, self._seeds(job), (), ())
        return self._told(job)

    def fail(self, job: Job, failure: Failure) -> Job:
        """It cannot be done."""
        self.store.fail(job.id, job.attempts, failure)
        return self._told(job)

    def _told(self, job: Job) -> Job:
        after = self.store.get(job.id)
        self.hub.publish(event_of(after))
        return after

    def _seeds(self, job: Job) -> tuple[int, ...]:
        seed = job.request.get("seed") or 0
        count = job.request.get("count") or 1
        assert isinstance(seed, int)
        assert isinstance(count, int)
        return tuple(range(seed, seed + count))

    def _kept(self, job: Job, index: int, seed: int) -> Drawn:
        size = job.request.get("size") or (192, 192)
        assert isinstance(size, list | tuple)
        height, width = size
        data = painted((height, width), seed)
        name = f"{job.id}/{job.attempts}-{index}.png"
        files.keep(self.store.pictures, name, data)
        return Drawn(
            id=new_id(),
            job=job.id,
            index=index,
            seed=seed,
            width=width,
            height=height,
            file=name,
            sha256=hashlib.sha256(data).hexdigest(),
            created=time.time(),
            prompt=str(job.request.get("prompt", "")),
        )
