"""Whole pictures of the Stable Diffusion family agree with diffusers', from the same noise and weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig as TheirTextConfig
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from limner.diffusion.paths import VPPath
from limner.errors import RequestError
from limner.families.base import ControlOrder, Defaults, Order
from limner.families.conditions import Encoder, Tower
from limner.families.sd import StableDiffusion
from limner.families.shelf import Shelf
from limner.families.stages import DiffusionStage
from limner.models import clip, kl_vae, unet
from limner.models.clip import CLIPText
from limner.models.controlnet import ControlNet, ControlNetConfig
from limner.models.kl_vae import KLVAE
from limner.models.unet import UNet
from limner.text.prompt import parse
from limner.util.rng import NoiseSource
from limner.weights.keymap import to_ours
from limner.weights.maps.clip import transformers_text
from limner.weights.maps.controlnet import diffusers_controlnet
from limner.weights.maps.kl_vae import diffusers_vae
from limner.weights.maps.unet import diffusers_unet

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SIZE = (64, 48)
STEPS = 6
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = {**BETAS, "timestep_spacing": "leading", "steps_offset": 1}

TEXT = replace(clip.TEXT_L, width=24, depth=3, heads=2, inner=48)
TEXT_2 = replace(clip.TEXT_G, width=16, depth=3, heads=2, inner=32, projection=20)
VAE = replace(kl_vae.SD, channels=(8, 8, 16, 16), groups=8, layers=1)
SD1 = replace(unet.SD15, channels=(16, 32), depths=(1, 0), context=24, groups=8, heads=2, layers=1)
XL = replace(
    unet.SDXL, channels=(16, 32), depths=(0, 2), middle=2, context=40, groups=8, head_channels=8,
    pooled=20, size_channels=8, layers=1,
)  # fmt: skip
CROSSED = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
COMMON = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 8}


def filled(network: nn.Module, theirs: nn.Module, keys: Any) -> Any:
    network.load_state_dict(to_ours(keys, theirs.state_dict(), "test"), strict=True)
    return network.eval().requires_grad_(False)


def text(config: clip.CLIPTextConfig, kind: type) -> Any:
    return kind(
        TheirTextConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.inner,
            hidden_act=config.activation,
            projection_dim=config.projection or 20,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=1,
        )
    ).eval()


class Pair:
    """A model of ours, and the parts of theirs that it was made of."""

    def __init__(self, kind: str, prediction: str = "eps", inputs: int = 4) -> None:
        torch.manual_seed(0)
        config = replace(XL if kind == "xl" else SD1, inputs=inputs)
        self.texts = [text(TEXT, CLIPTextModel)]
        towers = [Tower(network=filled(CLIPText(TEXT), self.texts[0], transformers_text(TEXT)))]
        if kind == "xl":
            self.texts.append(text(TEXT_2, CLIPTextModelWithProjection))
            second = filled(CLIPText(TEXT_2), self.texts[1], transformers_text(TEXT_2))
            towers = [
                replace(towers[0], skip=2, norm=False),
                Tower(network=second, pad=0, skip=2, norm=False),
            ]
        down, up = CROSSED
        extra: dict[str, Any] = {"attention_head_dim": 2, "cross_attention_dim": 24}
        if kind == "xl":
            down, up = down[::-1], up[::-1]
            extra = {
                "attention_head_dim": (2, 4),
                "cross_attention_dim": 40,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 20 + 6 * 8,
                "transformer_layers_per_block": (1, 2),
            }
        self.unet = UNet2DConditionModel(
            down_block_types=down, up_block_types=up, in_channels=inputs, **COMMON, **extra
        ).eval()
        with torch.no_grad():
            for name, parameter in self.unet.named_parameters():
                if "attn2" in name or "add_embedding" in name:
                    parameter.mul_(3)  # small random networks hardly listen otherwise
        self.vae = AutoencoderKL(
            block_out_channels=VAE.channels,
            norm_num_groups=8,
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            scaling_factor=VAE.scale_factor,
        ).eval()
        self.control: Any = None
        unet = filled(UNet(config), self.unet, diffusers_unet(config))
        vae = filled(KLVAE(VAE), self.vae, diffusers_vae())
        cpu = torch.device("cpu")
        self.model = StableDiffusion(
            shelf=Shelf({"unet": lambda device: unet, "vae": lambda device: vae}, cpu),
            unet_config=config,
            vae_config=VAE,
            encoder=Encoder(tuple(towers)),
            path=VPPath.scaled_linear(),
            prediction=prediction,
            defaults=Defaults(steps=STEPS, guidance=7.5, sampler="ddim", size=SIZE, grid="leading"),
            zeros=kind == "xl",
            fingerprint="test",
            device=cpu,
            control_network=self._control,
            companion=lambda name: self.model,
            adapt=lambda loras: (),
        )

    def _control(self, name: str) -> ControlNet:
        if self.control is None:
            self.control = ControlNetModel.from_unet(
                self.unet, conditioning_embedding_out_channels=(4, 8, 8, 16)
            ).eval()
            for layer in self.control.controlnet_down_blocks:
                nn.init.normal_(layer.weight, std=0.1)
            nn.init.normal_(self.control.controlnet_cond_embedding.conv_out.weight, std=0.1)
        config = ControlNetConfig(unet=self.model.unet.config, channels=(4, 8, 8, 16))
        return filled(ControlNet(config), self.control, diffusers_controlnet(config))

    def told(self, prompt: str) -> dict[str, Tensor]:
        """Embeddings for their pipelines, by our encoder, which is tested elsewhere."""
        encoded = self.model.encoder.encode(parse(prompt).at(0, 1)[0])
        return {"prompt_embeds": encoded.context, "pooled_prompt_embeds": encoded.pooled}


@pytest.fixture(scope="module")
def sd1() -> Pair:
    return Pair("sd1")


@pytest.fixture(scope="module")
def xl() -> Pair:
    return Pair("xl")


ORDER = Order(
    prompt="a red fox",
    negative_prompt="",
    steps=STEPS,
    guidance=5.0,
    sampler="ddim",
    size=SIZE,
    style=None,
    grid="leading",
)
SHAPE = (4, SIZE[0] // 8, SIZE[1] // 8)


@torch.inference_mode()
def ours(pair: Pair, order: Order, seed: int = 3) -> Tensor:
    noise, x = NoiseSource([seed]), None
    for stage in pair.model.plan(order).stages:
        for step in stage.run(x, noise):
            assert stage.look(step.x0).shape[1] == 3
            last = step.x
        x = last
    assert x is not None
    return x


def embeds(pair: Pair, order: Order) -> dict[str, Any]:
    cond, uncond = pair.told(order.prompt), pair.told(order.negative_prompt)
    told = {"prompt_embeds": cond["prompt_embeds"], "negative_prompt_embeds": uncond["prompt_embeds"]}
    if pair.model.zeros and not order.negative_prompt:
        told["negative_prompt_embeds"] = torch.zeros_like(told["negative_prompt_embeds"])
    if cond["pooled_prompt_embeds"] is not None:
        told["pooled_prompt_embeds"] = cond["pooled_prompt_embeds"]
        told["negative_pooled_prompt_embeds"] = uncond["pooled_prompt_embeds"]
        if pair.model.zeros and not order.negative_prompt:
            told["negative_pooled_prompt_embeds"] = torch.zeros_like(cond["pooled_prompt_embeds"])
    return told


def theirs(kind: Any, pair: Pair, order: Order, *, table: Any, seed: int = 3, **more: Any) -> Tensor:
    parts: dict[str, Any] = {
        "vae": pair.vae,
        "unet": pair.unet,
        "scheduler": table,
        "text_encoder": None,
        "tokenizer": None,
    }
    if kind is StableDiffusionXLPipeline:
        parts |= {"text_encoder_2": None, "tokenizer_2": None}
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if kind is StableDiffusionControlNetPipeline:
        parts["controlnet"] = pair.control
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    sizes = {} if kind in (StableDiffusionImg2ImgPipeline,) else {"height": SIZE[0], "width": SIZE[1]}
    start = {} if kind is StableDiffusionImg2ImgPipeline else {"latents": NoiseSource([seed]).initial(SHAPE)}
    out = pipe(
        **embeds(pair, order),
        num_inference_steps=order.steps,
        guidance_scale=order.guidance,
        output_type="pt",
        **sizes,
        **start,
        **more,
    )
    return out.images * 2 - 1


def decibel(one: Tensor, other: Tensor) -> float:
    """PSNR of pixels in [-1, 1]."""
    error = (one.clamp(-1, 1) - other.clamp(-1, 1)).square().mean()
    return float(10 * torch.log10(4 / error))


TABLES = {
    ("ddim", "leading"): DDIMScheduler(**LEADING, clip_sample=False, set_alpha_to_one=True),
    ("euler", "leading"): EulerDiscreteScheduler(**LEADING),
    ("dpmpp_2m", "trailing"): DPMSolverMultistepScheduler(
        **BETAS, steps_offset=1, timestep_spacing="trailing"
    ),
    ("dpmpp_2m", "karras"): DPMSolverMultistepScheduler(**BETAS, steps_offset=1, use_karras_sigmas=True),
    ("unipc", "trailing"): UniPCMultistepScheduler(**BETAS, steps_offset=1, timestep_spacing="trailing"),
}


@pytest.mark.parametrize(("sampler", "grid"), TABLES)
def test_words_to_pictures(sd1: Pair, sampler: str, grid: str) -> None:
    order = replace(ORDER, sampler=sampler, grid=grid)
    expected = theirs(StableDiffusionPipeline, sd1, order, table=TABLES[sampler, grid])
    assert decibel(ours(sd1, order), expected) > 50


def test_a_negative_prompt_pushes_away_as_theirs_does(sd1: Pair) -> None:
    order = replace(ORDER, negative_prompt="blurry, a blue dog")
    expected = theirs(StableDiffusionPipeline, sd1, order, table=TABLES["ddim", "leading"])
    assert decibel(ours(sd1, order), expected) > 50
    assert decibel(ours(sd1, ORDER), expected) < 50


def test_without_guidance_the_prompt_is_asked_alone(sd1: Pair) -> None:
    order = replace(ORDER, guidance=1.0)
    expected = theirs(StableDiffusionPipeline, sd1, order, table=TABLES["ddim", "leading"])
    assert decibel(ours(sd1, order), expected) > 50


def test_v_prediction() -> None:
    pair = Pair("sd1", prediction="v")
    table = DDIMScheduler(**LEADING, clip_sample=False, prediction_type="v_prediction")
    expected = theirs(StableDiffusionPipeline, pair, ORDER, table=table)
    assert decibel(ours(pair, ORDER), expected) > 50


@pytest.mark.parametrize("negative", ["", "a blue dog"])
def test_xl(xl: Pair, negative: str) -> None:
    order = replace(ORDER, negative_prompt=negative)
    expected = theirs(StableDiffusionXLPipeline, xl, order, table=TABLES["ddim", "leading"])
    assert decibel(ours(xl, order), expected) > 50


def test_guidance_is_rescaled(sd1: Pair) -> None:
    order = replace(ORDER, guidance=9.0, rescale=0.7)
    assert decibel(ours(sd1, order), ours(sd1, replace(order, rescale=0.0))) < 50


def test_what_needs_guidance_is_reported_without_it(sd1: Pair) -> None:
    order = replace(ORDER, negative_prompt="a dog", rescale=0.5)
    assert sd1.model.plan(order).warnings == ()
    assert sd1.model.plan(replace(order, guidance=1.0)).warnings == (
        "the negative prompt was left out: it needs guidance above 1",
        "rescale was left out: it needs guidance above 1",
    )
    several = replace(ORDER, negative_prompt="a dog", guidance=1.0, prompt="a red fox AND a cat:0.5")
    assert sd1.model.plan(several).warnings == ()  # they are compared with it
    assert decibel(ours(sd1, several), ours(sd1, replace(several, negative_prompt=""))) < 60


def pixels(seed: int = 1) -> Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("steps", "strength", "drawn"), [(6, 0.5, 3), (10, 0.55, 5)])
def test_from_a_picture(
    sd1: Pair, steps: int, strength: float, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_noise(monkeypatch)
    order = replace(ORDER, steps=steps, image=pixels(), strength=strength)
    expected = theirs(
        StableDiffusionImg2ImgPipeline, sd1, order, table=TABLES["ddim", "leading"],
        image=(pixels() + 1) / 2, strength=strength,
    )  # fmt: skip
    assert decibel(ours(sd1, order), expected) > 50
    assert sd1.model.plan(order).stages[0].steps == drawn


def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pipelines draw noise by themselves: here they draw ours, and take the middle of posteriors."""
    draw = lambda shape, **_: NoiseSource([3]).initial(tuple(shape[1:]))  # noqa: E731
    for kind in ("img2img", "inpaint"):
        room = f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_{kind}"
        monkeypatch.setattr(f"{room}.randn_tensor", draw)
        monkeypatch.setattr(f"{room}.retrieve_latents", lambda out, **_: out.latent_dist.mode())


