"""The training loop, one for everything. It yields its steps; progress and stopping belong to the caller."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from limner.errors import ConfigError
from limner.train import state
from limner.train.config import RunConfig, build, to_dict
from limner.train.ema import EMA
from limner.train.objectives import Objective, Tuning
from limner.train.optim import optimizers, rate
from limner.util.devices import autocast, pick_device
from limner.util.rng import mix
from limner.weights import files

LossOf = Callable[[Any], dict[str, torch.Tensor]]
PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainStep:
    """What happened in one step."""

    images_seen: int
    images: int  # the end of the run
    losses: dict[str, float]  # by name; empty when the step was skipped
    gradient: float  # global norm before clipping
    skipped: int  # steps so far whose loss or gradient was not finite, and which changed nothing
    images_per_second: float  # over the recent steps
    saved: Path | None  # a checkpoint written in this step
    sheet: Path | None  # a sheet of samples drawn in this step


def fit(run: RunConfig, folder: Path, *, resume: bool = False) -> Iterator[TrainStep]:
    """Train until `run.loop.images` pictures were seen; checkpoints and sheets go to `folder`.

    The data of step i follows from the seed and i alone, so a resumed run continues bit for bit on the CPU.
    Closing the iterator saves a checkpoint. Beside each checkpoint stands weights.safetensors: the averaged
    weights in bfloat16 with the configuration in the header, ready to be drawn with. Where only this small
    file is left of a run, it is resumed from the averaged weights, with fresh optimisers.

    Raises ConfigError for a setting that cannot be met and for a folder that holds another run, WeightsError
    when there is nothing that fits to resume.
    """
    loop = run.loop
    device = pick_device(loop.device)
    if loop.precision not in PRECISIONS:
        raise ConfigError(f"loop.precision is {', '.join(PRECISIONS)}, got {loop.precision!r}.")
    precision = PRECISIONS[loop.precision]
    torch.manual_seed(loop.seed)
    objective = build(run, device)
    model = objective.model
    model.initialize(torch.Generator(device).manual_seed(loop.seed))
    optims = optimizers(model, run.optim)
    base_rates = [[group["lr"] for group in optim.param_groups] for optim in optims]
    ema = EMA(model, loop.ema)
    checkpoint = folder / "checkpoint.safetensors"
    clock = {"step": 0, "images_seen": 0, "skipped": 0}
    small = folder / "weights.safetensors"
    if resume and small.exists() and not checkpoint.exists():
        clock |= state.go_on_from(small, model, ema, objective.published())
    elif resume:
        clock |= state.load(checkpoint, model, ema, optims)
    elif checkpoint.exists():
        raise ConfigError(f"{folder} already holds a run; continue it with --resume, or choose another.")
    elif loop.start:
        names = objective.inherited() if isinstance(objective, Tuning) else objective.published()
        state.start_from(Path(loop.start), model, ema, names)
    if isinstance(objective, Tuning):
        if not loop.start:
            raise ConfigError("this run tunes what another has learned; name its weights by loop.start.")
        objective.begin(Path(loop.start), ema.state())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(to_dict(run), indent=1))
    log = Log(folder, clock)
    loss_of: LossOf = torch.compile(objective.loss) if loop.compile else objective.loss
    saved_at = drawn_at = time.monotonic()
    speed = Speed()
    unsaved, torn = False, False  # steps since the last checkpoint; in the middle of changing the weights
    model.train()
    try:
        while clock["images_seen"] < loop.images:
            batch = objective.batch(loop.batch, mix(loop.seed, clock["step"]) % 2**63)
            with autocast(device, precision):
                parts = loss_of(batch)
                total = torch.stack(list(parts.values())).sum()
            total.backward()
            gradient = float(torch.nn.utils.clip_grad_norm_(model.parameters(), run.optim.clip))
            finite = math.isfinite(gradient) and math.isfinite(float(total.detach()))
            factor = rate(run.optim, clock["images_seen"], loop.images)
            unsaved, torn = True, True
            clock["step"] += 1
            clock["images_seen"] += loop.batch
            if finite:
                for optim, rates in zip(optims, base_rates, strict=True):
                    for group, lr in zip(optim.param_groups, rates, strict=True):
                        group["lr"] = lr * factor
                    optim.step()
                ema.update(model, clock["images_seen"], loop.batch)
            else:
                clock["skipped"] += 1
            torn = False
            model.zero_grad()
            values = {name: float(part.detach()) for name, part in parts.items()} if finite else {}
            log.write(clock, values, gradient, factor)
            saved = sheet = None
            done = clock["images_seen"] >= loop.images
            now = time.monotonic()
            if done or now - saved_at > loop.checkpoint_seconds:
                state.save(checkpoint, model, ema, optims, clock)
                export(objective, ema, run, clock, folder)
                saved, saved_at, unsaved = checkpoint, now, False
            if done or now - drawn_at > loop.sheet_seconds:
                sheet, drawn_at = draw(objective, ema, folder, clock["images_seen"]), now
            speed.tick(loop.batch)
            yield TrainStep(
                images_seen=clock["images_seen"],
                images=loop.images,
                losses=values,
                gradient=gradient,
                skipped=clock["skipped"],
                images_per_second=speed.value,
                saved=saved,
                sheet=sheet,
            )
    finally:
        if unsaved and not torn:
            state.save(checkpoint, model, ema, optims, clock)
        log.close()


def draw(objective: Objective, ema: EMA, folder: Path, images_seen: int) -> Path:
    """Draw the objective's sheet with the averaged weights; the training weights are put back afterwards."""
    model = objective.model
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    path = folder / "sheets" / f"{images_seen:010d}.png"
    path.parent.mkdir(exist_ok=True)
    try:
        ema.copy_to(model)
        model.eval()
        objective.draw(model).save(path)
    finally:
        model.load_state_dict(kept, strict=True)
        model.train()
    return path


