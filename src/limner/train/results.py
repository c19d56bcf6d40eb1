"""What a run leaves behind for others: sheets, weights, the evaluation at the end."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from limner.train import parallel
from limner.train.config import RunConfig, to_dict
from limner.train.ema import EMA
from limner.train.objectives import Finishing, Objective, Writing
from limner.train.parallel import Team
from limner.weights import files

# Settings that say where something lies, whatever their table; and such of the same name that do not.
PLACES = ("folder", "start", "detector", "codes", "features", "clip", "text", "conditions")
WORDS = (("lora", "start"), ("words", "start"))


def draw(objective: Objective, ema: EMA, team: Team) -> Image.Image:
    """The objective's sheet, drawn with the averaged weights; the training weights are put back afterwards.

    All processes draw, for the weights lie spread over them.
    """
    model = objective.model
    with ema.in_place():
        model.eval()
        try:
            return team.ask(lambda: objective.draw(model))
        finally:
            model.train()


def evaluate(objective: Objective, ema: EMA, team: Team) -> dict[str, float]:
    """The figures of the family's evaluation, by the averaged weights; none where it has no evaluation."""
    if not isinstance(objective, Finishing):
        return {}
    with ema.in_place():
        objective.model.eval()
        try:
            return team.ask(objective.evaluate)
        finally:
            objective.model.train()


def export(
    objective: Objective, ema: EMA, run: RunConfig, clock: Mapping[str, int], folder: Path, team: Team
) -> list[Path]:
    """Write the averaged weights with everything needed to use them and to repeat the run.

    One file in bfloat16, unless the objective writes in a way of its own. Raises OSError on a full disk.
    """
    averaged: dict[str, Tensor] = {}
    for name, p in ema.state().items():
        gathered = parallel.whole(p)
        if team.first:
            averaged[name] = gathered.cpu() if team.size > 1 else gathered
    if not team.first:
        return []
    told = _without_places(to_dict(run))
    header = objective.header() | {"run": json.dumps(told), "clock": json.dumps(dict(clock))}
    if isinstance(objective, Writing):
        return objective.write(folder, averaged, header)
    names = objective.published()
    path = folder / "weights.safetensors"
    files.save({n: p.to(torch.bfloat16) for n, p in averaged.items() if n in names}, path, header)
    return [path]


def _without_places(told: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """The table `name` of a configuration, to publish: where things lay on this machine is of no use
    elsewhere, and of a model its name is enough."""
    kept: dict[str, Any] = {}
    for key, value in told.items():
        if isinstance(value, dict):
            kept[key] = _without_places(value, key)
        elif not isinstance(value, str) or (name, key) in WORDS:
            kept[key] = value  # numbers may be called as places are: optim.clip
        elif key == "model":
            kept[key] = Path(value).expanduser().name
        elif key not in PLACES:
            kept[key] = value
    return kept
