"""Sources: what lies where, what is said of it, and what is refused and why."""

import io
import json
import math
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limner.data import steps
from limner.data.pictures import open_picture
from limner.data.records import DataSet, Record, Reject
from limner.data.sources import Measure, SourceConfig, bring, found, scan
from limner.errors import DataError

Paint = Callable[..., Path]


def taken(
    source: Path, into: Path | None = None, **options: object
) -> tuple[dict[str, Record], list[Reject]]:
    """What is found in a source: records by key, and rejects."""
    config = SourceConfig(source=str(source), **options)  # type: ignore[arg-type]
    everything = list(found(config, source.parent / "no-set"))
    records = {one.key: one for one in everything if isinstance(one, Record)}
    rejects = [one for one in everything if isinstance(one, Reject)]
    assert len(records) + len(rejects) == len(everything), "keys are unique"
    return records, rejects


def tar_of(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


# -- folders ---------------------------------------------------------------------------------------------


def test_a_folder_with_captions(tmp_path: Path, paint: Paint) -> None:
    for name in ("a.png", "b.JPG", "deep/er/c.webp", ".hidden/d.png", ".e.png"):
        paint(tmp_path / name)
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "b.json").write_text(json.dumps({"text": "a dog", "long_caption": "a brown dog", "score": 2}))
    (tmp_path / "deep/er/c.txt").write_text("")
    (tmp_path / "notes.md").write_text("no picture")
    records, rejects = taken(tmp_path, facts=("score",))
    assert [(r.key, r.caption, r.long_caption, r.facts) for r in records.values()] == [
        ("a", "a cat", "", {}),
        ("b", "a dog", "a brown dog", {"score": 2}),
        ("deep_er_c", "", "", {}),
    ]
    assert records["b"].picture == str(tmp_path / "b.JPG")
    assert rejects == []


def test_folders_as_kohya_calls_them(tmp_path: Path, paint: Paint) -> None:
    paint(tmp_path / "10_sks dog" / "a.png")
    paint(tmp_path / "10_sks dog" / "b.png")
    paint(tmp_path / "1_dog" / "c.png")
    (tmp_path / "10_sks dog" / "b.txt").write_text("sks dog on a beach")
    told = [(r.caption, r.repeats) for r in taken(tmp_path)[0].values()]
    assert told == [("sks dog", 10), ("sks dog on a beach", 10), ("dog", 1)]
    plain = [(r.caption, r.repeats) for r in taken(tmp_path, kohya=False)[0].values()]
    assert plain == [("", 1), ("sks dog on a beach", 1), ("", 1)]


def test_names_of_any_script_become_keys(tmp_path: Path, paint: Paint) -> None:
    names = ["Hündchen 1.png", "犬.png", "a.b.png", "a b.png", "a_b.png", "!!!.png", "🐕.png"]
    for name in names:
        paint(tmp_path / name)
    (tmp_path / "犬.txt").write_text("柴犬", encoding="utf-8")
    records, _ = taken(tmp_path)
    assert len(records) == len(names)
    assert {"Hündchen_1", "犬", "a_b", "picture"} < set(records)
    assert records["犬"].caption == "柴犬"
    assert all(key.replace("_", "").replace("-", "").isalnum() for key in records)
    assert set(taken(tmp_path)[0]) == set(records), "and the same ones the next time"


def test_a_long_name_keeps_its_end(tmp_path: Path, paint: Paint) -> None:
    paint(tmp_path / ("ü" * 100) / ("y" * 200 + "7.png"))
    (key,) = taken(tmp_path)[0]
    assert len(key.encode()) <= 120
    assert key.endswith("y7")


def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path, paint: Paint) -> None:
    picture = paint(tmp_path / "a.png")
    picture.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    paint(tmp_path / "b.png")
    records, rejects = taken(tmp_path)
    assert list(records) == ["b"]
    assert [(r.reason, r.picture) for r in rejects] == [("name", f"{tmp_path}/caf\\xe9.png")]


def test_links_that_lead_back_are_followed_no_further(tmp_path: Path, paint: Paint) -> None:
    source = tmp_path / "source"
    paint(source / "in" / "a.png")
    paint(tmp_path / "else" / "b.png")
    (source / "in" / "up").symlink_to(source)
    (source / "in" / "top").symlink_to("/")
    (source / "self").symlink_to(source / "self")
    (source / "more").symlink_to(tmp_path / "else")
    (source / "more2").symlink_to(tmp_path / "else")
    (tmp_path / "else" / "back").symlink_to(source / "in")
    (source / "gone.png").symlink_to(source / "nothing")
    records, rejects = taken(source)
    assert sorted(Path(r.picture).name for r in records.values()) == ["a.png", "b.png", "gone.png"]
    reasons = {(Path(r.picture).relative_to(source).as_posix(), r.reason) for r in rejects}
    assert reasons == {
        ("in/up", "symlink-loop"),
        ("in/top", "symlink-loop"),
        ("more/back", "duplicate"),
        ("more2", "duplicate"),
    }


