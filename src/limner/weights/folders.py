"""Diffusers folders: model_index.json, and for each part a folder with config.json and safetensors."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import WeightsError
from limner.weights import files, header
from limner.weights.keymap import to_theirs
from limner.weights.parts import Model
from limner.weights.settings import BETAS

INDEX = "model_index.json"
NETWORKS = ("UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "CLIPTextModelWithProjection")
STEMS = ("diffusion_pytorch_model", "model")
PATH_FILE = "scheduler_config.json"  # beside which folder it lies is in its name
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True, slots=True, eq=False)
class Folder:
    """What a folder holds, tensors memory-mapped."""

    tensors: Mapping[str, Mapping[str, Tensor]]  # part -> its tensors, under published names
    settings: Mapping[str, Mapping[str, object]]  # part -> its config.json
    prediction: str | None  # what its networks predict: "eps", "v" or "x0"; None: it does not say
    table: Mapping[str, object]  # of betas: its PATH_FILE; empty where there is none
    notices: tuple[str, ...]


def read(path: Path, variant: str | None = None) -> Folder:
    """The networks of a folder. `variant` such as "fp16" chooses among files; None: the plain ones.

    Raises WeightsError when the folder is no diffusers folder, lacks a file, or has it as a pickle only.
    """
    index = files.read_json(path / INDEX)
    tensors, settings, notices = {}, {}, []
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and entry[1] in NETWORKS:
            if Path(name).name != name or name.startswith("."):
                raise WeightsError(f"{path / INDEX} names a part {name!r}, which is no folder beside it")
            tensors[name], notice = read_part(path / name, variant)
            settings[name] = files.read_json(path / name / "config.json")
            notices += notice
    said: object = None
    table: dict[str, object] = {}
    for file in path.glob(f"*/{PATH_FILE}"):
        table = files.read_json(file)
        said = table.get("prediction_type", "epsilon")
        if said not in PREDICTIONS:
            raise WeightsError(f"{file}: Limner does not know the prediction_type {said!r}")
    predicts = PREDICTIONS[said] if isinstance(said, str) else None
    return Folder(tensors, settings, predicts, table, tuple(notices))


def read_part(path: Path, variant: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one part's folder, and what is to be said about the choice of files."""
    dot = f".{variant}" if variant else ""
    for stem in STEMS:
        for name in (f"{stem}{dot}.safetensors", f"{stem}.safetensors.index{dot}.json"):
            if (path / name).is_file():
                return files.read(path / name), []
    there = sorted(file.name for file in path.glob("*") if file.is_file()) if path.is_dir() else []
    variants = {
        name.split(".")[1] for name in there if name.count(".") == 2 and name.endswith(".safetensors")
    }
    variants = {name.partition("-")[0] for name in variants}
    if variant is None and len(variants) == 1:
        (only,) = variants
        return read_part(path, only)[0], [f"{path.name} is there as {only} only, which was taken"]
    for name in there:
        if name.startswith(STEMS):
            header.refuse_pickle(path / name)
    wanted = f'the variant "{variant}" of ' if variant else ""
    raise WeightsError(
        f"{path} does not hold {wanted}{' or '.join(f'{stem}.safetensors' for stem in STEMS)}; there are: "
        f"{', '.join(there) or 'no files'}"
    )


def write(
    path: Path,
    model: Model,
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    prediction: str = "eps",
    table: Mapping[str, object] | None = None,  # of betas, where it is not the usual one
    variant: str | None = None,
    extras: Mapping[str, bytes] | None = None,  # more files by their place in the folder, such as tokenizers
    size: int = files.SHARD,  # bytes of one file at most
) -> None:
    """Write `model` with `tensors`, {part: tensors under our names}, as a folder that diffusers loads. It
    appears whole or not at all.

    Raises WeightsError when `path` exists, or a part of the model has no tensors.
    """
    if path.exists():
        raise WeightsError(f"{path} exists already; choose another folder")
    if absent := [part.folder for part in model.parts if part.folder not in tensors]:
        raise WeightsError(f"a {model.title} cannot be written without {', '.join(absent)}")
    beside = path.with_name(path.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    version = "0.30.0"  # of diffusers: the first that reads all that is written here
    index: dict[str, object] = {"_class_name": model.pipeline, "_diffusers_version": version}
    try:
        for part in model.parts:
            theirs = to_theirs(part.kind.folder_keys(part.config), tensors[part.folder])
            target = beside / part.folder
            files.save_shards(theirs, target / f"{part.kind.stem}.safetensors", variant, size)
            told = {"torch_dtype": _dtype(theirs)} if part.kind.library == "transformers" else {}
            files.write_json(part.kind.settings(part.config) | told, target / "config.json")
            index[part.folder] = [part.kind.library, part.class_name]
            if part.kind.library == "transformers":
                index[part.folder.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
        names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
        folder = PATH_FILE.removesuffix("_config.json")
        betas = BETAS | dict(table or {}) | {"prediction_type": names[prediction]}
        files.write_json(betas, beside / folder / PATH_FILE)
        index[folder] = ["diffusers", betas["_class_name"]]
        if model.pipeline.startswith("StableDiffusionXL"):
            index["force_zeros_for_empty_prompt"] = "text_encoder" in tensors
            if "text_encoder" not in tensors:
                index |= {
                    "text_encoder": [None, None],
                    "tokenizer": [None, None],
                    "requires_aesthetics_score": True,
                }
        else:
            index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        for name, content in (extras or {}).items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            (beside / name).write_bytes(content)
        files.write_json(index, beside / INDEX)
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def extras(path: Path) -> dict[str, bytes]:
    """What `write` does not make by itself and a copy of the folder `path` needs: its tokenizers."""
    found = (
        file for file in path.glob("tokenizer*/*") if file.is_file() and file.suffix in (".json", ".txt")
    )
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in found}


def _dtype(tensors: Mapping[str, Tensor]) -> str:
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return str(kinds.pop() if len(kinds) == 1 else torch.float32).removeprefix("torch.")
