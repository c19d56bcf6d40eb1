"""Pictures made larger after they were drawn: `limner upscale`.

file -> its picture -> an upscaler, as often as it takes -> resized to the scale -> a PNG beside what it was

An upscaler is a network that sees tiles, or a whole pipeline of the x4 family, which draws by words besides.
Transparency is resized, not redrawn. What the file said goes along: texts such as infotext, EXIF, colours.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from limner.errors import EngineError, RequestError, WeightsError
from limner.families import mini, mini_files
from limner.families.base import TYPES, Wishes
from limner.families.once import heard_once
from limner.families.x4 import FACTOR, X4
from limner.models.gan_upscaler import Compact, RRDBNet
from limner.models.upscaler import Upscaler, UpscalerConfig
from limner.nn.tiles import tiled
from limner.pipeline.load import load as load_pipeline
from limner.pipeline.order import order_of
from limner.pipeline.picture import Picture
from limner.pipeline.postprocess import write_new
from limner.pipeline.request import Request
from limner.util.devices import pick_device
from limner.util.images import images_from_pixels, pixels_from_images
from limner.util.rng import NoiseSource
from limner.util.suggest import suggestion
from limner.weights import files, header, hub
from limner.weights.folders import INDEX
from limner.weights.standalone import identify_network

TILE = 256  # side of what a network sees at once, in pixels of the picture that it is given
EXACT = 40  # pixels that a network may look around for tiles to overlap so far that nothing differs
MARGIN, FADE = 16, 16  # what tiles drop, and then fade over, for networks that look farther
LARGEST = 2**28  # pixels of a picture on the way at most: 3 GB in float32
SCALES = (1.0, 16.0)  # least and most
SOURCE = "limner-source"  # text of the PNG: the request that drew the small picture
PUBLISHED = "stabilityai/stable-diffusion-x4-upscaler"  # what the name x4 stands for on the hub
ORIENTATION, EXIF, USER_COMMENT = 0x0112, 0x8769, 0x9286  # EXIF's own numbers

Network = Callable[[Tensor], Tensor]  # pixels b 3 h w -> b 3 (factor h) (factor w)


@dataclass(frozen=True, kw_only=True, slots=True)
class Enlarger:
    """Something that makes pictures larger."""

    name: str  # without its folder
    factor: int  # how many times larger
    run: Callable[[Image.Image], Image.Image]  # RGB to RGB
    warnings: tuple[str, ...] = ()  # what was asked for and will not be in the pictures


def load(
    model: str | Path = "mini",
    *,
    device: str = "auto",
    dtype: str | None = None,  # one of TYPES; None: float32, and for the x4 family as `Wishes` has it
    prompt: str = "",  # what the picture shows, for upscalers of the x4 family
    tile: int | None = None,  # side, in pixels; 64 at least; None: TILE, or for the x4 family all at once
) -> Enlarger:
    """An upscaler ready to work.

    `model` is "mini" for the built-in one, a file of a GAN upscaler or of an [upscale] run, a folder with
    such a run's upscaler.safetensors, a folder or hub id of the x4 family, or "x4" for the published one.
    Raises RequestError when there is none of that name and for a wish that it cannot meet, and WeightsError
    when it is something else.
    """
    name, path = str(model), Path(mini_files.FAMILY.folder or "") if model == "mini" else Path(model)
    if dtype is not None and dtype not in TYPES:
        raise RequestError(f'there is no type "{dtype}"{suggestion(dtype, TYPES)}')
    if tile is not None and tile < 64:
        raise RequestError(f"a tile is 64 pixels wide at least, got {tile}")
    if draws(model):
        if tile is not None:
            raise RequestError("the x4 family draws whole pictures, and knows no tile; leave it out")
        return _drawn(PUBLISHED if name == "x4" else name, device, dtype, prompt)
    if prompt:
        raise RequestError(
            f"{name} looks at the picture alone, and knows no prompt; leave it out, or take x4"
        )
    path = path / mini.UPSCALER if path.is_dir() else path
    if not path.is_file():
        nothing = f'there is no upscaler "{name}", nor a file or folder of that name'
        raise RequestError(f"{nothing}{suggestion(name, ['mini', 'x4'])}")
    header.refuse_pickle(path)
    at, kind = pick_device(device), TYPES[dtype or "float32"]
    network: Network
    if "network" in (told := header.read_metadata(path)):
        config = header.network_config(told, "Upscaler", UpscalerConfig, path)
        own = files.load(lambda: Upscaler(config), path, at).to(kind)
        network, factor, fold, radius = partial(_clean, own), config.factor, 1, config.depth + 2
    else:
        try:
            found = identify_network(path)
        except WeightsError as error:
            raise WeightsError(f"{error}; an upscaler was looked for") from None
        gan = found.load(device=at, dtype=kind)
        if not isinstance(gan, RRDBNet | Compact):
            raise WeightsError(f"{path} is {found.title}, and no upscaler")
        network, factor = gan, gan.config.factor
        fold, radius = gan.config.fold, gan.config.radius
    pieces = partial(in_tiles, network, factor=factor, fold=fold, radius=radius, tile=tile or TILE)

    def run(image: Image.Image) -> Image.Image:
        return images_from_pixels(pieces(pixels_from_images([image]).to(at, kind)))[0]

    return Enlarger(name=name if name == "mini" else path.stem, factor=factor, run=run)


def draws(model: str | Path) -> bool:
    """Whether an upscaler is of the x4 family, as far as its name says: these hear a prompt."""
    return model == "x4" or hub.is_id(str(model)) or (Path(model) / INDEX).is_file()


@torch.inference_mode()
def in_tiles(
    network: Network,
    pixels: Float[Tensor, "b 3 h w"],
    *,
    factor: int,
    fold: int,  # side of the squares of pixels that the network cannot divide
    radius: int,  # how many pixels away a pixel may matter to it
    tile: int = TILE,
) -> Float[Tensor, "b 3 H W"]:
    """`network` over tiles. Up to a radius of EXACT they overlap by as much as it looks around, and the
    result is that of the whole picture; beyond they drop MARGIN, and fade into each other over FADE."""
    margin, fade = (radius, 0) if radius <= min(EXACT, tile // 3) else (MARGIN, FADE)
    margin, fade = -(-margin // fold), -(-fade // fold)
    return tiled(
        network,
        pixels,
        tile=tile // fold,
        overlap=2 * margin + fade,
        margin=margin,
        into=fold,
        out=factor * fold,
    )


def check_scale(scale: float | None) -> None:
    """Raises RequestError for what is below 1 or above 16; None passes."""
    if scale is not None and not SCALES[0] <= scale <= SCALES[1]:
        raise RequestError(f"scale lies between {SCALES[0]:g} and {SCALES[1]:g}, got {scale:g}")


def enlarge(image: Image.Image, upscaler: Enlarger, scale: float | None = None) -> Image.Image:
    """An RGB or RGBA picture, `scale` times larger; None: as the upscaler does by itself.

    Raises RequestError for a scale below 1 or above 16, and for what would be too large.
    """
    scale = float(upscaler.factor) if scale is None else scale
    check_scale(scale)
    passes = 1
    while 1 < upscaler.factor**passes < scale:
        passes += 1
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    pixels = image.width * image.height * upscaler.factor ** (2 * passes)
    if pixels > LARGEST:
        raise RequestError(
            f"{image.width}x{image.height} would become {pixels:,} pixels on the way, and {LARGEST:,} are "
            "the most; ask for less, or cut the picture"
        )
    larger = image.convert("RGB")
    try:
        for _ in range(passes):
            larger = upscaler.run(larger)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise EngineError(
            f"memory ran out at {larger.width}x{larger.height}; take smaller tiles or, with the x4 family, "
            "smaller pictures"
        ) from None
    if larger.size != size:
        larger = larger.resize(size, Image.Resampling.LANCZOS)
    if image.mode == "RGBA":
        larger.putalpha(image.getchannel("A").resize(size, Image.Resampling.LANCZOS))
    return larger


def enlarge_file(path: Path, upscaler: Enlarger, folder: Path, scale: float | None = None) -> Path:
    """Write the picture in `path`, `scale` times larger, to `folder` as NAME-xSCALE.png, or the next free
    NAME-xSCALE-2.png; no file is ever overwritten. Returns where.

    Raises RequestError for what is no picture, and when the folder cannot be written to; else as `enlarge`.
    """
    larger = enlarge(Picture.open(path).image, upscaler, scale)
    scale = float(upscaler.factor) if scale is None else scale
    said = said_by(path)
    information = PngInfo()
    done = {"postprocessing": f"Postprocess upscale by: {scale:g}, Postprocess upscaler: {upscaler.name}"}
    for key, text in {**said.texts, **done}.items():
        information.add_text(SOURCE if key == "limner" else key, text)  # to replay that is to draw it small
    encoded = io.BytesIO()
    larger.save(encoded, "PNG", pnginfo=information, exif=said.exif, icc_profile=said.colours)
    stem = f"{path.stem}-x{scale:g}"
    names = chain([f"{stem}.png"], (f"{stem}-{number}.png" for number in count(2)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write_new(folder, names, encoded.getvalue())
    except OSError as error:
        raise RequestError(f"cannot save pictures in {folder}: {error.strerror}; choose another") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a picture's file says besides its pixels."""

    texts: Mapping[str, str]  # of a PNG; of another file the infotext in its EXIF, as "parameters"
    exif: bytes | None  # but for which side is up: the pixels are turned
    colours: bytes | None  # an ICC profile, where it is for colours as we write them


