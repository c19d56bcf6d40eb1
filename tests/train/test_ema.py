import pytest
import torch
import torch.nn as nn

from limner.errors import ConfigError
from limner.train.ema import EMA, exponent


@pytest.mark.parametrize("gamma", [0.5, 3.0, 6.94, 16.97, 100.0])
def test_exponent_undoes_the_closed_form(gamma: float) -> None:
    """The standard deviation of the profile t^gamma on [0, 1], EDM2 eq. 123."""
    width = ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5
    assert exponent(width) == pytest.approx(gamma, rel=1e-6)


def test_exponents_that_the_paper_names() -> None:
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.28, 1.0])
def test_widths_out_of_range(width: float) -> None:
    with pytest.raises(ConfigError, match="got"):
        exponent(width)


def test_updates_are_the_average_of_all_weights_so_far() -> None:
    """Weighted by how much of t^gamma lies in each step; the weights before the first step count nothing."""
    model = nn.Linear(3, 2)
    ema = EMA(dict(model.named_parameters()), 0.1)
    seen, batch, total = 0, 8, 20 * 8
    history = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        seen += batch
        ema.update(seen, batch)
        share = (seen / total) ** (ema.gamma + 1) - ((seen - batch) / total) ** (ema.gamma + 1)
        history.append((share, model.weight.detach().clone()))
    assert sum(share for share, _ in history) == pytest.approx(1)
    expected = torch.stack([share * weight for share, weight in history]).sum(0)
    torch.testing.assert_close(ema.state()["weight"], expected)


def test_the_average_in_place_leaves_both_untouched() -> None:
    model = nn.Linear(3, 2)
    ema = EMA(dict(model.named_parameters()), 0.1)
    kept = ema.state()["weight"].clone()
    with torch.no_grad():
        model.weight.zero_()
    with ema.in_place():
        assert torch.equal(model.weight, kept)
    assert not model.weight.any()
    with pytest.raises(KeyboardInterrupt), ema.in_place():
        raise KeyboardInterrupt
    assert not model.weight.any()
    assert torch.equal(ema.state()["weight"], kept)
