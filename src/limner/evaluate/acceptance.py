"""Whether weights that were tuned by rewards may take the place of those that they began with.

A reward is only ever a stand-in. So the evaluator, which had no part in the tuning, has to agree with it,
also where pairs were never trained on, and pictures of one prompt must not have grown alike.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from limner.errors import DataError
from limner.evaluate.compare import OVERALL, Change
from limner.evaluate.prompts import Prompt
from limner.evaluate.run import Watcher
from limner.evaluate.sources import Source

UNSEEN = ("unseen_colors", "unseen_position")
LOSS = 0.15  # of diversity, that is let pass


def diversity(
    source: Source, watcher: Watcher, prompts: Sequence[Prompt], *, count: int = 8, seed: int = 0
) -> float:
    """Mean distance between the features of two of `count` pictures of one prompt, over all prompts. Raises
    DataError without prompts."""
    shares = []
    for number, prompt in enumerate(prompts):
        seen = watcher.detect(source(prompt, seed + number * count, count))
        shares.append(spread(torch.stack([one.features for one in seen])))
    if not shares:
        raise DataError("diversity needs at least one prompt")
    return sum(shares) / len(shares)


def spread(features: Float[Tensor, "n d"]) -> float:
    """Mean Euclidean distance of all pairs of rows; raises DataError for fewer than two."""
    if len(features) < 2:
        raise DataError(f"diversity needs at least two pictures of a prompt, got {len(features)}")
    return float(torch.pdist(features.double()).mean())


def refusals(changes: Sequence[Change], before: float, after: float) -> list[str]:
    """Why tuned weights are not to be kept; none if they are.

    `changes` are of `compare`, from the old weights to the tuned ones; `before` and `after` their diversity.
    The overall score has to rise, the two unseen tasks together must not fall, and of diversity less than
    15 % may go. Raises DataError when the runs lack one of these.
    """
    of = {change.task: change for change in changes}
    if missing := [task for task in (OVERALL, *UNSEEN) if task not in of]:
        raise DataError(f"the runs lack {', '.join(missing)}; evaluate all tasks")
    reasons = []
    whole = of[OVERALL]
    if whole.after <= whole.before:
        reasons.append(f"the overall score went from {whole.before:.3f} to {whole.after:.3f}")
    old, new = (sum(getattr(of[task], side) for task in UNSEEN) / len(UNSEEN) for side in ("before", "after"))
    if new < old:
        reasons.append(f"unseen pairs went from {old:.3f} to {new:.3f}")
    if after < (1 - LOSS) * before:
        reasons.append(f"diversity went from {before:.3f} to {after:.3f}, by more than {LOSS:.0%}")
    return reasons
