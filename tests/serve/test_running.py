"""Jobs from the queue to their end: fairness, attempts, and ends that never change."""

import math
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from making import drawn, new

from limner.errors import EngineError
from limner.serve.jobs import Failure, Job, NotFound, State, new_id
from limner.serve.store import Store

BROKEN = Failure(code="internal", message="it broke")


def submitted(
    store: Store, owner: str = "anna", cost: float = 1.0, shape: str = "s", model: str = "mini"
) -> str:
    return store.submit(new(owner=owner, cost=cost, shape=shape, model=model), most_waiting=1000)[0].id


def claimed_owners(store: Store, count: int) -> str:
    return "".join(store.claim("w")[0].owner[0] for _ in range(count))


def test_of_one_owner_the_first_comes_first(store: Store) -> None:
    ids = [submitted(store, cost=cost) for cost in (5.0, 1.0, 3.0)]
    assert [store.get(id).position for id in ids] == [1, 2, 3]
    assert [store.claim("w")[0].id for _ in ids] == ids
    assert store.claim("w") == []


def test_owners_take_turns_however_many_each_has(store: Store) -> None:
    for _ in range(6):
        submitted(store, "anna")
    assert claimed_owners(store, 2) == "aa"
    late = [submitted(store, "bert") for _ in range(3)]
    assert [store.get(id).position for id in late] == [2, 4, 6]
    assert claimed_owners(store, 7) == "abababa"


def test_turns_are_counted_by_cost(store: Store) -> None:
    for _ in range(3):
        submitted(store, "anna", cost=4.0)
    for _ in range(12):
        submitted(store, "bert", cost=1.0)
    served = claimed_owners(store, 15)
    for cut in range(1, 16):  # SFQ's bound: nobody is ahead by more than the largest job of each
        anna, bert = served[:cut].count("a") * 4.0, served[:cut].count("b") * 1.0
        assert abs(anna - bert) <= 4.0 + 1.0, served


def test_a_pause_saves_nothing_up(store: Store) -> None:
    """Whoever was away gets its share from now on, not what it would have had."""
    for _ in range(6):
        submitted(store, "anna")
        store.claim("w")
    for _ in range(4):
        submitted(store, "anna")
    for _ in range(4):
        submitted(store, "bert")
    assert claimed_owners(store, 8) == "abababab"


def test_who_asked_while_alone_owes_nothing_for_it(store: Store) -> None:
    for _ in range(6):
        submitted(store, "anna")
        store.claim("w")
    submitted(store, "bert")
    submitted(store, "anna")
    submitted(store, "bert")
    assert claimed_owners(store, 3) == "bab"


def test_what_was_cancelled_is_not_charged(store: Store) -> None:
    ids = [submitted(store, "anna", cost=10.0) for _ in range(5)]
    for _ in range(3):
        submitted(store, "bert", cost=10.0)
    for id in ids[:3]:
        store.cancel(id)
    submitted(store, "anna", cost=10.0)
    served = claimed_owners(store, 6)
    assert {"".join(sorted(served[at : at + 2])) for at in (0, 2, 4)} == {"ab"}, served


def test_a_claim_is_of_one_shape(store: Store) -> None:
    shapes = "xyxxyx"
    ids = [submitted(store, shape=shape) for shape in shapes]
    asked: list[Job] = []

    def most(first: Job) -> int:
        asked.append(first)
        return 3

    batch = store.claim("w", most)
    assert [job.id for job in batch] == [ids[0], ids[2], ids[3]]
    assert [job.id for job in asked] == [ids[0]]
    assert {(job.state, job.attempts, job.position) for job in batch} == {(State.RUNNING, 1, None)}
    assert all(job.started is not None for job in batch)
    assert [job.id for job in store.claim("w", 9)] == [ids[1], ids[4]]
    assert [job.id for job in store.claim("w", 9)] == [ids[5]]


def test_a_worker_takes_only_what_it_has_loaded(store: Store) -> None:
    first, second = submitted(store, model="mini"), submitted(store, model="sdxl")
    assert store.claim("w", models=[]) == []
    assert [job.id for job in store.claim("w", 9, ["sdxl", "flux"])] == [second]
    assert store.claim("w", 9, ["sdxl", "flux"]) == []
    assert store.get(first).position == 1


def test_a_finished_job_has_its_pictures(store: Store) -> None:
    id = submitted(store)
    store.claim("w")
    assert store.progress(id, 1, 0.25, "drawing")
    assert (store.get(id).progress, store.get(id).stage) == (0.25, "drawing")
    made = [drawn(job=id, index=index, prompt="zwölf \0 Katzen") for index in (1, 0)]
    assert store.finish(id, 1, made, [7, 8], ["a notice"], ["a warning"])
    done = store.get(id)
    assert (done.state, done.progress, done.seeds) == (State.DONE, 1.0, (7, 8))
    assert (done.notices, done.warnings, done.failure) == (("a notice",), ("a warning",), None)
    assert done.pictures == (made[1], made[0])
    assert done.ended is not None
    assert store.listed("anna")[0] == done
    assert store.files() == {picture.file for picture in made}


