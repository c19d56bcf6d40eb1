"""Whole pictures of FLUX agree with diffusers', from the same noise and weights, read from its own folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux_img2img import FluxImg2ImgPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import CLIPTextConfig as TheirTextConfig
from transformers import CLIPTextModel, T5EncoderModel
from transformers import T5Config as TheirT5Config

from limner.errors import RequestError, WeightsError
from limner.families import flux_files
from limner.families.base import ControlOrder, Order, Wishes
from limner.families.flux import Flux
from limner.models import clip, flux, kl_vae, t5
from limner.models.flux_control import FluxControlNet
from limner.text.clip_tokenizer import CLIPTokenizer
from limner.text.t5_tokenizer import T5Tokenizer
from limner.util.rng import NoiseSource
from limner.weights import detect, folders, parts_flux, single_file
from limner.weights.parts import Model, t5_part, text_part, vae_part
from limner.weights.settings import flux_settings, t5_settings, text_settings, vae_settings

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
CPU = torch.device("cpu")
SIZE = (64, 48)
CLIP = replace(clip.TEXT_L, width=24, depth=2, heads=2, inner=48)
T5 = t5.T5Config(vocabulary=40, width=20, head_width=8, heads=3, depth=2, inner=32)
VAE = replace(kl_vae.FLUX, channels=(8, 8, 16, 16), groups=8, layers=1)
TRANSFORMER = flux.FluxConfig(heads=2, axes=(4, 6, 6), double=2, single=2, context=20, pooled=24)
DEV = replace(
    parts_flux.FLUX_DEV,
    name="tiny-dev",
    parts=(
        parts_flux.flux_part(TRANSFORMER),
        replace(vae_part(VAE), prefix="vae."),
        text_part(CLIP, parts_flux.CLIP_PREFIX),
        t5_part(T5, "text_encoder_2"),
    ),
)
SCHNELL = replace(
    parts_flux.FLUX_SCHNELL,
    name="tiny-schnell",
    parts=(parts_flux.flux_part(replace(TRANSFORMER, guidance=False)), *DEV.parts[1:]),
)
ORDER = Order(
    prompt="a red fox",
    negative_prompt="",
    steps=4,
    guidance=3.5,
    sampler="euler",
    size=SIZE,
    style=None,
)
SHAPE = (16, SIZE[0] // 8, SIZE[1] // 8)


def shaken(network: Any, scale: float = 0.1) -> Any:
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data += scale * torch.randn(weight.shape, generator=generator)
    return network.eval().requires_grad_(False)


def build(kind: Any, settings: dict[str, object]) -> Any:
    return shaken(kind(**{key: value for key, value in settings.items() if key != "_class_name"}))


def letters() -> Tokenizer:
    """T5's layout of a vocabulary, of single letters."""
    pieces = ["<pad>", "</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyz,"]
    model = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    model.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    return model


