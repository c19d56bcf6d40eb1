import pytest
import torch
from rich.console import Console

from limner.errors import DataError
from limner.evaluate.calibration import error, fit, overlap, reliability, right
from limner.models.detector import Calibration, Detection


def found(label: str, score: float, *box: float) -> Detection:
    left, top, across, down = box
    return Detection(label=label, score=score, box=(left, top, across, down), colour=None)


def test_a_detection_is_right_by_label_place_and_only_once() -> None:
    there = [("cat", (0.0, 0.0, 0.4, 0.4)), ("dog", (0.5, 0.5, 0.9, 0.9))]
    seen = [
        found("cat", 0.5, 0.0, 0.0, 0.4, 0.4),  # a worse one of the same cat
        found("cat", 0.9, 0.0, 0.0, 0.4, 0.3),
        found("cat", 0.8, 0.5, 0.5, 0.9, 0.9),  # the dog
        found("dog", 0.7, 0.5, 0.5, 0.71, 0.9),  # just half of it
        found("dog", 0.6, 0.1, 0.1, 0.2, 0.2),
    ]
    assert right(seen, there) == [False, True, False, True, False]
    assert right([], there) == []
    assert right(seen[:1], []) == [False]


def test_overlap() -> None:
    assert overlap((0.0, 0.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0)) == pytest.approx(1 / 7)
    assert overlap((0.0, 0.0, 1.0, 1.0), (1.0, 0.0, 2.0, 1.0)) == 0
    assert overlap((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)) == 1


def test_the_curve_that_made_the_answers_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.rand(40_000, generator=generator, dtype=torch.float64)
    made = Calibration(slope=2.5, shift=0.8)
    answers = torch.rand(len(raw), generator=generator) < made.of(raw)
    fitted = fit(raw, answers)
    assert fitted.slope == pytest.approx(made.slope, rel=0.03)
    assert fitted.shift == pytest.approx(made.shift, abs=0.05)
    table, before, after = reliability(raw, answers, fitted)
    assert before > 0.1
    assert after < 0.01
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table)
    assert "0.9 to 1.0" in captured.get()


def test_answers_that_fit_no_curve_are_refused() -> None:
    raw = torch.tensor([0.2, 0.4, 0.6, 0.8])
    with pytest.raises(DataError, match="needs right and wrong detections, got 4 and 0"):
        fit(raw, torch.tensor([True] * 4))
    with pytest.raises(DataError, match="not oftener right"):
        fit(raw, torch.tensor([True, True, False, False]))
    apart = fit(raw, torch.tensor([False, False, True, True]))
    assert 0 < apart.slope < 100, "Platt's goals keep it finite"


def test_the_error_is_the_gap_of_each_tenth() -> None:
    scores = torch.tensor([0.95, 0.95, 0.25, 0.25])
    answers = torch.tensor([True, False, False, False])
    assert error(scores, answers) == pytest.approx((2 * 0.45 + 2 * 0.25) / 4)
    assert error(scores[:0], answers[:0]) == 0
