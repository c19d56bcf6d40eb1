import json
from pathlib import Path

import pytest
from rich.console import Console

from limner.errors import DataError
from limner.evaluate.compare import OVERALL, Change, compare, read, table
from limner.evaluate.composition import PROTOCOL
from limner.evaluate.prompts import GENEVAL


def written(path: Path, right: dict[tuple[str, str], list[bool]], detector: str = "eye") -> Path:
    pictures = [
        {"task": task, "prompt": text, "right": one} for (task, text), each in right.items() for one in each
    ]
    path.write_text(json.dumps({"protocol": PROTOCOL, "detector": detector, "pictures": pictures}))
    return path


def test_a_known_difference(tmp_path: Path) -> None:
    """Every prompt of a task is better by half: the interval has no width."""
    tasks = [*GENEVAL, "word"]
    before = {(task, f"{i}"): [i % 2 == 0, False] for task in tasks for i in range(10)}
    after = {key: [each[0], True] for key, each in before.items()}
    changes = compare(written(tmp_path / "a", before), written(tmp_path / "b", after))
    assert [change.task for change in changes] == [*GENEVAL, OVERALL, "word"]
    for change in changes:
        assert (change.before, change.after) == pytest.approx((0.25, 0.75))
        assert (change.low, change.high) == pytest.approx((0.5, 0.5))
        assert change.sure
    assert changes[6].prompts == 60


def test_intervals_are_those_of_the_mean_difference(tmp_path: Path) -> None:
    """40 of 100 prompts turn right, 20 turn wrong: mean 0.2, standard error (0.56 / 100)^(1/2)."""
    before = {("counting", f"{i}"): [i < 20] for i in range(100)}
    after = {("counting", f"{i}"): [20 <= i < 60] for i in range(100)}
    first, second = written(tmp_path / "a", before), written(tmp_path / "b", after)
    (change,) = compare(first, second)
    spread = 1.96 * (0.56 / 100) ** 0.5
    assert (change.low, change.high) == pytest.approx((0.2 - spread, 0.2 + spread), abs=0.015)
    assert compare(first, second) == [change], "seeded"
    assert compare(first, second, seed=1) != [change]
    (back,) = compare(second, first)
    assert (back.low, back.high) == pytest.approx((-change.high, -change.low), abs=0.011)


def test_no_change_is_not_sure(tmp_path: Path) -> None:
    before = {("word", f"{i}"): [i % 3 == 0] for i in range(30)}
    after = {("word", f"{i}"): [i % 3 == 1] for i in range(30)}
    (change,) = compare(written(tmp_path / "a", before), written(tmp_path / "b", after))
    assert change.low < 0 < change.high
    assert not change.sure


def test_only_prompts_of_both_count(tmp_path: Path) -> None:
    a = written(tmp_path / "a", {("word", "one"): [True, False], ("word", "two"): [True]})
    folder = tmp_path / "run"
    folder.mkdir()
    written(folder / "composition.json", {("word", "one"): [True, True], ("colors", "two"): [True]})
    (change,) = compare(a, folder)
    assert change == Change(task="word", before=0.5, after=1.0, low=0.5, high=0.5, prompts=1)


def test_the_table(tmp_path: Path) -> None:
    a = written(tmp_path / "a", {("word", "one"): [True, False]})
    b = written(tmp_path / "b", {("word", "one"): [True, True]})
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table(compare(a, b)))
    lines = [" ".join(line.split()) for line in captured.get().splitlines()]
    assert lines == [
        PROTOCOL,
        "task A B B - A 95% interval prompts",
        "word 50.0 % 100.0 % +50.0 +50.0 to +50.0 1",
    ]


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a = written(tmp_path / "a", {("word", "one"): [True]})
    with pytest.raises(DataError, match="no prompt in common"):
        compare(a, written(tmp_path / "b", {("word", "two"): [True]}))
    with pytest.raises(DataError, match=r"by the detector eye, .* by other; use one for both"):
        compare(a, written(tmp_path / "c", {("word", "one"): [True]}, "other"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no run"),
        ("[1]", "is no run"),
        ('{"protocol": "GenEval"}', "is no run"),
        (json.dumps({"protocol": PROTOCOL}), "is a broken run"),
        (json.dumps({"protocol": PROTOCOL, "detector": "x", "pictures": [3]}), "is a broken run"),
        (
            json.dumps(
                {
                    "protocol": PROTOCOL,
                    "detector": "x",
                    "pictures": [{"task": "x", "prompt": "y", "right": 1}],
                }
            ),
            "is a broken run",
        ),
    ],
)
def test_files_that_are_no_runs(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "run")


def test_missing_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the run"):
        read(tmp_path)
    with pytest.raises(DataError, match="cannot read the run"):
        read(tmp_path / "none")
