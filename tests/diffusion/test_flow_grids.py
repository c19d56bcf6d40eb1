"""The grids of the flow path that a request can name."""

import pytest

from limner.diffusion import flow_grids
from limner.errors import RequestError


@pytest.mark.parametrize("name", flow_grids.FLOW_GRIDS)
def test_flow_grids_by_name_are_shifted(name: str) -> None:
    grid = flow_grids.named(name, 8, 3.0)
    assert (grid.steps, grid.is_flow, float(grid.t[0])) == (8, True, 1.0)
    last = 3 * 0.125 / 1.25 if name == "uniform" else 0.003 / 1.002
    assert float(grid.t[-2]) == pytest.approx(last)
    with pytest.raises(RequestError, match='no grid "karas" for this model; did you mean "karras"'):
        flow_grids.named("karas", 8, 3.0)
