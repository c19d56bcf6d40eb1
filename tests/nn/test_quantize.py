"""Codes: the nearest is taken, gradients pass, running means move, the dead are revived."""

import pytest
import torch
import torch.nn.functional as F

from limner.nn.quantize import VectorQuantizer, perplexity


def quantizer(codes: torch.Tensor) -> VectorQuantizer:
    made = VectorQuantizer(*codes.shape)
    made.codes.data.copy_(codes)
    return made


def features(*rows: list[float]) -> torch.Tensor:
    """One picture of a single row of features."""
    return torch.tensor([[list(row) for row in zip(*rows, strict=True)]])[:, :, None]


def test_every_feature_gets_its_nearest_code() -> None:
    generator = torch.Generator().manual_seed(0)
    made = quantizer(torch.randn(20, 6, generator=generator))
    z = torch.randn(3, 6, 4, 5, generator=generator)
    done = made(z)
    rows = z.movedim(1, -1).reshape(-1, 6)
    nearest = torch.cdist(rows, made.codes).argmin(1).reshape(3, 4, 5)
    assert torch.equal(done.tokens, nearest)
    torch.testing.assert_close(done.q, made.codes[nearest].movedim(-1, 1))
    torch.testing.assert_close(done.commitment, F.mse_loss(z, done.q))


def test_gradients_pass_straight_through_and_leave_the_codes_alone() -> None:
    made = quantizer(torch.randn(8, 4))
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    done = made(z)
    weight = torch.randn(2, 4, 3, 3)
    (done.q * weight).sum().backward(retain_graph=True)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, weight)
    z.grad = None
    done.commitment.backward()
    torch.testing.assert_close(z.grad, 2 * (z - made.codes[done.tokens].movedim(-1, 1)).detach() / z.numel())
    assert made.codes.grad is None


def test_learning_is_the_running_mean_of_counts_and_sums() -> None:
    """Against N' = decay N + (1 - decay) n, m' = decay m + (1 - decay) sum, e = m / N, kept as they stand."""
    generator = torch.Generator().manual_seed(1)
    made = quantizer(torch.randn(5, 3, generator=generator))
    count, total = torch.ones(5), made.codes.detach().clone()
    for _ in range(20):
        z = torch.randn(2, 3, 4, 4, generator=generator)
        tokens = made(z).tokens
        chosen = F.one_hot(tokens.flatten(), 5).float() * 5 / 32  # as multiples of a fair share
        count = 0.9 * count + 0.1 * chosen.sum(0)
        total = 0.9 * total + 0.1 * chosen.T @ z.movedim(1, -1).reshape(-1, 3)
        made.learn(z, tokens, torch.zeros(5), decay=0.9, least=0.0)
        torch.testing.assert_close(made.use.detach(), count)
        torch.testing.assert_close(made.codes.detach(), total / count[:, None])


def test_a_code_that_nothing_chooses_moves_to_a_feature_of_the_batch() -> None:
    made = quantizer(torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
    made.use.data.copy_(torch.tensor([1.0, 0.03]))
    z = features([0.1, 0.0], [0.0, 0.2], [0.3, 0.3], [0.0, 0.0])
    made.learn(z, made(z).tokens, torch.tensor([0.0, 0.6]), decay=0.9, least=0.03)
    assert made.codes[1].tolist() == pytest.approx([0.3, 0.3])  # the feature at share 0.6 of four
    assert made.use[1].item() == pytest.approx(0.12)
    assert made.codes[0].norm() < 0.1


def test_codes_all_come_into_use_when_the_dead_are_revived() -> None:
    """Features in 32 clumps, and codes that all begin in one corner."""
    generator = torch.Generator().manual_seed(2)
    places = torch.rand(32, 4, generator=generator) * 10
    used = {}
    for least in (0.0, 0.05):
        made = quantizer(100 + torch.rand(32, 4, generator=torch.Generator().manual_seed(3)))
        for _ in range(150):
            rows = places[torch.randint(32, (256,), generator=generator)]
            z = (rows + 0.01 * torch.randn(256, 4, generator=generator)).T[None, :, None]
            made.learn(z, made(z).tokens, torch.rand(32, generator=generator), decay=0.8, least=least)
        used[least] = len(made(places.T[None, :, None]).tokens.unique())
    assert used[0.0] < 8
    assert used[0.05] > 20


def test_a_batch_that_is_not_finite_changes_nothing() -> None:
    made = quantizer(torch.randn(4, 2))
    before = made.codes.detach().clone(), made.use.detach().clone()
    z = torch.randn(1, 2, 2, 2)
    z[0, 0, 0, 0] = float("nan")
    made.learn(z, made(z.nan_to_num()).tokens, torch.zeros(4), decay=0.9, least=0.5)
    assert torch.equal(made.codes, before[0])
    assert torch.equal(made.use, before[1])


def test_codes_that_are_not_known_yet_are_the_mean() -> None:
    made = quantizer(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    found = made.look_up(torch.tensor([[[-1, 1]]]))
    assert found[0, :, 0].T.tolist() == [[2.0, 4.0], [3.0, 6.0]]


def test_perplexity_counts_codes_as_if_equally_frequent() -> None:
    assert perplexity(torch.arange(8).reshape(1, 2, 4), 16).item() == pytest.approx(8)
    assert perplexity(torch.zeros(1, 2, 2, dtype=torch.long), 16).item() == pytest.approx(1)
    p = torch.tensor([0.75, 0.25])
    expected = float((-(p * p.log()).sum()).exp())
    assert perplexity(torch.tensor([[[0, 0, 0, 1]]]), 2).item() == pytest.approx(expected)
