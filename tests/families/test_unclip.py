"""Whole pictures of the unCLIP family agree with diffusers', from the same noise and from one folder."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    PriorTransformer,
    StableUnCLIPImg2ImgPipeline,
    StableUnCLIPPipeline,
    UnCLIPImageVariationPipeline,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig as TheirTextConfig
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection
from transformers import CLIPVisionConfig as TheirVisionConfig

from limner.cli import main
from limner.errors import RequestError
from limner.families import FAMILIES, HEARS, unclip_files
from limner.families.base import Order, Wishes
from limner.families.sd import StableDiffusion
from limner.families.sd_unclip import StableUnCLIP
from limner.families.stages import Tag
from limner.families.unclip import Karlo
from limner.models import clip, kl_vae, pixel_unet, unclip_prior, unet
from limner.models.clip import clip_pixels
from limner.pipeline.picture import Picture
from limner.pipeline.replay import read_record
from limner.text.clip_tokenizer import BEGIN, END, CLIPTokenizer
from limner.util.images import images_from_pixels
from limner.util.rng import NoiseSource
from limner.weights import detect, folders, parts_unclip

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SEED, STEPS, E = 3, 4, 16
TEXT = replace(clip.TEXT_H_SD2, width=24, depth=2, heads=2, inner=48)
PRIOR_TEXT = replace(clip.TEXT_L, width=E, depth=2, heads=2, inner=32, projection=E)
VISION = replace(clip.VISION_L, width=24, depth=2, heads=2, inner=48, projection=E, size=28, patch=7)
VAE = replace(kl_vae.SD, channels=(8, 8, 16, 16), groups=8, layers=1)
UNET = replace(
    unet.SD21_UNCLIP, channels=(16, 32), depths=(1, 0), layers=1, context=24, head_channels=8, groups=8,
    pooled=2 * E,
)  # fmt: skip
PRIOR = unclip_prior.PriorConfig(embedding=E, context=E, width=32, depth=2, heads=4)
STABLE = replace(
    parts_unclip.SD21_UNCLIP_SMALL,
    parts=(
        *parts_unclip.stable_parts(UNET, VAE, TEXT, E),
        parts_unclip.picture_part(VISION),
        *parts_unclip.prior_parts(PRIOR, PRIOR_TEXT, "prior_text_encoder"),
    ),
    size=64,
)
ORDER = Order(
    prompt="a red fox", negative_prompt="", steps=STEPS, guidance=5.0, sampler="ddim", size=(64, 48),
    style=None, grid="leading",
)  # fmt: skip
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Tokenizer:
    """Theirs, made of ours."""

    model_max_length = 77

    def __init__(self, pad: int) -> None:
        self.pad = pad
        self.added_tokens_encoder: dict[str, int] = {}

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def __call__(self, prompt: str | list[str], **_: Any) -> SimpleNamespace:
        rows = [
            [BEGIN, *CLIPTokenizer().encode(text), END]
            for text in ([prompt] if isinstance(prompt, str) else prompt)
        ]
        ids = torch.tensor([row + [self.pad] * (77 - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (77 - len(row)) for row in rows])
        return SimpleNamespace(input_ids=ids, attention_mask=mask)


def text(config: clip.CLIPTextConfig, kind: type) -> Any:
    return kind(
        TheirTextConfig(
            hidden_size=config.width, num_hidden_layers=config.depth, num_attention_heads=config.heads,
            intermediate_size=config.inner, hidden_act=config.activation,
            projection_dim=config.projection or E, bos_token_id=BEGIN, eos_token_id=END, pad_token_id=1,
        )
    ).eval()  # fmt: skip


def vision() -> Any:
    return CLIPVisionModelWithProjection(
        TheirVisionConfig(
            hidden_size=VISION.width, num_hidden_layers=VISION.depth, num_attention_heads=VISION.heads,
            intermediate_size=VISION.inner, hidden_act=VISION.activation, projection_dim=E,
            image_size=VISION.size, patch_size=VISION.patch,
        )
    ).eval()  # fmt: skip


def prior() -> Any:
    return PriorTransformer(
        num_attention_heads=4, attention_head_dim=8, num_layers=2, embedding_dim=E, num_embeddings=77
    ).eval()


def stirred(network: nn.Module, share: float = 0.2) -> Any:
    """Small random networks hardly listen, and new ones have parameters that are 0."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * share)
    return network.requires_grad_(False)


