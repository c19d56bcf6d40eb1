"""The three legs of a DALL-E: codes, what foretells them, and the judge of the results."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from typer.testing import CliRunner

from limner.cli import app
from limner.data.world.source import DrawnConfig
from limner.errors import ConfigError, WeightsError
from limner.models.contrast import ContrastConfig
from limner.models.token_transformer import TokenTransformerConfig, continued
from limner.models.vqvae import VQVAEConfig
from limner.nn.choice import Sampling
from limner.text.words import picture_order
from limner.train.config import LoopConfig, RunConfig, build, read
from limner.train.loop import fit
from limner.train.objectives import Objective
from limner.train.objectives.ar_prior import ARPrior, ARPriorConfig
from limner.train.objectives.clip import CLIPObjective, CLIPObjectiveConfig, found
from limner.train.objectives.vqvae import VQVAEObjective, VQVAEObjectiveConfig, measure
from limner.train.optim import OptimConfig, optimizers
from limner.weights import dalle
from limner.weights.header import read_metadata

CPU = torch.device("cpu")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHAPE = VQVAEConfig(size=16, channels=16, depth=1, coarse_codes=16, fine_codes=24, code_width=6)


@pytest.fixture
def vqvae(atlas_folder: Path) -> VQVAEObjectiveConfig:
    return VQVAEObjectiveConfig(data=DrawnConfig(folder=str(atlas_folder)), model=SHAPE)


@pytest.fixture
def codes(vqvae: VQVAEObjectiveConfig, tmp_path: Path, publish: Callable[[Objective, Path], Path]) -> Path:
    return publish(VQVAEObjective(vqvae, CPU), tmp_path / "codes.safetensors")


@pytest.fixture
def prior(codes: Path, atlas_folder: Path) -> ARPriorConfig:
    return ARPriorConfig(
        codes=str(codes),
        data=DrawnConfig(folder=str(atlas_folder)),
        model=TokenTransformerConfig(width=32, depth=2, heads=2),
    )


@pytest.fixture
def clip(codes: Path, atlas_folder: Path) -> CLIPObjectiveConfig:
    return CLIPObjectiveConfig(
        codes=str(codes),
        data=DrawnConfig(folder=str(atlas_folder)),
        model=ContrastConfig(size=16, width=32, depth=1, text_depth=1, space=16),
    )


def overfit(objective: Objective, steps: int, rows: int, optim: OptimConfig) -> dict[str, float]:
    """Losses after `steps` on one batch."""
    objective.model.initialize(torch.Generator().manual_seed(0))
    objective.model.train()
    optims = optimizers(objective.model, optim)
    batch = objective.batch(rows, 0)
    for _ in range(steps):
        parts = objective.loss(batch)
        torch.stack(list(parts.values())).sum().backward()
        for one in optims:
            one.step()
        objective.model.zero_grad()
    return {name: float(part.detach()) for name, part in parts.items()}


def test_codes_learn_a_handful_of_pictures(vqvae: VQVAEObjectiveConfig) -> None:
    """Eight pictures to 24 dB, by about half of the codes."""
    made = VQVAEObjective(replace(vqvae, coarse_only=0.0), CPU)
    parts = overfit(made, 80, 8, OptimConfig(muon_lr=0.0, adam_lr=4e-3))
    assert parts["pixels"] < 0.02
    told = measure(made.model.eval(), made.batch(8, 0).x0)
    assert told["psnr"] > 24
    assert told["fine use"] > 0.4
    assert told["fine perplexity"] > 8


def test_only_training_moves_the_codes_and_the_optimiser_never_does(vqvae: VQVAEObjectiveConfig) -> None:
    made = VQVAEObjective(vqvae, CPU)
    made.model.initialize(torch.Generator().manual_seed(0))
    batch = made.batch(4, 0)
    before = made.model.fine.codes.detach().clone()
    made.model.eval()
    made.loss(batch)
    assert torch.equal(made.model.fine.codes, before)
    made.model.train()
    torch.stack(list(made.loss(batch).values())).sum().backward()
    moved = made.model.fine.codes.detach().clone()
    assert not torch.equal(moved, before)
    for one in optimizers(made.model, OptimConfig()):
        one.step()
    assert torch.equal(made.model.fine.codes, moved)
    assert made.model.fine.codes.grad is None


def test_as_many_pictures_as_asked_are_drawn_by_their_coarse_codes_alone(vqvae: VQVAEObjectiveConfig) -> None:
    made = VQVAEObjective(vqvae, CPU)
    made.model.initialize(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(made.model.last.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    made.model.eval()
    assert 0.05 < float(made.batch(200, 1).coarse_only.float().mean()) < 0.15
    batch = made.batch(4, 1)
    coarse, fine = made.model.encode(batch.x0)
    told = torch.tensor([True, False, True, False])
    drawn = made.model.decode(coarse, torch.where(told[:, None, None], -1, fine))
    wanted = (drawn - batch.x0).square().mean()
    torch.testing.assert_close(made.loss(batch._replace(coarse_only=told))["pixels"], wanted)


def test_what_is_only_told_has_no_gradient(vqvae: VQVAEObjectiveConfig) -> None:
    made = VQVAEObjective(vqvae, CPU)
    made.model.initialize(torch.Generator().manual_seed(0))
    parts = made.loss(made.batch(4, 0))
    assert {name for name, part in parts.items() if not part.requires_grad} == {
        "coarse perplexity",
        "fine perplexity",
    }


def test_a_row_of_tokens_is_the_caption_and_the_codes_of_one_scene(prior: ARPriorConfig) -> None:
    made = ARPrior(replace(prior, drop_text=0.0), CPU)
    batch = made.batch(5, 3)
    scenes = made.world.sample(5, torch.Generator().manual_seed(3))
    coarse, fine = made.vqvae.encode(made.world.render(scenes, 16)[0])
    assert torch.equal(batch.codes, torch.cat([coarse.flatten(1), fine.flatten(1)], 1))
    for row, (_, words) in enumerate(made.captioner.captions(scenes, 3)):
        assert made.tokenizer.decode(batch.text[row].tolist()) == list(picture_order(words))
    assert torch.equal(made.batch(5, 3).codes, batch.codes)
    empty = ARPrior(replace(prior, drop_text=1.0), CPU).batch(5, 3).text
    assert ((empty != made.tokenizer.pad).sum(1) == 2).all()


def test_the_loss_of_the_prior_is_cross_entropy_of_every_next_token(prior: ARPriorConfig) -> None:
    made = ARPrior(prior, CPU)
    made.model.initialize(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(made.model.out.weight, generator=torch.Generator().manual_seed(1))
    batch = made.batch(3, 1)
    tokens = made.model.tokens(batch.text, batch.codes)
    logits = made.model.out(made.model(tokens[:, :-1]))
    parts = made.loss(batch)
    first, shape = made.model.config.text_length, made.model.config
    places = {
        "text": (range(1, first), shape.ranges[0], 0.05),
        "coarse": (range(first, first + shape.coarse), shape.ranges[1], 0.4),
        "fine": (range(first + shape.coarse, first + shape.codes), shape.ranges[2], 0.6),
    }
    for name, (where, asked, weight) in places.items():
        costs = []
        for row in range(3):
            for place in where:
                token = int(tokens[row, place])
                if name != "text" or token != made.tokenizer.pad:
                    chances = logits[row, place - 1, asked.start : asked.stop].log_softmax(0)
                    costs.append(-chances[token - asked.start])
        torch.testing.assert_close(parts[name], weight * torch.stack(costs).mean())


def test_the_prior_learns_a_handful_of_rows_and_says_them(prior: ARPriorConfig) -> None:
    """To 0.02 nats per code; the likeliest code after each is then the right one."""
    made = ARPrior(replace(prior, drop_text=0.0), CPU)
    parts = overfit(made, 120, 4, OptimConfig(muon_lr=1e-2, adam_lr=1e-2))
    assert parts["coarse"] + parts["fine"] < 0.02
    batch = made.batch(4, 0)
    with torch.no_grad():
        *_, said = continued(
            made.model.eval(), batch.text, None, torch.full((4, 20), 0.5), sampling=Sampling(top_k=1)
        )
    assert torch.equal(said, batch.codes)


def test_the_prior_keeps_to_the_codes_it_learned(
    prior: ARPriorConfig,
    vqvae: VQVAEObjectiveConfig,
    tmp_path: Path,
    publish: Callable[[Objective, Path], Path],
) -> None:
    path = publish(ARPrior(prior, CPU), tmp_path / "prior.safetensors")
    network, said = dalle.load_prior(path, Path(prior.codes))
    assert network.config.coarse_codes == 16
    assert set(said.objects) == {"apple", "cat", "tree", "balloon", "house", "star"}
    other = VQVAEObjective(replace(vqvae, model=replace(SHAPE, depth=2)), CPU)
    with pytest.raises(WeightsError, match="foretells the codes of the weights"):
        dalle.load_prior(path, publish(other, tmp_path / "other.safetensors"))
    with pytest.raises(ConfigError, match="no room for a word"):
        ARPrior(replace(prior, model=replace(prior.model, text_length=2)), CPU)


def test_sheets(vqvae: VQVAEObjectiveConfig, prior: ARPriorConfig, clip: CLIPObjectiveConfig) -> None:
    first, second = VQVAEObjective(vqvae, CPU), ARPrior(prior, CPU)
    for made in (first, second):
        made.model.initialize(torch.Generator().manual_seed(0))
        made.model.eval()
    assert first.draw(first.model).size == (12 * 20 + 4, 3 * 20 + 4)
    prompts = ["a cat on a blue background", "two apple <plural>"]
    shown = second.draw(second.model, prompts, seed=1)
    assert shown.size == (4 * 20 + 4, 24)
    assert shown.tobytes() == second.draw(second.model, prompts, seed=1).tobytes()
    third = CLIPObjective(clip, CPU)
    third.model.initialize(torch.Generator().manual_seed(0))
    assert third.draw(third.model.eval()).size == (12 * 20 + 4, 4 * 20 + 4)


def test_the_contrastive_loss_is_the_mean_of_both_ways(clip: CLIPObjectiveConfig) -> None:
    made = CLIPObjective(clip, CPU)
    made.model.initialize(torch.Generator().manual_seed(0))
    batch = made.batch(6, 0)
    cosines = made.model(batch.pixels, batch.tokens)
    assert cosines.abs().max() <= 1.00001
    logits = cosines / 0.07
    own = torch.arange(6)
    wanted = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(made.loss(batch)["contrast"], wanted, rtol=1e-3, atol=1e-4)


def test_pictures_and_captions_of_a_handful_find_each_other(clip: CLIPObjectiveConfig) -> None:
    """Sixteen pairs to a loss of 0.05, from ln 16 = 2.8."""
    made = CLIPObjective(clip, CPU)
    parts = overfit(made, 60, 16, OptimConfig(muon_lr=5e-3, adam_lr=5e-3))
    assert parts["contrast"] < 0.05
    assert found(made.model, made.batch(16, 0)).all()


def test_as_many_pictures_as_asked_go_through_the_codes(clip: CLIPObjectiveConfig) -> None:
    plain, all_of_them = (CLIPObjective(replace(clip, through=share), CPU) for share in (0.0, 1.0))
    drawn, decoded = plain.batch(6, 2), all_of_them.batch(6, 2)
    assert torch.equal(drawn.tokens, decoded.tokens)
    assert all_of_them.vqvae is not None
    again = all_of_them.vqvae.decode(*all_of_them.vqvae.encode(drawn.pixels)).clamp(-1, 1)
    torch.testing.assert_close(decoded.pixels, again)
    half = CLIPObjective(clip, CPU).batch(64, 2).pixels
    same = (half == plain.batch(64, 2).pixels).flatten(1).all(1)
    assert 0.25 < same.float().mean() < 0.75


@pytest.mark.parametrize("leg", ["vqvae", "ar_prior", "clip"])
def test_every_leg_runs_in_the_loop_and_goes_on_bit_for_bit(
    leg: str,
    loop: LoopConfig,
    vqvae: VQVAEObjectiveConfig,
    prior: ARPriorConfig,
    clip: CLIPObjectiveConfig,
    tmp_path: Path,
) -> None:
    configs = {"vqvae": vqvae, "ar_prior": prior, "clip": clip}
    run = RunConfig(name="test", loop=replace(loop, images=12), **{leg: configs[leg]})  # type: ignore[arg-type]
    *_, last = fit(run, tmp_path / "whole")
    assert last.images_seen == 12
    halves = fit(run, tmp_path / "halves")
    next(halves)
    halves.close()  # type: ignore[attr-defined]  # a generator
    list(fit(run, tmp_path / "halves", resume=True))
    whole, again = (tmp_path / name / "weights.safetensors" for name in ("whole", "halves"))
    tensors, same = load_file(whole), load_file(again)
    assert tensors.keys() == same.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], same[name])] == []
    told = json.loads(read_metadata(whole)["run"])
    assert "codes" not in told[leg]
    assert str(tmp_path) not in json.dumps(told)


@pytest.mark.parametrize(
    ("name", "leg"), [("dalle-vqvae", "vqvae"), ("dalle", "ar_prior"), ("dalle-clip", "clip")]
)
def test_the_configurations_in_the_repository_are_these_legs(name: str, leg: str) -> None:
    run = read(CONFIGS / f"{name}.toml")
    assert run.name == name
    assert getattr(run, leg) is not None


def test_build_knows_the_legs(loop: LoopConfig, vqvae: VQVAEObjectiveConfig) -> None:
    assert isinstance(build(RunConfig(name="x", loop=loop, vqvae=vqvae), CPU), VQVAEObjective)


def test_the_command_line_trains_all_legs_and_draws_with_them(
    atlas_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configurations of the repository, made small, one after the other; then a ranked picture."""
    monkeypatch.chdir(tmp_path)
    small = {
        "dalle-vqvae": ("vqvae", "channels=8", "depth=1", "coarse_codes=8", "fine_codes=8", "size=16"),
        "dalle": ("ar_prior", "width=16", "depth=1", "heads=2"),
        "dalle-clip": ("clip", "width=16", "depth=1", "text_depth=1", "size=16"),
    }
    for name, (leg, *shape) in small.items():
        sets = [f"{leg}.model.{value}" for value in shape] + [
            "loop.images=8",
            "loop.batch=4",
            "loop.compile=false",
        ]
        sets.append(f"{leg}.data.folder={atlas_folder}")
        wishes = [word for value in sets for word in ("--set", value)]
        done = CliRunner().invoke(
            app, ["train", str(CONFIGS / f"{name}.toml"), *wishes], catch_exceptions=False
        )
        assert done.exit_code == 0
        assert (tmp_path / "runs" / name / "weights.safetensors").is_file()
    model = tmp_path / "model"
    model.mkdir()
    for name, run in (("vqvae", "dalle-vqvae"), ("prior", "dalle"), ("clip", "dalle-clip")):
        shutil.copy(tmp_path / "runs" / run / "weights.safetensors", model / f"{name}.safetensors")
    command = ["imagine", "a cat", "--model", str(model), "--rerank", "4", "-n", "1", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert Path(done.stdout.strip()).is_file()
