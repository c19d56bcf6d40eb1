import math

import pytest
import torch
from torch import Tensor

from limner.nn.attention import attention, qk_norm
from limner.nn.embeddings import positions_2d, timestep_embedding
from limner.nn.norms import RMSNorm, SwiGLU, modulate


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_attention_is_its_formula() -> None:
    q, k, v = normal(2, 3, 4, 8), normal(2, 3, 5, 8, seed=1), normal(2, 3, 5, 8, seed=2)
    weights = (q @ k.mT / math.sqrt(8)).softmax(-1)
    expected = (weights @ v).transpose(1, 2).reshape(2, 4, 24)
    torch.testing.assert_close(attention(q, k, v), expected)


def test_masked_keys_are_as_if_not_there() -> None:
    q, k, v = normal(2, 3, 4, 8), normal(2, 3, 5, 8, seed=1), normal(2, 3, 5, 8, seed=2)
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    out = attention(q, k, v, mask=mask)
    torch.testing.assert_close(out[:1], attention(q[:1], k[:1, :, :3], v[:1, :, :3]))
    torch.testing.assert_close(out[1:], attention(q[1:], k[1:], v[1:]))


def test_qk_norm_bounds_the_logits() -> None:
    scale = torch.linspace(0.5, 2.0, 8)
    normed = qk_norm(100 * normal(2, 3, 4, 8), scale)
    torch.testing.assert_close((normed / scale).square().mean(-1), torch.ones(2, 3, 4))


def test_rms_norm_and_its_scale() -> None:
    norm = RMSNorm(6)
    norm.scale.data = torch.arange(6.0)
    x = normal(2, 3, 6)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * torch.arange(6.0)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize(("width", "inner"), [(256, 704), (24, 64), (48, 128)])
def test_swiglu_is_its_formula_and_eight_thirds_wide(width: int, inner: int) -> None:
    layer = SwiGLU(width)
    assert layer.inner.weight.shape == (2 * inner, width)
    x = normal(2, width)
    gate, value = layer.inner.weight.split(inner)
    expected = (torch.nn.functional.silu(x @ gate.T) * (x @ value.T)) @ layer.out.weight.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_modulate() -> None:
    x, shift, scale = normal(2, 3, 4), normal(2, 1, 4, seed=1), normal(2, 1, 4, seed=2)
    torch.testing.assert_close(modulate(x, shift, scale), x * (1 + scale) + shift)
    assert torch.equal(modulate(x, torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)), x)


def test_timestep_embedding_by_its_definition() -> None:
    embedded = timestep_embedding(torch.tensor([0.0, 3.5]), 8, period=100.0)
    assert embedded.shape == (2, 8)
    assert embedded[0].tolist() == [1.0] * 4 + [0.0] * 4
    for i in range(4):
        angle = 3.5 / 100 ** (i / 4)
        assert embedded[1, i].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert embedded[1, 4 + i].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_positions_tell_rows_and_columns_apart() -> None:
    grid = positions_2d(3, 5, 16).reshape(3, 5, 16)
    rows, columns = grid.split(8, -1)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert torch.equal(columns, columns[:1].expand_as(columns))
    distances = torch.cdist(grid.flatten(0, 1), grid.flatten(0, 1))
    assert distances[~torch.eye(15, dtype=torch.bool)].min() > 0.3
