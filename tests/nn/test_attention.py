import math

import pytest
import torch
from torch import Tensor

from limner.nn.attention import attention, qk_norm


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


@pytest.mark.parametrize(("dtype", "keys", "off"), [(torch.float32, 77, 1e-5), (torch.bfloat16, 600, 0.02)])
def test_the_quicker_ways_on_the_cpu_agree(dtype: torch.dtype, keys: int, off: float) -> None:
    q, k, v = normal(2, 3, 600, 40), normal(2, 3, keys, 40, seed=1), normal(2, 3, keys, 40, seed=2)
    expected = attention(q, k, v)
    with torch.inference_mode():
        found = attention(q.to(dtype), k.to(dtype), v.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < off * expected.abs().max()
