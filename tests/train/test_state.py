import copy
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from safetensors.torch import save_file

from limner.errors import WeightsError
from limner.train import state
from limner.train.ema import EMA
from limner.train.optim import Muon
from limner.train.parallel import Team
from limner.train.state import Checkpoints
from limner.weights import files

from .toy import in_processes

CLOCK = {"step": 3, "images_seen": 12, "skipped": 1}
LATER = {"step": 4, "images_seen": 16, "skipped": 1}
ALONE = Team(torch.device("cpu"))


def trained(seed: int = 0, width: int = 4) -> tuple[EMA, list[torch.optim.Optimizer]]:
    """A network after three steps of Muon and AdamW."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 2))
    ema = EMA(dict(model.named_parameters()), 0.1)
    first, *rest = model.parameters()
    optims = [Muon([first], [1], 0.01, 0.9, 0.0), torch.optim.AdamW(rest, fused=True)]
    for step in range(3):
        model(torch.randn(5, width)).square().sum().backward()
        for optim in optims:
            optim.step()
            optim.zero_grad()
        ema.update(4 * (step + 1), 4)
    return ema, optims


def same(
    first: tuple[EMA, list[torch.optim.Optimizer]], second: tuple[EMA, list[torch.optim.Optimizer]]
) -> bool:
    a, b = state.contents(*first), state.contents(*second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def saved(folder: Path, seed: int = 0, clock: dict[str, int] = CLOCK) -> Path | None:
    """A checkpoint of a run that is seen for the first time."""
    checkpoints = Checkpoints(folder, ALONE)
    checkpoints.begin(*trained(seed), clock)
    return checkpoints.finished()


def loaded(folder: Path) -> tuple[tuple[EMA, list[torch.optim.Optimizer]], dict[str, int], list[str]]:
    made = trained(seed=9)
    clock, notes = Checkpoints(folder, ALONE).load(*made)
    return made, clock, notes


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert path == tmp_path / "checkpoints" / "0000000012"
    assert sorted(file.name for file in path.iterdir()) == ["state.safetensors", "whole.json"]
    made, clock, notes = loaded(tmp_path)
    assert clock == CLOCK
    assert notes == []
    assert same(made, trained())
    assert not same(made, trained(seed=1))


def test_the_last_two_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ALONE)
    made = trained()
    for seen in (4, 8, 12):
        checkpoints.begin(*made, {"images_seen": seen})
        assert checkpoints.finished()
        assert checkpoints.finished() is None
    assert checkpoints.names() == ["0000000012", "0000000008"]
    assert (checkpoints.folder / "latest").read_text() == "0000000012"


def kill_at(call: int, folder: Path) -> None:
    """Save once more, and kill oneself before the `call`th step that touches the disk for good."""
    calls = iter(range(1, 100))

    def deadly(work: Callable[..., object]) -> Callable[..., object]:
        def instead(*args: object) -> object:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*args)

        return instead

    os.fsync = deadly(os.fsync)  # type: ignore[assignment]
    for name in ("rename", "replace"):
        setattr(Path, name, deadly(getattr(Path, name)))
    checkpoints = Checkpoints(folder, ALONE)
    checkpoints.load(*trained())
    checkpoints.begin(*trained(seed=1), LATER)


def test_kill_9_at_every_moment_of_a_save(tmp_path: Path) -> None:
    """Before each flush and each rename: what is loaded afterwards is the old checkpoint or the new one."""
    survived: list[int] = []
    for call in range(1, 30):
        folder = tmp_path / str(call)
        saved(folder)
        (code,) = in_processes(1, partial(kill_at, call, folder))
        made, clock, notes = loaded(folder)
        assert notes == []
        assert clock in (CLOCK, LATER)
        assert same(made, trained(seed=0 if clock == CLOCK else 1))
        assert not list((folder / "checkpoints").glob("*.partial"))
        survived.append(clock["images_seen"])
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert len(survived) >= 8
    assert survived == sorted(survived)
    assert survived[-1] == 16


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "unsigned"])
def test_a_torn_checkpoint_falls_back_to_the_last_whole_one(tmp_path: Path, harm: str) -> None:
    checkpoints = Checkpoints(tmp_path, ALONE)
    checkpoints.begin(*trained(), CLOCK)
    checkpoints.begin(*trained(seed=1), LATER)
    path = tmp_path / "checkpoints" / "0000000016"
    tensors = path / "state.safetensors"
    data = bytearray(tensors.read_bytes())
    if harm == "cut":
        tensors.write_bytes(data[:-7])
    elif harm == "changed":
        data[-1] ^= 1
        tensors.write_bytes(data)
    else:
        (tensors if harm == "gone" else path / "whole.json").unlink()
    made, clock, (note,) = loaded(tmp_path)
    assert clock == CLOCK
    assert same(made, trained())
    assert note.startswith("checkpoint 0000000016 is torn (")
    assert note.endswith("went back to checkpoint 0000000012")
    said = {"cut": "of 1,", "changed": "has changed", "gone": "No such file", "unsigned": "No such file"}
    assert said[harm].split(",")[0] in note

    # The next save takes the torn one's place, and the whole one stays.
    again = Checkpoints(tmp_path, ALONE)
    again.load(*trained())
    again.begin(*trained(seed=1), LATER)
    assert again.names() == ["0000000016", "0000000012"]
    assert same(loaded(tmp_path)[0], trained(seed=1))


def test_nothing_whole_is_left(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no whole checkpoint of a training run: there is none"):
        loaded(tmp_path)
    path = saved(tmp_path)
    assert path is not None
    (path / "state.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"0000000012 is torn \(state\.safetensors has 0 of"):
        loaded(tmp_path)


def test_a_full_disk_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    checkpoints = Checkpoints(tmp_path, ALONE)

    def die(tensors: object, beside: Path, metadata: object) -> None:
        beside.write_bytes(b"half a fi")
        raise OSError("no space left on device")

    with monkeypatch.context() as full:
        full.setattr(files, "save_file", die)
        with pytest.raises(OSError, match="no space"):
            checkpoints.begin(*trained(seed=1), LATER)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["0000000012", "latest"]
    made, clock, _ = loaded(tmp_path)
    assert clock == CLOCK
    assert same(made, trained())
    checkpoints.begin(*trained(seed=1), LATER)
    assert loaded(tmp_path)[1] == LATER


def test_another_network_and_other_optimisers(tmp_path: Path) -> None:
    saved(tmp_path)
    checkpoints = Checkpoints(tmp_path, ALONE)
    with pytest.raises(
        WeightsError, match=r"no model\.0\.weight of shape \(5, 5\): it is of another network"
    ):
        checkpoints.load(*trained(width=5))
    ema, (muon, _) = trained()
    with pytest.raises(WeightsError, match="which this run does not use"):
        checkpoints.load(ema, [muon])
    smaller = EMA({name: p for name, p in ema.parameters.items() if name.startswith("0.")}, 0.1)
    with pytest.raises(WeightsError, match="which this run does not use"):
        checkpoints.load(smaller, [])


def test_starting_from_what_another_run_published(tmp_path: Path) -> None:
    """Only the published weights are taken; the average starts from them, too."""
    path = tmp_path / "weights.safetensors"
    published = {"0.weight", "0.bias", "1.weight"}
    given, _ = trained()
    save_file({name: given.parameters[name].detach().bfloat16() for name in published}, path)
    ema, _ = trained(seed=1)
    before = {name: p.detach().clone() for name, p in ema.parameters.items()}
    state.start_from(path, ema, published)
    for name, p in ema.parameters.items():
        expected = given.parameters[name].bfloat16().float() if name in published else before[name]
        assert torch.equal(p, expected)
        assert name not in published or torch.equal(ema.weights[name], expected)


def test_starting_from_weights_that_do_not_fit(tmp_path: Path) -> None:
    ema, _ = trained()
    with pytest.raises(WeightsError, match="no weights at"):
        state.start_from(tmp_path / "none.safetensors", ema, {"0.weight"})
    path = tmp_path / "weights.safetensors"
    save_file({"0.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsError, match=r"no 0\.weight of shape \(4, 4\)"):
        state.start_from(path, ema, {"0.weight"})


def test_a_run_of_which_only_the_published_weights_are_left(tmp_path: Path) -> None:
    (ema, _), (other, _) = trained(0), trained(1)
    path = tmp_path / "weights.safetensors"
    left = {name: copy.deepcopy(p.detach()) for name, p in other.parameters.items()}
    files.save(left, path, {"clock": json.dumps(CLOCK)})
    assert state.go_on_from(path, ema, set(left)) == CLOCK
    files.save(left, path, {"clock": json.dumps(CLOCK | {"broken": 2})})
    assert state.go_on_from(path, ema, set(left)) == CLOCK | {"broken": 2}
    for name, p in ema.parameters.items():
        assert torch.equal(p, left[name])
        assert torch.equal(p, ema.weights[name])
    for broken in ({}, {"clock": "{}"}, {"clock": "3"}):
        files.save(left, path, broken)
        with pytest.raises(WeightsError, match="how far its run had come"):
            state.go_on_from(path, ema, set(left))
