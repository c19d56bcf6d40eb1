"""Real processes over gloo: forked, tiny networks, so that the default suite can afford them."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limner.errors import ConfigError
from limner.train import loop as loop_file
from limner.train import parallel, state
from limner.train.loop import fit
from limner.train.parallel import Team, by_block, like, whole

from .toy import Toy, in_processes, toy_run, train_toy

EXACT = ("step", "images_seen", "skipped", "broken", "square", "size", "rate")


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def curve(folder: Path) -> list[dict[str, float]]:
    return [{name: line[name] for name in EXACT} for line in lines(folder)]


def norms(folder: Path) -> list[float]:
    return [line["gradient"] for line in lines(folder)]


def die_at(seen: int) -> None:
    """kill -9 by one's own hand, once so many pictures were seen."""
    begin = state.Checkpoints.begin

    def saving(self: state.Checkpoints, *args: object) -> None:
        if args[-1]["images_seen"] == seen:  # type: ignore[index]
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, *args)  # type: ignore[arg-type]

    state.Checkpoints.begin = saving  # type: ignore[method-assign, assignment]


def dying(run: object, folder: Path, seen: int) -> None:
    die_at(seen)
    train_toy(run, folder)  # type: ignore[arg-type]


def test_one_process_two_and_a_killed_one_resumed_by_two(tmp_path: Path) -> None:
    """The same curve and weights, bit for bit; the norm, which is summed in another order, to 1e-5."""
    run = toy_run(micros=2, checkpoint_seconds=0.0)
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    assert in_processes(1, partial(train_toy, run, one)) == [0]
    assert in_processes(2, partial(train_toy, run, two)) == [0, 0]
    assert in_processes(1, partial(dying, run, killed, 12)) == [-signal.SIGKILL]
    assert (killed / "checkpoints" / "latest").read_text() == "0000000008"
    assert in_processes(2, partial(train_toy, run, killed, resume=True)) == [0, 0]
    assert len(curve(one)) == 6
    for other in (two, killed):
        assert curve(other) == curve(one)
        torch.testing.assert_close(norms(other), norms(one), rtol=1e-5, atol=0.0)
        weights = [load_file(folder / "weights.safetensors") for folder in (one, other)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        sheets = [(folder / "sheets" / "0000000024.png").read_bytes() for folder in (one, other)]
        assert sheets[0] == sheets[1]
    shards = sorted(path.name for path in (two / "checkpoints" / "0000000024").glob("*.safetensors"))
    assert len(shards) == 2
    assert (two / "report.html").is_file()

    # And back: what two have saved, one goes on with.
    longer = toy_run(images=32, micros=2)
    assert in_processes(1, partial(train_toy, longer, two, resume=True)) == [0]
    assert [line["step"] for line in lines(two)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_micro_batches_add_up_to_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Toy] = []
    monkeypatch.setattr(loop_file, "build", lambda run, device: made.append(Toy()) or made[-1])
    list(fit(toy_run(images=12, batch=6, micros=3), tmp_path))
    assert made[0].read == [(2, index) for index in range(6)]

    toy = Toy()
    toy.model.initialize(torch.Generator().manual_seed(3))
    run = toy_run(batch=6, micros=3)
    batches = [toy.batch(2, loop_file.mix(3, index) % 2**63) for index in range(3)]
    together = toy.loss((torch.cat([x for (x,) in batches]),))
    sum(together.values()).backward()  # type: ignore[union-attr]
    expected = [p.grad.clone() for p in toy.model.parameters() if p.grad is not None]
    toy.model.zero_grad()
    team = Team(torch.device("cpu"))
    told = loop_file.gradients(toy, toy.loss, run, 0, torch.float32, team, loop_file.Speed())
    found = [p.grad for p in toy.model.parameters() if p.grad is not None]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(told, {name: float(part.detach()) for name, part in together.items()})


def test_checkpointed_blocks_give_the_same_gradients_and_keep_less() -> None:
    def gradients(toy: Toy) -> tuple[list[torch.Tensor], int]:
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            total = torch.stack(list(toy.loss(toy.batch(64, 1)).values())).sum()
        total.backward()
        return [p.grad for p in toy.model.parameters() if p.grad is not None], sum(kept)

    plain, light = Toy(), Toy()
    for toy in (plain, light):
        toy.model.initialize(torch.Generator().manual_seed(0))
    names = [name for name, _ in light.model.named_parameters()]
    by_block(light.blocks(), checkpointing=True, compiled=False)
    (expected, much), (found, little) = gradients(plain), gradients(light)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert little < much
    assert [name for name, _ in light.model.named_parameters()] == names


def test_blocks_are_compiled_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda forward: compiled.append(forward) or forward)
    toy = Toy()
    by_block(toy.blocks(), checkpointing=True, compiled=True)
    assert len(compiled) == 2
    assert toy.loss(toy.batch(2, 0))["square"].isfinite()


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_file, "build", lambda run, device: Toy())
    plain = list(fit(toy_run(), tmp_path / "plain"))
    fast = list(fit(toy_run(compile_blocks=True, checkpointing=True), tmp_path / "fast"))
    for a, b in zip(plain, fast, strict=True):
        torch.testing.assert_close(a.losses, b.losses, rtol=1e-4, atol=1e-6)


def test_bfloat16_in_two_processes_learns_nearly_the_same(tmp_path: Path) -> None:
    run = toy_run(micros=2, precision="bfloat16", images=16)
    one, two = tmp_path / "one", tmp_path / "two"
    assert in_processes(1, partial(train_toy, run, one)) == [0]
    assert in_processes(2, partial(train_toy, run, two)) == [0, 0]
    for a, b in zip(curve(one), curve(two), strict=True):
        assert b["square"] == pytest.approx(a["square"], rel=0.05)


def test_what_several_processes_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"loop\.compile is for one process"):
        next(fit(toy_run(micros=2, compile=True), tmp_path))
    monkeypatch.setattr(loop_file, "ALONE", frozenset({"denoise"}))
    with pytest.raises(ConfigError, match=r"\[denoise\] trains in one process"):
        next(fit(toy_run(micros=2), tmp_path))
    monkeypatch.setattr(parallel.dist, "new_group", lambda backend: None)
    with pytest.raises(ConfigError, match=r"2 processes share a step of loop\.micros = 3: .* multiple of 2"):
        Team(torch.device("cpu")).mine(3)


def test_a_team_of_one_changes_nothing() -> None:
    team = Team(torch.device("cpu"))
    assert list(team.mine(3)) == [0, 1, 2]
    assert team.sums({"a": 0.1}) == {"a": 0.1}
    assert team.agree(True, False) == [True, False]
    assert team.gather(["x"]) == ["x"]
    assert team.tell("said") == "said"
    x = torch.ones(2)
    assert whole(x) is x
    assert like(x, x) is x
