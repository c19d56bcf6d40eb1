"""Pictures of cascades and of the x4 upscaler agree with diffusers', from the same noise and weights."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.deepfloyd_if import (
    pipeline_if,
    pipeline_if_img2img,
    pipeline_if_img2img_superresolution,
    pipeline_if_inpainting,
    pipeline_if_inpainting_superresolution,
    pipeline_if_superresolution,
)
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_upscale
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image
from tokenizers import Tokenizer, models, trainers
from torch import Tensor
from transformers import CLIPTextConfig as TheirTextConfig
from transformers import CLIPTextModel, T5EncoderModel
from transformers import T5Config as TheirT5Config

from limner.errors import RequestError, WeightsError
from limner.families import FAMILIES, HEARS, cascade_files
from limner.families.base import Order, Wishes
from limner.families.cascade import AFTER, GUIDANCE, LENGTH, WORN, Cascade
from limner.families.stages import Tag
from limner.families.x4 import X4
from limner.models import clip, kl_vae, pixel_unet, t5, unet
from limner.pipeline.load import load as load_pipeline
from limner.pipeline.picture import Picture
from limner.pipeline.request import Request
from limner.pipeline.run import Pipeline
from limner.text.prompt import parse
from limner.text.t5_tokenizer import T5Tokenizer
from limner.util.rng import NoiseSource
from limner.weights import parts, parts_cascade, parts_flux, parts_sd3, parts_unclip
from limner.weights.parts import text_part, unet_part, vae_part

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
CPU = torch.device("cpu")
SIDE, STEPS = 8, 6
SEEDS = (3, 4)
COSINE: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}
LEARNED: dict[str, Any] = {
    **COSINE, "variance_type": "learned_range", "thresholding": True, "dynamic_thresholding_ratio": 0.95,
}  # fmt: skip
TEXT = t5.T5Config(vocabulary=40, width=24, head_width=8, heads=3, depth=1, inner=32)
FIRST = replace(
    pixel_unet.IF_I_XL, channels=(16, 32), layers=(1, 1), looks=(False, True), context=32, text=24,
    pool_heads=4, head_channels=8, time=64, groups=8,
)  # fmt: skip
SECOND = replace(FIRST, inputs=6, time=32, level=True, picture=False, divisor=1.414)
THEIRS: dict[str, Any] = {
    "sample_size": SIDE, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
    "resnet_time_scale_shift": "scale_shift", "attention_head_dim": 8, "in_channels": 3, "out_channels": 6,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "cross_attention_dim": 32, "act_fn": "gelu",
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "cross_attention_norm": "group_norm", "encoder_hid_dim": 24, "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
}  # fmt: skip
THEIRS_SECOND: dict[str, Any] = {
    **THEIRS, "in_channels": 6, "time_embedding_dim": 32, "class_embed_type": "timestep",
    "time_embedding_act_fn": "gelu", "resnet_skip_time_act": True, "resnet_out_scale_factor": 1.414,
    "mid_block_scale_factor": 1.414, "only_cross_attention": True,
}  # fmt: skip
X4_UNET = replace(
    unet.X4, channels=(16, 32), depths=(0, 1), middle=1, layers=1, blind=(True, False), context=24, heads=2,
    groups=8,
)  # fmt: skip
X4_TEXT = replace(clip.TEXT_H_SD2, width=24, depth=2, heads=2, inner=48, left_out=0)
X4_VAE = replace(kl_vae.X4, channels=(8, 8, 16), groups=8, layers=1)
TINY = (
    parts_cascade.stage("tiny-i", FIRST, TEXT),
    parts_cascade.stage("tiny-ii", SECOND, TEXT),
    replace(
        parts_cascade.X4,
        name="tiny-x4",
        parts=(unet_part(X4_UNET), vae_part(X4_VAE), text_part(X4_TEXT, "cond_stage_model.model.")),
    ),
)
ORDER = Order(
    prompt="a Red fox", negative_prompt="rain", steps=STEPS, guidance=7.0, sampler="ddpm", size=(SIDE, SIDE),
    style=None,
)  # fmt: skip


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stirred(network: Any, scale: float = 0.05) -> Any:
    """No weight at a value that could hide a mistake."""
    for index, tensor in enumerate(network.eval().requires_grad_(False).state_dict().values()):
        if tensor.is_floating_point():
            tensor.add_(scale * draw(*tensor.shape, seed=index))
    return network


def save(folder: Path, index: dict[str, Any], **parts: Any) -> Path:
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        library = "transformers" if "text" in name else "diffusers"
        index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with I, II and III in it, as diffusers writes them."""
    root = tmp_path_factory.mktemp("if")
    torch.manual_seed(0)
    letters = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=36, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    letters.train_from_iterator(["a red fox in the rain", "the fox and a red cat", "rain"] * 4, trainer)
    (root / "I" / "tokenizer").mkdir(parents=True)
    letters.save(str(root / "I" / "tokenizer" / "tokenizer.json"))
    config = TheirT5Config(
        vocab_size=40, d_model=24, d_kv=8, num_heads=3, num_layers=1, d_ff=32, feed_forward_proj="gated-gelu"
    )
    one = DDPMScheduler(**LEARNED, sample_max_value=1.5)
    two = DDPMScheduler(**LEARNED, sample_max_value=1.0)
    save(
        root / "I", {"_class_name": "IFPipeline"}, unet=stirred(UNet2DConditionModel(**THEIRS)),
        text_encoder=stirred(T5EncoderModel(config)), scheduler=one,
    )  # fmt: skip
    save(
        root / "II",
        {"_class_name": "IFSuperResolutionPipeline", "text_encoder": ["transformers", "T5EncoderModel"]},
        scheduler=two,
        unet=stirred(UNet2DConditionModel(**THEIRS_SECOND)), image_noising_scheduler=DDPMScheduler(**COSINE),
    )  # fmt: skip
    betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
    text = TheirTextConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, hidden_act="gelu",
        projection_dim=24,
    )  # fmt: skip
    save(
        root / "III", {"_class_name": "StableDiffusionUpscalePipeline"},
        unet=stirred(UNet2DConditionModel(
            in_channels=7, out_channels=4, sample_size=SIDE, block_out_channels=(16, 32), layers_per_block=1,
            norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=24, attention_head_dim=2,
            use_linear_projection=True, num_class_embeds=1000, only_cross_attention=(True, False),
        )),
        vae=stirred(AutoencoderKL(
            block_out_channels=(8, 8, 16), down_block_types=("DownEncoderBlock2D",) * 3, layers_per_block=1,
            up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=8, scaling_factor=0.08333,
        )),
        text_encoder=stirred(CLIPTextModel(text)),
        scheduler=DDIMScheduler(
            **betas, prediction_type="v_prediction", steps_offset=1, set_alpha_to_one=True, clip_sample=False
        ),
        low_res_scheduler=DDPMScheduler(**betas),
    )  # fmt: skip
    return root


