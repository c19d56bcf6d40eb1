"""The engine with real worker processes: what is drawn, together with what, and what becomes of jobs when
processes, the disk or the store fail them.
"""

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from drawers import Sketcher, encoded, serving
from making import drawn, new
from PIL import Image

from limner.errors import ConfigError
from limner.pipeline.load import load
from limner.pipeline.replay import difference, read_request
from limner.pipeline.request import Request
from limner.serve import foreman
from limner.serve.engine import Engine, EngineSettings, Event, LocalEngine
from limner.serve.jobs import Drawn, Job, NotFound, State, Unavailable
from limner.serve.store import Store

DEADLINE = 60  # seconds


def until(what: Callable[[], object]) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


@pytest.fixture
def store(sqlite: Callable[[], str], tmp_path: Path) -> Iterator[Store]:
    store = Store(sqlite(), tmp_path / "pictures")
    yield store
    store.close()


@contextmanager
def engine_of(store: Store, folder: Path, **settings: object) -> Iterator[LocalEngine]:
    usual = {"pause_seconds": 0.01, "preview_seconds": 0.0, "lull_seconds": 0.0}
    chosen = EngineSettings(**usual | settings)  # type: ignore[arg-type]
    engine = LocalEngine(store, chosen, partial(Sketcher, folder, 4))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop(drain=0.0)


def log_of(folder: Path) -> list[str]:
    """What the drawers did, without their process's ids."""
    file = folder / "log"
    return [line.split(maxsplit=1)[1] for line in file.read_text().splitlines()] if file.exists() else []


def processes(engine: LocalEngine) -> list[int]:
    """The ids of the worker processes that there are."""
    return [hand.process.pid or 0 for hand in engine._foreman.hands if hand.alive]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def waiting(store: Store, engine: LocalEngine, folder: Path) -> Job:
    """A job that is drawn until there is a file "gate", by an engine that knows how many to draw at once."""
    until(lambda: engine._foreman._pays)
    job = submit(store, "wait:gate", shape="waits")
    engine.wake()
    until(lambda: store.get(job.id).state is State.RUNNING)
    return job


def known_gone(engine: LocalEngine, pid: int) -> bool:
    """Whether the engine knows that a process has ended."""
    return pid not in processes(engine)


def files_of(store: Store) -> set[str]:
    return {
        path.relative_to(store.pictures).as_posix() for path in store.pictures.rglob("*") if path.is_file()
    }


def submit(
    store: Store,
    prompt: str,
    count: int = 1,
    seed: int = 7,
    image: dict[str, str] | None = None,
    **more: object,
) -> Job:
    request = {"prompt": prompt, "seed": seed, "count": count, "size": [16, 16]}
    if image:
        request["image"] = image
    return store.submit(new(request=request, **more), most_waiting=1000)[0]  # type: ignore[arg-type]


def ended(store: Store, *jobs: Job) -> list[Job]:
    until(lambda: all(store.get(job.id).state.terminal for job in jobs))
    return [store.get(job.id) for job in jobs]


def whole(store: Store, job: Job) -> None:
    """Its pictures are there, as its seeds have them, and recorded."""
    assert job.state is State.DONE
    seed, count = job.request["seed"], job.request["count"]
    assert isinstance(seed, int)
    assert isinstance(count, int)
    assert job.seeds == tuple(range(seed, seed + count))
    for index, picture in enumerate(job.pictures):
        assert picture.file == f"{job.id}/{job.attempts}-{index}.png"
        assert (store.pictures / picture.file).read_bytes() == encoded(seed + index)


