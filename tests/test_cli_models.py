"""limner imagine, inspect and convert with published models, on small ones: what they draw and refuse."""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from limner.cli import main
from limner.families import FAMILIES, sd_files
from limner.models import tiny_vae
from limner.models.controlnet import ControlNetConfig
from limner.weights import convert, detect, files, folders, inspect, single_file, standalone
from limner.weights.convert import tokenizers
from limner.weights.keymap import to_theirs

_spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).parent / "weights" / "tiny.py")
assert _spec is not None
assert _spec.loader is not None
small: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

KINDS = (
    standalone.control("a small ControlNet", ControlNetConfig(unet=small.UNET, channels=(4, 8))),
    standalone.control(
        "another ControlNet", ControlNetConfig(unet=replace(small.UNET, context=32), channels=(4, 8))
    ),
    standalone.autoencoder("a small autoencoder", small.VAE),
    standalone.small_autoencoder("TAESD", tiny_vae.TinyVAEConfig(width=8, blocks=(1, 1))),
)
Typed = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model both ways, networks alone, a LoRA, a learned word, pictures, and what is none."""
    at = tmp_path_factory.mktemp("models")
    tensors = {
        part: {name: (1 if ".text." in name else 0.1) * tensor for name, tensor in held.items()}
        for part, held in small.random_tensors().items()  # small ones hardly listen otherwise
    }
    folders.write(at / "model", small.MODEL, tensors, extras=tokenizers(small.MODEL))
    single_file.write(at / "model.safetensors", small.MODEL, tensors)
    generator = torch.Generator().manual_seed(0)
    for name, kind in zip(("control", "other", "vae", "taesd"), KINDS, strict=True):
        held = {
            key: 0.1 * torch.randn(tensor.shape, generator=generator)
            for key, tensor in files.empty(kind.build).state_dict().items()
        }
        save_file(to_theirs(kind.keys[0], held), at / f"{name}.safetensors")
    for name in ("loras", "words", "bad-words"):
        (at / name).mkdir()
    layer = "lora_unet_down_blocks_0_attentions_0_proj_out"
    save_file(
        {
            f"{layer}.lora_down.weight": torch.randn(2, 16, 1, 1, generator=generator),
            f"{layer}.lora_up.weight": torch.randn(16, 2, 1, 1, generator=generator),
        },
        at / "loras" / "ink.safetensors",
    )
    save_file({"emb_params": 5 * torch.randn(2, 24, generator=generator)}, at / "words" / "mydog.safetensors")
    save_file({"a.b": torch.zeros(2), "c": torch.zeros(2)}, at / "bad-words" / "odd.safetensors")
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(at / "a.png")
    Image.linear_gradient("L").resize((32, 32)).point(lambda level: 255 * (level > 127)).save(at / "mask.png")
    Image.new("L", (32, 32)).save(at / "black.png")
    (at / "text.png").write_text("no picture")
    (at / "bad.ckpt").write_bytes(b"\x80\x02}q\x00.")
    (at / "cut.safetensors").write_bytes((at / "vae.safetensors").read_bytes()[:999])
    (at / "empty").mkdir()
    return at


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Run `main` as a shell would, knowing the small models: (exit code, standard output, standard error)."""
    family = replace(FAMILIES["sd"], load=partial(sd_files.load, models=small.MODELS))
    monkeypatch.setitem(FAMILIES, "sd", family)
    monkeypatch.setattr("limner.weights.detect.identify", partial(detect.identify, models=small.MODELS))
    network = partial(standalone.identify_network, kinds=KINDS)
    monkeypatch.setattr(sd_files, "identify_network", network)
    look = partial(inspect.inspect, models=small.MODELS, kinds=KINDS)
    monkeypatch.setattr("limner.weights.inspect.inspect", look)
    write = partial(convert.convert, models=small.MODELS)
    monkeypatch.setattr("limner.weights.convert.convert", write)

    def call(*words: object) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["limner", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


def drawn(typed: Typed, made: Path, out: Path, *words: object) -> tuple[Image.Image, str]:
    """The picture, and what was said."""
    words = tuple(str(word).replace("MADE", str(made)) for word in words)
    if "--model" not in words:
        words += ("--model", str(made / "model"))
    base = ("--out", out, "--steps", 2, "--count", 1, "--seed", 1, "--dtype", "float32")
    code, printed, err = typed("imagine", *words, *base)
    assert code == 0, err
    (path,) = printed.splitlines()
    with Image.open(path) as image:
        return image.copy(), err


SIZE = ("--size", "32")


def test_folder_and_file_draw_the_same(typed: Typed, made: Path, tmp_path: Path) -> None:
    one, _ = drawn(typed, made, tmp_path, "a fox", *SIZE)
    other, _ = drawn(typed, made, tmp_path, "a fox", *SIZE, "--model", made / "model.safetensors")
    assert one.size == (32, 32)
    assert one.tobytes() == other.tobytes()
    odd, said = drawn(typed, made, tmp_path, "a fox", "--size", "33x31")
    assert odd.size == (33, 31)
    assert "33x31 was rounded to" in said


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (("--image", "MADE/a.png", "--strength", "0.6"), (32, 32)),
        (("--image", "MADE/a.png", "--mask", "MADE/mask.png", "--feather", "2"), (32, 32)),
        ((*SIZE, "--control", "MADE/a.png=MADE/control.safetensors"), (32, 32)),
        ((*SIZE, "--control", "MADE/a.png=MADE/control.safetensors:1.5"), (32, 32)),
        ((*SIZE, "--tiling"), (32, 32)),
        ((*SIZE, "--enlarge", "1.5", "--enlarge-strength", "0.5"), (48, 48)),
        ((*SIZE, "--refiner", "MADE/model.safetensors", "--refine-from", "0.5", "--guidance", "2"), (32, 32)),
        ((*SIZE, "--clip-skip", "2"), (32, 32)),
        ((*SIZE, "--rescale", "1", "--guidance", "20"), (32, 32)),
        ((*SIZE, "--steps-at", "trailing"), (32, 32)),
        ((*SIZE, "--sampler", "euler_ancestral"), (32, 32)),
        ((*SIZE, "--negative", "a dog"), (32, 32)),
        ((*SIZE, "--prediction", "v"), (32, 32)),
    ],
    ids=lambda value: " ".join(word for word in value if str(word).startswith("--")) if value else "",
)
def test_wishes_change_the_picture(
    typed: Typed, made: Path, tmp_path: Path, words: tuple[str, ...], size: tuple[int, int]
) -> None:
    plain, _ = drawn(typed, made, tmp_path, "a fox", *SIZE)
    image, _ = drawn(typed, made, tmp_path, "a fox", *words)
    assert image.size == size
    if "--refiner" not in words:  # the same model finishes its own picture
        assert image.tobytes() != plain.tobytes()