def load(path: Path, *then: Path, offload: bool = False) -> Cascade:
    wishes = Wishes(then=tuple(map(str, then)), dtype="float32", offload=offload)
    return cascade_files.load(path, CPU, wishes, TINY)


def embeds(root: Path, text: str, count: int = len(SEEDS)) -> Tensor:
    """A text through their T5."""
    ids, mask, _ = T5Tokenizer.read(root / "I" / "tokenizer").encode(text.lower(), LENGTH)
    network = T5EncoderModel.from_pretrained(root / "I" / "text_encoder").eval()
    with torch.no_grad():
        found = network(torch.tensor([ids]), attention_mask=torch.tensor([mask]).long()).last_hidden_state
    return found.expand(count, -1, -1)


Give = Callable[[list[Tensor]], None]


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Iterator[Give]:
    """Hands them the noise that they are to draw, in their order; all of it has to be asked for."""
    left: list[Tensor] = []

    def drawn(shape: Any, **options: Any) -> Tensor:
        assert tuple(shape) == tuple(left[0].shape)
        return left.pop(0)

    for module in (
        pipeline_if, pipeline_if_img2img, pipeline_if_img2img_superresolution, pipeline_if_inpainting,
        pipeline_if_inpainting_superresolution, pipeline_if_superresolution,
        pipeline_stable_diffusion_upscale, scheduling_ddpm,
    ):  # fmt: skip
        monkeypatch.setattr(module, "randn_tensor", drawn)
    yield left.extend
    assert not left