def test_a_job_is_drawn(store: Store, tmp_path: Path) -> None:
    left = store.submit(new(request={"prompt": "left", "seed": 1, "count": 1}), most_waiting=9)[0]
    store.claim("a server that was killed")
    (store.pictures / left.id).mkdir(parents=True)
    (store.pictures / left.id / "1-0.png").write_bytes(b"half a picture of it")
    job = submit(store, "memory:2 a cat", count=3)
    engine: LocalEngine
    with engine_of(store, tmp_path) as engine:
        assert isinstance(engine, Engine)
        done, again = ended(store, job, left)
        until(lambda: engine.healthy().ok and not engine.healthy().running)
        assert [model.name for model in engine.models()] == ["mini"]
        (pid,) = processes(engine)
        assert engine.healthy().restarts == 0
    assert (done.notices, done.attempts, again.attempts) == (("as sketched",), 1, 2)
    for one in (done, again):
        whole(store, one)
    assert files_of(store) == store.files()
    assert gone(pid)
    assert not engine.healthy().ok


def test_jobs_of_one_shape_are_drawn_together(store: Store, tmp_path: Path) -> None:
    with engine_of(store, tmp_path) as engine:
        first = waiting(store, engine, tmp_path)
        small = [submit(store, f"cat-{index}", cost=0.01) for index in range(6)]
        pair = [submit(store, f"pair-{index}", 2, owner="bert", shape="other") for index in range(3)]
        (tmp_path / "gate").touch()
        for job in ended(store, first, *small, *pair):
            whole(store, job)
    groups = {line for line in log_of(tmp_path) if line.startswith("draw ")}
    cats = [" ".join(f"cat-{index}+0x1" for index in some) for some in (range(4), range(4, 6))]
    pairs = [" ".join(f"pair-{index}+0x2" for index in some) for some in (range(2), range(2, 3))]
    assert groups == {f"draw {told}" for told in ("wait:gate+0x1", *cats, *pairs)}


def test_whenever_a_process_is_killed_its_job_is_drawn_again(store: Store, tmp_path: Path) -> None:
    prompts = [f"die:{when} until:1" for when in ("0", "2", "saved")]
    jobs = [submit(store, prompt, count=2, seed=index) for index, prompt in enumerate(prompts)]
    with engine_of(store, tmp_path, batch=1) as engine:
        for job in ended(store, *jobs):
            whole(store, job)
            assert job.attempts == 2
        until(lambda: engine.healthy().workers == 1)
        assert engine.healthy().restarts == 3
        (tmp_path / "die-open").write_text("1")
        (last,) = ended(store, submit(store, "a cat"))
        whole(store, last)
        assert (last.attempts, engine.healthy().restarts) == (2, 4)
    assert files_of(store) == store.files()


def test_a_process_may_die_of_a_model_at_the_start(store: Store, tmp_path: Path) -> None:
    (tmp_path / "die-open").write_text("1")
    (tmp_path / "die-pays").write_text("9")  # after the first time it is not measured again
    with engine_of(store, tmp_path) as engine:
        until(lambda: engine.healthy().ok and engine.healthy().restarts == 2)
        whole(store, ended(store, submit(store, "a cat"))[0])
        assert engine.healthy().restarts == 2


def test_a_server_that_forgets_its_engine_leaves_no_process(
    sqlite: Callable[[], str], tmp_path: Path
) -> None:
    url = sqlite()
    with contextlib.closing(Store(url, tmp_path / "pictures")) as store:
        job = submit(store, "endless")
        code = "import sys, drawers; drawers.forgetting(sys.argv[1], drawers.Path(sys.argv[2]))"
        run = [sys.executable, "-c", code, url, str(tmp_path)]
        subprocess.run(run, cwd=Path(__file__).parent, timeout=DEADLINE, check=True)
        assert store.get(job.id).state is State.QUEUED
    (pid,) = {int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()}
    assert gone(pid)


def test_a_job_that_kills_is_poison_and_its_neighbours_are_drawn(store: Store, tmp_path: Path) -> None:
    with engine_of(store, tmp_path) as engine:
        first = waiting(store, engine, tmp_path)
        jobs = [submit(store, prompt) for prompt in ("a cat", "die:1", "a dog")]
        (tmp_path / "gate").touch()
        cat, bad, dog, _ = ended(store, *jobs, first)
        assert "draw a cat+0x1 die:1+0x1 a dog+0x1" in log_of(tmp_path)
        assert engine.healthy().restarts == 3
    for job in (cat, dog):
        whole(store, job)
        assert job.attempts == 2
    assert (bad.state, bad.attempts) == (State.FAILED, 3)
    assert bad.failure is not None
    assert bad.failure.code == "poison"


