"""A step over a data set: part by part, in several processes or on a cluster, and always to the same result.

A part that was written is never done again, so a run that was killed goes on where it stopped. A step is a
frozen dataclass; what it does to a part depends on that part and its own fields alone.
"""

import json
import re
import shutil
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from limner.data.records import (
    PART,
    DataSet,
    Finished,
    Record,
    Reject,
    read_records,
    read_rejects,
    write_records,
    write_rejects,
    write_whole,
)
from limner.errors import DataError

GONE = ".gone-"  # begins the name of a step's folder that is being removed
OURS = re.compile(r"(?:part|rejects)-\d{5,}\.parquet|\..*\.tmp")  # what steps put into their folders
TRIES = 5  # times that Ray begins a part again when the node that had it is lost


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a step made of one part: every record that it was given is in one list or the other."""

    kept: list[Record]
    rejects: list[Reject] = field(default_factory=list)


@runtime_checkable
class Step(Protocol):
    """One step: a frozen dataclass that can be pickled. Its fields are the settings that `set.json` keeps, so
    no secret may be among them."""

    @property
    def name(self) -> str:
        """One word, part of a folder's name; a ClassVar will do."""

    def part(self, records: list[Record]) -> Outcome:
        """What becomes of at most 1,000 records. Must not depend on when or where it is called."""


@runtime_checkable
class Gathering(Protocol):
    """A step that has to see facts of all records before it can judge one."""

    def gather(self, data: DataSet) -> Step:
        """The same step with its verdicts filled in, from a look over the whole set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a step is."""

    name: str  # of the step
    done: int  # records that were looked at
    total: int | None  # records of the set; None while they are still being counted
    kept: int
    rejects: dict[str, int] = field(default_factory=dict, hash=False)  # reason -> how many
    told: str = ""  # what users should know besides


def run(data: DataSet, step: Step, *, workers: int = 1, ray: bool = False) -> Iterator[Progress]:
    """Take a step over the newest state of `data`, in `workers` processes or as tasks of a Ray cluster (the
    one that is running, else one of this machine). The set must then lie where all nodes see it.

    A step that was cut short goes on; the same step right after itself has nothing left to do. Raises
    DataError when another process works on the set, a worker dies, or the step loses a record.
    """
    with alone(data):
        yield from run_alone(data, step, workers=workers, ray=ray)


def run_alone(data: DataSet, step: Step, *, workers: int = 1, ray: bool = False) -> Iterator[Progress]:
    """`run` for a caller that is within `alone` already, since more belongs together."""
    if workers < 1:
        raise DataError(f"a step needs at least one worker, got {workers}")
    sources, settings = data.parts(), settings_of(step)
    last = data.steps[-1]
    if (last.name, last.settings) == (step.name, settings):
        yield Progress(name=step.name, done=last.kept, total=last.kept, kept=last.kept, rejects=last.rejects)
        return
    start = time.monotonic()
    folder, told = _begin(data, step.name, settings)
    tally = _Tally(step.name, len(data), told)
    missing = []
    for index in range(len(sources)):
        if (folder / part_name(index)).exists():
            tally.add(_counted(folder, index))
        else:
            missing.append(index)
    yield tally.progress()
    if missing:
        ready = step.gather(data) if isinstance(step, Gathering) else step
        jobs = [(str(sources[index]), str(folder), index) for index in missing]
        if ray:
            counts = _on_ray(ready, jobs)
        elif workers == 1:
            counts = (_take(ready, *job) for job in jobs)
        else:
            counts = _in_processes(ready, jobs, workers)
        for count in counts:
            tally.add(count)
            yield tally.progress()
    data.complete(tally.done)
    data.add(tally.finished(folder.name, settings, time.monotonic() - start))


