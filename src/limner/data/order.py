"""Which records each batch holds: a function of its number alone, so that nothing has to be remembered.

Every bucket has an endless row of pictures: pass after pass through its records, each as often as it is to be
repeated, every pass in another order. A batch takes the next pictures of one bucket's row. Which bucket that
is stands in a plan, made so that a bucket's share of the batches is its share of the pictures at all times.
After as many epochs as a batch has pictures (fewer where sizes share a divisor) the plan comes out even: each
record was seen exactly `repeats` times for each epoch, and the next plan begins.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from limner.util.rng import mix

Numbers = npt.NDArray[np.int64]
PLAN, ROW = 1, 2  # uses of the seed, kept apart


class Order:
    """The order of one data set."""

    def __init__(self, buckets: Numbers, repeats: Numbers, seed: int = 0) -> None:
        """`buckets`: the number of each record's bucket, from 0 without gaps; `repeats`: at least 1 each."""
        self.seed = seed
        self.bucket = buckets
        count = int(buckets.max()) + 1
        members = np.argsort(buckets, kind="stable")
        bounds = np.searchsorted(buckets[members], np.arange(1, count))
        self.members: list[Numbers] = np.split(members, bounds)
        self.rows = [np.repeat(records, repeats[records]) for records in self.members]
        self.kept: OrderedDict[tuple[int, ...], tuple[Numbers, ...]] = OrderedDict()

    @property
    def pictures(self) -> int:
        """Pictures in an epoch: records times their repeats."""
        return sum(map(len, self.rows))

    def epochs(self, count: int) -> int:
        """After how many epochs batches of `count` come out even."""
        return count // self._divisor(count)

    def batch(self, count: int, index: int) -> list[int]:
        """The records of batch number `index` of all batches of `count` pictures; all of one bucket."""
        divisor = self._divisor(count)
        period, place = divmod(index, self.pictures // divisor)
        buckets, turns = self._plan(divisor, period)
        bucket = int(buckets[place])
        row = self.rows[bucket]
        start = (period * (len(row) // divisor) + int(turns[place])) * count
        records: list[int] = []
        while len(records) < count:
            turn, at = divmod(start + len(records), len(row))
            records += self._pass(bucket, turn)[at : at + count - len(records)].tolist()
        return records

    def others(self, record: int) -> Iterator[int]:
        """The other records of its bucket, from the next one on, around."""
        members = self.members[int(self.bucket[record])]
        at = int(np.searchsorted(members, record))
        yield from np.roll(members, -at)[1:].tolist()

    def _divisor(self, count: int) -> int:
        return math.gcd(count, *map(len, self.rows))

    def _plan(self, divisor: int, period: int) -> tuple[Numbers, Numbers]:
        """Of each batch of a period: its bucket, and how many batches of that bucket came before."""
        key = (PLAN, divisor, period)
        if key not in self.kept:
            counts = np.array([len(row) // divisor for row in self.rows])
            buckets = np.repeat(np.arange(len(counts)), counts)
            turns = np.arange(len(buckets)) - np.repeat(np.cumsum(counts) - counts, counts)
            jitter = _noise(len(buckets), mix(self.seed, *key)) / 2.0**64
            order = np.argsort((turns + jitter) / counts[buckets], kind="stable")
            self._keep(key, (buckets[order], turns[order]))
        return self.kept[key]  # type: ignore[return-value]

    def _pass(self, bucket: int, turn: int) -> Numbers:
        """The bucket's row in the order of its pass number `turn`."""
        key = (ROW, bucket, turn)
        if key not in self.kept:
            row = self.rows[bucket]
            self._keep(key, (row[np.argsort(_noise(len(row), mix(self.seed, *key)), kind="stable")],))
        self.kept.move_to_end(key)
        return self.kept[key][0]

    def _keep(self, key: tuple[int, ...], value: tuple[Numbers, ...]) -> None:
        self.kept[key] = value
        if len(self.kept) > 2 * len(self.rows) + 4:
            self.kept.popitem(last=False)


def _noise(count: int, seed: int) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele et al. 2014, figure 16) of `seed` and 0..count-1: the same on every machine and in
    every version of numpy, which its own shuffles do not promise."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
