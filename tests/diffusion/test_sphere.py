"""Between two vectors, along the sphere."""

import math

import pytest
import torch

from limner.diffusion.sphere import slerp


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_equal_shares_are_equal_angles(share: float) -> None:
    one, other = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    turn = share * math.pi / 2
    expected = torch.tensor([[math.cos(turn), math.sin(turn)], [2 * math.sin(turn), 2 * math.cos(turn)]])
    torch.testing.assert_close(slerp(one, other, share), expected)


def test_the_ends_are_exact() -> None:
    one, other = (torch.randn(2, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(slerp(one, other, 0.0), one)
    assert torch.equal(slerp(one, other, 1.0), other)


def test_where_there_is_no_arc_the_way_is_straight() -> None:
    one = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(slerp(one, 3 * one, 0.25), torch.tensor([1.5, 0.0]))
    torch.testing.assert_close(slerp(one, -one, 0.25), torch.tensor([0.5, 0.0]))
    assert slerp(one, torch.zeros(2), 0.25).isfinite().all()


def test_the_type_stays() -> None:
    half = torch.ones(2, 4, dtype=torch.bfloat16)
    assert slerp(half, -half, 0.3).dtype == torch.bfloat16
