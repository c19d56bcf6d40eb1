"""A running average of the weights, which draws better than the weights themselves."""

import torch
import torch.nn as nn
from torch import Tensor

from limner.errors import ConfigError


def exponent(width: float) -> float:
    """The power gamma whose averaging profile t^gamma has standard deviation `width` of the run so far.

    Solves width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (Karras et al. 2024, "EDM2", eq. 123) by
    bisection; width lies in (0, 0.28). Raises ConfigError for another width.
    """
    if not 0 < width < 0.28:
        raise ConfigError(f"loop.ema is a share of the run between 0 and 0.28, got {width}.")
    low, high = 0.0, 1e6
    for _ in range(100):
        gamma = (low + high) / 2
        spread = (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))
        low, high = (gamma, high) if spread > width**2 else (low, gamma)
    return gamma


class EMA:
    """Average of a model's parameters whose memory grows with the run (Karras et al. 2024, section 3.1)."""

    def __init__(self, model: nn.Module, width: float) -> None:
        self.gamma = exponent(width)
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, images_seen: int, batch: int) -> None:
        """Take in the weights after `images_seen` pictures, `batch` of them in the last step."""
        beta = max(0.0, 1 - batch / images_seen) ** (self.gamma + 1)  # eq. 127
        for name, p in model.named_parameters():
            self.weights[name].lerp_(p.detach(), 1 - beta)

    def copy_to(self, model: nn.Module) -> None:
        """Load the average into `model`."""
        model.load_state_dict(self.weights, strict=True)

    def state(self) -> dict[str, Tensor]:
        """The averaged parameters by name; not copies."""
        return self.weights