def test_a_process_without_a_sign_of_life_is_killed(store: Store, tmp_path: Path) -> None:
    hung, good = submit(store, "hang:1"), submit(store, "a cat", shape="other")
    with engine_of(store, tmp_path, step_seconds=2.0) as engine:
        hung, good = ended(store, hung, good)
        assert engine.healthy().restarts >= 3
    whole(store, good)
    assert hung.failure is not None
    assert (hung.failure.code, hung.attempts) == ("poison", 3)
    assert log_of(tmp_path).count("hangs") == 3


def test_no_job_is_lost_in_a_storm_of_kills(store: Store, tmp_path: Path) -> None:
    jobs = [submit(store, f"slow {index}", count=2, seed=index, shape=f"{index % 3}") for index in range(15)]
    choice = random.Random(0)
    with engine_of(store, tmp_path, batch=4, workers=2) as engine:
        for _ in range(6):
            until(lambda: engine.healthy().running or all(store.get(job.id).state.terminal for job in jobs))
            if pids := processes(engine):
                os.kill(pid := choice.choice(pids), signal.SIGKILL)
                until(partial(known_gone, engine, pid))
        after = ended(store, *jobs)
    for job in after:
        if job.state is State.DONE:
            whole(store, job)
        else:
            assert job.failure is not None
            assert (job.failure.code, job.attempts) == ("poison", 3)
    assert sum(job.state is State.DONE for job in after) >= 9
    assert files_of(store) == store.files()


def test_when_the_server_is_killed_its_workers_end_and_the_next_one_goes_on(
    sqlite: Callable[[], str], tmp_path: Path
) -> None:
    url = sqlite()
    with contextlib.closing(Store(url, tmp_path / "pictures")) as store:
        jobs = [submit(store, prompt) for prompt in ("wait:never until:1", "a cat")]
        killed = multiprocessing.get_context("spawn").Process(target=serving, args=(url, tmp_path))
        killed.start()
        until(lambda: any(line.startswith("draw") for line in log_of(tmp_path)))
        killed.kill()
        killed.join()
        killed.close()
        (pid,) = {int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()}
        until(lambda: gone(pid))
        with engine_of(store, tmp_path):
            for job, attempts in zip(ended(store, *jobs), (2, 1), strict=True):
                whole(store, job)
                assert job.attempts == attempts


def test_a_broken_device_costs_its_process_and_no_job(store: Store, tmp_path: Path) -> None:
    with engine_of(store, tmp_path) as engine:
        (job,) = ended(store, submit(store, "sick until:1"))
        whole(store, job)
        assert (job.attempts, engine.healthy().restarts) == (2, 1)


