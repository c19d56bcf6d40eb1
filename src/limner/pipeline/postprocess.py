"""Pictures to files that say how they were made; `replay` reads them back.

Every PNG carries two texts: `parameters`, the "infotext" that AUTOMATIC1111's web UI and many other programs
read, and `limner`, the request as JSON, from which `limner replay` draws the picture again.
"""

import contextlib
import io
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner import __version__
from limner.errors import RequestError
from limner.pipeline.picture import Picture
from limner.pipeline.request import Request

SAMPLER_NAMES = {  # ours -> as infotext writes them
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
}

EMPHASES = {"mean": None, "plain": "No norm", "ignore": "None"}  # ours -> as infotext writes them


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What a file says about its picture."""

    request: Request  # with every choice made; one picture, or all of a grid
    weights: str  # short hash of the model's weights
    grid: bool = False  # whether the file shows all pictures of the request side by side
    version: str = __version__  # of Limner


def infotext(record: Record) -> str:
    """The prompt, the negative prompt if there is one, and a line of settings. Every choice must be made."""
    request = record.request
    assert request.size is not None  # made by the pipeline, as are the others
    assert request.sampler is not None
    settings = {
        "Steps": request.steps,
        "Sampler": SAMPLER_NAMES[request.sampler],
        "Schedule type": request.grid and request.grid.capitalize(),
        "CFG scale": request.guidance,
        "Seed": request.seed,
        "Size": f"{request.size[1]}x{request.size[0]}",
        "Model hash": record.weights,
        "Model": _name(request.model),
        "Style": request.style,
        "Denoising strength": _strength(request),
        "Clip skip": request.clip_skip,
        "Emphasis": EMPHASES.get(request.emphasis, request.emphasis),
        "CFG Rescale phi": request.rescale or None,
        "Variation of": _shown(request.vary),
        "Variation noise": request.vary_noise or None,
        "Blend with": _shown(request.blend),
        "Blend at": None if request.blend is None else request.blend_at,
        "Candidates": None if request.rerank == 1 else request.rerank,
        "Temperature": request.temperature,
        "Top K": request.top_k,
        "Top P": request.top_p,
        "Hires upscale": None if request.enlarge == 1 else request.enlarge,
        "Refiner": _name(request.refiner),
        "Refiner switch at": request.refine_from if request.refiner else None,
        "Tiling": "True" if request.tiling else None,
        "Batch size": request.count if record.grid else None,
        "Version": f"limner {record.version}",
    }
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(
        ", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items() if value is not None)
    )
    return "\n".join(lines)


def _name(model: str | None) -> str | None:
    """A model without its folder: where it lies is nobody else's business."""
    return model and Path(model).name.removesuffix(".safetensors")


def _shown(what: Picture | str | None) -> str | None:
    """A text, or which picture: its file without the folder, or else the hash of its pixels."""
    if isinstance(what, Picture):
        return Path(what.file).name or what.digest[:10]
    return what


def _strength(request: Request) -> float | None:
    if request.enlarge != 1:
        return request.enlarge_strength
    return request.strength if request.image else None


def texts(record: Record) -> dict[str, str]:
    """What a PNG says about itself: the infotext, and all that `replay` needs."""
    told = {
        "version": record.version,
        "weights": record.weights,
        "grid": record.grid,
        "request": record.request.to_dict(),
    }
    return {"parameters": infotext(record), "limner": json.dumps(told)}  # the second is pure ASCII


def png(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    """A picture as a PNG file with these texts."""
    information = PngInfo()
    for name, text in texts.items():
        information.add_text(name, text)
    encoded = io.BytesIO()
    # zlib.Z_RLE. Of 512 x 512 by the built-in model: 19 ms and 139 kB; the usual way, 58 ms and 145 kB.
    image.save(encoded, "PNG", pnginfo=information, compress_type=3)
    return encoded.getvalue()


def save(image: Image.Image, folder: Path, record: Record) -> Path:
    """Write a PNG with its record under the next free number: 00001-SEED-THE-PROMPT.png, ...-grid.png.

    The file appears whole or not at all, and no file is ever overwritten. Raises RequestError when the folder
    cannot be written to.
    """
    data = png(image, texts(record))
    name = f"{record.request.seed}-{_slug(record.request.prompt)}{'-grid' if record.grid else ''}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = (f"{number:05d}-{name}" for number in count(_last_number(folder) + 1))
        return write_new(folder, names, data)
    except OSError as error:
        raise RequestError(
            f"cannot save pictures in {folder}: {error.strerror}; choose another folder"
        ) from None


def write_new(folder: Path, names: Iterator[str], data: bytes) -> Path:
    """Write beside, then link into place, which fails where a file exists: then the next name is tried."""
    beside = folder / f".{secrets.token_hex(8)}.partial"
    try:
        beside.write_bytes(data)
        for name in names:
            with contextlib.suppress(FileExistsError):
                _link(beside, folder / name)
                return folder / name
    finally:
        beside.unlink(missing_ok=True)
    raise AssertionError("unreachable: the names do not end")


def _link(beside: Path, path: Path) -> None:
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        path.touch(exist_ok=False)
        beside.replace(path)


def _last_number(folder: Path) -> int:
    numbers = (re.match(r"(\d{5,})-", path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in numbers if match), default=0)


def _slug(prompt: str) -> str:
    """The prompt as part of a file name: "Two red apples!" -> "two-red-apples", at most 40 characters."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    slug = "-".join(re.findall(r"[a-z0-9]+", plain))
    return (slug if len(slug) <= 40 else slug[:41].rpartition("-")[0] or slug[:40]) or "picture"


def _quoted(value: object) -> str:
    """Infotext separates by commas and colons, so a value that holds one is written as a JSON string."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text
