"""From the command line to the files, with a tiny model and a detector that only knows light from dark."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from limner.cli import app
from limner.errors import DataError, RequestError, WeightsError
from limner.evaluate import session
from limner.evaluate.run import Judged
from limner.evaluate.session import Settings
from limner.weights import detector as detectors
from limner.weights.files import save

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
    assert found["left_out"] == []
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


def test_a_run_that_was_cut_short_goes_on(
    asked: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(*asked, "--out", whole)
    evaluate = session.evaluate
    numbers: list[int] = []

    def counting(*words: Any, **more: Any) -> Iterator[list[Judged]]:
        for number, judged in enumerate(evaluate(*words, **more)):
            if number not in more["known"]:
                numbers.append(number)
            yield judged
            if len(numbers) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(session, "evaluate", counting)
    with pytest.raises(KeyboardInterrupt):
        session.run(settings_of(asked), folder=cut)
    with pytest.raises(RequestError, match="cut short; go on with it by --resume"):
        run(*asked, "--out", cut)
    with pytest.raises(RequestError, match="has the steps 2, not 3"):
        run(*asked, "--resume", "--steps", 3, "--out", cut)
    numbers.append(-1)
    done = run(*asked, "--resume", "--out", cut, "--sheet", cut / "failures.png")
    assert done.stdout.splitlines()[-1] == str(cut / "failures.png")
    assert numbers == [0, 1, -1, 2, 3] or numbers == [0, 1, -1, 1, 2, 3]
    assert told(cut) == told(whole)
    assert sorted(path.name for path in cut.iterdir()) == [
        "composition.html",
        "composition.json",
        "failures.png",
    ]


def settings_of(asked: list[object]) -> Settings:
    """What the words of `asked` say."""
    said = dict(zip(map(str, asked[2::2]), asked[3::2], strict=True))
    return Settings(
        model=str(said["--model"]),
        detector=Path(str(said["--detector"])),
        prompts=str(said["--prompts"]),
        steps=2,
        count=2,
        seed=3,
        world=Path(str(said["--world"])),
    )


def test_references_are_composed_as_the_model_was_trained(tiny: Path, tmp_path: Path) -> None:
    assert session.trained_world(str(tiny)) is None
    path = tmp_path / "base.safetensors"
    world = {"denoise": {"world": {"jitter": 0.012, "stretch": 0.03, "word": 0.0}}}
    save({"a": torch.zeros(1)}, path, {"run": json.dumps(world)})
    settings = Settings(model=str(tmp_path))
    config, whose = session._world_config(settings)
    assert (config.jitter, config.stretch, config.word, whose) == (0.012, 0.03, 0.1, "the model's header")
    config, whose = session._world_config(replace(settings, stretch=0.2))
    assert (config.jitter, config.stretch, whose) == (0.012, 0.2, "the command")
    config, whose = session._world_config(replace(settings, model=str(tiny)))
    assert (config.jitter, whose) == (0.04, "the world's defaults")
    with pytest.raises(RequestError, match=r"jitter is from 0 to 0.3, got 0\.9"):
        session._world_config(replace(settings, jitter=0.9))


def test_what_the_detector_cannot_judge_is_left_out_and_said(asked: list[object], tmp_path: Path) -> None:
    line = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"}
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    done = run(*asked, "--task", "single_object", "--out", tmp_path / "run")
    assert "1 prompts were left out" in " ".join(done.stdout.split())
    found = told(tmp_path / "run")
    assert found["left_out"] == [{"prompt": "a bench", "reason": 'the detector knows no "bench"'}]
    assert found["scores"]["single_object"]["prompts"] == 2


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
