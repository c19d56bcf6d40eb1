"""Pictures per second of a training run, with everything that a run does: scenes, captions, steps, averages.

    python benchmarks/training.py configs/mini.toml --seconds 60 [KEY=VALUE ...]

The peer is the same network trained with AdamW on one fixed batch by a bare loop: what the machine could do
if data, averages and Muon cost nothing. The ratio says how much of that a real run keeps.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from facts import machine, report

from limner.train.config import RunConfig, build, read
from limner.train.loop import PRECISIONS, fit
from limner.train.optim import optimizers
from limner.util.devices import autocast, pick_device


def run_for(seconds: float, run: RunConfig, folder: Path) -> float:
    """Pictures per second of the real loop; its first three steps warm up."""
    steps = fit(run, folder)
    for _ in range(3):
        next(steps)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(steps)
        count += run.loop.batch
    rate = count / (time.perf_counter() - start)
    steps.close()  # type: ignore[attr-defined]
    return rate


def bare(seconds: float, run: RunConfig) -> float:
    """Pictures per second of a loop that does nothing but gradient steps on one batch."""
    device = pick_device(run.loop.device)
    objective = build(run, device)
    objective.model.initialize(torch.Generator(device).manual_seed(0))
    batch = objective.batch(run.loop.batch, 0)
    loss_of = torch.compile(objective.loss) if run.loop.compile else objective.loss
    (adam,) = optimizers(objective.model, replace(run.optim, muon_lr=0.0))
    start, count = 0.0, -3
    while count < 1 or time.perf_counter() - start < seconds:
        if count == 0:
            start = time.perf_counter()
        with autocast(device, PRECISIONS[run.loop.precision]):
            loss = torch.stack(list(loss_of(batch).values())).sum()
        loss.backward()
        float(loss.detach())  # waits for the device
        adam.step()
        adam.zero_grad()
        count += 1
    return count * run.loop.batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, help="folder of the run, if it is to be kept")
    args = parser.parse_intermixed_args()

    run = read(args.config, dict(setting.split("=", 1) for setting in args.settings))
    with tempfile.TemporaryDirectory() as temporary:
        ours = run_for(args.seconds, run, args.out or Path(temporary))
    peer = bare(args.seconds / 2, run)
    print(machine(str(pick_device(run.loop.device))))
    report(
        f"Training {args.config.name}, batches of {run.loop.batch}",
        ours,
        peer,
        "pictures/s",
        "bare AdamW steps on one batch",
        more_is_better=True,
    )


if __name__ == "__main__":
    main()
