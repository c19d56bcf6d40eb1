"""Networks that are published alone, as folders and as files; and what `inspect` says of small files."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.errors import WeightsError
from limner.models import kl_vae
from limner.models.controlnet import ControlNet, ControlNetConfig
from limner.models.tiny_vae import TinyVAEConfig
from limner.weights import files, folders, header, standalone
from limner.weights.inspect import inspect
from limner.weights.keymap import to_theirs
from limner.weights.maps.controlnet import ldm_controlnet
from limner.weights.maps.kl_vae import diffusers_vae
from limner.weights.standalone import Standalone, identify_network

_spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).with_name("tiny.py"))
assert _spec is not None
assert _spec.loader is not None
model: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(model)

CONTROL = ControlNetConfig(unet=model.UNET, channels=(4, 4, 8, 8))
SMALL = TinyVAEConfig(width=8, blocks=(1, 1))
KINDS = (
    standalone.control("a small ControlNet", CONTROL),
    standalone.autoencoder("a small autoencoder", model.VAE),
    standalone.small_autoencoder("a smaller autoencoder", SMALL),
)


def random(kind: Standalone) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    wanted = files.empty(kind.build).state_dict()
    return {name: torch.randn(t.shape, generator=generator) for name, t in wanted.items()}


def folder(path: Path, kind: Standalone, **more: object) -> Path:
    stem = "diffusion_pytorch_model.safetensors"
    files.save(to_theirs(kind.keys[0], random(kind)), path / stem, {"format": "pt"})
    files.write_json(dict(kind.settings) | {"_diffusers_version": "0.30.0"} | more, path / "config.json")
    return path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_spelling_is_read(tmp_path: Path, kind: Standalone) -> None:
    held = random(kind)
    paths = [folder(tmp_path / "folder", kind)]
    for index, keys in enumerate(kind.keys):
        paths.append(tmp_path / f"{index}.safetensors")
        save_file(to_theirs(keys, held), paths[-1])
    for path in paths:
        found = identify_network(path, KINDS)
        assert (found.kind.name, found.notices) == (kind.name, ())
        loaded = found.load(dtype=torch.float16).state_dict()
        assert loaded.keys() == held.keys()
        assert all(torch.equal(loaded[name], held[name].half()) for name in held)


@pytest.mark.parity
def test_what_diffusers_saves_is_read_without_notices(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel

    theirs = {
        "controlnet": ControlNetModel(
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            layers_per_block=1,
            cross_attention_dim=24,
            attention_head_dim=2,
            norm_num_groups=8,
            conditioning_embedding_out_channels=(4, 4, 8, 8),
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            scaling_factor=0.13025,
            force_upcast=False,  # as in sdxl-vae-fp16-fix
        ),
        "tiny_vae": AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
    }
    for name, network in theirs.items():
        network.save_pretrained(tmp_path / name)
        found = identify_network(tmp_path / name, KINDS)
        assert (found.kind.name, found.notices) == (name, ())


def test_names_of_lllyasviels_files(tmp_path: Path) -> None:
    names = set(to_theirs(ldm_controlnet(CONTROL), random(KINDS[0])))
    assert {
        "control_model.input_blocks.0.0.weight",
        "control_model.input_hint_block.14.bias",
        "control_model.zero_convs.0.0.weight",
        "control_model.middle_block_out.0.weight",
    } <= names
    save_file(to_theirs(ldm_controlnet(CONTROL), random(KINDS[0])), tmp_path / "a.safetensors")
    loaded = identify_network(tmp_path / "a.safetensors", KINDS).load()
    assert isinstance(loaded, ControlNet)


@pytest.mark.parametrize(
    ("index", "more", "message"),
    [
        (0, {"global_pool_conditions": True}, "global_pool_conditions is True, not False"),
        (0, {"attention_head_dim": 4}, "attention_head_dim is 4, not 2"),
        (0, {"conditioning_embedding_out_channels": [4, 4, 8, 9]}, "conditioning_embedding_out_channels is"),
        (1, {"mid_block_add_attention": False}, "mid_block_add_attention is False, not True"),
        (2, {"act_fn": "gelu"}, "act_fn is 'gelu', not 'relu'"),
    ],
)
def test_settings_that_mean_something_else(
    tmp_path: Path, index: int, more: dict[str, object], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        identify_network(folder(tmp_path / "x", KINDS[index], **more), KINDS)


def test_settings_that_nobody_knows_are_told(tmp_path: Path) -> None:
    path = folder(tmp_path / "x", KINDS[1], new_trick="swirl", old_trick=None, no_trick=False)
    said = "passed over in x/config.json, as Limner does not know it: new_trick (swirl)"
    assert identify_network(path, KINDS).notices == (said,)
    assert f"Note: {said}" in str(inspect(path, model.MODELS, KINDS))
    at = tmp_path / "model"
    folders.write(at, model.MODEL, model.random_tensors())
    config = files.read_json(at / "unet" / "config.json")
    files.write_json(config | {"new_trick": [1], "upcast_attention": True}, at / "unet" / "config.json")
    told = inspect(at, model.MODELS).notices
    assert told == ("passed over in unet/config.json, as Limner does not know it: new_trick ([1])",)
    files.write_json(config | {"resnet_time_scale_shift": "scale_shift"}, at / "unet" / "config.json")
    with pytest.raises(WeightsError, match="resnet_time_scale_shift is 'scale_shift', not 'default'"):
        inspect(at, model.MODELS)


def test_nothing_known_is_said_with_what_is(tmp_path: Path) -> None:
    tensors = random(KINDS[0])
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"none of the networks .* alone: a small ControlNet, a small"):
        identify_network(tmp_path / "a.safetensors", KINDS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="there are: no files"):
        identify_network(tmp_path / "empty", KINDS)
    with pytest.raises(WeightsError, match="there are no weights at"):
        identify_network(tmp_path / "nowhere", KINDS)


def test_published_shapes_are_told_apart() -> None:
    """Of the real networks, on the meta device; the VAE with the names of old diffusers, too."""
    kinds = standalone.known()
    for kind in kinds:
        network = files.empty(kind.build).state_dict()
        assert [other.title for other in kinds if other.fits(to_theirs(kind.keys[-1], network))] == [
            kind.title
        ]
    vae = to_theirs(diffusers_vae(), files.empty(lambda: kl_vae.KLVAE(kl_vae.SDXL)).state_dict())
    older = {
        name.replace(".to_q.", ".query.")
        .replace(".to_k.", ".key.")
        .replace(".to_v.", ".value.")
        .replace(".to_out.0.", ".proj_attn."): tensor
        for name, tensor in vae.items()
    }
    assert older.keys() != vae.keys()
    assert [kind.name for kind in kinds if kind.fits(older)] == ["vae"]


def test_inspect_tells_what_small_files_are(tmp_path: Path) -> None:
    lora = {
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 16, 1, 1),
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.zeros(16, 4, 1, 1),
        "lora_unet_down_blocks_0_attentions_0_proj_in.alpha": torch.tensor(2.0),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(8, 24).half(),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.zeros(48, 8).half(),
    }
    save_file(lora, tmp_path / "lora.safetensors", {"ss_network_dim": "8"})
    told = str(inspect(tmp_path / "lora.safetensors", model.MODELS, KINDS))
    assert told.startswith("a LoRA\n")
    for part in (
        "unet ",
        "text_encoder ",
        "ranks: 4, 8",
        "layers: 2",
        "float16",
        "metadata ss_network_dim: 8",
    ):
        assert part in told
    save_file({"emb_params": torch.zeros(3, 24)}, tmp_path / "my-dog.safetensors")
    told = str(inspect(tmp_path / "my-dog.safetensors", model.MODELS, KINDS))
    assert told.startswith("a textual-inversion embedding\n")
    assert "word: my-dog" in told
    assert "places: 3" in told
    save_file(to_theirs(KINDS[1].keys[1], random(KINDS[1])), tmp_path / "vae.safetensors", {"by": "me"})
    told = str(inspect(tmp_path / "vae.safetensors", model.MODELS, KINDS))
    assert told.startswith("a small autoencoder\n  network ")
    assert "metadata by: me" in told
    save_file({"odd": torch.zeros(2, 2, 2)}, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match="resembles"):
        inspect(tmp_path / "odd.safetensors", model.MODELS, KINDS)


def test_inspect_knows_our_own_files(tiny: Path) -> None:
    told = inspect(tiny / "base.safetensors")
    assert told.what == "a file of Limner's own"
    assert json.loads(told.metadata["objects"]) == ["cat", "dog", "apple", "bicycle"]
    assert sum(row.tensors for row in told.rows) == len(load_file(tiny / "base.safetensors"))
    assert header.read_metadata(tiny / "base.safetensors").keys() == told.metadata.keys()