def test_what_cannot_be_drawn_says_why(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [submit(store, prompt) for prompt in ("refuse", "broken", "boom", "memory:0", "a cat")]
    torn = submit(store, "a dog", model="torn", shape="torn")
    found, lost = drawn(job=None), drawn(job=None)
    for picture in (found, lost):
        store.add_upload("anna", picture)
    given, missing = (submit(store, "b", image={"picture": picture.id}) for picture in (found, lost))
    monkeypatch.setattr(store, "picture", partial(without, store.picture, lost.id))
    with engine_of(store, tmp_path, models={"mini": "mini", "torn": "torn"}) as engine:
        after = ended(store, *jobs, torn, missing, given)
        assert engine.healthy().restarts == 0
        assert engine.healthy().ok
        assert [model.name for model in engine.models()] == ["mini"]
    codes = [job.failure.code if job.failure else job.state for job in after]
    assert codes == ["refused", "broken", "internal", "memory", "done", "weights", "refused", "done"]
    assert not any("secret" in job.failure.message for job in after if job.failure)
    assert f"given {found.id} {found.file}" in log_of(tmp_path)
    assert files_of(store) == store.files() - {found.file, lost.file}


def without(look: Callable[[str], Drawn], missing: str, id: str) -> Drawn:
    """As Store.picture, but that one is missing."""
    if id == missing:
        raise NotFound("there is no such picture")
    return look(id)


def test_cancelling_stops_what_runs_and_what_waits(store: Store, tmp_path: Path) -> None:
    with engine_of(store, tmp_path, batch=2) as engine:
        first = waiting(store, engine, tmp_path)
        endless, mate, waits = (submit(store, prompt) for prompt in ("endless", "a cat", "a dog"))
        (tmp_path / "gate").touch()
        until(lambda: store.get(endless.id).progress > 0 and store.get(mate.id).progress > 0)
        for job in (waits, endless, mate, first):
            store.cancel(job.id)
            engine.wake()
        for job in ended(store, endless, mate, waits):
            assert (job.state, job.pictures) == (State.CANCELLED, ())
        whole(store, ended(store, submit(store, "a bird"))[0])
        assert engine.healthy().restarts == 0
    assert not any("a dog" in line for line in log_of(tmp_path))
    assert files_of(store) == store.files()


def test_a_drain_ends_what_runs_and_begins_nothing(store: Store, tmp_path: Path) -> None:
    runs = submit(store, "wait:gate")
    with engine_of(store, tmp_path, batch=1) as engine:
        until(lambda: store.get(runs.id).state is State.RUNNING)
        waits = submit(store, "a cat")
        stopping = threading.Thread(target=partial(engine.stop, drain=float(DEADLINE)))
        stopping.start()
        until(lambda: engine.healthy().reason == "it is stopping")
        (tmp_path / "gate").touch()
        stopping.join()
        assert processes(engine) == []
    whole(store, store.get(runs.id))
    assert (store.get(waits.id).state, store.get(waits.id).attempts) == (State.QUEUED, 0)


def test_what_does_not_end_in_time_goes_back_and_is_no_poison(store: Store, tmp_path: Path) -> None:
    job = submit(store, "endless until:4")
    for attempt in range(4):
        with engine_of(store, tmp_path) as engine:
            until(lambda: store.get(job.id).state is State.RUNNING)
            stopping = threading.Thread(target=partial(engine.stop, drain=float(DEADLINE)))
            stopping.start()
            engine.stop(drain=0.0)  # a second signal
            stopping.join(DEADLINE)
            assert not stopping.is_alive()
        assert (store.get(job.id).state, store.get(job.id).attempts) == (State.QUEUED, attempt + 1)
    assert files_of(store) == set()


def test_a_late_answer_is_thrown_away(store: Store, tmp_path: Path) -> None:
    job = submit(store, "wait:gate", 2)
    with engine_of(store, tmp_path) as engine:
        until(lambda: any(line.startswith("draw") for line in log_of(tmp_path)))
        store.recover("engine")  # as another server would, after a silence of this one
        (again,) = store.claim("another server")
        assert again.attempts == 2
        (tmp_path / "gate").touch()
        until(lambda: engine.healthy().ok and not engine.healthy().running)
        whole(store, ended(store, submit(store, "a cat", shape="other"))[0])
        until(lambda: files_of(store) == store.files())
    assert (store.get(job.id).state, store.get(job.id).attempts) == (State.RUNNING, 2)


def test_while_the_store_is_out_of_reach_nothing_is_forgotten(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, refused = store.finish, list[str]()

    def busy(*args: object) -> bool:
        if len(refused) < 3:
            refused.append("busy")
            raise Unavailable("the database is locked", 1)
        return finish(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "finish", busy)
    with engine_of(store, tmp_path) as engine:
        (job,) = ended(store, submit(store, "a cat"))
        until(lambda: engine.healthy().ok)
    whole(store, job)
    assert (job.attempts, len(refused)) == (1, 3)


def test_a_disk_that_is_full_holds_jobs_up(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = submit(store, "a cat"), submit(store, "a dog", shape="other")
    store.pictures.mkdir()
    (store.pictures / first.id).touch()  # in the way of a folder
    with engine_of(store, tmp_path) as engine:
        until(lambda: "cannot be saved" in engine.healthy().reason)
        assert not engine.healthy().ok
        until(lambda: store.get(first.id).state is State.QUEUED)
        (store.pictures / first.id).unlink()
        after = ended(store, first, second)
        until(lambda: engine.healthy().ok)
        monkeypatch.setattr(foreman, "SPARE", 1 << 62)
        third = submit(store, "a bird")
        until(lambda: engine.healthy().reason == "the disk is full")
        assert store.get(third.id).attempts == 0
        monkeypatch.setattr(foreman, "SPARE", 0)
        after += ended(store, third)
    for job in after:
        whole(store, job)


def test_a_process_goes_on_with_its_model_for_a_while(store: Store, tmp_path: Path) -> None:
    both = {"one": "one", "two": "two"}
    with engine_of(store, tmp_path, batch=1, models=both, stay_seconds=1000.0) as engine:
        until(lambda: len(engine.models()) == 2)
        (tmp_path / "slow-open").touch()
        held = submit(store, "wait:gate", model="one")
        until(lambda: (event := engine.latest(held.id)) and event.stage == "opening the model")
        (tmp_path / "slow-open").unlink()
        until(lambda: (event := engine.latest(held.id)) and event.stage == "drawing")
        jobs = [submit(store, f"cat-{i}", model=model) for i, model in enumerate(("one", "two") * 3)]
        (tmp_path / "gate").touch()
        for job in ended(store, *jobs):
            whole(store, job)
        assert [model.name for model in engine.models()] == ["one", "two"]
    drawn_after = [line for line in log_of(tmp_path) if line.startswith("draw cat")]
    assert drawn_after == [f"draw cat-{i}+0x1" for i in (0, 2, 4, 1, 3, 5)]


def test_a_worker_that_cannot_begin_is_tried_again(store: Store, tmp_path: Path) -> None:
    (tmp_path / "no-drawer").touch()
    job = submit(store, "a cat")
    with engine_of(store, tmp_path) as engine:
        until(lambda: engine.healthy().restarts >= 2)
        assert (engine.healthy().ok, engine.healthy().workers) == (False, 0)
        assert store.get(job.id).attempts == 0
        (tmp_path / "no-drawer").unlink()
        whole(store, ended(store, job)[0])


def test_pipelines_draw_in_a_process_what_they_draw_here(store: Store, tmp_path: Path, tiny: Path) -> None:
    compared(store, "small", tiny, size=64)


@pytest.mark.slow
def test_so_does_the_built_in_model(store: Store, tmp_path: Path) -> None:
    compared(store, "mini", "mini", size=192)


def compared(store: Store, name: str, source: Path | str, size: int) -> None:
    usual = {"steps": 2, "guidance": 2.5, "sampler": "ddpm", "size": [size, size], "model": name}
    prompts = {"a red apple": 2, "two cats on a blue background": 1}
    settings = EngineSettings(
        models={name: str(source)},
        devices=("cpu",),
        threads=1,
        batch=2,
        preview_seconds=0.0,
        lull_seconds=0.0,
    )
    engine = LocalEngine(store, settings)
    engine.start()
    try:
        until(lambda: engine._foreman._pays)
        asked = [usual | {"prompt": prompt, "seed": 7, "count": count} for prompt, count in prompts.items()]
        jobs = [store.submit(new(request=request, model=name), most_waiting=9)[0] for request in asked]
        engine.wake()
        done = ended(store, *jobs)
        assert [job.state for job in done] == [State.DONE] * 2
        assert [model.name for model in engine.models()] == [name]
    finally:
        engine.stop(drain=0.0)
    pipeline = load(source, device="cpu")
    for job in done:
        alone = pipeline.draw(Request.from_dict(job.request | {"model": str(source)}))
        for picture, image in zip(job.pictures, alone.images, strict=True):
            path = store.pictures / picture.file
            with Image.open(path) as saved:
                share, worst = difference(saved, image)
            assert share < 0.01  # sums in two processes may differ in their last bits
            assert worst <= 2
            assert read_request(path).seed == picture.seed
            assert sha256(path.read_bytes()).hexdigest() == picture.sha256


async def seen(engine: Engine, job: Job, events: list[Event]) -> None:
    async for event in engine.watch(job.id):
        events.append(event)


def test_who_watches_sees_all_of_it(store: Store, tmp_path: Path) -> None:
    async def watch() -> tuple[Sequence[Event], ...]:
        with engine_of(store, tmp_path, batch=1) as engine:
            first, second = submit(store, "wait:gate", 2), submit(store, "slow")
            told: tuple[list[Event], ...] = ([], [], [], [])
            watching = [
                asyncio.create_task(seen(engine, *pair)) for pair in zip((first, second), told, strict=False)
            ]
            while not any(event.position == 1 for event in told[1]):
                await asyncio.sleep(0.005)
            (tmp_path / "gate").touch()
            await asyncio.wait_for(asyncio.gather(*watching), DEADLINE)
            await asyncio.wait_for(seen(engine, first, told[2]), DEADLINE)
            assert engine.latest(first.id) == told[2][0]
            with pytest.raises(NotFound):
                await seen(engine, replace(first, id="0" * 32), told[3])
            return told

    first, second, afterwards, _ = asyncio.run(watch())
    for events in (first, second):
        states = [event.state for event in events]
        assert states == sorted(states, key=[State.QUEUED, State.RUNNING, State.DONE].index)
        assert (states[-1], events[-1].progress) == (State.DONE, 1.0)
        assert [event.number for event in events] == sorted({event.number for event in events})
    previews = [event.previews for event in first if event.previews]
    assert all(len(some) == 2 and some[0].startswith(b"\xff\xd8") for some in previews)
    assert previews
    assert [event.state for event in afterwards] == [State.DONE]


def test_a_job_of_another_server_is_watched_by_the_store(store: Store, tmp_path: Path) -> None:
    async def watch() -> list[Event]:
        job, told = submit(store, "a cat", model="theirs"), list[Event]()
        with engine_of(store, tmp_path) as engine:
            watching = asyncio.create_task(seen(engine, job, told))
            while not told:
                await asyncio.sleep(0.005)
            store.claim("another server")
            store.progress(job.id, 1, 0.5, "drawing")
            while told[-1].progress != 0.5:
                await asyncio.sleep(0.005)
            store.finish(job.id, 1, [], [])
            await asyncio.wait_for(watching, DEADLINE)
        return told

    assert asyncio.run(watch())[-1].state is State.DONE


def test_who_watches_is_let_go_when_the_engine_stops(store: Store, tmp_path: Path) -> None:
    async def watch() -> list[Event]:
        told = list[Event]()
        job = submit(store, "a cat", model="theirs")
        with engine_of(store, tmp_path) as engine:
            watching = asyncio.create_task(seen(engine, job, told))
            while not told:
                await asyncio.sleep(0.005)
            await asyncio.to_thread(engine.stop, drain=0.0)
            await asyncio.wait_for(watching, DEADLINE)
        return told

    assert [event.state for event in asyncio.run(watch())] == [State.QUEUED]


def test_several_engines_share_a_store(postgresql: Callable[[], str], tmp_path: Path) -> None:
    with contextlib.closing(Store(postgresql(), tmp_path / "pictures")) as store:
        dead = submit(store, "left behind")
        store.claim("a machine that is gone")
        jobs = [submit(store, f"slow-{index} slow", seed=index) for index in range(8)]
        both = {"batch": 2, "silent_seconds": 1.0}
        with engine_of(store, tmp_path, name="one", **both), engine_of(store, tmp_path, name="two", **both):
            for job in ended(store, dead, *jobs):
                whole(store, job)
        assert store.get(dead.id).attempts == 2
        assert files_of(store) == store.files()
    for index in range(8):
        assert sum(f"slow-{index} " in line for line in log_of(tmp_path)) == 1


@pytest.mark.parametrize("wrong", [{"models": {}}, {"devices": ()}, {"workers": 0}, {"step_seconds": 0.0}])
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        EngineSettings(**wrong)  # type: ignore[arg-type]