def write(
    data: DataSet, name: str, settings: dict[str, object], found: Iterable[Record | Reject]
) -> Iterator[Progress]:
    """A step that begins with a stream instead of a set: what is found, in parts, in its order. Cut short, it
    begins anew. Raises DataError when another process works on the set, or has changed it."""
    before = data.steps
    with alone(data):
        if data.steps != before:
            raise DataError(f"another process has changed {data.folder}; give the same command again")
        start = time.monotonic()
        folder, told = _begin(data, name, settings)
        for path in folder.glob("*.parquet"):
            path.unlink()
        tally, index = _Tally(name, None, told), 0
        kept: list[Record] = []
        rejects: list[Reject] = []

        def flush() -> None:
            nonlocal index
            write_rejects(folder / rejects_name(index), rejects)
            write_records(folder / part_name(index), kept)
            tally.add((len(kept) + len(rejects), len(kept), Counter(one.reason for one in rejects)))
            index += 1
            kept.clear()
            rejects.clear()

        for one in found:
            if isinstance(one, Record):
                kept.append(one)
            else:
                rejects.append(one)
            if max(len(kept), len(rejects)) == PART:
                flush()
                yield tally.progress()
        if kept or rejects or index == 0:
            flush()
            yield tally.progress()
        data.add(tally.finished(folder.name, settings, time.monotonic() - start))


def settings_of(step: Step) -> dict[str, object]:
    """The fields of a step as JSON has them: paths are text, sets and tuples are lists."""
    values = {f.name: getattr(step, f.name) for f in fields(step) if f.name != "name"}  # type: ignore[arg-type]
    return as_json(values)


def as_json(values: Mapping[str, object]) -> dict[str, object]:
    """Settings as they come back from `set.json`. Raises TypeError for a value that JSON does not have."""
    told: dict[str, object] = json.loads(json.dumps(values, default=_plain))
    return told


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def rejects_name(index: int) -> str:
    return f"rejects-{index:05d}.parquet"


Count = tuple[int, int, Counter[str]]  # records looked at, kept, reasons
Job = tuple[str, str, int]  # part to read, folder to write to, number of the part


class _Tally:
    """Counts over the parts of one step."""

    def __init__(self, name: str, total: int | None, told: str = "") -> None:
        self.name, self.total, self.told = name, total, told
        self.done = self.kept = 0
        self.reasons: Counter[str] = Counter()

    def add(self, count: Count) -> None:
        self.done += count[0]
        self.kept += count[1]
        self.reasons += count[2]

    def progress(self) -> Progress:
        reasons = dict(sorted(self.reasons.items()))
        return Progress(
            name=self.name,
            done=self.done,
            total=self.total,
            kept=self.kept,
            rejects=reasons,
            told=self.told,
        )

    def finished(self, folder: str, settings: dict[str, object], seconds: float) -> Finished:
        reasons = dict(sorted(self.reasons.items()))
        return Finished(
            name=self.name,
            folder=folder,
            settings=settings,
            kept=self.kept,
            rejects=reasons,
            seconds=round(seconds, 3),
        )


def _take(step: Step, source: str, folder: str, index: int) -> Count:
    """Do one part and write what came of it; the part itself comes last, as the sign that it is done."""
    records = read_records(Path(source))
    outcome = step.part(records)
    before = sorted(record.key for record in records)
    after = sorted([*(one.key for one in outcome.kept), *(one.key for one in outcome.rejects)])
    if before != after:
        told = f"{len(outcome.kept)} kept and {len(outcome.rejects)} rejects"
        raise DataError(
            f"the step {step.name} made {told} of {len(before)} records: it must account for each once"
        )
    write_rejects(Path(folder) / rejects_name(index), outcome.rejects)
    write_records(Path(folder) / part_name(index), outcome.kept)
    return len(records), len(outcome.kept), Counter(one.reason for one in outcome.rejects)


def _counted(folder: Path, index: int) -> Count:
    """The counts of a part that an earlier run has done."""
    kept = len(read_records(folder / part_name(index)))
    reasons = Counter(one.reason for one in read_rejects(folder / rejects_name(index)))
    return kept + reasons.total(), kept, reasons


