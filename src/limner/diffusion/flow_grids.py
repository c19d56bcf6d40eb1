"""Grids of the flow path by name, moved towards noise for large pictures."""

import torch

from limner.diffusion.grids import Grid, custom, exponential, karras, linspace, shifted
from limner.diffusion.paths import FlowPath, shift
from limner.errors import RequestError
from limner.util.suggest import suggestion

FLOW_GRIDS = ("linspace", "uniform", "karras", "exponential")


def named(name: str, steps: int, factor: float, *, least: float = 1e-3) -> Grid:
    """The grid called `name` on the flow path, shifted towards noise by `factor`; SD3 draws with "linspace".

    `least` is the t of the last node before the picture, and is shifted with the others. Raises RequestError
    for a name that is none of FLOW_GRIDS: the others of `grids.GRIDS` count the entries of a table.
    """
    path = FlowPath(end=least)
    if name == "uniform":
        return shifted(path, steps, factor)
    if name == "linspace":
        return custom(path, shift(linspace(path, steps).t[:-1], factor))
    if name not in FLOW_GRIDS:
        raise RequestError(f'there is no grid "{name}" for this model{suggestion(name, FLOW_GRIDS)}')
    between = FlowPath(end=float(shift(torch.tensor(least, dtype=torch.float64), factor)))
    return karras(between, steps) if name == "karras" else exponential(between, steps)
