"""Stable Diffusion from the disk: folders and single files; LoRAs and learned words come and go."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from limner.errors import RequestError, WeightsError
from limner.families import sd_files
from limner.families.base import Order, Wishes
from limner.families.sd import StableDiffusion
from limner.nn import lora
from limner.util.rng import NoiseSource
from limner.weights import folders, single_file

_spec = importlib.util.spec_from_file_location(
    "tiny_model", Path(__file__).parents[1] / "weights" / "tiny.py"
)
assert _spec is not None
assert _spec.loader is not None
tiny: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

CPU = torch.device("cpu")
ORDER = Order(
    prompt="a red fox", negative_prompt="", steps=3, guidance=5.0, sampler="ddim", size=(32, 32), style=None
)


def load(path: Path, wishes: Wishes = Wishes()) -> StableDiffusion:
    return sd_files.load(path, CPU, wishes, models=tiny.MODELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folders.write(tmp_path / "model", tiny.MODEL, tiny.random_tensors(), prediction="eps")
    return tmp_path / "model"


@torch.inference_mode()
def drawn(model: StableDiffusion, order: Order = ORDER) -> Tensor:
    x = None
    for stage in model.plan(order).stages:
        *_, last = stage.run(x, NoiseSource([1]))
        x = last.x
    assert x is not None
    return x


def test_a_folder_and_a_single_file_draw_the_same(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    single_file.write(file, tiny.MODEL, tiny.random_tensors(), prediction="eps")
    one, other = load(folder), load(file)
    assert torch.equal(drawn(one), drawn(other))
    assert one.defaults.size == (64, 64)
    assert one.prediction == "eps"
    assert len(one.fingerprint) == 10
    changed = tiny.random_tensors(seed=1)
    folders.write(tmp_path / "changed", tiny.MODEL, changed, prediction="eps")
    assert load(tmp_path / "changed").fingerprint != one.fingerprint


def test_the_table_of_betas_is_the_folders(folder: Path, tmp_path: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    before = drawn(load(folder))
    file.write_text(file.read_text().replace("0.012", "0.02"))
    assert not torch.equal(drawn(load(folder)), before)
    file.write_text('{"rescale_betas_zero_snr": true, "prediction_type": "v_prediction"}')
    model = load(folder)
    assert (model.prediction, model.defaults.grid) == ("v", "trailing")
    assert model.path.alphas[-1] == 0
    assert drawn(model).isfinite().all()
    file.write_text('{"beta_schedule": "sigmoid"}')
    with pytest.raises(WeightsError, match="beta_schedule 'sigmoid'"):
        load(folder)


def update(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    at = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    text = "text_model_encoder_layers_0_self_attn_q_proj"
    return {
        f"lora_unet_{at}.lora_down.weight": draw(2, 16),
        f"lora_unet_{at}.lora_up.weight": draw(16, 2),
        f"lora_unet_{at}.alpha": torch.tensor(2.0),
        f"lora_te_{text}.lora_down.weight": draw(2, 24),
        f"lora_te_{text}.lora_up.weight": draw(24, 2),
        f"lora_te_{text}.alpha": torch.tensor(2.0),
    }


def test_loras_come_and_go_by_the_prompt(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "loras" / "mine"
    kept.mkdir(parents=True)
    save_file(update(), kept / "ink.safetensors")
    model = load(folder, Wishes(loras=tmp_path / "loras"))
    plain = drawn(model)
    inked = drawn(model, replace(ORDER, prompt="a red fox <lora:ink:0.8>"))
    assert not torch.equal(inked, plain)
    assert lora.attached(model.unet) == ("0: ink",)
    nothing = drawn(model, replace(ORDER, prompt="a red fox <lora:ink:0>"))
    assert torch.equal(nothing, plain)
    assert torch.equal(drawn(model), plain)
    assert lora.attached(model.unet) == ()
    with pytest.raises(RequestError, match=r'no LoRA "inc" in .* did you mean "ink"'):
        drawn(model, replace(ORDER, prompt="a <lora:inc:1>"))
    with pytest.raises(RequestError, match="no folder of LoRAs was given"):
        drawn(load(folder), replace(ORDER, prompt="a <lora:ink:1>"))


def test_a_lora_that_fits_in_part_only_is_refused_and_taken_off(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    other = {name.replace("blocks_0_attn1", "blocks_7_attn1"): tensor for name, tensor in update().items()}
    save_file(update() | other, tmp_path / "loras" / "odd.safetensors")
    model = load(folder, Wishes(loras=tmp_path / "loras"))
    with pytest.raises(WeightsError, match=r"1 of 3 layers are not in this model: .*blocks_7"):
        drawn(model, replace(ORDER, prompt="a <lora:odd:1>"))
    assert lora.attached(model.unet) == ()


def test_learned_words_are_read_and_heard(folder: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.mkdir()
    save_file(
        {"emb_params": torch.randn(3, 24, generator=torch.Generator().manual_seed(0))},
        words / "mydog.safetensors",
    )
    save_file({"clip_l": torch.zeros(1, 24), "clip_g": torch.zeros(1, 16)}, words / "ofxl.safetensors")
    model = load(folder, Wishes(embeddings=words))
    assert set(model.encoder.embeddings) == {"mydog"}
    save_file(update(), words / "ink.safetensors")
    (words / "old.pt").write_bytes(b"pickle")
    model = load(folder, Wishes(embeddings=words))
    assert model.notices == (
        "ink.safetensors was passed over: it holds no learned word",
        "old.pt was passed over: it is a pickle; see `limner convert`",
    )
    order = replace(ORDER, prompt="a mydog outside")
    assert not torch.equal(drawn(model, order), drawn(load(folder), order))
    assert torch.equal(drawn(model), drawn(load(folder)))


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"some.weight": torch.zeros(2)}, file)
    with pytest.raises(WeightsError):
        load(file)
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(WeightsError, match="limner convert"):
        load(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"prediction": "x"}, "eps or v"),
        ({"dtype": "float61"}, 'did you mean "float16"'),
        ({"loras": Path("/nowhere")}, "no folder /nowhere"),
    ],
)
def test_wishes_that_cannot_be_met(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Wishes(**wish)