def said_by(path: Path) -> Said:
    """What the file of a picture says. Nothing, where that is broken."""
    with Image.open(path) as image:
        image.load()
        texts = {str(key): str(text) for key, text in getattr(image, "text", {}).items()}
        colours = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
        try:
            exif = image.getexif()
            exif.pop(ORIENTATION, None)
            if infotext := _comment(exif.get_ifd(EXIF).get(USER_COMMENT)):
                texts.setdefault("parameters", infotext)
            return Said(texts=texts, exif=exif.tobytes() if exif else None, colours=colours)
        except Exception:  # Pillow raises whatever a broken block brings about; the picture is whole
            return Said(texts=texts, exif=None, colours=colours)


def _comment(value: object) -> str | None:
    """The text of EXIF's UserComment: eight bytes name its encoding."""
    if not isinstance(value, bytes):
        return None
    if value.startswith(b"UNICODE\0"):
        order = "utf-16-be" if value[8:9] == b"\0" else "utf-16-le"
        return value[8:].decode(order, "replace").strip("\0 ")
    return value[8:].decode("ascii", "replace").strip("\0 ") if value.startswith(b"ASCII\0\0\0") else None


def _clean(network: Upscaler, pixels: Tensor) -> Tensor:
    """The built-in upscaler, told that nothing wore its input."""
    return torch.as_tensor(network(pixels, pixels.new_zeros(len(pixels))))


def _drawn(model: str, device: str, dtype: str | None, prompt: str) -> Enlarger:
    """A pipeline that draws a picture again, four times larger."""
    pipeline = load_pipeline(model, device=device, wishes=Wishes(dtype=dtype))
    upscaler = pipeline.model
    if not isinstance(upscaler, X4):
        raise WeightsError(f"{model} is a model to draw with, and no upscaler")

    @torch.inference_mode()
    def run(image: Image.Image) -> Image.Image:
        size = FACTOR * image.height, FACTOR * image.width
        request = Request(prompt=prompt, image=Picture(image), size=size, count=1, seed=0)
        order = order_of(pipeline.resolve(request))
        x: Tensor | None = None
        for stage in upscaler.plan(replace(order, image=pixels_from_images([image]))).stages:
            *_, last = stage.run(x, NoiseSource([0]))
            x = last.x
        assert x is not None  # a plan has stages
        return images_from_pixels(x)[0]

    warnings = heard_once("prompt", prompt, upscaler.defaults.steps)[1]
    return Enlarger(name=Path(model).name, factor=FACTOR, run=run, warnings=warnings)
