import math

import pytest
import torch
from torch import Tensor

from limner.diffusion.paths import FlowPath, Path, VEPath, VPPath, flux_shift, sd3_shift, shift
from limner.errors import ConfigError

VP = {"linear": VPPath.linear(), "scaled": VPPath.scaled_linear(), "cosine": VPPath.cosine()}
ALL: dict[str, Path] = {
    **VP,
    **{f"{name}-zero-snr": path.zero_terminal_snr() for name, path in VP.items()},
    "ve": VEPath(),
    "flow": FlowPath(),
}
each_path = pytest.mark.parametrize("path", ALL.values(), ids=ALL)


def between(path: Path, count: int = 4001) -> Tensor:
    return torch.linspace(path.end, path.start, count, dtype=torch.float64)


@each_path
def test_noise_rises_along_the_path(path: Path) -> None:
    t = between(path)
    assert (torch.atan2(path.sigma(t), path.alpha(t)).diff() > 0).all()
    assert (path.alpha(t) >= 0).all()
    assert (path.sigma(t) > 0).all()


@each_path
def test_t_is_the_inverse_of_level(path: Path) -> None:
    t = between(path)[:-1]  # the last has no finite level on a stretched path
    torch.testing.assert_close(path.t(path.level(t)), t, rtol=1e-9, atol=1e-9)


@each_path
def test_t_stays_on_the_path(path: Path) -> None:
    levels = torch.tensor([0.0, 1e9], dtype=torch.float64)
    low, high = path.t(levels).tolist()
    assert low == path.end
    assert high == pytest.approx(path.start)


@each_path
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_answers_in_the_shape_of_t_and_at_least_float32(path: Path, dtype: torch.dtype) -> None:
    t = torch.ones(2, 3).to(dtype)
    for answer in (path.alpha(t), path.sigma(t), path.level(t), path.t(t)):
        assert answer.shape == (2, 3)
        assert answer.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("path", VP.values(), ids=VP)
def test_variance_is_preserved_between_the_entries_too(path: VPPath) -> None:
    t = between(path)
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t))


@pytest.mark.parametrize("path", VP.values(), ids=VP)
def test_whole_t_give_the_table(path: VPPath) -> None:
    t = torch.arange(path.steps)
    torch.testing.assert_close(path.alpha(t.double()), path.alphas, rtol=1e-14, atol=0)
    torch.testing.assert_close(path.alpha(t), path.alphas.float(), rtol=1e-6, atol=0)


def test_tables_from_their_definitions() -> None:
    assert VPPath.linear().alphas[0].item() ** 2 == pytest.approx(1 - 1e-4)
    assert VPPath.linear().alphas[1].item() ** 2 == pytest.approx(
        (1 - 1e-4) * (1 - 1e-4 - (0.02 - 1e-4) / 999)
    )
    middle = (math.sqrt(0.00085) + math.sqrt(0.012)) / 2
    three = VPPath.scaled_linear(steps=3).alphas
    assert (three[1] / three[0]).item() ** 2 == pytest.approx(1 - middle**2)
    u = (500 / 1000 + 0.008) / 1.008 * math.pi / 2
    start = math.cos(0.008 / 1.008 * math.pi / 2)
    assert VPPath.cosine().alphas[499].item() == pytest.approx(math.cos(u) / start)


@pytest.mark.parametrize("path", VP.values(), ids=VP)
def test_zero_terminal_snr(path: VPPath) -> None:
    stretched = path.zero_terminal_snr()
    assert stretched.alphas[-1] == 0
    assert stretched.alphas[0] == pytest.approx(path.alphas[0].item())
    ratio = stretched.alphas.diff() / path.alphas.diff()
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))  # a straight stretch of alpha
    last = torch.tensor([stretched.start])
    assert (stretched.alpha(last), stretched.sigma(last)) == (0, 1)


def test_ve_and_flow_by_definition() -> None:
    t = torch.tensor([0.25, 0.5])
    assert VEPath().alpha(t).tolist() == [1, 1]
    assert VEPath().sigma(t).tolist() == [0.25, 0.5]
    assert FlowPath().alpha(t).tolist() == [0.75, 0.5]
    assert FlowPath().sigma(t).tolist() == [0.25, 0.5]


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_shift_divides_alpha_over_sigma(factor: float) -> None:
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    moved = shift(t, factor)
    torch.testing.assert_close((1 - moved) / moved, (1 - t) / t / factor)
    assert shift(torch.tensor([0.0, 1.0]), factor).tolist() == [0, 1]


def test_published_shift_factors() -> None:
    assert sd3_shift((1024, 1024), base=(512, 512)) == 2
    assert sd3_shift((512, 2048), base=(512, 512)) == 2
    assert flux_shift(256) == pytest.approx(math.exp(0.5))
    assert flux_shift(4096) == pytest.approx(math.exp(1.15))


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan])
def test_shift_factors_out_of_range(factor: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        shift(torch.tensor([0.5]), factor)


@pytest.mark.parametrize("alphas", [[0.5], [0.9, 0.9], [0.5, 0.9], [1.0, 0.5], [0.5, -0.1], [0.9, math.nan]])
def test_tables_that_are_no_path(alphas: list[float]) -> None:
    with pytest.raises(ConfigError, match="alphas"):
        VPPath(torch.tensor(alphas))


def test_a_table_of_two_rows() -> None:
    # the shape is annotated too, and checked while tests run: either error says so
    with pytest.raises(Exception, match=r"one row|Type-check error"):
        VPPath(torch.tensor([[0.9, 0.5]]))


@pytest.mark.parametrize("ends", [(0.0, 80.0), (2.0, 1.0), (1.0, math.inf)])
def test_ve_ends_out_of_range(ends: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="sigma_min < sigma_max"):
        VEPath(sigma_min=ends[0], sigma_max=ends[1])


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_flow_end_out_of_range(end: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        FlowPath(end=end)
