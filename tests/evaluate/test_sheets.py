import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from limner.errors import RequestError
from limner.evaluate.composition import Verdict
from limner.evaluate.prompts import Clause, Prompt
from limner.evaluate.run import Judged, thumbnail
from limner.evaluate.sheets import captioned, failure_sheet, failures, save
from limner.models.detector import Seen

Make = Callable[..., Judged]


@pytest.fixture
def judged(thing: Callable[..., object], view: Callable[..., Seen]) -> Make:
    def make(task: str, text: str, *, right: bool = False, drawn: bool = True) -> Judged:
        levels = torch.randint(256, (48, 48, 3), generator=torch.Generator().manual_seed(len(text)))
        noise = Image.fromarray(levels.to(torch.uint8).numpy())
        return Judged(
            prompt=Prompt(task=task, text=text, include=(Clause(object="cat"),)),
            seed=1,
            verdict=Verdict(reasons=() if right else ("wanted a cat, found none",)),
            seen=view(thing("dog", colour="red")) if drawn else None,
            thumbnail=thumbnail(noise) if drawn else b"",
        )

    return make


def test_failures_come_from_all_tasks_in_turn(judged: Make) -> None:
    ones = [judged("single_object", f"prompt {i}") for i in range(30)]
    ones += [judged("single_object", "prompt 0"), judged("single_object", "right", right=True)]
    ones += [judged("counting", "two"), judged("word", "refused", drawn=False), judged("position", "left")]
    chosen = failures(ones, 6)
    assert [one.prompt.task for one in chosen[:3]] == ["single_object", "counting", "position"]
    assert [one.prompt.task for one in chosen[3:]] == ["single_object"] * 3
    assert failures(ones, 6) == chosen
    assert failures(ones, 6, seed=1) != chosen
    everything = failures(ones, 100)
    assert len(everything) == len({one.prompt.text for one in everything}) == 32
    assert failures([], 5) == []


def test_a_sheet_fits_a_repository(judged: Make, tmp_path: Path) -> None:
    ones = [judged("single_object", f"a prompt that goes on for more than one line {i}") for i in range(20)]
    sheet = failure_sheet(ones)
    assert sheet.width == 5 * 156 + 6
    path = tmp_path / "docs" / "failures.png"
    size = save(sheet, path)
    assert size == path.stat().st_size <= 300_000
    with Image.open(path) as written:
        assert written.size == sheet.size
    with pytest.raises(RequestError, match="show fewer pictures"):
        save(sheet, path, largest=1000)
    with pytest.raises(RequestError, match="cannot write"):
        save(sheet, path / "below.png")


def test_captions_are_written_below(judged: Make) -> None:
    image = Image.open(io.BytesIO(judged("counting", "a").thumbnail))
    bare, told = (captioned([(image, [text])], width=100) for text in ("", "a cat"))
    assert told.height > bare.height
    levels = torch.frombuffer(bytearray(told.tobytes()), dtype=torch.uint8)
    assert levels.view(told.height, told.width, 3)[image.height + 10 :].min() < 100
    assert captioned([(image.resize((400, 200)), ["wide"])], width=100).width == 112
    with pytest.raises(RequestError, match="nothing to show"):
        captioned([], width=100)
