"""Stages, and the wrapper that keeps pictures apart."""

import torch
from torch import Tensor

from limner.diffusion import grids, samplers
from limner.diffusion.paths import FlowPath
from limner.families.mini_stages import upscale
from limner.families.stages import DiffusionStage, Tag, one_by_one
from limner.models.upscaler import Upscaler, UpscalerConfig
from limner.util.rng import NoiseSource


def test_one_by_one_asks_for_each_picture_by_itself() -> None:
    asked: list[tuple[int, float]] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        asked.append((len(x), float(t)))
        return 2 * x

    x = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(one_by_one(denoise)(x, torch.tensor([0.1, 0.2, 0.3])), 2 * x)
    assert [count for count, _ in asked] == [1, 1, 1]
    assert torch.allclose(torch.tensor([t for _, t in asked]), torch.tensor([0.1, 0.2, 0.3]))


def test_diffusion_starts_from_the_noise_of_the_seeds_and_walks_the_grid() -> None:
    seen: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return torch.full_like(x, 0.5)

    stage = DiffusionStage(
        denoise=denoise,
        grid=grids.uniform(FlowPath(), 3),
        sampler=samplers.euler,
        shape=(3, 4, 4),
        device=torch.device("cpu"),
    )
    noise = NoiseSource([1, 2])
    steps = list(stage.run(None, noise))
    assert len(steps) == stage.steps == 3
    assert torch.equal(seen[0], noise.initial((3, 4, 4)))
    assert torch.allclose(steps[-1].x, torch.full((2, 3, 4, 4), 0.5))


def test_every_stage_begins_with_noise_of_its_own() -> None:
    seen: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    noise = NoiseSource([1, 2])
    for tag in (Tag.FIRST, Tag.SECOND, Tag.LARGER + 2, Tag.LARGER + 3):
        stage = DiffusionStage(
            denoise=denoise, grid=grids.uniform(FlowPath(), 1), sampler=samplers.euler, shape=(3, 4, 4),
            device=torch.device("cpu"), tag=tag,
        )  # fmt: skip
        list(stage.run(None, noise))
        assert torch.equal(seen[-1], noise.initial((3, 4, 4), tag))
    likeness = torch.corrcoef(torch.stack([start.flatten() for start in seen])) - torch.eye(4)
    assert likeness.abs().max() < 0.5  # 96 independent values: four standard errors are 0.41


def test_no_two_uses_of_noise_share_a_tag() -> None:
    assert len(Tag) == len(Tag.__members__)  # of names with one value all but the first would be missing
    assert max(Tag) == Tag.LARGER  # beyond it are those of cascades
    assert Tag.FIRST == 0
    assert (Tag.REFINER, Tag.SECOND_REFINER) == (Tag.FIRST + 1, Tag.SECOND + 1)


def test_upscaling_is_one_step_that_tells_the_network_its_noise() -> None:
    network = Upscaler(UpscalerConfig(factor=4, channels=4, depth=2))
    network.initialize(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(network.last.weight, generator=torch.Generator().manual_seed(1))
    network.requires_grad_(False)
    pixels = torch.rand(3, 3, 8, 8) * 2 - 1
    steps = list(upscale(network, 0.1, 32).run(pixels, NoiseSource([0, 1, 2])))
    assert len(steps) == 1
    assert steps[0].x.shape == (3, 3, 32, 32)
    assert torch.allclose(steps[0].x, network(pixels, torch.full((3,), 0.1)), atol=1e-5)
    assert not torch.allclose(steps[0].x, network(pixels, torch.zeros(3)), atol=1e-3)


def test_upscaling_arrives_at_any_multiple_of_the_factor() -> None:
    network = Upscaler(UpscalerConfig(factor=2, channels=4, depth=2))
    network.initialize(torch.Generator().manual_seed(0))
    flat = torch.full((1, 3, 6, 6), 0.25)
    (step,) = upscale(network, 0.0, 16).run(flat, NoiseSource([0]))
    assert step.x.shape == (1, 3, 16, 16)
    assert torch.allclose(step.x, torch.full((1, 3, 16, 16), 0.25), atol=1e-5)  # untrained, it only enlarges
