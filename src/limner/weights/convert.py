"""From one way of writing a model to another, and out of pickles: `limner convert`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from safetensors import SafetensorError

from limner.errors import WeightsError
from limner.text.clip_tokenizer import CLIPTokenizer
from limner.weights import detect, folders, single_file
from limner.weights.header import refuse_pickle
from limner.weights.inspect import called, own_networks
from limner.weights.parts import Model
from limner.weights.parts_cascade import STAGES
from limner.weights.published import ALL
from limner.weights.unpickle import copy_tensors

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert(
    path: Path,
    out: Path | None = None,  # None: beside `path`, under a name of its own
    *,
    to: Literal["folder", "single"]
    | None = None,  # None: a pickle becomes safetensors, with the names it has
    dtype: str | None = None,  # one of TYPES; None: as stored
    prediction: str | None = None,  # "eps" or "v", where the file does not say it
    models: Sequence[Model] = ALL,
) -> tuple[Path, tuple[str, ...]]:
    """Write the model at `path` again; returns where, and what is to be said about it. A pickle is read by
    `unpickle.copy_tensors`, which runs nothing.

    Raises WeightsError when something stands at `out` already or nothing can be written there, and for what
    cannot be read or recognised.
    """
    try:
        return _convert(path, out, to, dtype, prediction, models)
    except OSError as error:
        raise WeightsError(f"cannot write {error.filename or out}: {error.strerror}") from None
    except SafetensorError as error:  # such as a full disk
        raise WeightsError(f"cannot write {out or path}: {error}") from None


def _convert(
    path: Path,
    out: Path | None,
    to: Literal["folder", "single"] | None,
    dtype: str | None,
    prediction: str | None,
    models: Sequence[Model],
) -> tuple[Path, tuple[str, ...]]:
    if dtype is not None and dtype not in TYPES:
        raise WeightsError(f"unknown type {dtype!r}; use {', '.join(TYPES)}")
    if _pickled(path):
        plain = to is None and dtype is None
        target = out or _beside(path, to or "single", dtype)
        _free(target)
        if plain:
            return target, _copied(path, target)
        said = prediction or single_file.prediction(path, (), {})[0]  # a .yaml beside it
        near = target.parent if target.parent.is_dir() else path.parent
        with TemporaryDirectory(prefix=".limner-", dir=near) as folder:
            copy = Path(folder) / f"{path.stem}.safetensors"
            notices = _copied(path, copy)
            more = _convert(copy, target, to or "single", dtype, said, models)[1]
        return target, notices + more
    _refuse_several(path)
    found = detect.identify(path, prediction=prediction, models=models)
    to = to or found.layout
    target = out or _beside(path, to, dtype)
    _free(target)
    kind = TYPES[dtype] if dtype else None
    tensors = {
        part.folder: {
            name: tensor.to(kind) if tensor.is_floating_point() else tensor
            for name, tensor in detect.ours(found, part.folder).items()
        }
        for part in found.model.parts
        if part.folder not in found.absent
    }
    if to == "single":
        single_file.write(
            target,
            found.model,
            tensors,
            prediction=found.prediction,
            zero_snr=bool(found.table.get("rescale_betas_zero_snr")),
        )
    else:
        extras = folders.extras(path) if path.is_dir() else tokenizers(found.model)
        folders.write(
            target,
            found.model,
            tensors,
            prediction=found.prediction,
            table=found.table,
            tables=found.tables,
            extras=extras,
        )
        if unmade := _unmade(found.model, tensors, extras):
            return target, (*found.notices, unmade)
    return target, found.notices


def _refuse_several(path: Path) -> None:
    """Raises WeightsError for a folder of several models, and for one that nobody else has a naming for."""
    if not path.is_dir() or (path / folders.INDEX).is_file():
        return
    if stages := folders.stages(path, STAGES):
        told = ", ".join(map(str, stages))
        raise WeightsError(f"{path} is a cascade, and no one model; convert its stages one by one: {told}")
    if own := own_networks(path):
        raise WeightsError(
            f"{path} is {called(own)}: no other program has a naming for it, so that it cannot be converted"
        )


def _unmade(model: Model, parts: Iterable[str], extras: Iterable[str]) -> str | None:
    """Which tokenizers are in no single file and have to be copied from elsewhere."""
    there = {name.partition("/")[0] for name in extras}
    folders = [part.tokenizer for part in model.parts if part.folder in parts and part.tokenizer]
    if missing := [folder for folder in folders if folder not in there]:
        return f"copy {' and '.join(missing)} from a folder of {model.title}: single files do not hold them"
    return None


def tokenizers(model: Model) -> dict[str, bytes]:
    """The files of a CLIP tokenizer for each text encoder of `model`, by their place in a diffusers
    folder."""
    tokenizer = CLIPTokenizer()
    vocabulary = dict(sorted(tokenizer.vocabulary().items(), key=lambda token: token[1]))
    merges = "\n".join(["#version: 0.2", *map(" ".join, tokenizer.merges())]) + "\n"
    files: dict[str, bytes] = {}
    for part in model.parts:
        if part.kind.tokenizer != "CLIPTokenizer":
            continue
        assert part.tokenizer is not None
        folder = part.tokenizer
        begin, end = "<|startoftext|>", "<|endoftext|>"
        said = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": part.config.length,
            "bos_token": begin,
            "eos_token": end,
            "unk_token": end,
            "pad_token": end if part.config.activation == "quick_gelu" else "!",  # OpenCLIP's is 0
        }
        files[f"{folder}/vocab.json"] = json.dumps(vocabulary, ensure_ascii=False).encode()
        files[f"{folder}/merges.txt"] = merges.encode()
        files[f"{folder}/tokenizer_config.json"] = json.dumps(said, indent=2).encode()
    return files


def _beside(path: Path, to: str, dtype: str | None) -> Path:
    stem = path.name if path.is_dir() else path.stem
    suffix = f"-{dtype}" if dtype else ""
    return path.with_name(f"{stem}{suffix}" + (".safetensors" if to == "single" else ""))


def _copied(path: Path, target: Path) -> tuple[str, ...]:
    skipped = copy_tensors(path, target)
    return (f"left out, as no tensors: {', '.join(skipped)}",) if skipped else ()


def _pickled(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        refuse_pickle(path)
    except WeightsError:
        return True
    return False


def _free(path: Path) -> None:
    if path.exists():
        raise WeightsError(f"{path} exists already; choose another place")
