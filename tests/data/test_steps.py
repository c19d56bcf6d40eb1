"""Steps: resumed, in parallel, on a cluster that loses a node - and always to the same result."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from limner.data.records import DataSet, Record, Reject
from limner.data.sources import Measure
from limner.data.steps import Outcome, Progress, run, write
from limner.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Odd:
    """Drops what has an odd number, and counts how often it was asked."""

    name: ClassVar[str] = "odd"
    asked: ClassVar[list[str]] = []
    least: int = 0

    def part(self, records: list[Record]) -> Outcome:
        outcome = Outcome(kept=[])
        for record in records:
            self.asked.append(record.key)
            number = int(record.key)
            if number % 2 and number >= self.least:
                outcome.rejects.append(Reject(key=record.key, picture=record.picture, reason="odd"))
            else:
                outcome.kept.append(replace(record, facts={"half": number / 2}))
        return outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Rare:
    """Keeps the first record of every caption: it must see them all."""

    name: ClassVar[str] = "rare"
    first: frozenset[str] = frozenset()

    def gather(self, data: DataSet) -> "Rare":
        seen: dict[str, str] = {}
        for record in data.records():
            seen.setdefault(record.caption, record.key)
        return replace(self, first=frozenset(seen.values()))

    def part(self, records: list[Record]) -> Outcome:
        kept = [record for record in records if record.key in self.first]
        left = [record for record in records if record.key not in self.first]
        return Outcome(kept=kept, rejects=[Reject(key=r.key, picture="", reason="again") for r in left])


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgetful:
    name: ClassVar[str] = "forgetful"

    def part(self, records: list[Record]) -> Outcome:
        return Outcome(kept=records[1:])


def a_set(folder: Path, count: int, picture: str = "/p/{}.png") -> DataSet:
    data = DataSet.create(folder)
    found = (Record(key=f"{i:05d}", picture=picture.format(i), caption=str(i % 7)) for i in range(count))
    list(write(data, "found", {"count": count}, found))
    return data


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    """2,500 records in three parts."""
    return a_set(tmp_path / "set", 2_500)


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    Odd.asked.clear()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def test_a_step_reports_and_is_remembered(data: DataSet) -> None:
    told = list(run(data, Odd()))
    assert [(p.done, p.kept) for p in told] == [(0, 0), (1000, 500), (2000, 1000), (2500, 1250)]
    assert told[-1] == Progress(name="odd", done=2500, total=2500, kept=1250, rejects={"odd": 1250})
    opened = DataSet.open(data.folder)
    assert opened.steps[-1].name == "odd"
    assert opened.steps[-1].settings == {"least": 0}
    assert opened.steps[-1].rejects == {"odd": 1250}
    records = list(opened.records())
    assert [record.key for record in records] == [f"{i:05d}" for i in range(0, 2500, 2)]
    assert records[3].facts == {"half": 3.0}
    assert sum(1 for _ in opened.rejects()) == 1250


def test_parts_that_are_done_are_not_done_again(data: DataSet) -> None:
    cut = run(data, Odd())
    next(cut), next(cut)
    cut.close()  # type: ignore[attr-defined]  # a generator
    assert len(DataSet.open(data.folder).steps) == 1
    assert Odd.asked[-1] == "00999"
    told = list(run(DataSet.open(data.folder), Odd()))
    assert told[0].done == 1000
    assert told[0].rejects == {"odd": 500}
    assert len(Odd.asked) == 2500
    other = a_set(data.folder.parent / "other", 2_500)
    list(run(other, Odd()))
    assert contents(data.folder / "02-odd") == contents(other.folder / "02-odd")


def test_other_settings_begin_anew(data: DataSet) -> None:
    cut = run(data, Odd())
    next(cut), next(cut)
    cut.close()  # type: ignore[attr-defined]
    told = list(run(data, Odd(least=2000)))
    assert told[0].done == 0
    assert "02-odd was cut short and is not what is asked for now" in told[0].told
    assert told[-1].kept == 2250


def test_another_step_takes_the_place_of_an_unfinished_one(data: DataSet) -> None:
    cut = run(data, Odd())
    next(cut), next(cut)
    cut.close()  # type: ignore[attr-defined]
    list(run(data, Rare()))
    assert sorted(path.name for path in data.folder.iterdir() if path.is_dir()) == ["01-found", "02-rare"]


def test_the_same_step_right_after_itself_has_nothing_to_do(data: DataSet) -> None:
    list(run(data, Odd()))
    count = len(Odd.asked)
    assert [p.kept for p in run(data, Odd())] == [1250]
    assert len(Odd.asked) == count
    assert len(data.steps) == 2


def test_a_step_may_look_at_all_records_first(data: DataSet) -> None:
    list(run(data, Rare()))
    assert [record.caption for record in data.records()] == list("0123456")
    assert data.steps[-1].settings == {"first": []}


def test_an_empty_set_goes_through(tmp_path: Path) -> None:
    empty = a_set(tmp_path / "set", 0)
    assert list(run(empty, Odd()))[-1].total == 0
    assert list(empty.records()) == []


def test_a_step_must_account_for_every_record(data: DataSet) -> None:
    with pytest.raises(DataError, match="account for each"):
        list(run(data, Forgetful()))
    assert len(DataSet.open(data.folder).steps) == 1


def test_two_at_once_are_refused(data: DataSet) -> None:
    first = run(data, Odd())
    next(first)
    with pytest.raises(DataError, match="another process works"):
        next(run(DataSet.open(data.folder), Odd()))
    first.close()  # type: ignore[attr-defined]
    assert list(run(data, Odd()))[-1].done == 2500


def test_no_workers_are_refused(data: DataSet) -> None:
    with pytest.raises(DataError, match="at least one worker"):
        next(run(data, Odd(), workers=0))


def test_a_stream_that_was_cut_begins_anew(tmp_path: Path) -> None:
    data = DataSet.create(tmp_path / "set")

    def found(stop: int) -> Iterator[Record | Reject]:
        for i in range(2_500):
            if i == stop:
                raise KeyboardInterrupt
            if i % 5 == 0:
                yield Reject(key=str(i), picture="", reason="missing")
            else:
                yield Record(key=str(i), picture=f"/p/{i}")

    with pytest.raises(KeyboardInterrupt):
        list(write(data, "found", {}, found(2_400)))
    assert data.steps == ()
    told = list(write(data, "found", {}, found(-1)))
    assert told[-1] == Progress(name="found", done=2500, total=None, kept=2000, rejects={"missing": 500})
    assert [record.key for record in data.records()] == [str(i) for i in range(2_500) if i % 5]


def test_what_is_left_of_a_removal_is_no_part(data: DataSet) -> None:
    cut = run(data, Odd())
    next(cut), next(cut)
    cut.close()  # type: ignore[attr-defined]
    (data.folder / "02-odd" / "step.json").unlink()
    told = list(run(data, Odd(least=2000)))
    assert (told[0].done, told[-1].kept) == (0, 2250)


def test_a_folder_that_no_step_made_stays(data: DataSet) -> None:
    (data.folder / "02-holiday").mkdir()
    (data.folder / "02-holiday" / "a.png").touch()
    with pytest.raises(DataError, match="no step made it"):
        list(run(data, Odd()))
    assert (data.folder / "02-holiday" / "a.png").exists()


def test_what_another_process_has_done_is_seen(data: DataSet) -> None:
    late = DataSet.open(data.folder)
    list(run(data, Odd()))
    assert [p.kept for p in run(late, Odd())] == [1250]
    with pytest.raises(DataError, match="another process has changed"):
        list(write(DataSet(data.folder, ()), "found", {}, []))


def test_a_lost_part_is_no_smaller_set(data: DataSet) -> None:
    (data.folder / "01-found" / "part-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"part-00002\.parquet is lost"):
        list(run(data, Odd()))
    assert len(DataSet.open(data.folder).steps) == 1


# -- processes --------------------------------------------------------------------------------------


@pytest.fixture
def pictured(tmp_path: Path, paint: Callable[..., Path]) -> Callable[[str, int], DataSet]:
    """A function that makes a set whose records show one picture, all but a tenth, which is missing."""
    path = paint(tmp_path / "0.png", 48, 40)

    def make(name: str, count: int) -> DataSet:
        data = DataSet.create(tmp_path / name)
        records = (
            Record(key=f"{i:05d}", picture=str(path if i % 10 else path.with_name("none.png")))
            for i in range(count)
        )
        list(write(data, "found", {}, records))
        return data

    return make


def test_processes_come_to_the_same_result(pictured: Callable[[str, int], DataSet]) -> None:
    one, two = pictured("one", 2_200), pictured("two", 2_200)
    list(run(one, Measure()))
    told = list(run(two, Measure(), workers=2))
    assert told[-1].rejects == {"missing": 220}
    assert contents(one.folder / "02-measure") == contents(two.folder / "02-measure")


SCRIPT = """
import signal
import sys
from pathlib import Path
from limner.data.records import DataSet
from limner.data.sources import Measure
from limner.data.steps import run

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without
    for progress in run(DataSet.open(Path(sys.argv[1])), Measure(), workers=int(sys.argv[2])):
        print(progress.done, flush=True)
