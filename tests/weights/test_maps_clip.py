"""Maps of CLIP: over names and shapes of the published files, and with numbers against the reference."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from torch import Tensor

from limner.errors import WeightsError
from limner.models.clip import (
    CLIP,
    TEXT_G,
    TEXT_H_SD2,
    TEXT_L,
    VISION_G,
    VISION_H,
    VISION_L,
    CLIPText,
    CLIPTextConfig,
    CLIPVision,
    CLIPVisionConfig,
)
from limner.weights.keymap import KeyMap, to_ours, to_theirs
from limner.weights.maps import clip as maps

MANIFESTS = Path(__file__).parents[1] / "manifests"
TINY = CLIPTextConfig(width=16, depth=2, heads=2, inner=64, projection=16, vocabulary=100, length=8, end=99)
PUBLISHED = {
    "text_sd15": (TEXT_L, maps.transformers_text(TEXT_L, maps.SD1_PREFIX)),
    "text_sd21": (TEXT_H_SD2, maps.openclip_text(TEXT_H_SD2, maps.SD2_PREFIX)),
    "text_sdxl_first": (TEXT_L, maps.transformers_text(TEXT_L, maps.SDXL_FIRST_PREFIX)),
    "text_sdxl_second": (TEXT_G, maps.openclip_text(TEXT_G, maps.SDXL_SECOND_PREFIX)),
}


def tensors(name: str, naming: str) -> dict[str, Tensor]:
    """A manifest as tensors on the meta device."""
    shapes = json.loads(gzip.decompress((MANIFESTS / f"{name}.json.gz").read_bytes()))[naming]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def shapes(named: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named.items()}


def not_kept(rules: KeyMap, theirs: dict[str, Tensor]) -> set[str]:
    """What the rules drop, found by reading one tensor at a time."""
    return {name for name in theirs if not to_ours(rules, {name: theirs[name]}, "test")}


@pytest.mark.parametrize("naming", ["transformers", "original"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_become_ours_and_again_themselves(name: str, naming: str) -> None:
    config, original = PUBLISHED[name]
    rules = original if naming == "original" else maps.transformers_text(config)
    with torch.device("meta"):
        network = CLIPText(config)
    theirs = tensors(name, naming)
    assert shapes(to_ours(rules, theirs, name)) == shapes(network.state_dict())
    dropped = not_kept(rules, theirs)
    written = shapes(to_theirs(rules, network.state_dict()))
    assert written == {key: shape for key, shape in shapes(theirs).items() if key not in dropped}


def test_only_what_nobody_uses_is_dropped() -> None:
    dropped = {name: not_kept(rules, tensors(name, "original")) for name, (_, rules) in PUBLISHED.items()}
    assert dropped["text_sd15"] == {"cond_stage_model.transformer.text_model.embeddings.position_ids"}
    assert dropped["text_sdxl_second"] == {"conditioner.embedders.1.model.logit_scale"}
    block = {name for name in dropped["text_sd21"] if ".resblocks.23." in name}
    assert len(block) == 12
    rest = {"cond_stage_model.model.logit_scale", "cond_stage_model.model.text_projection"}
    assert dropped["text_sd21"] - block == rest


def test_names_without_the_models_prefix_are_read_and_the_published_are_written() -> None:
    rules = maps.transformers_text(TEXT_L)
    published = tensors("text_sd15", "transformers")
    bare = {name.removeprefix("text_model."): tensor for name, tensor in published.items()}
    assert set(bare) != set(published)
    ours = to_ours(rules, bare, "bare")
    assert shapes(ours) == shapes(to_ours(rules, published, "published"))
    assert shapes(to_theirs(rules, ours)) == shapes(published)


def test_older_files_and_unknown_tensors() -> None:
    rules = maps.transformers_text(TEXT_L)
    theirs = tensors("text_sd15", "transformers")
    older = {**theirs, "text_model.embeddings.position_ids": torch.arange(77)[None]}
    assert to_ours(rules, older, "older").keys() == to_ours(rules, theirs, "newer").keys()
    with pytest.raises(WeightsError, match=r"stranger: 1 .*unknown.*text_model\.extra\.weight"):
        to_ours(rules, {**theirs, "text_model.extra.weight": torch.empty(1)}, "stranger")


@pytest.mark.parity
@pytest.mark.parametrize("projected", [False, True])
def test_the_reference_loads_what_we_write(projected: bool) -> None:
    """Folder: by name. Single file: through the conversion that diffusers has for OpenCLIP's naming."""
    torch.manual_seed(0)
    config = TINY if projected else replace(TINY, projection=None)
    network = CLIPText(replace(config, activation="gelu")).requires_grad_(False)
    for weight in network.parameters():
        weight += 0.1 * torch.randn_like(weight)
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    theirs = kind(
        transformers.CLIPTextConfig(
            vocab_size=100,
            hidden_size=16,
            intermediate_size=64,
            projection_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8,
            hidden_act="gelu",
            eos_token_id=99,
        )
    ).eval()
    tokens = torch.tensor([[1, 2, 99, 0, 0], [5, 6, 7, 8, 99]])
    want = network(network.embed(tokens), tokens)
    folder = to_theirs(maps.transformers_text(config), network.state_dict())
    prefix = maps.SDXL_SECOND_PREFIX if projected else maps.SD2_PREFIX
    single = to_theirs(maps.openclip_text(config, prefix), network.state_dict())
    for written in (folder, convert_open_clip_checkpoint(theirs, single, prefix)):
        named = written if projected else {key.removeprefix("text_model."): written[key] for key in written}
        theirs.load_state_dict(named)
        with torch.no_grad():
            got = theirs(tokens)
        assert (got.last_hidden_state - want.last).abs().max() < 1e-5 * want.last.abs().max()
        if projected:
            assert (got.text_embeds - want.projected).abs().max() < 1e-5 * want.projected.abs().max()


@pytest.mark.parametrize(
    "config, parameters", [(VISION_L, 303_966_208), (VISION_H, 632_076_800), (VISION_G, 1_844_907_264)]
)
def test_picture_towers_have_the_published_size(config: CLIPVisionConfig, parameters: int) -> None:
    with torch.device("meta"):
        network = CLIPVision(config)
    assert sum(weight.numel() for weight in network.parameters()) == parameters


@pytest.mark.parametrize("naming", ["transformers", "openclip"])
def test_a_whole_clip_goes_both_ways(naming: str) -> None:
    vision = CLIPVisionConfig(width=16, depth=2, heads=2, inner=24, projection=16, size=14, patch=7)
    network = CLIP(TINY, vision)
    rules = maps.transformers_clip(TINY) if naming == "transformers" else maps.openclip_clip(TINY)
    written = to_theirs(rules, network.state_dict())
    again = to_ours(rules, written, "test")
    assert again.keys() == network.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())
    projection = written["text_projection.weight" if naming == "transformers" else "visual.proj"]
    ours = network.text.projection if naming == "transformers" else network.vision.projection
    assert torch.equal(projection, ours.weight if naming == "transformers" else ours.weight.T)
