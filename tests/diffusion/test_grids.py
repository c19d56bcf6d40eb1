import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from limner.diffusion import grids
from limner.diffusion.grids import Grid
from limner.diffusion.paths import FlowPath, Path, VEPath, VPPath
from limner.errors import RequestError

VP, VE, FLOW = VPPath.scaled_linear(), VEPath(), FlowPath()
MAKERS: dict[str, Callable[[int], Grid]] = {
    **{
        f"{maker.__name__}-{name}": lambda steps, maker=maker, path=path: maker(path, steps)
        for maker in (grids.uniform, grids.linspace, grids.karras, grids.exponential)
        for name, path in {"vp": VP, "ve": VE, "flow": FLOW}.items()
    },
    "leading": lambda steps: grids.leading(VP, steps),
    "trailing": lambda steps: grids.trailing(VP, steps),
    "shifted": lambda steps: grids.shifted(FLOW, steps, 3.0),
}
each_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@each_maker
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_a_grid_of_n_steps_has_a_falling_node_more_and_ends_at_the_picture(
    make: Callable[[int], Grid], steps: int
) -> None:
    grid = make(steps)
    assert grid.steps == steps
    assert len(grid.t) == len(grid.alpha) == len(grid.sigma) == steps + 1
    assert grid.t.dtype == grid.alpha.dtype == grid.sigma.dtype == torch.float64
    assert (grid.alpha[-1], grid.sigma[-1]) == (1, 0)
    assert (torch.atan2(grid.sigma, grid.alpha).diff() < 0).all()


@each_maker
@pytest.mark.parametrize("steps", [0, -3])
def test_steps_out_of_range(make: Callable[[int], Grid], steps: int) -> None:
    with pytest.raises(RequestError, match=f"steps must be at least 1.*got {steps}"):
        make(steps)


@pytest.mark.parametrize("make", [grids.leading, grids.trailing])
def test_more_steps_than_the_table_has(make: Callable[..., Grid]) -> None:
    with pytest.raises(RequestError, match="at most 1000, got 1001"):
        make(VP, 1001)


def test_spacings_of_a_table() -> None:
    assert grids.leading(VP, 4).t.tolist() == [750, 500, 250, 0, 0]
    assert grids.leading(VP, 4, offset=1).t.tolist() == [751, 501, 251, 1, 0]
    assert grids.trailing(VP, 4).t.tolist() == [999, 749, 499, 249, 0]
    assert grids.linspace(VP, 4).t.tolist() == [999, 666, 333, 0, 0]
    assert grids.uniform(VP, 4).t.tolist() == [999, 749.25, 499.5, 249.75, 0]
    assert grids.uniform(VP, 4, whole=True).t.tolist() == [999, 749, 500, 250, 0]


def test_spacings_of_a_flow() -> None:
    assert grids.uniform(FLOW, 4).t.tolist() == [1, 0.75, 0.5, 0.25, 0]
    torch.testing.assert_close(grids.shifted(FLOW, 4, 3.0).t, torch.tensor([1, 0.9, 0.75, 0.5, 0]).double())
    assert grids.shifted(FLOW, 4, 1.0).t.tolist() == grids.uniform(FLOW, 4).t.tolist()


@pytest.mark.parametrize("path", [VP, VE], ids=["vp", "ve"])
def test_exponential_levels_fall_in_equal_ratios(path: Path) -> None:
    grid = grids.exponential(path, 9)
    level = (grid.sigma / grid.alpha)[:-1]
    torch.testing.assert_close(level[1:] / level[:-1], (level[1] / level[0]).expand(8))
    assert (grid.t[0].item(), grid.t[-2].item()) == pytest.approx((path.start, path.end))


def test_karras_levels_are_those_of_the_paper() -> None:
    grid = grids.karras(VE, 18)
    i = torch.arange(18, dtype=torch.float64)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7  # EDM eq. 5
    torch.testing.assert_close(grid.sigma[:-1], expected)
    ends = grids.karras(VE, 18, low=0.1, high=10.0).sigma
    assert (ends[0].item(), ends[-2].item()) == pytest.approx((10, 0.1))


def test_levels_need_finite_ends() -> None:
    stretched = VP.zero_terminal_snr()
    for make in (grids.karras, grids.exponential):
        with pytest.raises(RequestError, match="needs `high` given"):
            make(stretched, 5)
        assert make(stretched, 5, high=20.0).steps == 5
        with pytest.raises(RequestError, match="low above 0"):
            make(VE, 5, low=3.0, high=2.0)


def test_custom_ends_where_it_is_told() -> None:
    short = grids.custom(VP, [900, 500, 0], clean=False)
    assert short.t.tolist() == [900, 500, 0]
    assert short.sigma[-1] == VP.sigma(torch.zeros(1, dtype=torch.float64))
    clean = grids.custom(VP, torch.tensor([900, 500, 0]))
    assert clean.t.tolist() == [900, 500, 0, 0]
    assert clean.sigma[-1] == 0


