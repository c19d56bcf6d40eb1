"""Parts and the list of steps: whole or not there, and read back as they were."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from limner.data import records
from limner.data.records import (
    DataSet,
    Finished,
    Record,
    Reject,
    read_records,
    read_rejects,
    write_records,
    write_rejects,
    write_whole,
)
from limner.errors import DataError


def record(key: str, **facts: str | int | float) -> Record:
    return Record(key=key, picture=f"/p/{key}.png", width=3, height=2, caption="ein Hündchen 🐕", facts=facts)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    before = [record("a", blur=0.5, hash=-(2**63), group="cats"), record("b", blur=1.0), record("c", note="")]
    write_records(path, before)
    assert read_records(path) == before
    assert {"blur", "hash", "group", "note"} < set(pq.read_schema(path).names)


def test_an_empty_part_is_a_part(tmp_path: Path) -> None:
    write_records(tmp_path / "part.parquet", [])
    write_rejects(tmp_path / "rejects.parquet", [])
    assert read_records(tmp_path / "part.parquet") == []
    assert read_rejects(tmp_path / "rejects.parquet") == []


def test_rejects_come_back(tmp_path: Path) -> None:
    rejects = [Reject(key="a", picture="/p/x.tar::a.png", reason="blurred", detail="0.1 < 0.2")]
    write_rejects(tmp_path / "rejects.parquet", rejects)
    assert read_rejects(tmp_path / "rejects.parquet") == rejects


def test_whole_numbers_among_numbers_become_numbers(tmp_path: Path) -> None:
    write_records(tmp_path / "part.parquet", [record("a", score=1), record("b", score=0.5)])
    assert [one.facts for one in read_records(tmp_path / "part.parquet")] == [{"score": 1.0}, {"score": 0.5}]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ([{"score": 1}, {"score": "one"}], "several kinds"),
        ([{"width": 3}], "'width'"),
        ([{"hash": 2**63}], "64 bits"),
    ],
)
def test_facts_that_no_column_holds_are_refused(
    facts: list[dict[str, str | int | float]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        write_records(tmp_path / "part.parquet", [record(f"k{i}", **own) for i, own in enumerate(facts)])
    assert list(tmp_path.iterdir()) == []


def test_a_set_is_what_its_newest_step_kept(tmp_path: Path) -> None:
    data = DataSet.create(tmp_path / "set")
    with pytest.raises(DataError, match="nothing was imported"):
        data.parts()
    for name, keys, left in (("01-found", "abc", ""), ("02-filter", "ac", "b")):
        write_records(data.folder / name / "part-00000.parquet", [record(key) for key in keys])
        rejects = [Reject(key=key, picture="", reason="blurred") for key in left]
        write_rejects(data.folder / name / "rejects-00000.parquet", rejects)
        counts = {"blurred": len(left)} if left else {}
        data.add(
            Finished(
                name=name[3:], folder=name, settings={"least": 2}, kept=len(keys), rejects=counts, seconds=1.0
            )
        )
    opened = DataSet.open(tmp_path / "set")
    assert opened.steps == data.steps
    assert [one.key for one in opened.records()] == ["a", "c"]
    assert [one.key for one in opened.rejects()] == ["b"]
    assert len(opened) == 2


def test_a_set_is_made_once(tmp_path: Path) -> None:
    DataSet.create(tmp_path)
    with pytest.raises(DataError, match="already"):
        DataSet.create(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is no data set"),
        (b"{", "broken"),
        (b"[]", "broken"),
        (json.dumps({"format": "limner data 9", "steps": []}).encode(), "limner data 9"),
        (json.dumps({"format": records.FORMAT, "steps": [{"name": "x"}]}).encode(), "broken"),
    ],
)
def test_what_is_no_set_says_so(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "set.json").write_bytes(content)
    with pytest.raises(DataError, match=said):
        DataSet.open(tmp_path)


def test_a_torn_part_says_so(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    write_records(path, [record("a")])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="not a whole part"):
        read_records(path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.json"
    write_whole(path, b"old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["set.json"]


def test_no_set_is_made_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="not empty"):
        DataSet.create(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / f".set.json.{'0' * 32}.tmp").touch()  # a kill while it was made
    assert DataSet.create(tmp_path / "set").sign != DataSet.create(tmp_path / "other").sign
    assert DataSet.open(tmp_path / "set").sign


def test_a_lost_part_is_missed(tmp_path: Path) -> None:
    data = DataSet.create(tmp_path / "set")
    for number in range(2):
        write_records(data.folder / "01-found" / f"part-{number:05d}.parquet", [record(str(number))])
    data.add(Finished(name="found", folder="01-found", settings={}, kept=2, rejects={}, seconds=1.0))
    assert len(list(data.records())) == 2
    (data.folder / "01-found" / "part-00001.parquet").unlink()
    with pytest.raises(DataError, match="holds 1 records and should hold 2"):
        list(data.records())
