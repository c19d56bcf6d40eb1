from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from limner.models.pixel_dit import PixelDiT, PixelDiTConfig
from limner.models.upscaler import Upscaler, UpscalerConfig
from limner.train.optim import Muon, OptimConfig, optimizers, orthogonalize, rate


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8), (3, 12, 20), (1, 5), (64, 48)])
def test_orthogonalize_brings_singular_values_to_one(shape: tuple[int, ...]) -> None:
    for scale in (1e-4, 1.0, 1e4):
        values = torch.linalg.svdvals(orthogonalize(scale * normal(*shape)))
        assert values.min() >= 0.6
        assert values.max() <= 1.3


def test_orthogonalize_keeps_the_singular_vectors() -> None:
    u, _, vh = torch.linalg.svd(normal(12, 20), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(-2.0, 0.0, 12)) @ vh
    rotated = u.T @ orthogonalize(matrix) @ vh.T
    assert (rotated - torch.diag(rotated.diag())).abs().max() < 1e-4
    assert rotated.diag().min() >= 0.6
    assert rotated.diag().max() <= 1.3


def test_orthogonalize_forgives_a_gradient_of_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_muon_steps_by_its_formula() -> None:
    """Two steps of a stacked matrix are those of its parts, each with its own momentum and decay."""
    parts, lr, momentum, decay = 3, 0.1, 0.9, 0.05
    p = nn.Parameter(normal(12, 8))
    muon = Muon([p], [parts], lr, momentum, decay)
    expected = p.detach().clone()
    buffer = torch.zeros_like(expected)
    for seed in (1, 2):
        grad = normal(12, 8, seed=seed)
        p.grad = grad.clone()
        muon.step()
        buffer = momentum * buffer + (1 - momentum) * grad
        update = momentum * buffer + (1 - momentum) * grad
        direction = torch.cat([orthogonalize(part) for part in update.chunk(parts)])
        expected = (1 - lr * decay) * expected - lr * 0.2 * 8**0.5 * direction
    torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_muon_step_has_the_size_of_an_adam_step() -> None:
    p = nn.Parameter(torch.zeros(32, 64))
    p.grad = 1e-3 * normal(32, 64)
    Muon([p], [1], 1.0, 0.95, 0.0).step()
    assert p.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_parameters_without_a_gradient_stay() -> None:
    p, q = nn.Parameter(normal(4, 4)), nn.Parameter(normal(4, 4))
    before = q.detach().clone()
    p.grad = normal(4, 4, seed=1)
    muon = Muon([p, q], [1, 1], 0.1, 0.9, 0.5)
    muon.step()
    assert torch.equal(q, before)
    assert q not in muon.state


def small() -> PixelDiT:
    return PixelDiT(
        PixelDiTConfig(
            vocabulary=9,
            size=8,
            patch=4,
            width=32,
            depth=2,
            heads=2,
            bottleneck=8,
            text_depth=1,
            head_channels=4,
        )
    )


def test_matrices_of_blocks_go_to_muon_and_every_parameter_to_one_optimiser() -> None:
    model = small()
    muon, adam = optimizers(model, OptimConfig())
    assert isinstance(muon, Muon)
    names = {id(p): name for name, p in model.named_parameters()}
    held = [id(p) for optim in (muon, adam) for group in optim.param_groups for p in group["params"]]
    assert sorted(held) == sorted(names)
    parts = {names[id(p)]: n for p, n in zip(muon.param_groups[0]["params"], muon.parts, strict=True)}
    assert parts["blocks.0.qkv.weight"] == 3
    assert parts["blocks.1.text_kv.weight"] == 2
    assert parts["text.blocks.0.mlp.inner.weight"] == 2
    assert parts["blocks.0.out.weight"] == 1
    assert all("blocks." in name and name.endswith(".weight") for name in parts)
    assert len(parts) == 2 * 5 + 4
    decayed, plain = adam.param_groups
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)


def test_networks_without_blocks_and_runs_without_muon_use_adam_alone() -> None:
    assert len(optimizers(torch.nn.Linear(2, 2), OptimConfig())) == 1
    (adam,) = optimizers(small(), OptimConfig(muon_lr=0.0, adam_lr=0.5))
    assert isinstance(adam, torch.optim.AdamW)
    assert {group["lr"] for group in adam.param_groups} == {0.5}


def test_kernels_of_inner_convolutions_are_matrices_too() -> None:
    network = Upscaler(UpscalerConfig(channels=4, depth=2))
    muon, adam = optimizers(network, OptimConfig(muon_lr=0.1))
    kernels = muon.param_groups[0]["params"]
    assert [id(p) for p in kernels] == [id(layer.weight) for layer in network.inner]
    before = network.inner[0].weight.detach().clone()
    network.initialize(torch.Generator().manual_seed(0))
    network(normal(1, 3, 8, 8), torch.zeros(1)).square().mean().backward()
    network.inner[0].weight.grad = normal(*before.shape)
    before = network.inner[0].weight.detach().clone()
    muon.step()
    step = (network.inner[0].weight - before).detach().flatten(1) / (0.1 * 0.2 * 36**0.5)
    assert torch.linalg.svdvals(step).tolist() == pytest.approx([1.0] * 4, abs=0.3)  # orthogonal rows
    assert adam.param_groups[0]["params"]


def test_steps_reduce_the_loss() -> None:
    model = small()
    model.initialize(torch.Generator().manual_seed(0))
    optims = optimizers(model, OptimConfig(muon_lr=0.01, adam_lr=0.01))
    x_t, x0, t = normal(4, 3, 8, 8), normal(4, 3, 8, 8, seed=1), torch.full((4,), 0.5)
    tokens = torch.tensor([[1, 2], [1, 3], [1, 4], [1, 5]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    losses = []
    for _ in range(15):
        loss = (model(x_t, t, *model.encode(tokens, mask), mask) - x0).square().mean()
        loss.backward()
        for optim in optims:
            optim.step()
            optim.zero_grad()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        *(({name: -1.0}, f"{name} is at least 0") for name in ("muon_lr", "adam_lr", "weight_decay")),
        ({"warmup": -1}, "warmup is at least 0"),
        *(({"momentum": share}, "momentum is from 0 to below 1") for share in (-0.1, 1.0)),
        *(({"betas": betas}, "betas is from 0 to below 1") for betas in ((0.9, 1.0), (-0.1, 0.9))),
        *(({"decay": share}, "decay is a share of the run") for share in (-0.1, 1.1)),
        *(({"clip": norm}, "clip is above 0") for norm in (0.0, -1.0)),
    ],
)
def test_settings_that_cannot_train(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**setting)


def test_the_edges_of_the_settings_can() -> None:
    OptimConfig(
        muon_lr=0.0, adam_lr=0.0, weight_decay=0.0, warmup=0, momentum=0.0, betas=(0.0, 0.0), decay=1.0
    )


def test_the_rate_rises_holds_and_falls_to_zero() -> None:
    config = OptimConfig(warmup=100, decay=0.25)
    rates = [rate(config, seen, 1000) for seen in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[99:751] == [1.0] * 652
    assert rates[875] == pytest.approx(0.5)
    assert rates[1000] == 0
    assert rate(config, 1200, 1000) == 0
    assert rate(OptimConfig(warmup=0, decay=0.0), 999, 1000) == 1
    assert min(rates) >= 0