def save(at: Path, pipeline: str, **parts: Any) -> Path:
    """A diffusers folder, by their own hand."""
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.30.0"}
    for name, part in parts.items():
        if not isinstance(part, Tokenizer):
            part.save_pretrained(at / name)
            index[name] = [type(part).__module__.split(".")[0], type(part).__name__]
    (at / "model_index.json").write_text(json.dumps(index))
    return at


def pixels(seed: int) -> Tensor:
    return torch.rand(1, 3, 40, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def decibel(one: Tensor, other: Tensor) -> float:
    """PSNR of pixels in [-1, 1]."""
    error = (one.clamp(-1, 1) - other.clamp(-1, 1)).square().mean()
    return float(10 * torch.log10(4 / error))


@torch.inference_mode()
def ours(
    model: Karlo | StableUnCLIP | StableDiffusion, order: Order, seeds: tuple[int, ...] = (SEED,)
) -> Tensor:
    noise, x = NoiseSource(seeds), None
    for stage in model.plan(order).stages:
        count = 0
        for step in stage.run(x, noise):
            count += 1
            assert stage.look(step.x0).shape[:2] == (len(seeds), 3)
        assert count == stage.steps
        x = step.x
    assert x is not None
    return x


def draws(monkeypatch: pytest.MonkeyPatch, room: str, noises: Iterator[Tensor]) -> None:
    """Their noise, one draw after the other, is ours."""

    def draw(shape: Any, **_: Any) -> Tensor:
        noise = next(noises)
        assert noise.numel() == torch.Size(shape).numel()
        return noise.reshape(shape)

    monkeypatch.setattr(f"diffusers.{room}.randn_tensor", draw)


# -- Stable Diffusion 2.1 unCLIP


class Stable:
    """Their parts, and our model out of the folder that they were saved in."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.parts: dict[str, Any] = {
            "tokenizer": Tokenizer(0),
            "text_encoder": text(TEXT, CLIPTextModel),
            "image_normalizer": stirred(StableUnCLIPImageNormalizer(E)),
            "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            "unet": UNet2DConditionModel(
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(16, 32),
                norm_num_groups=8, layers_per_block=1, sample_size=8, cross_attention_dim=24,
                attention_head_dim=(2, 4), use_linear_projection=True, class_embed_type="projection",
                projection_class_embeddings_input_dim=2 * E,
            ).eval(),
            "scheduler": DDIMScheduler(
                **BETAS, prediction_type="v_prediction", clip_sample=False, steps_offset=1,
                timestep_spacing="leading",
            ),
            "vae": AutoencoderKL(
                block_out_channels=VAE.channels, norm_num_groups=8, layers_per_block=1,
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                latent_channels=4, scaling_factor=VAE.scale_factor,
            ).eval(),
        }  # fmt: skip
        with torch.no_grad():
            for name, parameter in self.parts["unet"].named_parameters():
                if "attn2" in name or "class_embedding" in name:
                    parameter.mul_(3)
        self.eye: dict[str, Any] = {"image_encoder": vision(), "feature_extractor": None}
        self.prior: dict[str, Any] = {
            "prior_tokenizer": Tokenizer(END),
            "prior_text_encoder": text(PRIOR_TEXT, CLIPTextModelWithProjection),
            "prior": stirred(prior(), 0.05),
            "prior_scheduler": DDPMScheduler(
                beta_schedule="squaredcos_cap_v2", clip_sample_range=5.0, prediction_type="sample",
                variance_type="fixed_small_log", timestep_spacing="leading",
            ),
        }  # fmt: skip
        both = self.parts | {"image_encoder": self.eye["image_encoder"]} | self.prior
        self.folder = folder = save(folder, "StableUnCLIPPipeline", **both)
        model = unclip_files.load(folder, torch.device("cpu"), models=(STABLE,))
        assert isinstance(model, StableUnCLIP)
        self.model = model


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Stable:
    return Stable(tmp_path_factory.mktemp("stable"))


def run(pipeline: Any, **options: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    images: Tensor = pipeline(output_type="pt", **options).images
    return images * 2 - 1


SIZED = {"height": 64, "width": 48, "num_inference_steps": STEPS, "guidance_scale": 5.0}


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("prompt", ["", "a red fox"])
def test_variations_of_a_picture(
    stable: Stable, prompt: str, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = NoiseSource([SEED])
    worn = source.step(0, (E,), Tag.EMBEDDING_WORN)
    draws(monkeypatch, "pipelines.stable_diffusion.pipeline_stable_unclip_img2img", iter([worn]))
    expected = run(
        StableUnCLIPImg2ImgPipeline(**stable.parts, **stable.eye), **SIZED, prompt=prompt,
        image=clip_pixels(pixels(1), VISION.size), latents=source.initial((4, 8, 6)),
        noise_level=round(999 * noise),
    )  # fmt: skip
    order = replace(ORDER, prompt=prompt, vary=pixels(1), vary_noise=noise)
    assert decibel(ours(stable.model, order), expected) > 50
    assert decibel(ours(stable.model, replace(order, vary=pixels(2))), expected) < 50


def test_words_through_the_prior(stable: Stable, monkeypatch: pytest.MonkeyPatch) -> None:
    source = NoiseSource([SEED])
    monkeypatch.setattr("limner.families.embedder.PRIOR_STEPS", 5)
    steps = iter([source.step(i, (E,), Tag.PRIOR) for i in range(4)])
    draws(monkeypatch, "schedulers.scheduling_ddpm", steps)
    worn = source.step(0, (E,), Tag.EMBEDDING_WORN)
    draws(monkeypatch, "pipelines.stable_diffusion.pipeline_stable_unclip", iter([worn]))
    expected = run(
        StableUnCLIPPipeline(**stable.parts, **stable.prior), **SIZED, prompt="a red fox",
        negative_prompt="a dog", prior_num_inference_steps=5, prior_latents=source.initial((E,), Tag.PRIOR),
        latents=source.initial((4, 8, 6)),
    )  # fmt: skip
    order = replace(ORDER, negative_prompt="a dog")
    assert decibel(ours(stable.model, order), expected) > 50
    assert decibel(ours(stable.model, replace(order, prompt="a blue owl")), expected) < 50


# -- Karlo


SIDES = (16, 64)
TIMES = {"channels": (16, 32), "layers": (1, 1), "groups": 8, "head_channels": 8, "time": 64}
DECODER = replace(pixel_unet.KARLO_DECODER, **TIMES, looks=(False, True), context=24)
SUPER_RES = replace(pixel_unet.KARLO_SUPER_RES, **TIMES, looks=(False, False))
KARLO = replace(
    parts_unclip.KARLO,
    parts=(
        *parts_unclip.prior_parts(PRIOR, PRIOR_TEXT),
        *parts_unclip.decoder_parts(
            unclip_prior.ProjectionConfig(embedding=E, context=24, time=64), DECODER, SUPER_RES
        ),
        parts_unclip.picture_part(VISION),
    ),
    size=SIDES[1],
)
VARIATIONS = replace(parts_unclip.KARLO_VARIATIONS, parts=KARLO.parts[1:], size=SIDES[1])
WORDS = Order(
    prompt="a red fox", negative_prompt="", steps=STEPS, guidance=5.0, sampler="ddpm", size=(64, 64),
    style=None,
)  # fmt: skip


def levels(looks: bool) -> dict[str, Any]:
    down, up = ("ResnetDownsampleBlock2D",) * 2, ("ResnetUpsampleBlock2D",) * 2
    return {
        "down_block_types": (down[0], "SimpleCrossAttnDownBlock2D" if looks else down[1]),
        "up_block_types": ("SimpleCrossAttnUpBlock2D" if looks else up[0], up[1]),
        "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
    }  # fmt: skip


def super_res() -> Any:
    network = UNet2DModel(
        sample_size=SIDES[1], in_channels=6, out_channels=3, add_attention=False, **levels(False)
    )
    return stirred(network.eval(), 0.05)


class Small:
    """Their Karlo, and our models out of the folders that it was saved in."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        decoder = UNet2DConditionModel(
            sample_size=SIDES[0], in_channels=3, out_channels=6, cross_attention_dim=24, attention_head_dim=8,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", class_embed_type="identity",
            resnet_time_scale_shift="scale_shift", **levels(True),
        )  # fmt: skip
        projections = UnCLIPTextProjModel(clip_embeddings_dim=E, time_embed_dim=64, cross_attention_dim=24)
        self.parts: dict[str, Any] = {
            "tokenizer": Tokenizer(END),
            "text_encoder": text(PRIOR_TEXT, CLIPTextModelWithProjection),
            "text_proj": stirred(projections, 0.3),
            "decoder": stirred(decoder.eval(), 0.05),
            "super_res_first": super_res(),
            "super_res_last": super_res(),
            "decoder_scheduler": UnCLIPScheduler(variance_type="learned_range"),
            "super_res_scheduler": UnCLIPScheduler(variance_type="fixed_small_log"),
        }
        self.prior: dict[str, Any] = {
            "prior": stirred(prior(), 0.05),
            "prior_scheduler": UnCLIPScheduler(
                variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
            ),
        }
        self.eye: dict[str, Any] = {"image_encoder": vision()}
        whole = self.parts | self.prior
        self.folders = {
            "words": save(folder / "words", "UnCLIPPipeline", **whole),
            "pictures": save(folder / "pictures", "UnCLIPImageVariationPipeline", **self.parts, **self.eye),
            "both": save(folder / "both", "UnCLIPPipeline", **whole, **self.eye),
        }

    def model(self, which: str, offload: bool = False) -> Karlo:
        model = unclip_files.load(
            self.folders[which], torch.device("cpu"), Wishes(offload=offload), (KARLO, VARIATIONS)
        )
        assert isinstance(model, Karlo)
        return model


