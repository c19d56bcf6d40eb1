"""Noise of each picture: a function of its own seed, never of the batch it is drawn in.

Everything is drawn on the CPU in float32, so a seed means the same picture on every device.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from limner.errors import RequestError

SEED_LIMIT = 2**63  # seeds are 0 <= seed < SEED_LIMIT, what a signed 64-bit column of a database holds
_WORD = 2**64


def mix(*words: int) -> int:
    """Hash of whole numbers into [0, 2**64): SplitMix64 (Steele et al. 2014, figure 16), folded over them.

    Order matters, so (1, 2) and (2, 1) differ; so do (0,) and (0, 0).
    """
    state = 0
    for word in words:
        z = (state + word + 0x9E3779B97F4A7C15) % _WORD
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
        state = z ^ (z >> 31)
    return state


class NoiseSource:
    """Standard normal noise for a batch, one picture per seed.

    Raises RequestError when there is no seed, or one is not a whole number in [0, 2**63).
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        for seed in seeds:
            if type(seed) is not int or not 0 <= seed < SEED_LIMIT:
                raise RequestError(f"a seed is a whole number from 0 to 2**63 - 1, got {seed!r}")
        if not seeds:
            raise RequestError("no seeds: give one for each picture")
        self.seeds = tuple(seeds)

    def initial(self, shape: tuple[int, ...], tag: int = 0) -> Float[Tensor, "b *shape"]:
        """The noise that pictures of `shape` (without the batch) start from; the same at every call, and
        another one for every `tag`: the stages of a picture are not to begin alike.

        A seed below 2**32 starts as `torch.Generator().manual_seed(seed)` does, so seeds found with other
        tools keep their meaning. torch's CPU engine reads only 32 bits of a seed, so larger ones are mixed
        first.
        """
        if tag:
            return self._draw(shape, [mix(seed, tag) for seed in self.seeds])
        return self._draw(shape, [seed if seed < 2**32 else mix(seed) for seed in self.seeds])

    def step(self, index: int, shape: tuple[int, ...], tag: int = 0) -> Float[Tensor, "b *shape"]:
        """Fresh noise for step `index` of a sampler, keyed by (seed, index, tag), whatever was drawn before.

        `tag` sets uses of noise in one step apart: 0 is the sampler's own.
        """
        return self._draw(shape, [mix(seed, index, tag) for seed in self.seeds])

    def draws(self, shape: tuple[int, ...], tag: int = 0) -> Callable[[int], Tensor]:
        """`step` with its shape settled: what a sampler takes as its `noise`."""
        return lambda index: self.step(index, shape, tag)

    def _draw(self, shape: tuple[int, ...], streams: Sequence[int]) -> Tensor:
        pictures = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in streams]
        return torch.stack(pictures)
