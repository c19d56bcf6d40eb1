"""The evaluator's detector from a file that a [detect] run has written."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch

from limner.errors import ConfigError, WeightsError
from limner.models.detector import Calibration, Detector, DetectorConfig, Names
from limner.weights import files, header

JUDGE, REWARD = "judge", "reward"  # roles: one evaluates, the other may train generators; none does both
SHIPPED = Path(__file__).with_name("detector") / "detector.safetensors"  # package data


def shipped() -> Path:
    """The detector that comes with the package. Raises WeightsError where the installation lacks it."""
    if not SHIPPED.is_file():
        raise WeightsError(
            f"the detector of the package is not there ({SHIPPED}); install Limner again, or train one with "
            "`limner train configs/detector.toml` and name its weights by --detector"
        )
    return SHIPPED


def load_detector(path: Path, device: torch.device | None = None, *, role: str = JUDGE) -> Detector:
    """The detector in `path`, ready to `detect`. Its shape and what it can say stand in the header, and so
    does the calibration of its scores; a file without one gives raw scores.

    Raises WeightsError when the file is missing, is of another kind, or does not fit, and ConfigError when it
    has another role than it is wanted for.
    """
    metadata = header.read_metadata(path)
    _refuse(metadata, role, path)
    shape = header.network_config(metadata, "Detector", DetectorConfig, path)
    names = Names(**{field.name: header.listed(metadata, field.name, path) for field in fields(Names)})
    detector = files.load(lambda: Detector(shape, names), path, device)
    detector.calibration = _calibration(metadata, path)
    return detector


def calibrate(path: Path, calibration: Calibration) -> None:
    """Write a calibration into the header of a detector's file; the weights stay as they are.

    Raises WeightsError for a file that is missing or no safetensors file.
    """
    metadata = header.read_metadata(path) | {"calibration": json.dumps(asdict(calibration))}
    files.save(files.read(path, as_stored=True), path, metadata)


def _refuse(metadata: dict[str, str], role: str, path: Path) -> None:
    """Raise ConfigError for a judge that should train generators, and for a trainer that should judge."""
    held = metadata.get("role", json.dumps(JUDGE)) == json.dumps(REWARD)
    same = SHIPPED.is_file() and header.fingerprint([path]) == header.fingerprint([SHIPPED])
    if role == REWARD and (not held or same):
        raise ConfigError(
            f"{path} is a detector that evaluates, so nothing that draws may be trained with it; train a "
            "second one with `limner train configs/detector-reward.toml`"
        )
    if role == JUDGE and held:
        raise ConfigError(
            f"{path} is a detector for rewards: what was trained to please it cannot be judged by it; use "
            "the weights of `limner train configs/detector.toml`"
        )


def _calibration(metadata: dict[str, str], path: Path) -> Calibration:
    if "calibration" not in metadata:
        return Calibration()
    try:
        told = json.loads(metadata["calibration"])
        return Calibration(slope=float(told["slope"]), shift=float(told["shift"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsError(f"{path}: the calibration in the header is broken: {error}") from None
