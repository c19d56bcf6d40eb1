"""A running average of the weights, which draws better than the weights themselves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
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
    """Average of parameters whose memory grows with the run (Karras et al. 2024, section 3.1).

    `parameters`, by name, are those that a run changes; they are read at every update. The average lies as
    they do: where they are spread over processes, so is it.
    """

    def __init__(self, parameters: Mapping[str, Tensor], width: float) -> None:
        self.gamma = exponent(width)
        self.parameters = dict(parameters)
        self.weights = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, images_seen: int, batch: int) -> None:
        """Take in the weights after `images_seen` pictures, `batch` of them in the last step."""
        beta = max(0.0, 1 - batch / images_seen) ** (self.gamma + 1)  # eq. 127
        for name, p in self.parameters.items():
            self.weights[name].lerp_(p.detach(), 1 - beta)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The average stands in the parameters' place; what they held is put back afterwards."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            self._put(self.weights)
            yield
        finally:
            self._put(kept)

    def state(self) -> dict[str, Tensor]:
        """The averaged parameters by name; not copies."""
        return self.weights

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.parameters.items():
            p.copy_(values[name])
