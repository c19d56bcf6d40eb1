import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from limner.errors import RequestError
from limner.evaluate import report
from limner.evaluate.composition import PROTOCOL, Score, Verdict
from limner.evaluate.foreign import LeftOut
from limner.evaluate.journal import Journal
from limner.evaluate.page import page
from limner.evaluate.prompts import GENEVAL, Clause, Prompt
from limner.evaluate.report import Report
from limner.evaluate.run import Judged
from limner.models.detector import Detection, Seen

Maker = Callable[..., Detection]
View = Callable[..., Seen]


@pytest.fixture
def judged(thing: Maker, view: View) -> list[Judged]:
    """One prompt of each of the six tasks, right and wrong, and one of `word` that was not drawn."""
    pictures = []
    for task in GENEVAL:
        asked = Prompt(task=task, text=f"a <b>cat</b> & {task}", include=(Clause(object="cat"),))
        for seed, reasons in enumerate(((), ("wanted a <cat>, found none",))):
            seen = view(thing("cat", colour="red"), letters=(thing("H", 0.1),))
            pictures.append(
                Judged(
                    prompt=asked, seed=seed, verdict=Verdict(reasons=reasons), seen=seen, thumbnail=b"RIFF"
                )
            )
    asked = Prompt(task="word", text="a word", include=(Clause(object="cat"),), word="HI")
    refused = Verdict(reasons=("not drawn: it was refused",))
    return [*pictures, Judged(prompt=asked, seed=9, verdict=refused, seen=None, thumbnail=b"")]


@pytest.fixture
def done(judged: list[Judged]) -> Report:
    ceiling = {task: Score(right=9, pictures=10, prompts=5) for task in (*GENEVAL, "word")}
    return Report(
        about={"model": "mi<ni>", "detector": "0123456789"},
        judged=judged,
        beside={"ceiling": ceiling},
        distances={"fid-world": 1.25, "kid-world": 0.0625},
    )


def printed(table: object) -> list[str]:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    return [" ".join(line.split()) for line in captured.get().splitlines()]


def test_the_table_keeps_the_six_apart(done: Report) -> None:
    lines = printed(report.table(done))
    assert lines[0] == PROTOCOL
    assert lines[1] == "task right ceiling pictures prompts"
    assert lines[2] == "single_object 50.0 % 90.0 % 2 1"
    assert lines[8] == "overall, mean of the six 50.0 % 90.0 %"
    assert lines[-3:] == ["word 0.0 % 90.0 % 1 1", "fid-world 1.25", "kid-world 0.0625"]


def test_a_part_has_no_overall(done: Report) -> None:
    part = replace(done, judged=done.judged[2:])
    assert "overall, mean of the six – 90.0 %" in printed(report.table(part))
    assert report.to_dict(part)["overall"] is None


def test_json_tells_all(done: Report) -> None:
    told = json.loads(json.dumps(report.to_dict(done)))
    assert told["protocol"] == PROTOCOL
    assert told["overall"] == 0.5
    assert list(told["scores"]) == [*GENEVAL, "word"]
    assert told["scores"]["word"] == {"share": 0.0, "right": 0, "pictures": 1, "prompts": 1}
    assert told["beside"]["ceiling"]["overall"] == pytest.approx(0.9)
    assert told["distances"] == {"fid-world": 1.25, "kid-world": 0.0625}
    assert len(told["pictures"]) == 13
    first, last = told["pictures"][0], told["pictures"][-1]
    assert first["seen"]["objects"] == [
        {"label": "cat", "score": 0.95, "box": [0.4, 0.4, 0.6, 0.6], "colour": "red"}
    ]
    assert first["seen"]["word"] == "H"
    assert (first["right"], last["right"]) == (True, False)
    assert last["seen"] is None


def test_the_page_needs_nothing_else_and_escapes_everything(done: Report) -> None:
    text = page(done)
    assert "http" not in text
    assert "<script" not in text
    assert "mi&lt;ni&gt;" in text
    assert "a &lt;b&gt;cat&lt;/b&gt; &amp; position" in text
    assert "<b>cat</b>" not in text
    assert "<b>wanted a &lt;cat&gt;, found none</b>" in text
    shown = 6  # of the wrong pictures stand at the top, too
    assert "6 of 7 pictures that were wrong" in text
    assert text.count('src="data:image/webp;base64,UklGRg=="') == 12 + shown
    assert text.count('class="right"') == 6
    assert text.count('class="wrong"') == 7 + shown
    assert "cat 0.95 red; the word &quot;H&quot;; flat, white" in text
    assert "left:40.0%;top:40.0%;width:20.0%;height:20.0%" in text
    assert "single_object: 50.0 % of 2 pictures" in text
    assert "not drawn: it was refused" in text


def test_what_was_left_out_is_said(done: Report) -> None:
    part = replace(done, left_out=[LeftOut(text="a <bench>", reason="no bench")])
    assert "1 prompts were left out: the detector cannot judge them" in printed(report.table(part))
    assert report.to_dict(part)["left_out"] == [{"prompt": "a <bench>", "reason": "no bench"}]
    assert "<dt>a &lt;bench&gt;</dt><dd>no bench</dd>" in page(part)


def test_saving_never_overwrites_a_run(done: Report, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    report.prepare(folder)
    assert list(folder.iterdir()) == []
    assert report.save(done, folder) == [folder / "composition.json", folder / "composition.html"]
    with pytest.raises(RequestError, match=r"already holds composition\.json; choose another"):
        report.prepare(folder, resume=True)
    short = tmp_path / "short"
    Journal(short, {}).close()
    with pytest.raises(RequestError, match="cut short; go on with it by --resume"):
        report.prepare(short)
    report.prepare(short, resume=True)
    report.save(done, short)
    assert sorted(path.name for path in short.iterdir()) == ["composition.html", "composition.json"]
    with pytest.raises(RequestError, match="cannot write to"):
        report.prepare(folder / "composition.json" / "below")
    with pytest.raises(RequestError, match="cannot write to"):
        report.save(done, tmp_path / "missing")