def test_what_cannot_be_used_is_told(tmp_path: Path, paint: Paint) -> None:
    for name in ("cat", "pipe", "good"):
        paint(tmp_path / f"{name}.png")
    (tmp_path / "cat.txt").write_bytes(b"caf\xe9")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "moving.gif").write_bytes(b"GIF89a")
    (tmp_path / "layers.psd").write_bytes(b"8BPS")
    (tmp_path / "x.tar.gz").write_bytes(b"")
    (tmp_path / "broken.tar").write_bytes(b"no tar" * 200)
    records, rejects = taken(tmp_path)
    assert list(records) == ["good"]
    assert {Path(r.picture).name: r.reason for r in rejects} == {
        "cat.png": "caption",
        "pipe.png": "caption",
        "moving.gif": "not-a-picture",
        "layers.psd": "not-a-picture",
        "x.tar.gz": "compressed",
        "broken.tar": "broken",
    }


def test_a_set_inside_its_source_is_not_read(tmp_path: Path, paint: Paint) -> None:
    paint(tmp_path / "a.png")
    list(bring(tmp_path / "set", SourceConfig(source=str(tmp_path))))
    paint(tmp_path / "set" / "b.png")
    assert list(taken(tmp_path)[0]) == ["a"]


@pytest.mark.parametrize("source", ["none", "empty", "notes.txt", "x.tgz"])
def test_a_source_without_pictures_says_so(source: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "x.tgz").write_bytes(b"")
    with pytest.raises(DataError, match=source):
        list(bring(tmp_path / "set", SourceConfig(source=str(tmp_path / source))))
    if source != "empty":
        assert not (tmp_path / "set").exists()


# -- tars ------------------------------------------------------------------------------------------------


def test_a_tar_as_webdataset_writes_it(tmp_path: Path, paint: Paint) -> None:
    content = paint(tmp_path / "p" / "a.png").read_bytes()
    tar = tar_of(
        tmp_path / "x-000.tar",
        [
            ("0001.png", content),
            ("0001.txt", b"one"),
            ("0002.json", b'{"caption": "two", "similarity": 0.25}'),
            ("0002.PNG", content),
            ("dir/0001.png", content),
            ("0003.txt", b"without a picture"),
            ("../evil.png", content),
            ("in/../../evil.txt", b"x"),
            ("/etc/evil.png", content),
            ("0001.png", content),
            ("0005.gif", b"GIF89a"),
        ],
    )
    records, rejects = taken(tar, facts=("similarity",))
    assert [(r.caption, r.facts) for r in records.values()] == [
        ("one", {}),
        ("two", {"similarity": 0.25}),
        ("", {}),
    ]
    assert [r.picture for r in records.values()] == [
        f"{tar}::{n}" for n in ("0001.png", "0002.PNG", "dir/0001.png")
    ]
    assert [(r.picture.rpartition("::")[2], r.reason) for r in rejects] == [
        ("../evil.png", "unsafe-name"),
        ("in/../../evil.txt", "unsafe-name"),
        ("/etc/evil.png", "unsafe-name"),
        ("0001.png", "duplicate"),
        ("0005.gif", "not-a-picture"),
    ]
    folder = taken(tmp_path)[0]
    assert {"x-000_0001", "x-000_0002", "p_a"} < set(folder)


@pytest.mark.slow
def test_what_webdataset_writes_is_read(tmp_path: Path, paint: Paint) -> None:
    webdataset = pytest.importorskip("webdataset")
    content = paint(tmp_path / "a.png").read_bytes()
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as tar:
        for i in range(3):
            tar.write({"__key__": f"s{i:03d}", "png": content, "txt": f"ä {i}", "json": {"n": i}})
    records, _ = taken(tmp_path / "x.tar", facts=("n",))
    assert [(r.key, r.caption, r.facts) for r in records.values()] == [
        (f"s{i:03d}", f"ä {i}", {"n": i}) for i in range(3)
    ]
    assert all(open_picture(r.picture).size == (32, 24) for r in records.values())


def test_a_tar_that_ends_too_early_gives_what_it_has(tmp_path: Path, paint: Paint) -> None:
    content = paint(tmp_path / "a.png").read_bytes() + bytes(5000)
    tar = tar_of(tmp_path / "x.tar", [(f"{i}.png", content) for i in range(5)])
    tar.write_bytes(tar.read_bytes()[: 2 * len(content) + 2000])
    records, rejects = taken(tar)
    assert list(records) == ["0", "1"]
    assert [(r.picture, r.reason) for r in rejects] == [(str(tar), "broken")]


# -- tables ----------------------------------------------------------------------------------------------


