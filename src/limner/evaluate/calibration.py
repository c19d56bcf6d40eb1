"""Scores that are chances: which detections were right, and the curve that says so from their scores.

GenEval's thresholds, 0.3 and 0.9 in counting, are on the scores of a detector whose scores are about as often
right as they say. Peaks of a map of centres are not: they are trained against a Gaussian. Two numbers set
that right (Platt 1999, "Probabilistic outputs for support vector machines").
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from rich.table import Table
from torch import Tensor

from limner.errors import DataError
from limner.models.detector import Calibration, Detection

OVERLAP = 0.5  # intersection over union of a right detection, at least
STEPS = 50  # of Newton's method, at most; it needs about eight
BINS = 10

Box = tuple[float, float, float, float]  # left, top, right, bottom


def right(found: Sequence[Detection], there: Sequence[tuple[str, Box]]) -> list[bool]:
    """Whether each detection, taken best first, is of a thing that is there and not found before: the same
    label, and an intersection over union of 0.5 at least."""
    free, answers = list(there), {}
    for index in sorted(range(len(found)), key=lambda i: -found[i].score):
        fitting = [
            (overlap(found[index].box, box), place)
            for place, (label, box) in enumerate(free)
            if label == found[index].label
        ]
        best, place = max(fitting, default=(0.0, -1))
        answers[index] = best >= OVERLAP
        if answers[index]:
            free.pop(place)
    return [answers[index] for index in range(len(found))]


def overlap(first: Box, second: Box) -> float:
    """Intersection over union, 0 to 1."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return both / (areas - both) if both else 0.0


def fit(scores: Float[Tensor, " n"], was_right: Bool[Tensor, " n"]) -> Calibration:
    """The calibration that makes what happened likeliest, by Newton's method in float64.

    The goals are Platt's, (N+ + 1) / (N+ + 2) and 1 / (N- + 2), so that no score becomes certain. Raises
    DataError when all were right or all wrong, and when higher scores were not oftener right.
    """
    hits = int(was_right.sum())
    misses = len(was_right) - hits
    if not hits or not misses:
        raise DataError(f"a calibration needs right and wrong detections, got {hits} and {misses}; draw more")
    logit = scores.double().logit(eps=1e-9)
    goal = torch.where(was_right, (hits + 1) / (hits + 2), 1 / (misses + 2)).double()
    inputs = torch.stack([logit, torch.ones_like(logit)], 1)
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
    loss = _loss(inputs @ weights, goal)
    for _ in range(STEPS):
        chance = (inputs @ weights).sigmoid()
        gradient = inputs.T @ (chance - goal)
        bend = (inputs.T * (chance * (1 - chance))) @ inputs + 1e-9 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(bend, gradient)
        while (new := _loss(inputs @ (weights - step), goal)) > loss and step.abs().max() > 1e-9:
            step = step / 2
        weights, last, loss = weights - step, loss, new
        if last - loss < 1e-9:
            break
    slope, shift = weights.tolist()
    if slope <= 0:
        raise DataError("higher scores were not oftener right; is the detector trained?")
    return Calibration(slope=slope, shift=shift)


def reliability(
    raw: Float[Tensor, " n"], was_right: Bool[Tensor, " n"], calibration: Calibration
) -> tuple[Table, float, float]:
    """Per tenth of the calibrated scores: how many, what they say, how many were right; and the expected
    calibration error (Naeini et al. 2015) of the raw and of the calibrated scores."""
    scores = calibration.of(raw.double())
    table = Table("score", title="what scores say, and what was right", box=None, header_style="bold")
    for name in ("detections", "mean raw score", "mean score", "right"):
        table.add_column(name, justify="right")
    bins = (scores * BINS).long().clamp(0, BINS - 1)
    for place in range(BINS):
        rows = bins == place
        if rows.any():
            told = [float(values[rows].double().mean()) for values in (raw, scores, was_right)]
            shown = (f"{value:.3f}" for value in told)
            table.add_row(f"{place / BINS:.1f} to {(place + 1) / BINS:.1f}", str(int(rows.sum())), *shown)
    return table, error(raw.double(), was_right), error(scores, was_right)


def error(scores: Float[Tensor, " n"], was_right: Bool[Tensor, " n"]) -> float:
    """Mean over the detections of |mean score - share that was right| of their tenth, 0 to 1."""
    bins = (scores * BINS).long().clamp(0, BINS - 1)
    gap = torch.zeros(BINS, dtype=torch.float64)
    gap.index_add_(0, bins, scores.double() - was_right.double())
    return float(gap.abs().sum() / max(1, len(scores)))


def _loss(logits: Tensor, goal: Tensor) -> float:
    return float(torch.nn.functional.binary_cross_entropy_with_logits(logits, goal, reduction="sum"))
