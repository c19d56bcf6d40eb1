"""What a weights file says about itself, read without torch: `limner words` answers at once."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from limner.errors import WeightsError

Config = TypeVar("Config")
LONGEST = 16_000_000  # bytes of a header that is still believed
UNLIKELY = 2**40  # bytes of a header; what begins so and has none is a text, a picture or the like
SIZES = {  # bytes of one number of each type
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
LARGEST = 10_000  # of any number in a network's shape: one of a billion layers would be built for hours


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file, not read yet."""

    dtype: str  # one of SIZES
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """All that a safetensors file says before the numbers begin."""

    metadata: dict[str, str]
    tensors: dict[str, Entry]


def refuse_pickle(path: Path) -> None:
    """Raises WeightsError for a pickle, by its name or by how it begins; other files pass."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        start = b""
    pickled = start[:1] == b"\x80" and start[3:] not in (b"", b"\0")  # else a length, which ends in zeros
    if path.suffix.lower() in PICKLES or start == b"PK\3\4" or pickled:
        raise WeightsError(
            f"{path} is a pickle: opening it can run any program. `limner convert {path.name}` copies its "
            f"tensors into a .safetensors file without running anything"
        )


def read_header(path: Path) -> Header:
    """The names, types and shapes in a safetensors file, believed only if they fill the file exactly.

    Raises WeightsError for a pickle, and for a header that is too long, is not JSON, says something twice, or
    claims bytes that are not there, that overlap or that nobody claims.
    """
    refuse_pickle(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 9 or (length > UNLIKELY and file.read(1) != b"{"):
                raise WeightsError(f"{path} is no safetensors file; give one, or a folder with some")
            if not 2 <= length <= min(LONGEST, size - 8):
                raise ValueError(f"a header of {length} bytes")
            said = json.loads(file.read(length), object_pairs_hook=_once)
        if not isinstance(said, dict):
            raise ValueError("its header is not a table")
        metadata = said.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata is not text")
        spans = []
        tensors = {}
        for name, entry in said.items():
            tensors[name], span = _entry(name, entry)
            spans.append(span)
        at = 0
        for start, end in sorted(spans):
            if start != at:
                raise ValueError(f"its tensors overlap or leave a gap at byte {min(start, at)}")
            at = end
        if at != size - 8 - length:
            raise ValueError(f"its tensors take {at} bytes, but {size - 8 - length} follow the header")
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        told = "it is nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise WeightsError(
            f"{path} is not a whole safetensors file: {told}; fetch or write it again"
        ) from None
    return Header(metadata, tensors)


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
        told = f"the network {held}" if held.strip() else "a network without a name"
        raise WeightsError(f"{path} holds {told}; here a {kind} is needed")
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


def whole(metadata: dict[str, str], key: str, path: Path) -> int:
    """A number of pixels or the like in the metadata. Raises WeightsError when there is none or an absurd
    one."""
    value = _parsed(metadata, key, path)
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise WeightsError(
            f"{path}: {key!r} in the header is a whole number from 1 to {LARGEST}, got {value!r}"
        )
    return value


def fingerprint(paths: Sequence[Path]) -> str:
    """First 10 hexadecimal digits of the SHA-256 of the files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise WeightsError(f"cannot read the weights {path}: {error.strerror}") from None
    return digest.hexdigest()[:10]


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(table := dict(pairs)) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in table if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return table


def _entry(name: str, entry: object) -> tuple[Entry, tuple[int, int]]:
    if not name.isprintable() or ".." in name.replace("\\", "/").split("/"):
        raise ValueError(f"{name!r} is no name for a tensor")
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            whole = all(type(side) is int and 0 <= side < 2**48 for side in shape)
            if dtype in SIZES and whole and end - start == math.prod(shape) * SIZES[dtype]:
                return Entry(dtype, tuple(shape)), (start, end)
    raise ValueError(f"{name!r} has a type, a shape and bytes that do not fit together")


def _parsed(metadata: dict[str, str], key: str, path: Path) -> object:
    if key not in metadata:
        raise WeightsError(f"{path} does not say its {key!r} in the header; was it written by Limner?")
    try:
        value: object = json.loads(metadata[key])
    except (ValueError, RecursionError):
        raise WeightsError(f"{path}: {key!r} in the header is not JSON") from None
    return value
