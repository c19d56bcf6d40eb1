"""From a name, a file or a folder to a pipeline that draws."""

from dataclasses import fields
from functools import partial
from os.path import exists
from pathlib import Path

import torch

from limner.errors import RequestError, WeightsError
from limner.families import FAMILIES, HEARS
from limner.families.base import Family, Wishes
from limner.pipeline.run import Pipeline
from limner.util.devices import pick_device
from limner.util.suggest import suggestion
from limner.weights import described, detect, hub
from limner.weights.folders import INDEX
from limner.weights.published import ALL


def load(model: str | Path = "mini", *, device: str = "auto", wishes: Wishes = Wishes()) -> Pipeline:
    """A model ready to draw.

    Args:
        model: "mini", a folder or single file of a published model, a folder of your own training, or a hub
            id such as "owner/name".
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        wishes: types, variants, and folders of LoRAs and learned words, for published models.

    Raises:
        RequestError: no such model, or a wish that its family does not know. WeightsError: its files do not
        fit. ConfigError: no such device.
    """
    at = pick_device(device)
    family, path = find(model, wishes)
    return _loaded(family, path, at, wishes, str(model))


def find(model: str | Path, wishes: Wishes = Wishes()) -> tuple[Family, Path]:
    """Of which family a model is, and where its files lie; those on the hub are fetched. Raises as `load`."""
    name = str(model)
    built_in = FAMILIES[name].folder if name in FAMILIES else None
    if built_in is not None:
        return FAMILIES[name], built_in
    path = hub.fetch(name, wishes.variant) if hub.is_id(name) else Path(model)
    if not exists(path):  # noqa: PTH110  # that of Path fails where a name is too long for a path
        offered = [family for family in FAMILIES if FAMILIES[family].folder]
        raise RequestError(
            f'there is no model "{name}", nor a file or folder of that name{suggestion(name, offered)}'
        )
    family = next((one for one in FAMILIES.values() if any(map(exists, map(path.joinpath, one.marks)))), None)
    if family is None and path.is_dir() and not (path / INDEX).is_file():
        raise WeightsError(
            f"{path} holds no model: there is neither base.safetensors, as of your own training, nor "
            "model_index.json, as diffusers saves models"
        )
    if family is None:
        own = described.unpublished(path)
        look = partial(detect.identify, models=(*ALL, *own)) if own else detect.identify
        found = look(path, prediction=wishes.prediction, variant=wishes.variant)
        family = FAMILIES[found.model.family]
    return family, path


def _loaded(family: Family, path: Path, at: torch.device, wishes: Wishes, name: str) -> Pipeline:
    asked = (field.name for field in fields(wishes) if getattr(wishes, field.name) != field.default)
    if unheard := [wish for wish in asked if wish not in HEARS[family.name]]:
        raise RequestError(
            f"{name} is of the family {family.name}, which knows no {', '.join(unheard)}; leave it out"
        )
    return Pipeline(family.load(path, at, wishes), name)
