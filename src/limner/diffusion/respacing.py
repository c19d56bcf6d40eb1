"""Grids of sections: DeepFloyd IF's tables, close at both ends of the path and wide between."""

from collections.abc import Sequence

from limner.diffusion.grids import Grid, custom
from limner.diffusion.paths import VPPath
from limner.errors import RequestError

SMART = {  # by steps; counts of the sections, as IF's code has them
    27: (7, 4, 2, 1, 2, 4, 7),
    50: (10, 6, 4, 3, 2, 2, 3, 4, 6, 10),
    100: (*(1,) * 4, *(2,) * 6, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 13),
    185: (1, 1, 2, 2, 2, 3, 3, 3, *range(4, 17), 18, 20),
}


def sections(path: VPPath, counts: Sequence[int]) -> Grid:
    """Whole t: the table in as many equal sections as there are counts, each stepped through so many times
    from its first entry to its last (Nichol & Dhariwal 2021, "respacing"). Counts begin at the picture.

    Raises RequestError for a count below 1 or above the entries of its section.
    """
    t, start = [], 0
    for index, count in enumerate(counts):
        size = path.steps // len(counts) + (index < path.steps % len(counts))
        if not 1 <= count <= size:
            raise RequestError(f"steps of a section must be at least 1 and at most {size}, got {count}")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        t += [start + round(step * stride) for step in range(count)]
        start += size
    return custom(path, t[::-1])


def smart(path: VPPath, steps: int) -> Grid:
    """DeepFloyd IF's own tables. Raises RequestError for a number of steps that there is no table of."""
    if steps not in SMART:
        raise RequestError(f"smart grids are of {', '.join(map(str, SMART))} steps, got {steps}")
    return sections(path, SMART[steps])
