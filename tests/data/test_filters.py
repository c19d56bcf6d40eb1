import hashlib
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from limner.cli import app
from limner.data.chain import rehearse
from limner.data.filters import Block, Filter, read_block, read_scores
from limner.data.hashes import phash
from limner.data.records import DataSet, Record, Reject
from limner.data.steps import run
from limner.errors import ConfigError, DataError

SetOf = Callable[..., DataSet]


def brightness(pictures: list[Image.Image]) -> list[float]:
    """A judge: the mean level of each picture."""
    return [sum(one.convert("L").histogram()[128:]) / (one.width * one.height) for one in pictures]


@pytest.fixture
def mixed(set_of: SetOf, scenes: list[Image.Image]) -> DataSet:
    """One picture of each fate."""
    pictures = {
        "good": scenes[0],
        "small": scenes[1].resize((40, 192)),
        "narrow": scenes[1].resize((800, 100)),
        "blurred": scenes[2].filter(ImageFilter.GaussianBlur(5)),
        "empty": Image.new("RGB", (200, 200), "white"),
        "broken": scenes[3],
        "missing": scenes[4],
        "said": scenes[5],
    }
    data = set_of(pictures, {"said": "A Top  Secret\tcat", "good": "topsecret cats"})
    folder = data.folder.parent / "set-pictures"
    content = (folder / "broken.png").read_bytes()
    (folder / "broken.png").write_bytes(content[: len(content) // 2])
    (folder / "missing.png").unlink()
    return data


def reasons(data: DataSet, step: Filter, **options: object) -> dict[str, str]:
    list(run(data, step, **options))  # type: ignore[arg-type]
    return {one.key: one.reason for one in data.rejects()}


def test_each_goes_for_its_reason_and_says_why(mixed: DataSet) -> None:
    step = Filter(block=Block(words=("top secret",)))
    assert reasons(mixed, step) == {
        "small": "small",
        "narrow": "narrow",
        "blurred": "blurred",
        "empty": "empty",
        "broken": "broken",
        "missing": "missing",
        "said": "blocked",
    }
    told = {one.key: one.detail for one in mixed.rejects()}
    assert told["small"] == "40 x 192, the shorter side below 64"
    assert told["narrow"] == "800 x 100, 8.00 to 1, above 4"
    assert told["empty"] == "entropy 0.0, below 0.5 bits"
    assert "below 3" in told["blurred"]
    assert told["said"] == r"its caption says 'Top  Secret'"
    (good,) = mixed.records()
    assert set(good.facts) == {"sharpness", "entropy"}
    assert mixed.steps[-1].settings["block"]["words"] == ["top secret"]  # type: ignore[index]


def test_workers_change_nothing_and_the_step_can_be_sent_to_them(mixed: DataSet) -> None:
    step = Filter(text=0.5)
    assert pickle.loads(pickle.dumps(step)) == step  # noqa: S301 (our own)
    told = [one for one in rehearse(mixed, step, workers=2) if isinstance(one, Reject)]
    assert len(mixed.steps) == 1, "a rehearsal leaves the set as it is"
    assert {path.name for path in mixed.folder.iterdir()} == {"01-import", "set.json", ".lock"}
    list(run(mixed, step))
    assert told == list(mixed.rejects())


def test_text_is_measured_only_if_asked(set_of: SetOf, scenes: list[Image.Image]) -> None:
    data = set_of({"a": scenes[0]})
    list(run(data, Filter(text=0.9)))
    (record,) = data.records()
    assert 0 <= record.facts["text"] < 0.1


@pytest.mark.parametrize("kind", [".parquet", ".csv"])
def test_scores_from_a_file(set_of: SetOf, scenes: list[Image.Image], tmp_path: Path, kind: str) -> None:
    data = set_of(dict(zip("abcd", scenes[:4], strict=True)))
    path = tmp_path / f"scores{kind}"
    if kind == ".csv":
        path.write_text("score,more,key\n0.9,x,a\n0.2,y,b\nnan,z,d\n0.7,,elsewhere\n")
    else:
        pq.write_table(pa.table({"key": ["a", "b", "d"], "score": [0.9, 0.2, math.nan]}), path)
    assert reasons(data, Filter(scores=str(path), score=0.5)) == {
        "b": "low score",
        "c": "unscored",
        "d": "unscored",
    }
    assert [record.facts["score"] for record in data.records()] == [0.9]
    (tmp_path / f"none{kind}").write_text("key\na\n")
    with pytest.raises(DataError, match="holds no scores"):
        read_scores(tmp_path / f"none{kind}", ["a"])


def test_a_judge_is_named_in_the_settings_and_must_judge_all(
    set_of: SetOf, scenes: list[Image.Image]
) -> None:
    data = set_of({"light": Image.blend(scenes[0], Image.new("RGB", scenes[0].size, "white"), 0.7)})
    list(run(data, Filter(judge=brightness, score=0.5)))
    (record,) = data.records()
    assert record.facts["score"] > 0.5
    assert str(data.steps[-1].settings["judge"]).endswith("brightness")
    with pytest.raises(DataError, match="0 scores for 1 pictures"):
        Filter(judge=lambda pictures: []).part([record])


def test_the_block_list(set_of: SetOf, scenes: list[Image.Image], tmp_path: Path) -> None:
    data = set_of(
        {"web_1": scenes[0], "copy": scenes[1], "file": scenes[2], "cat": scenes[3], "good": scenes[4]},
        {"cat": "A CAT, sitting", "good": "concatenate: ratio 1"},
    )
    digest = hashlib.sha256((data.folder.parent / "set-pictures" / "file.png").read_bytes()).hexdigest()
    encoded = io.BytesIO()
    scenes[1].save(encoded, "JPEG", quality=70)
    path = tmp_path / "block.txt"
    path.write_text(
        f"# unwanted\n\ncat\nkey: web_*\nphash: {phash(Image.open(encoded)):016X}\nsha256: {digest}\n"
        "ratio: 2\n"
    )
    block = read_block(path)
    assert block.words == ("cat", "ratio: 2")
    assert set(reasons(data, Filter(block=block)).items()) == {
        (key, "blocked") for key in ("web_1", "copy", "file", "cat")
    }
    told = {one.key: one.detail for one in data.rejects()}
    assert told["cat"] == "its caption says 'CAT'"
    assert "looks like" in told["copy"]
    for wrong in ("phash: 12", "sha256: zz", "key:"):
        path.write_text(wrong)
        with pytest.raises(DataError, match="line 1"):
            read_block(path)
    with pytest.raises(DataError, match="cannot read the block list"):
        read_block(tmp_path / "none.txt")


def test_a_huge_picture_is_not_decoded(tmp_path: Path, huge_png: bytes) -> None:
    (tmp_path / "huge.png").write_bytes(huge_png)
    outcome = Filter().part([Record(key="huge", picture=str(tmp_path / "huge.png"))])
    assert [one.reason for one in outcome.rejects] == ["too-large"]


@pytest.mark.parametrize(
    "wrong", [{"text": 2.0}, {"entropy": -1.0}, {"aspect": 0.5}, {"sharpness": math.nan}, {"size": -1}]
)
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        replace(Filter(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not from both"):
        Filter(scores="a.csv", judge=brightness)


def test_a_change_of_the_scores_is_seen(set_of: SetOf, scenes: list[Image.Image], tmp_path: Path) -> None:
    data, path = set_of({"a": scenes[0], "b": scenes[1]}), tmp_path / "scores.csv"
    for line in ("a,0.9\nb,0.9\n", "a,0.9\nb,0.10\n"):
        path.write_text(f"key,score\n{line}")
        words = ["data", "filter", str(data.folder), "--scores", str(path), "--score", "0.5"]
        assert CliRunner().invoke(app, words).exit_code == 0
    assert [record.key for record in DataSet.open(data.folder).records()] == ["a"]


def test_a_blank_word_blocks_nothing() -> None:
    with pytest.raises(ConfigError, match="is blank"):
        Block(words=("cat", " "))
