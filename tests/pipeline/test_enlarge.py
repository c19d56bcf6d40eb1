"""Pictures made larger: no seams, what the file said is kept, nothing is overwritten."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from limner.cli import app
from limner.diffusion.samplers import Step
from limner.errors import EngineError, RequestError, WeightsError
from limner.families.base import Defaults, Order, Plan, Wishes
from limner.families.stages import ChangeStage
from limner.models.gan_upscaler import Compact, CompactConfig, RRDBNet, RRDBNetConfig
from limner.pipeline import enlarge
from limner.pipeline.enlarge import Enlarger, enlarge_file, in_tiles, load
from limner.pipeline.replay import read_record
from limner.pipeline.run import Pipeline
from limner.util.images import pixels_from_images
from limner.util.rng import NoiseSource
from limner.weights.keymap import to_theirs
from limner.weights.maps import gan_upscaler as maps

SMALL = CompactConfig(features=8, depth=2, factor=2)
DEEP = RRDBNetConfig(blocks=4, features=16, growth=8)  # looks 64 pixels around


def weighed(network: Any) -> Any:
    """Weights from which signals neither die nor explode."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim == 4 else 0.1
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    return network.eval().requires_grad_(False)


@pytest.fixture
def gan(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "2x-small.safetensors"
    path.parent.mkdir()
    save_file(to_theirs(maps.compact(SMALL), weighed(Compact(SMALL)).state_dict()), path)
    return path


def picture(width: int = 20, height: int = 12, mode: str = "RGB") -> Image.Image:
    levels = torch.randint(0, 256, (height, width, len(mode)), generator=torch.Generator().manual_seed(2))
    return Image.fromarray(levels.to(torch.uint8).numpy(), mode)


def smooth(size: tuple[int, int]) -> Tensor:
    """Something like a photograph: large shapes and a little grain."""
    generator = torch.Generator().manual_seed(3)
    shapes = torch.rand(1, 3, size[0] // 12, size[1] // 12, generator=generator) * 2 - 1
    large = torch.nn.functional.interpolate(shapes, size, mode="bicubic")
    return (large + 0.05 * torch.randn(1, 3, *size, generator=generator)).clamp(-1, 1)


def opened(path: Path | str) -> Any:
    with Image.open(path) as image:
        image.load()
        return image


def decibel(one: Tensor, other: Tensor) -> float:
    """PSNR over the range that `other` covers."""
    span = other.amax() - other.amin()
    return float(10 * torch.log10(span**2 / (one - other).square().mean()))


@pytest.mark.parametrize("config", [SMALL, RRDBNetConfig(blocks=1, features=8, growth=4, fold=2)])
@torch.inference_mode()
def test_tiles_are_the_whole_picture(config: Any) -> None:
    network = weighed(Compact(config) if isinstance(config, CompactConfig) else RRDBNet(config))
    assert config.radius <= enlarge.EXACT
    pixels = smooth((150, 205))
    whole = network(pixels)
    shape = {"factor": config.factor, "fold": config.fold, "radius": config.radius}
    found = in_tiles(network, pixels, **shape, tile=130)
    assert found.shape == whole.shape
    assert (found - whole).abs().max() < 1e-5 * whole.abs().max()


@torch.inference_mode()
def test_of_networks_that_look_far_the_seams_are_not_seen() -> None:
    """Random blocks hardly look beyond their next pixels; three times as strong they do: neighbours that do
    not overlap then differ visibly."""
    network = weighed(RRDBNet(DEEP))
    for parameter in network.blocks.parameters():
        parameter *= 3 if parameter.ndim == 4 else 1
    pixels = smooth((96, 168))
    whole = network(pixels)
    found = in_tiles(network, pixels, factor=4, fold=1, radius=DEEP.radius, tile=96)
    assert not torch.equal(found, whole)
    assert decibel(found, whole) > 80
    assert (found - whole).abs().max() < (whole.amax() - whole.amin()) / 255  # less than a level of 8 bits
    hard = torch.cat([network(pixels[..., :84]), network(pixels[..., 84:])], 3)
    assert decibel(hard, whole) < 32


def test_the_built_in_upscaler_is_the_default(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler = load()
    assert (upscaler.name, upscaler.factor) == ("mini", 4)
    own = load(tiny)  # a folder of one's own training
    assert own.factor == 4
    larger = enlarge.enlarge(picture(), own)
    assert (larger.mode, larger.size) == ("RGB", (80, 48))
    assert load(tiny / "upscaler.safetensors").run(picture()) == larger


@pytest.mark.parametrize(
    "scale, size, passes",
    [
        *((None, (40, 24), 1), (2.0, (40, 24), 1), (1.0, (20, 12), 1)),
        *((1.5, (30, 18), 1), (3.0, (60, 36), 2), (8.0, (160, 96), 3)),
    ],
)
def test_any_scale(gan: Path, scale: float | None, size: tuple[int, int], passes: int) -> None:
    upscaler = load(gan)
    seen: list[tuple[int, int]] = []

    def run(image: Image.Image) -> Image.Image:
        seen.append(image.size)
        return upscaler.run(image)

    assert enlarge.enlarge(picture(), replace(upscaler, run=run), scale).size == size
    assert seen == [(20 * 2**index, 12 * 2**index) for index in range(passes)]


def test_what_is_drawn_is_the_networks(gan: Path) -> None:
    image = picture()
    expected = weighed(Compact(SMALL))(pixels_from_images([image]))
    found = pixels_from_images([load(gan).run(image)])
    assert (found - expected.clamp(-1, 1)).abs().max() < 1.01 / 255


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 70)])
def test_any_size(gan: Path, size: tuple[int, int]) -> None:
    assert enlarge.enlarge(picture(*size), load(gan), 2.0).size == (2 * size[0], 2 * size[1])


