"""Calibrates a finished detector on scenes that it has never seen, composed and worn as in its training."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import WeightsError
from limner.evaluate.calibration import right
from limner.models.detector import Calibration
from limner.train.config import parse
from limner.train.objectives.detect import Detect, DetectConfig
from limner.util.devices import pick_device
from limner.util.rng import mix
from limner.weights import header
from limner.weights.detector import load_detector

SEED = 2**40 + 1999  # far from the seeds of runs
BATCH = 32
SCENES = ("data", "world", "wear", "model", "sides")  # what of a [detect] table decides the pictures
LEAST = 0.05  # raw scores below are of nothing


def judged(path: Path, world: Path, scenes: int, *, worn: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
    """Raw scores (n) of what the detector in `path` finds in fresh scenes, and whether each is right (n);
    yields after every 32 scenes. `world` is the folder of the atlas.

    Scenes are made by the configuration in the header. Nothing is hidden in them, for it could not be said
    whether half a thing is there. Raises WeightsError, ConfigError and DataError for what does not fit.
    """
    metadata = header.read_metadata(path)
    try:
        told = json.loads(metadata["run"])
    except (KeyError, ValueError, RecursionError):
        raise WeightsError(
            f"{path} does not say how it was trained; was it written by `limner train`?"
        ) from None
    table = told.get("detect") if isinstance(told, dict) else None
    if not isinstance(table, dict):
        raise WeightsError(f"{path} was written by another run than one with a [detect] table")
    made_of = {key: value for key, value in table.items() if key in SCENES}
    config = parse(DetectConfig, made_of, f"{path.name}: detect")
    device = pick_device()
    wear = replace(config.wear, occlusion=0.0, chance=config.wear.chance if worn else 0.0)
    data = replace(config.data, folder=str(world))
    objective = Detect(replace(config, wear=wear, data=data, mosaic=0.0), device)
    detector = load_detector(path, device)
    detector.calibration = Calibration()
    for first in range(0, scenes, BATCH):
        batch = objective.batch(min(BATCH, scenes - first), mix(SEED, first) % 2**63)
        scores, answers = [], []
        seen = detector.detect(batch.pixels, threshold=LEAST)
        for one, boxes, kinds in zip(seen, batch.boxes.tolist(), batch.kinds.tolist(), strict=True):
            there = [
                (objective.names.classes[kind], tuple(box))
                for kind, box in zip(kinds, boxes, strict=True)
                if kind >= 0
            ]
            found = one.objects + one.letters
            scores += [thing.score for thing in found]
            answers += right(found, there)
        yield torch.tensor(scores, dtype=torch.float64), torch.tensor(answers, dtype=torch.bool)
