"""Figures of one picture, all measured on a small grey copy, so that they mean the same whatever its size.

The copy's longer side has SIDE pixels at most; smaller pictures stay as they are. What is finer than that
copy shows, such as a slight blur of a photograph of 4,000 pixels, is therefore not seen.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

Grey = npt.NDArray[np.uint8]  # h w
SIDE = 256  # pixels of the longer side


def small_grey(picture: Image.Image, side: int = SIDE) -> Grey:
    """The picture in grey (ITU-R 601 luma), its longer side brought down to `side` pixels by averaging."""
    width, height = picture.size
    longer = max(width, height)
    grey = picture.convert("L")
    if longer > side:
        size = max(1, round(width * side / longer)), max(1, round(height * side / longer))
        grey = grey.resize(size, Image.Resampling.BOX)
    return np.asarray(grey)


def sharpness(grey: Grey) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000, LAPV), in squared levels. Photographs in focus
    have some hundreds and more, blurred ones a few; a picture less than 3 pixels wide or high has 0."""
    if min(grey.shape) < 3:
        return 0.0
    g = grey.astype(np.float32)
    around = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:]
    return float((around - 4 * g[1:-1, 1:-1]).var())


def entropy(grey: Grey) -> float:
    """Shannon entropy of the grey levels in bits: 0 for one flat colour, 8 at most."""
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    share = share[share > 0]
    return max(0.0, float(-(share * np.log2(share)).sum()))


def aspect(width: int, height: int) -> float:
    """The longer side by the shorter, at least 1."""
    return max(width, height) / max(1, min(width, height))
