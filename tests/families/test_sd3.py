"""Whole pictures of Stable Diffusion 3 agree with diffusers', which reads the folder that we wrote: from the
same words, the same noise and the same weights. And what else may lie on the disk."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from weakref import ref

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.controlnets.controlnet_sd3 import SD3ControlNetModel
from diffusers.pipelines.controlnet_sd3.pipeline_stable_diffusion_3_controlnet import (
    StableDiffusion3ControlNetPipeline,
)
from diffusers.pipelines.stable_diffusion_3 import pipeline_stable_diffusion_3_img2img as theirs_img2img
from diffusers.pipelines.stable_diffusion_3 import pipeline_stable_diffusion_3_inpaint as theirs_inpaint
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from limner.errors import RequestError, WeightsError
from limner.families import sd3_files
from limner.families.base import ControlOrder, Order, Wishes
from limner.families.sd3 import StableDiffusion3
from limner.models import clip, kl_vae, mmdit, t5
from limner.models.mmdit_control import MMDiTControlConfig
from limner.text.t5_tokenizer import T5Tokenizer
from limner.util.rng import NoiseSource
from limner.weights import detect, folders, parts_sd3, single_file, standalone
from limner.weights.convert import tokenizers
from limner.weights.parts import Model, vae_part

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
CPU = torch.device("cpu")
SIZE = (64, 48)
SHAPE = (16, SIZE[0] // 8, SIZE[1] // 8)
TRANSFORMER = mmdit.MMDiTConfig(depth=4, heads=2, head_width=8, context=48, pooled=44, positions=10)
LATER = replace(TRANSFORMER, normed=True, dual=2)
VAE = replace(kl_vae.SD3, channels=(8, 8, 16, 16), groups=8, layers=1)
TEXT_L = replace(clip.TEXT_L, width=24, depth=3, heads=2, inner=48, projection=24)
TEXT_G = replace(clip.TEXT_G, width=16, depth=3, heads=2, inner=32, projection=20)
T5 = t5.T5Config(vocabulary=40, width=48, head_width=8, heads=3, depth=2, inner=32)


def model(name: str, transformer: mmdit.MMDiTConfig, first: clip.CLIPTextConfig = TEXT_L) -> Model:
    parts = (parts_sd3.transformer_part(transformer), vae_part(VAE), *parts_sd3.texts(first, TEXT_G, T5))
    return replace(parts_sd3.SD3_MEDIUM, name=name, title=f"Tiny {name}", parts=parts, size=64)


SD3 = model("sd3", TRANSFORMER)
SD35 = model("sd35", LATER)
LARGE = model("large", replace(TRANSFORMER, normed=True))
BARE = model("bare", TRANSFORMER, replace(TEXT_L, projection=None))
MODELS = (SD3, SD35, BARE)
ORDER = Order(
    prompt="a red fox",
    negative_prompt="",
    steps=5,
    guidance=5.0,
    sampler="euler",
    size=SIZE,
    style=None,
)


def random_tensors(of: Model) -> dict[str, dict[str, Tensor]]:
    """Weights under which signals neither fade nor grow."""
    generator = torch.Generator().manual_seed(0)

    def drawn(name: str, shape: torch.Size) -> Tensor:
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            return noise / math.sqrt(math.prod(shape[1:]) if "position" not in name else 4)
        return 0.1 * noise + (0 if name.endswith("bias") else 1)

    return {
        part.folder: {name: drawn(name, t.shape) for name, t in part.build().state_dict().items()}
        for part in of.parts
    }


def letters() -> Tokenizer:
    """T5's layout of a vocabulary, of single letters."""
    pieces = ["<pad>", "</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyz,"]
    vocabulary = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    vocabulary.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    return vocabulary


class Letters:
    """The same, called as their pipelines call a tokenizer."""

    def __call__(self, texts: list[str], padding: str, max_length: int = 0, **_: Any) -> Any:
        tokenizer = T5Tokenizer(letters())
        every = [tokenizer.encode(text, 256) for text in texts]
        rows = [ids if padding == "max_length" else ids[: sum(mask)] for ids, mask, _ in every]
        return SimpleNamespace(input_ids=torch.tensor(rows))