class Pair:
    """Their pipeline, saved as a folder, and our model read from it."""

    def __init__(self, folder: Path, model: Model) -> None:
        torch.manual_seed(0)
        self.folder, self.model = folder, model
        self.table = FlowMatchEulerDiscreteScheduler.from_config(model.tables["scheduler"])
        self.parts: dict[str, Any] = {
            "transformer": build(FluxTransformer2DModel, flux_settings(model.part("transformer").config)),
            "vae": build(AutoencoderKL, vae_settings(VAE)),
            "text_encoder": shaken(CLIPTextModel(TheirTextConfig(**text_settings(CLIP)))),
            "text_encoder_2": shaken(T5EncoderModel(TheirT5Config(**t5_settings(T5)))),
            "tokenizer": None,
            "tokenizer_2": None,
        }
        FluxPipeline(scheduler=self.table, **self.parts).save_pretrained(folder)
        (folder / "tokenizer_2").mkdir()
        letters().save(str(folder / "tokenizer_2" / "tokenizer.json"))
        self.length = 512 if model is DEV else 256
        self.ours = self.read()

    def read(self, **wishes: Any) -> Flux:
        return flux_files.load(self.folder, CPU, Wishes(**wishes), (SCHNELL, DEV))

    def told(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Context and pooled, by their encoders."""
        clip_tokens = CLIPTokenizer()
        ids = torch.tensor([clip_tokens.frame(clip_tokens.encode(prompt))[0]])
        long = torch.tensor([T5Tokenizer(letters()).encode(prompt, self.length)[0]])
        with torch.no_grad():
            pooled = self.parts["text_encoder"](ids).pooler_output
            return self.parts["text_encoder_2"](long)[0], pooled

    def theirs(self, order: Order, kind: Any = FluxPipeline, **more: Any) -> Tensor:
        pipe = kind(scheduler=self.table, **self.parts)
        pipe.set_progress_bar_config(disable=True)
        context, pooled = self.told(order.prompt)
        told = {"prompt_embeds": context, "pooled_prompt_embeds": pooled}
        if order.negative_prompt:
            context, pooled = self.told(order.negative_prompt)
            told |= {"negative_prompt_embeds": context, "negative_pooled_prompt_embeds": pooled}
        if kind is FluxPipeline:
            noise = NoiseSource([3]).initial(SHAPE)
            told["latents"] = FluxPipeline._pack_latents(noise, 1, 16, SIZE[0] // 8, SIZE[1] // 8)
        images = pipe(
            **told,
            height=order.size[0],
            width=order.size[1],
            num_inference_steps=order.steps,
            guidance_scale=order.guidance,
            output_type="pt",
            **more,
        ).images
        return images * 2 - 1


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("dev"), DEV)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("schnell"), SCHNELL)


@torch.inference_mode()
def drawn(model: Flux, order: Order, seeds: tuple[int, ...] = (3,)) -> Tensor:
    noise, x = NoiseSource(seeds), None
    for stage in model.plan(order).stages:
        for step in stage.run(x, noise):
            seen = stage.look(step.x0)
            assert seen.shape[1] == 3
            assert seen.isfinite().all()
            last = step.x
        x = last
    assert x is not None
    return x


def decibel(one: Tensor, other: Tensor) -> float:
    """PSNR of pixels in [-1, 1]."""
    error = (one.clamp(-1, 1) - other.clamp(-1, 1)).square().mean()
    return float(10 * torch.log10(4 / error))


def pixels(seed: int = 1) -> Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_dev_draws_as_theirs(dev: Pair) -> None:
    assert dev.ours.defaults.guidance == 3.5
    assert (dev.ours.length, dev.ours.config) == (512, TRANSFORMER)
    expected = dev.theirs(ORDER)
    assert decibel(drawn(dev.ours, ORDER), expected) > 50
    other = replace(ORDER, guidance=8.0)
    assert decibel(drawn(dev.ours, other), dev.theirs(other)) > 50
    assert decibel(drawn(dev.ours, other), expected) < 50
    assert decibel(drawn(dev.ours, replace(ORDER, prompt="a blue dog")), expected) < 50


def test_schnell_draws_as_theirs(schnell: Pair) -> None:
    assert (schnell.ours.defaults.steps, schnell.ours.defaults.guidance) == (4, 1.0)
    order = replace(ORDER, guidance=1.0)
    assert decibel(drawn(schnell.ours, order), schnell.theirs(order, max_sequence_length=256)) > 50
    assert schnell.ours.grid(SIZE, 4).t.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_large_pictures_take_more_of_their_steps_in_the_noise(dev: Pair) -> None:
    small, large = (dev.ours.grid((side, side), 4).t[1] for side in (256, 1024))
    assert small == pytest.approx(0.8318, abs=1e-3)
    assert large == pytest.approx(0.9045, abs=1e-3)


def test_a_negative_prompt_takes_real_guidance(dev: Pair, schnell: Pair) -> None:
    order = replace(ORDER, negative_prompt="a blue dog")
    assert decibel(drawn(dev.ours, order), dev.theirs(order, true_cfg_scale=2.0)) > 50
    wanted = schnell.theirs(order, true_cfg_scale=3.5, max_sequence_length=256)
    assert decibel(drawn(schnell.ours, order), wanted) > 50
    assert decibel(drawn(schnell.ours, ORDER), wanted) < 50
    alone = replace(order, guidance=1.0)
    assert torch.equal(drawn(schnell.ours, alone), drawn(schnell.ours, replace(ORDER, guidance=1.0)))


def test_what_means_nothing_without_real_guidance_is_said(dev: Pair, schnell: Pair) -> None:
    negative = {"negative_prompt": "a dog"}
    assert warned(dev, rescale=0.5) == ("rescale was left out: it needs a negative prompt",)
    assert warned(dev, rescale=0.5, guidance=1.0, **negative) == ()
    assert warned(schnell, **negative) == warned(schnell, guidance=1.0) == ()
    assert warned(schnell) == ("guidance was left out: it needs a negative prompt",)
    assert warned(schnell, guidance=1.0, rescale=0.5, **negative) == (
        "the negative prompt was left out: it needs guidance above 1",
        "rescale was left out: it needs guidance above 1",
    )


def warned(pair: Pair, **wishes: Any) -> tuple[str, ...]:
    return pair.ours.plan(replace(ORDER, **wishes)).warnings


@pytest.mark.parametrize(("steps", "strength", "count"), [(4, 0.5, 2), (10, 0.55, 6)])
def test_from_a_picture(
    dev: Pair, steps: int, strength: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = "diffusers.pipelines.flux.pipeline_flux_img2img"
    monkeypatch.setattr(f"{room}.randn_tensor", lambda shape, **_: NoiseSource([3]).initial(tuple(shape[1:])))
    monkeypatch.setattr(f"{room}.retrieve_latents", lambda out, **_: out.latent_dist.mode())
    order = replace(ORDER, steps=steps, image=pixels(), strength=strength)
    expected = dev.theirs(order, FluxImg2ImgPipeline, image=(pixels() + 1) / 2, strength=strength)
    assert decibel(drawn(dev.ours, order), expected) > 50
    assert dev.ours.plan(order).stages[0].steps == count


def test_a_mask_keeps_what_it_does_not_cover(dev: Pair) -> None:
    size = (60, 44)  # no multiples of 16
    picture, mask = pixels()[:, :, : size[0], : size[1]], torch.zeros(1, 1, *size)
    mask[:, :, 20:40, 8:24] = 1
    got = drawn(dev.ours, replace(ORDER, size=size, image=picture, mask=mask, strength=1.0))
    assert got.shape == picture.shape
    away = mask.expand_as(got) == 0
    assert torch.equal(got[away], picture[away])
    assert not torch.allclose(got[~away], picture[~away], atol=0.05)


def test_a_second_pass_is_larger(dev: Pair) -> None:
    got = drawn(dev.ours, replace(ORDER, enlarge=1.5))
    assert got.shape == (1, 3, 96, 64)  # 72 is rounded to a multiple of 16
    names = [stage.name for stage in dev.ours.plan(replace(ORDER, enlarge=1.5)).stages]
    assert names == ["diffusion", "decoder", "resize", "encoder", "second diffusion", "decoder"]


def test_a_picture_does_not_depend_on_those_beside_it(dev: Pair) -> None:
    order = replace(ORDER, negative_prompt="a dog", prompt="a [red:blue:0.5] fox")
    assert torch.equal(drawn(dev.ours, order, (3, 4))[1:], drawn(dev.ours, order, (4,)))


def test_with_networks_put_away_the_picture_is_the_same(dev: Pair) -> None:
    model = dev.read(offload=True)
    assert torch.equal(drawn(model, ORDER), drawn(dev.ours, ORDER))
    assert len(model.shelf._held) == 1


def test_clip_has_gone_when_t5_comes(dev: Pair) -> None:
    model, seen = dev.read(offload=True), list[ref[Any]]()
    clip_of, t5_of = (model.shelf.loaders[name] for name in ("text_encoder", "text_encoder_2"))

    def first(device: torch.device) -> Any:
        network = clip_of(device)
        seen.append(ref(network))
        return network

    def second(device: torch.device) -> Any:
        assert [one() for one in seen] == [None]
        return t5_of(device)

    model.shelf.loaders |= {"text_encoder": first, "text_encoder_2": second}
    assert set(model.encode(["a fox", "a dog"])) == {"a fox", "a dog"}
    assert len(seen) == 1


def test_prompts_say_what_is_not_heard(dev: Pair) -> None:
    plan = dev.ours.plan(replace(ORDER, prompt=f"a (red:1.3) fox {'x' * 600}"))
    assert any("weights in the prompt" in said for said in plan.warnings)
    assert any(said.startswith("T5 does not hear the last 1") for said in plan.warnings)
    assert not dev.ours.plan(ORDER).warnings
    long = "x" * 600
    assert any("tokens of the prompt" in said for said in warned(dev, prompt=f"a [fox:{long}:0.5]"))
    (said,) = warned(dev, negative_prompt=f"a [dog|{long}]")
    assert "tokens of the negative prompt" in said
    assert warned(dev, negative_prompt="a dog") == ()
    assert dev.ours.plan(replace(ORDER, size=(70, 50))).notices == (
        "50x70 was rounded to 48x64: sides are multiples of 16",
    )


@pytest.mark.parametrize(
    "wish", [{"tiling": True}, {"clip_skip": 2}, {"refiner": "x"}, {"grid": "karras"}, {"style": "ink"}]
)
def test_what_it_cannot_do_it_refuses(dev: Pair, wish: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(wish)) if "style" not in wish else "named styles"):
        dev.ours.plan(replace(ORDER, **wish))
    with pytest.raises(RequestError, match="1 or more"):
        dev.ours.plan(replace(ORDER, guidance=0.5))


def test_a_control_network_is_followed_while_it_is_heard(dev: Pair) -> None:
    torch.manual_seed(1)
    network = shaken(FluxControlNet(replace(TRANSFORMER, double=1, single=1)))
    model = replace(dev.ours, control_network=lambda name: network)
    control = ControlOrder(pixels=pixels(5), model="x", weight=1.0, start=0.0, end=1.0)
    plain = drawn(dev.ours, ORDER)
    assert decibel(drawn(model, replace(ORDER, controls=(control,))), plain) < 40
    unheard = replace(control, weight=0.0)
    assert decibel(drawn(model, replace(ORDER, controls=(unheard,))), plain) > 90
    late = replace(control, start=1.0)
    assert torch.equal(drawn(model, replace(ORDER, controls=(late,))), plain)
    stranger = FluxControlNet(replace(TRANSFORMER, heads=1))
    with pytest.raises(RequestError, match="made for another model"):
        drawn(replace(model, control_network=lambda name: stranger), replace(ORDER, controls=(control,)))


@pytest.mark.parametrize("spelling", ["diffusers", "kohya"])
def test_loras_in_both_layouts_change_the_picture(dev: Pair, spelling: str, tmp_path: Path) -> None:
    """One update of the values of a double block: in kohya's layout queries and keys get zeros beside it."""
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
    if spelling == "diffusers":
        name = "transformer.transformer_blocks.0.attn.to_v"
        tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    else:
        name = "lora_unet_double_blocks_0_img_attn_qkv"
        whole = torch.cat([torch.zeros(64, 2), up])
        tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": whole}
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "ink.safetensors")
    model = dev.read(loras=tmp_path)
    values = dev.parts["transformer"].transformer_blocks[0].attn.to_v
    before = values.weight.data.clone()
    values.weight.data += 0.5 * up @ down
    try:
        expected = dev.theirs(ORDER)
    finally:
        values.weight.data = before
    assert decibel(drawn(model, replace(ORDER, prompt="a red fox<lora:ink:0.5>")), expected) > 80
    plain = drawn(model, ORDER)
    assert torch.equal(plain, drawn(dev.ours, ORDER))
    assert decibel(plain, expected) < 50


