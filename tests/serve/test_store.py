"""The store as owners see it: what is accepted, listed, counted and refused."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from making import drawn, new

from limner.errors import RequestError
from limner.serve.jobs import (
    Conflict,
    Failure,
    NotFound,
    QueueFull,
    State,
    TooMany,
    cursor,
    new_id,
    read_cursor,
)
from limner.serve.store import Store


def test_a_job_is_what_was_submitted(store: Store) -> None:
    said = new(
        owner="anna",
        request={"prompt": 'a "cat" \0 日本 %', "seed": 2**63 - 1, "size": [64, 96], "guidance": 3.5},
        cost=12.5,
        parent="p" * 32,
        action="vary_subtle",
        index=2,
        metadata="minimal",
    )
    before = time.time()
    job, fresh = store.submit(said, most_waiting=10)
    assert fresh
    assert (job.owner, job.request, job.model, job.shape) == ("anna", said.request, said.model, said.shape)
    assert (job.cost, job.parent, job.action, job.index) == (12.5, "p" * 32, "vary_subtle", 2)
    assert (job.state, job.attempts, job.position, job.metadata) == (State.QUEUED, 0, 1, "minimal")
    assert (job.progress, job.stage, job.seeds, job.pictures) == (0.0, "", (), ())
    assert (job.notices, job.warnings, job.failure, job.cancel) == ((), (), None, False)
    assert (job.started, job.ended) == (None, None)
    assert before - 1e-6 <= job.created <= time.time() + 1e-6
    assert store.get(job.id) == store.get(job.id, "anna") == job


def test_another_owners_job_is_not_there(store: Store) -> None:
    job, _ = store.submit(new(owner="anna"), most_waiting=10)
    for act in (store.get, store.cancel):
        with pytest.raises(NotFound, match=job.id):
            act(job.id, "bert")
        with pytest.raises(NotFound):
            act(new_id())
        with pytest.raises(NotFound):
            act("\0 \ud800", "anna")
    assert store.listed("bert") == []
    assert store.get(job.id).state is State.QUEUED


def test_a_list_goes_on_where_the_page_ended(store: Store) -> None:
    ids = [store.submit(new(), most_waiting=10)[0].id for _ in range(7)]
    store.submit(new(owner="bert"), most_waiting=10)
    seen, before = [], None
    while page := store.listed("anna", before=before, limit=3):
        seen += page
        before = cursor(page[-1])
    assert [job.id for job in seen] == ids[::-1]
    assert [job.position for job in seen] == [8, 7, 6, 5, 4, 3, 1]  # the second place is of the other owner
    store.cancel(ids[3])
    assert [job.id for job in store.listed("anna", state=State.CANCELLED)] == [ids[3]]
    assert len(store.listed("anna", state=State.QUEUED)) == 6
    assert len(store.listed(None)) == 8
    for wrong in ("", "7", "1e9_x", "-1_x", "'; drop table jobs", "9" * 40 + "_x"):
        with pytest.raises(RequestError, match="place in a list"):
            store.listed("anna", before=wrong)
    for limit in (0, -1, 501):
        with pytest.raises(RequestError, match="entries"):
            store.listed("anna", limit=limit)


def test_jobs_of_one_moment_are_all_listed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many arrive within a tick of the clock: the place in a list is more than a time."""
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.25)
    ids = {store.submit(new(), most_waiting=10)[0].id for _ in range(5)}
    seen: list[str] = []
    before = None
    while page := store.listed("anna", before=before, limit=2):
        seen += [job.id for job in page]
        before = cursor(page[-1])
    assert len(seen) == 5
    assert set(seen) == ids


def test_the_queue_is_bounded(store: Store) -> None:
    for _ in range(3):
        store.submit(new(), most_waiting=3)
    with pytest.raises(QueueFull, match="3 jobs") as told:
        store.submit(new(owner="bert"), most_waiting=3)
    assert told.value.retry_after == 5
    [job] = store.claim("w")
    with pytest.raises(QueueFull):
        store.submit(new(), most_waiting=3)
    store.fail(job.id, 1, Failure(code="internal", message="no"))
    store.submit(new(), most_waiting=3)


def test_one_owner_cannot_fill_it(store: Store) -> None:
    for _ in range(2):
        store.submit(new(), most_waiting=10, waiting_of_owner=2)
    with pytest.raises(TooMany, match="2 of your jobs"):
        store.submit(new(), most_waiting=10, waiting_of_owner=2)
    store.submit(new(owner="bert"), most_waiting=10, waiting_of_owner=2)
    store.submit(new(), most_waiting=10, waiting_of_owner=None)


def test_bounds_hold_for_many_at_once(open_store: Callable[[], Store]) -> None:
    stores = [open_store(), open_store()]
    gate = threading.Barrier(16)

    def submit(number: int) -> bool:
        gate.wait(30)
        try:
            stores[number % 2].submit(new(owner=f"{number % 4}"), most_waiting=7, waiting_of_owner=2)
        except (QueueFull, TooMany):
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        accepted = sum(pool.map(submit, range(16)))
    assert accepted == 7
    assert stores[0].counts()[State.QUEUED] == 7
    assert all(stores[0].counts(f"{owner}")[State.QUEUED] <= 2 for owner in range(4))


