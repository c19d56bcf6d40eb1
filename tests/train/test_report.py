"""What a run shows: its page, its speed, its learning rates, and what it says of broken things."""

import errno
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from limner.errors import ConfigError, WeightsError
from limner.train import going_on, report, results, speed, state
from limner.train import loop as loop_file
from limner.train.loop import TrainStep, fit
from limner.train.optim import OptimConfig, rate
from limner.train.report import curve, page, thinned
from limner.train.speed import Counter, Speed, peak

from .toy import Toy, toy_run


class Rich(Toy):
    """With everything that an objective may bring: broken samples, an evaluation, files of its own."""

    def broken(self) -> list[str]:
        return ["a <b>.jpg: truncated"] if len(self.read) in (2, 3) else []

    def evaluate(self) -> dict[str, float]:
        assert not self.model.training
        return {"rightness": 0.25, "weight": float(self.model.first.weight.detach().sum())}

    def write(self, folder: Path, averaged: Mapping[str, Tensor], header: Mapping[str, str]) -> list[Path]:
        told = {"names": sorted(averaged), "header": sorted(header)}
        (folder / "own.json").write_text(json.dumps(told))
        return [folder / "own.json"]


def trained(made: Toy, folder: Path, monkeypatch: pytest.MonkeyPatch, **loop: object) -> list[TrainStep]:
    monkeypatch.setattr(loop_file, "build", lambda run, device: made)
    return list(fit(toy_run(**loop), folder))  # type: ignore[arg-type]


def test_a_finished_run_leaves_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Rich()
    steps = trained(made, tmp_path, monkeypatch, sheet_seconds=0.0)
    last = steps[-1]
    assert [step.broken for step in steps] == [0, 1, 2, 2, 2, 2]
    assert steps[1].broken_samples == ("a <b>.jpg: truncated",)
    averaged = state.Checkpoints(tmp_path, loop_file.Team(torch.device("cpu"))).names()[0]
    tensors = load_file(tmp_path / "checkpoints" / averaged / "state.safetensors")
    assert last.figures["weight"] == pytest.approx(float(tensors["ema.first.weight"].sum()))
    assert last.figures["rightness"] == 0.25
    assert made.model.training
    assert last.written == (tmp_path / "own.json",)
    told = json.loads((tmp_path / "own.json").read_text())
    assert told["names"] == sorted(made.published())
    assert told["header"] == ["clock", "run", "toy"]
    assert not (tmp_path / "weights.safetensors").exists()
    assert last.report == tmp_path / "report.html"
    page = last.report.read_text()
    for text in ("<h1>toy</h1>", "rightness", "0.25", "a &lt;b&gt;.jpg: truncated", "24 pictures seen"):
        assert text in page
    assert page.count("<svg") >= 4  # square, size, gradient, rate
    assert page.count("data:image/png;base64,") == 6
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|<script|@import", page)
    assert "<b>" not in page
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[1]["samples"] == ["a <b>.jpg: truncated"]
    assert "samples" not in rows[0]
    assert all(row["pictures/s"] > 0 and row["FLOP/s"] > 0 and 0 < row["waiting"] < 1 for row in rows)


def test_frozen_weights_are_neither_saved_nor_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(Toy(), tmp_path, monkeypatch)
    held = load_file(tmp_path / "checkpoints" / "0000000024" / "state.safetensors")
    assert "model.scale" in held
    assert not [name for name in held if "frozen" in name]


def test_too_many_skipped_steps_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Toy()
    plain = made.loss

    def loss(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        bad = len(made.read) in (2, 4, 5, 6)  # one that is forgiven, then three in a row
        return {
            name: part * (math.nan if bad and name == "size" else 1) for name, part in plain(batch).items()
        }

    made.loss = loss  # type: ignore[method-assign]
    with pytest.raises(
        ConfigError, match=r"3 steps in a row were skipped: size was not finite.*learning rates"
    ):
        trained(made, tmp_path, monkeypatch, max_skipped=3, images=80)
    clock = json.loads((tmp_path / "checkpoints" / "0000000024" / "whole.json").read_text())["clock"]
    assert clock == {"step": 6, "images_seen": 24, "skipped": 4, "broken": 0}
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 6


def full(monkeypatch: pytest.MonkeyPatch, when: set[int]) -> None:
    """No room for the checkpoints of these numbers of pictures."""
    put = state.Checkpoints._put_in_place

    def putting(self: state.Checkpoints, beside: Path, clock: dict[str, int]) -> Path:
        if clock["images_seen"] in when:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(self, beside, clock)

    monkeypatch.setattr(state.Checkpoints, "_put_in_place", putting)


def test_a_full_disk_is_told_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, {12, 16})
    steps = trained(Toy(), tmp_path, monkeypatch, checkpoint_seconds=0.0)
    assert [step.saved and step.saved.name for step in steps] == [
        *("0000000004", "0000000008", None, None, "0000000020", "0000000024")
    ]
    assert [len(step.notes) for step in steps] == [0, 0, 1, 0, 0, 0]  # said once
    assert "a checkpoint could not be written: [Errno 28] No space left on device" in steps[2].notes[0]


