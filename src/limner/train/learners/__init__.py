"""Families as training sees them, by the model that a run names."""

from collections.abc import Callable
from pathlib import Path

import torch

from limner.errors import ConfigError
from limner.families import FAMILIES
from limner.train.learners import flow, mini, sd
from limner.train.learners.base import Learner, Origin, opened
from limner.weights import hub

LOADERS: dict[str, Callable[[Origin, torch.device], Learner]] = {  # by the family's name
    "sd": sd.load,
    "sd3": flow.load_sd3,
    "flux": flow.load_flux,
}
BUILT_IN = "mini"


def load(
    model: str,
    device: torch.device,
    fresh: bool = False,  # the main network begins with random weights, in the shape that its settings say
    *,
    prediction: str | None = None,  # of a fresh network: "eps", "v", "x0" or "flow"; None: as its folder says
    zero_terminal_snr: bool = False,  # have the path end in pure noise
) -> Learner:
    """The model called `model`, ready to be trained: "mini", a folder of your own training, a diffusers
    folder, a single file or a hub id.

    Raises ConfigError for what cannot be trained so, WeightsError for files that do not fit.
    """
    own = FAMILIES[BUILT_IN]
    folder = own.folder if model == BUILT_IN else None
    path = folder or (hub.fetch(model) if hub.is_id(model) else Path(model).expanduser())
    if not path.exists():
        raise ConfigError(f'there is no model "{model}", nor a file or folder of that name')
    if path == folder or any((path / mark).exists() for mark in own.marks):
        if prediction is not None or zero_terminal_snr:
            raise ConfigError(
                "the built-in model predicts x0 along a straight path: leave out prediction and "
                "zero_terminal_snr"
            )
        return mini.load(path, device, fresh=fresh)
    origin = opened(path, fresh=fresh, prediction=prediction, zero_terminal_snr=zero_terminal_snr)
    family = origin.found.model.family
    if family not in LOADERS:
        raise ConfigError(
            f"{model} is {origin.found.model.title}, and models of the family {family} are not trained here; "
            f"these are: {', '.join((BUILT_IN, *LOADERS))}"
        )
    return LOADERS[family](origin, device)
