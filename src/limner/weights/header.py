"""What a weights file says about itself, read without torch: `limner words` answers at once."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from limner.errors import WeightsError

Config = TypeVar("Config")
LONGEST = 16_000_000  # bytes of a header that is still believed
LARGEST = 10_000  # of any number in a network's shape: one of a billion layers would be built for hours


def read_metadata(path: Path) -> dict[str, str]:
    """The free-form metadata in the header of a safetensors file (8 bytes of length, then JSON).

    Raises WeightsError when the file is missing or is not safetensors.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 2 <= length <= LONGEST else None
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        header = None
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise WeightsError(f"{path} is not a safetensors file, or it is cut short; fetch or write it again")
    return {str(key): str(value) for key, value in metadata.items()}


def listed(metadata: dict[str, str], key: str, path: Path) -> tuple[str, ...]:
    """A JSON list of words in the metadata, such as "objects". Raises WeightsError when there is none."""
    value = _parsed(metadata, key, path)
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise WeightsError(f"{path}: {key!r} in the header should be a list of words")
    return tuple(value)


def network_config(metadata: dict[str, str], kind: str, config: type[Config], path: Path) -> Config:
    """The shape of the network in a file: metadata "network" is {kind: {field: value}}.

    Raises WeightsError when the file holds another kind of network or a field that `config` does not have.
    """
    value = _parsed(metadata, "network", path)
    if not isinstance(value, dict) or not isinstance(value.get(kind), dict):
        held = ", ".join(value) if isinstance(value, dict) else repr(value)
        raise WeightsError(f"{path} holds the network {held}; here a {kind} is needed")
    known = {field.name for field in fields(config)}  # type: ignore[arg-type]
    if unknown := sorted(set(value[kind]) - known):
        raise WeightsError(f"{path}: a {kind} has no {', '.join(unknown)}; is Limner older than this file?")
    for name, number in value[kind].items():
        if type(number) is not int or not 0 <= number <= LARGEST:
            raise WeightsError(
                f"{path}: {name} of a {kind} is a whole number from 0 to {LARGEST}, got {number!r}"
            )
    try:
        return config(**value[kind])
    except (TypeError, ValueError, ArithmeticError) as error:
        raise WeightsError(f"{path}: this shape of a {kind} cannot be built: {error}") from None


def fingerprint(paths: Sequence[Path]) -> str:
    """First 10 hexadecimal digits of the SHA-256 of the files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise WeightsError(f"cannot read the weights {path}: {error.strerror}") from None
    return digest.hexdigest()[:10]


def _parsed(metadata: dict[str, str], key: str, path: Path) -> object:
    if key not in metadata:
        raise WeightsError(f"{path} does not say its {key!r} in the header; was it written by Limner?")
    try:
        value: object = json.loads(metadata[key])
    except (ValueError, RecursionError):
        raise WeightsError(f"{path}: {key!r} in the header is not JSON") from None
    return value