def export(objective: Objective, ema: EMA, run: RunConfig, clock: dict[str, int], folder: Path) -> Path:
    """Write the averaged weights in bfloat16, with everything needed to use them and to repeat the run."""
    names = objective.published()
    averaged = {name: p for name, p in ema.state().items() if name in names}
    tensors = {name: p.to(torch.bfloat16) for name, p in averaged.items()}
    told = _without_places(to_dict(run))
    header = objective.header() | {"run": json.dumps(told), "clock": json.dumps(clock)}
    path = folder / "weights.safetensors"
    files.save(tensors, path, header)
    return path


def _without_places(table: dict[str, Any]) -> dict[str, Any]:
    """A configuration to publish: where things lay on this machine is of no use elsewhere."""
    return {
        name: _without_places(value) if isinstance(value, dict) else value
        for name, value in table.items()
        if name not in ("folder", "start", "detector", "codes")
    }


class Speed:
    """Pictures per second over the last twenty steps."""

    def __init__(self) -> None:
        self.times = [time.monotonic()]
        self.value = 0.0

    def tick(self, pictures: int) -> None:
        self.times = [*self.times[-20:], time.monotonic()]
        self.value = pictures * (len(self.times) - 1) / max(1e-9, self.times[-1] - self.times[0])


class Log:
    """The loss curve: a JSON line per step, and TensorBoard events where that is installed.

    A resumed run goes on after the step of `clock`: lines of steps that were lost with the process are taken
    out.
    """

    def __init__(self, folder: Path, clock: dict[str, int]) -> None:
        path = folder / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= clock["step"]]
        beside = path.with_suffix(".partial")
        beside.write_text("".join(kept))
        beside.replace(path)
        self.lines = path.open("a", buffering=1)  # whole lines reach the file, however the process ends
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board = None
        else:
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=clock["images_seen"] + 1)

    def write(self, clock: dict[str, int], losses: dict[str, float], gradient: float, factor: float) -> None:
        """One line; a value that is not finite is null in the file and left out of the board."""
        row = {**clock, **losses, "gradient": gradient, "rate": factor}
        shown = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self.lines.write(json.dumps(shown) + "\n")
        if self.board is not None:
            for name, value in shown.items():
                if value is not None:
                    self.board.add_scalar(name, value, clock["images_seen"])

    def close(self) -> None:
        self.lines.close()
        if self.board is not None:
            self.board.close()