class Pair:
    """A folder that we wrote, read by us and by them."""

    def __init__(self, folder: Path, of: Model, *, long: bool = True) -> None:
        tensors = random_tensors(of)
        if not long:
            del tensors["text_encoder_3"]
        self.folder, self.long, self.pipe = folder, long, cast(Any, None)
        folders.write(folder, of, tensors, extras=tokenizers(of))
        if long:
            (folder / "tokenizer_3").mkdir()
            letters().save(str(folder / "tokenizer_3" / "tokenizer.json"))
        self.ours = self.read()

    def read(self, **wishes: Any) -> StableDiffusion3:
        return sd3_files.load(self.folder, CPU, Wishes(**wishes), MODELS)

    def theirs(self, order: Order, kind: Any = StableDiffusion3Pipeline, **more: Any) -> Tensor:
        if self.pipe is None:
            absent = {"tokenizer_3": None} | ({} if self.long else {"text_encoder_3": None})
            self.pipe = StableDiffusion3Pipeline.from_pretrained(self.folder, **absent, local_files_only=True)
        names = ("controlnet", "scheduler")
        parts = self.pipe.components | {name: more.pop(name) for name in names if name in more}
        pipe = kind(**parts)
        pipe.tokenizer_3 = Letters() if self.long else None
        pipe.set_progress_bar_config(disable=True)
        if "image" not in more:
            more["latents"] = NoiseSource([3]).initial(SHAPE)
        output = more.pop("output_type", "pt")
        images: Tensor = pipe(
            prompt=order.prompt,
            negative_prompt=order.negative_prompt,
            height=SIZE[0],
            width=SIZE[1],
            num_inference_steps=order.steps,
            guidance_scale=order.guidance,
            output_type=output,
            **more,
        ).images
        return images if output == "latent" else images * 2 - 1


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("sd3") / "model", SD3)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("short") / "model", SD3, long=False)


@pytest.fixture(scope="module")
def sd35(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("sd35") / "model", SD35)


@torch.inference_mode()
def drawn(of: StableDiffusion3, order: Order = ORDER) -> Tensor:
    noise, x = NoiseSource([3]), None
    for stage in of.plan(order).stages:
        for step in stage.run(x, noise):
            assert stage.look(step.x0).shape[1] == 3
            last = step.x
        x = last
    assert x is not None
    return x


def decibel(one: Tensor, other: Tensor) -> float:
    """PSNR of pixels in [-1, 1]."""
    assert one.shape == other.shape
    error = (one.clamp(-1, 1) - other.clamp(-1, 1)).square().mean()
    return float(10 * torch.log10(4 / error))


@pytest.mark.parametrize("negative", ["", "blurry, a blue dog"])
def test_words_to_pictures(sd3: Pair, negative: str) -> None:
    order = replace(ORDER, negative_prompt=negative)
    found = decibel(drawn(sd3.ours, order), sd3.theirs(order))
    assert found > 50
    assert decibel(drawn(sd3.ours, replace(order, prompt="a cat")), sd3.theirs(order)) < 50


def test_without_t5(short: Pair, sd3: Pair) -> None:
    found = decibel(drawn(short.ours), short.theirs(ORDER))
    assert found > 50
    assert decibel(drawn(short.ours), drawn(sd3.ours)) < 50
    assert "without its third text encoder" in " ".join(short.ours.plan(ORDER).notices)
    assert sd3.ours.plan(ORDER).notices == ()


def test_without_guidance_the_prompt_is_asked_alone(sd3: Pair) -> None:
    order = replace(ORDER, guidance=1.0)
    assert decibel(drawn(sd3.ours, order), sd3.theirs(order)) > 50
    more = replace(order, negative_prompt=f"a (dog:1.2) {' '.join(['fox'] * 100)}", rescale=0.5)
    assert torch.equal(drawn(sd3.ours, order), drawn(sd3.ours, more))
    assert sd3.ours.plan(more).warnings == (
        "the negative prompt was left out: it needs guidance above 1",
        "rescale was left out: it needs guidance above 1",
    )


