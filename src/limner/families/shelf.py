"""Where a model's networks lie while they are not asked: all at hand, or one at a time.

With `offload` the peak of memory is the largest network and not the sum of all. No pixel depends on it.
Control networks are not on shelves: those in use stay on the device beside what is taken.
"""

from collections.abc import Callable, Mapping
from weakref import WeakSet

import torch
from torch import nn

Loader = Callable[[torch.device], nn.Module]  # such as `detect.loader` makes; keeps no tensors itself
Ready = Callable[[str, nn.Module], None]


class Shelf:
    """Networks by name, loaded when they are first taken.

    Whoever takes one asks it and lets go of it: what is kept elsewhere cannot be put away. With `offload`,
    taking one puts all others away first: on the CPU they are dropped, for their files are memory-mapped and
    soon read again; from a GPU they move to main memory.
    """

    def __init__(
        self,
        loaders: Mapping[str, Loader],
        device: torch.device,
        offload: bool = False,
        ready: Ready | None = None,  # done to a network whenever it is taken, such as putting LoRAs over it
    ) -> None:
        self.loaders = dict(loaders)
        self.device = device
        self.offload = offload
        self.ready = ready
        self._held: dict[str, nn.Module] = {}
        self._together = WeakSet((self,))  # shelves that put networks away for each other, this one with them

    def take(self, name: str) -> nn.Module:
        """The network called `name`, on the device. Raises KeyError for a name that there is none of, and
        WeightsError where its file has gone or changed."""
        load = self.loaders[name]
        if self.offload:
            for shelf in tuple(self._together):
                shelf._put_away(but=name if shelf is self else None)
        if name not in self._held:
            self._held[name] = load(self.device)
        network = self._held[name]
        if self.offload and self.device.type != "cpu":
            network.to(self.device)
        if self.ready is not None:
            self.ready(name, network)
        return network

    def forget(self) -> None:
        """Load each network anew when it is next taken."""
        self._held.clear()

    def beside(self, other: "Shelf") -> None:
        """From now on the networks of `other` are put away for those of this one, and the other way round,
        as long as both are in use: neither keeps the other."""
        together = self._together | other._together
        for shelf in together:
            shelf._together = together

    def _put_away(self, but: str | None) -> None:
        for name in [name for name in self._held if name != but]:
            if self.device.type == "cpu":
                del self._held[name]
            else:
                self._held[name].to("cpu")
