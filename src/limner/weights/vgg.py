"""VGG's convolutions from files as torchvision names them."""

import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import WeightsError
from limner.models.vgg import VGG, VGGConfig
from limner.weights import files

PLACE = re.compile(r"(?:vgg\.)?features\.(\d{1,3})\.(weight|bias)")


def load(path: Path, device: torch.device | None = None) -> VGG:
    """The network in a safetensors file: VGG16's or VGG19's layers, of any width, under `features.N`. What
    names things (`classifier.N`) is known and not needed.

    Raises WeightsError when it is something else, or not whole.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in files.read(path).items():
        if match := PLACE.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = tensor
        elif not name.removeprefix("vgg.").startswith("classifier."):
            raise WeightsError(f"{path}: {name} is no tensor of VGG16 or VGG19 as torchvision names them")
    for last in (3, 4):
        layers = (2, 2, last, last, last)
        places = VGGConfig(layers=layers).places
        if sorted(found) != [place for level in places for place in level]:
            continue
        wanted = {(place, side) for place in found for side in ("weight", "bias")}
        if wanted != {(place, side) for place, sides in found.items() for side in sides}:
            break
        config = VGGConfig(widths=tuple(len(found[level[0]]["bias"]) for level in places), layers=layers)
        tensors = {
            f"levels.{number}.{index}.{side}": found[place][side]
            for number, level in enumerate(places)
            for index, place in enumerate(level)
            for side in ("weight", "bias")
        }
        return files.fill(partial(VGG, config), tensors, path, device=device, dtype=torch.float32)
    raise WeightsError(
        f"{path} has not the convolutions of VGG16 or VGG19: save torchvision's `vgg16(...).state_dict()` as "
        "safetensors"
    )
