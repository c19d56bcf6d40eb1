"""The training loop, one for everything. It yields its steps; progress and stopping belong to the caller.

One step: micro-batches -> losses -> gradients -> weights -> their average -> log, and now and then a
checkpoint and a sheet.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.errors import ConfigError, WeightsError
from limner.train import going_on, parallel, report, results, state
from limner.train.config import ALONE, RunConfig, build
from limner.train.ema import EMA
from limner.train.log import Log
from limner.train.notes import UNWRITTEN, Notes
from limner.train.objectives import Blocks, Broken, Objective, Tuning
from limner.train.optim import optimizers, rate
from limner.train.parallel import Team
from limner.train.speed import Speed, peak
from limner.util.devices import autocast, pick_device, pick_precision
from limner.util.rng import mix

LossOf = Callable[[Any], dict[str, torch.Tensor]]
PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainStep:
    """What happened in one step."""

    images_seen: int
    images: int  # the end of the run
    losses: dict[str, float]  # by name, means over the micro-batches; empty when the step was skipped
    gradient: float  # global norm before clipping
    skipped: int  # steps so far whose loss or gradient was not finite, and which changed nothing
    images_per_second: float  # over the recent steps
    saved: Path | None  # a checkpoint that came into place in this step
    sheet: Path | None  # a sheet of samples drawn in this step
    written: tuple[Path, ...] = ()  # weights ready to be used, written with the checkpoint
    flops_per_second: float = 0.0  # of all processes; 0 where it could not be counted
    used: float = 0.0  # share of what the machine's matrix products reach, from 0 to 1
    waited: float = 0.0  # share of the recent time that went by waiting for data
    seconds_left: float = 0.0
    broken: int = 0  # samples so far that could not be read
    broken_samples: tuple[str, ...] = ()  # those of this step, each with the reason
    notes: tuple[str, ...] = ()  # what went wrong beside the training
    figures: dict[str, float] = field(default_factory=dict)  # of the evaluation, at the end
    report: Path | None = None  # written at the end


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """What a step leaves for others."""

    written: tuple[Path, ...] = ()
    sheet: Path | None = None
    figures: dict[str, float] = field(default_factory=dict)
    report: Path | None = None


def fit(run: RunConfig, folder: Path, *, resume: bool = False) -> Iterator[TrainStep]:
    """Train until `run.loop.images` pictures were seen; checkpoints and sheets go to `folder`.

    The data of step i follows from the seed and i alone, so a resumed run continues bit for bit on the CPU.
    Closing the iterator saves a checkpoint; under torchrun the last one that was due stays the last. Beside
    the checkpoints stands what the objective writes, usually weights.safetensors: the averaged weights in
    bfloat16 with the configuration in the header, ready to be drawn with. Where only this small file is left
    of a run, it is resumed from the averaged weights, with fresh optimisers. A run that died after its last
    checkpoint and before its report is resumed to one last `TrainStep`, which trains nothing and leaves them.

    Raises ConfigError for a setting that cannot be met, for a folder that holds another run and after too
    many steps in a row that were not finite; WeightsError when there is nothing that fits to resume, and when
    the end of the run cannot be written.
    """
    loop = run.loop
    device = parallel.own_device(pick_device(loop.device))
    if loop.precision not in PRECISIONS:
        raise ConfigError(f"loop.precision is {', '.join(PRECISIONS)}, got {loop.precision!r}.")
    precision = PRECISIONS[loop.precision] or pick_precision(device)
    if parallel.size() > 1 and run.objective in ALONE:
        raise ConfigError(f"[{run.objective}] trains in one process; start it without torchrun.")
    if parallel.size() > 1 and loop.compile:
        raise ConfigError("loop.compile is for one process; set loop.compile_blocks instead.")
    with parallel.team(device) as team:
        mine = team.mine(loop.micros)
        torch.manual_seed(loop.seed)
        objective = build(run, device)
        model = objective.model
        model.initialize(torch.Generator(device).manual_seed(loop.seed))
        blocks = objective.blocks() if isinstance(objective, Blocks) else []
        parallel.by_block(blocks, checkpointing=loop.checkpointing, compiled=loop.compile_blocks)
        team.spread(model, blocks, precision)
        loss_of: LossOf = torch.compile(objective.loss) if loop.compile else objective.loss
        optims = optimizers(model, run.optim)
        base_rates = [[group["lr"] for group in optim.param_groups] for optim in optims]
        ema = EMA(changing(objective), loop.ema)
        checkpoints = state.Checkpoints(folder, team)
        notes = Notes()
        clock = begin(run, folder, objective, checkpoints, ema, optims, notes, resume=resume)
        if clock["step"] and isinstance(objective, Broken):
            objective.broken()  # what is wrong from the start was counted with the first step
        if team.first:
            folder.mkdir(parents=True, exist_ok=True)
            going_on.keep(run, folder)
        speed = Speed(len(mine), peak(device, precision))
        log = Log(folder, clock, notes) if team.first else None
        saved_at = drawn_at = time.monotonic()
        in_a_row = 0  # steps that were not finite
        # Of a run that died between its last checkpoint and its report, only the end is left.
        late = clock["images_seen"] >= loop.images and not team.tell(going_on.ended(folder, clock))
        unsaved, torn = False, False  # steps since the last checkpoint; in the middle of changing the weights
        model.train()
        try:
            if late:
                last = finish(objective, ema, run, clock, folder, team, log, notes)
                yield TrainStep(
                    images_seen=clock["images_seen"],
                    images=loop.images,
                    losses={},
                    gradient=0.0,
                    skipped=clock["skipped"],
                    images_per_second=0.0,
                    saved=None,
                    sheet=last.sheet,
                    written=last.written,
                    broken=clock["broken"],
                    notes=notes.take(),
                    figures=last.figures,
                    report=last.report,
                )
            while clock["images_seen"] < loop.images:
                losses = gradients(objective, loss_of, run, clock["step"], precision, team, speed)
                norm = torch.nn.utils.clip_grad_norm_(ema.parameters.values(), run.optim.clip)
                gradient = float(parallel.whole(norm))
                wrong = [name for name, value in losses.items() if not math.isfinite(value)]
                finite = math.isfinite(gradient) and not wrong
                factor = rate(run.optim, clock["images_seen"], loop.images)
                unsaved, torn = True, True
                clock["step"] += 1
                clock["images_seen"] += loop.batch
                if finite:
                    in_a_row = 0
                    for optim, rates in zip(optims, base_rates, strict=True):
                        for group, lr in zip(optim.param_groups, rates, strict=True):
                            group["lr"] = lr * factor
                        optim.step()
                    ema.update(clock["images_seen"], loop.batch)
                else:
                    clock["skipped"] += 1
                    in_a_row += 1
                torn = False
                model.zero_grad()
                broken = team.gather(objective.broken()) if isinstance(objective, Broken) else []
                broken = list(dict.fromkeys(broken))  # what is wrong from the start, all have met
                clock["broken"] += len(broken)
                speed.tick()
                values = losses if finite else {}
                if log is not None:
                    times = speed.told(loop.batch, team.size)
                    log.write(clock, values | {"gradient": gradient, "rate": factor} | times, broken)
                if in_a_row == loop.max_skipped:
                    what = " and ".join(wrong) or "the gradient"
                    raise ConfigError(
                        f"{in_a_row} steps in a row were skipped: {what} was not finite. Nothing of them is "
                        "in the weights; lower the learning rates, or set loop.precision = float32."
                    )
                done = clock["images_seen"] >= loop.images
                now = time.monotonic()
                due = now - saved_at > loop.checkpoint_seconds and not checkpoints.busy
                save, show = team.agree(done or due, done or now - drawn_at > loop.sheet_seconds)
                saved = None
                left = Left()
                with notes.of("a checkpoint"):
                    saved = checkpoints.finished(wait=save)
                if save:
                    saved_at, complete = now, False
                    with notes.of("a checkpoint"):
                        checkpoints.begin(ema, optims, clock)
                        saved = checkpoints.finished(wait=done) or saved
                        if not done:
                            written = results.export(objective, ema, run, clock, folder, team)
                            left = Left(written=tuple(written))
                        complete = True
                    unsaved = not complete
                    if done and not complete:
                        raise WeightsError(
                            "; ".join(notes.take()).replace("Training goes on with", "There is")
                        )
                if show:
                    drawn_at = now
                if done:
                    left = finish(objective, ema, run, clock, folder, team, log, notes)
                elif show:
                    picture = results.draw(objective, ema, team)
                    if log is not None:
                        left = replace(left, sheet=log.sheet(picture, clock["images_seen"]))
                yield TrainStep(
                    images_seen=clock["images_seen"],
                    images=loop.images,
                    losses=values,
                    gradient=gradient,
                    skipped=clock["skipped"],
                    images_per_second=loop.batch / speed.seconds,
                    saved=saved,
                    sheet=left.sheet,
                    written=left.written,
                    flops_per_second=speed.flops_per_second * team.size,
                    used=speed.used,
                    waited=speed.waited,
                    seconds_left=(loop.images - clock["images_seen"]) / loop.batch * speed.seconds,
                    broken=clock["broken"],
                    broken_samples=tuple(broken),
                    notes=notes.take(),
                    figures=left.figures,
                    report=left.report,
                )
        finally:
            try:
                if unsaved and not torn and team.size == 1:
                    checkpoints.begin(ema, optims, clock)
            except UNWRITTEN as error:
                raise WeightsError(
                    f"the last steps could not be saved: {error}. Earlier ones are."
                ) from error
            finally:
                checkpoints.close()
                if log is not None:
                    log.close()


def finish(
    objective: Objective,
    ema: EMA,
    run: RunConfig,
    clock: state.Clock,
    folder: Path,
    team: Team,
    log: Log | None,
    notes: Notes,
) -> Left:
    """Leave what comes at the end of a run: weights, a last sheet, the evaluation, the report.

    Raises WeightsError where the weights cannot be written.
    """
    try:
        written = results.export(objective, ema, run, clock, folder, team)
    except UNWRITTEN as error:
        raise WeightsError(
            f"the run came to its end, and its weights could not be written: {error}. Its last checkpoint is "
            "whole: make room, and go on with --resume."
        ) from error
    picture = results.draw(objective, ema, team)
    sheet = None if log is None else log.sheet(picture, clock["images_seen"])
    figures = results.evaluate(objective, ema, team)
    page: Path | None = None
    if team.first:
        with notes.of("the report"):
            page = report.write(folder, figures)
            going_on.end(folder, clock, [*written, page])
    return Left(written=tuple(written), sheet=sheet, figures=figures, report=page)


def begin(
    run: RunConfig,
    folder: Path,
    objective: Objective,
    checkpoints: state.Checkpoints,
    ema: EMA,
    optims: state.Optimizers,
    notes: Notes,
    *,
    resume: bool,
) -> state.Clock:
    """Fill weights, average and moments with what the run begins or goes on with; returns its clock.

    What has changed in the settings of a run that goes on is noted; ConfigError where it is another run.
    """
    clock = {"step": 0, "images_seen": 0, "skipped": 0, "broken": 0}
    start, small = Path(run.loop.start), folder / "weights.safetensors"
    held, published = checkpoints.team.tell((bool(checkpoints.names()), small.exists()))
    again = resume or (held and parallel.restarted())
    if again and (held or published):
        for change in going_on.changed(run, folder):
            notes.add(change)
    if again and held:
        loaded, told = checkpoints.load(ema, optims)
        clock |= loaded
        for note in told:
            notes.add(note)
    elif resume and published:
        clock |= state.go_on_from(small, ema, objective.published())
    elif resume:
        raise WeightsError(f"{folder} has no checkpoint of a run to go on with; start it without --resume.")
    elif held or published:
        raise ConfigError(f"{folder} already holds a run; continue it with --resume, or choose another.")
    elif run.loop.start:
        names = objective.inherited() if isinstance(objective, Tuning) else objective.published()
        state.start_from(start, ema, names)
    if isinstance(objective, Tuning):
        if not run.loop.start:
            raise ConfigError("this run tunes what another has learned; name its weights by loop.start.")
        objective.begin(start, ema.state())
    return clock


def gradients(
    objective: Objective,
    loss_of: LossOf,
    run: RunConfig,
    step: int,
    precision: torch.dtype,
    team: Team,
    speed: Speed,
) -> dict[str, float]:
    """Fill the gradients of step `step`: means over its micro-batches. Returns the parts of the loss.

    Micro-batch j of step i is the (i * micros + j)th of the run, and its data follows from this number and
    the seed; process r of n takes those with j = r (mod n).
    """
    loop = run.loop
    losses: dict[str, float] = {}
    for micro in team.mine(loop.micros):
        index = step * loop.micros + micro
        with speed.waiting():
            batch = objective.batch(loop.batch // loop.micros, mix(loop.seed, index) % 2**63, index)
        with speed.counting():
            with autocast(team.device, precision):
                parts = team.run(partial(loss_of, batch))
                total = torch.stack(list(parts.values())).sum() / loop.micros
            total.backward()
        for name, part in parts.items():
            losses[name] = losses.get(name, 0.0) + float(part.detach()) / loop.micros
    team.gather_gradients()
    return team.sums(losses)


def changing(objective: Objective) -> dict[str, Tensor]:
    """The parameters that a run changes, by name: what asks for gradients, and what the objective publishes
    (codes move without gradients). They are averaged and saved; the rest of the network stays as it came."""
    published = objective.published()
    named = {n: p for n, p in objective.model.named_parameters() if p.requires_grad or n in published}
    if not any(p.requires_grad for p in named.values()):
        raise ConfigError("nothing in this network asks for gradients, so there is nothing to train.")
    return named
