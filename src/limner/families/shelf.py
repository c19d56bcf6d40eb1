"""Where a model's networks lie while they are not asked: all at hand, or one at a time.

With `offload` the peak of memory is the largest network and not the sum of all. No pixel depends on it.
"""

from collections.abc import Callable, Mapping

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
        self._held: dict[tuple[int, str], nn.Module] = {}  # by shelf and name; may be shared by shelves

    def take(self, name: str) -> nn.Module:
        """The network called `name`, on the device. Raises KeyError for a name that there is none of, and
        WeightsError where its file has gone or changed."""
        key, load = (id(self), name), self.loaders[name]
        on_cpu = self.device.type == "cpu"
        for other in [one for one in self._held if self.offload and one != key]:
            if on_cpu:
                del self._held[other]
            else:
                self._held[other].to("cpu")
        if key not in self._held:
            self._held[key] = load(self.device)
        network = self._held[key]
        if self.offload and not on_cpu:
            network.to(self.device)
        if self.ready is not None:
            self.ready(name, network)
        return network

    def beside(self, other: "Shelf") -> None:
        """From now on the networks of `other` are put away for those of this one, and the other way round."""
        self._held |= other._held
        other._held = self._held
