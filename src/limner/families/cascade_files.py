"""Cascades, and the x4 upscaler, from what lies on the disk.

DeepFloyd IF is published as a folder for each stage. What belongs together is said in one of two ways:

    limner imagine "a cat" --model IF-I-XL-v1.0 --then IF-II-L-v1.0 --then stable-diffusion-x4-upscaler
    limner imagine "a cat" --model if           a folder with the stages in if/I, if/II and, if wanted, if/III

Where nothing follows, the first stage's 64 pixels are the picture. T5 is taken from the first of the folders
that has it, and the tokenizer with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from limner.diffusion.paths import VPPath
from limner.errors import RequestError, WeightsError
from limner.families.base import TYPES, Defaults, Family, Wishes
from limner.families.cascade import Cascade, Resolution
from limner.families.conditions import Encoder, Tower
from limner.families.flow import Canvas, Colours
from limner.families.sd_files import fingerprint, learned_words, path_of
from limner.families.shelf import Shelf
from limner.families.x4 import FACTOR, X4
from limner.models.clip import CLIPText
from limner.text.t5_tokenizer import T5Tokenizer
from limner.util.devices import pick_precision
from limner.weights import detect, folders, hub
from limner.weights.detect import Found
from limner.weights.folders import INDEX
from limner.weights.parts import Model
from limner.weights.parts_cascade import LOW, NOISING, STAGES
from limner.weights.published import ALL

DEFAULTS = Defaults(steps=100, guidance=7.0, sampler="ddpm", size=(64, 64))
X4_DEFAULTS = Defaults(steps=75, guidance=9.0, sampler="ddim", size=(1024, 1024), factor=FACTOR)
GREY: Colours = (*((0.25, 0.25, 0.25),) * 4, (0.0, 0.0, 0.0))  # the upscaler's latents, to be watched


def load(
    path: Path, device: torch.device, wishes: Wishes = Wishes(), models: Sequence[Model] = ALL
) -> Cascade:
    """The cascade that begins at `path`, a folder of a first stage or one with I, II and III in it, and goes
    on as `wishes.then` says.

    Raises WeightsError where a folder holds something else, stages do not follow each other, or none of them
    has a T5, and RequestError for learned words where no stage hears them.
    """
    paths = [path, *(_path(name, wishes.variant) for name in wishes.then)]
    if not (path / INDEX).is_file():
        paths = [*folders.stages(path, STAGES), *paths[1:]]
    every = [detect.identify(one, variant=wishes.variant, models=models) for one in paths]
    stages = [found for found in every if found.model.family == "cascade"]
    larger = [found for found in every if found.model.family == "x4"]
    for number, found in enumerate(every):
        wanted = "a first stage" if number == 0 else "a stage that enlarges"
        enlarges = found in larger or (found in stages and _config(found).level)
        fits = found in (*stages, *larger) and (number > 0) == enlarges
        if not fits or (found in larger and found is not every[-1]):
            raise WeightsError(f"{found.path} is {found.model.title}; {wanted} was looked for")
    if wishes.embeddings is not None and not larger:
        raise RequestError("learned words are the x4 upscaler's, and this cascade has none; leave them out")
    told = next((found for found in stages if "text_encoder" not in found.absent), None)
    if told is None:
        raise WeightsError(
            f"{paths[0]} has no text_encoder, nor has a later stage: put IF's T5 there (text_encoder and "
            "tokenizer)"
        )
    dtype = TYPES[wishes.dtype] if wishes.dtype else pick_precision(device)
    loaders = {f"unet_{number}": detect.loader(found, "unet", dtype) for number, found in enumerate(stages)}
    shelf = Shelf(
        loaders | {"text_encoder": detect.loader(told, "text_encoder", dtype)}, device, wishes.offload
    )
    upscaler = x4(larger[0], device, wishes) if larger else None
    if upscaler is not None:
        shelf.beside(upscaler.shelf)
    marks = "".join(fingerprint(found, dtype) for found in every)
    side = DEFAULTS.size[0] * FACTOR ** (len(every) - 1)
    return Cascade(
        shelf=shelf,
        tokenizer=T5Tokenizer.read(told.path / "tokenizer"),
        resolutions=tuple(_resolution(f"unet_{number}", found) for number, found in enumerate(stages)),
        upscaler=upscaler,
        defaults=replace(DEFAULTS, size=(side, side)),
        notices=tuple(dict.fromkeys(said for found in every for said in found.notices)),
        fingerprint=sha256(marks.encode()).hexdigest()[:10] if len(every) > 1 else marks,
        device=device,
    )


def load_x4(path: Path, device: torch.device, wishes: Wishes = Wishes(), models: Sequence[Model] = ALL) -> X4:
    """The upscaler at `path`, a folder or a single file. Raises WeightsError for anything else."""
    return x4(
        detect.identify(path, prediction=wishes.prediction, variant=wishes.variant, models=models),
        device,
        wishes,
    )


def x4(found: Found, device: torch.device, wishes: Wishes) -> X4:
    """The upscaler that was found."""
    dtype = TYPES[wishes.dtype] if wishes.dtype else pick_precision(device)
    table = found.model.tables
    shelf = Shelf(
        {
            part.folder: detect.loader(found, part.folder, torch.float32 if part.folder == "vae" else dtype)
            for part in found.model.parts
        },
        device,
        wishes.offload,
    )
    words, passed_over = learned_words(wishes.embeddings, ["text_encoder"])
    return X4(
        shelf=shelf,
        encoder=Encoder((partial(_tower, shelf),), words),
        canvas=Canvas(shelf=shelf, config=found.model.part("vae").config, device=device, colours=GREY),
        path=path_of(found.table or next(iter(table.values())), found.path),
        noising=path_of(found.tables.get(LOW, table[LOW]), found.path),
        prediction=found.prediction,
        defaults=X4_DEFAULTS,
        notices=(*found.notices, *passed_over),
        fingerprint=fingerprint(found, dtype),
        device=device,
    )


def _tower(shelf: Shelf) -> Tower:
    network = shelf.take("text_encoder")
    assert isinstance(network, CLIPText)
    return Tower(network=network, pad=0)


def _config(found: Found) -> Any:
    return found.model.part("unet").config


def _resolution(name: str, found: Found) -> Resolution:
    usual = dict(next(iter(found.model.tables.values())))
    table: Mapping[str, Any] = usual | dict(found.table)
    noising = found.tables.get(NOISING)
    if not table.get("thresholding"):  # then values are only clipped
        table = {**table, "dynamic_thresholding_ratio": 1.0, "sample_max_value": 1.0}
    return Resolution(
        network=name,
        config=_config(found),
        path=path_of(table, found.path),
        noising=path_of(noising, found.path) if noising else VPPath.cosine(),
        percentile=float(table["dynamic_thresholding_ratio"]),
        most=float(table["sample_max_value"]),
    )


def _path(name: str, variant: str | None) -> Path:
    if not name.strip():
        raise RequestError("then is the folder or hub id of a stage that enlarges, got nothing")
    return hub.fetch(name, variant) if hub.is_id(name) else Path(name)


FAMILY = Family(name="cascade", marks=(f"{STAGES[0]}/{INDEX}",), load=load)
X4_FAMILY = Family(name="x4", load=load_x4)
