import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limner.diffusion.paths import shift
from limner.errors import ConfigError, WeightsError
from limner.families import mini, mini_files
from limner.models.pixel_dit import PixelDiT
from limner.train.config import LoopConfig, RunConfig, read
from limner.train.ema import EMA
from limner.train.loop import fit
from limner.train.objectives import Objective
from limner.train.objectives.denoise import Denoise, DenoiseConfig
from limner.train.objectives.few_step import FewStep, FewStepConfig, following, teacher
from limner.train.optim import OptimConfig
from limner.weights.files import save
from limner.weights.header import read_metadata

CPU = torch.device("cpu")
Publish = Callable[[Objective, Path], Path]
NOISIER = mini.grid_shift(16)  # of the networks here
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def optim() -> OptimConfig:
    return OptimConfig(muon_lr=0.0, adam_lr=2e-3, warmup=4, decay=0.0)


@pytest.fixture
def start(denoise: DenoiseConfig, publish: Publish, tmp_path: Path) -> Path:
    """Weights as a plain run publishes them."""
    return publish(Denoise(denoise, CPU), tmp_path / "plain.safetensors")


@pytest.fixture
def few(denoise: DenoiseConfig) -> FewStepConfig:
    return FewStepConfig(base=denoise, guidance_channels=8)


def ready(config: FewStepConfig, start: Path) -> FewStep:
    """As the loop makes it, with an average that is no copy of the model."""
    made = FewStep(config, CPU)
    made.model.initialize(torch.Generator().manual_seed(0))
    from limner.train import state

    ema = EMA(dict(made.model.named_parameters()), 0.1)
    state.start_from(start, ema, made.inherited())
    made.begin(start, ema.state())
    return made


def test_it_starts_as_the_network_that_it_is_made_of(few: FewStepConfig, start: Path) -> None:
    made = ready(few, start)
    moves = made.batch(8, 1).moves
    told = made.model(moves.x0, moves.t, *encoded(made, moves.tokens), moves.scale)
    plain = made.teacher(moves.x0, moves.t, *encoded(made, moves.tokens, made.teacher))
    assert torch.equal(told, plain)
    assert made.model.config.guidance_channels == 8
    assert made.inherited() == made.published() - {"guidance_in.weight"}


