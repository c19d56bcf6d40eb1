"""Vector art from npm packages, rendered once into an atlas of RGBA tiles.

Four free icon sets draw the same objects under the same names, so one object exists in four art styles. Only
networks trained on the pictures are ever published, never the art itself; `limner world prepare` fetches it.
"""

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from limner.errors import DataError

ART_SETS = {  # style -> npm package
    "flat": "@iconify-json/fluent-emoji-flat",  # MIT
    "glossy": "@iconify-json/fluent-emoji",  # MIT
    "classic": "@iconify-json/noto",  # Apache-2.0
    "sticker": "@iconify-json/twemoji",  # CC BY 4.0
}
SIZES = (16, 32, 64, 128, 256)  # tile sides in pixels, each half the next
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DEFAULT_FOLDER = "~/.cache/limner/world"


@dataclass(frozen=True, kw_only=True, slots=True)
class Atlas:
    """Tiles of every object in every style, plus the capital letters.

    `tiles[size]` is uint8 (styles, objects, 4, size, size): RGB multiplied by alpha, then alpha.
    `letters[size]` is uint8 (26, size, size) coverage and `advance` (26,) the width of each letter as a share
    of its height.
    """

    objects: tuple[str, ...]
    styles: tuple[str, ...]
    tiles: dict[int, UInt8[Tensor, "s o c h w"]]
    letters: dict[int, UInt8[Tensor, "l h w"]]
    advance: Float[Tensor, " l"]
    sources: dict[str, dict[str, str]]  # style -> package, version, licence

    def to(self, device: torch.device) -> "Atlas":
        return Atlas(
            objects=self.objects,
            styles=self.styles,
            tiles={size: tile.to(device) for size, tile in self.tiles.items()},
            letters={size: tile.to(device) for size, tile in self.letters.items()},
            advance=self.advance.to(device),
            sources=self.sources,
        )


def fetch(package: str, into: Path) -> Path:
    """Download `package` with the machine's npm client, unpack it, return the folder with `icons.json`."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(f"npm is needed to fetch {package}. Install Node.js, or pass --from FOLDER with it.")
    command = [npm, "pack", package, "--silent"]
    done = subprocess.run(command, cwd=into, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataError(f"npm pack {package} failed: {done.stderr.strip()[-400:]}")
    archive = into / done.stdout.strip().splitlines()[-1]
    folder = into / package.replace("/", "-").lstrip("@")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def find_package(package: str, under: Path) -> Path:
    """The folder below `under` whose package.json names `package`."""
    for manifest in sorted(under.rglob("package.json")):
        if _table(manifest).get("name") == package:
            return manifest.parent
    raise DataError(f"{under} holds no unpacked {package}. Unpack it there, or leave --from away.")


def _table(path: Path) -> dict[str, Any]:
    """A JSON object of a package. Raises DataError where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; fetch the package again.") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object; fetch the package again.")
    return value


