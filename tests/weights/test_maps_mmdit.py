"""The maps of MMDiTs and their control networks fit the published names and shapes, in both directions.

diffusers' names are those of its classes with the values of the published config.json, on the meta device;
those of single files are written down from the constructors of the original code (mmdit.py of sd3.5).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from diffusers.models.controlnets.controlnet_sd3 import SD3ControlNetModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor

from limner.models import mmdit, mmdit_control
from limner.models.mmdit import MMDiT, MMDiTConfig
from limner.models.mmdit_control import MMDiTControl
from limner.weights import detect, files, parts_sd3
from limner.weights.keymap import to_ours, to_theirs
from limner.weights.maps.mmdit import PREFIX, diffusers_mmdit, diffusers_mmdit_control, original_mmdit
from limner.weights.settings import differing, mmdit_control_settings, mmdit_settings, unknown

Shapes = dict[str, tuple[int, ...]]
MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 192,
}
LARGE = MEDIUM | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
PUBLISHED: dict[str, tuple[MMDiTConfig, dict[str, Any]]] = {  # transformer/config.json
    "sd3-medium": (mmdit.SD3_MEDIUM, MEDIUM),
    "sd35-medium": (
        mmdit.SD35_MEDIUM,
        MEDIUM
        | {
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
        },
    ),
    "sd35-large": (mmdit.SD35_LARGE, LARGE | {"qk_norm": "rms_norm", "dual_attention_layers": []}),
}
CONTROLS = {  # config.json of InstantX's networks, and of Stability AI's for 3.5 large
    "sd3-medium": (mmdit_control.CONTROL_SD3_MEDIUM, MEDIUM | {"num_layers": 6}),
    "sd3-medium-depth": (mmdit_control.CONTROL_SD3_DEPTH, MEDIUM | {"num_layers": 12}),
    "sd35-large": (
        mmdit_control.CONTROL_SD35_LARGE,
        LARGE
        | {
            "num_layers": 19,
            "joint_attention_dim": None,
            "use_pos_embed": False,
            "pos_embed_type": None,
            "force_zeros_for_pooled_projection": False,
        },
    ),
}


def meta(network: Any, arguments: dict[str, Any]) -> dict[str, Tensor]:
    with torch.device("meta"):
        tensors: dict[str, Tensor] = network(**arguments).state_dict()
    return tensors


def shapes(tensors: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def original(config: MMDiTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """mmdit.py: MMDiT(depth=depth, pos_embed_max_size=positions, qk_norm="rms" or None,
    x_block_self_attn_layers=the dual ones); 64 channels for each block of depth."""
    width = 64 * config.depth

    def linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (outputs, inputs)
        yield f"{name}.bias", (outputs,)

    yield "pos_embed", (1, config.positions**2, width)
    yield "x_embedder.proj.weight", (width, 16, 2, 2)
    yield "x_embedder.proj.bias", (width,)
    for name, inputs in (("t_embedder", 256), ("y_embedder", 2048)):
        yield from linear(f"{name}.mlp.0", inputs, width)
        yield from linear(f"{name}.mlp.2", width, width)
    yield from linear("context_embedder", 4096, width)
    yield from linear("final_layer.linear", width, 64)
    yield from linear("final_layer.adaLN_modulation.1", width, 2 * width)
    for i in range(config.depth):
        for stream in ("x_block", "context_block"):
            block = f"joint_blocks.{i}.{stream}"
            ends, dual = stream == "context_block" and i == config.depth - 1, i < config.dual
            for attention in ("attn", "attn2") if stream == "x_block" and dual else ("attn",):
                yield from linear(f"{block}.{attention}.qkv", width, 3 * width)
                if not ends:
                    yield from linear(f"{block}.{attention}.proj", width, width)
                if config.normed:
                    yield f"{block}.{attention}.ln_q.weight", (64,)
                    yield f"{block}.{attention}.ln_k.weight", (64,)
            count = 2 if ends else 9 if stream == "x_block" and dual else 6
            yield from linear(f"{block}.adaLN_modulation.1", width, count * width)
            if not ends:
                yield from linear(f"{block}.mlp.fc1", width, 4 * width)
                yield from linear(f"{block}.mlp.fc2", 4 * width, width)


@pytest.mark.parametrize("name", PUBLISHED)
def test_maps_lead_there_and_back(name: str) -> None:
    config, arguments = PUBLISHED[name]
    ours = shapes(files.empty(lambda: MMDiT(config)).state_dict())
    published = meta(SD3Transformer2DModel, arguments)
    single = {PREFIX + key: torch.empty(shape, device="meta") for key, shape in original(config)}
    for rules, theirs in ((diffusers_mmdit(config), published), (original_mmdit(config), single)):
        read = to_ours(rules, theirs, name)
        assert shapes(read) == ours
        assert shapes(to_theirs(rules, read)) == shapes(theirs)
    assert not differing(mmdit_settings(config), arguments)
    assert not unknown(mmdit_settings(config), arguments, "transformer")


@pytest.mark.parity
def test_both_namings_mean_the_same_tensors() -> None:
    """The reference's own converter from the original naming agrees with the way through our names."""
    config = MMDiTConfig(
        latents=4, depth=3, heads=2, head_width=8, context=24, pooled=20, positions=4, normed=True, dual=1
    )
    generator = torch.Generator().manual_seed(0)
    ours = {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in MMDiT(config).state_dict().items()
    }
    single = to_theirs(original_mmdit(config), ours)
    assert all(torch.equal(ours[key], t) for key, t in to_ours(original_mmdit(config), single, "").items())
    converted = convert_sd3_transformer_checkpoint_to_diffusers(dict(single))
    expected = to_theirs(diffusers_mmdit(config), ours)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", CONTROLS)
def test_maps_of_control_networks_lead_there_and_back(name: str) -> None:
    config, arguments = CONTROLS[name]
    published = meta(SD3ControlNetModel, arguments)
    rules = diffusers_mmdit_control(config)
    read = to_ours(rules, published, name)
    assert shapes(read) == shapes(files.empty(lambda: MMDiTControl(config)).state_dict())
    assert shapes(to_theirs(rules, read)) == shapes(published)
    assert not differing(mmdit_control_settings(config), arguments)
    assert not unknown(mmdit_control_settings(config), arguments, name)


@pytest.mark.parametrize("model", parts_sd3.MODELS, ids=lambda model: model.name)
def test_models_are_told_apart(model: Any) -> None:
    """By the names and shapes of all parts, in folders and in single files, with T5 and without."""
    for layout in ("folder", "single"):
        held = {
            part.folder: {
                name: torch.empty(shape, device="meta")
                for name, shape in detect.manifest(part, layout).items()
            }
            for part in model.parts
        }
        for left_out in ((), ("text_encoder_3",)):
            some = {name: tensors for name, tensors in held.items() if name not in left_out}
            flat = {name: tensor for tensors in some.values() for name, tensor in tensors.items()}
            tensors: Any = some if layout == "folder" else flat
            assert detect._model(Path("somewhere"), layout, tensors, parts_sd3.MODELS) is model
