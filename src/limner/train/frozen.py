"""The model as it was before training, beside the one that is trained."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limner.nn import lora
from limner.train.learners.base import Learner
from limner.train.trainable import LORA, LoRAConfig, Trainable


class Frozen:
    """What a learner's main network said before the first step. Make it when nothing has been learned yet.

    Of a LoRA that is the network without it; of a network that is trained whole, a copy.
    """

    def __init__(self, learner: Learner, trained: Trainable) -> None:
        self.learner = learner
        self.copy: nn.Module | None = None
        if not isinstance(trained, LoRAConfig):
            self.copy = copy.deepcopy(learner.networks[learner.main]).requires_grad_(False).eval()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this lasts, the learner predicts as it did before the first step, without gradients."""
        networks, main = self.learner.networks, self.learner.main
        trained = networks[main]
        with torch.no_grad():
            try:
                if self.copy is None:
                    lora.set_weight(trained, LORA, 0.0)
                else:
                    networks[main] = self.copy
                yield
            finally:
                if self.copy is None:
                    lora.set_weight(trained, LORA, 1.0)
                networks[main] = trained


@contextmanager
def uncast() -> Iterator[None]:
    """Have nothing that autocast has cast before be used inside, and nothing from inside be used afterwards.

    It keeps what it has cast by the parameter, whatever numbers that holds by then, and without a gradient
    where it was first cast without one.
    """
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def standing_in(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """While this lasts, `values` stand where the parameters of these names do, without gradients."""
    kept = {name: parameters[name].data for name in values}
    with torch.no_grad(), uncast():
        try:
            for name, value in values.items():
                parameters[name].data = value.data
            yield
        finally:
            for name, value in kept.items():
                parameters[name].data = value
