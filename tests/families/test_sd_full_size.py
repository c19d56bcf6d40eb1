"""Stable Diffusion at its full size, with random weights: from disk to pictures as diffusers has them.

Run by hand, `pytest -m huge -s`: 9 GB of disk and 12 GB of memory for 1.5, 11 and 14 for the U-Net of XL; it
says what it found.
"""

import gc
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from limner.families import sd_files
from limner.families.base import Order
from limner.families.sd import StableDiffusion
from limner.models.unet import SDXL, UNet
from limner.text.prompt import parse
from limner.util.rng import NoiseSource
from limner.weights import detect, files, folders, single_file
from limner.weights.keymap import to_ours
from limner.weights.maps.unet import diffusers_unet
from limner.weights.parts import SD15, TEXT, UNET
from limner.weights.settings import BETAS

pytestmark = [
    pytest.mark.huge,
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
STEPS, SIDE = 4, 256  # of the picture; the U-Net alone is asked for 512 pixels
CPU = torch.device("cpu")
ORDER = Order(
    prompt="a red fox in the snow",
    negative_prompt="",
    steps=STEPS,
    guidance=5.0,
    sampler="ddim",
    size=(SIDE, SIDE),
    style=None,
    grid="leading",
)


def filled(network: nn.Module, seed: int) -> Any:
    """A network that was made without weights, with random ones that keep numbers as they come."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            bound = 0.7 * (3 / tensor.shape[1:].numel()) ** 0.5
            tensors[name] = torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator)
        else:
            noise = torch.empty(tensor.shape).uniform_(-0.1, 0.1, generator=generator)
            tensors[name] = noise + name.endswith("weight")  # of a normalisation
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def theirs_of(kind: Any, settings: dict[str, Any], seed: int) -> Any:
    with torch.device("meta"):
        network = kind.from_config({key: value for key, value in settings.items() if key != "_class_name"})
    return filled(network, seed)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(scope="module")
def pipe() -> Any:
    settings = {part.folder: part.kind.settings(part.config) for part in SD15.parts}
    text = CLIPTextModel(CLIPTextConfig(**TEXT.settings(SD15.part("text_encoder").config))).eval()
    made = StableDiffusionPipeline(
        unet=theirs_of(UNet2DConditionModel, settings["unet"], 0),
        vae=theirs_of(AutoencoderKL, settings["vae"], 1),
        text_encoder=text.requires_grad_(False),
        tokenizer=None,
        scheduler=DDIMScheduler.from_config(BETAS, clip_sample=False, set_alpha_to_one=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def folder(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("full") / "sd15"
    pipe.save_pretrained(path)
    yield path
    for file in path.rglob("*.safetensors"):
        file.unlink()


@torch.inference_mode()
def test_sd15_from_a_folder_is_what_diffusers_saved(pipe: Any, folder: Path) -> None:
    start = time.perf_counter()
    model = sd_files.load(folder, CPU)
    loaded = time.perf_counter() - start
    x, t, context = draw(2, 4, 64, 64, seed=2), torch.tensor([981.0, 981.0]), draw(2, 77, 768, seed=3)
    expected = pipe.unet(x, t, encoder_hidden_states=context).sample
    off = difference(model.unet(x, t, context), expected)
    picture, expected = ours(model), theirs(pipe, model)
    found = decibel(picture, expected)
    sys.stdout.write(
        f"\nSD 1.5: loaded in {loaded:.2f} s; U-Net at 512 px off by {off:.1e} of the largest number; "
        f"{STEPS} steps at {SIDE} px: {found:.1f} dB, off by {(picture - expected).abs().max() / 2:.1e}\n"
    )
    assert expected.std() > 0.02
    assert off < 1e-5
    assert found > 50


@torch.inference_mode()
def test_sd15_from_a_single_file_is_the_folder(folder: Path, tmp_path: Path) -> None:
    found = detect.identify(folder)
    path = tmp_path / "sd15.safetensors"
    single_file.write(path, SD15, {part.folder: detect.ours(found, part.folder) for part in SD15.parts})
    one, other = sd_files.load(path, CPU), sd_files.load(folder, CPU)
    for ours, same in zip((one.unet, one.vae), (other.unet, other.vae), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), same.parameters(), strict=True))
    x, t, context = draw(1, 4, 32, 32, seed=4), torch.tensor([3.5]), draw(1, 77, 768, seed=5)
    assert torch.equal(one.unet(x, t, context), other.unet(x, t, context))
    words = [model.encoder.encode(parse(ORDER.prompt).at(0, 1)[0]).context for model in (one, other)]
    assert torch.equal(*words)
    path.unlink()


@torch.inference_mode()
def test_the_unet_of_xl_is_what_diffusers_saved(tmp_path: Path) -> None:
    network = theirs_of(UNet2DConditionModel, UNET.settings(SDXL), 0)
    x, t, context = draw(1, 4, 32, 32, seed=2), torch.tensor([981.0]), draw(1, 77, 2048, seed=3)
    pooled, sizes = draw(1, 1280, seed=4), torch.tensor([[256.0, 256.0, 0.0, 0.0, 256.0, 256.0]])
    told = {"text_embeds": pooled, "time_ids": sizes}
    expected = network(x, t, encoder_hidden_states=context, added_cond_kwargs=told).sample
    network.save_pretrained(tmp_path / "unet")
    del network
    gc.collect()
    try:
        start = time.perf_counter()
        tensors = to_ours(diffusers_unet(SDXL), folders.read_part(tmp_path / "unet")[0], "unet")
        unet = files.fill(lambda: UNet(SDXL), tensors, "unet")
        loaded = time.perf_counter() - start
        off = difference(unet(x, t, context, added=(pooled, sizes)), expected)
    finally:
        for file in (tmp_path / "unet").glob("*"):
            file.unlink()
    count = sum(tensor.numel() for tensor in tensors.values())
    sys.stdout.write(
        f"\nU-Net of XL, {count / 1e9:.3f} B numbers: loaded in {loaded:.2f} s; off by {off:.1e}\n"
    )
    assert off < 1e-5


def ours(model: StableDiffusion) -> Tensor:
    noise, x = NoiseSource([3]), None
    for stage in model.plan(ORDER).stages:
        for step in stage.run(x, noise):
            last = step.x
        x = last
    assert x is not None
    return x.clamp(-1, 1)


def theirs(pipe: Any, model: StableDiffusion) -> Tensor:
    """Their picture, from the embeddings of our text tower; the towers are compared in tests/models."""
    cond, uncond = (model.encoder.encode(parse(words).at(0, 1)[0]).context for words in (ORDER.prompt, ""))
    pictures = pipe(
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        num_inference_steps=STEPS,
        guidance_scale=ORDER.guidance,
        height=SIDE,
        width=SIDE,
        latents=NoiseSource([3]).initial((4, SIDE // 8, SIDE // 8)),
        output_type="pt",
    ).images
    return pictures * 2 - 1


def decibel(one: Tensor, other: Tensor) -> float:
    """PSNR of pixels in [-1, 1]."""
    return float(10 * torch.log10(4 / (one - other).square().mean()))
