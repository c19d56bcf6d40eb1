"""How many pictures a run would see in so many seconds on this machine: one number, for loop.images.

    python benchmarks/gpu/pace.py configs/mini-gpu.toml --seconds 840 [--probe 20] [KEY=VALUE ...]

Runs it for a moment after three steps that warm up (and fill the compiler's cache), and keeps nothing. Five
parts in a hundred are set aside for checkpoints and sheets.
"""

import argparse
import tempfile
import time
from pathlib import Path

from limner.train.config import read
from limner.train.loop import fit

RESERVE = 0.95


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("config", type=Path)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--probe", type=float, default=20.0)
    options = parser.parse_intermixed_args()
    settings = dict(setting.split("=", 1) for setting in options.settings)
    run = read(options.config, settings | {"loop.images": "100_000_000_000"})
    with tempfile.TemporaryDirectory() as folder:
        steps = fit(run, Path(folder))
        for _ in range(3):
            next(steps)
        start, seen = time.perf_counter(), 0
        while seen == 0 or time.perf_counter() - start < options.probe:
            next(steps)
            seen += run.loop.batch
        rate = seen / (time.perf_counter() - start)
        steps.close()  # type: ignore[attr-defined]
    batches = max(1, int(RESERVE * options.seconds * rate) // run.loop.batch)
    print(batches * run.loop.batch)


if __name__ == "__main__":
    main()
