"""CLIP as transformers writes it: both towers in one folder, or the picture tower alone."""

from pathlib import Path

import torch

from limner.errors import WeightsError
from limner.models.clip import CLIP, Activation, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from limner.weights import files
from limner.weights.folders import read_part
from limner.weights.keymap import to_ours
from limner.weights.maps.clip import transformers_clip, transformers_vision

LARGEST = 10_000  # of any number in a shape


def load(folder: Path, device: torch.device | None = None) -> CLIP:
    """Both towers in float32, from a folder with config.json and model.safetensors, such as OpenAI's.
    Raises WeightsError for files that are missing or do not fit."""
    text, vision = shapes(folder / "config.json")
    path = folder / "model.safetensors"
    tensors = to_ours(transformers_clip(text), files.read(path), path)
    return files.fill(lambda: CLIP(text, vision), tensors, path, device=device, dtype=torch.float32)


def load_vision(folder: Path, device: torch.device | None = None) -> CLIPVision:
    """The picture tower alone, such as the folder image_encoder of unCLIP models, in float32. Raises
    WeightsError for files that are missing or do not fit."""
    path = folder / "config.json"
    told = files.read_json(path)
    projection = _number(path, told, "the table", "projection_dim", 512)
    vision = _vision(path, told, "the table", projection)
    tensors, _ = read_part(folder)
    ours = to_ours(transformers_vision(), tensors, folder)
    return files.fill(lambda: CLIPVision(vision), ours, folder, device=device, dtype=torch.float32)


def shapes(path: Path) -> tuple[CLIPTextConfig, CLIPVisionConfig]:
    """Shapes out of config.json; what it leaves out is as transformers has it. Raises WeightsError."""
    told = files.read_json(path)
    text, vision = (
        inner if isinstance(inner := told.get(table), dict) else {}
        for table in ("text_config", "vision_config")
    )
    where = "text_config"
    projection = told.get("projection_dim", 512)
    if type(projection) is not int or not 1 <= projection <= LARGEST:
        raise WeightsError(f"{path}: projection_dim is a whole number, got {projection!r}")
    return CLIPTextConfig(
        width=_number(path, text, where, "hidden_size", 512),
        depth=_number(path, text, where, "num_hidden_layers", 12),
        heads=_number(path, text, where, "num_attention_heads", 8),
        inner=_number(path, text, where, "intermediate_size", 2048),
        activation=_activation(path, text, where),
        projection=projection,
        length=_number(path, text, where, "max_position_embeddings", 77),
    ), _vision(path, vision, "vision_config", projection)


def _vision(path: Path, table: dict[str, object], where: str, projection: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        width=_number(path, table, where, "hidden_size", 768),
        depth=_number(path, table, where, "num_hidden_layers", 12),
        heads=_number(path, table, where, "num_attention_heads", 12),
        inner=_number(path, table, where, "intermediate_size", 3072),
        activation=_activation(path, table, where),
        projection=projection,
        size=_number(path, table, where, "image_size", 224),
        patch=_number(path, table, where, "patch_size", 32),
    )


def _number(path: Path, table: dict[str, object], where: str, key: str, default: int) -> int:
    value = table.get(key, default)
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise WeightsError(f"{path}: {key} in {where} is a whole number from 1 to {LARGEST}, got {value!r}")
    return value


def _activation(path: Path, table: dict[str, object], where: str) -> Activation:
    value = table.get("hidden_act", "quick_gelu")
    if value == "quick_gelu":
        return "quick_gelu"
    if value == "gelu":
        return "gelu"
    raise WeightsError(f"{path}: hidden_act in {where} is quick_gelu or gelu, got {value!r}")
