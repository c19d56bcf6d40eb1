"""Checkpoints that draw in few steps: LCM, Turbo, Lightning, LCM-LoRA. Their folders say how they want to be
drawn with, and then their pictures agree with diffusers', from the same noise and weights."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from limner.diffusion import grids
from limner.diffusion.paths import VPPath
from limner.errors import RequestError
from limner.families import sd_files
from limner.families.base import Order, Wishes
from limner.families.sd import StableDiffusion
from limner.models import clip, kl_vae, unet
from limner.models.unet import UNet
from limner.nn.embeddings import guidance_embedding
from limner.pipeline.request import Request
from limner.pipeline.run import Pipeline
from limner.text.prompt import parse
from limner.util.rng import NoiseSource
from limner.weights import folders, parts
from limner.weights.keymap import to_ours, to_theirs
from limner.weights.maps.unet import diffusers_unet, ldm_unet

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CPU = torch.device("cpu")
SIZE = (64, 48)
SHAPE = (4, SIZE[0] // 8, SIZE[1] // 8)
BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
TEXT = replace(clip.TEXT_L, width=24, depth=2, heads=2, inner=48)
VAE = replace(kl_vae.SD, channels=(8, 8, 16, 16), groups=8, layers=1)
PLAIN = replace(unet.SD15, channels=(16, 32), depths=(1, 0), context=24, groups=8, heads=2, layers=1)
TOLD = replace(PLAIN, guidance=16)


def tiny(name: str, config: unet.UNetConfig) -> parts.Model:
    prefix = "cond_stage_model.transformer."
    chosen = (parts.unet_part(config), parts.vae_part(VAE), parts.text_part(TEXT, prefix))
    return replace(parts.SD15, name=name, title=f"Tiny {name}", parts=chosen, size=256)


MODELS = (tiny("plain", PLAIN), tiny("lcm", TOLD))


class Made:
    """A diffusers folder of random weights, and the networks in it."""

    def __init__(self, path: Path, steps: Any, told: int | None) -> None:
        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(
            block_out_channels=PLAIN.channels, norm_num_groups=8, layers_per_block=1, sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2, cross_attention_dim=24, time_cond_proj_dim=told,
        ).eval()  # fmt: skip
        with torch.no_grad():
            for name, parameter in self.unet.named_parameters():
                if "attn2" in name or "cond_proj" in name:
                    parameter.mul_(3)  # small random networks hardly listen otherwise
        self.vae = AutoencoderKL(
            block_out_channels=VAE.channels, norm_num_groups=8, layers_per_block=1, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            scaling_factor=VAE.scale_factor,
        ).eval()  # fmt: skip
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                projection_dim=24, bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
            )
        ).eval()  # fmt: skip
        self.path = path
        for network, folder in ((self.unet, "unet"), (self.vae, "vae"), (text, "text_encoder")):
            network.save_pretrained(path / folder)
        self.drawn_with(steps)
        index = {
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
        }
        (path / "model_index.json").write_text(json.dumps({"_class_name": "Any", **index}))

    def drawn_with(self, steps: Any) -> "Made":
        """With another sampler beside the networks."""
        self.steps = steps
        steps.save_pretrained(self.path / "scheduler")
        return self

    def load(self, wishes: Wishes = Wishes(dtype="float32")) -> StableDiffusion:
        return sd_files.load(self.path, CPU, wishes, models=MODELS)

    def theirs(self, kind: Any, model: StableDiffusion, order: Order, **more: Any) -> Tensor:
        pipe = kind(
            vae=self.vae, unet=self.unet, scheduler=self.steps, text_encoder=None, tokenizer=None,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        context = model.encoder.encode(parse(order.prompt).at(0, 1)[0]).context
        images: Tensor = pipe(
            prompt_embeds=context,
            num_inference_steps=order.steps,
            height=SIZE[0],
            width=SIZE[1],
            latents=NoiseSource([3]).initial(SHAPE),
            output_type="pt",
            **more,
        ).images
        return images * 2 - 1


def same_noise(monkeypatch: pytest.MonkeyPatch, room: str) -> None:
    """Their sampler draws noise by itself: here it draws ours."""
    steps = count()
    draw = lambda shape, **_: NoiseSource([3]).step(next(steps), tuple(shape[1:]))  # noqa: E731
    monkeypatch.setattr(f"diffusers.schedulers.{room}.randn_tensor", draw)


def resolved(model: StableDiffusion, **asked: Any) -> Request:
    return Pipeline(model, "test").resolve(Request(prompt="a red fox", seed=3, count=1, size=SIZE, **asked))


def order_of(model: StableDiffusion, **asked: Any) -> Order:
    from limner.pipeline.order import order_of as of

    return of(resolved(model, **asked))


@torch.inference_mode()
def ours(model: StableDiffusion, order: Order) -> Tensor:
    noise, x = NoiseSource([3]), None
    for stage in model.plan(order).stages:
        *_, last = stage.run(x, noise)
        x = last.x
    assert x is not None
    return x


def decibel(one: Tensor, other: Tensor) -> float:
    return float(10 * torch.log10(4 / (one.clamp(-1, 1) - other.clamp(-1, 1)).square().mean()))


@pytest.fixture(scope="module")
def lcm(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("lcm"), LCMScheduler(**BETAS), 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of a plain U-Net with the sampler that a test gives it."""
    return Made(tmp_path_factory.mktemp("plain"), LCMScheduler(**BETAS), None).drawn_with


