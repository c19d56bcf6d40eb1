"""Choosing tokens: by formula, and by frequency."""

import pytest
import torch

from limner.nn.choice import Sampling, chances, choose, guided


def test_guidance_multiplies_chances_by_a_power_of_their_ratio() -> None:
    generator = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(2, 3, 7, generator=generator)
    p, q = cond.softmax(-1), uncond.softmax(-1)
    for scale in (0.0, 1.0, 2.5):
        wanted = q * (p / q) ** scale
        torch.testing.assert_close(
            guided(cond, uncond, scale).softmax(-1), wanted / wanted.sum(-1, keepdim=True)
        )
    assert torch.equal(guided(cond, cond, 7.0), cond)


def test_chances_are_a_softmax_of_what_is_kept() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()
    torch.testing.assert_close(chances(logits).float(), logits.exp())
    cold = chances(logits, Sampling(temperature=0.5)).float()
    torch.testing.assert_close(cold, logits.exp() ** 2 / (logits.exp() ** 2).sum(1, keepdim=True))
    two = chances(logits, Sampling(top_k=2)).float()
    torch.testing.assert_close(two, torch.tensor([[0.625, 0.375, 0, 0], [0, 0, 0.375, 0.625]]))
    for share, kept in ((0.4, 1), (0.6, 2), (0.85, 3), (1.0, 4)):  # as many as it takes to reach the share
        assert (chances(logits, Sampling(top_p=share)) > 0).sum(1).tolist() == [kept, kept]
    assert (chances(logits, Sampling(top_k=1, top_p=0.99)) > 0).sum(1).tolist() == [1, 1]


def test_one_number_decides_one_token() -> None:
    p = torch.tensor([[0.2, 0.0, 0.5, 0.3, 0.0]]).double()
    for u, token in ((0.0, 0), (0.19, 0), (0.2, 2), (0.69, 2), (0.71, 3), (1.0, 3)):
        assert choose(p, torch.tensor([u])).tolist() == [token]


def test_tokens_come_as_often_as_they_should() -> None:
    p = torch.tensor([0.1, 0.6, 0.3]).double()
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(choose(p.expand(20_000, 3), u), minlength=3) / 20_000
    assert share.tolist() == pytest.approx(p.tolist(), abs=0.01)