def test_what_the_mask_keeps_is_kept(typed: Typed, made: Path, tmp_path: Path) -> None:
    words = ("a fox", "--image", "MADE/a.png", "--mask", "MADE/mask.png", "--feather", "0")
    image, _ = drawn(typed, made, tmp_path, *words)
    with Image.open(made / "a.png") as before, Image.open(made / "mask.png") as mask:
        for at in ((x, y) for x in range(32) for y in range(32) if not mask.getpixel((x, y))):
            assert image.getpixel(at) == before.getpixel(at)
    cut, _ = drawn(typed, made, tmp_path, *words, "--transparent")
    assert cut.mode == "RGBA"
    assert cut.getchannel("A").getextrema() == (0, 255)


def test_loras_and_learned_words(typed: Typed, made: Path, tmp_path: Path) -> None:
    plain, _ = drawn(typed, made, tmp_path, "a fox", *SIZE)
    inked, _ = drawn(typed, made, tmp_path, "a fox <lora:ink:1>", *SIZE, "--loras", made / "loras")
    assert inked.tobytes() != plain.tobytes()
    learned, _ = drawn(typed, made, tmp_path, "a mydog", *SIZE, "--embeddings", made / "words")
    unlearned, _ = drawn(typed, made, tmp_path, "a mydog", *SIZE)
    assert learned.tobytes() != unlearned.tobytes()