def test_a_table_of_paths(tmp_path: Path, paint: Paint) -> None:
    paint(tmp_path / "in" / "a.png")
    other = paint(tmp_path / "b.png")
    (tmp_path / "t.csv").write_text(
        f"path,caption,score\nin/a.png,a cat,1\n{other},,2\nin/a.png,again,3\n,nothing,4\nhttp://x/y.png,far,5\n"
    )
    records, rejects = taken(tmp_path / "t.csv", facts=("score",))
    assert [(r.key, r.picture, r.caption, r.facts) for r in records.values()] == [
        ("in_a", str(tmp_path / "in" / "a.png"), "a cat", {"score": "1"}),
        (str(other)[1:-4].replace("/", "_"), str(other), "", {"score": "2"}),
    ]
    assert [r.reason for r in rejects] == ["duplicate", "missing", "missing"]
    assert [r.detail for r in rejects][1:] == [
        "its path is empty",
        "http://x/y.png is an address, and nothing is downloaded; fetch the pictures first",
    ]


def test_a_folder_with_metadata(tmp_path: Path, paint: Paint) -> None:
    paint(tmp_path / "train" / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "train/a.png", "title": "a cat"}\n{')
    records, rejects = taken(tmp_path, caption_column="title")
    assert [(r.key, r.caption) for r in records.values()] == [("train_a", "a cat")]
    assert [r.reason for r in rejects] == ["broken"]


def test_parquet_with_pictures_inside(tmp_path: Path, paint: Paint) -> None:
    content = paint(tmp_path / "a.png", 20, 10).read_bytes()
    cells = [{"bytes": content, "path": "a.png"}, {"bytes": b"no picture", "path": None}, None]
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(
        pa.table({"image": cells, "text": ["a", "b", "c"]}), tmp_path / "hub" / "data" / "train-0.parquet"
    )
    told = list(bring(tmp_path / "set", SourceConfig(source=str(tmp_path / "hub"))))
    data = DataSet.open(tmp_path / "set")
    (record,) = data.records()
    assert (record.key, record.caption, record.width, record.height) == ("a", "a", 20, 10)
    assert record.picture == str(tmp_path / "set" / "pictures" / "00000.tar::00000.png")
    assert [(r.key, r.reason) for r in data.rejects()] == [
        ("train-0-00000002", "missing"),
        ("train-0-00000001", "not-a-picture"),
    ]
    assert told[-1].kept == 1


def test_a_folder_as_datasets_saves_it(tmp_path: Path, paint: Paint) -> None:
    content = paint(tmp_path / "a.png", 20, 10).read_bytes()
    for split in ("train", "test"):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        table = pa.table({"image": [{"bytes": content, "path": None}] * 2, "text": [f"{split} ä", ""]})
        with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as sink:
            sink.write_table(table)
        (folder / "dataset_info.json").write_text("{}")
        (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    list(bring(tmp_path / "set", SourceConfig(source=str(tmp_path / "saved"))))
    records = list(DataSet.open(tmp_path / "set").records())
    assert [(r.width, r.caption) for r in records] == [(20, "train ä"), (20, ""), (20, "test ä"), (20, "")]
    assert len({r.key for r in records}) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of `datasets`
def test_what_datasets_saves_is_read(tmp_path: Path, paint: Paint) -> None:
    datasets = pytest.importorskip("datasets")
    paths = [str(paint(tmp_path / f"{i}.png", 16 + i, 16, seed=i)) for i in range(5)]
    rows = {"image": paths, "text": [f"nr {i}" for i in range(5)]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "paths"))
    inside = datasets.Dataset.from_list(
        [{"image": {"bytes": Path(p).read_bytes(), "path": None}, "text": t} for p, t in zip(*rows.values())]  # noqa: B905
    ).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": inside, "test": table}).save_to_disk(str(tmp_path / "both"))
    for name, count in (("paths", 5), ("both", 10)):
        list(bring(tmp_path / f"set-{name}", SourceConfig(source=str(tmp_path / name))))
        records = list(DataSet.open(tmp_path / f"set-{name}").records())
        told = [(r.width, r.caption) for r in records]
        assert told == [(16 + i % 5, f"nr {i % 5}") for i in range(count)]


# -- sets ------------------------------------------------------------------------------------------------


def test_import_measures_and_names_what_is_broken(tmp_path: Path, paint: Paint, huge_png: bytes) -> None:
    source = tmp_path / "source"
    paint(source / "a.png", 30, 20)
    torn = paint(source / "b.jpg", 300, 200)
    torn.write_bytes(torn.read_bytes()[:-200])
    (source / "c.png").write_bytes(huge_png)
    (source / "d.png").write_bytes(b"GIF89a" + bytes(50))
    (source / "e.png").symlink_to(source / "none")
    list(bring(tmp_path / "set", SourceConfig(source=str(source))))
    data = DataSet.open(tmp_path / "set")
    assert [(r.key, r.width, r.height) for r in data.records()] == [("a", 30, 20)]
    reasons = {"b": "broken", "c": "too-large", "d": "not-a-picture", "e": "missing"}
    assert {r.key: r.reason for r in data.rejects()} == reasons
    assert all(r.detail for r in data.rejects())
    quick = bring(tmp_path / "quick", SourceConfig(source=str(source)), measure=Measure(whole=False))
    assert list(quick)[-1].kept == 2


def test_import_again_has_nothing_to_do_and_another_source_is_refused(tmp_path: Path, paint: Paint) -> None:
    paint(tmp_path / "source" / "a.png")
    config = SourceConfig(source=str(tmp_path / "source"))
    assert len(list(bring(tmp_path / "set", config))) > 0
    assert list(bring(tmp_path / "set", config)) == []
    with pytest.raises(DataError, match="choose another folder"):
        list(bring(tmp_path / "set", SourceConfig(source=str(tmp_path))))


def test_import_that_was_cut_goes_on(tmp_path: Path, paint: Paint) -> None:
    paint(tmp_path / "source" / "a.png")
    config = SourceConfig(source=str(tmp_path / "source"))
    cut = bring(tmp_path / "set", config)
    next(cut)
    cut.close()  # type: ignore[attr-defined]
    assert list(bring(tmp_path / "set", config))[-1].name == "measure"
    assert len(DataSet.open(tmp_path / "set")) == 1


def test_scan_reads_a_plain_folder(tmp_path: Path, paint: Paint) -> None:
    paint(tmp_path / "3_cat" / "a.png", 20, 10)
    (tmp_path / "b.png").write_bytes(b"")
    outcome = scan(tmp_path)
    assert [(r.caption, r.repeats, r.width) for r in outcome.kept] == [("cat", 3, 20)]
    assert [r.reason for r in outcome.rejects] == ["not-a-picture"]
    with pytest.raises(DataError, match="no folder"):
        scan(tmp_path / "none")


def test_facts_cannot_hide_what_a_record_has() -> None:
    with pytest.raises(DataError, match="'caption'"):
        SourceConfig(source=".", facts=("caption",))


@pytest.mark.slow
def test_memory_grows_by_two_hashes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "PART", 200)
    peaks = []
    for count in (200, 1_000):
        table = tmp_path / f"{count}.jsonl"
        lines = (json.dumps({"file": f"{i}.png", "text": f"{i} " * 100}) for i in range(count))
        table.write_text("\n".join(lines))
        tracemalloc.start()
        told = list(bring(tmp_path / f"set-{count}", SourceConfig(source=str(table))))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert told[-1].rejects == {"missing": count}
    assert peaks[1] - peaks[0] < 800 * 250, "bytes, where a record of this table has over 500"