def test_what_ended_never_changes(store: Store) -> None:
    ids = [submitted(store) for _ in range(4)]
    store.claim("w", 9)
    made = drawn(job=ids[0])
    assert store.finish(ids[0], 1, [made], [7])
    assert store.fail(ids[1], 1, BROKEN)
    store.cancel(ids[2])
    assert store.cancelled(ids[2], 1)
    assert store.give_back(ids[3], 1, "x") is State.QUEUED
    store.cancel(ids[3])
    ended = [store.get(id) for id in ids]
    assert [job.state for job in ended] == [State.DONE, State.FAILED, State.CANCELLED, State.CANCELLED]
    assert all(job.state.terminal for job in ended)
    for job in ended:
        for attempt in (0, 1, 2):
            own = attempt == 1
            assert store.finish(job.id, attempt, [drawn(job=job.id)], [9]) == (own and job == ended[0])
            assert store.fail(job.id, attempt, Failure(code="hung", message="")) == (own and job == ended[1])
            assert store.cancelled(job.id, attempt) == (own and job in ended[2:])
            assert store.give_back(job.id, attempt, "x") is job.state
            assert not store.progress(job.id, attempt, 0.5, "x")
        store.cancel(job.id)
    assert store.recover() == []
    assert store.claim("w") == []
    assert [store.get(id) for id in ids] == ended


def test_an_older_attempt_changes_nothing(store: Store) -> None:
    """A worker that was given up wakes up again, while another draws the same job."""
    id = submitted(store)
    store.claim("first")
    assert store.give_back(id, 1, "silent") is State.QUEUED
    waiting = store.get(id)
    assert not store.finish(id, 1, [drawn(job=id)], [7])
    assert not store.fail(id, 1, BROKEN)
    assert not store.cancelled(id, 1)
    assert not store.progress(id, 1, 0.5, "x")
    assert store.give_back(id, 1, "silent") is State.QUEUED
    assert store.get(id) == waiting
    [again] = store.claim("second")
    assert again.attempts == 2
    assert not store.finish(id, 1, [drawn(job=id)], [7])
    assert not store.fail(id, 1, BROKEN)
    assert store.give_back(id, 1, "silent") is State.RUNNING
    mine = drawn(job=id, attempt=2)
    assert store.finish(id, 2, [mine], [7])
    assert store.get(id).pictures == (mine,)


def test_the_third_time_is_poison(store: Store) -> None:
    id, other = submitted(store), submitted(store)
    for attempt in (1, 2):
        [job] = store.claim("w")
        assert (job.id, job.attempts) == (id, attempt)  # it has kept its place
        assert store.give_back(id, attempt, "the worker died") is State.QUEUED
    [job] = store.claim("w")
    assert store.give_back(id, 3, "the worker died \0") is State.FAILED
    failure = store.get(id).failure
    assert failure is not None
    assert failure.code == "poison"
    assert "3 times" in failure.message
    assert "the worker died" in failure.message
    assert [job.id for job in store.claim("w")] == [other]


def test_a_shutdown_is_not_the_jobs_fault(store: Store) -> None:
    id = submitted(store)
    for attempt in range(1, 6):
        assert [job.attempts for job in store.claim("w")] == [attempt]
        assert store.give_back(id, attempt, "shutdown", blame=False) is State.QUEUED


def test_cancel(store: Store) -> None:
    first, second = submitted(store), submitted(store)
    store.claim("w")
    gone = store.cancel(second)
    assert (gone.state, gone.position, gone.cancel) == (State.CANCELLED, None, True)
    assert gone.ended is not None
    assert store.asked_to_stop([first]) == set()
    asked = store.cancel(first)
    assert (asked.state, asked.cancel) == (State.RUNNING, True)
    assert store.asked_to_stop([first, second, "unknown"]) == {first, second, "unknown"}
    assert store.asked_to_stop([]) == set()
    assert store.cancelled(first, 1)
    assert store.get(first).state is State.CANCELLED


def test_finished_before_the_cancel_was_heard(store: Store) -> None:
    id = submitted(store)
    store.claim("w")
    store.cancel(id)
    assert store.finish(id, 1, [drawn(job=id)], [7])
    assert store.get(id).state is State.DONE


def test_a_job_to_be_stopped_does_not_wait_again(store: Store) -> None:
    given, recovered = submitted(store), submitted(store)
    store.claim("w", 2)
    store.cancel(given)
    store.cancel(recovered)
    assert store.give_back(given, 1, "x") is State.CANCELLED
    assert store.recover() == [recovered]
    assert store.get(recovered).state is State.CANCELLED
    assert store.get(recovered).ended is not None


