from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.data.order import ROW, Order
from limner.util.rng import mix

SETS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=7)


def order(records: list[tuple[int, int]], seed: int = 0) -> Order:
    buckets = np.unique([bucket for bucket, _ in records], return_inverse=True)[1]
    return Order(buckets.astype(np.int64), np.array([repeats for _, repeats in records], np.int64), seed)


@settings(max_examples=25, deadline=None)
@given(SETS, st.integers(1, 4), st.integers(0, 2**64 - 1))
def test_each_record_is_seen_as_often_as_it_is_repeated(records: list, count: int, seed: int) -> None:
    data = order(records, seed)
    epochs = data.epochs(count)
    batches = epochs * data.pictures // count
    assert batches * count == epochs * data.pictures
    for start in (0, batches):  # of this plan and of the next
        seen = Counter(i for k in range(start, start + batches) for i in data.batch(count, k))
        assert seen == {i: repeats * epochs for i, (_, repeats) in enumerate(records)}


@settings(max_examples=25, deadline=None)
@given(SETS, st.integers(1, 6), st.integers(0, 15))
def test_a_batch_is_of_one_bucket_and_passes_do_not_mix(records: list, count: int, batches: int) -> None:
    data = order(records)
    rows: dict[int, list[int]] = {}
    for k in range(batches):
        batch = data.batch(count, k)
        assert len(batch) == count
        (bucket,) = {int(data.bucket[i]) for i in batch}
        rows.setdefault(bucket, []).extend(batch)
    for bucket, row in rows.items():
        once = Counter(data.rows[bucket].tolist())
        length = once.total()
        for at in range(0, len(row) - length + 1, length):
            assert Counter(row[at : at + length]) == once


@settings(max_examples=25, deadline=None)
@given(SETS, st.integers(1, 6), st.integers(1, 15))
def test_a_bucket_has_its_share_at_all_times(records: list, count: int, batches: int) -> None:
    data = order(records)
    had = Counter(int(data.bucket[data.batch(count, k)[0]]) for k in range(batches))
    for bucket, row in enumerate(data.rows):
        due = batches * len(row) / data.pictures
        assert abs(had[bucket] - due) <= 1 + len(data.rows)


@settings(max_examples=15, deadline=None)
@given(SETS, st.integers(1, 6), st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_what_was_asked_before_changes_nothing(records: list, count: int, asked: list) -> None:
    used = order(records, 5)
    assert [used.batch(count, k) for k in asked] == [order(records, 5).batch(count, k) for k in asked]


def test_passes_differ_and_so_do_seeds() -> None:
    records = [(0, 1)] * 20
    data = order(records)
    assert data.batch(20, 0) != data.batch(20, 1)
    assert data.batch(20, 0) != order(records, 1).batch(20, 0)
    seed = mix(0, ROW, 0, 0)  # the arithmetic of _noise once more, with Python's whole numbers
    noise = [mix((seed + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(20)]
    assert data.batch(20, 0) == sorted(range(20), key=noise.__getitem__)


def test_the_others_of_a_bucket_come_from_the_next_one_on() -> None:
    data = order([(0, 1), (1, 1), (0, 2), (0, 1)])
    assert list(data.others(2)) == [3, 0]
    assert list(data.others(1)) == []
