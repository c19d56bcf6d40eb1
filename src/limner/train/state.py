"""Checkpoints: all it takes to go on exactly where a run stopped, in a file that is never half there."""

import json
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limner.errors import WeightsError
from limner.train.ema import EMA
from limner.weights import files, header

Optimizers = list[torch.optim.Optimizer]


def save(path: Path, model: nn.Module, ema: EMA, optimizers: Optimizers, clock: dict[str, int]) -> None:
    """Write a checkpoint beside `path`, flush it to the disk, then move it into place in one step."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    tensors |= {f"ema.{name}": p for name, p in ema.state().items()}
    tensors |= _optimizer_tensors(model, optimizers)
    files.save(tensors, path, {"clock": json.dumps(clock)})


def load(path: Path, model: nn.Module, ema: EMA, optimizers: Optimizers) -> dict[str, int]:
    """Restore a checkpoint in place and return its clock.

    Raises WeightsError when there is none, or when it belongs to another network or other optimisers.
    """
    try:
        with safe_open(path, "pt") as file:
            clock: dict[str, int] = json.loads(file.metadata()["clock"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is not a checkpoint of a training run: {error}.") from None
    with torch.no_grad():
        for name, p in model.named_parameters():
            for target, key in ((p, f"model.{name}"), (ema.weights[name], f"ema.{name}")):
                if key not in tensors or tensors[key].shape != target.shape:
                    shape = tuple(target.shape)
                    raise WeightsError(f"{path} has no {key} of shape {shape}: it is of another network.")
                target.copy_(tensors.pop(key))
    owners = {name: (optimizer, p) for optimizer in optimizers for name, p in _named(model, optimizer)}
    for key, tensor in tensors.items():
        _, field, name = key.split("/", 2) if key.startswith("optim/") else ("", "", key)
        if name not in owners:
            raise WeightsError(f"{path} has {key}, which this run does not use: it is of another run.")
        optimizer, p = owners[name]
        kept = tensor.to(p.device)
        if kept.shape == p.shape:  # laid out in memory as the parameter, for sums depend on the order
            kept = torch.empty_like(p).copy_(kept)
        optimizer.state[p][field] = kept
    return clock


def start_from(path: Path, model: nn.Module, ema: EMA, published: set[str]) -> None:
    """Begin with the weights that another run published; what is never published stays as initialised.

    Raises WeightsError when the file cannot be read, or a tensor is missing or of another shape.
    """
    tensors = files.read(path)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name not in published:
                continue
            if name not in tensors or tensors[name].shape != p.shape:
                raise WeightsError(
                    f"{path} has no {name} of shape {tuple(p.shape)}: it is of another network."
                )
            p.copy_(tensors[name])
            ema.weights[name].copy_(tensors[name])


def go_on_from(path: Path, model: nn.Module, ema: EMA, published: set[str]) -> dict[str, int]:
    """Go on with a run of which only its published weights are left; returns their clock.

    Weights and average are the averaged ones in bfloat16, optimisers are new, and what is never published is
    as initialised. Raises WeightsError as `start_from` does, and for a file without a clock.
    """
    start_from(path, model, ema, published)
    try:
        clock = json.loads(header.read_metadata(path)["clock"])
        return {name: int(clock[name]) for name in ("step", "images_seen", "skipped")}
    except (KeyError, TypeError, ValueError):
        raise WeightsError(f"{path} does not say how far its run had come; start anew with it.") from None


def _named(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in model.named_parameters() if id(p) in held]


def _optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"optim/{field}/{name}": value
        for optimizer in optimizers
        for name, p in _named(model, optimizer)
        for field, value in optimizer.state[p].items()
    }