def _package(style: str, at: Path, drawings: Sequence[str]) -> tuple["Icons", dict[str, str]]:
    """The icons of an unpacked package, and where they are from. Raises DataError when something lacks."""
    package = ART_SETS[style]
    icons = _table(at / "icons.json")
    try:
        drawn = {icon for icon, parts in icons["icons"].items() if isinstance(parts["body"], str)}
        version, licence = _table(at / "package.json")["version"], _table(at / "info.json")["license"]["spdx"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{at} is no icon set, it lacks {error}; fetch {package} again.") from None
    if missing := [icon for icon in drawings if icon not in drawn]:
        few = ", ".join(missing[:5])
        raise DataError(f"{package} has no drawing named {few} ({len(missing)} missing).")
    return icons, {"package": package, "version": version, "licence": licence}


def prepare(
    folder: Path,
    objects: dict[str, str],
    *,
    styles: Sequence[str] = tuple(ART_SETS),
    source: Path | None = None,  # folder with unpacked packages; None fetches them with npm
    progress: Callable[[str, int, int], None] = lambda style, done, total: None,
) -> None:
    """Render `objects` (name -> icon name) in every style into `folder`, one .npy file per style and size.

    Raises DataError for an unknown style, a missing or broken package, a drawing that a set does not have and
    a folder that cannot be written to.
    """
    for style in styles:
        if style not in ART_SETS:
            raise DataError(f"unknown style {style!r}; the art sets are {', '.join(ART_SETS)}.")
    import resvg_py  # noqa: F401  # missing? then before anything is fetched or removed

    drawings = list(objects.values())
    with tempfile.TemporaryDirectory() as temporary:
        packages = {}  # all are read before an older atlas is touched
        for style in styles:
            package = ART_SETS[style]
            at = fetch(package, Path(temporary)) if source is None else find_package(package, source)
            packages[style] = _package(style, at, drawings)
    sources = {style: told for style, (_, told) in packages.items()}
    index = {"objects": list(objects), "styles": list(packages), "sources": sources}
    staging = folder / "partial"  # an older atlas stays whole until the new one is
    try:
        staging.mkdir(parents=True, exist_ok=True)
        for style, (icons, _) in packages.items():
            _render_style(staging, style, icons, drawings, progress)
        _render_letters(staging)
        (folder / "atlas.json").unlink(missing_ok=True)  # written last: a half-moved atlas is no atlas
        for path in staging.glob("*.npy"):
            path.replace(folder / path.name)
        (staging / "atlas.json").write_text(json.dumps(index, indent=1))
        (staging / "atlas.json").replace(folder / "atlas.json")
    except OSError as error:
        raise DataError(f"cannot write the atlas to {folder}: {error.strerror}; choose another.") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_atlas(
    folder: Path,
    *,
    objects: Sequence[str] | None = None,  # None takes all that the atlas has
    styles: Sequence[str] | None = None,  # None takes all that the atlas has
    sizes: Sequence[int] = SIZES,
) -> Atlas:
    """Read part of a prepared atlas. Raises DataError when it is missing or lacks an object or a style."""
    try:
        index = json.loads((folder / "atlas.json").read_text())
    except FileNotFoundError:
        raise DataError(f"no atlas in {folder}. Run `limner world prepare` first.") from None
    objects = index["objects"] if objects is None else objects
    styles = index["styles"] if styles is None else styles
    lacking = [name for name in objects if name not in index["objects"]]
    lacking += [name for name in styles if name not in index["styles"]]
    if lacking:
        few = ", ".join(lacking[:5])
        raise DataError(f"the atlas in {folder} lacks {few}; run `limner world prepare` again.")
    rows = [index["objects"].index(name) for name in objects]
    tiles = {}
    for size in sizes:
        per_style = [np.load(folder / f"{style}-{size}.npy", mmap_mode="r")[rows] for style in styles]
        tiles[size] = torch.from_numpy(np.stack(per_style))
    letters = {size: torch.from_numpy(np.load(folder / f"letters-{size}.npy")) for size in sizes}
    return Atlas(
        objects=tuple(objects),
        styles=tuple(styles),
        tiles=tiles,
        letters=letters,
        advance=torch.from_numpy(np.load(folder / "letters-advance.npy")),
        sources=index["sources"],
    )


Icons = dict[str, Any]  # an iconify `icons.json`
Pixels = npt.NDArray[np.float32]


def _svg(icons: Icons, name: str, view: tuple[float, float, float, float] | None, size: int) -> Pixels:
    """One icon as RGBA (size, size, 4) in [0, 1]; `view` is an SVG viewBox, None shows the whole canvas."""
    import resvg_py  # only `limner world prepare` needs it

    icon = icons["icons"][name]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    x, y, w, h = view or (0, 0, width, height)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {names} viewBox="{x} {y} {w} {h}" width="{size}" height="{size}">'
    png = resvg_py.svg_to_bytes(svg_string=f"{head}{icon['body']}</svg>", width=size, height=size)
    levels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    return levels.astype(np.float32) / np.float32(255)


def _tight_tile(icons: Icons, name: str, size: int) -> Pixels:
    """One icon cropped to the square around its ink, premultiplied: (4, size, size)."""
    probe = 128
    icon = icons["icons"][name]
    unit = icon.get("width", icons.get("width", 16)) / probe
    ys, xs = np.nonzero(_svg(icons, name, None, probe)[..., 3] > 0.05)
    side = max(xs.max() - xs.min(), ys.max() - ys.min()) + 3  # one pixel of air around the ink
    left, top = (xs.max() + xs.min() + 1 - side) / 2, (ys.max() + ys.min() + 1 - side) / 2
    rgba = _svg(icons, name, (left * unit, top * unit, side * unit, side * unit), size)
    premultiplied = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], axis=2)
    return premultiplied.transpose(2, 0, 1)


def _drawing(icons: Icons, name: str, size: int) -> Pixels:
    """`_tight_tile`, where a drawing that is broken or shows nothing raises DataError."""
    try:
        return _tight_tile(icons, name, size)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"the drawing {name} cannot be rendered ({error}); fetch the package again."
        ) from None


def _render_style(
    folder: Path, style: str, icons: Icons, names: list[str], progress: Callable[[str, int, int], None]
) -> None:
    top = max(SIZES)
    files = {
        size: np.lib.format.open_memmap(
            folder / f"{style}-{size}.npy", mode="w+", dtype=np.uint8, shape=(len(names), 4, size, size)
        )
        for size in SIZES
    }
    with ThreadPoolExecutor(2) as pool:
        for done, tile in enumerate(pool.map(lambda name: _drawing(icons, name, top), names)):
            for size in reversed(SIZES):
                factor = top // size  # averaging premultiplied colour is the exact smaller picture
                small = tile.reshape(4, size, factor, size, factor).mean(axis=(2, 4))
                files[size][done] = np.round(small * 255)
            progress(style, done + 1, len(names))
    for file in files.values():
        file.flush()


def _render_letters(folder: Path) -> None:
    """Capital letters in the font that Pillow carries (Aileron, CC0), on the lower edge, nine tenths high."""
    top = max(SIZES)
    font = ImageFont.load_default(size=top * 1.3)
    *_, baseline = font.getbbox("H")
    tiles, advance = [], []
    for letter in LETTERS:
        image = Image.new("L", (top, top))
        left, _, right, _ = font.getbbox(letter)
        width = right - left
        ImageDraw.Draw(image).text(((top - width) / 2 - left, top - baseline), letter, fill=255, font=font)
        tiles.append(np.asarray(image, dtype=np.float32))
        advance.append((width + 0.1 * top) / top)
    stack = np.stack(tiles)
    for size in SIZES:
        factor = top // size
        small = stack.reshape(len(LETTERS), size, factor, size, factor).mean(axis=(2, 4))
        np.save(folder / f"letters-{size}.npy", np.round(small).astype(np.uint8))
    np.save(folder / "letters-advance.npy", np.asarray(advance, dtype=np.float32))