def test_a_budget_is_of_an_hour(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_700_000_000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    with pytest.raises(RequestError, match="budget of an hour is 10"):
        store.submit(new(cost=11.0), most_waiting=10, budget=10.0)
    store.submit(new(cost=4.0), most_waiting=10, budget=10.0)
    clock[0] += 600
    second, _ = store.submit(new(cost=4.0), most_waiting=10, budget=10.0)
    clock[0] += 600
    with pytest.raises(TooMany, match="budget") as told:
        store.submit(new(cost=4.0), most_waiting=10, budget=10.0)
    assert told.value.retry_after == 2400  # when the first is an hour old
    with pytest.raises(TooMany) as told:
        store.submit(new(cost=8.0), most_waiting=10, budget=10.0)
    assert told.value.retry_after == 3000  # when the second is, too
    store.submit(new(owner="bert", cost=10.0), most_waiting=10, budget=10.0)
    assert store.spent("anna", clock[0] - 3600) == 8.0
    assert store.spent("anna", clock[0] - 900) == 4.0
    store.cancel(second.id)
    assert store.spent("anna", 0.0) == 4.0
    store.submit(new(cost=6.0), most_waiting=10, budget=10.0)
    clock[0] += 2400
    store.submit(new(cost=4.0), most_waiting=10, budget=10.0)


def test_a_repeat_is_the_same_job(store: Store) -> None:
    first, fresh = store.submit(new(), idempotency="key", body="{1}", most_waiting=1, waiting_of_owner=1)
    assert fresh
    for _ in range(2):  # also where a new one would be refused, and when the job has ended
        again, fresh = store.submit(
            new(), idempotency="key", body="{1}", most_waiting=1, waiting_of_owner=1, budget=1e-9
        )
        assert not fresh
        assert again.id == first.id
        store.cancel(first.id)
    assert again.state is State.CANCELLED
    with pytest.raises(Conflict, match="another request"):
        store.submit(new(), idempotency="key", body="{2}", most_waiting=9)
    assert store.submit(new(owner="bert"), idempotency="key", body="{2}", most_waiting=9)[1]
    assert store.submit(new(), idempotency="\0" * 5000, body="{2}", most_waiting=9)[1]
    assert store.submit(new(), idempotency="", body="", most_waiting=9)[1]
    assert not store.submit(new(), idempotency="", body="", most_waiting=9)[1]


def test_a_hundred_equal_submissions_at_once_are_one_job(open_store: Callable[[], Store]) -> None:
    stores = [open_store(), open_store()]
    gate = threading.Barrier(20)

    def submit(number: int) -> tuple[str, bool]:
        if number < 20:
            gate.wait(30)
        job, fresh = stores[number % 2].submit(new(), idempotency="k", body="b", most_waiting=100)
        return job.id, fresh

    with ThreadPoolExecutor(20) as pool:
        told = list(pool.map(submit, range(100)))
    assert len({id for id, _ in told}) == 1
    assert sum(fresh for _, fresh in told) == 1
    assert stores[0].counts()[State.QUEUED] == 1


def test_pictures_of_a_request_are_the_owners(store: Store) -> None:
    mine, other = drawn(job=None), drawn(job=None)
    store.add_upload("anna", mine)
    store.add_upload("bert", other)
    good = {"prompt": "x", "image": {"picture": mine.id}, "controls": [{"image": {"picture": mine.id}}]}
    assert store.submit(new(request=good), most_waiting=9)[0].request == good
    for wrong in (
        good | {"mask": {"picture": other.id}},
        good | {"controls": [{"image": {"picture": other.id}}]},
        good | {"blend": {"picture": new_id()}},
    ):
        with pytest.raises(NotFound, match="no picture"):
            store.submit(new(request=wrong), most_waiting=9)
    assert store.counts()[State.QUEUED] == 1


def test_everything_is_there_after_a_restart(open_store: Callable[[], Store]) -> None:
    store = open_store()
    waiting, _ = store.submit(new(cost=7.0), idempotency="k", body="b", most_waiting=9)
    store.close()
    again = open_store()
    assert again.get(waiting.id) == waiting
    assert not again.submit(new(cost=7.0), idempotency="k", body="b", most_waiting=9)[1]
    assert again.counts() == {state: int(state is State.QUEUED) for state in State}


def test_retry_after_follows_the_pace(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_700_000_000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    for _ in range(4):
        clock[0] += 12.5
        job, _ = store.submit(new(), most_waiting=1)
        store.cancel(job.id)
    store.submit(new(), most_waiting=1)
    with pytest.raises(QueueFull) as told:
        store.submit(new(), most_waiting=1)
    assert told.value.retry_after == 13


@pytest.mark.parametrize("cost", [0.0, -1.0, float("inf"), float("nan")])
def test_a_job_has_its_price(cost: float) -> None:
    """The queue's order is made of sums of costs: one that is no number would spoil it for everybody."""
    with pytest.raises(RequestError, match="costs more than 0"):
        new(cost=cost)


def test_cursors_are_exact() -> None:
    for created in (0.0, 1e-6, 1_700_000_000.123457, 1_795_284_439.576765, 99_999_999_999.999999):
        picture = drawn(created=round(created, 6))
        assert read_cursor(cursor(picture)) == (picture.created, picture.id)
