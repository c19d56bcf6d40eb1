"""Karlo and Stable Diffusion 2.1 unCLIP: the maps fit the published names and shapes, in both directions.

The manifests come from scripts/write_manifests.py, which knows nothing of the maps.
"""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limner.weights import detect, files
from limner.weights.keymap import to_ours, to_theirs
from limner.weights.parts import Model
from limner.weights.parts_unclip import KARLO, KARLO_VARIATIONS, MODELS, SD21_UNCLIP, SD21_UNCLIP_SMALL

MANIFESTS = Path(__file__).parents[1] / "manifests"
PUBLISHED = [
    (KARLO, "prior", "prior_karlo"),
    (KARLO, "text_encoder", "text_karlo"),
    (KARLO, "text_proj", "text_proj_karlo"),
    (KARLO, "image_encoder", "picture_karlo"),
    (KARLO, "decoder", "decoder_karlo"),
    (KARLO, "super_res_first", "super_res_karlo"),
    (KARLO, "super_res_last", "super_res_karlo"),
    (SD21_UNCLIP, "image_encoder", "picture_sd21_unclip"),
    (SD21_UNCLIP, "unet", "unet_sd21_unclip"),
    (SD21_UNCLIP, "vae", "vae_sd"),
    (SD21_UNCLIP, "text_encoder", "text_sd21"),
    (SD21_UNCLIP_SMALL, "prior", "prior_karlo"),
    (SD21_UNCLIP_SMALL, "prior_text_encoder", "text_karlo"),
    (SD21_UNCLIP_SMALL, "image_encoder", "picture_karlo"),
]


def manifest(name: str) -> dict[str, Tensor]:
    told = json.loads(gzip.decompress((MANIFESTS / f"{name}.json.gz").read_bytes()))
    named = told.get("diffusers") or told["transformers"]
    return {key: torch.empty(shape, device="meta") for key, shape in named.items()}


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize(("model", "folder", "name"), PUBLISHED)
def test_maps_lead_there_and_back(model: Model, folder: str, name: str) -> None:
    part, theirs = model.part(folder), manifest(name)
    keys = detect.keys_of(part, "folder")
    read = to_ours(keys, theirs, name)
    assert shapes(read) == shapes(files.empty(part.build).state_dict())
    assert shapes(to_theirs(keys, read)) == shapes(theirs)
    assert not detect.differences(part, "folder", theirs)


def test_sizes_are_as_published() -> None:
    def parameters(model: Model, folder: str) -> int:
        return sum(weight.numel() for weight in files.empty(model.part(folder).build).parameters())

    assert parameters(KARLO, "prior") == 1_022_030_080  # "1B" in its card
    assert parameters(KARLO, "decoder") + parameters(KARLO, "text_proj") > 890_000_000  # "900M"
    both = parameters(KARLO, "super_res_first") + parameters(KARLO, "super_res_last")
    assert 1_300_000_000 < both < 1_500_000_000  # "1.4B"


def test_models_say_what_their_folders_hold() -> None:
    for model in MODELS:
        assert model.family == ("unclip" if model.main == "decoder" else "sd_unclip")
        assert not model.single
        assert model.part(model.main).kind.telling(model.part(model.main).config)
    assert [part.folder for part in KARLO_VARIATIONS.parts] == [
        "text_encoder", "text_proj", "decoder", "super_res_first", "super_res_last", "image_encoder",
    ]  # fmt: skip
    assert [part.class_name for part in KARLO.parts] == [
        "PriorTransformer", "CLIPTextModelWithProjection", "UnCLIPTextProjModel", "UNet2DConditionModel",
        "UNet2DModel", "UNet2DModel", "CLIPVisionModelWithProjection",
    ]  # fmt: skip
    assert SD21_UNCLIP.part("image_normalizer").class_name == "StableUnCLIPImageNormalizer"
