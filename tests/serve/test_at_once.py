"""Everything at once, from many threads and two servers: nothing deadlocks, nothing is lost or done twice."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from making import drawn, new

from limner.serve.jobs import Failure, State
from limner.serve.store import Store

JOBS = 30


def test_everything_at_once(open_store: Callable[[], Store]) -> None:
    stores = [open_store(), open_store()]
    ids: list[str] = []
    finished: list[str] = []
    done = threading.Event()
    gate = threading.Barrier(8)

    def owner(name: str, store: Store, chance: random.Random) -> None:
        mine = []
        for _ in range(JOBS // 2):
            told, _ = store.submit(new(owner=name, shape=chance.choice("xy")), most_waiting=1000)
            mine.append(told.id)
            ids.append(told.id)
            if chance.random() < 0.3:
                store.cancel(chance.choice(mine), name)
        while any(not store.get(id, name).state.terminal for id in mine):
            store.listed(name, limit=5)
        assert not done.is_set()

    def worker(name: str, store: Store, chance: random.Random) -> None:
        while not done.is_set():
            for job in store.claim(name, 3):
                attempt = job.attempts
                store.progress(job.id, attempt, 0.5, "drawing")
                if store.asked_to_stop([job.id]):
                    assert store.cancelled(job.id, attempt) or store.get(job.id).attempts > attempt
                elif (fate := chance.random()) < 0.2:
                    store.give_back(job.id, attempt, "tired", blame=fate < 0.1)
                elif fate < 0.3:
                    store.fail(job.id, attempt, Failure(code="internal", message="x"))
                elif store.finish(job.id, attempt, [drawn(job=job.id, attempt=attempt)], [1]):
                    finished.append(job.id)

    def passer_by(name: str, store: Store, chance: random.Random) -> None:
        while not done.is_set():
            store.beat(f"worker {chance.randrange(4)}")
            store.recover_silent(3600.0)
            store.counts()
            store.gallery(None, limit=3)

    def started(act: Callable[[str, Store, random.Random], None], name: str, seed: int) -> None:
        gate.wait(30)
        act(name, stores[seed % 2], random.Random(seed))

    with ThreadPoolExecutor(8) as pool:
        owners = [pool.submit(started, owner, name, seed) for seed, name in enumerate(["anna", "bert"])]
        others = [pool.submit(started, worker, f"worker {seed}", seed) for seed in range(4)]
        others += [pool.submit(started, passer_by, "", seed) for seed in range(2)]
        try:
            for each in owners:
                each.result(120)
        finally:
            done.set()
        for each in others:
            each.result(60)
    jobs = {job.id: job for job in stores[0].listed(None, limit=500)}
    assert jobs.keys() == set(ids)
    assert len(ids) == JOBS
    assert all(job.state.terminal and job.position is None for job in jobs.values())
    assert sorted(finished) == sorted(id for id, job in jobs.items() if job.state is State.DONE)
    assert all(len(jobs[id].pictures) == 1 for id in finished)