def test_emphasis_and_json(typed: Typed, made: Path, tmp_path: Path) -> None:
    pictures = {
        drawn(typed, made, tmp_path, "a (fox:1.4)", *SIZE, "--emphasis", kind)[0].tobytes()
        for kind in ("mean", "plain", "comfy", "ignore")
    }
    assert len(pictures) == 4
    code, out, err = typed(
        *("imagine", "a fox", "--model", made / "model", "--out", tmp_path, "--steps", 1, "--count", 1),
        *(*SIZE, "--json"),
    )
    assert (code, err) == (0, "")
    assert Path(json.loads(out)["files"][0]).is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "MADE/nowhere"), "there is no model"),
        (("--model", "MADE/empty"), "holds no model"),
        (("--model", "MADE/bad.ckpt"), "is a pickle"),
        (("--model", "MADE/cut.safetensors"), "not a whole safetensors file"),
        (("--model", "MADE/vae.safetensors"), "is no model that Limner knows"),
        (("--image", "MADE/nowhere.png"), "there is no picture"),
        (("--image", "MADE/text.png"), "is not a whole picture"),
        (("--image", "MADE/empty"), "empty is a folder"),
        (("--image", "MADE/a.png", "--strength", "0"), "strength is a number"),
        (("--image", "MADE/a.png", "--strength", "nan"), "strength is a number"),
        (("--image", "MADE/a.png", "--strength", "0.1"), "leaves none to draw"),
        (("--mask", "MADE/mask.png"), "a mask needs the image"),
        (("--image", "MADE/a.png", "--mask", "MADE/black.png"), "the mask marks nothing"),
        (("--image", "MADE/a.png", "--mask", "MADE/text.png"), "is not a whole picture"),
        (("--feather", "999"), "feather is a whole number"),
        (("--transparent",), "give a mask"),
        (("--extend", "64"), "give the image"),
        (("--image", "MADE/a.png", "--extend", "1,2"), "sides are LEFT,TOP,RIGHT,BOTTOM"),
        (("--control", "MADE/a.png"), "PICTURE=NETWORK"),
        (("--control", "MADE/nowhere.png=MADE/control.safetensors"), "there is no picture"),
        (("--control", "MADE/a.png=MADE/nowhere"), "there are no weights at"),
        (("--control", "MADE/a.png="), "needs the file or folder"),
        (("--control", "MADE/a.png=MADE/control.safetensors:9"), "weight is a number from 0 to 2"),
        (("--control", "MADE/a.png=MADE/vae.safetensors"), "no control network"),
        (("--control", "MADE/a.png=MADE/other.safetensors"), "made for another model"),
        (("--enlarge", "9"), "enlarge is a number"),
        (("--enlarge", "1.5", "--enlarge-strength", "0.01"), "leaves none to draw"),
        (("--refiner", "MADE/nowhere", "--refine-from", "0.5"), "there are no weights at"),
        (("--refiner", "MADE/vae.safetensors", "--refine-from", "0.5"), "is no model that Limner knows"),
        (("--refiner", "MADE/model", "--refine-from", "0"), "refine_from 0 leaves one of the models none"),
        (("--refiner", "MADE/model", "--image", "MADE/a.png"), "pictures drawn from noise"),
        (("--refine-from", "2"), "refine_from is a number"),
        (("--clip-skip", "0"), "clip_skip is a whole number"),
        (("--clip-skip", "9"), "clip-skip 9"),
        (("--emphasis", "loud"), "loud"),
        (("--rescale", "2"), "rescale is a number"),
        (("--loras", "MADE/nowhere"), "there is no folder"),
        (("--embeddings", "MADE/nowhere"), "there is no folder"),
        (("--preview-by", "MADE/nowhere"), "there are no weights at"),
        (("--preview-by", "MADE/vae.safetensors"), "no TAESD"),
        (("--prediction", "x0"), "prediction is eps or v"),
        (("--variant", "fp16"), 'the variant "fp16"'),
        (("--dtype", "float61"), 'did you mean "float16"'),
        (("--device", "tpu9"), "unknown device"),
        (("--steps-at", "carras"), 'did you mean "karras"'),
        (("--sampler", "eulr"), 'did you mean "euler"'),
        (("--size", "5"), "is a whole number from 16"),
        (("--guidance", "0.5"), "guidance of this model is 1 or more"),
        (("--style", "flat"), "no named styles"),
        (("--seed", "-1"), "seed is a whole number"),
        (("--count", "0"), "count is a whole number"),
        (("--out", "MADE/text.png"), "cannot save pictures"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wishes_that_cannot_be_met(
    typed: Typed, made: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    words = tuple(word.replace("MADE", str(made)) for word in words)
    usual = {"--model": str(made / "model"), "--out": str(tmp_path / "out"), "--steps": "2", "--size": "32"}
    usual["--count"] = "1"
    told = [part for option, value in usual.items() if option not in words for part in (option, value)]
    before = sorted(made.rglob("*"))
    code, out, err = typed(
        "imagine", "a fox", *words, *told, *(("--count", 1) if "--count" not in words else ())
    )
    assert (code, out) == (2, ""), err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert sorted(made.rglob("*")) == before


@pytest.mark.parametrize("prompt", ["a fox <lora:inc:1>", "a fox <lora:ink"])
def test_loras_that_are_not_there(typed: Typed, made: Path, tmp_path: Path, prompt: str) -> None:
    code, out, err = typed(
        *("imagine", prompt, "--model", made / "model", "--loras", made / "loras", "--steps", 1),
        *(*SIZE, "--count", 1, "--out", tmp_path / "out"),
    )
    if prompt.endswith(">"):
        assert (code, out) == (2, "")
        assert 'did you mean "ink"' in err
        assert not (tmp_path / "out").exists()
    else:  # an unfinished one is text like any other
        assert code == 0


def test_inspect(typed: Typed, made: Path) -> None:
    for name, what in (
        ("model", "Tiny Diffusion, a diffusers folder"),
        ("model.safetensors", "Tiny Diffusion, a single file"),
        ("control.safetensors", "a small ControlNet"),
        ("taesd.safetensors", "TAESD"),
        ("loras/ink.safetensors", "a LoRA"),
        ("words/mydog.safetensors", "a textual-inversion embedding"),
    ):
        code, out, err = typed("inspect", made / name)
        assert (code, err) == (0, "")
        assert out.splitlines()[0] == what
        assert "parameters in" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "there are no weights at"),
        ("empty", "there are: no files"),
        ("bad.ckpt", "is a pickle"),
        ("cut.safetensors", "not a whole safetensors file"),
        ("text.png", "is no safetensors file"),
        ("a.png", "is no safetensors file"),
        ("bad-words/odd.safetensors", "resembles"),
    ],
)
def test_what_cannot_be_inspected(typed: Typed, made: Path, name: str, message: str) -> None:
    code, out, err = typed("inspect", made / name)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_convert_there_and_back(typed: Typed, made: Path, tmp_path: Path) -> None:
    code, out, err = typed("convert", made / "model", "--to", "single", "--out", tmp_path / "one.safetensors")
    assert (code, out, err) == (0, f"{tmp_path / 'one.safetensors'}\n", "")
    code, out, _ = typed("convert", tmp_path / "one.safetensors", "--to", "folder", "--dtype", "float16")
    assert (code, out) == (0, f"{tmp_path / 'one-float16'}\n")
    half = load_file(tmp_path / "one-float16" / "vae" / "diffusion_pytorch_model.safetensors")
    whole = load_file(made / "model" / "vae" / "diffusion_pytorch_model.safetensors")
    assert half.keys() == whole.keys()
    assert all(torch.equal(half[name], whole[name].half()) for name in whole)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("nowhere", (), "there are no weights at"),
        ("empty", (), "model_index.json"),
        ("bad.ckpt", (), "cannot be converted"),
        ("cut.safetensors", (), "not a whole safetensors file"),
        ("vae.safetensors", (), "is no model that Limner knows"),
        ("model", ("--to", "zip"), "--to is folder or single"),
        ("model", ("--dtype", "int8"), "unknown type 'int8'"),
        ("model", ("--prediction", "x0"), "predicts eps or v"),
        ("model", ("--out", "MADE/a.png"), "exists already"),
        ("model", ("--to", "single", "--out", "MADE/a.png/x.safetensors"), "cannot write"),
        ("model", ("--to", "folder", "--out", "MADE/a.png/x"), "cannot write"),
    ],
)
def test_what_cannot_be_converted(
    typed: Typed, made: Path, tmp_path: Path, name: str, words: tuple[str, ...], message: str
) -> None:
    words = tuple(word.replace("MADE", str(made)) for word in words)
    before = sorted(made.rglob("*"))
    code, out, err = typed("convert", made / name, *words, *(() if words else ("--out", tmp_path / "x")))
    assert (code, out) == (2, ""), err
    assert message in err
    assert len(err.splitlines()) == 1
    assert sorted(made.rglob("*")) == before
    assert not list(tmp_path.iterdir())