@pytest.mark.parity
@pytest.mark.parametrize("asked", [{}, {"steps": 7, "guidance": 2.0}, {"steps": 1}])
def test_lcm_folders_draw_as_theirs(
    lcm: Made, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    same_noise(monkeypatch, "scheduling_lcm")
    model = lcm.load()
    order = order_of(model, **asked)
    chosen = {"steps": 4, "guidance": 8.5} | asked
    assert (order.steps, order.guidance) == (chosen["steps"], chosen["guidance"])
    assert (order.sampler, order.grid, model.defaults.size) == ("lcm", "lcm", (64, 64))
    expected = lcm.theirs(LatentConsistencyModelPipeline, model, order, guidance_scale=order.guidance)
    assert decibel(ours(model, order), expected) > 50


def test_an_lcm_listens_to_the_scale_and_not_to_a_negative_prompt(lcm: Made) -> None:
    model = lcm.load()
    order = order_of(model)
    drawn = ours(model, order)
    assert decibel(ours(model, replace(order, guidance=2.0)), drawn) < 40
    against = replace(order, negative_prompt="a blue dog")
    assert torch.equal(ours(model, against), drawn)
    assert "draws without it" in model.plan(against).warnings[0]
    assert model.plan(order).warnings == ()
    with pytest.raises(RequestError, match="1 or more"):
        model.plan(replace(order, guidance=0.5))


@pytest.mark.parity
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_turbo_folders_draw_as_theirs(folder: Any, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    same_noise(monkeypatch, "scheduling_euler_ancestral_discrete")
    turbo = folder(EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing"))
    model = turbo.load()
    order = order_of(model, steps=steps)
    assert (order.guidance, order.sampler, order.grid) == (1.0, "euler_ancestral", "trailing")
    assert resolved(model).steps == 4
    assert any("Turbo" in notice for notice in model.notices)
    expected = turbo.theirs(StableDiffusionPipeline, model, order, guidance_scale=0.0)
    assert decibel(ours(model, order), expected) > 50


@pytest.mark.parity
def test_lightning_folders_draw_as_theirs(folder: Any) -> None:
    lightning = folder(EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing"))
    model = lightning.load()
    order = order_of(model, steps=2)
    assert (order.guidance, order.sampler, order.grid) == (1.0, "euler", "trailing")
    expected = lightning.theirs(StableDiffusionPipeline, model, order, guidance_scale=0.0)
    assert decibel(ours(model, order), expected) > 50


@pytest.mark.parity
def test_the_sampler_lcm_brings_its_steps_along(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As LCM-LoRA wants it, and folders that it was melted into."""
    same_noise(monkeypatch, "scheduling_lcm")
    plain = folder(LCMScheduler(**BETAS))
    table = plain.path / "scheduler" / "scheduler_config.json"
    model = plain.load()
    order = order_of(model)
    assert (order.steps, order.guidance, order.sampler, order.grid) == (4, 1.0, "lcm", "lcm")
    expected = plain.theirs(StableDiffusionPipeline, model, order, guidance_scale=1.0)
    assert decibel(ours(model, order), expected) > 50
    table.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}))
    usual = plain.load()
    assert usual.notices == ()
    found = resolved(usual)
    assert (found.steps, found.guidance, found.sampler, found.grid) == (25, 7.0, "dpmpp_2m", "karras")
    assert resolved(usual, sampler="lcm") == resolved(model)
    mixed = resolved(usual, sampler="lcm", steps=6, grid="trailing", guidance=1.5)
    assert (mixed.steps, mixed.guidance, mixed.grid) == (6, 1.5, "trailing")


def test_a_path_without_a_trace_of_the_picture_is_not_turbos(folder: Any) -> None:
    made = folder(EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing"))
    table = made.path / "scheduler" / "scheduler_config.json"
    told = json.loads(table.read_text()) | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    table.write_text(json.dumps(told))
    model = made.load()
    assert (model.defaults.steps, model.defaults.grid, model.defaults.guidance) == (25, "trailing", 7.0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 8, 50])
def test_the_grid_is_that_of_their_sampler(steps: int) -> None:
    theirs = LCMScheduler(**BETAS)
    theirs.set_timesteps(steps)
    assert grids.lcm(VPPath.scaled_linear(), steps).t[:-1].tolist() == theirs.timesteps.tolist()


def test_more_steps_than_it_was_trained_at_are_refused() -> None:
    with pytest.raises(RequestError, match="at most 50"):
        grids.lcm(VPPath.scaled_linear(), 51)


@pytest.mark.parity
def test_the_scale_is_told_as_theirs_is() -> None:
    excess = torch.tensor([0.0, 0.5, 7.5])
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, excess, 256)
    found = guidance_embedding(excess, 256)
    assert (found - expected).abs().max() < 1e-3  # sines of angles up to 7,500 in float32
    assert (found[:2] - expected[:2]).abs().max() < 1e-4


@pytest.mark.parity
def test_the_network_agrees_with_theirs(lcm: Made) -> None:
    network = lcm.load().unet
    x, context = torch.randn(2, 4, 8, 6), torch.randn(2, 7, 24)
    t, scale = torch.tensor([999.0, 259.0]), torch.tensor([7.5, 1.0])
    waves = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scale, 16)
    with torch.no_grad():
        expected = lcm.unet(x, t, context, timestep_cond=waves).sample
        found = network(x, t, context, guidance=scale)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    with pytest.raises(ValueError, match="`guidance` must be given"):
        network(x, t, context)
    with pytest.raises(ValueError, match="`guidance` must not be given"):
        UNet(PLAIN)(x, t, context, guidance=scale)


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_the_manifest_of_lcm_dreamshaper_leads_there_and_back() -> None:
    """Stable Diffusion 1.5's U-Net with time_cond_proj_dim 256, as its config.json says."""
    with torch.device("meta"):
        theirs = UNet2DConditionModel(
            sample_size=96, cross_attention_dim=768, attention_head_dim=8, time_cond_proj_dim=256
        ).state_dict()
        wanted = shapes(UNet(unet.SD15_LCM).state_dict())
    assert shapes(theirs)["time_embedding.cond_proj.weight"] == (320, 256)
    ours_ = to_ours(diffusers_unet(unet.SD15_LCM), theirs, "lcm")
    assert shapes(ours_) == wanted
    assert shapes(to_theirs(diffusers_unet(unet.SD15_LCM), ours_)) == shapes(theirs)
    original = to_theirs(ldm_unet(unet.SD15_LCM), ours_)
    assert shapes(to_ours(ldm_unet(unet.SD15_LCM), original, "lcm")) == wanted


def test_a_folder_is_written_and_read_back(lcm: Made, tmp_path: Path) -> None:
    model = replace(MODELS[1], pipeline=parts.SD15_LCM.pipeline, tables=parts.SD15_LCM.tables)
    tensors = {part.folder: lcm.load().shelf.take(part.folder).state_dict() for part in model.parts}
    folders.write(tmp_path / "copy", model, tensors)
    copy, original = sd_files.load(tmp_path / "copy", CPU, models=MODELS), lcm.load()
    assert replace(copy.defaults, size=SIZE, lcm=None) == replace(original.defaults, size=SIZE, lcm=None)
    assert torch.equal(ours(copy, order_of(copy)), ours(original, order_of(original)))
    said = json.loads((tmp_path / "copy" / "unet" / "config.json").read_text())
    assert said["time_cond_proj_dim"] == 16


def consistency_lora(metadata: dict[str, str], path: Path, *, told_time: bool = True) -> None:
    layer = "resnets_0_time_emb_proj" if told_time else "attentions_0_proj_in"
    sides = (2, 64), (16, 2)
    if not told_time:
        sides = (2, 16, 1, 1), (16, 2, 1, 1)
    tensors = {
        f"lora_unet_down_blocks_0_{layer}.lora_down.weight": torch.randn(sides[0]),
        f"lora_unet_down_blocks_0_{layer}.lora_up.weight": torch.randn(sides[1]),
        f"lora_unet_down_blocks_0_{layer}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "metadata, told_time, hinted",
    [
        ({}, True, True),
        ({"ss_network_module": "networks.lora"}, True, False),  # a style, trained with kohya's scripts
        ({}, False, False),
        ({"modelspec.title": "My LCM-LoRA", "ss_network_module": "networks.lora"}, False, True),
    ],
)
def test_lcm_lora_is_noticed(
    folder: Any, tmp_path: Path, metadata: dict[str, str], told_time: bool, hinted: bool
) -> None:
    plain = folder(EulerDiscreteScheduler(**BETAS))
    (tmp_path / "loras").mkdir()
    consistency_lora(metadata, tmp_path / "loras" / "quick.safetensors", told_time=told_time)
    model = plain.load(Wishes(dtype="float32", loras=tmp_path / "loras"))
    order = replace(order_of(model), prompt="a red fox <lora:quick:1>")
    for _ in range(2):  # also when it is in place already
        assert any("draw with the sampler lcm" in said for said in model.plan(order).notices) == hinted
    few = replace(order_of(model, sampler="lcm"), prompt="a red fox <lora:quick:1>")
    assert model.plan(few).notices == ()
    assert ours(model, few).isfinite().all()