def test_a_run_whose_end_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, {24})
    with pytest.raises(WeightsError, match="No space left on device"):
        trained(Toy(), tmp_path, monkeypatch, checkpoint_seconds=0.0)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "0000000020"
    monkeypatch.undo()
    monkeypatch.setattr(loop_file, "build", lambda run, device: Toy())
    assert [step.images_seen for step in fit(toy_run(), tmp_path, resume=True)] == [24]


@pytest.mark.parametrize("where", ["export", "draw", "report"])
def test_a_run_that_dies_at_its_end_is_resumed_to_its_weights_and_its_report(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last checkpoint, whatever of the rest was not done yet is done when the run goes on."""

    def dying(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop_file, "build", lambda run, device: Rich())
    with monkeypatch.context() as broken:
        if where == "report":
            broken.setattr(loop_file.report, "write", dying)
        else:
            broken.setattr(loop_file.results, where, dying)
        with pytest.raises(KeyboardInterrupt):
            list(fit(toy_run(), tmp_path))
    assert (tmp_path / "checkpoints" / "latest").read_text() == "0000000024"
    (last,) = fit(toy_run(), tmp_path, resume=True)
    assert (last.images_seen, last.losses) == (24, {})
    assert last.written == (tmp_path / "own.json",)
    assert last.figures["rightness"] == 0.25
    assert last.report == tmp_path / "report.html"
    assert list(fit(toy_run(), tmp_path, resume=True)) == []
    (tmp_path / "own.json").unlink()
    assert len(list(fit(toy_run(), tmp_path, resume=True))) == 1
    assert len(list(fit(toy_run(images=32), tmp_path, resume=True))) == 2


def test_a_run_goes_on_as_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(Toy(), tmp_path, monkeypatch)
    first = (tmp_path / "run.json").read_text()
    for wrong, told in (
        (toy_run(seed=4), r"loop.seed was 3 and is 4"),
        (toy_run(batch=8), r"loop.batch was 4 and is 8"),
        (toy_run(micros=2), r"loop.micros was 1 and is 2"),
    ):
        with pytest.raises(ConfigError, match=told):
            next(fit(wrong, tmp_path, resume=True))
    assert (tmp_path / "run.json").read_text() == first
    other = toy_run(images=28)
    (step,) = fit(replace(other, optim=replace(other.optim, adam_lr=1e-5)), tmp_path, resume=True)
    assert list(step.notes) == [f"optim.adam_lr was {other.optim.adam_lr} and is 1e-05"]
    held = json.loads((tmp_path / "run.json").read_text())
    del held["optim"]["clip"]  # as an earlier version had written it
    (tmp_path / "run.json").write_text(json.dumps(held))
    more = toy_run(images=32)
    more = replace(more, optim=replace(more.optim, adam_lr=1e-5, clip=OptimConfig().clip))
    (step,) = fit(more, tmp_path, resume=True)
    assert list(step.notes) == []


def test_run_json_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on.keep(toy_run(), tmp_path)
    first = (tmp_path / "run.json").read_text()

    def full(*_: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(going_on.json, "dump", full)
    with pytest.raises(OSError, match="No space"):
        going_on.keep(toy_run(seed=4), tmp_path)
    assert (tmp_path / "run.json").read_text() == first


def test_what_is_published_says_no_places_and_all_the_rest() -> None:
    told = {
        "name": "mine",
        "loop": {"start": "/home/me/my runs/a.safetensors", "images": 3},
        "optim": {"clip": 1.0},
        "diffusion": {"model": "/home/me/my models/sd", "data": {"folder": "~/photos", "caption": "a/b"}},
        "lora": {"start": "dog", "token": "sks"},
        "control": {"conditions": "/home/me/poses"},
        "gan_upscaler": {"features": "/home/me/vgg", "compact": {"features": 64}, "prompts": ["a / b"]},
    }
    assert results._without_places(told) == {
        "name": "mine",
        "loop": {"images": 3},
        "optim": {"clip": 1.0},
        "diffusion": {"model": "sd", "data": {"caption": "a/b"}},
        "lora": {"start": "dog", "token": "sks"},
        "control": {},
        "gan_upscaler": {"compact": {"features": 64}, "prompts": ["a / b"]},
    }


def test_what_was_wrong_from_the_start_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lame(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.met = ["a.jpg: truncated"]

        def broken(self) -> list[str]:
            met, self.met = self.met, []
            return met

    monkeypatch.setattr(loop_file, "build", lambda run, device: Lame())
    assert [step.broken for step in fit(toy_run(images=8), tmp_path)] == [1, 1]
    assert [step.broken for step in fit(toy_run(images=12), tmp_path, resume=True)] == [1]


def test_foreign_pictures_among_the_sheets_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(Toy(), tmp_path, monkeypatch)
    Image.new("RGB", (4, 4)).save(tmp_path / "sheets" / "best of.png")
    assert page(tmp_path, {}).count("data:image/png;base64,") == 1


def test_nothing_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Toy()
    made.model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        trained(made, tmp_path, monkeypatch)


def test_operations_are_counted_by_the_formula_and_change_nothing() -> None:
    def work() -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 8, 16, generator=generator, requires_grad=True)
        w = torch.randn(16, 16, generator=generator)
        y = torch.nn.functional.scaled_dot_product_attention(x, x, x)
        out = torch.nn.functional.silu(y @ w)
        out.square().sum().backward()
        assert x.grad is not None
        return out.detach(), x.grad

    plain = work()
    with Counter() as counter:
        counted = work()
    assert all(torch.equal(a, b) for a, b in zip(plain, counted, strict=True))
    product = 2 * 48 * 16 * 16  # y @ w; once more for the gradient of y
    attention = 2 * 2 * 3 * (8 * 16 * 8) * 2  # q k^T and its product with v, for 2 x 3 heads
    assert counter.total == 2 * product + attention + attention * 5 // 2  # backward: five products for two


def test_the_clocks_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    clocks = Speed(micros=2, peak=1000.0)
    clocks.flops = 100
    for _ in range(30):
        with clocks.waiting():
            now[0] += 0.25
        now[0] += 0.75
        clocks.tick()
    assert clocks.seconds == pytest.approx(1.0)
    assert clocks.waited == pytest.approx(0.25)
    assert clocks.flops_per_second == pytest.approx(200.0)
    assert clocks.used == pytest.approx(0.2)
    assert clocks.told(8, 3) == pytest.approx(
        {"pictures/s": 8, "FLOP/s": 600, "of peak": 0.2, "waiting": 0.25}
    )


def test_the_peak_of_this_machine() -> None:
    assert peak(torch.device("cpu"), torch.float32) > 1e8


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.5, 0.0]),
        ("cosine", [1.0, 0.5, 0.0]),
    ],
)
def test_learning_rates_as_users_know_them(schedule: str, factors: list[float]) -> None:
    config = OptimConfig(schedule=schedule, warmup=100)
    assert rate(config, 49, 1100) == pytest.approx(0.5)
    assert [rate(config, seen, 1100) for seen in (100, 600, 1100)] == pytest.approx(factors)
    if schedule == "cosine":
        assert rate(config, 350, 1100) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_a_schedule_that_is_none() -> None:
    with pytest.raises(ValueError, match="schedule is trapezoid, constant, linear, cosine, got 'step'"):
        OptimConfig(schedule="step")


def test_curves_keep_their_ends_and_their_range() -> None:
    points = [(float(x), float(x % 7)) for x in range(5000)]
    few = thinned(points)
    assert len(few) <= 400
    assert few[-1][0] == 4999
    drawn = curve([(0.0, 1.0), (5.0, 3.0), (10.0, 2.0)], "a & b")
    assert 'points="0.0,175.0 320.0,15.0 640.0,95.0"' in drawn
    assert "a &amp; b: 1 at the start, 2 at the end" in drawn
    assert "<polyline" in curve([(1.0, 5.0)], "one point")


def test_a_page_of_a_run_that_took_no_step(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": "none"}')
    assert "<h1>none</h1>" in report.page(tmp_path, {})