@pytest.mark.parametrize(
    "path, t", [(VP, [100.0, 200.0]), (VP, [500.0, 500.0]), (FLOW, [0.5, 0.0]), (VP, [500.0, math.nan])]
)
def test_noise_that_does_not_fall(path: Path, t: list[float]) -> None:
    with pytest.raises(RequestError, match=r"must (fall|lie)"):
        grids.custom(path, t)


@pytest.mark.parametrize("path, t", [(VP, [1000.0, 1.0]), (FLOW, [1.5, 0.5]), (VP, [10.0, -1.0])])
def test_t_off_the_path(path: Path, t: list[float]) -> None:
    with pytest.raises(RequestError, match="must lie between 0 and"):
        grids.custom(path, t)


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "parts",
    [
        (row(1.0), row(0.0), row(1.0)),
        (row(1.0, 0.0), row(0.0, 1.0), row(1.0)),
        (row(1.0, 0.0)[None], row(0.0, 1.0)[None], row(1.0, 0.0)[None]),
    ],
)
def test_rows_that_are_no_grid(parts: tuple[Tensor, Tensor, Tensor]) -> None:
    # the shapes are annotated too, and checked while tests run: either error says so
    with pytest.raises(Exception, match=r"two or more nodes|Type-check error"):
        Grid(*parts)


def test_only_a_flow_grid_is_a_flow() -> None:
    assert grids.uniform(FLOW, 5).is_flow
    assert grids.custom(FLOW, [0.7, 0.3], clean=False).is_flow
    assert not grids.uniform(VP, 5).is_flow
    assert not grids.uniform(VE, 5).is_flow
    assert not grids.trailing(VP.zero_terminal_snr(), 5).is_flow


@pytest.mark.parametrize(
    "path, grid, whole",
    [(VP, grids.linspace(VP, 6), 1), (VE, grids.karras(VE, 6), 1), (FLOW, grids.uniform(FLOW, 6), 2)],
)
def test_midpoints_halve_log_snr_and_leave_infinite_steps_whole(path: Path, grid: Grid, whole: int) -> None:
    fine: Any = grids.with_midpoints(path, grid)
    assert fine.steps == 2 * grid.steps - whole
    lam = (fine.alpha / fine.sigma).log()
    inner = lam[lam.isfinite()]
    halves = inner.diff().reshape(-1, 2)
    torch.testing.assert_close(halves[:, 0], halves[:, 1], rtol=1e-6, atol=0)
    assert set(grid.t.tolist()) <= set(fine.t.tolist())


def test_grids_by_name() -> None:
    path = VPPath.scaled_linear()
    assert torch.equal(grids.named("karras", path, 5).t, grids.karras(path, 5).t)
    assert torch.equal(grids.named("leading", path, 5).t, grids.leading(path, 5, offset=1).t)
    with pytest.raises(RequestError, match='no grid "carras"; did you mean "karras"'):
        grids.named("carras", path, 5)


def test_part_of_a_grid_and_the_step_of_a_t() -> None:
    grid = grids.leading(VPPath.scaled_linear(), 10, offset=1)
    part = grid.part(3, 7)
    assert part.steps == 4
    assert torch.equal(part.t, grid.t[3:8])
    with pytest.raises(RequestError, match="two or more nodes"):
        grid.part(4, 4)
    assert [grid.step(float(t)) for t in grid.t] == [*range(10), 9]
    assert grid.step(float(grid.t[3]) - 1) == 3
    assert grid.step(2000.0) == 0


@pytest.mark.parametrize("name", grids.GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50, 100])
def test_the_step_of_a_t_in_single_precision(name: str, steps: int) -> None:
    if name == "lcm" and steps > 50:
        pytest.skip("consistency networks were distilled at 50 steps")
    grid = grids.named(name, VPPath.scaled_linear(), steps)
    assert [grid.step(float(t)) for t in grid.t[:-1].float()] == list(range(steps))


@pytest.mark.parametrize(
    ("share", "down", "up"), [(0.55, 5, 6), (0.5, 5, 5), (1.0, 10, 10), (2.0, 10, 10), (0.15, 1, 2)]
)
def test_the_last_steps_by_their_share(share: float, down: int, up: int) -> None:
    grid = grids.uniform(VP, 10)
    assert (grid.last(share).steps, grid.last(share, up=True).steps) == (down, up)
    assert grid.last(share).t.tolist() == grid.t[-down - 1 :].tolist()


def test_a_share_that_leaves_no_step_is_refused() -> None:
    grid = grids.uniform(VP, 10)
    assert grid.last(0.05, up=True).steps == 1
    with pytest.raises(RequestError, match=r"strength 0\.05 of 10 steps leaves none"):
        grid.last(0.05)
    with pytest.raises(RequestError, match="strength 0 of 10 steps leaves none"):
        grid.last(0.0, up=True)
