import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limner.errors import DataError
from limner.evaluate.acceptance import diversity, refusals, spread
from limner.evaluate.compare import OVERALL, Change
from limner.evaluate.prompts import Clause, Prompt
from limner.models.detector import Seen

SAME = [
    Change(task=task, before=0.5, after=0.5, low=0.0, high=0.0, prompts=9)
    for task in (OVERALL, "unseen_colors", "unseen_position")
]
BETTER = [replace(SAME[0], after=0.6), *SAME[1:]]


def test_what_is_kept() -> None:
    assert refusals(BETTER, 1.0, 1.0) == []
    assert refusals(BETTER, 1.0, 0.86) == []
    traded = [BETTER[0], replace(SAME[1], after=0.4), replace(SAME[2], after=0.6)]
    assert refusals(traded, 1.0, 1.2) == []


def test_what_is_not_kept() -> None:
    assert refusals(SAME, 1.0, 1.0) == ["the overall score went from 0.500 to 0.500"]
    forgot = [*BETTER[:2], replace(SAME[2], after=0.4)]
    assert refusals(forgot, 1.0, 1.0) == ["unseen pairs went from 0.500 to 0.450"]
    assert refusals(BETTER, 2.0, 1.6) == ["diversity went from 2.000 to 1.600, by more than 15%"]
    assert len(refusals([SAME[0], *forgot[1:]], 1.0, 0.1)) == 3
    with pytest.raises(DataError, match="the runs lack unseen_position"):
        refusals(BETTER[:2], 1.0, 1.0)


def test_diversity_is_the_mean_distance_of_pairs_of_one_prompt() -> None:
    """Two prompts: the corners of a unit square, and four times the same picture."""
    corners = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    features = iter([torch.tensor(corners), torch.ones(4, 2)])

    class Watcher:
        def detect(self, pixels: Tensor, *, threshold: float = 0.3) -> list[Seen]:
            rows = next(features)
            return [
                Seen(objects=(), letters=(), style="flat", background="red", features=row) for row in rows
            ]

    seeds = []

    def source(prompt: Prompt, seed: int, count: int) -> Tensor:
        seeds.append(seed)
        return torch.zeros(count, 3, 4, 4)

    prompt = Prompt(task="single_object", text="a cat", include=(Clause(object="cat"),))
    square = (4 + 2 * math.sqrt(2)) / 6
    assert diversity(source, Watcher(), [prompt, prompt], count=4) == pytest.approx(square / 2)
    assert seeds == [0, 4]
    with pytest.raises(DataError, match="at least two pictures"):
        spread(torch.zeros(1, 2))
    with pytest.raises(DataError, match="at least one prompt"):
        diversity(source, Watcher(), [])
