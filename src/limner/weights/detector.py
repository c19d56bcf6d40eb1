"""The evaluator's detector from a file that a [detect] run has written."""

from dataclasses import fields
from pathlib import Path

import torch

from limner.models.detector import Detector, DetectorConfig, Names
from limner.weights import files, header


def load_detector(path: Path, device: torch.device | None = None) -> Detector:
    """The detector in `path`, ready to `detect`. Its shape and what it can say stand in the header.

    Raises WeightsError when the file is missing, is of another kind, or does not fit.
    """
    metadata = header.read_metadata(path)
    shape = header.network_config(metadata, "Detector", DetectorConfig, path)
    names = Names(**{field.name: header.listed(metadata, field.name, path) for field in fields(Names)})
    return files.load(lambda: Detector(shape, names), path, device)
