"""Few steps out of many."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline

from limner.data.loader import LoaderConfig
from limner.diffusion import losses
from limner.errors import ConfigError
from limner.pipeline.load import load
from limner.pipeline.request import Request
from limner.train.config import LoopConfig, RunConfig
from limner.train.loop import fit
from limner.train.objectives.distill import TARGET, Distill, DistillConfig
from limner.train.optim import OptimConfig
from limner.train.trainable import LoRAConfig
from limner.weights import lora

_spec = importlib.util.spec_from_file_location("small_models", Path(__file__).with_name("small_models.py"))
assert _spec is not None
assert _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

CPU = torch.device("cpu")
OPTIM = OptimConfig(muon_lr=0.0, adam_lr=2e-3, weight_decay=0.0, warmup=1, decay=0.5)
ADAPTER = LoRAConfig(rank=4, targets="all")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = small.publish(small.SD1, tmp_path_factory.mktemp("small") / "model")
    return folder


@pytest.fixture
def config(model: Path, snapshots: Path) -> DistillConfig:
    data = LoaderConfig(
        folder=str(snapshots), size=16, buckets=False, bucket_step=8, drop_caption=0.0, workers=0
    )
    return DistillConfig(model=str(model), data=data, guidance=(2.0, 2.0), prompts=("thing 0",))


def error(objective: Distill) -> float:
    """How far what is said at both ends of the teacher's steps lies apart, over three batches."""
    objective.model.eval()
    with torch.no_grad():
        parts = [objective.loss(objective.batch(3, seed))["consistency"] for seed in range(3)]
    objective.model.train()
    return float(torch.stack(parts).mean())


def test_the_whole_model_learns_to_draw_in_four_steps(
    config: DistillConfig, loop: LoopConfig, tmp_path: Path
) -> None:
    """Six pictures; the loss falls by a third. What is written draws in four steps by itself."""
    config = replace(config, decay=0.5)
    run = RunConfig(name="few", loop=replace(loop, images=54, batch=3, ema=0.03), optim=OPTIM, distill=config)
    torch.manual_seed(loop.seed)
    before = error(Distill(config, CPU))
    steps = list(fit(run, tmp_path))
    after = sum(step.losses["consistency"] for step in steps[-6:]) / 6
    assert after < 0.7 * before
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    assert isinstance(theirs.scheduler, LCMScheduler)
    assert theirs.scheduler.config.beta_schedule == "scaled_linear"
    pipeline = load(str(tmp_path / "model"), device="cpu")
    assert pipeline.model.defaults.steps == 4
    assert pipeline.model.defaults.sampler == "lcm"
    *_, last = pipeline.generate(Request(prompt="thing 0", seed=1, size=(16, 16)))
    assert last is not None


@pytest.mark.slow
def test_a_lora_learns_it_and_is_known_by_its_file(
    config: DistillConfig, loop: LoopConfig, tmp_path: Path
) -> None:
    run = RunConfig(
        name="few", loop=replace(loop, images=72, batch=3), optim=OPTIM, distill=config, lora=ADAPTER
    )
    steps = list(fit(run, tmp_path))
    first, last = (sum(step.losses["consistency"] for step in part) / 6 for part in (steps[:6], steps[-6:]))
    assert last < 0.8 * first
    file = lora.read(tmp_path / "pytorch_lora_weights.safetensors")
    assert lora.for_few_steps(file)


def test_the_teacher_takes_a_guided_ddim_step(config: DistillConfig) -> None:
    """Against the step of diffusers' sampler, and the student's boundary at the end of the path."""
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    objective = Distill(replace(config, decay=0.0), CPU)
    batch = objective.batch(3, 5)
    assert set(((batch.t + 1) % 20).tolist()) == {0.0}
    path = objective.path
    x_t = losses.noised(batch.x0, batch.noise, path.alpha(batch.t), path.sigma(batch.t))
    heard = []
    objective._denoise = lambda said: lambda x, t: heard.append((x, t)) or x * 0.9  # type: ignore[assignment, func-returns-value, method-assign, misc, return-value]
    objective.goal(x_t, batch)
    x_r, r = heard[-1]
    assert torch.equal(r, batch.r)
    table = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    bars = table.alphas_cumprod
    for row in range(3):
        now, then = (bars[int(t[row])] for t in (batch.t, batch.r))
        noise = (x_t[row] - now**0.5 * 0.9 * x_t[row]) / (1 - now) ** 0.5
        wanted = then**0.5 * 0.9 * x_t[row] + (1 - then) ** 0.5 * noise
        torch.testing.assert_close(x_r[row], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trained", [None, ADAPTER], ids=["whole", "lora"])
def test_the_upper_row_of_a_sheet_is_the_teacher(config: DistillConfig, trained: LoRAConfig | None) -> None:
    torch.manual_seed(0)
    objective = Distill(config, CPU, trained)
    before = objective.draw(objective.model)
    with torch.no_grad():
        for p in objective.student.values():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    after = objective.draw(objective.model)
    half = before.height // 2
    assert before.size == after.size
    for same, box in ((True, (0, 0, before.width, half)), (False, (0, half, before.width, before.height))):
        assert (before.crop(box).tobytes() == after.crop(box).tobytes()) is same


def test_the_average_follows_and_is_asked(config: DistillConfig) -> None:
    torch.manual_seed(0)
    objective = Distill(replace(config, decay=0.75), CPU, ADAPTER)
    objective.model.train()
    batch = objective.batch(2, 0)
    name, p = next((n, p) for n, p in objective.student.items() if n.endswith("up"))
    with torch.no_grad():
        p.fill_(4.0)
    held = objective.model[TARGET].get_parameter(name.replace(".", "/"))
    objective.loss(batch)
    assert held.unique().tolist() == [1.0]
    objective.loss(batch)
    assert held.unique().tolist() == [1.75]
    assert p.unique().tolist() == [4.0]  # put back
    objective.model.eval()
    objective.loss(batch)
    assert held.unique().tolist() == [1.75]
    assert not held.requires_grad
    assert {f"target.{name.replace('.', '/')}", name} <= objective.published()


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_under_autocast_the_student_is_asked_with_its_own_weights(
    config: DistillConfig, decay: float
) -> None:
    torch.manual_seed(0)
    objective = Distill(replace(config, decay=decay), CPU)
    batch = objective.batch(2, 0)
    with torch.autocast("cpu", torch.bfloat16):
        objective.loss(batch)["consistency"].backward()
    weights = {n: p for n, p in objective.student.items() if n.endswith("weight") and p.ndim > 1}
    assert weights
    assert [name for name, p in weights.items() if p.grad is None] == []


def test_a_run_resumes_bit_for_bit(
    config: DistillConfig, loop: LoopConfig, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    run = RunConfig(
        name="few", loop=replace(loop, images=6, batch=2), optim=OPTIM, distill=config, lora=ADAPTER
    )
    interrupted(run, tmp_path, 1)
    assert lora.for_few_steps(lora.read(tmp_path / "whole" / "pytorch_lora_weights.safetensors"))


def test_what_does_not_go_together_is_refused(config: DistillConfig, tmp_path: Path) -> None:
    flow = small.publish(small.SD3, tmp_path / "flow")
    with pytest.raises(ConfigError, match="straight path"):
        Distill(replace(config, model=str(flow)), CPU)
    with pytest.raises(ConfigError, match="divides"):
        Distill(replace(config, grid=7), CPU)
    with pytest.raises(ValueError, match="guidance"):
        replace(config, guidance=(3.0, 2.0))
