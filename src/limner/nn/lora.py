"""Low-rank updates of layers, laid over a network and taken off again (Hu et al. 2021, section 4.1).

    W x  becomes  W x + weight * alpha / rank * up(down(x))

The layers themselves are never written to: an updated layer stands inside a `LowRank`, and when its last
update goes, the very same module is put back.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from limner.errors import WeightsError


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One layer's update. For a convolution, `down` has the layer's kernel and `up` is 1x1."""

    down: Float[Tensor, "r i *kernel"]
    up: Float[Tensor, "o r *one"]
    alpha: float | None = None  # None: as large as the rank, so that the update counts as it is

    @property
    def rank(self) -> int:
        """Channels between the two."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class LowRank(nn.Module):
    """A linear layer or convolution with named updates; takes and gives what the layer does."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.updates: dict[str, tuple[Tensor, Tensor, float]] = {}  # name -> down, up, alpha / rank
        self.weights: dict[str, float] = {}

    @property
    def weight(self) -> Tensor:
        """The layer's weight with all updates in it, for those who read it instead of calling the layer."""
        whole = self.layer.weight
        for name, (down, up, scale) in self.updates.items():
            update = rearrange(up, "o r ... -> o (r ...)") @ rearrange(down, "r ... -> r (...)")
            whole = whole + self.weights[name] * scale * update.reshape(whole.shape)
        return whole

    @property
    def bias(self) -> Tensor | None:
        """The layer's own."""
        return self.layer.bias

    def forward(self, x: Float[Tensor, "b *n"]) -> Float[Tensor, "b *m"]:
        y: Tensor = self.layer(x)
        for name, (down, up, scale) in self.updates.items():
            if weight := self.weights[name] * scale:
                y = y + weight * self._through(x, down, up)
        return y

    def _through(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return F.linear(F.linear(x, down), up)
        inner = self.layer._conv_forward(x, down, None)  # with its stride and its way of padding
        return F.conv2d(inner, up)


def attach(network: nn.Module, name: str, updates: Mapping[str, Update], weight: float = 1.0) -> None:
    """Lay `updates`, {name of a layer in `network`: update}, over the network under one `name`.

    Raises WeightsError, and changes nothing, when `name` is taken, when a layer is missing or of a kind that
    cannot be updated, or when an update has another shape.
    """
    if name in attached(network):
        raise WeightsError(f'an update called "{name}" is attached already; detach it or choose another name')
    fitted = {place: _fitted(network, place, update) for place, update in updates.items()}
    for place, (down, up, scale) in fitted.items():
        parent, _, child = place.rpartition(".")
        layer = network.get_submodule(place)
        if not isinstance(layer, LowRank):
            layer = LowRank(layer)  # type: ignore[arg-type]
            setattr(network.get_submodule(parent), child, layer.train(network.training))
        layer.updates[name], layer.weights[name] = (down, up, scale), weight


def set_weight(network: nn.Module, name: str, weight: float) -> None:
    """How much the updates called `name` count from now on. Raises WeightsError when there are none."""
    if name not in attached(network):
        raise WeightsError(f'no update called "{name}" is attached; there are: {attached(network) or "none"}')
    for module in network.modules():
        if isinstance(module, LowRank) and name in module.weights:
            module.weights[name] = weight


def detach(network: nn.Module, name: str | None = None) -> None:
    """Take off the updates called `name`, or all of them. Layers without any are put back as they were."""
    for place, module in list(network.named_modules()):
        if not isinstance(module, LowRank):
            continue
        for gone in list(module.updates) if name is None else [name]:
            module.updates.pop(gone, None)
            module.weights.pop(gone, None)
        if not module.updates:
            parent, _, child = place.rpartition(".")
            setattr(network.get_submodule(parent), child, module.layer)


def attached(network: nn.Module) -> tuple[str, ...]:
    """Names of the updates that lie over `network`, the oldest first."""
    layers = (module for module in network.modules() if isinstance(module, LowRank))
    return tuple(dict.fromkeys(name for layer in layers for name in layer.updates))


def fits(network: nn.Module, place: str, update: Update) -> bool:
    """Whether `update` has the shapes that the layer called `place` needs."""
    try:
        _fitted(network, place, update)
    except WeightsError:
        return False
    return True


def _fitted(network: nn.Module, place: str, update: Update) -> tuple[Tensor, Tensor, float]:
    """The factors in the layer's form, type and device. 1x1 convolutions and linear layers are one thing."""
    try:
        layer = network.get_submodule(place)
    except AttributeError:
        raise WeightsError(f"the network has no layer {place} to update") from None
    layer = layer.layer if isinstance(layer, LowRank) else layer
    if not isinstance(layer, nn.Linear | nn.Conv2d) or (isinstance(layer, nn.Conv2d) and layer.groups != 1):
        raise WeightsError(
            f"{place} is a {type(layer).__name__}; only linear layers and convolutions are updated"
        )
    down, up = update.down, update.up
    if isinstance(layer, nn.Linear):
        down, up = (t[:, :, 0, 0] if t.ndim == 4 and t.shape[2:] == (1, 1) else t for t in (down, up))
    else:
        down, up = (rearrange(t, "o i -> o i 1 1") if t.ndim == 2 else t for t in (down, up))
    weight = layer.weight
    rank = update.rank
    one = weight.shape[:1] + (rank,) + (1,) * (weight.ndim - 2)
    if tuple(down.shape) != (rank, *weight.shape[1:]) or up.shape != one or not rank:
        raise WeightsError(
            f"the update of {place} is {tuple(update.down.shape)} and {tuple(update.up.shape)}, which does "
            f"not fit a layer of {tuple(weight.shape)}; was it made for another model?"
        )
    return down.to(weight), up.to(weight), update.scale
