import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from safetensors.torch import save_file

from limner.errors import WeightsError
from limner.train import state
from limner.train.ema import EMA
from limner.train.optim import Muon
from limner.weights import files

CLOCK = {"step": 3, "images_seen": 12, "skipped": 1}


def trained(seed: int = 0, width: int = 4) -> tuple[nn.Module, EMA, list[torch.optim.Optimizer]]:
    """A network after three steps of Muon and AdamW."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 2))
    ema = EMA(model, 0.1)
    first, *rest = model.parameters()
    optims = [Muon([first], [1], 0.01, 0.9, 0.0), torch.optim.AdamW(rest, fused=True)]
    for step in range(3):
        model(torch.randn(5, width)).square().sum().backward()
        for optim in optims:
            optim.step()
            optim.zero_grad()
        ema.update(model, 4 * (step + 1), 4)
    return model, ema, optims


def contents(model: nn.Module, ema: EMA, optims: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    named = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    named |= {f"ema.{name}": p for name, p in ema.state().items()}
    for number, optim in enumerate(optims):
        for p, fields in enumerate(optim.state.values()):
            named |= {f"{number}.{p}.{field}": value for field, value in fields.items()}
    return copy.deepcopy(named)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.safetensors"
    state.save(path, *trained(), CLOCK)
    other = trained(seed=1)
    assert state.load(path, *other) == CLOCK
    loaded, expected = contents(*other), contents(*trained())
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in loaded)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_save_that_dies_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.safetensors"
    state.save(path, *trained(), CLOCK)
    before = path.read_bytes()

    def die(tensors: object, beside: Path, metadata: object) -> None:
        beside.write_bytes(b"half a fi")
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "save_file", die)
    with pytest.raises(OSError, match="no space"):
        state.save(path, *trained(seed=1), {"step": 4})
    assert path.read_bytes() == before
    assert state.load(path, *trained()) == CLOCK


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({"x": torch.zeros(1)}, None, "not a checkpoint"),
        ({"x": torch.zeros(1)}, {"other": "1"}, "not a checkpoint"),
        ({"x": torch.zeros(1)}, {"clock": "{}"}, r"no model\.0\.weight of shape \(4, 4\)"),
    ],
)
def test_foreign_files(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None, said: str
) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(WeightsError, match=said):
        state.load(path, *trained())


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(WeightsError, match="not a checkpoint"):
        state.load(path, *trained())
    path.write_bytes(b"no safetensors")
    with pytest.raises(WeightsError, match="not a checkpoint"):
        state.load(path, *trained())


def test_another_network_and_other_optimisers(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    state.save(path, *trained(), CLOCK)
    with pytest.raises(WeightsError, match="another network"):
        state.load(path, *trained(width=5))
    model, ema, (muon, _) = trained()
    with pytest.raises(WeightsError, match="which this run does not use"):
        state.load(path, model, ema, [muon])
    smaller = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(WeightsError, match="which this run does not use"):
        state.load(path, smaller, EMA(smaller, 0.1), [])


def test_starting_from_what_another_run_published(tmp_path: Path) -> None:
    """Only the published weights are taken; the average starts from them, too."""
    path = tmp_path / "weights.safetensors"
    published = {"0.weight", "0.bias", "1.weight"}
    given, _, _ = trained()
    save_file(
        {name: p.detach().bfloat16() for name, p in given.named_parameters() if name in published}, path
    )
    model, ema, _ = trained(seed=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state.start_from(path, model, ema, published)
    for name, p in model.named_parameters():
        expected = given.get_parameter(name).bfloat16().float() if name in published else before[name]
        assert torch.equal(p, expected)
        assert name not in published or torch.equal(ema.weights[name], expected)


def test_starting_from_weights_that_do_not_fit(tmp_path: Path) -> None:
    model, ema, _ = trained()
    with pytest.raises(WeightsError, match="no weights at"):
        state.start_from(tmp_path / "none.safetensors", model, ema, {"0.weight"})
    path = tmp_path / "weights.safetensors"
    save_file({"0.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsError, match=r"no 0\.weight of shape \(4, 4\)"):
        state.start_from(path, model, ema, {"0.weight"})


def test_a_run_of_which_only_the_published_weights_are_left(tmp_path: Path) -> None:
    (model, ema, _), (other, _, _) = trained(0), trained(1)
    path = tmp_path / "weights.safetensors"
    left = {name: p.detach() for name, p in other.named_parameters()}
    files.save(left, path, {"clock": json.dumps(CLOCK)})
    assert state.go_on_from(path, model, ema, set(left)) == CLOCK
    for name, p in model.named_parameters():
        assert torch.equal(p, left[name])
        assert torch.equal(p, ema.weights[name])
    for broken in ({}, {"clock": "{}"}, {"clock": "3"}):
        files.save(left, path, broken)
        with pytest.raises(WeightsError, match="how far its run had come"):
            state.go_on_from(path, model, ema, set(left))
