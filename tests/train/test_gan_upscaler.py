"""The upscaler's objective."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from limner.data.degrade import DegradeConfig, PassConfig
from limner.data.loader import LoaderConfig
from limner.errors import ConfigError
from limner.models.discriminator import UNetDiscriminatorConfig
from limner.models.gan_upscaler import CompactConfig, RRDBNetConfig
from limner.train.config import LoopConfig, RunConfig
from limner.train.objectives.gan_upscaler import WRITTEN, GANUpscaler, GANUpscalerConfig
from limner.train.optim import OptimConfig, optimizers
from limner.weights import standalone

CPU = torch.device("cpu")
OPTIM = OptimConfig(muon_lr=0.0, adam_lr=4e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup=1)
COMPACT = {"rrdb": None, "compact": CompactConfig(features=16, depth=3)}
SPARED = PassConfig(blur=0.0, resize=(0.0, 0.0, 1.0), noise=(0.0, 3.0), gaussian=1.0, jpeg=(90.0, 95.0))


@pytest.fixture
def config(snapshots: Path) -> GANUpscalerConfig:
    return GANUpscalerConfig(
        data=LoaderConfig(folder=str(snapshots), size=48, bucket_step=8, buckets=False, workers=0),
        crop=32,
        degrade=DegradeConfig(first=SPARED, second=SPARED, ring=0.0),
        rrdb=RRDBNetConfig(blocks=1, features=16, growth=8),
        discriminator=UNetDiscriminatorConfig(channels=4),
    )


def learned(
    config: GANUpscalerConfig, steps: int, rate: float = 4e-3
) -> tuple[GANUpscaler, list[dict[str, float]]]:
    """The losses of one batch, over and over."""
    torch.manual_seed(0)
    objective = GANUpscaler(config, CPU)
    optims, batch, told = optimizers(objective.model, replace(OPTIM, adam_lr=rate)), objective.batch(4, 0), []
    for _ in range(steps):
        parts = objective.loss(batch)
        torch.stack(list(parts.values())).sum().backward()
        for one in optims:
            one.step()
        objective.model.zero_grad()
        told.append({name: float(part.detach()) for name, part in parts.items()})
    return objective, told


def test_a_handful_of_pictures_is_learned(config: GANUpscalerConfig) -> None:
    """By the absolute error alone, four crops to an error of 0.04; an RRDBNet, which begins from
    nothing, to 0.15."""
    for shape, least, most in ((COMPACT, 0.075, 0.04), ({}, 0.45, 0.15)):
        alone = replace(config, sharpen=False, adversarial_start=10**6, **shape)  # type: ignore[arg-type]
        _, told = learned(alone, 40)
        assert told[0].keys() == {"pixels"}
        assert told[0]["pixels"] > least
        assert told[-1]["pixels"] < most


def test_both_players_learn(config: GANUpscalerConfig) -> None:
    """The pictures come nearer while the discriminator stays ahead of guessing (2 log 2)."""
    judge = UNetDiscriminatorConfig(channels=8)
    both = replace(config, sharpen=False, pixel_weight=2.0, discriminator=judge, **COMPACT)  # type: ignore[arg-type]
    _, told = learned(both, 20, 2e-3)
    assert told[0].keys() == {"pixels", "adversarial", "discriminator"}
    assert told[-1]["pixels"] < 0.9 * told[0]["pixels"]
    assert told[0]["discriminator"] > 1.38
    assert told[-1]["discriminator"] < 1.2


@pytest.mark.parametrize("compact", [False, True], ids=["rrdb", "compact"])
def test_what_is_written_is_read_as_a_published_upscaler(
    config: GANUpscalerConfig, tmp_path: Path, compact: bool
) -> None:
    if compact:
        config = replace(config, rrdb=None, compact=CompactConfig(features=8, depth=2))
    objective = GANUpscaler(config, CPU)
    averaged = {name: p.detach() + 0.01 for name, p in objective.model.named_parameters()}
    (path,) = objective.write(tmp_path, averaged, objective.header())
    assert ("body.0.weight" if compact else "conv_first.weight") in load_file(path)
    network = standalone.identify_network(path).load()
    objective.model.load_state_dict(averaged)
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(network(small), objective.upscaler(small))
    again = GANUpscaler(replace(config, rrdb=None, compact=None, start=str(path)), CPU)
    assert all(p.requires_grad for p in again.upscaler.parameters())
    before = path.read_bytes()
    with torch.no_grad():
        torch.testing.assert_close(again.upscaler(small), objective.upscaler(small))
        next(again.upscaler.parameters()).add_(1)
    assert path.read_bytes() == before


def test_a_run_resumes_bit_for_bit(
    config: GANUpscalerConfig, loop: LoopConfig, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    run = RunConfig(
        name="up",
        loop=replace(loop, images=8, batch=2),
        optim=OPTIM,
        gan_upscaler=replace(config, adversarial_start=2),
    )
    interrupted(run, tmp_path, 2)
    assert (tmp_path / "whole" / WRITTEN).is_file()


def test_the_discriminator_sees_real_pictures_and_the_upscaler_sharpened_ones(
    config: GANUpscalerConfig,
) -> None:
    objective = GANUpscaler(config, CPU)
    batch = objective.batch(2, 0, 3)
    assert batch.adversarial
    assert batch.small.shape == (2, 3, 8, 8)
    assert batch.real.shape == batch.wanted.shape == (2, 3, 32, 32)
    assert not torch.equal(batch.real, batch.wanted)
    assert not objective.batch(2, 0, 0).real.equal(batch.real)
    plain = GANUpscaler(replace(config, sharpen=False, adversarial_start=7), CPU).batch(2, 0, 3)
    assert torch.equal(plain.real, plain.wanted)
    assert not plain.adversarial


def test_what_does_not_go_together_is_refused(config: GANUpscalerConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of rrdb"):
        replace(config, compact=CompactConfig())
    with pytest.raises(ValueError, match="crop"):
        replace(config, crop=64)
    with pytest.raises(ConfigError, match="multiple of 3"):
        GANUpscaler(replace(config, rrdb=None, compact=CompactConfig(factor=3, features=8, depth=1)), CPU)
    Image.new("RGB", (24, 72)).save(tmp_path / "narrow.png")
    data = replace(config.data, folder=str(tmp_path), buckets=True)
    with pytest.raises(ConfigError, match=r"the shortest side of the buckets of .*, 24, got 32"):
        GANUpscaler(replace(config, data=data), CPU)


def test_errors_are_those_of_pixels_from_0_to_1(config: GANUpscalerConfig) -> None:
    """As in the published weights of the losses, whatever the range of pixels here."""
    objective = GANUpscaler(replace(config, adversarial_start=1), CPU)
    batch = objective.batch(2, 0, 0)
    drawn = (objective.upscaler(batch.small) + 1) / 2
    wanted = (drawn - (batch.wanted + 1) / 2).abs().mean()
    torch.testing.assert_close(objective.loss(batch), {"pixels": config.pixel_weight * wanted})
