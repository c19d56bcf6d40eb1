"""Which vectors belong together: k-means, and how many groups there are."""

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]  # n d
Labels = npt.NDArray[np.intp]  # n

DIMENSIONS = 32  # that vectors are brought down to
SAMPLE = 1_500  # vectors that the silhouette is measured on: all pairs of them are compared
MOST = 12  # groups that are tried, when nobody says how many
STARTS = 4  # of k-means; the best is kept
ROUNDS = 100  # of one start, at most
BLOCK = 4_096  # rows that are compared at once
STRUCTURE = 0.1  # silhouette, at least, of something that falls into groups at all


def principal(vectors: Vectors, dimensions: int = DIMENSIONS) -> Vectors:
    """The vectors along the directions in which they differ most, the mean taken off."""
    centred = vectors - vectors.mean(0)
    covariance = centred.T.astype(np.float64) @ centred
    _, directions = np.linalg.eigh(covariance)
    kept = directions[:, ::-1][:, : min(dimensions, vectors.shape[1])]
    kept = kept * np.sign(kept[np.abs(kept).argmax(0), np.arange(kept.shape[1])])  # else free to flip
    along: Vectors = (centred @ kept).astype(np.float32)
    return along


def k_means(vectors: Vectors, groups: int, seed: int = 0) -> Labels:
    """Lloyd's rounds from k-means++ starts (Arthur and Vassilvitskii 2007), the best of STARTS. No group is
    empty; the largest is group 0. Raises ValueError for more groups than different vectors."""
    if not 1 <= groups <= len(np.unique(vectors, axis=0)):
        raise ValueError(f"{len(vectors)} vectors cannot be put into {groups} groups that are not empty")
    rng = np.random.default_rng(seed)
    tries = (_lloyd(vectors, _seeds(vectors, groups, rng)) for _ in range(STARTS))
    labels, _ = min(tries, key=lambda one: one[1])
    order = np.argsort(-np.bincount(labels, minlength=groups), kind="stable")
    return np.argsort(order)[labels]


def silhouette(vectors: Vectors, labels: Labels) -> float:
    """How much nearer vectors are to their own group than to the next, -1 to 1 (Rousseeuw 1987); the mean
    over all. Compares all pairs, so give it a sample."""
    groups = np.unique(labels)
    if len(groups) < 2:
        return 0.0
    away = np.sqrt(_squares(vectors, vectors))
    sums = np.stack([away[:, labels == group].sum(1) for group in groups], 1)
    sizes = np.array([(labels == group).sum() for group in groups])
    own = np.searchsorted(groups, labels)
    rows = np.arange(len(labels))
    inside = sums[rows, own] / np.maximum(1, sizes[own] - 1)
    others = sums / sizes
    others[rows, own] = np.inf
    outside = others.min(1)
    scores = np.where(sizes[own] > 1, (outside - inside) / np.maximum(1e-12, np.maximum(inside, outside)), 0)
    return float(scores.mean())


def choose(vectors: Vectors, seed: int = 0, most: int = MOST) -> int:
    """How many groups there are: the number from 2 to `most` with the best silhouette on a sample, or 1 where
    even that is below STRUCTURE."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(vectors))[:SAMPLE]
    sample = vectors[np.sort(rows)]
    different = len(np.unique(sample, axis=0))
    scores = {
        groups: silhouette(sample, k_means(sample, groups, seed))
        for groups in range(2, min(most, different - 1, len(sample) // 2) + 1)
    }
    best = max(scores, key=lambda groups: scores[groups], default=1)
    return best if scores.get(best, 0) >= STRUCTURE else 1


def _seeds(vectors: Vectors, groups: int, rng: np.random.Generator) -> Vectors:
    """Centres to begin with: each new one far from those there are, by chance in proportion to the square."""
    chosen = [int(rng.integers(len(vectors)))]
    away = _squares(vectors, vectors[chosen])[:, 0].astype(np.float64)
    while len(chosen) < groups:
        chosen.append(int(rng.choice(len(vectors), p=away / away.sum())))
        away = np.minimum(away, _squares(vectors, vectors[chosen[-1:]])[:, 0])
    return vectors[chosen]


def _lloyd(vectors: Vectors, centres: Vectors) -> tuple[Labels, float]:
    """Labels and the sum of squares. A group that runs empty begins anew with the farthest vector."""
    labels: Labels = np.full(len(vectors), -1)
    for _ in range(ROUNDS):
        before = labels
        labels, away = _assigned(vectors, centres)
        sizes = np.bincount(labels, minlength=len(centres))
        for group in np.flatnonzero(sizes == 0):
            lone = np.where(sizes[labels] > 1, away, -1).argmax()
            sizes[labels[lone]] -= 1
            sizes[group], labels[lone], away[lone] = 1, group, 0
        if np.array_equal(before, labels):
            break
        sums = np.zeros(centres.shape, np.float64)
        np.add.at(sums, labels, vectors)
        centres = (sums / sizes[:, None]).astype(np.float32)
    return labels, float(away.sum())


def _assigned(vectors: Vectors, centres: Vectors) -> tuple[Labels, npt.NDArray[np.float32]]:
    """The nearest centre of each vector, and the square of how far it is."""
    labels = np.zeros(len(vectors), np.intp)
    away = np.zeros(len(vectors), np.float32)
    for first in range(0, len(vectors), BLOCK):
        squares = _squares(vectors[first : first + BLOCK], centres)
        labels[first : first + BLOCK] = squares.argmin(1)
        away[first : first + BLOCK] = squares.min(1)
    return labels, away


def _squares(one: Vectors, other: Vectors) -> npt.NDArray[np.float32]:
    """Squared distances of all rows of `one` from all of `other`."""
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T
    positive: npt.NDArray[np.float32] = np.maximum(squares, 0)
    return positive