def test_skip_layer_guidance(sd35: Pair) -> None:
    order = replace(ORDER, steps=12, skip_layers=2.8)
    ours = replace(sd35.ours, skipped=(1, 2))
    expected = sd35.theirs(order, skip_guidance_layers=[1, 2], skip_layer_guidance_scale=2.8)
    found = decibel(drawn(ours, order), expected)
    assert found > 50
    assert decibel(drawn(ours, replace(order, skip_layers=0.0)), expected) < 50
    assert decibel(drawn(ours, replace(order, skip_layers=0.0)), sd35.theirs(order)) > 50
    assert "skip_layers was left out" in " ".join(ours.plan(replace(order, guidance=1.0)).warnings)
    with pytest.raises(RequestError, match="does not have so many layers"):
        sd35.ours.plan(order)


def test_skip_layer_guidance_of_weighed_prompts(sd35: Pair) -> None:
    ours = replace(sd35.ours, skipped=(1, 2))
    order = replace(ORDER, steps=12, guidance=6.0, skip_layers=3.0)
    more = replace(order, guidance=5.0, skip_layers=2.5)  # for weights of 1.2 in all, which count for both
    several = drawn(ours, replace(more, prompt="a red fox:0.6 AND a red fox:0.6"))
    assert decibel(drawn(ours, order), several) > 80
    assert decibel(drawn(ours, replace(order, skip_layers=2.5)), several) < 70