def test_after_a_crash_running_jobs_wait_again(open_store: Callable[[], Store]) -> None:
    store = open_store()
    mine, other, waiting = (submitted(store, shape=shape) for shape in "xyz")
    store.claim("mine")
    store.claim("other")
    store.progress(mine, 1, 0.5, "drawing")
    store.close()
    again = open_store()
    assert again.recover("mine") == [mine]
    job = again.get(mine)
    assert (job.state, job.position, job.progress, job.stage, job.started) == (State.QUEUED, 1, 0.0, "", None)
    assert again.get(other).state is State.RUNNING
    assert again.recover() == [other]
    assert [again.get(id).position for id in (mine, other, waiting)] == [1, 2, 3]
    for _ in range(2):
        again.claim("mine")
        again.recover()
    failure = again.get(mine).failure
    assert failure is not None
    assert failure.code == "poison"


def test_the_silent_lose_their_jobs(store: Store) -> None:
    first, second = submitted(store, shape="x"), submitted(store, shape="y")
    store.claim("dead")
    store.claim("alive")
    assert store.recover_silent(60.0) == []
    store.beat("alive")
    assert store.recover_silent(-60.0) == [first, second]  # as if a minute had gone by
    assert store.get(first).state is State.QUEUED


def test_unknown_jobs(store: Store) -> None:
    with pytest.raises(NotFound):
        store.give_back(new_id(), 1, "x")
    assert not store.finish(new_id(), 1, [drawn()], [7])
    assert not store.fail(new_id(), 1, BROKEN)
    assert not store.progress(new_id(), 1, 0.5, "x")


@pytest.mark.parametrize(
    "file", ["../x.png", "/etc/x.png", "a/../../x.png", "", "a//x.png", ".x", "a\\x.png"]
)
def test_only_files_below_the_folder_are_recorded(
    sqlite: Callable[[], str], tmp_path: Path, file: str
) -> None:
    with closing(Store(sqlite(), tmp_path)) as store:
        id = submitted(store)
        store.claim("w")
        with pytest.raises(EngineError, match="no name of a picture"):
            store.finish(id, 1, [replace(drawn(job=id), file=file)], [7])
        with pytest.raises(EngineError, match="no name of a picture"):
            store.add_upload("anna", replace(drawn(job=None), file=file))
        assert store.get(id).state is State.RUNNING
        assert store.files() == set()


def test_progress_stays_within_its_range(store: Store) -> None:
    id = submitted(store)
    store.claim("w")
    for said, kept in ((-1.0, 0.0), (2.0, 1.0), (math.inf, 1.0), (math.nan, 0.0)):
        assert store.progress(id, 1, said, "x")
        assert store.get(id).progress == kept


def test_two_servers_never_take_the_same_job(open_store: Callable[[], Store]) -> None:
    stores = [open_store(), open_store()]
    ids = [submitted(stores[0], owner=f"{number % 3}", shape=f"{number % 2}") for number in range(40)]
    gate = threading.Barrier(6)

    def take(number: int) -> list[str]:
        gate.wait(30)
        taken = []
        while stores[0].counts()[State.QUEUED]:
            taken += [job.id for job in stores[number % 2].claim(f"w{number}", 3)]
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = [id for each in pool.map(take, range(6)) for id in each]
    assert Counter(taken) == Counter(ids)
    assert {stores[0].get(id).attempts for id in ids} == {1}


CLAIMING = """
import sys, time
from pathlib import Path
from limner.serve.store import Store

store = Store(sys.argv[1], Path())
Path(sys.argv[2]).touch()
until = time.monotonic() + 30
while not all(Path(path).exists() for path in sys.argv[2:]):
    assert time.monotonic() < until
while jobs := store.claim(sys.argv[2], 2):
    print(*(job.id for job in jobs), sep="\\n")
store.close()
"""


def test_two_processes_never_take_the_same_job(sqlite: Callable[[], str], tmp_path: Path) -> None:
    """With PostgreSQL each connection is a process of its own anyway; SQLite's locks are the processes'."""
    url = sqlite()
    with closing(Store(url, tmp_path)) as store:
        ids = [submitted(store) for _ in range(60)]
        ready = [tmp_path / "one", tmp_path / "two"]
        commands = [[sys.executable, "-c", CLAIMING, url, *order] for order in (ready, ready[::-1])]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
        taken = [process.communicate(timeout=60)[0].split() for process in running]
        assert [process.returncode for process in running] == [0, 0]
        assert Counter(taken[0] + taken[1]) == Counter(ids)
        assert {store.get(id).attempts for id in ids} == {1}
