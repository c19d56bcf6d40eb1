"""Features of pictures for FID and KID, by networks that the user supplies.

Limner ships no Inception network. A network is a TorchScript file (such as the Inception files that published
scores are made with), which is code: load only what you trust. Features that another tool has made are read
from .npz and .safetensors files. How pictures are resized changes a FID (Parmar et al. 2022), so what the
scores are compared with has to be measured by the same network and size.
"""

import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from limner.errors import DataError, WeightsError
from limner.util.images import pixels_from_images, quantize

Network = Callable[[UInt8[Tensor, "b 3 h w"]], Tensor]  # levels -> features, b d
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
BATCH = 32


def features(
    source: Path, network: Network | None, *, size: int = 299, device: torch.device = torch.device("cpu")
) -> Float[Tensor, "n d"]:
    """Of a folder of pictures by the network, or as a file has them.

    Pictures are resized to `size` x `size` by PIL's bicubic filter. Raises DataError for a source that is
    neither, for a folder without a network, and for what cannot be read.
    """
    if source.suffix in (".npz", ".safetensors"):
        return read(source)
    if not source.is_dir():
        raise DataError(
            f"{source} is neither a folder of pictures nor a .npz or .safetensors file of features"
        )
    if network is None:
        raise DataError(
            f"{source} holds pictures, so a network is needed to measure them; name it by --network"
        )
    paths = pictures(source)
    parts = []
    for first in range(0, len(paths), BATCH):
        levels = quantize(pixels_from_images([_resized(path, size) for path in paths[first : first + BATCH]]))
        with torch.inference_mode():
            made = network(levels.to(device))
        if not isinstance(made, Tensor) or made.shape[:1] != levels.shape[:1]:
            raise DataError("the network gave no row of features for each picture")
        parts.append(made.flatten(1).float().cpu())
    return torch.cat(parts)


def pictures(folder: Path) -> list[Path]:
    """PNG, JPEG and WebP files of a folder, by name. Raises DataError when there are none."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise DataError(f"{folder} holds no pictures ({', '.join(PICTURES)})")
    return found


def read(path: Path) -> Float[Tensor, "n d"]:
    """The features in a file: its only array, or the one called "features". Raises DataError."""
    arrays: dict[str, Tensor]
    try:
        if path.suffix == ".npz":
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: torch.from_numpy(np.asarray(file[name], dtype=np.float64)) for name in file}
        else:
            arrays = load_file(path)
    except OSError as error:
        raise DataError(f"cannot read the features {path}: {error.strerror or error}") from None
    except (ValueError, TypeError, SafetensorError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no features: {error}") from None
    name = next(iter(arrays)) if len(arrays) == 1 else "features"
    if name not in arrays or arrays[name].ndim != 2:
        held = ", ".join(f"{key} {tuple(value.shape)}" for key, value in arrays.items()) or "nothing"
        raise DataError(f'{path} should hold one array "features" of rows, and holds {held}')
    return arrays[name]


def load_network(path: Path, device: torch.device) -> Network:
    """A TorchScript network that takes 8-bit levels, b 3 h w, and gives b d. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"there is no network at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself
            loaded = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path} is no TorchScript network: {reason}") from None
    network: Network = loaded.eval()
    return network


def _resized(path: Path, size: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except OSError as error:
        raise DataError(f"{path} is no picture: {error}") from None


def check_same(first: Sequence[int], second: Sequence[int]) -> None:
    """Raises DataError when two sets of features have rows of other lengths."""
    if first[-1] != second[-1]:
        raise DataError(f"features of {first[-1]} and of {second[-1]} numbers cannot be compared")