def encoded(
    made: FewStep, tokens: torch.Tensor, network: PixelDiT | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mask = tokens != made.base.tokenizer.pad
    return *(network or made.model).encode(tokens, mask), mask


def test_what_a_batch_holds(few: FewStepConfig, start: Path) -> None:
    made = ready(few, start)
    batch = made.batch(200, 5)
    assert batch.plain is not None
    assert (len(batch.plain.t), len(batch.moves.t)) == (60, 140)
    moves = batch.moves
    assert bool((moves.r < moves.t).all())
    assert 0 <= moves.r.min() < moves.t.max() == 1
    assert 0.03 < float((moves.t == 1).float().mean()) < 0.2
    assert 1 <= moves.scale.min() < 2 < 3 < moves.scale.max() <= 4
    inside = moves.r > 0
    spans = unshifted(moves.t[inside]) - unshifted(moves.r[inside])
    assert 1 / 32 - 1e-3 < spans.min() < 1 / 20 < 1 / 10 < spans.max() < 1 / 8 + 1e-3
    again, other = made.batch(200, 5).moves, made.batch(200, 6).moves
    assert all(torch.equal(a, b) for a, b in zip(moves, again, strict=True))
    assert not torch.equal(moves.t, other.t)


def unshifted(t: torch.Tensor) -> torch.Tensor:
    u = shift(t, 1 / NOISIER)
    torch.testing.assert_close(shift(u, NOISIER), t)
    return u


def test_the_goal_is_what_the_average_says_after_the_teachers_move(few: FewStepConfig, start: Path) -> None:
    """By hand for one picture: a guided Euler step, then the average; at r = 0 the step's own end."""
    made = ready(few, start)
    moves = type(made.batch(1, 3).moves)(*(part[:1] for part in made.batch(2, 3).moves))
    for r in (0.3, 0.0):
        one = moves._replace(t=torch.tensor([0.8]), r=torch.tensor([r]), scale=torch.tensor([3.0]))
        z = 0.2 * one.x0 + 0.8 * one.noise
        cond = made.teacher(z, one.t, *encoded(made, one.tokens, made.teacher))
        uncond = made.teacher(z, one.t, *encoded(made, one.empty, made.teacher))
        x0 = (uncond + 3 * (cond - uncond)).clamp(-1, 1)
        z_r = z + (r - 0.8) * (z - x0) / 0.8
        said = made.average(z_r, one.r, *encoded(made, one.tokens, made.average), one.scale).clamp(-1, 1)
        torch.testing.assert_close(made.goal(z, one), said if r else z_r, atol=1e-5, rtol=1e-4)


def test_only_the_student_learns(few: FewStepConfig, start: Path) -> None:
    made = ready(few, start)
    before = {name: p.clone() for name, p in made.teacher.named_parameters()}
    loss = made.loss(made.batch(6, 0))
    assert set(loss) == {"consistency", "velocity"}
    sum(loss.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in (*made.teacher.parameters(), *made.average.parameters()))
    assert made.model.guidance_in is not None
    assert made.model.guidance_in.weight.grad is not None
    assert made.model.guidance_in.weight.grad.abs().max() > 0
    assert not made.goal(made.batch(6, 0).moves.x0, made.batch(6, 0).moves).requires_grad
    assert all(torch.equal(p, before[name]) for name, p in made.teacher.named_parameters())


def test_the_average_of_the_run_is_followed(few: FewStepConfig, start: Path) -> None:
    made = ready(few, start)
    ema = EMA(dict(made.model.named_parameters()), 0.1)
    shadow = following(made.model, ema.state())
    with torch.no_grad():
        made.model.patch_in.weight.add_(1.0)
    assert not torch.equal(shadow.patch_in.weight, made.model.patch_in.weight)
    ema.update(4, 4)  # the first update takes the weights as they are
    assert torch.equal(shadow.patch_in.weight, made.model.patch_in.weight)


def test_the_loss_falls(few: FewStepConfig, start: Path) -> None:
    """A toy: one batch again and again. The two ends of every move come to agree."""
    made = ready(replace(few, plain=0.0), start)
    batch = made.batch(8, 0)
    assert batch.plain is None
    adam = torch.optim.Adam(made.model.parameters(), 2e-3)
    values = []
    for _ in range(30):
        (value,) = made.loss(batch).values()
        value.backward()
        adam.step()
        adam.zero_grad()
        values.append(float(value.detach()))
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


def test_a_run_resumes_bit_for_bit_and_the_family_draws_with_four_calls(
    few: FewStepConfig, start: Path, loop: LoopConfig, optim: OptimConfig, tiny: Path, tmp_path: Path
) -> None:
    from limner.pipeline.load import load

    run = RunConfig(name="few", loop=replace(loop, images=16, start=str(start)), optim=optim, few_step=few)
    list(fit(run, tmp_path / "through"))
    steps = fit(run, tmp_path / "halves")
    for _ in range(2):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    list(fit(run, tmp_path / "halves", resume=True))
    newest = (max((tmp_path / name / "checkpoints").glob("[0-9]*")) for name in ("through", "halves"))
    one, two = (load_file(path / "state.safetensors") for path in newest)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []

    written = tmp_path / "through" / "weights.safetensors"
    told = json.loads(read_metadata(written)["few_step"])
    assert told == {"steps": 4, "guidance": 2.5, "low": 1.0, "high": 4.0}
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "base.safetensors").write_bytes(written.read_bytes())
    (folder / "upscaler.safetensors").write_bytes((tiny / "upscaler.safetensors").read_bytes())
    pipe = load(folder)
    assert (pipe.model.defaults.steps, pipe.model.defaults.sampler) == (4, "lcm")
    calls = []
    pipe.model.base.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[attr-defined]
    first = pipe("a cat", seed=1, count=1)
    assert len(calls) == 4
    assert first.images[0].tobytes() == pipe("a cat", seed=1, count=2).images[0].tobytes()
    assert first.images[0].tobytes() != pipe("a cat", seed=1, count=1, guidance=4.0).images[0].tobytes()
    far = pipe("a cat", negative_prompt="a tree", seed=1, count=1, guidance=9.0)
    assert far.notices == ("drawn with guidance 4: this model knows 1 to 4",)
    assert far.warnings == ("the negative prompt was left out: this model draws in few steps without one",)


def test_what_cannot_be_begun(
    few: FewStepConfig, start: Path, loop: LoopConfig, denoise: DenoiseConfig, tmp_path: Path
) -> None:
    run = RunConfig(name="few", loop=loop, few_step=few)
    with pytest.raises(ConfigError, match=r"name its weights by loop\.start"):
        next(fit(run, tmp_path / "none"))
    made = ready(few, start)
    told = tmp_path / "told.safetensors"
    header = made.header()
    save(made.model.state_dict(), told, header)
    with pytest.raises(ConfigError, match="draws in few steps already"):
        made.begin(told, dict(made.model.named_parameters()))
    words = json.loads(header["vocabulary"])
    save(load_file(told), told, header | {"vocabulary": json.dumps(words[::-1])})
    with pytest.raises(ConfigError, match="knows other words than this run"):
        teacher(told, made.base, CPU)


@pytest.mark.parametrize(
    "broken",
    [
        "[]",
        "{}",
        "x",
        '{"steps": 0, "guidance": 2, "low": 1, "high": 4}',
        '{"steps": 4, "guidance": 9, "low": 1, "high": 4}',
    ],
)
def test_a_header_that_says_nonsense_is_refused(tiny: Path, tmp_path: Path, broken: str) -> None:
    for name in ("base", "upscaler"):
        (tmp_path / f"{name}.safetensors").write_bytes((tiny / f"{name}.safetensors").read_bytes())
    path = tmp_path / "base.safetensors"
    save(load_file(path), path, read_metadata(path) | {"few_step": broken})
    with pytest.raises(WeightsError, match="few_step in the header is broken"):
        mini_files.load(tmp_path, CPU)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"guidance_channels": 3}, "even number"),
        ({"low": 4.0}, "low < high"),
        ({"shortest": 0.5}, "shortest <= longest"),
        ({"plain": 1.0}, "plain < 1"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FewStepConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mini-few", "mini-best", "mini-nft", "detector-reward"])
def test_the_shipped_configurations_are_read(name: str) -> None:
    assert read(ROOT / "configs" / f"{name}.toml").name == name