@pytest.fixture(scope="module")
def karlo(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("karlo"))


def karlo_noise(prior_steps: int) -> Iterator[Tensor]:
    """As Karlo's pipelines draw it: all steps but the last of prior, decoder and super-resolution."""
    source = NoiseSource([SEED])
    for i in range(prior_steps - 1):
        yield source.step(i, (E,), Tag.PRIOR)
    for tag, side, steps in ((Tag.FIRST, SIDES[0], STEPS), (Tag.SUPER_RES, SIDES[1], 7)):
        for i in range(steps - 1):
            yield source.step(i, (3, side, side), tag)


def drawn_by_theirs(pipeline: Any, **options: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    source = NoiseSource([SEED])
    images = pipeline(
        **options, decoder_num_inference_steps=STEPS, decoder_guidance_scale=5.0, output_type="np",
        decoder_latents=source.initial((3, SIDES[0], SIDES[0])),
        super_res_latents=source.initial((3, SIDES[1], SIDES[1]), Tag.SUPER_RES),
    ).images  # fmt: skip
    return rearrange(torch.from_numpy(images), "b h w c -> b c h w") * 2 - 1


def test_karlo_draws_words(karlo: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.families.embedder.PRIOR_STEPS", 5)
    draws(monkeypatch, "schedulers.scheduling_unclip", karlo_noise(5))
    expected = drawn_by_theirs(
        UnCLIPPipeline(**karlo.parts, **karlo.prior), prompt="a red fox", prior_num_inference_steps=5,
        prior_latents=NoiseSource([SEED]).initial((E,), Tag.PRIOR),
    )  # fmt: skip
    model = karlo.model("words")
    assert decibel(ours(model, WORDS), expected) > 50
    assert decibel(ours(model, replace(WORDS, prompt="a blue owl")), expected) < 50


def test_karlo_varies_a_picture(karlo: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    draws(monkeypatch, "schedulers.scheduling_unclip", karlo_noise(1))
    expected = drawn_by_theirs(
        UnCLIPImageVariationPipeline(**karlo.parts, **karlo.eye, feature_extractor=None),
        image=clip_pixels(pixels(1), VISION.size),
    )
    model = karlo.model("pictures")
    order = replace(WORDS, prompt="", vary=pixels(1))
    assert decibel(ours(model, order), expected) > 50
    assert decibel(ours(model, replace(order, vary=pixels(2))), expected) < 50
    assert torch.equal(ours(karlo.model("both", offload=True), order), ours(model, order))


# -- between two


BOTH = replace(WORDS, steps=2)


@pytest.mark.parametrize("one", ["a red fox", 1])
@pytest.mark.parametrize("other", ["a blue owl", 2])
def test_blends_begin_and_end_where_they_should(
    karlo: Small, one: str | int, other: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limner.families.embedder.PRIOR_STEPS", 2)
    monkeypatch.setattr("limner.families.unclip.SUPER_RES_STEPS", 2)
    model = karlo.model("both")

    def alone(what: str | int) -> Order:
        if isinstance(what, str):
            return replace(BOTH, prompt=what)
        return replace(BOTH, prompt="", vary=pixels(what))

    first = alone(one)
    second = other if isinstance(other, str) else pixels(other)
    places = [0.0, 0.5, 1.0]
    drawn = [ours(model, replace(first, blend=second, blend_at=at)) for at in places]
    assert torch.equal(drawn[0], ours(model, first))
    assert torch.equal(drawn[2], ours(model, alone(other)))
    assert not torch.equal(drawn[1], drawn[0])
    assert not torch.equal(drawn[1], drawn[2])


def test_halfway_between_pictures_is_halfway_on_the_sphere(karlo: Small) -> None:
    embedder = karlo.model("pictures").embedder
    one, other = embedder.see(pixels(1)), embedder.see(pixels(2))
    wanted = embedder.wanted(replace(WORDS, vary=pixels(1), blend=pixels(2)))
    assert wanted.given is not None
    middle = wanted.embedding(wanted.given)
    assert wanted.words is None
    assert torch.isclose(torch.cosine_similarity(middle, one + other), torch.ones(1))
    assert (one + other).norm() / 2 < middle.norm() < max(one.norm(), other.norm())


def test_a_picture_does_not_depend_on_those_beside_it(
    karlo: Small, stable: Stable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limner.families.embedder.PRIOR_STEPS", 2)
    monkeypatch.setattr("limner.families.unclip.SUPER_RES_STEPS", 2)
    for model, order in ((karlo.model("words"), BOTH), (stable.model, replace(ORDER, vary_noise=0.3))):
        together = ours(model, order, seeds=(4, SEED))
        assert torch.equal(together[1:], ours(model, order))
        assert not torch.equal(together[:1], together[1:])


def test_texts_of_stable_diffusion_are_blended(stable: Stable) -> None:
    order = replace(ORDER, prompt="", vary=pixels(1))
    drawn = [
        ours(stable.model, replace(order, prompt=text, blend=blend, blend_at=at))
        for text, blend, at in (("a fox", None, 0.5), ("a fox", pixels(1), 0.9), ("", pixels(1), 0.9))
    ]
    assert decibel(drawn[1], drawn[2]) > decibel(drawn[0], drawn[2])
    inner = stable.model.sd
    picture = torch.ones(1, 2 * E)
    plain = [
        ours(replace(inner, picture=picture), replace(ORDER, prompt=text, blend=blend, blend_at=at))
        for text, blend, at in (("a fox", None, 0.5), ("a fox", "an owl", 0.0), ("a fox", "an owl", 0.5))
    ]
    assert torch.equal(plain[0], plain[1])
    assert not torch.equal(plain[0], plain[2])


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("pictures", {}, "no prior"),
        ("pictures", {"vary": pixels(1), "blend": "an owl"}, "no prior"),
        ("words", {"vary": pixels(1)}, "no picture tower"),
        ("words", {"vary_noise": 0.5}, "Karlo knows no vary_noise"),
        ("words", {"image": pixels(1), "strength": 0.5}, "Karlo knows no image, strength"),
        ("words", {"style": "flat"}, "no named styles"),
    ],
)
def test_what_cannot_be_drawn(karlo: Small, which: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        karlo.model(which).plan(replace(WORDS, **change))


def test_what_is_not_heard_is_said(karlo: Small) -> None:
    model = karlo.model("both")
    long = "and a fox " * 40
    order = replace(WORDS, prompt=f"a [red:blue:0.5] fox <lora:mine:1> {long}", size=(64, 32))
    plan = model.plan(order)
    assert plan.notices == ("this model draws 64x64; resized to 32x64",)
    changes, left_out, network = plan.warnings
    assert network.startswith("<lora:mine:1> in the prompt was left out")
    assert changes.startswith("the prompt changes on the way; this model hears it as at the first step")
    assert left_out == "this model does not hear the last 48 tokens of the prompt; it may have 75"
    other = replace(WORDS, negative_prompt=f"<lora:other:1> {long}")
    assert ["negative prompt" in said for said in model.plan(other).warnings] == [True, True]
    assert len(model.plan(replace(other, guidance=1.0)).warnings) == 2  # the prior is guided always
    shown = model.plan(replace(other, guidance=1.0, prompt="", vary=pixels(1))).warnings
    assert [said for said in shown if "needs guidance above 1" in said] == [shown[1]]
    assert len(shown) == 2
    assert model.plan(WORDS).warnings == ()


def test_the_first_step_is_what_is_heard(karlo: Small) -> None:
    model = karlo.model("words")
    drawn = [model.embedder.words("prompt", text, WORDS) for text in ("a [red:blue:0.5] fox", "a red fox")]
    assert torch.equal(drawn[0].context, drawn[1].context)


def test_what_only_a_prior_does_not_hear(stable: Stable) -> None:
    order = replace(ORDER, prompt="a [red:blue:0.5] fox " + "and a fox " * 40)
    changes, left_out = stable.model.plan(order).warnings
    assert "the prior hears it as at the first step" in changes
    assert left_out.startswith("the prior does not hear the last")
    assert stable.model.plan(replace(order, vary=pixels(1))).warnings == ()


def test_texts_are_read_once_for_all_pictures(stable: Stable, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Order] = []
    plan = StableDiffusion.plan

    def counted(model: StableDiffusion, order: Order) -> Any:
        planned.append(order)
        return plan(model, order)

    monkeypatch.setattr(StableDiffusion, "plan", counted)
    order = replace(ORDER, vary=pixels(1), vary_noise=0.3)
    together = ours(stable.model, order, seeds=(SEED, 4, 5))
    assert len(planned) == 1
    assert torch.equal(together[1:2], ours(stable.model, order, seeds=(4,)))


def test_the_wishes_that_are_read_are_those_that_are_declared(
    karlo: Small, stable: Stable, wishes_read: Any
) -> None:
    cpu, folders = torch.device("cpu"), karlo.folders
    read = wishes_read(lambda wishes: unclip_files.load(folders["both"], cpu, wishes, (KARLO,)))
    assert read == HEARS["unclip"]
    read = wishes_read(lambda wishes: unclip_files.load(stable.folder, cpu, wishes, (STABLE,)))
    assert read == HEARS["sd_unclip"]


def test_plain_stable_diffusion_says_what_it_takes(stable: Stable) -> None:
    with pytest.raises(RequestError, match="takes an unCLIP model"):
        stable.model.sd.plan(replace(ORDER, vary=pixels(1)))


def typed(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int | str | None:
    """Run the command line; the exit code."""
    monkeypatch.setattr(sys, "argv", ["limner", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_the_commands_blend_and_vary_and_replay(
    karlo: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("limner.families.embedder.PRIOR_STEPS", 2)
    monkeypatch.setattr("limner.families.unclip.SUPER_RES_STEPS", 2)
    models = (KARLO, VARIATIONS)
    monkeypatch.setattr("limner.weights.detect.identify", partial(detect.identify, models=models))
    load = partial(unclip_files.load, models=models)
    monkeypatch.setitem(FAMILIES, "unclip", replace(FAMILIES["unclip"], load=load))
    (picture,) = images_from_pixels(pixels(1))
    picture.save(tmp_path / "one.png")
    folder = karlo.folders["both"]
    base = (
        "--model",
        folder,
        "--steps",
        "2",
        "--seed",
        "1",
        "--quiet",
        "--dtype",
        "float32",
        "--out",
        tmp_path,
    )
    assert typed(monkeypatch, "blend", tmp_path / "one.png", "an owl", *base, "--frames", "3") == 0
    frames = [Path(line) for line in capsys.readouterr().out.splitlines()]
    requests = [read_record(path).request for path in frames]
    assert [request.blend_at for request in requests] == [0.0, 0.5, 1.0]
    assert {request.seed for request in requests} == {1}
    assert requests[1].vary == Picture.open(tmp_path / "one.png")
    assert typed(monkeypatch, "replay", frames[1], "--dtype", "float32") == 0
    assert "same pixels" in capsys.readouterr().out
    assert typed(monkeypatch, "imagine", "", "--vary", tmp_path / "one.png", *base, "-n", "1") == 0
    (alone,) = capsys.readouterr().out.splitlines()
    with Image.open(alone) as first, Image.open(frames[0]) as second:
        assert first.size == (64, 64)
        assert first.tobytes() == second.tobytes()
    assert typed(monkeypatch, "blend", "a cat", "a dog", *base, "--frames", "1") == 2
    assert "--frames is a whole number from 2 to 64" in capsys.readouterr().err


def test_a_folder_is_written_and_read_back(karlo: Small, tmp_path: Path) -> None:
    found = detect.identify(karlo.folders["both"], models=(KARLO, VARIATIONS))
    tensors = {name: detect.ours(found, name) for name in found.tensors}
    folders.write(tmp_path / "again", KARLO, tensors)
    again = detect.identify(tmp_path / "again", models=(KARLO, VARIATIONS))
    assert (again.model, again.absent, again.notices) == (KARLO, (), ())
    model = unclip_files.load(tmp_path / "again", torch.device("cpu"), models=(KARLO,))
    assert model.fingerprint == karlo.model("both").fingerprint
    assert isinstance(model, Karlo)
    assert model.embedder.prior is not None
    assert (model.embedder.prior.limit, model.decoder.limit, model.super_res.limit) == (5.0, 1.0, 1.0)
