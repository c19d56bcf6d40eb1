"""Networks from safetensors files and back. Nothing is guessed and nothing is forgiven.

Tensors are memory-mapped: a file is read as its numbers are used, and what keeps its type and stays on the
CPU is never copied.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limner.errors import WeightsError
from limner.weights import header
from limner.weights.keymap import listing

Network = TypeVar("Network", bound=nn.Module)
PACKED = 4096  # numbers of a tensor, at least, that is worth packing
ROWS = ".rows"  # after the name of a packed tensor: the scales of its rows
SHARD = 10_000_000_000  # bytes of a file, at most, where a network may be spread over several


def load(build: Callable[[], Network], path: Path, device: torch.device | None = None) -> Network:
    """The network that `build` makes, with the tensors of `path`, in float32, ready to be asked and not to be
    trained.

    Raises WeightsError with the names when tensors are missing, unknown or of another shape.
    """
    return fill(build, read(path), path, device=device, dtype=torch.float32)


def empty(build: Callable[[], Network]) -> Network:
    """The network on the meta device: shapes without memory."""
    with torch.device("meta"), _Unfilled():
        return build()


def fill(
    build: Callable[[], Network],
    tensors: Mapping[str, Tensor],
    where: str | Path,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Network:
    """The network that `build` makes with `tensors`, which carry our names, ready to be asked and not to be
    trained. `build` runs on the meta device, so no memory is filled twice. `dtype` None: as they are.

    Raises WeightsError, which begins with `where`, with the names when tensors are missing, unknown or of
    another shape.
    """
    network = empty(build)
    wanted = network.state_dict()
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    problems = {
        "missing": [name for name in wanted if name not in tensors],
        "unknown": [name for name in tensors if name not in wanted],
        "of another shape": shapes,
    }
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {what}: {listing(names)}" for what, names in problems.items() if names
        )
        raise WeightsError(f"{where} does not fit a {type(network).__name__}. Tensors {told}")
    cast = {
        name: tensor.to(
            device=device or "cpu",
            dtype=dtype if tensor.is_floating_point() else None,
            memory_format=_layout(tensor, device),
        )
        for name, tensor in tensors.items()
    }
    network.load_state_dict(cast, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def read(path: Path, *, as_stored: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of all that a `.index.json` names, memory-mapped on the CPU. What
    is `packed` comes unpacked, unless it is wanted `as_stored`.

    Raises WeightsError when a file is missing, is a pickle, or is not whole.
    """
    if path.name.endswith(".json"):
        return _shards(path)
    if not path.is_file():
        raise WeightsError(f"there are no weights at {path}")
    names = header.read_header(path).tensors
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}") from None
    return tensors if as_stored else unpacked(tensors)


def read_json(path: Path) -> dict[str, object]:
    """The table in a JSON file. Raises WeightsError when it is missing, over 16 MB, or something else."""
    try:
        with path.open("rb") as file:
            content = file.read(header.LONGEST + 1)
        table = json.loads(content) if len(content) <= header.LONGEST else None
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise WeightsError(f"{path} is not a table in JSON")
    return table


def save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; `path` holds the old file or the whole new one, whenever the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.unlink(missing_ok=True)
    try:
        beside.touch()  # as the user's umask has it; safetensors makes files that nobody else may read
        mode = beside.stat().st_mode
        whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, beside, dict(metadata))
        beside.chmod(mode)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Half the size of bfloat16: matrices as whole numbers from -127 to 127 in int8, and beside each, as
    `NAME.rows`, what one of them stands for in each row, in float32. Small tensors become bfloat16."""
    small: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.numel() < PACKED:
            small[name] = tensor.to(torch.bfloat16)
            continue
        rows = tensor.float().flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        small[name + ROWS] = rows
        small[name] = (tensor.float() / _along(rows, tensor)).round().to(torch.int8)
    return small


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `packed` was given, within half a step of its whole numbers; others as they are."""
    small = {
        name for name, tensor in tensors.items() if tensor.dtype == torch.int8 and name + ROWS in tensors
    }
    scales = {name + ROWS for name in small}
    return {
        name: tensor.float() * _along(tensors[name + ROWS], tensor) if name in small else tensor
        for name, tensor in tensors.items()
        if name not in scales
    }


def _along(rows: Tensor, tensor: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (tensor.ndim - 1))


def save_shards(
    tensors: Mapping[str, Tensor], path: Path, variant: str | None = None, size: int = SHARD
) -> None:
    """Write `path`, like diffusers: with `variant` in its name, and where there are more than `size` bytes,
    as several numbered files and an index that is written last."""
    stem = path.stem + (f".{variant}" if variant else "")
    groups: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if groups[-1] and filled + tensor.nbytes > size:
            groups.append({})
            filled = 0
        groups[-1][name] = tensor
        filled += tensor.nbytes
    if len(groups) == 1:
        return save(tensors, path.with_name(f"{stem}{path.suffix}"), {"format": "pt"})
    places: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = path.with_name(f"{stem}-{number:05}-of-{len(groups):05}{path.suffix}")
        save(group, file, {"format": "pt"})
        places |= dict.fromkeys(group, file.name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(index, path.with_name(f"{path.name}.index.{f'{variant}.' if variant else ''}json"))
    return None


def write_json(table: Mapping[str, object], path: Path) -> None:
    """Write a table as JSON; `path` holds the old file or the whole new one, whenever the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(table, indent=2) + "\n", "utf-8")
    beside.replace(path)


def _layout(tensor: Tensor, device: torch.device | None) -> torch.memory_format:
    """CUDA wants the weights of convolutions with their channels last; a CPU takes them as they lie."""
    on_cuda = device is not None and device.type == "cuda"
    return torch.channels_last if on_cuda and tensor.ndim == 4 else torch.preserve_format


def _shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise WeightsError(f"{index} does not say in which file each tensor lies (weight_map)")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise WeightsError(f"{index} names the file {name!r}; it should be a .safetensors file beside it")
        held = read(index.with_name(name))
        if wrong := [key for key in held if places.get(key) != name]:
            raise WeightsError(f"{index} does not say that {name} holds {listing(wrong)}")
        tensors |= held
    if absent := [key for key in places if key not in tensors]:
        raise WeightsError(f"{index} promises tensors that its files do not hold: {listing(absent)}")
    return tensors


class _Unfilled(TorchFunctionMode):
    """Leaves new parameters as they are. On the meta device nothing is there to fill, and filling an
    embedding makes torch import its compiler, which takes 1.4 s."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))