def test_transparency_is_kept(gan: Path, tmp_path: Path) -> None:
    image = picture(mode="RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "cut.webp", lossless=True, exact=True)
    larger = opened(enlarge_file(tmp_path / "cut.webp", load(gan), tmp_path / "out"))
    assert (larger.mode, larger.size) == ("RGBA", (40, 24))
    assert larger.convert("RGB").tobytes() == load(gan).run(image.convert("RGB")).tobytes()
    expected = image.getchannel("A").resize((40, 24), Image.Resampling.LANCZOS)
    assert larger.getchannel("A").tobytes() == expected.tobytes()


def test_what_the_file_said_goes_along(gan: Path, tmp_path: Path) -> None:
    said = PngInfo()
    said.add_text("parameters", "a fox, Ölfarbe\nSteps: 4")
    said.add_text("limner", '{"version": "0"}')
    colours = b"an ICC profile"
    picture().save(tmp_path / "fox.png", pnginfo=said, icc_profile=colours)
    path = enlarge_file(tmp_path / "fox.png", load(gan), tmp_path)
    assert path == tmp_path / "fox-x2.png"
    larger = opened(path)
    assert larger.text == {
        "parameters": "a fox, Ölfarbe\nSteps: 4",
        "limner-source": '{"version": "0"}',
        "postprocessing": "Postprocess upscale by: 2, Postprocess upscaler: 2x-small",
    }
    assert larger.info["icc_profile"] == colours
    with pytest.raises(RequestError, match="carries no Limner request"):
        read_record(path)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
def test_infotext_in_exif_is_found_and_sides_are_turned(
    gan: Path, tmp_path: Path, kind: str, order: str
) -> None:
    exif = Image.Exif()
    exif[enlarge.ORIENTATION] = 6  # lies on its side
    exif[0x010E] = "a description"
    exif.get_ifd(enlarge.EXIF)[enlarge.USER_COMMENT] = b"UNICODE\0" + "a fox\nSteps: 4".encode(order)
    picture().save(tmp_path / f"fox.{kind}", exif=exif)
    larger = opened(enlarge_file(tmp_path / f"fox.{kind}", load(gan), tmp_path))
    assert larger.size == (24, 40)
    assert larger.text["parameters"] == "a fox\nSteps: 4"
    assert larger.getexif()[0x010E] == "a description"
    assert enlarge.ORIENTATION not in larger.getexif()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_a_broken_exif_block_is_left_behind(gan: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "fox.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x01")
    larger = opened(enlarge_file(tmp_path / "fox.jpg", load(gan), tmp_path))
    assert "parameters" not in larger.text


def test_files_are_never_overwritten(gan: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "fox.png")
    names = [enlarge_file(tmp_path / "fox.png", load(gan), tmp_path, 3.0).name for _ in range(3)]
    assert names == ["fox-x3.png", "fox-x3-2.png", "fox-x3-3.png"]
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot save pictures"):
        enlarge_file(tmp_path / "fox.png", load(gan), tmp_path / "file")


def test_what_cannot_be_is_said(gan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler = load(gan)
    for scale in (0.5, 17.0, float("nan")):
        with pytest.raises(RequestError, match="scale lies between 1 and 16"):
            enlarge.enlarge(picture(), upscaler, scale)
    monkeypatch.setattr(enlarge, "LARGEST", 900)
    with pytest.raises(RequestError, match="20x12 would become 960 pixels"):
        enlarge.enlarge(picture(), upscaler)
    monkeypatch.undo()

    def full(image: Image.Image) -> Image.Image:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(EngineError, match="take smaller tiles"):
        enlarge.enlarge(picture(), Enlarger(name="full", factor=4, run=full))
    with pytest.raises(RequestError, match='no upscaler "4x-nothing", nor a file or folder of that name'):
        load("4x-nothing")
    with pytest.raises(RequestError, match='no type "half"'):
        load(gan, dtype="half")
    with pytest.raises(RequestError, match="64 pixels wide"):
        load(gan, tile=8)
    with pytest.raises(RequestError, match="knows no prompt"):
        load(gan, prompt="a fox")
    (tmp_path / "up.pth").write_bytes(b"PK\3\4")
    with pytest.raises(WeightsError, match=r"limner convert up\.pth"):
        load(tmp_path / "up.pth")
    save_file({"odd": torch.zeros(2)}, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match=r"none of the networks .*; an upscaler was looked for"):
        load(tmp_path / "odd.safetensors")


def test_half_precision_is_nearly_the_same(gan: Path) -> None:
    one, other = (load(gan, dtype=kind).run(picture()) for kind in ("float32", "bfloat16"))
    assert decibel(pixels_from_images([other]), pixels_from_images([one])) > 35


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["upscale", *map(str, words)])


def test_a_pipeline_draws_the_picture_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawer:
        defaults = Defaults(steps=2, guidance=1.0, sampler="ddim", size=(64, 64))
        fingerprint = "test"

        def plan(self, order: Order) -> Plan:
            assert (order.prompt, order.size) == ("a fox", (48, 80))
            image = order.image
            assert image is not None
            larger = ChangeStage(
                change=lambda x: x.repeat_interleave(4, 2).repeat_interleave(4, 3), name="x4"
            )

            class Begin:
                name, steps = "begin", 1

                def run(self, x: Tensor | None, noise: NoiseSource) -> Iterator[Step]:
                    yield Step(0, 1, image, image)

                def look(self, x0: Tensor) -> Tensor:
                    return x0

            return Plan(stages=(Begin(), larger), notices=(), warnings=())

    monkeypatch.setattr(enlarge, "X4", Drawer)
    loaded: list[tuple[str, str | None]] = []

    def pipeline(name: str, device: str, wishes: Wishes) -> Pipeline:
        loaded.append((name, wishes.dtype))
        return Pipeline(Drawer(), name)

    monkeypatch.setattr(enlarge, "load_pipeline", pipeline)
    upscaler = load("x4", prompt="a fox", dtype="bfloat16")
    expected = picture().resize((80, 48), Image.Resampling.NEAREST)
    assert upscaler.run(picture()).tobytes() == expected.tobytes()
    assert (upscaler.name, upscaler.factor, loaded) == (
        "stable-diffusion-x4-upscaler",
        4,
        [(enlarge.PUBLISHED, "bfloat16")],
    )
    assert upscaler.warnings == ()
    network, changes = load("x4", prompt="a [red|blue] fox <lora:mine:1>").warnings
    assert "<lora:mine:1>" in network
    assert "changes on the way" in changes
    with pytest.raises(RequestError, match="knows no tile"):
        load("x4", tile=256)
    monkeypatch.setattr(enlarge, "X4", Compact)
    with pytest.raises(WeightsError, match="model to draw with, and no upscaler"):
        load("someone/else")


def test_pictures_are_drawn_and_made_larger(tiny: Path, gan: Path, tmp_path: Path) -> None:
    words = ["imagine", "a cat", "--model", tiny, "--steps", 1, "--count", 2, "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, [*map(str, words), "--upscale", str(gan), "--json"])
    told = json.loads(done.stdout)
    names = [Path(file).name for file in told["upscaled"]]
    assert names == [f"{Path(file).stem}-x2.png" for file in told["files"]]
    assert opened(told["upscaled"][1]).size == (128, 128)
    assert opened(told["upscaled"][1]).text["parameters"] == opened(told["files"][1]).text["parameters"]
    assert told["grid"].endswith("-grid.png")


def test_the_command_goes_on_after_what_fails(gan: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg")
    picture().save(tmp_path / "b.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    files = [tmp_path / name for name in ("a.jpg", "broken.png", "nothing.png", "b.png")]
    done = run(*files, "--model", gan, "--scale", 3, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stdout.split() == [str(tmp_path / "out" / name) for name in ("a-x3.png", "b-x3.png")]
    assert "there is no picture" in done.stderr
    assert "broken.png is not a whole picture" in done.stderr
    assert "2 pictures by 2x-small, 2 failed, " in done.stderr
    again = run(tmp_path / "a.jpg", "--model", gan, "--out", tmp_path / "out", "--quiet")
    assert (again.exit_code, again.stderr) == (0, "")
    assert opened(again.stdout.strip()).size == (40, 24)


def test_a_scale_that_cannot_be_is_refused_once_before_anything_is_loaded(tmp_path: Path) -> None:
    done = run(tmp_path / "a.png", tmp_path / "b.png", "--scale", 17, "--model", "nothing")
    assert isinstance(done.exception, RequestError)
    assert str(done.exception) == "scale lies between 1 and 16, got 17"
    assert done.stderr == ""
