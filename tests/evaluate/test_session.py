"""From the command line to the files, with a tiny model and a detector that only knows light from dark."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from limner.cli import app
from limner.errors import DataError, RequestError, WeightsError
from limner.evaluate import session
from limner.evaluate.session import Settings
from limner.weights import detector as detectors

LINES = """\
{"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"}
{"tag": "single_object", "include": [{"class": "apple", "count": 1}], "prompt": "an apple"}
{"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a red cat"}
{"tag": "word", "include": [{"class": "zebra", "count": 1}], "word": "HI", "prompt": "a zebra"}
"""


def run(*words: object) -> Result:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def asked(tiny: Path, tmp_path: Path, detector: object, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The words of a short evaluation."""
    (tmp_path / "prompts.jsonl").write_text(LINES)
    (tmp_path / "eye").write_bytes(b"an eye")
    monkeypatch.setattr(detectors, "load_detector", lambda path, device: detector)
    words: list[object] = ["evaluate", "composition", "--model", tiny, "--detector", tmp_path / "eye"]
    words += ["--prompts", tmp_path / "prompts.jsonl", "--steps", 2, "--count", 2, "--seed", 3]
    return [*words, "--world", tmp_path / "world"]


def told(folder: Path) -> Any:
    return json.loads((folder / "composition.json").read_text())


def test_an_evaluation_from_end_to_end(asked: list[object], tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(*asked, "--out", out)
    assert done.stdout.splitlines()[-2:] == [str(out / "composition.json"), str(out / "composition.html")]
    assert "GenEval protocol on the drawn world" in done.stdout
    assert "single_object" in done.stdout
    found = told(out)
    assert (found["model"], found["steps"], found["count"]) == (str(tiny), 2, 2)
    assert len(found["detector"]) == 10
    assert [picture["seed"] for picture in found["pictures"]] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert found["pictures"][-1]["reasons"][0].startswith("not drawn: the prompt names nothing")
    assert found["beside"] == {}
    assert found["overall"] is None
    assert "<!doctype html>" in (out / "composition.html").read_text()


def test_references_stand_beside_the_score(
    asked: list[object], tiny: Path, atlas_folder: Path, tmp_path: Path
) -> None:
    names = (
        "apple",
        "tree",
        "key",
        "house",
        "star",
        "ring",
        "balloon",
    )  # enough for scenes that keep the rule
    lines = [
        {"tag": "two_object", "include": [{"class": "cat"}, {"class": name}], "prompt": f"a cat and a {name}"}
        for name in names
    ]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    heard: list[tuple[str, int, int]] = []
    settings = Settings(
        model=str(tiny),
        detector=tmp_path / "eye",
        prompts=str(path),
        count=1,
        steps=1,
        world=atlas_folder,
        captions=100,
    )
    report = session.run(settings, progress=lambda *told: heard.append(told))
    assert list(report.beside) == ["ceiling", "nearest"]
    assert report.beside["ceiling"]["two_object"].pictures == 7
    assert set(report.distances) == {"fid-world", "kid-world"}
    assert heard[-1] == ("nearest", 7, 7)
    with pytest.raises(RequestError, match="stands beside every model"):
        session.run(replace(settings, model="ceiling"))


def test_runs_are_compared(asked: list[object], tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 50)):
        run(*asked, "--seed", seed, "--task", "single_object", "--limit", 1, "--out", tmp_path / name)
    done = run("evaluate", "compare", tmp_path / "one", tmp_path / "two" / "composition.json")
    assert "B - A" in done.stdout
    assert "single_object" in done.stdout


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (("--limit", 0), RequestError, "limit is at least 1"),
        (("--task", "colour"), RequestError, 'no task "colour"'),
        (("--count", 0), RequestError, "count is a whole number from 1 to 64"),
        (("--seed", -1), RequestError, "seed is a whole number from 0"),
        (("--seed", 2**63 - 3), RequestError, "seed is a whole number from 0"),
        (("--steps", 0), RequestError, "steps is a whole number"),
        (("--sampler", "eulr"), RequestError, 'did you mean "euler"'),
        (("--prompts", "cores"), DataError, 'did you mean "core"'),
        (("--model", "minni"), RequestError, 'did you mean "mini"'),
        (("--references",), DataError, "no atlas in"),
    ],
)
def test_settings_that_cannot_be_met(
    asked: list[object], tmp_path: Path, more: tuple[object, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(*asked, *more, "--out", tmp_path / "run")


def test_a_folder_with_a_run_is_left_alone(asked: list[object], tmp_path: Path) -> None:
    (tmp_path / "composition.html").write_text("")
    with pytest.raises(RequestError, match=r"already holds composition\.html"):
        run(*asked, "--out", tmp_path)


def test_a_detector_that_is_none(
    asked: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        run(*asked, "--out", tmp_path / "run")
