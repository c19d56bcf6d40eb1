import numpy as np
import pytest

from limner.data.clusters import SAMPLE, choose, k_means, principal, silhouette


def blobs(sizes: list[int], spread: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around the corners of a simplex, and which corner each is of, mixed."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = 4 * np.eye(len(sizes), 10)
    return (centres[labels] + spread * rng.normal(size=(len(labels), 10))).astype(np.float32), labels


def test_groups_that_are_there_are_found_and_the_largest_comes_first() -> None:
    vectors, true = blobs([50, 30, 20, 10])
    found = k_means(vectors, 4)
    assert np.bincount(found).tolist() == [50, 30, 20, 10]
    assert np.array_equal(found, true)  # sizes fall with the label here, too
    assert np.array_equal(found, k_means(vectors, 4))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_how_many_is_seen(count: int) -> None:
    vectors, _ = blobs([12] * count, seed=count)
    assert choose(vectors) == count
    assert choose(principal(vectors)) == count


def test_no_groups_is_one_group() -> None:
    rng = np.random.default_rng(0)
    assert choose(rng.normal(size=(150, 10)).astype(np.float32)) == 1
    assert choose(np.ones((5, 3), np.float32)) == 1
    assert choose(np.ones((1, 3), np.float32)) == 1


def test_silhouette_is_rousseeuws() -> None:
    """By hand: 0 and 1 against 4; of a lone vector it is 0."""
    vectors = np.array([[0.0], [1.0], [4.0]], np.float32)
    scores = [(4 - 1) / 4, (3 - 1) / 3, 0]
    assert silhouette(vectors, np.array([0, 0, 1])) == pytest.approx(np.mean(scores), abs=1e-5)
    assert silhouette(vectors, np.array([0, 0, 0])) == 0


def test_no_group_is_empty_and_too_many_are_refused() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), [50, 1, 1], axis=0)
    for seed in range(5):
        assert np.bincount(k_means(vectors, 3, seed)).tolist() == [50, 1, 1]
    with pytest.raises(ValueError, match="cannot be put into 4 groups"):
        k_means(vectors, 4)


def test_principal_keeps_distances_and_does_not_flip() -> None:
    vectors, _ = blobs([40, 40])
    small = principal(vectors, 10)
    away = np.linalg.norm(vectors[:1] - vectors, axis=1)
    np.testing.assert_allclose(np.linalg.norm(small[:1] - small, axis=1), away, atol=1e-4)
    np.testing.assert_allclose(principal(vectors[::-1].copy(), 3), principal(vectors, 3)[::-1], atol=1e-3)


def test_more_than_the_sample_is_fine() -> None:
    vectors, _ = blobs([SAMPLE // 2, SAMPLE], spread=0.1)
    assert choose(vectors, most=2) == 2
