import pytest
import torch
from torch import Tensor

from limner.nn.norms import RMSNorm, SwiGLU, modulate


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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
