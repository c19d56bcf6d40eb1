"""Networks from safetensors files and back. Nothing is guessed and nothing is forgiven."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limner.errors import WeightsError

Network = TypeVar("Network", bound=nn.Module)
SHOWN = 5  # names in a message


def load(build: Callable[[], Network], path: Path, device: torch.device | None = None) -> Network:
    """The network that `build` makes, with the tensors of `path`, in float32, ready to be asked and not to be
    trained. `build` runs on the meta device, so no memory is filled twice.

    Raises WeightsError with the names when tensors are missing, unknown or of another shape.
    """
    with torch.device("meta"), _Unfilled():
        network = build()
    try:
        tensors = load_file(path, device=str(device or "cpu"))
    except FileNotFoundError:
        raise WeightsError(f"there are no weights at {path}") from None
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}") from None
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
        told = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names)
        raise WeightsError(f"{path} does not fit a {type(network).__name__}. Tensors {told}")
    network.load_state_dict(
        {name: tensor.float() for name, tensor in tensors.items()}, strict=True, assign=True
    )
    return network.eval().requires_grad_(False)


def save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; `path` holds the old file or the whole new one, whenever the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.unlink(missing_ok=True)
    beside.touch()  # as the user's umask has it; safetensors makes files that nobody else may read
    mode = beside.stat().st_mode
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, beside, dict(metadata))
    beside.chmod(mode)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)


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


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