def _begin(data: DataSet, name: str, settings: dict[str, object]) -> tuple[Path, str]:
    """The folder of the next step: as an unfinished run of this very step left it, else empty; and what to
    say of a run of another one, or with other settings, whose parts went."""
    number = f"{len(data.steps) + 1:02d}-"
    folder = data.folder / f"{number}{name}"
    after = [step.folder for step in data.steps]
    told = {"set": data.sign, "name": name, "settings": settings, "after": after}
    begun = json.dumps(told, indent=1, ensure_ascii=False).encode()
    lost = ""
    for left in data.folder.glob(f"{GONE}*"):
        shutil.rmtree(left)
    for left in data.folder.glob(f"{number}*"):
        if not left.is_dir() or (left == folder and _begun(left) == begun):
            continue
        if _begun(left) is None and any(not OURS.fullmatch(path.name) for path in left.iterdir()):
            raise DataError(f"{left} is where the next step goes, and no step made it; move it elsewhere")
        if any(left.glob("part-*.parquet")):
            lost = f"{left.name} was cut short and is not what is asked for now: what it had done is gone"
        gone = left.with_name(f"{GONE}{uuid.uuid4().hex}")  # at once, or what is left would pass for a part
        left.replace(gone)
        shutil.rmtree(gone)
    if folder.is_dir():
        for torn in folder.glob(".*.tmp"):
            torn.unlink(missing_ok=True)
    write_whole(folder / "step.json", begun)
    return folder, lost


def _begun(folder: Path) -> bytes | None:
    """What the step of a folder was told; None when that is not there."""
    try:
        return (folder / "step.json").read_bytes()
    except FileNotFoundError:
        return None


@contextmanager
def alone(data: DataSet) -> Iterator[None]:
    """Nobody else works on the set meanwhile, and it is as the last one has left it. Raises DataError when
    somebody does."""
    with locked(data.folder):
        data.reread()
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else works on the folder meanwhile. The lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    try:
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise DataError(f"cannot write {folder / '.lock'}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process works on {folder}; wait for it to end") from None
        yield


_step: Step | None = None  # what a worker process does, set once when it starts


def _enter(step: Step) -> None:
    """Begin a worker process: it leaves Ctrl-C to its parent, and ends when the parent is gone."""
    import multiprocessing
    import os
    import threading

    global _step
    _step = step
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _take_entered(source: str, folder: str, index: int) -> Count:
    if _step is None:
        raise DataError("a worker process was asked before it was told its step")
    return _take(_step, source, folder, index)


@contextmanager
def _unheard() -> Iterator[None]:
    """Processes that start meanwhile never hear of Ctrl-C; this one does, afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_processes(step: Step, jobs: Sequence[Job], workers: int) -> Iterator[Count]:
    """All parts, as they are done. New processes are spawned, since a forked one may inherit held locks."""
    import multiprocessing

    workers = min(workers, len(jobs))
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_enter, initargs=(step,))
    try:
        left = iter(jobs)
        running: set[Future[Count]] = set()
        while True:
            while len(running) < 2 * workers and (job := next(left, None)) is not None:
                with _unheard():
                    running.add(pool.submit(_take_entered, *job))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise DataError(
            f"a worker process of the step {step.name} was killed, perhaps for want of memory; run the "
            "same command again with fewer workers, it goes on where it stopped"
        ) from None
    except (KeyboardInterrupt, GeneratorExit):  # parts are whole or not there: no need to wait for them
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _on_ray(step: Step, jobs: Sequence[Job]) -> Iterator[Count]:
    """All parts, as they are done, each a task of the cluster; what a lost node had is begun anew."""
    try:
        import ray
    except ImportError:
        raise DataError('Ray is missing; install it with pip install "limner[cluster]"') from None
    ours = not ray.is_initialized()
    if ours:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:
            ray.init(include_dashboard=False, **quiet)
    running: list[Any] = []
    try:
        task = ray.remote(max_retries=TRIES)(_take)
        shared = ray.put(step)
        left = iter(jobs)
        while True:
            cores = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
            most = 2 * max(1, int(cores))
            while len(running) < most and (job := next(left, None)) is not None:
                running.append(task.remote(shared, *job))
            if not running:
                return
            done, running = ray.wait(running, num_returns=1)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, DataError) else error from None
    except ray.exceptions.RayError as error:
        raise DataError(
            f"the Ray cluster lost a part of the step {step.name} ({type(error).__name__}); run the same "
            "command again, it goes on where it stopped"
        ) from None
    finally:
        for one in running:  # parts are whole or not there
            with suppress(ray.exceptions.RayError):
                ray.cancel(one, force=True)
        if ours:
            ray.shutdown()


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    if callable(value):
        told = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{getattr(value, '__module__', '')}.{told}"
    raise TypeError(f"a step's setting cannot be written as JSON: {value!r}")