def test_a_single_file_draws_the_same(dev: Pair, tmp_path: Path) -> None:
    found = detect.identify(dev.folder, models=(SCHNELL, DEV))
    assert (found.model, found.prediction) == (DEV, "flow")
    tensors = {part.folder: detect.ours(found, part.folder) for part in DEV.parts}
    path = tmp_path / "flux.safetensors"
    single_file.write(path, DEV, tensors)
    load: Callable[[], Flux] = lambda: flux_files.load(path, CPU, Wishes(), (SCHNELL, DEV))  # noqa: E731
    with pytest.raises(WeightsError, match=r"tokenizer\.json or spiece\.model of any T5"):
        load()
    letters().save(str(tmp_path / "tokenizer.json"))
    assert torch.equal(drawn(load(), ORDER), drawn(dev.ours, ORDER))
    alone = tmp_path / "alone.safetensors"
    single_file.write(alone, DEV, {"transformer": tensors["transformer"]})
    with pytest.raises(WeightsError, match="without vae, text_encoder, text_encoder_2"):
        flux_files.load(alone, CPU, Wishes(), (SCHNELL, DEV))


def test_a_folder_is_written_as_it_is_read(dev: Pair, tmp_path: Path) -> None:
    found = detect.identify(dev.folder, models=(SCHNELL, DEV))
    tensors = {part.folder: detect.ours(found, part.folder) for part in DEV.parts}
    path = tmp_path / "flux"
    folders.write(path, DEV, tensors, extras=folders.extras(dev.folder))
    again = flux_files.load(path, CPU, Wishes(), (SCHNELL, DEV))
    assert torch.equal(drawn(again, ORDER), drawn(dev.ours, ORDER))
    theirs = FluxTransformer2DModel.from_pretrained(path / "transformer").state_dict()
    before = dev.parts["transformer"].state_dict()
    assert theirs.keys() == before.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in before.items())
