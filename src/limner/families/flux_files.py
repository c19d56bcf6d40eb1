"""FLUX.1 from what lies on the disk: folders and all-in-one files."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from limner.diffusion.paths import flux_shift
from limner.errors import WeightsError
from limner.families.base import TYPES, Defaults, Family, Wishes
from limner.families.flow import Canvas
from limner.families.flux import COLOURS, Flux
from limner.families.sd_files import Overlays, fingerprint, small_decoder
from limner.families.shelf import Shelf
from limner.models.flux_control import FluxControlNet
from limner.text.t5_tokenizer import T5Tokenizer
from limner.util.devices import pick_precision
from limner.weights import described, detect
from limner.weights.detect import Found
from limner.weights.parts import Model
from limner.weights.parts_flux import MODELS
from limner.weights.standalone import identify_network

DEV = Defaults(steps=28, guidance=3.5, sampler="euler", size=(1024, 1024))
SCHNELL = Defaults(steps=4, guidance=1.0, sampler="euler", size=(1024, 1024))
LENGTH = {True: 512, False: 256}  # tokens of a prompt, by whether guidance is told


def load(
    path: Path, device: torch.device, wishes: Wishes = Wishes(), models: Sequence[Model] = MODELS
) -> Flux:
    """The model at `path`, a diffusers folder or an all-in-one file, ready to draw.

    Raises WeightsError when it is none that Limner knows, lacks a part, or is broken.
    """
    known = (*models, *described.unpublished(path)) if models is MODELS else models
    found = detect.identify(path, prediction=wishes.prediction, variant=wishes.variant, models=known)
    return assemble(found, device, wishes)


def assemble(found: Found, device: torch.device, wishes: Wishes) -> Flux:
    """What `load` makes of the parts that were found. Raises WeightsError where one is absent."""
    if found.absent:
        raise WeightsError(
            f"{found.path} holds a {found.model.title} without {', '.join(found.absent)}; take the diffusers "
            "folder, or a file with everything in it"
        )
    config, vae = (found.model.part(name).config for name in ("transformer", "vae"))
    dtype = TYPES[wishes.dtype] if wishes.dtype else pick_precision(device)
    overlays = Overlays(found.model.parts, wishes)
    shelf = Shelf(
        {
            part.folder: detect.loader(found, part.folder, torch.float32 if part.folder == "vae" else dtype)
            for part in found.model.parts
        },
        device,
        wishes.offload,
        overlays.dress,
    )
    return Flux(
        shelf=shelf,
        config=config,
        canvas=Canvas(
            shelf=shelf,
            config=vae,
            device=device,
            colours=COLOURS,
            small_decoder=None if wishes.preview is None else small_decoder(wishes.preview, device),
        ),
        tokenizer=_tokenizer(found),
        length=LENGTH[config.guidance],
        shift=_shift(found.table or next(iter(found.model.tables.values()))),
        defaults=DEV if config.guidance else SCHNELL,
        notices=found.notices,
        fingerprint=fingerprint(found, dtype),
        device=device,
        control_network=partial(control_network, device=device, dtype=dtype),
        adapt=overlays.adapt,
    )


@lru_cache(maxsize=2)
def control_network(name: str, *, device: torch.device, dtype: torch.dtype) -> FluxControlNet:
    """A control network by its file or folder. Raises WeightsError when it is none of FLUX."""
    network = identify_network(Path(name))
    loaded = network.load(device=device, dtype=dtype)
    if not isinstance(loaded, FluxControlNet):
        raise WeightsError(f"{name} is {network.title}, and no control network of FLUX")
    return loaded


def _tokenizer(found: Found) -> T5Tokenizer:
    """A folder's own. Single files have none: then what lies beside."""
    if found.path.is_dir():
        return T5Tokenizer.read(found.path / "tokenizer_2")
    beside = found.path.parent
    try:
        return T5Tokenizer.read(beside / "tokenizer_2" if (beside / "tokenizer_2").is_dir() else beside)
    except WeightsError as error:
        raise WeightsError(
            f"{error}. A single file does not hold T5's vocabulary: put tokenizer.json or spiece.model of "
            f"any T5 1.1 beside {found.path.name}"
        ) from None


def _shift(table: Mapping[str, Any]) -> Callable[[int], float]:
    """How far the path is moved towards noise, by the tokens of a picture."""
    if not table.get("use_dynamic_shifting"):
        factor = float(table.get("shift", 1.0))
        return lambda tokens: factor
    return partial(
        flux_shift,
        low=float(table.get("base_shift", 0.5)),
        high=float(table.get("max_shift", 1.15)),
        few=int(table.get("base_image_seq_len", 256)),
        many=int(table.get("max_image_seq_len", 4096)),
    )


FAMILY = Family(name="flux", load=load)
