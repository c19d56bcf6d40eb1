"""The maps of U-Nets and control networks fit the published names and shapes, in both directions.

The manifests come from scripts/write_manifests.py, which knows nothing of the maps.
"""

import gzip
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint, convert_ldm_unet_checkpoint
from torch import Tensor, nn

from limner.errors import WeightsError
from limner.models import controlnet, unet
from limner.models.controlnet import ControlNet
from limner.models.unet import UNet
from limner.weights.keymap import KeyMap, to_ours, to_theirs
from limner.weights.maps.controlnet import diffusers_controlnet, ldm_controlnet
from limner.weights.maps.unet import diffusers_unet, ldm_unet

ROOT = Path(__file__).parents[2]
UNETS = {
    "unet_sd15": unet.SD15,
    "unet_sd15_inpainting": unet.SD15_INPAINTING,
    "unet_sd21": unet.SD21,
    "unet_sd21_unclip": unet.SD21_UNCLIP,
    "unet_sdxl": unet.SDXL,
    "unet_sdxl_refiner": unet.SDXL_REFINER,
}
CONTROLNETS = {
    "controlnet_sd15": controlnet.CONTROLNET_SD15,
    "controlnet_sd21": controlnet.CONTROLNET_SD21,
    "controlnet_sdxl": controlnet.CONTROLNET_SDXL,
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, KeyMap]]] = {
    **{
        name: (
            lambda config=config: UNet(config),
            {"diffusers": diffusers_unet(config), "original": ldm_unet(config)},
        )
        for name, config in UNETS.items()
    },
    **{
        name: (
            lambda config=config: ControlNet(config),
            {"diffusers": diffusers_controlnet(config), "original": ldm_controlnet(config)},
        )
        for name, config in CONTROLNETS.items()
    },
}
# What the reference's converter is told; it knows published files only: no control network with size ids.
CONVERTED: dict[str, dict[str, Any]] = {
    "unet_sd15": {},
    "unet_sd15_inpainting": {},
    "unet_sd21": {},
    "unet_sd21_unclip": {"class_embed_type": "projection"},
    "unet_sdxl": {"addition_embed_type": "text_time"},
    "unet_sdxl_refiner": {"addition_embed_type": "text_time"},
    "controlnet_sd15": {},
    "controlnet_sd21": {},
}


def manifest(name: str) -> dict[str, Any]:
    packed = (ROOT / "tests" / "manifests" / f"{name}.json.gz").read_bytes()
    told: dict[str, Any] = json.loads(gzip.decompress(packed))
    return told


def meta(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_lead_there_and_back(name: str) -> None:
    build, maps = NETWORKS[name]
    with torch.device("meta"):
        ours = shapes(build().state_dict())
    for naming, rules in maps.items():
        published = manifest(name)[naming]
        read = to_ours(rules, meta(published), name)
        assert shapes(read) == ours, naming
        assert shapes(to_theirs(rules, read)) == published, naming


@pytest.mark.parametrize("name", CONVERTED)
def test_both_namings_mean_the_same_tensors(name: str) -> None:
    """The reference's own converter from the original naming agrees with the way through our names."""
    _, maps = NETWORKS[name]
    original = manifest(name)["original"]
    numbered = {theirs: torch.tensor(float(index)) for index, theirs in enumerate(original)}
    convert = convert_ldm_unet_checkpoint if name in UNETS else convert_controlnet_checkpoint
    expected = convert(dict(numbered), {"layers_per_block": 2, **CONVERTED[name]})
    plain = {naming: tuple(replace(rule, change=None) for rule in rules) for naming, rules in maps.items()}
    converted = to_theirs(plain["diffusers"], to_ours(plain["original"], numbered, name))
    assert {key: value.item() for key, value in converted.items()} == {
        key: value.item() for key, value in expected.items()
    }


def test_values_survive_the_way_there_and_back() -> None:
    config = replace(unet.SD15, channels=(8, 16), depths=(1, 0), context=12, groups=4, heads=2)
    tensors = {name: torch.randn_like(tensor) for name, tensor in UNet(config).state_dict().items()}
    for rules in (diffusers_unet(config), ldm_unet(config), ldm_unet(config, prefix="")):
        theirs = to_theirs(rules, tensors)
        assert {tuple(tensor.shape[2:]) for name, tensor in theirs.items() if "proj_in.weight" in name} == {
            (1, 1)
        }
        read = to_ours(rules, theirs, "tiny")
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_files_of_control_networks_without_prefix_are_read() -> None:
    config = controlnet.CONTROLNET_SD21
    original = manifest("controlnet_sd21")["original"]
    bare = {name.removeprefix("control_model."): shape for name, shape in original.items()}
    with_prefix = to_ours(ldm_controlnet(config), meta(original), "file")
    assert shapes(to_ours(ldm_controlnet(config, prefix=""), meta(bare), "file")) == shapes(with_prefix)


@pytest.mark.parametrize(
    "wrong", ["time_embed.0.weight", "model.diffusion_model.input_blocks.12.0.op.weight"]
)
def test_unknown_names_are_told(wrong: str) -> None:
    with pytest.raises(WeightsError, match=wrong):
        to_ours(ldm_unet(unet.SD15), {wrong: torch.zeros(1)}, "file")


@pytest.mark.parametrize(
    "name, parameters",  # as published
    [
        ("unet_sd15", 859_520_964),
        ("unet_sd21", 865_910_724),
        ("unet_sdxl", 2_567_463_684),
        ("controlnet_sd15", 361_279_120),
    ],
)
def test_manifests_say_what_was_published(name: str, parameters: int) -> None:
    told = manifest(name)
    assert told["parameters"] == parameters
    for naming in ("diffusers", "original"):
        assert sum(torch.Size(shape).numel() for shape in told[naming].values()) == parameters


@pytest.mark.parametrize("name", ["unet_sd15", "controlnet_sd15"])
def test_manifests_are_what_the_script_writes(name: str) -> None:
    spec = importlib.util.spec_from_file_location("write_manifests", ROOT / "scripts" / "write_manifests.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert json.loads(script.MANIFESTS[name]().text()) == manifest(name)
