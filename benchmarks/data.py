"""Small pictures through the whole chain: import, inspect, filter, dedup, pack.

    python benchmarks/data.py [--pictures 100000] [--workers 2] [--side 128] [--folder FOLDER]

The pictures are JPEGs of random shapes with captions; one in twenty is a near copy, one in a hundred is cut
off. Printed are wall and processor seconds for a thousand pictures, and the memory of this process and its
workers together when the first part of a step is done and at its end. The peer is a bare loop over the same
files that decodes each once, in as many processes: every step that looks at pictures has to do that at least.
"""

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PER_FOLDER = 1_000
WORDS = (
    "red",
    "blue",
    "small",
    "large",
    "cat",
    "dog",
    "house",
    "tree",
    "on",
    "a",
    "hill",
    "river",
    "at",
    "night",
)


def draw(folder: Path, first: int, count: int, side: int) -> None:
    """One folder of pictures with captions; what picture n shows follows from n alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        shown = number - 1 if number % 20 == 19 else number  # a near copy of the one before
        rng = random.Random(shown)
        width, height = (round(side * rng.uniform(0.75, 1.5)) for _ in range(2))
        levels = np.random.default_rng(shown).integers(0, 256, (height // 8 + 1, width // 8 + 1), np.uint8)
        noise = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
        picture = Image.merge(
            "RGB", (noise, *(noise.point(lambda v, k=rng.uniform(0.3, 1): v * k) for _ in "gb"))
        )
        pen = ImageDraw.Draw(picture)
        for _ in range(6):
            x, y = sorted(rng.sample(range(width), 2)), sorted(rng.sample(range(height), 2))
            shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
            shape((x[0], y[0], x[1], y[1]), fill=tuple(rng.randrange(256) for _ in range(3)))
        path = folder / f"{number:07d}.jpg"
        picture.save(path, quality=90 - number % 2)
        if number % 100 == 50:
            path.write_bytes(path.read_bytes()[:-400])
        path.with_suffix(".txt").write_text(" ".join(rng.choices(WORDS, k=rng.randrange(3, 20))))


def decode(folder: Path) -> int:
    """The peer: decode every picture of a folder once, and count those that are whole."""
    whole = 0
    for path in sorted(folder.glob("*.jpg")):
        try:
            with Image.open(path) as image:
                image.convert("RGB")
            whole += 1
        except OSError:
            continue
    return whole


def memory() -> float:
    """MB in the memory of this process and all that it has begun."""
    kilobytes = 0
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(status.parent.name))
    left = [os.getpid()]
    while left:
        process = left.pop()
        left += children.get(process, [])
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1024


def processor() -> float:
    """Seconds of processor time that this process and its ended children have used."""
    return sum(os.times()[:4])


def watch(name: str, count: int, steps: Iterable[object]) -> tuple[float, float]:
    """Take all of a step; print and return its seconds, on the clock and of the processor."""
    start, used, early, last = time.perf_counter(), processor(), 0.0, 0.0
    for step in steps:
        done = getattr(step, "done", 0)
        if done and (not early or done >= 0.9 * count):
            last = memory()
            early = early or last
    seconds, used = time.perf_counter() - start, processor() - used
    told = f"{1000 * seconds / count:8.2f} s per thousand, {1000 * used / count:6.2f} of the processor"
    print(f"  {name:8} {told}   {early:5.0f} MB -> {last:5.0f} MB", flush=True)
    return seconds, used


def chain(source: Path, into: Path, count: int, workers: int) -> tuple[float, float]:
    """Everything, step after step; seconds in all, on the clock and of the processor."""
    from limner.data.dedup import Dedup, Hash
    from limner.data.filters import Filter
    from limner.data.pack import Pack, pack
    from limner.data.records import DataSet
    from limner.data.sources import SourceConfig, bring
    from limner.data.steps import Progress, run
    from limner.data.summary import summarise

    def opened() -> DataSet:
        return DataSet.open(into)

    def inspect() -> Iterable[object]:
        summary = summarise(opened())
        yield Progress(name="inspect", done=summary.pictures, total=summary.pictures, kept=summary.pictures)

    steps: dict[str, Callable[[], Iterable[object]]] = {
        "import": lambda: bring(into, SourceConfig(source=str(source)), workers=workers),
        "inspect": inspect,
        "filter": lambda: run(opened(), Filter(), workers=workers),
        "hash": lambda: run(opened(), Hash(), workers=workers),
        "dedup": lambda: run(opened(), Dedup(), workers=workers),
        "pack": lambda: pack(opened(), Pack(size=128, bucket_step=32), workers=workers),
    }
    seconds, used = zip(*(watch(name, count, step()) for name, step in steps.items()), strict=True)
    for step in opened().steps:
        print(f"  {step.folder}: {step.kept} kept, {step.rejects}")
    return sum(seconds), sum(used)


def main() -> None:
    from facts import machine, report  # torch, which no worker needs

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--side", type=int, default=128, help="pixels of a side, about")
    parser.add_argument("--folder", type=Path, help="where the pictures go, if they are to be kept")
    args = parser.parse_args()

    folder = args.folder or Path(tempfile.mkdtemp())
    source = folder / "pictures"
    starts = range(0, args.pictures, PER_FOLDER)
    folders = [source / f"{start // PER_FOLDER:04d}" for start in starts]
    counts = [min(PER_FOLDER, args.pictures - start) for start in starts]
    try:
        with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
            if not source.exists():
                list(pool.map(draw, folders, starts, counts, [args.side] * len(folders)))
            start = time.perf_counter()
            sum(pool.map(decode, folders))
            peer = time.perf_counter() - start
        print(machine())
        print(f"{args.pictures} pictures of about {args.side} x {args.side}, {args.workers} workers")
        shutil.rmtree(folder / "set", ignore_errors=True)
        ours, used = chain(source, folder / "set", args.pictures, args.workers)
        thousands = args.pictures / 1000
        report(
            "The whole chain, four looks at each picture and one copy",
            ours / thousands,
            peer / thousands,
            "s per thousand",
            "decoding each once in a bare loop",
            more_is_better=False,
        )
        print(f"  processor {used / thousands:8.2f} s per thousand")
    finally:
        if args.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
