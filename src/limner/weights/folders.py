"""Diffusers folders: model_index.json, and for each part a folder with config.json and safetensors."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import WeightsError
from limner.weights import files, header, numbers
from limner.weights.keymap import to_theirs
from limner.weights.parts import Model

INDEX = "model_index.json"
NETWORKS = (  # as model_index.json calls them; whatever else it names is passed over
    *("UNet2DConditionModel", "UNet2DModel", "AutoencoderKL", "SD3Transformer2DModel"),
    *("FluxTransformer2DModel", "PriorTransformer", "UnCLIPTextProjModel", "StableUnCLIPImageNormalizer"),
    *("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPVisionModelWithProjection", "T5EncoderModel"),
)
LEFT_OUT = ("T5EncoderModel",)  # folders are often copied without it; whether it may lack, models know
STEMS = ("diffusion_pytorch_model", "model")
PATH_FILE = "scheduler_config.json"  # beside which folder it lies is in its name
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
FLOW = "FlowMatch"  # how the classes of samplers begin that are asked for a flow and do not say so
COPIED = ("tokenizer*/*", "feature_extractor/*")


@dataclass(frozen=True, slots=True, eq=False)
class Folder:
    """What a folder holds, tensors memory-mapped."""

    tensors: Mapping[str, Mapping[str, Tensor]]  # part -> its tensors, under published names
    settings: Mapping[str, Mapping[str, object]]  # part -> its config.json
    classes: Mapping[str, str]  # part -> its class in model_index.json
    tables: Mapping[str, Mapping[str, object]]  # folder of a sampler -> its PATH_FILE
    notices: tuple[str, ...]


def read(path: Path, variant: str | None = None) -> Folder:
    """The networks of a folder. `variant` such as "fp16" chooses among files; None: the plain ones.

    Raises WeightsError when the folder is no diffusers folder, lacks a file, or has it as a pickle only.
    """
    index = files.read_json(path / INDEX)
    tensors, settings, classes, notices = {}, {}, {}, []
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and entry[1] in NETWORKS:
            if Path(name).name != name or name.startswith("."):
                raise WeightsError(f"{path / INDEX} names a part {name!r}, which is no folder beside it")
            if entry[1] in LEFT_OUT and not (path / name).is_dir():
                continue
            tensors[name], notice = read_part(path / name, variant)
            settings[name] = numbers.network(path / name / "config.json")
            classes[name] = entry[1]
            notices += notice
    return Folder(tensors, settings, classes, samplers(path), tuple(notices))


def stages(path: Path, names: tuple[str, ...]) -> list[Path]:
    """The diffusers folders in a folder that is none, of those that are called so."""
    return [path / name for name in names if (path / name / INDEX).is_file()]


def samplers(path: Path) -> dict[str, dict[str, object]]:
    """{folder of a sampler: its PATH_FILE}. Raises WeightsError for a number that is none."""
    return {file.parent.name: numbers.sampler(file) for file in sorted(path.glob(f"*/{PATH_FILE}"))}


def prediction(path: Path, table: Mapping[str, object]) -> str:
    """What the networks of a folder predict by its sampler's settings: "eps", "v", "x0" or "flow". Raises
    WeightsError for anything else."""
    if str(table.get("_class_name")).startswith(FLOW):
        return "flow"
    said = table.get("prediction_type", "epsilon")
    if not isinstance(said, str) or said not in PREDICTIONS:
        raise WeightsError(f"{path / '*' / PATH_FILE}: Limner does not know the prediction_type {said!r}")
    return PREDICTIONS[said]


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
    prediction: str | None = None,  # None: "eps", or what it can predict only
    table: Mapping[str, object] | None = None,  # of the first sampler, where it is not the usual one
    tables: Mapping[str, Mapping[str, object]] | None = None,  # of the others by their folders, likewise
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
    if absent := model.lacking(tensors):
        raise WeightsError(f"a {model.title} cannot be written without {', '.join(absent)}")
    beside = path.with_name(path.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    version = "0.30.0"  # of diffusers: the first that reads all that is written here
    index: dict[str, object] = {"_class_name": model.pipeline, "_diffusers_version": version}
    try:
        for part in model.parts:
            there = part.folder in tensors
            index[part.folder] = [part.kind.library, part.class_name] if there else [None, None]
            if part.tokenizer:
                index[part.tokenizer] = ["transformers", part.kind.tokenizer] if there else [None, None]
            if not there:
                continue
            theirs = to_theirs(part.kind.folder_keys(part.config), tensors[part.folder])
            target = beside / part.folder
            files.save_shards(theirs, target / f"{part.kind.stem}.safetensors", variant, size)
            told = {"torch_dtype": _dtype(theirs)} if part.kind.library == "transformers" else {}
            files.write_json(part.kind.settings(part.config) | told, target / "config.json")
        said = dict(tables or {})
        for number, (folder, usual) in enumerate(model.tables.items()):
            steps = dict(usual) | dict(said.get(folder, {}))
            if number == 0:
                steps |= dict(table or {}) | _predicting(prediction or model.usual)
            files.write_json(steps, beside / folder / PATH_FILE)
            index[folder] = ["diffusers", steps["_class_name"]]
        index |= model.index
        for name, content in (extras or {}).items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            (beside / name).write_bytes(content)
        files.write_json(index, beside / INDEX)
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def extras(path: Path) -> dict[str, bytes]:
    """What `write` does not make by itself and a copy of the folder `path` needs: tokenizers, and how
    pictures are made ready for a picture tower."""
    found = (
        file
        for pattern in COPIED
        for file in path.glob(pattern)
        if file.is_file() and file.suffix in (".json", ".txt", ".model")
    )
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in found}


def _predicting(prediction: str) -> dict[str, object]:
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    return {} if prediction == "flow" else {"prediction_type": names[prediction]}


def _dtype(tensors: Mapping[str, Tensor]) -> str:
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return str(kinds.pop() if len(kinds) == 1 else torch.float32).removeprefix("torch.")
