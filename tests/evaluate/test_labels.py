import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from limner.cli import app
from limner.errors import DataError, RequestError
from limner.evaluate import labels
from limner.evaluate.prompts import GENEVAL, Clause, Prompt
from limner.evaluate.prompts import read as read_prompts


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """One prompt of each of the six tasks, of what the tiny model and the detector know."""
    lines = []
    for task in GENEVAL:
        include: list[dict[str, object]] = [{"class": "cat", "count": 1}]
        if task in ("two_object", "position", "color_attr"):
            include.append({"class": "apple", "count": 1})
        lines.append({"tag": task, "include": include, "prompt": f"a cat {'and an apple ' * len(lines)}"})
    path = tmp_path / "six.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_pictures_are_drawn_labelled_and_compared(
    prompts: Path, tiny: Path, tmp_path: Path, detector: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "labels"
    words = ["evaluate", "label-sheet", "--model", str(tiny), "--prompts", str(prompts), "--number", "6"]
    done = CliRunner().invoke(app, [*words, "--out", str(out)], catch_exceptions=False)
    assert done.stdout.splitlines() == [
        str(out / name) for name in ("labels.jsonl", "index.html", "sheet-1.png")
    ]
    with Image.open(out / "005.png") as picture:
        assert picture.size == (64, 64)
    page = (out / "index.html").read_text()
    assert "an apple?" in page
    assert "score" not in page
    with pytest.raises(DataError, match="line 1 is no label: every answer of the eye is true or false"):
        labels.read(out / "labels.jsonl")
    rows = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    for row in rows:
        row["eye"] = [True] * len(row["asked"])
    filled = tmp_path / "filled.jsonl"
    filled.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setattr(labels, "load_detector", lambda path, device: detector)
    asked = ["evaluate", "labels", str(filled), "--model", str(tiny), "--detector", "eye"]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "all 6 9" in lines
    rows[0]["weights"] = "other"
    filled.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError, match="are of the model other"):
        CliRunner().invoke(app, asked, catch_exceptions=False)
    with pytest.raises(RequestError, match=r"already holds labels\.jsonl"):
        CliRunner().invoke(app, [*words, "--out", str(out)], catch_exceptions=False)


def test_a_label_finds_its_prompt_as_long_as_it_asks_the_same(prompts: Path) -> None:
    found = read_prompts(prompts)
    label = labels.Label(
        set=str(prompts),
        task="single_object",
        prompt=found[0].text,
        seed=1,
        weights="aa",
        asked=("a cat?",),
        eye=(True,),
    )
    assert labels.find(label, found) == found[0]
    other = Prompt(task="single_object", text=found[0].text, include=(Clause(object="dog"),))
    with pytest.raises(DataError, match="by now, and was labelled for"):
        labels.find(label, [other])
    with pytest.raises(DataError, match="hold no"):
        labels.find(label, found[1:])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eye": [True, False]}, "lists of one length"),
        ({"eye": [1]}, "true or false"),
        ({"seed": "1"}, "seed is a whole number"),
        ({"more": 1}, "it has not just set, task"),
    ],
)
def test_what_is_no_label(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    good = {
        "set": "core",
        "task": "counting",
        "prompt": "two cats",
        "seed": 1,
        "weights": "aa",
        "asked": ["exactly 2 x cat?"],
        "eye": [True],
    }
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(good) + "\n")
    assert labels.read(path)[0].eye == (True,)
    path.write_text(json.dumps(good | changed) + "\n")
    with pytest.raises(DataError, match=message):
        labels.read(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no labels"):
        labels.read(path)
    with pytest.raises(DataError, match="cannot read the labels"):
        labels.read(tmp_path)