def test_odd_values_cost_their_record_only(tmp_path: Path, paint: Callable[..., Path]) -> None:
    values = (1, "one", 2**70, 0.5, [[1]], math.nan)
    rows = [{"file_name": f"{i}.png", "score": value, "text": "a"} for i, value in enumerate(values)]
    rows += [{"file_name": f"{i}.png", "text": value} for i, value in enumerate((7, [["a"]], {}), len(rows))]
    for row in rows:
        paint(tmp_path / "in" / str(row["file_name"]))
    table = tmp_path / "in" / "table.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows))
    list(bring(tmp_path / "set", SourceConfig(source=str(table), facts=("score",))))
    data = DataSet.open(tmp_path / "set")
    assert [one.facts.get("score") for one in data.records()] == [1.0, 0.5, None]
    reasons = {"fact": ["1", "2", "4"], "caption": ["6", "7", "8"]}
    for reason, keys in reasons.items():
        assert [one.key for one in data.rejects() if one.reason == reason] == keys


def test_other_measures_of_the_same_are_refused(tmp_path: Path, paint: Callable[..., Path]) -> None:
    paint(tmp_path / "in" / "a.png")
    config = SourceConfig(source=str(tmp_path / "in"))
    list(bring(tmp_path / "set", config))
    assert list(bring(tmp_path / "set", config)) == []
    with pytest.raises(DataError, match="was measured otherwise"):
        list(bring(tmp_path / "set", config, measure=Measure(largest=100)))


def test_a_table_beside_its_pictures_takes_nothing_away(tmp_path: Path, paint: Callable[..., Path]) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "mine.tar").write_bytes(b"mine")
    (tmp_path / "t.csv").write_text("file_name,text\na.png,hello\n")
    with pytest.raises(DataError, match="not empty"):
        list(bring(tmp_path, SourceConfig(source=str(tmp_path / "t.csv"))))
    assert (tmp_path / "pictures" / "mine.tar").exists()