def mask() -> Tensor:
    covered = torch.zeros(1, 1, *SIZE)
    covered[:, :, 16:48, 8:32] = 1
    return covered


@pytest.mark.parametrize("inputs", [4, 9])
def test_inpainting(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    same_noise(monkeypatch)
    pair = Pair("sd1", inputs=inputs)
    order = replace(ORDER, image=pixels(), mask=mask(), strength=1.0)
    expected = theirs(
        StableDiffusionInpaintPipeline, pair, order, table=TABLES["ddim", "leading"],
        image=(pixels() + 1) / 2, mask_image=mask(), strength=1.0,
    )  # fmt: skip
    drawn = ours(pair, order)
    inside = mask()[0, 0] > 0
    assert decibel(drawn[:, :, inside], expected[:, :, inside]) > 50
    assert torch.equal(drawn[:, :, ~inside], pixels()[:, :, ~inside])


def test_a_control_network_is_heard(sd1: Pair) -> None:
    sd1._control("any")
    control = ControlOrder(pixels=pixels(5), model="any", weight=0.8, start=0.0, end=0.5)
    order = replace(ORDER, controls=(control,))
    expected = theirs(
        StableDiffusionControlNetPipeline, sd1, order, table=TABLES["ddim", "leading"],
        image=(pixels(5) + 1) / 2, controlnet_conditioning_scale=0.8, control_guidance_end=0.5,
    )  # fmt: skip
    drawn = ours(sd1, order)
    assert decibel(drawn, expected) > 50
    assert decibel(ours(sd1, ORDER), expected) < 50


def test_words_that_change_on_the_way(sd1: Pair) -> None:
    changed = ours(sd1, replace(ORDER, prompt="a [red:blue:0.5] fox"))
    assert decibel(changed, ours(sd1, replace(ORDER, prompt="a red fox"))) < 60
    assert decibel(changed, ours(sd1, replace(ORDER, prompt="a blue fox"))) < 60
    late = ours(sd1, replace(ORDER, prompt="a [red:blue:6] fox"))
    assert torch.equal(late, ours(sd1, replace(ORDER, prompt="a red fox")))


def test_several_prompts_are_composed(sd1: Pair) -> None:
    one = ours(sd1, replace(ORDER, prompt="a red fox"))
    same = ours(sd1, replace(ORDER, prompt="a red fox:0.5 AND a red fox:0.5"))
    assert decibel(one, same) > 80
    long = " ".join(["fox"] * 100)  # two chunks, while the other prompts have one
    assert decibel(one, ours(sd1, replace(ORDER, prompt=f"a red fox:1.0 AND {long}:0.0"))) > 80


def test_a_second_pass_draws_larger(sd1: Pair) -> None:
    plan = sd1.model.plan(replace(ORDER, enlarge=1.5))
    assert [stage.name for stage in plan.stages] == [
        "diffusion", "decoder", "resize", "encoder", "second diffusion", "decoder",
    ]  # fmt: skip
    assert ours(sd1, replace(ORDER, enlarge=1.5)).shape == (1, 3, 96, 72)


def test_a_refiner_goes_on_where_the_base_stopped(sd1: Pair) -> None:
    whole = ours(sd1, ORDER)
    handed = ours(sd1, replace(ORDER, refiner="itself", refine_from=0.5))
    assert decibel(whole, handed) > 80


def test_tiles_fit_together(sd1: Pair) -> None:
    drawn = ours(sd1, replace(ORDER, tiling=True))
    across = torch.cat([drawn[..., -1:], drawn[..., :1]], -1).diff(dim=-1).abs().mean()
    inside = drawn.diff(dim=-1).abs().mean()
    assert across < 2 * inside
    assert torch.equal(ours(sd1, ORDER), ours(sd1, ORDER))
    assert decibel(drawn, ours(sd1, ORDER)) < 60


def test_other_sizes_are_rounded_and_said(sd1: Pair) -> None:
    plan = sd1.model.plan(replace(ORDER, size=(50, 61)))
    assert plan.notices == ("61x50 was rounded to 64x48: sides are multiples of 8",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": "flat"}, "no named styles"),
        ({"guidance": 0.5}, "guidance of this model is 1 or more"),
        ({"image": pixels(), "strength": 0.05}, "leaves none to draw"),
        ({"clip_skip": 9}, "clip-skip 9"),
        ({"skip_layers": 2.5}, "knows no skip_layers"),
        ({"vary_noise": 0.3}, "knows no vary_noise"),
        ({"blend_at": 0.3}, "knows no blend_at"),
        ({"rerank": 4}, "knows no rerank"),
        ({"grid": "carras"}, 'did you mean "karras"'),
    ],
)
def test_what_it_cannot_do(sd1: Pair, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        sd1.model.plan(replace(ORDER, **change)).stages[0].run(None, NoiseSource([0])).__next__()


@pytest.mark.parametrize("size", [(64, 48), (61, 45)])
def test_what_a_mask_keeps_is_kept_at_any_size(sd1: Pair, size: tuple[int, int]) -> None:
    original = pixels()[:, :, : size[0], : size[1]]
    covered = mask()[:, :, : size[0], : size[1]]
    plan = sd1.model.plan(replace(ORDER, size=size, image=original, mask=covered, strength=0.5))
    assert plan.notices == ()
    drawn = ours(sd1, replace(ORDER, size=size, image=original, mask=covered, strength=0.5))
    assert drawn.shape == original.shape
    outside = covered[0, 0] == 0
    assert torch.equal(drawn[:, :, outside], original[:, :, outside])
    assert not torch.equal(drawn, original)


def test_requests_may_take_turns(sd1: Pair) -> None:
    alone = ours(sd1, ORDER)
    with torch.inference_mode():
        tiled = sd1.model.plan(replace(ORDER, tiling=True))
        plain = sd1.model.plan(ORDER)
        one, other = (plan.stages[0].run(None, NoiseSource([3])) for plan in (tiled, plain))
        for _ in range(STEPS):
            next(one)
            step = next(other)
        *_, last = plain.stages[1].run(step.x, NoiseSource([3]))
    assert torch.equal(last.x, alone)


def test_a_refiner_takes_what_little_noise_is_left(sd1: Pair) -> None:
    for name in ("leading", "karras", "trailing"):
        plan = sd1.model.plan(replace(ORDER, steps=20, grid=name, refiner="itself", refine_from=0.8))
        base, refiner = plan.stages[:2]
        assert isinstance(base, DiffusionStage)
        assert isinstance(refiner, DiffusionStage)
        assert base.grid.t[-2] >= 200 > refiner.grid.t[0]
        assert base.steps + refiner.steps == 20
    with pytest.raises(RequestError, match="leaves one of the models none of 2 steps"):
        sd1.model.plan(replace(ORDER, steps=2, refiner="itself", refine_from=0.01))


def test_a_mask_and_a_second_pass_are_at_odds(sd1: Pair) -> None:
    with pytest.raises(RequestError, match="would redraw what a mask keeps"):
        sd1.model.plan(replace(ORDER, image=pixels(), mask=mask(), enlarge=2.0))


def test_loras_in_the_negative_prompt_are_reported(sd1: Pair) -> None:
    plan = sd1.model.plan(replace(ORDER, negative_prompt="blurry <lora:ink:1>"))
    assert plan.warnings == ("LoRAs in the negative prompt were left out: name them in the prompt",)