def pixels(seed: int = 1) -> Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pipelines draw noise by themselves: here they draw ours, and take the middle of posteriors."""
    for room in (theirs_img2img, theirs_inpaint):
        monkeypatch.setattr(
            room, "randn_tensor", lambda shape, **_: NoiseSource([3]).initial(tuple(shape[1:]))
        )
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


@pytest.mark.parametrize(("steps", "strength", "count"), [(5, 0.6, 3), (10, 0.55, 6)])
@pytest.mark.usefixtures("certain")
def test_from_a_picture(sd3: Pair, steps: int, strength: float, count: int) -> None:
    order = replace(ORDER, steps=steps, image=pixels(), strength=strength)
    kind = theirs_img2img.StableDiffusion3Img2ImgPipeline
    expected = sd3.theirs(order, kind, image=(pixels() + 1) / 2, strength=strength)
    assert decibel(drawn(sd3.ours, order), expected) > 50
    assert sd3.ours.plan(order).stages[0].steps == count


@pytest.mark.usefixtures("certain")
def test_behind_a_mask(sd3: Pair) -> None:
    covered = torch.zeros(1, 1, *SIZE)
    covered[:, :, 16:48, 16:32] = 1
    order = replace(ORDER, image=pixels(), mask=covered, strength=1.0)
    kind = theirs_inpaint.StableDiffusion3InpaintPipeline
    latents = sd3.theirs(
        order, kind, image=(pixels() + 1) / 2, mask_image=covered, strength=1.0, output_type="latent"
    )
    expected = sd3.ours.canvas.decode(latents)  # theirs forgets the shift of the autoencoder here
    ours, inside = drawn(sd3.ours, order), covered[0, 0] > 0
    found = decibel(ours[:, :, inside], expected[:, :, inside])
    assert found > 50
    assert torch.equal(ours[:, :, ~inside], pixels()[:, :, ~inside])


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.usefixtures("certain")
def test_a_control_network_is_heard(sd3: Pair, sd35: Pair, joint: bool, tmp_path: Path) -> None:
    pair = sd3 if joint else sd35
    config = MMDiTControlConfig(network=replace(TRANSFORMER, depth=2), joint=joint, zeros=joint)
    settings = parts_settings(config)
    theirs = SD3ControlNetModel(**settings).eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in theirs.state_dict().values():
        tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    theirs.save_pretrained(tmp_path)
    kind = standalone.mmdit_control("a tiny ControlNet", config)
    network = standalone.identify_network(tmp_path, (kind,))
    assert network.notices == ()
    ours = replace(pair.ours, control_network=lambda name: network.load())
    order = replace(
        ORDER, controls=(ControlOrder(pixels=pixels(5), model="any", weight=0.8, start=0.0, end=0.6),)
    )
    expected = pair.theirs(
        order,
        StableDiffusion3ControlNetPipeline,
        controlnet=theirs,
        control_image=pixels(5),  # tensors are taken as they are
        controlnet_conditioning_scale=0.8,
        control_guidance_end=0.6,
    )
    found = decibel(drawn(ours, order), expected)
    assert found > 50
    assert decibel(drawn(pair.ours), expected) < 50
    twice = replace(order, controls=order.controls * 2)
    assert decibel(drawn(ours, twice), expected) < 50


def parts_settings(config: MMDiTControlConfig) -> dict[str, Any]:
    settings = dict(standalone.mmdit_control_settings(config))
    del settings["_class_name"]
    return settings | ({} if config.joint else {"pos_embed_type": None})


@pytest.mark.parametrize(
    ("grid", "table"),
    [
        ("linspace", {"shift": 3.0, "use_dynamic_shifting": True}),
        ("linspace", {"shift": 1.0}),
        ("karras", {"shift": 3.0, "use_karras_sigmas": True}),
        ("exponential", {"shift": 3.0, "use_exponential_sigmas": True}),
    ],
)
def test_the_path_is_the_folders(sd3: Pair, grid: str, table: dict[str, Any]) -> None:
    order = replace(ORDER, grid=grid)
    ours = replace(sd3.ours, shift=sd3_files._shift(table))
    expected = sd3.theirs(order, scheduler=FlowMatchEulerDiscreteScheduler(**table))
    found = decibel(drawn(ours, order), expected)
    assert found > 50


def test_a_folder_and_a_single_file_draw_the_same(sd3: Pair, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    single_file.write(file, SD3, random_tensors(SD3))
    alone = sd3_files.load(file, CPU, models=MODELS)
    assert "put" in " ".join(alone.notices).lower()  # there is no vocabulary
    assert alone.tokenizer is None
    letters().save(str(tmp_path / "tokenizer.json"))
    whole = sd3_files.load(file, CPU, models=MODELS)
    assert torch.equal(drawn(whole), drawn(sd3.ours))
    assert (whole.notices, whole.defaults.size) == ((), (64, 64))


def test_the_first_projection_may_be_lacking(tmp_path: Path) -> None:
    tensors = random_tensors(BARE)
    single_file.write(tmp_path / "bare.safetensors", BARE, tensors)
    letters().save(str(tmp_path / "tokenizer.json"))
    bare = sd3_files.load(tmp_path / "bare.safetensors", CPU, models=MODELS)
    tensors["text_encoder"]["projection.weight"] = torch.eye(24)
    single_file.write(tmp_path / "whole.safetensors", SD3, tensors)
    assert torch.equal(drawn(bare), drawn(sd3_files.load(tmp_path / "whole.safetensors", CPU, models=MODELS)))


def test_one_network_at_a_time_draws_the_same(sd3: Pair) -> None:
    frugal = sd3.read(offload=True)
    assert torch.equal(drawn(frugal), drawn(sd3.ours))
    assert len(frugal.shelf._held) == 1


def test_an_encoder_has_gone_when_the_next_one_comes(sd3: Pair) -> None:
    frugal, seen = sd3.read(offload=True), dict[str, ref[Any]]()

    def loaded(device: torch.device, *, name: str, load: Any) -> Any:
        assert [known for known, one in seen.items() if one() is not None] == []
        network = load(device)
        seen[name] = ref(network)
        return network

    for name, load in frugal.shelf.loaders.items():
        frugal.shelf.loaders[name] = partial(loaded, name=name, load=load)
    frugal.plan(ORDER)
    assert list(seen) == ["text_encoder", "text_encoder_2", "text_encoder_3"]


def test_half_precision_draws_nearly_the_same(sd35: Pair) -> None:
    half = drawn(sd35.read(dtype="bfloat16"))
    assert half.dtype == torch.float32
    assert decibel(half, drawn(sd35.ours)) > 15


def test_versions_have_their_own_defaults(sd3: Pair, sd35: Pair) -> None:
    assert (sd3.ours.defaults.guidance, sd35.ours.defaults.guidance) == (7.0, 4.5)
    assert sd35.ours.notices == ()
    found = detect.identify(sd35.folder, models=MODELS)
    turbo, notices = sd3_files._defaults(replace(found, metadata={"modelspec.title": "Large Turbo"}))
    assert (turbo.steps, turbo.guidance, notices) == (4, 1.0, ())


def test_what_may_be_large_or_turbo_is_said(tmp_path: Path) -> None:
    folders.write(tmp_path / "model", LARGE, random_tensors(LARGE), extras=tokenizers(LARGE))
    (tmp_path / "model" / "tokenizer_3").mkdir()
    letters().save(str(tmp_path / "model" / "tokenizer_3" / "tokenizer.json"))
    large = sd3_files.load(tmp_path / "model", CPU, models=(LARGE,))
    assert (large.defaults.steps, large.defaults.guidance) == (28, 4.5)
    (said,) = large.plan(ORDER).notices
    assert said.startswith("model does not say whether it is Large or Large Turbo")
    assert "28 steps at guidance 4.5, unless asked otherwise; Turbo takes 4 steps at guidance 1" in said
    found = detect.identify(tmp_path / "model", models=(LARGE,))
    for title, steps in (("Stable Diffusion 3.5 Large", 28), ("Stable Diffusion 3.5 Large Turbo", 4)):
        usual, notices = sd3_files._defaults(replace(found, metadata={"modelspec.title": title}))
        assert (usual.steps, notices) == (steps, ())


def test_loras_come_and_go_by_the_prompt(sd3: Pair, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    layers = {  # as PEFT calls them: a fused layer of the original file, and one of the text's
        "transformer.transformer_blocks.0.attn.to_q": (16, 16),
        "transformer.transformer_blocks.1.attn.add_k_proj": (16, 16),
        "transformer.transformer_blocks.2.ff.net.0.proj": (16, 64),
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj": (16, 16),
    }
    tensors = {}
    for name, (inputs, outputs) in layers.items():
        tensors |= {f"{name}.lora_A.weight": draw(2, inputs), f"{name}.lora_B.weight": draw(outputs, 2)}
    save_file(tensors, tmp_path / "ink.safetensors")
    plain = sd3.read(loras=tmp_path)
    before = drawn(plain)
    inked = drawn(plain, replace(ORDER, prompt="a red fox <lora:ink:0.8>"))
    assert not torch.equal(inked, before)
    assert torch.equal(drawn(plain), before)
    expected = random_tensors(SD3)
    for name, (inputs, outputs) in layers.items():
        del inputs, outputs
        part, ours = {
            "to_q": ("transformer", "blocks.0.picture.attention.q.weight"),
            "add_k_proj": ("transformer", "blocks.1.text.attention.k.weight"),
            "proj": ("transformer", "blocks.2.picture.inner.weight"),
            "q_proj": ("text_encoder_2", "blocks.0.q.weight"),
        }[name.rpartition(".")[2]]
        expected[part][ours] += 0.8 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    folders.write(tmp_path / "merged", SD3, expected)
    (tmp_path / "merged" / "tokenizer_3").mkdir()
    letters().save(str(tmp_path / "merged" / "tokenizer_3" / "tokenizer.json"))
    merged = sd3_files.load(tmp_path / "merged", CPU, models=MODELS)
    assert decibel(inked, drawn(merged)) > 80


def test_a_second_pass_and_other_sizes(sd3: Pair) -> None:
    plan = sd3.ours.plan(replace(ORDER, enlarge=1.5, size=(60, 50)))
    assert [stage.name for stage in plan.stages] == [
        "diffusion", "decoder", "resize", "encoder", "second diffusion", "decoder",
    ]  # fmt: skip
    assert plan.notices == ("50x60 was rounded to 48x64: sides are multiples of 16",)
    assert drawn(sd3.ours, replace(ORDER, enlarge=1.5)).shape == (1, 3, 96, 64)


def test_words_that_change_and_weights(sd3: Pair) -> None:
    changed = drawn(sd3.ours, replace(ORDER, prompt="a [red:blue:0.5] fox"))
    assert decibel(changed, drawn(sd3.ours)) < 60
    late = drawn(sd3.ours, replace(ORDER, prompt="a [red:blue:6] fox"))
    assert torch.equal(late, drawn(sd3.ours))
    weighed = replace(ORDER, prompt="a (red:1.4) fox")
    assert decibel(drawn(sd3.ours, weighed), drawn(sd3.ours)) < 60
    assert sd3.ours.plan(weighed).warnings == (
        "T5 hears plain text: the weights in the prompt are left out there",
    )
    long = sd3.ours.plan(replace(ORDER, prompt=" ".join(["fox"] * 100)))
    assert "the prompt has 100 of 150 tokens, 2 chunks" in long.notices
    assert "T5 does not hear the last 145 tokens" in " ".join(long.warnings)


@pytest.mark.parametrize(
    "words",
    [
        {"prompt": "a cat AND {}"},
        {"prompt": "a [cat:{}:0.5]"},
        {"prompt": "a [cat|{}]"},
        {"negative_prompt": "a [dog:{}:0.5]"},
        {"prompt": "a [cat:{}:1.5]", "enlarge": 1.5},  # said in the second pass only
    ],
)
def test_what_t5_does_not_hear_is_said_of_every_line(sd3: Pair, words: dict[str, Any]) -> None:
    long = " ".join(["fox"] * 100)
    (name,) = {"prompt", "negative_prompt"} & set(words)
    order = replace(ORDER, **words | {name: words[name].format(long)})
    (said,) = sd3.ours.plan(order).warnings
    assert said.startswith("T5 does not hear the last 14")
    assert f"tokens of the {name.replace('_', ' ')};" in said
    assert sd3.ours.plan(replace(order, **{name: words[name].format("fox")})).warnings == ()


def test_several_prompts_are_composed(sd3: Pair) -> None:
    same = drawn(sd3.ours, replace(ORDER, prompt="a red fox:0.5 AND a red fox:0.5"))
    assert decibel(drawn(sd3.ours), same) > 80
    long = " ".join(["fox"] * 100)  # two chunks, while the other prompts have one
    assert (
        decibel(drawn(sd3.ours), drawn(sd3.ours, replace(ORDER, prompt=f"a red fox:1.0 AND {long}:0.0"))) > 80
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": "flat"}, "no named styles"),
        ({"grid": "trailing"}, 'no grid "trailing" for this model'),
        ({"tiling": True}, "knows no tiling"),
        ({"guidance": 0.5}, "1 or more, got 0.5"),
        ({"image": pixels(), "strength": 0.0}, "leaves none to draw"),
        ({"prompt": "a cat AND a dog", "guidance": 1.0}, "need guidance"),
    ],
)
def test_what_it_cannot_do(sd3: Pair, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        sd3.ours.plan(replace(ORDER, **change))


def test_what_is_broken_is_said(sd3: Pair, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="shift_terminal"):
        sd3_files._shift({"shift_terminal": 0.1})
    file = tmp_path / "model.safetensors"
    single_file.write(file, SD3, random_tensors(SD3))
    held = load_file(file)
    save_file({name: t for name, t in held.items() if "clip_g" not in name}, file)
    with pytest.raises(WeightsError, match=r"resembles Tiny sd3 most.*text_encoder_2"):
        sd3_files.load(file, CPU, models=MODELS)
    config = sd3.folder / "transformer" / "config.json"
    said = config.read_text()
    config.write_text(json.dumps(json.loads(said) | {"num_attention_heads": 4}))
    try:
        with pytest.raises(WeightsError, match="num_attention_heads"):
            sd3.read()
    finally:
        config.write_text(said)