"""


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_step_goes_on(workers: int, pictured: Callable[[str, int], DataSet], tmp_path: Path) -> None:
    killed, whole = pictured("killed", 4_000), pictured("whole", 4_000)
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(killed.folder), str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while _processes_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _processes_of(process.pid) == 0, "workers must follow their parent"
    folder = killed.folder / "02-measure"
    done = {path: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}
    assert 1 <= len(done) < 4
    list(run(DataSet.open(killed.folder), Measure()))
    assert {path: path.stat().st_mtime_ns for path in done} == done
    list(run(whole, Measure()))
    assert contents(folder) == contents(whole.folder / "02-measure")


def test_ctrl_c_leaves_nothing_running(pictured: Callable[[str, int], DataSet], tmp_path: Path) -> None:
    data = pictured("set", 4_000)
    script = tmp_path / "step.py"
    body = SCRIPT.replace("    for ", "    try:\n     for ").replace("        print", "         print")
    script.write_text(body + "    except KeyboardInterrupt:\n        print('stopped')\n")
    command = [sys.executable, str(script), str(data.folder), "2"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        time.sleep(0.02)  # its workers are being started
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        out, complaints = process.communicate(timeout=30)
    assert (out, complaints) == ("stopped\n", "")
    assert _processes_of(process.pid) == 0


def _processes_of(session: int) -> int:
    """Processes of a session that still run."""
    count = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own, *_ = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        count += int(own) == session and state != "Z"
    return count


# -- a cluster --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_cluster_that_loses_a_node_comes_to_the_same_result(
    pictured: Callable[[str, int], DataSet],
) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    here, there = pictured("here", 12_000), pictured("there", 12_000)
    list(run(here, Measure()))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        cluster.wait_for_nodes()
        assert sum(node["Alive"] for node in ray.nodes()) == 2
        told = []
        for progress in run(there, Measure(), ray=True):
            told.append(progress.done)
            if progress.done and second is not None:
                cluster.remove_node(second, allow_graceful=False)  # the step has most parts before it
                second = None
        assert told[-1] == 12_000
        assert sum(node["Alive"] for node in ray.nodes()) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert contents(here.folder / "02-measure") == contents(there.folder / "02-measure")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_begins_on_this_machine_where_no_cluster_runs(pictured: Callable[[str, int], DataSet]) -> None:
    ray = pytest.importorskip("ray")
    here, there = pictured("here", 2_200), pictured("there", 2_200)
    list(run(here, Measure()))
    list(run(there, Measure(), ray=True))
    assert not ray.is_initialized()
    assert contents(here.folder / "02-measure") == contents(there.folder / "02-measure")
    broken = pictured("broken", 1_200)
    (broken.folder / "01-found" / "part-00001.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match="not a whole part"):
        list(run(broken, Measure(), ray=True))
    assert not ray.is_initialized()


SLOW = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
import ray
from limner.data.records import DataSet
from limner.data.steps import Outcome, run

@dataclass(frozen=True, kw_only=True, slots=True)
class Slow:
    name: ClassVar[str] = "slow"
    def part(self, records):
        time.sleep(2)
        return Outcome(kept=records)

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
data = DataSet.open(Path(sys.argv[1]))
going = run(data, Slow(), ray=True)
next(going), next(going)
going.close()
before = len(list(data.folder.glob("02-slow/part-*")))
time.sleep(5)
print(before, len(list(data.folder.glob("02-slow/part-*"))))
"""


@pytest.mark.slow
def test_tasks_of_a_cluster_end_with_their_step(data: DataSet, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, str(tmp_path / "slow.py"), str(data.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["1", "1"]
