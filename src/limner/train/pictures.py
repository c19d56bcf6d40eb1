"""Pictures of a folder for objectives that want nothing of them but pixels and captions."""

import torch
from jaxtyping import Float
from torch import Tensor

from limner.data.loader import Loaded, Loader, LoaderConfig
from limner.errors import ConfigError


class Pictures:
    """A `Loader` that remembers which pictures were broken."""

    def __init__(self, config: LoaderConfig, device: torch.device, multiple: int) -> None:
        """`multiple`: what sides of pictures have to be multiples of. Raises ConfigError where they are not,
        or where latents are asked for; DataError where there are no pictures."""
        step, name = (config.bucket_step, "bucket_step") if config.buckets else (config.size, "size")
        if step % multiple:
            raise ConfigError(f"{name} of {config.folder} is a multiple of {multiple} here, got {step}")
        if config.latents:
            raise ConfigError(
                f"this run learns from pixels: leave out `latents` of {config.folder}, which are "
                "computed from them"
            )
        self.loader, self.device = Loader(config), device
        self.met = [f"{key}: {why}" for key, why in self.loader.left_out]

    @property
    def shortest(self) -> int:
        """The shortest side in pixels that a picture comes with."""
        return min(map(min, self.loader.sides))

    def batch(self, count: int, seed: int, index: int) -> tuple[Float[Tensor, "b 3 h w"], Loaded]:
        """Pixels on the device, and all that is known of them. As `Loader.batch`."""
        loaded = self.loader.batch(count, index, seed)
        self.met += [f"{key}: {why}" for key, why in loaded.broken]
        assert loaded.pixels is not None  # no latents were asked for
        return loaded.pixels.to(self.device), loaded

    def shown(self, count: int) -> Float[Tensor, "b 3 h w"]:
        """The same pictures at every call, for sheets."""
        return self.batch(count, 0, 0)[0]

    def broken(self) -> list[str]:
        """As the protocol `Broken` has it."""
        met, self.met = list(dict.fromkeys(self.met)), []
        return met
