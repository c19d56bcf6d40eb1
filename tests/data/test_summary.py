"""A set in numbers."""

from pathlib import Path

import pytest

from limner.data import summary
from limner.data.records import DataSet, Record, Reject
from limner.data.steps import write
from limner.data.summary import summarise


def a_set(folder: Path, records: list[Record | Reject]) -> DataSet:
    data = DataSet.create(folder)
    list(write(data, "found", {}, records))
    return data


def test_everything_is_counted(tmp_path: Path) -> None:
    sizes = [(64, 64), (512, 512), (512, 768), (1024, 512), (3000, 300)]
    captions = ["a dog", "", "a dog and the well-known cat's toy", "Hündchen, DOG", "x " * 80]
    records: list[Record | Reject] = [
        Record(
            key=str(i),
            picture=f"/{i}.png",
            width=width,
            height=height,
            caption=caption.strip(),
            long_caption="long" if i == 0 else "",
            repeats=3 if i == 1 else 1,
            facts={"blur": 0.5} if i else {},
        )
        for i, ((width, height), caption) in enumerate(zip(sizes, captions, strict=True))
    ]
    rejects = [Reject(key="r", picture="/r", reason="broken"), Reject(key="s", picture="/s", reason="broken")]
    told = summarise(a_set(tmp_path, records + rejects), words=3, shown=3)
    assert (told.pictures, told.shown, told.long_captions) == (5, 7, 1)
    assert (told.pixels[0], told.pixels[2]) == (64 * 64, 3000 * 300)
    assert told.pixels[1] == pytest.approx(512 * 768, rel=0.1)
    assert {name: n for name, n in told.sides.items() if n} == {
        "64 to 128": 1,
        "256 to 384": 1,
        "512 to 768": 3,
    }
    assert {name: n for name, n in told.aspects.items() if n} == {
        "0.6 to 0.7": 1,
        "0.9 to 1.1": 2,
        "2.0 to 2.5": 1,
        "from 2.5": 1,
    }
    assert {name: n for name, n in told.captions.items() if n} == {
        "none": 1,
        "1 to 6": 2,
        "6 to 11": 1,
        "from 78": 1,
    }
    assert told.words[:2] == (("x", 80), ("dog", 3))
    assert told.repeats == {1: 4, 3: 1}
    assert told.facts == ("blur",)
    assert told.rejects == {"found: broken": 2}
    assert [record.key for record in told.sheet] == ["0", "2", "4"]


def test_an_empty_set_is_no_mistake(tmp_path: Path) -> None:
    told = summarise(a_set(tmp_path, [Reject(key="r", picture="/r", reason="broken")]))
    assert (told.pictures, told.pixels, told.words, told.sheet) == (0, (0, 0, 0), (), ())


def test_rare_words_are_forgotten_before_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "MOST_WORDS", 50)
    records: list[Record | Reject] = [
        Record(key=str(i), picture="/p", caption=f"dog word{i}") for i in range(200)
    ]
    assert summarise(a_set(tmp_path, records)).words[0] == ("dog", 200)
