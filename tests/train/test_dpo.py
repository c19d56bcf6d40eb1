"""Preferences."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from limner.data.pairs import Pairs, PairsConfig
from limner.errors import ConfigError, DataError
from limner.nn import lora
from limner.train import learners
from limner.train.config import LoopConfig, RunConfig
from limner.train.objectives.dpo import DPO, DPOConfig, preference
from limner.train.optim import OptimConfig, optimizers
from limner.train.trainable import LORA, LoRAConfig, WordsConfig
from limner.util.images import images_from_pixels

_spec = importlib.util.spec_from_file_location("small_models", Path(__file__).with_name("small_models.py"))
assert _spec is not None
assert _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)
SD1, publish = small.SD1, small.publish

CPU = torch.device("cpu")
OPTIM = OptimConfig(muon_lr=0.0, adam_lr=3e-3, weight_decay=0.0)
ADAPTER = LoRAConfig(rank=4, targets="all")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(SD1, tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prompts; reddish pictures win."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = torch.Generator().manual_seed(0)
    for index in range(3):
        for side, red in (("w", 0.8), ("l", -0.8)):
            pixels = torch.rand(1, 3, 24, 32, generator=generator) * 0.4 - 0.2
            pixels[:, 0] += red
            images_from_pixels(pixels)[0].save(folder / f"{index}_{side}.png")
        (folder / f"{index}.txt").write_text(f"thing {index}\n")
    return folder


@pytest.fixture
def config(model: Path, pairs: Path) -> DPOConfig:
    return DPOConfig(
        model=str(model),
        data=PairsConfig(folder=str(pairs), size=16),
        beta=500.0,
        sheet_steps=1,
        prompts=("thing 0",),
    )


def test_the_loss_is_the_published_formula() -> None:
    """By hand: beta 10; the first pair came nearer to its winner by 0.3, the second away from it by 0.1."""
    winner, loser = torch.tensor([0.2, 0.5]), torch.tensor([0.6, 0.4])
    winner_ref, loser_ref = torch.tensor([0.4, 0.5]), torch.tensor([0.5, 0.5])
    insides = [-10 / 2 * ((0.2 - 0.4) - (0.6 - 0.5)), -10 / 2 * ((0.5 - 0.5) - (0.4 - 0.5))]
    assert insides == pytest.approx([1.5, -0.5])
    wanted = -sum(math.log(1 / (1 + math.exp(-inside))) for inside in insides) / 2
    assert float(preference(winner, loser, winner_ref, loser_ref, 10.0)) == pytest.approx(wanted, rel=1e-6)
    assert float(preference(winner, loser, winner, loser, 10.0)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("trained", [None, ADAPTER], ids=["whole", "lora"])
def test_a_handful_of_pairs_is_learned(config: DPOConfig, trained: LoRAConfig | None) -> None:
    """Three pairs as they are noised once: from log 2 to below 0.05, the winner preferred in all."""
    torch.manual_seed(0)
    objective = DPO(config, CPU, trained)
    optims, batch = optimizers(objective.model, OPTIM), objective.batch(3, 0)
    first = objective.loss(batch)
    assert float(first["preference"].detach()) == pytest.approx(math.log(2), rel=1e-4)
    for _ in range(18):
        parts = objective.loss(batch)
        parts["preference"].backward()
        for one in optims:
            one.step()
        objective.model.zero_grad()
    assert float(parts["preference"].detach()) < 0.05
    assert parts["prefers"] == 1


@pytest.mark.parametrize("trained", [None, ADAPTER], ids=["whole", "lora"])
def test_the_reference_is_the_model_as_it_was(config: DPOConfig, trained: LoRAConfig | None) -> None:
    torch.manual_seed(0)
    objective = DPO(config, CPU, trained)
    batch = objective.batch(2, 0)
    with torch.no_grad():
        for p in objective.model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    first = learners.load(config.model, CPU)
    wanted = first.predict(batch.x0, batch.t, batch.said)
    with objective.frozen.in_place():
        torch.testing.assert_close(objective.learner.predict(batch.x0, batch.t, batch.said), wanted)
    changed = objective.learner.predict(batch.x0, batch.t, batch.said)
    assert (changed - wanted).abs().max() > 1e-3
    if trained:
        assert lora.attached(objective.model["unet"]) == (LORA,)


@pytest.mark.parametrize("trained", [None, ADAPTER], ids=["whole", "lora"])
def test_the_upper_row_of_a_sheet_is_the_model_as_it_was(
    config: DPOConfig, trained: LoRAConfig | None
) -> None:
    torch.manual_seed(0)
    objective = DPO(config, CPU, trained)
    before = objective.learner.sample(["thing 0"], [0], steps=1, size=(16, 16))
    with torch.no_grad():
        for p in objective.model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    with objective.frozen.in_place():
        torch.testing.assert_close(objective.learner.sample(["thing 0"], [0], steps=1, size=(16, 16)), before)
    after = objective.learner.sample(["thing 0"], [0], steps=1, size=(16, 16))
    assert (after - before).abs().max() > 1e-3


def test_both_of_a_pair_are_noised_alike(config: DPOConfig) -> None:
    batch = DPO(config, CPU).batch(3, 0)
    for part in (batch.noise, batch.t, batch.said.context):
        first, second = part.chunk(2)
        assert torch.equal(first, second)
    winners, losers = batch.x0.chunk(2)
    assert not torch.equal(winners, losers)


def test_a_run_resumes_bit_for_bit(
    config: DPOConfig, loop: LoopConfig, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    run = RunConfig(
        name="taste", loop=replace(loop, images=6, batch=2), optim=OPTIM, dpo=config, lora=ADAPTER
    )
    interrupted(run, tmp_path, 1)
    assert (tmp_path / "whole" / "pytorch_lora_weights.safetensors").is_file()
    assert len(list((tmp_path / "whole" / "sheets").iterdir())) == 1


def test_pairs_of_a_folder_and_of_a_table_are_the_same(pairs: Path, tmp_path: Path) -> None:
    rows = [
        {"winner": str(pairs / f"{i}_w.png"), "loser": str(pairs / f"{i}_l.png"), "caption": f"thing {i}"}
        for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    told = [
        Pairs(PairsConfig(folder=str(where), size=16, flip=True)).batch(3, 0, 7)
        for where in (pairs, tmp_path / "pairs.parquet")
    ]
    assert torch.equal(told[0].winners, told[1].winners)
    assert torch.equal(told[0].losers, told[1].losers)
    assert sorted(told[0].captions) == ["thing 0", "thing 1", "thing 2"]
    assert told[0].captions == told[1].captions
    assert (told[0].winners[:, 0] > told[0].losers[:, 0]).all()


def test_a_broken_pair_is_named_and_another_takes_its_place(pairs: Path, tmp_path: Path) -> None:
    for path in pairs.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "1_l.png").write_bytes((tmp_path / "1_l.png").read_bytes()[:60])
    batch = Pairs(PairsConfig(folder=str(tmp_path), size=16)).batch(3, 0, 0)
    assert [name for name, _ in batch.broken] == ["1_w.png"]
    assert len(batch.captions) == 3
    assert "thing 1" not in batch.captions


@pytest.mark.parametrize(
    ("name", "told"), [("9_w.png", "won against nobody"), ("9_l.png", "lost against nobody")]
)
def test_half_a_pair_is_an_error(pairs: Path, tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / name).write_bytes((pairs / "0_w.png").read_bytes())
    with pytest.raises(DataError, match=told):
        Pairs(PairsConfig(folder=str(tmp_path)))


def test_what_cannot_be_read_as_pairs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pairs"):
        Pairs(PairsConfig(folder=str(tmp_path)))
    with pytest.raises(DataError, match="neither a folder"):
        Pairs(PairsConfig(folder=str(tmp_path / "nowhere")))
    (tmp_path / "pairs.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot read pairs"):
        Pairs(PairsConfig(folder=str(tmp_path / "pairs.parquet")))
    pq.write_table(pa.table({"winner": ["a"], "loser": ["b"]}), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match="caption"):
        Pairs(PairsConfig(folder=str(tmp_path / "pairs.parquet")))


def test_what_does_not_go_together_is_refused(config: DPOConfig, loop: LoopConfig) -> None:
    with pytest.raises(ConfigError, match="multiple of"):
        DPO(replace(config, data=replace(config.data, size=17)), CPU)
    with pytest.raises(ConfigError, match="words"):
        RunConfig(name="taste", loop=loop, dpo=config, words=WordsConfig(token="sks"))
    with pytest.raises(ValueError, match="beta"):
        replace(config, beta=0.0)