def noises(source: NoiseSource, shape: tuple[int, ...], steps: int, tag: int) -> list[Tensor]:
    return [source.step(index, shape, tag) for index in range(steps - 1)]


def theirs(kind: Any, folder: Path, **more: Any) -> Any:
    """Their pipeline without what it needs for nothing."""
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    if (folder / "image_noising_scheduler").is_dir():
        more["image_noising_scheduler"] = DDPMScheduler.from_pretrained(folder / "image_noising_scheduler")
    pipe = kind(
        tokenizer=None, text_encoder=None, unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, watermarker=None,
        requires_safety_checker=False, **more,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.inference_mode()
def run(
    model: Cascade | X4, order: Order, seeds: tuple[int, ...] = SEEDS, first: int = 0, x: Any = None
) -> Tensor:
    """The pictures of a plan, from its stage `first` on, which is given x."""
    for stage in model.plan(order).stages[first:]:
        steps = list(stage.run(x, NoiseSource(seeds)))
        assert len(steps) == stage.steps
        assert stage.look(steps[0].x0).shape[1] == 3
        x = steps[-1].x
    return torch.as_tensor(x)


def psnr(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float(10 * torch.log10(4 / (one.clamp(-1, 1) - other.clamp(-1, 1)).square().mean()))


def told(root: Path, **more: Any) -> dict[str, Any]:
    prompts = {"prompt_embeds": embeds(root, ORDER.prompt), "negative_prompt_embeds": embeds(root, "rain")}
    return {**prompts, "output_type": "pt", **more}


PICTURE = draw(1, 3, SIDE, SIDE, seed=8).clamp(-1, 1)
LARGE = torch.nn.functional.interpolate(PICTURE, scale_factor=4.0, mode="nearest")
MASK = torch.zeros(1, 1, SIDE, SIDE)
MASK[..., 2:6, 3:] = 1


def test_the_first_stage_draws_as_the_reference(root: Path, give: Give) -> None:
    source = NoiseSource(SEEDS)
    give([source.initial((3, SIDE, SIDE)), *noises(source, (3, SIDE, SIDE), STEPS, Tag.FIRST)])
    pipe = theirs(pipeline_if.IFPipeline, root / "I")
    wanted = pipe(**told(root), num_inference_steps=STEPS, guidance_scale=7.0, height=SIDE, width=SIDE).images
    assert psnr(run(load(root / "I"), ORDER), wanted) > 50


def test_the_second_stage_draws_as_the_reference(root: Path, give: Give) -> None:
    model, source, large = load(root / "I", root / "II"), NoiseSource(SEEDS), (3, 4 * SIDE, 4 * SIDE)
    order, small = replace(ORDER, size=large[1:]), draw(2, 3, SIDE, SIDE, seed=5).clamp(-1, 1)
    tag, worn = Tag.LARGER + 2, Tag.LARGER + 3
    give([source.initial(large, tag), source.step(0, large, worn), *noises(source, large, STEPS // 2, tag)])
    pipe = theirs(pipeline_if_superresolution.IFSuperResolutionPipeline, root / "II")
    wanted = pipe(
        **told(root), image=small, num_inference_steps=STEPS // 2, guidance_scale=7.0 * GUIDANCE[1],
        noise_level=WORN, height=large[1], width=large[2],
    ).images  # fmt: skip
    assert psnr(run(model, order, first=1, x=small), wanted) > 50


@pytest.mark.parametrize("masked", [False, True])
def test_pictures_and_masks_count_as_in_the_reference(root: Path, give: Give, masked: bool) -> None:
    source, kept = NoiseSource(SEEDS), round(STEPS * 0.5)
    order = replace(ORDER, image=PICTURE, strength=0.5, mask=MASK if masked else None)
    give([source.initial((3, SIDE, SIDE)), *noises(source, (3, SIDE, SIDE), kept, Tag.FIRST)])
    kind: Any = (
        pipeline_if_inpainting.IFInpaintingPipeline if masked else pipeline_if_img2img.IFImg2ImgPipeline
    )
    more = {"mask_image": MASK.expand(2, -1, -1, -1)} if masked else {}
    wanted = theirs(kind, root / "I")(
        **told(root), image=PICTURE.expand(2, -1, -1, -1), strength=0.5, num_inference_steps=STEPS,
        guidance_scale=7.0, **more,
    ).images  # fmt: skip
    found = run(load(root / "I"), order)
    assert psnr(found, wanted) > 50
    if masked:
        assert torch.equal(found[:, :, :2], PICTURE[:, :, :2].expand(2, -1, -1, -1))


@pytest.mark.parametrize("masked", [False, True])
def test_they_count_at_the_second_stage_too(root: Path, give: Give, masked: bool) -> None:
    source, large, kept = NoiseSource(SEEDS), (3, 4 * SIDE, 4 * SIDE), 2
    small = draw(2, 3, SIDE, SIDE, seed=5).clamp(-1, 1)
    mask = torch.nn.functional.interpolate(MASK, scale_factor=4.0, mode="nearest") if masked else None
    order = replace(ORDER, size=large[1:], steps=2 * 4, image=LARGE, strength=0.5, mask=mask)
    tag, worn = Tag.LARGER + 2, Tag.LARGER + 3
    give([source.initial(large, tag), source.step(0, large, worn), *noises(source, large, kept, tag)])
    kind: Any = pipeline_if_img2img_superresolution.IFImg2ImgSuperResolutionPipeline
    more: dict[str, Any] = {"noise_level": WORN}
    if mask is not None:
        kind = pipeline_if_inpainting_superresolution.IFInpaintingSuperResolutionPipeline
        more = {"mask_image": mask.expand(2, -1, -1, -1)}
    wanted = theirs(kind, root / "II")(
        **told(root), image=small, original_image=LARGE.expand(2, -1, -1, -1), strength=0.5,
        num_inference_steps=4, guidance_scale=4.0, **more,
    ).images  # fmt: skip
    assert psnr(run(load(root / "I", root / "II"), order, first=1, x=small), wanted) > 50


def test_the_upscaler_draws_as_the_reference(root: Path, give: Give) -> None:
    folder, source, small = root / "III", NoiseSource(SEEDS), draw(2, 3, SIDE, SIDE, seed=5).clamp(-1, 1)
    model = load(root / "I", folder)
    assert model.upscaler is not None
    rows = [
        model.upscaler.encoder.encode_all((line,))[0].context.expand(2, -1, -1)
        for line in (parse("a Red fox").at(0, 1)[0], parse("rain").at(0, 1)[0])
    ]
    shape = (4, SIDE, SIDE)
    give([source.step(0, (3, SIDE, SIDE), Tag.X4_WORN), source.initial(shape, Tag.X4)])
    pipe = pipeline_stable_diffusion_upscale.StableDiffusionUpscalePipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"), tokenizer=None,
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        low_res_scheduler=DDPMScheduler.from_pretrained(folder / "low_res_scheduler"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(
        image=(small + 1) / 2, prompt_embeds=rows[0], negative_prompt_embeds=rows[1], num_inference_steps=6,
        guidance_scale=9.0, noise_level=AFTER, output_type="pt",
    ).images  # fmt: skip
    order = replace(ORDER, size=(4 * SIDE, 4 * SIDE), steps=8)
    found = run(model, order, first=1, x=small)
    assert psnr(found, 2 * wanted - 1) > 50


def test_a_whole_cascade_draws_from_one_folder_and_offloading_changes_no_pixel(root: Path) -> None:
    model = load(root)
    assert model.defaults.size == (1024, 1024)
    size = (16 * SIDE, 16 * SIDE)
    order = replace(ORDER, size=size, steps=2, image=None)
    plan = model.plan(order)
    assert [stage.name for stage in plan.stages] == ["diffusion at 8x8", "diffusion at 32x32", "x4 upscaler"]
    pictures = run(model, order)
    assert pictures.shape == (2, 3, *size)
    assert torch.equal(run(load(root, offload=True), order, seeds=SEEDS[:1]), pictures[:1])
    assert torch.equal(run(load(root / "I", root / "II", root / "III"), order, SEEDS[1:]), pictures[1:])


def test_what_a_cascade_cannot_do_is_said(root: Path) -> None:
    model = load(root / "I")
    assert model.defaults.size == (64, 64)
    for wrong, message in (
        ({"style": "flat"}, "no named styles"),
        ({"enlarge": 2.0}, "no enlarge"),
        ({"guidance": 0.5}, "1 or more"),
        ({"image": PICTURE, "strength": 0.01}, "leaves none"),
        ({"grid": "smart"}, 'no grid "smart"'),
        ({"rescale": 0.5}, "no rescale"),
    ):
        with pytest.raises(RequestError, match=message):
            model.plan(replace(ORDER, **wrong))
    plan = model.plan(replace(ORDER, prompt="a (red:1.3) fox " + "rain " * 90, size=(11, 9)))
    assert any("weights in the prompt" in said for said in plan.warnings)
    assert any("tokens of the prompt" in said for said in plan.warnings)
    both = model.plan(replace(ORDER, prompt="a [red:blue:2] fox", negative_prompt="<lora:mine:1> [a|b]"))
    assert [said.split(";")[0] for said in both.warnings] == [
        "the prompt changes on the way",
        "<lora:mine:1> in the negative prompt was left out: this model knows no such thing",
        "the negative prompt changes on the way",
    ]
    (alone,) = model.plan(replace(ORDER, guidance=1.0, negative_prompt="[a|b] " * 90)).warnings
    assert alone == "the negative prompt was left out: it needs guidance above 1"
    assert model.plan(ORDER).warnings == ()
    assert plan.notices == ("9x11 was rounded to 8x12: sides are multiples of 2",)
    assert run(model, replace(ORDER, guidance=1.0)).shape == (2, 3, SIDE, SIDE)


def test_folders_that_do_not_follow_each_other_are_refused(root: Path) -> None:
    for path, then, message in (
        (root / "II", (), "a first stage was looked for"),
        (root / "I", (root / "I",), "a stage that enlarges was looked for"),
        (root / "I", (root / "III", root / "II"), "a stage that enlarges was looked for"),
    ):
        with pytest.raises(WeightsError, match=message):
            load(path, *then)


def test_the_wishes_that_are_read_are_those_that_are_declared(root: Path, wishes_read: Any) -> None:
    assert wishes_read(lambda wishes: cascade_files.load(root, CPU, wishes, TINY)) == HEARS["cascade"]
    assert wishes_read(lambda wishes: cascade_files.load_x4(root / "III", CPU, wishes, TINY)) == HEARS["x4"]


def test_the_upscaler_by_itself_makes_a_picture_four_times_larger(root: Path) -> None:
    pipeline = Pipeline(cascade_files.load_x4(root / "III", CPU, Wishes(dtype="float32"), TINY), "x4")
    small = Picture(Image.new("RGB", (24, 16)))
    assert pipeline.resolve(Request(prompt="a fox", image=small)).size == (64, 96)
    assert pipeline.resolve(Request(prompt="a fox", image=small, size=(32, 32))).size == (32, 32)
    done = pipeline.draw(Request(prompt="a fox", image=small, count=1, steps=2))
    assert done.images[0].size == (96, 64)


def test_learned_words_that_no_stage_hears_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="this cascade has none"):
        cascade_files.load(root / "I", CPU, Wishes(embeddings=tmp_path), TINY)


def test_the_upscaler_by_itself_needs_a_picture(root: Path) -> None:
    model = cascade_files.load_x4(root / "III", CPU, Wishes(dtype="float32"), TINY)
    with pytest.raises(RequestError, match="limner upscale"):
        model.plan(replace(ORDER, size=(32, 32)))
    with pytest.raises(RequestError, match="no mask"):
        model.plan(replace(ORDER, image=PICTURE, mask=MASK))
    order = replace(
        ORDER, sampler="ddim", size=(32, 30), image=draw(1, 3, 32, 30, seed=1).clamp(-1, 1), steps=2
    )
    assert "multiples of 4" in model.plan(order).notices[-1]
    with pytest.raises(RequestError, match="knows no strength"):
        model.plan(replace(order, strength=0.5))
    assert model.plan(order).warnings == ()
    unmet = replace(order, prompt="<lora:mine:1> a [red:blue:0.5] fox", negative_prompt="", rescale=0.5)
    network, changes = model.plan(unmet).warnings
    assert network.startswith("<lora:mine:1> in the prompt was left out")
    assert changes.startswith("the prompt changes on the way")
    alone = model.plan(replace(order, guidance=1.0, rescale=0.5)).warnings
    assert [said.split(" was left out")[0] for said in alone] == ["the negative prompt", "rescale"]
    assert run(model, order).shape == (2, 3, 32, 32)


class Recognised:
    """As little of a found model as tells its family."""

    model = TINY[2]


def test_names_lead_to_families(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(FAMILIES["cascade"], load=lambda path, at, wishes: load(path))
    monkeypatch.setitem(FAMILIES, "cascade", small)
    assert isinstance(load_pipeline(root, device="cpu").model, Cascade)
    monkeypatch.setattr(cascade_files.detect, "identify", lambda path, **said: Recognised())
    with pytest.raises(RequestError, match="family x4, which knows no then"):
        load_pipeline(root / "III", device="cpu", wishes=Wishes(then=("elsewhere",)))


def test_half_precision_draws_nearly_the_same(root: Path) -> None:
    order = replace(ORDER, size=(16 * SIDE, 16 * SIDE), steps=2)
    half = cascade_files.load(root, CPU, Wishes(dtype="bfloat16"), TINY)
    assert psnr(run(half, order, SEEDS[:1]), run(load(root), order, SEEDS[:1])) > 15


@torch.inference_mode()
def test_pictures_may_be_drawn_together(root: Path) -> None:
    """As on a GPU, where they are not asked for one by one."""
    model = load(root / "I", root / "II", root / "III")
    assert model.upscaler is not None
    t, texts = torch.tensor([300.0, 300.0]), [draw(1, LENGTH, 24, seed=6), draw(1, LENGTH, 24, seed=7)]
    for channels, denoise in (
        (3, lambda worn: model.denoise(model.resolutions[1], texts, 4.0, worn=worn, level=WORN)),
        (4, lambda worn: model.upscaler.denoise(texts, worn, AFTER, 9.0)),
    ):
        x, worn = draw(2, channels, SIDE, SIDE, seed=1), draw(2, 3, SIDE, SIDE, seed=2)
        each = [denoise(worn[i : i + 1])(x[i : i + 1], t[i : i + 1]) for i in range(2)]
        assert torch.allclose(denoise(worn)(x, t), torch.cat(each), atol=1e-4)


def test_what_follows_a_first_stage_enlarges(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is put there is told by its title: other families, and Stable Diffusion itself."""
    found = cascade_files.detect.identify
    for model in (parts_flux.FLUX_DEV, parts_sd3.SD3_MEDIUM, parts_unclip.KARLO, parts.SD21):

        def named(path: Path, model: parts.Model = model, **said: Any) -> Any:
            return replace(found(path, **said), model=model) if path.name == "II" else found(path, **said)

        monkeypatch.setattr(cascade_files.detect, "identify", named)
        with pytest.raises(WeightsError, match=f"II is {model.title}; a stage that enlarges was looked for"):
            load(root / "I", root / "II")
    with pytest.raises(RequestError, match="then is the folder or hub id of a stage that enlarges, got not"):
        cascade_files.load(root / "I", CPU, Wishes(then=("",)), TINY)
