"""The built-in model is held to its recorded score."""

from dataclasses import replace
from pathlib import Path

import pytest

from limner.errors import DataError
from limner.evaluate import gate
from limner.evaluate.prompts import GENEVAL
from limner.evaluate.prompts import read as read_prompts
from limner.evaluate.run import stratified

MEASURED = gate.Measured(
    overall=0.80, shares=dict.fromkeys(GENEVAL, 0.8), count=1, weights="aa", detector="bb"
)


def test_the_score_has_not_fallen() -> None:
    before = gate.recorded()
    assert gate.fallen(gate.measure(count=before.count), before) is None


def test_the_prompts_are_ten_of_each_task_and_always_the_same() -> None:
    prompts = read_prompts("core")
    chosen = stratified(prompts, gate.PROMPTS, gate.SEED)
    assert [prompt.task for prompt in chosen] == [task for task in GENEVAL for _ in range(10)]
    assert len({prompt.text for prompt in chosen}) == 60
    assert chosen == stratified(prompts, gate.PROMPTS, gate.SEED)
    assert chosen != stratified(prompts, gate.PROMPTS, gate.SEED + 1)


def test_four_points_are_let_pass() -> None:
    assert gate.fallen(replace(MEASURED, overall=0.761), MEASURED) is None
    assert gate.fallen(replace(MEASURED, weights="cc", overall=0.9), MEASURED) is None
    said = gate.fallen(replace(MEASURED, overall=0.75), MEASURED)
    assert said == "75.0 %, more than 4 points under 80.0 %"
    for other in (replace(MEASURED, detector="cc"), replace(MEASURED, count=4)):
        with pytest.raises(DataError, match="record it anew"):
            gate.fallen(other, MEASURED)


def test_a_score_is_recorded_and_read(tmp_path: Path) -> None:
    path = tmp_path / "recorded.json"
    with pytest.raises(DataError, match="record one by"):
        gate.recorded(path)
    gate.record(MEASURED, path)
    assert gate.recorded(path) == MEASURED
    path.write_text("{}")
    with pytest.raises(DataError, match="is no recorded score"):
        gate.recorded(path)
