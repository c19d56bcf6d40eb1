import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limner.errors import RequestError
from limner.evaluate.composition import Verdict
from limner.evaluate.journal import FILE, Journal, refuse
from limner.evaluate.prompts import Clause, Prompt
from limner.evaluate.run import Judged
from limner.models.detector import Seen

PROMPTS = [Prompt(task="single_object", text=text, include=(Clause(object="cat"),)) for text in ("a", "b")]
SETTINGS = {"model": "mini", "seed": 3, "limit": None}


@pytest.fixture
def pictures(thing: Callable[..., object], view: Callable[..., Seen]) -> list[Judged]:
    """One that was looked at, one that was refused."""
    seen = view(thing("cat", colour="red", score=1 / 3), letters=(thing("H", 0.1),))
    one = Judged(
        prompt=PROMPTS[1], seed=3, verdict=Verdict(reasons=("wrong",)), seen=seen, thumbnail=b"\x00\xff"
    )
    refused = Verdict(reasons=("not drawn",))
    return [one, Judged(prompt=PROMPTS[1], seed=4, verdict=refused, seen=None, thumbnail=b"")]


def test_what_was_judged_comes_back_exactly(pictures: list[Judged], tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", SETTINGS)
    journal.write("mini", 1, pictures)
    journal.close()
    again = Journal(tmp_path / "run", SETTINGS, resume=True)
    assert again.known("ceiling", PROMPTS) == {}
    back = again.known("mini", PROMPTS)[1]
    again.write("mini", 1, pictures)  # known: not written again
    again.close()
    assert len((tmp_path / "run" / FILE).read_text().splitlines()) == 2
    for mine, its in zip(pictures, back, strict=True):
        assert (mine.prompt, mine.seed, mine.verdict) == (its.prompt, its.seed, its.verdict)
        assert mine.thumbnail == its.thumbnail
    first, seen = pictures[0].seen, back[0].seen
    assert first is not None
    assert seen is not None
    assert (first.objects, first.letters, first.style) == (seen.objects, seen.letters, seen.style)
    assert torch.equal(first.features, seen.features)
    assert back[1].seen is None


def test_a_torn_line_is_cut_off(pictures: list[Judged], tmp_path: Path) -> None:
    journal = Journal(tmp_path, SETTINGS)
    journal.write("mini", 0, pictures)
    journal.close()
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"source": "mini", "number": 1, "pic')
    again = Journal(tmp_path, SETTINGS, resume=True)
    again.write("mini", 1, pictures)
    again.close()
    last = Journal(tmp_path, SETTINGS, resume=True)
    assert sorted(last.known("mini", PROMPTS)) == [0, 1]
    last.close()


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    Journal(tmp_path, SETTINGS).close()
    with pytest.raises(RequestError, match="has the seed 3, not 4; resume with the same settings"):
        Journal(tmp_path, SETTINGS | {"seed": 4}, resume=True)
    with pytest.raises(RequestError, match=r"has the steps null, not \[16\]"):
        Journal(tmp_path, SETTINGS | {"steps": (16,)}, resume=True)
    with pytest.raises(RequestError, match="cut short; go on with it by --resume"):
        Journal(tmp_path, SETTINGS)
    with pytest.raises(RequestError, match="cut short"):
        refuse(tmp_path)


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no run to go on with"):
        Journal(tmp_path, SETTINGS, resume=True)
    (tmp_path / FILE).write_text(json.dumps(SETTINGS) + "\n[1]\n")
    with pytest.raises(RequestError, match="is broken; delete it"):
        Journal(tmp_path, SETTINGS, resume=True)
    (tmp_path / FILE).write_text("")
    with pytest.raises(RequestError, match="is broken; delete it"):
        Journal(tmp_path, SETTINGS, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot write"):
        Journal(tmp_path / "file", SETTINGS)
