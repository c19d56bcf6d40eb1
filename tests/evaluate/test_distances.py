import math

import pytest
import torch
from torch import Tensor

from limner.errors import DataError
from limner.evaluate import distances as module
from limner.evaluate.distances import distances, frechet, kernel


def normal(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(count: int, width: int, seed: int = 0) -> Tensor:
    """Rows with mean 0 and covariance 1, exactly."""
    rows = normal(count, width, seed)
    rows = rows - rows.mean(0)
    return rows @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(rows.T))).T


def test_frechet_of_two_gaussians() -> None:
    """|mu1 - mu2|^2 + sum (s1 - s2)^2 where the covariances are diagonal."""
    rows = whitened(500, 3)
    first = rows * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([1.0, 0.0, 0.0])
    second = rows * torch.tensor([3.0, 2.0, 1.0]) + torch.tensor([0.0, 2.0, 0.0])
    assert frechet(first, second) == pytest.approx(1 + 4 + 4 + 0 + 0.25, rel=1e-10)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    """In two dimensions Tr (AB)^(1/2) = (Tr AB + 2 det(AB)^(1/2))^(1/2)."""
    a, b = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double(), torch.tensor([[1.0, -0.5], [-0.5, 4.0]]).double()
    rows = whitened(300, 2)
    first, second = (rows @ torch.linalg.cholesky(covariance).T for covariance in (a, b))
    root = math.sqrt((a @ b).trace().item() + 2 * math.sqrt(torch.linalg.det(a @ b).item()))
    assert frechet(first, second) == pytest.approx(5 + 5 - 2 * root, rel=1e-10)


def test_one_feature_is_enough() -> None:
    rows = normal(50, 1)
    rows = (rows - rows.mean()) / rows.std()
    assert frechet(rows, 3 * rows + 1) == pytest.approx(1 + 4)


def test_identical_sets_are_at_no_distance() -> None:
    rows = normal(40, 60)  # fewer rows than features: the covariance is singular
    assert frechet(rows, rows) == pytest.approx(0, abs=1e-6)
    assert frechet(rows.float(), rows.float()) >= 0


def test_distances_are_symmetric_and_in_float64() -> None:
    first, second = normal(30, 5).float(), normal(40, 5, 1).float() + 1000
    assert frechet(first, second) == pytest.approx(frechet(second, first))
    assert frechet(first, second) == pytest.approx(frechet(first.double(), second.double()), rel=1e-12)
    assert kernel(first, second) == pytest.approx(kernel(second, first))


def test_kernel_by_hand() -> None:
    """k(x, y) = (xy + 1)^3 in one dimension; the pairs of a row with itself do not count."""
    first, second = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    within_first, within_second = 1.0, (1 * 2 + 1) ** 3
    between = (1 + 1 + 2**3 + 3**3) / 4
    assert kernel(first, second) == within_first + within_second - 2 * between
    wide = torch.tensor([[2.0, 0.0], [0.0, 2.0]])  # x.y / d = 0 within
    assert kernel(wide, wide) == 1 + 1 - 2 * ((2 + 1) ** 3 + 1) / 2


def test_kernel_is_unbiased() -> None:
    """Over many pairs of sets of one kind the mean is zero, and it is far from zero for others."""
    drawn = torch.tensor([kernel(normal(20, 4, 2 * i), normal(20, 4, 2 * i + 1)) for i in range(200)])
    assert abs(drawn.mean()) < 3 * drawn.std() / math.sqrt(len(drawn))
    assert kernel(normal(200, 4), normal(200, 4, 1) + 1) > 10 * drawn.std() / 10


def test_large_sets_are_compared_by_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUBSET", 50)
    monkeypatch.setattr(module, "SUBSETS", 10)
    first, second = normal(120, 3), normal(90, 3, 1) + 0.5
    whole = module._mmd(first, second)
    assert kernel(first, second) == kernel(first, second)
    assert kernel(first, second) != kernel(first, second, seed=1)
    assert kernel(first, second) == pytest.approx(whole, rel=0.3)


def test_their_names_cannot_be_mistaken() -> None:
    assert set(distances(normal(5, 2), normal(6, 2))) == {"fid-world", "kid-world"}


def test_what_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="at least two pictures on either side, got 1"):
        frechet(normal(1, 3), normal(9, 3))
    with pytest.raises(DataError, match="not finite"):
        frechet(normal(9, 3), normal(9, 3) / 0)
