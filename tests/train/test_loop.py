import json
import os
import signal
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from limner.errors import ConfigError, WeightsError
from limner.train import loop as loop_file
from limner.train.config import RunConfig, build, read
from limner.train.loop import TrainStep, fit
from limner.train.optim import optimizers
from limner.train.speed import TIMES
from limner.weights.detector import load_detector

# What the loop does whatever the objective; the upscaler's steps are the shortest.
of_one = pytest.mark.parametrize("run", ["upscale"], indirect=True)


def checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    path = folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text()
    clock = json.loads((path / "whole.json").read_text())["clock"]
    return load_file(path / "state.safetensors"), json.dumps(clock)


def log(folder: Path) -> list[dict[str, float]]:
    """The lines of the log without what the clock says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def stop_after(steps: int, run: RunConfig, folder: Path, *, resume: bool = False) -> list[TrainStep]:
    """Close the iterator as Ctrl-C does."""
    iterator = fit(run, folder, resume=resume)
    taken = [next(iterator) for _ in range(steps)]
    iterator.close()  # type: ignore[attr-defined]
    return taken


def assert_equal(first: Path, second: Path) -> None:
    """Parameters, averages, optimiser state, clock and log, bit for bit."""
    (tensors, clock), (others, other_clock) = checkpoint(first), checkpoint(second)
    assert clock == other_clock
    assert tensors.keys() == others.keys()
    assert any(name.startswith("optim/") for name in tensors)
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
    assert log(first) == log(second)


def test_a_resumed_run_continues_bit_for_bit(run: RunConfig, tmp_path: Path) -> None:
    through, halves = tmp_path / "through", tmp_path / "halves"
    steps = list(fit(run, through))
    assert [step.images_seen for step in steps] == [4, 8, 12, 16, 20, 24]
    stop_after(3, run, halves)
    assert [step.images_seen for step in fit(run, halves, resume=True)] == [16, 20, 24]
    assert_equal(through, halves)
    weights = [load_file(folder / "weights.safetensors") for folder in (through, halves)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@of_one
def test_a_run_repeats_and_its_seed_matters(run: RunConfig, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        stop_after(2, replace(run, loop=replace(run.loop, seed=seed)), tmp_path / name)
    assert_equal(tmp_path / "a", tmp_path / "b")
    assert log(tmp_path / "a") != log(tmp_path / "c")


def test_what_a_step_reports(run: RunConfig, tmp_path: Path) -> None:
    steps = list(fit(run, tmp_path))
    for step in steps:
        assert step.images == 24
        assert step.skipped == 0
        assert step.gradient > 0
        assert step.images_per_second > 0
        assert (
            set(step.losses)
            == {
                "denoise": {"velocity", "label"},
                "upscale": {"pixels", "edges"},
                "detect": {"centre", "offset", "extent", "class", "colour", "picture"},
            }["denoise" if run.denoise else "upscale" if run.upscale else "detect"]
        )
    assert [step.saved for step in steps] == [None] * 5 + [tmp_path / "checkpoints" / "0000000024"]
    assert [step.sheet is None for step in steps] == [True] * 5 + [False]
    assert steps[-1].sheet is not None
    with Image.open(steps[-1].sheet) as sheet:
        assert min(sheet.size) > 32
    assert [row["step"] for row in log(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert json.loads((tmp_path / "run.json").read_text())["loop"]["images"] == 24


def run_folder(run: RunConfig) -> str:
    objective = run.denoise or run.upscale or run.detect
    assert objective is not None
    return objective.data.folder


def test_weights_say_what_they_are(run: RunConfig, tmp_path: Path) -> None:
    list(fit(run, tmp_path))
    path = tmp_path / "weights.safetensors"
    with safe_open(path, "pt") as file:
        header = {key: json.loads(value) for key, value in file.metadata().items()}
    tensors = load_file(path)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert header["run"]["name"] == "test"
    assert str(Path(run_folder(run)).parent) not in json.dumps(header)
    assert header["clock"]["images_seen"] == 24
    assert header["sources"]["flat"]["licence"] == "MIT"
    averaged, _ = checkpoint(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, averaged[f"ema.{name}"].to(torch.bfloat16))
    if run.denoise is not None:
        network = header["network"]["PixelDiT"]
        assert header["objects"] == ["apple", "cat", "tree", "balloon", "house", "star"]
        assert header["styles"] == ["flat", "glossy"]
        assert {"apple", "left of", "<pad>"} <= set(header["vocabulary"])
        assert network["vocabulary"] == len(header["vocabulary"]) == len(tensors["text.token.weight"])
        assert network["labels"] == 0
        assert not any(name.startswith("label.") for name in tensors)
    elif run.upscale is not None:
        assert header["network"]["Upscaler"]["factor"] == 2
        assert (header["size"], header["large"]) == (12, 32)
    else:
        detector = load_detector(path)
        assert detector.names.objects == ("apple", "cat", "tree", "balloon", "house", "star")
        assert detector.config.size == 64


def spoiled(run: RunConfig, monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """Make the loss of some steps (counted from 0) not a number."""

    def building(config: RunConfig, device: torch.device) -> object:
        objective = build(config, device)
        plain, calls = objective.loss, iter(range(100))

        def loss(batch: object) -> dict[str, torch.Tensor]:
            factor = float("nan") if next(calls) in bad else 1.0
            return {name: factor * part for name, part in plain(batch).items()}

        objective.loss = loss  # type: ignore[method-assign]
        return objective

    monkeypatch.setattr(loop_file, "build", building)


@of_one
def test_steps_that_are_not_finite_are_counted_and_change_nothing(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(2, run, tmp_path / "two")
    spoiled(run, monkeypatch, {2, 3})
    steps = stop_after(4, run, tmp_path / "four")
    assert [step.skipped for step in steps] == [0, 0, 1, 2]
    assert steps[3].losses == {}
    (before, _), (after, clock) = checkpoint(tmp_path / "two"), checkpoint(tmp_path / "four")
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert json.loads(clock) == {"step": 4, "images_seen": 16, "skipped": 2, "broken": 0}
    rows = log(tmp_path / "four")
    assert rows[3]["gradient"] is None
    assert "NaN" not in (tmp_path / "four" / "log.jsonl").read_text()
    spoiled(run, monkeypatch, set())
    last = list(fit(run, tmp_path / "four", resume=True))[-1]
    assert last.skipped == 2
    assert last.losses


@of_one
def test_a_run_is_never_overwritten(run: RunConfig, tmp_path: Path) -> None:
    stop_after(1, run, tmp_path)
    before = checkpoint(tmp_path)[1]
    with pytest.raises(ConfigError, match="already holds a run"):
        next(fit(run, tmp_path))
    assert checkpoint(tmp_path)[1] == before


@of_one
def test_nothing_to_resume(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no checkpoint of a run"):
        next(fit(run, tmp_path, resume=True))


@of_one
def test_a_finished_run_resumes_to_nothing(run: RunConfig, tmp_path: Path) -> None:
    list(fit(run, tmp_path))
    before = checkpoint(tmp_path)[1]
    assert list(fit(run, tmp_path, resume=True)) == []
    assert checkpoint(tmp_path)[1] == before


@of_one
def test_stopping_before_the_first_step_leaves_no_checkpoint(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = build(run, torch.device("cpu"))
    monkeypatch.setattr(type(objective), "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(fit(run, tmp_path))
    assert not (tmp_path / "checkpoints").exists()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@of_one
def test_an_interrupt_while_weights_change_keeps_the_last_whole_step(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(2, run, tmp_path / "whole")
    stop_after(2, run, tmp_path / "torn")
    monkeypatch.setattr(loop_file.EMA, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(fit(run, tmp_path / "torn", resume=True))
    assert_equal(tmp_path / "whole", tmp_path / "torn")


@of_one
def test_an_interrupt_while_a_sheet_is_drawn_keeps_the_training_weights(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(3, run, tmp_path / "plain")
    objective = build(run, torch.device("cpu"))
    monkeypatch.setattr(type(objective), "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(fit(replace(run, loop=replace(run.loop, images=12)), tmp_path / "drawing"))
    weights, kept = checkpoint(tmp_path / "plain")[0], checkpoint(tmp_path / "drawing")[0]
    moving = [name for name in weights if name.startswith("model.")]
    assert any(not torch.equal(kept[name], kept[name.replace("model.", "ema.", 1)]) for name in moving)


RUN = """
name = "killed"
[loop]
images = 400_000
batch = 2
device = "cpu"
precision = "float32"
checkpoint_seconds = 0
[denoise.data]
folder = "{atlas}"
[denoise.model]
size = 8
patch = 4
width = 32
depth = 2
heads = 2
bottleneck = 8
text_depth = 1
head_channels = 4
"""


def told(path: Path, folder: Path, seen: Connection) -> None:
    """A run that says how far it is."""
    torch.set_num_threads(1)
    for step in fit(read(path), folder):
        seen.send(step.images_seen)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of threads; none holds a lock
def test_kill_9_at_any_moment_leaves_a_run_that_resumes(atlas_folder: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "run.toml", tmp_path / "out"
    path.write_text(RUN.format(atlas=atlas_folder))
    fork = get_context("fork")
    here, there = fork.Pipe(duplex=False)
    child = fork.Process(target=told, args=(path, folder, there), daemon=True)
    child.start()
    assert here.poll(100)
    seen = [here.recv() for _ in range(5)]
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(100)
    assert seen == [2, 4, 6, 8, 10]
    saved = json.loads(checkpoint(folder)[1])
    assert saved["images_seen"] >= 8
    step = stop_after(1, read(path), folder, resume=True)[0]
    assert step.images_seen == saved["images_seen"] + 2
    assert [row["step"] for row in log(folder)] == list(range(1, saved["step"] + 2))


@of_one
def test_a_log_line_cut_short_by_the_kill_is_dropped(run: RunConfig, tmp_path: Path) -> None:
    stop_after(2, run, tmp_path)
    whole = log(tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(json.dumps({**whole[-1], "step": 3}) + '\n{"step": 4, "ima')
    stop_after(1, run, tmp_path, resume=True)
    rows = log(tmp_path)
    assert rows[:2] == whole
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[2]["images_seen"] == 12


@of_one
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"precision": "float16"}, "auto, float32, bfloat16, got 'float16'"),
        ({"device": "cuda:99"}, "no device"),
        ({"ema": 0.5}, "between 0 and 0.28, got 0.5"),
    ],
)
def test_settings_that_cannot_be_met(
    run: RunConfig, tmp_path: Path, change: dict[str, str | float], said: str
) -> None:
    broken = replace(run, loop=replace(run.loop, **change))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said):
        next(fit(broken, tmp_path))


def test_bfloat16_runs(run: RunConfig, tmp_path: Path) -> None:
    steps = stop_after(2, replace(run, loop=replace(run.loop, precision="bfloat16")), tmp_path)
    assert steps[-1].skipped == 0
    assert {t.dtype for name, t in checkpoint(tmp_path)[0].items()} == {torch.float32}


@of_one
def test_checkpoints_and_sheets_come_by_the_clock(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(float(10 * tick) for tick in range(10_000))
    monkeypatch.setattr(loop_file.time, "monotonic", lambda: next(seconds))
    often = replace(run, loop=replace(run.loop, checkpoint_seconds=1.0, sheet_seconds=25.0))
    steps = stop_after(5, often, tmp_path)
    assert all(step.saved for step in steps)
    assert 0 < sum(step.sheet is not None for step in steps) < 5


def test_one_batch_is_learned_by_heart(run: RunConfig) -> None:
    if run.upscale is not None:
        wider = replace(run.upscale.model, channels=48, depth=4)
        run = replace(run, upscale=replace(run.upscale, model=wider))
    objective = build(run, torch.device("cpu"))
    model = objective.model
    model.initialize(torch.Generator().manual_seed(0))
    batch = objective.batch(2, 1)
    optims = optimizers(model, replace(run.optim, muon_lr=0.01, adam_lr=0.01, weight_decay=0.0))
    totals: list[float] = []
    for _ in range(400):
        total = torch.stack(list(objective.loss(batch).values())).sum()
        totals.append(total.item())
        if totals[-1] < totals[0] / 5:
            return
        total.backward()
        for optim in optims:
            optim.step()
            optim.zero_grad()
    pytest.fail(f"the loss fell from {totals[0]:.3f} to {totals[-1]:.3f} only")


@of_one
def test_a_run_may_start_from_the_weights_of_another(run: RunConfig, tmp_path: Path) -> None:
    list(fit(run, tmp_path / "first"))
    weights = tmp_path / "first" / "weights.safetensors"
    still = replace(run.optim, muon_lr=0.0, adam_lr=0.0)
    stop_after(1, replace(run, optim=still, loop=replace(run.loop, start=str(weights))), tmp_path / "second")
    second, published = checkpoint(tmp_path / "second")[0], load_file(weights)
    for name, tensor in published.items():
        assert torch.equal(second[f"model.{name}"], tensor.float())
