"""How far two sets of pictures are apart, by features of the drawn world's own detector.

These are no FID and no KID as published, which are on features of Inception; `fid-world` and `kid-world` are
their names everywhere. All arithmetic is in float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from limner.errors import DataError

SUBSETS, SUBSET = 100, 1000  # of KID: how many, of how many pictures at most (Binkowski et al. 2018)


def distances(pictures: Float[Tensor, "n d"], reference: Float[Tensor, "m d"]) -> dict[str, float]:
    """Both distances of detector features under the names that they are reported by. Raises DataError."""
    return {"fid-world": frechet(pictures, reference), "kid-world": kernel(pictures, reference)}


def frechet(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> float:
    """|mu1 - mu2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017, equation 6), at least 0.

    The squared 2-Wasserstein distance of two Gaussians with the sets' means and covariances (over n - 1).
    Raises DataError for sets of fewer than two rows and for values that are not finite.
    """
    first, second = _checked(first, second)
    shift = (first.mean(0) - second.mean(0)).square().sum()
    covariance1, covariance2 = torch.cov(first.T).view(first.shape[1], -1), torch.cov(second.T)
    values, vectors = torch.linalg.eigh(covariance1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    # S1 S2 and S1^(1/2) S2 S1^(1/2) have the same eigenvalues, and the latter is symmetric
    middle = root @ covariance2.view_as(root) @ root
    cross = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp_min(0).sqrt().sum()
    squared = shift + covariance1.trace() + covariance2.view_as(root).trace() - 2 * cross
    return max(0.0, float(squared))


def kernel(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"], *, seed: int = 0) -> float:
    """Unbiased MMD^2 with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018), about 0 for sets of one kind.

    Sets of at most 1000 rows are compared whole, larger ones by the mean over 100 subsets of 1000 drawn by
    `seed`. Raises as `frechet` does.
    """
    first, second = _checked(first, second)
    if max(len(first), len(second)) <= SUBSET:
        return _mmd(first, second)
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        _mmd(*(rows[torch.randperm(len(rows), generator=generator)[:SUBSET]] for rows in (first, second)))
        for _ in range(SUBSETS)
    ]
    return sum(drawn) / SUBSETS


def _mmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Equation 4 of Binkowski et al. 2018: means over all pairs of different rows."""
    n, m = len(x), len(y)
    within_x, within_y, between = (_polynomial(a, b) for a, b in ((x, x), (y, y), (x, y)))
    mean_x = (within_x.sum() - within_x.trace()) / (n * (n - 1))
    mean_y = (within_y.sum() - within_y.trace()) / (m * (m - 1))
    return float(mean_x + mean_y - 2 * between.mean())


def _polynomial(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _checked(first: Tensor, second: Tensor) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Both in float64 on the CPU."""
    for rows in (first, second):
        if len(rows) < 2:
            raise DataError(f"a distance needs at least two pictures on either side, got {len(rows)}")
        if not rows.isfinite().all():
            raise DataError("some features are not finite; are the detector's weights broken?")
    return first.double().cpu(), second.double().cpu()
