"""What a picture looks like in 240 numbers, without a network: which colours, where they lie, and which way
its edges run (Dalal and Triggs 2005, "HOG", in its coarsest form). Good for telling kinds of drawings and
scenes apart; it knows nothing of what is shown."""

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 64  # pixels of the copy that is described
LEVELS = 4  # of each colour channel
CELLS = 4  # of layout and edges in each direction
TURNS = 8  # directions of edges
LAYOUT = 0.5  # weight of where the colours lie; which there are, and the edges, weigh 1

Vector = npt.NDArray[np.float32]


def describe(picture: Image.Image) -> Vector:
    """64 shares of colours, 48 of layout and 128 of edges, each part of length 1 before it is weighed."""
    small = np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    parts = (_colours(small), LAYOUT * _layout(small), _edges(small.mean(2)))
    return np.concatenate(parts).astype(np.float32)


def _colours(small: Vector) -> Vector:
    """Roots of the shares of 4 x 4 x 4 colours: their products then compare histograms (Hellinger). A colour
    between two counts for both in part, so that a little change of it is a little change of the shares."""
    centres = (np.arange(LEVELS, dtype=np.float32) + 0.5) * 256 / LEVELS
    inside = np.clip(small.reshape(-1, 3), centres[0], centres[-1])
    parts = np.maximum(0, 1 - np.abs(inside[..., None] - centres) * LEVELS / 256)  # pixel, channel, level
    both = (parts[:, 0, :, None] * parts[:, 1, None]).reshape(-1, LEVELS**2)
    shares = both.T @ parts[:, 2] / len(parts)
    roots: Vector = np.sqrt(shares).ravel().astype(np.float32)
    return roots


def _layout(small: Vector) -> Vector:
    """Mean colours of 4 x 4 cells, as they differ from the mean of all."""
    side = SIDE // CELLS
    cells = small.reshape(CELLS, side, CELLS, side, 3).mean((1, 3))
    return _unit((cells - cells.mean((0, 1))).ravel())


def _edges(grey: Vector) -> Vector:
    """Strength of edges in 8 directions, which have no sign, in each of 4 x 4 cells."""
    down, across = np.gradient(grey)
    strength = np.hypot(down, across)
    turn = (np.arctan2(down, across) % np.pi) * TURNS / np.pi
    bins = np.minimum(TURNS - 1, turn.astype(int))
    row, column = np.indices(grey.shape) * CELLS // SIDE
    place = (row * CELLS + column) * TURNS + bins
    sums = np.bincount(place.ravel(), strength.ravel(), CELLS * CELLS * TURNS)
    return _unit(np.sqrt(sums).astype(np.float32))


def _unit(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 1e-6 else np.zeros_like(vector)
