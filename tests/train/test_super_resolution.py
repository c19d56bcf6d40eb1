"""The second stage of a cascade."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from limner.data.loader import LoaderConfig
from limner.diffusion import losses
from limner.diffusion.paths import VPPath
from limner.errors import ConfigError
from limner.models.pixel_unet import PixelUNetConfig
from limner.models.t5 import T5Config
from limner.train.config import LoopConfig, RunConfig
from limner.train.objectives.super_resolution import (
    SuperResolution,
    SuperResolutionConfig,
    enlarged,
    variance_bound,
)
from limner.train.optim import OptimConfig, optimizers
from limner.weights import parts_cascade

_spec = importlib.util.spec_from_file_location("small_models", Path(__file__).with_name("small_models.py"))
assert _spec is not None
assert _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

CPU = torch.device("cpu")
OPTIM = OptimConfig(muon_lr=0.0, adam_lr=3e-3, weight_decay=0.0, warmup=1)
READS = T5Config(vocabulary=40, width=32, head_width=8, heads=2, depth=1, inner=32)
SHAPE = PixelUNetConfig(
    inputs=6,
    channels=(32, 32),
    layers=(1, 1),
    looks=(False, True),
    context=32,
    text=32,
    pool_heads=4,
    level=True,
    text_norm=True,
    head_channels=32,
    time=32,
    activation="gelu",
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first stage of IF with a T5 that knows letters."""
    first = parts_cascade.stage("small", replace(SHAPE, inputs=3, level=False), READS)
    folder: Path = small.publish(first, tmp_path_factory.mktemp("if") / "I")
    return folder


@pytest.fixture
def config(text: Path, snapshots: Path) -> SuperResolutionConfig:
    data = LoaderConfig(
        folder=str(snapshots), size=16, bucket_step=8, buckets=False, drop_caption=0.0, workers=0
    )
    return SuperResolutionConfig(data=data, text=str(text), model=SHAPE)


def test_a_handful_of_pictures_is_learned(config: SuperResolutionConfig) -> None:
    """Four pictures as they are noised once: from an error of 1 to below 0.35; and how wide noise is."""
    torch.manual_seed(0)
    objective = SuperResolution(config, CPU)
    optims, batch, told = optimizers(objective.model, OPTIM), objective.batch(4, 0), []
    for _ in range(30):
        parts = objective.loss(batch)
        torch.stack(list(parts.values())).sum().backward()
        for one in optims:
            one.step()
        objective.model.zero_grad()
        told.append({name: float(part.detach()) for name, part in parts.items()})
    assert told[0]["eps"] == pytest.approx(1, abs=0.1)
    assert told[-1]["eps"] < 0.35
    assert told[-1]["variance"] < told[0]["variance"]


def test_the_small_picture_is_noised_as_it_is_told(config: SuperResolutionConfig) -> None:
    objective = SuperResolution(replace(config, most=300), CPU)
    batch = objective.batch(6, 1)
    assert batch.level.max() < 300
    assert len(batch.level.unique()) > 3
    given = enlarged(batch.x0)
    path = objective.path
    grain = batch.worn - losses.along(path.alpha(batch.level), given) * given
    spread = grain.flatten(1).std(1) / path.sigma(batch.level)
    torch.testing.assert_close(spread, torch.ones(6), rtol=0.15, atol=0)
    clean = SuperResolution(replace(config, most=1), CPU).batch(2, 1)
    assert (clean.worn - enlarged(clean.x0)).abs().max() < 0.1
    told = objective.loss(batch)["eps"]
    torch.nn.init.normal_(objective.unet.last.weight, std=0.1)
    for p in objective.unet.parameters():
        p.data.add_(0.02)
    more = objective.loss(batch._replace(level=batch.level + 400))["eps"]
    assert objective.loss(batch)["eps"] != more
    assert told.isfinite()


def test_the_bound_is_that_of_diffusers_variances() -> None:
    """Against the posterior of diffusers' DDPM, by the KL of two normal distributions."""
    path, table = (
        VPPath.cosine(steps=1000),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
    )
    generator = torch.Generator().manual_seed(0)
    x0, noise, off = torch.randn(3, 4, 3, 2, 2, generator=generator)
    share = torch.rand(4, 3, 2, 2, generator=generator)
    t = torch.tensor([0.0, 5.0, 400.0, 990.0])
    ours = variance_bound(path, t, 0.1 * off, share)
    assert ours[0] == 0
    for row in range(1, 4):
        at = int(t[row])
        bars, betas = table.alphas_cumprod.double(), table.betas.double()
        bar, before, beta = bars[at], bars[at - 1], betas[at]
        x_t = bar.sqrt() * x0[row] + (1 - bar).sqrt() * noise[row]
        guess = (x_t - (1 - bar).sqrt() * (noise[row] - 0.1 * off[row])) / bar.sqrt()
        means = [
            before.sqrt() * beta / (1 - bar) * picture + (1 - beta).sqrt() * (1 - before) / (1 - bar) * x_t
            for picture in (x0[row], guess)
        ]
        true = beta * (1 - before) / (1 - bar)
        wide = (share[row] * beta.log() + (1 - share[row]) * true.log()).exp()
        normal = torch.distributions.Normal
        kl = torch.distributions.kl_divergence(normal(means[0], true.sqrt()), normal(means[1], wide.sqrt()))
        assert float(ours[row]) == pytest.approx(float(kl.mean()) / 0.6931, rel=2e-2)


def test_a_run_resumes_bit_for_bit_and_diffusers_reads_it(
    config: SuperResolutionConfig, loop: LoopConfig, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    run = RunConfig(name="sr", loop=replace(loop, images=8, batch=2), optim=OPTIM, super_resolution=config)
    interrupted(run, tmp_path, 2)
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "whole" / "model" / "unet")
    assert theirs.config.class_embed_type == "timestep"


def test_what_does_not_go_together_is_refused(config: SuperResolutionConfig) -> None:
    with pytest.raises(ConfigError, match="width of the T5"):
        SuperResolution(replace(config, model=replace(SHAPE, text=48)), CPU)
    with pytest.raises(ConfigError, match="multiple of 4"):
        SuperResolution(replace(config, data=replace(config.data, size=18)), CPU)
    with pytest.raises(ValueError, match="second stage"):
        replace(config, model=replace(SHAPE, inputs=3))
