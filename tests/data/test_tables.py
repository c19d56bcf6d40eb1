"""Tables: rows as they come, pictures of tables in tars that are whole or not there."""

import csv
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limner.data import tables
from limner.data.pictures import members, read_bytes
from limner.data.tables import Shelf, image_column, rows, tables_of
from limner.errors import DataError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", '\ufefffile,text\n"a, b.png","says ""hi""\nthere"\nc.png,\n'),
        ("a.tsv", 'file\ttext\na, b.png\t"says ""hi""\nthere"\nc.png\t\n'),
        (
            "a.jsonl",
            '{"file": "a, b.png", "text": "says \\"hi\\"\\nthere"}\n\n{"file": "c.png", "text": ""}\n',
        ),
    ],
)
def test_rows_of_text(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    read = [row for _, row in rows(tmp_path / name)]
    assert read == [{"file": "a, b.png", "text": 'says "hi"\nthere'}, {"file": "c.png", "text": ""}]
    assert tables_of(tmp_path / name) == [tmp_path / name]


def test_rows_of_arrow_are_read_in_slices(tmp_path: Path) -> None:
    table = pa.table({"file": [f"{i}.png" for i in range(300)]})
    pq.write_table(table, tmp_path / "a.parquet")
    for name, writer in (("stream.arrow", pa.ipc.new_stream), ("file.arrow", pa.ipc.new_file)):
        with writer(str(tmp_path / name), table.schema) as sink:
            sink.write_table(table)
    for name in ("a.parquet", "stream.arrow", "file.arrow"):
        assert list(rows(tmp_path / name)) == [(i, {"file": f"{i}.png"}) for i in range(300)]


def test_a_broken_line_costs_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"file": "a"}\n{"file": \n[1]\n\xff\n{"file": "b"}\n')
    read = [row for _, row in rows(tmp_path / "a.jsonl")]
    assert [row if isinstance(row, dict) else "broken" for row in read] == [
        *({"file": "a"}, "broken", "broken", "broken"),
        {"file": "b"},
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", b"file\n\xff\xfe\n"), ("a.parquet", b"PAR1 no"), ("a.arrow", b"nothing"), ("a.csv", None)],
)
def test_a_broken_table_says_so(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        list(rows(tmp_path / name))


def test_the_column_of_the_pictures() -> None:
    row = {"id": 1, "text": "", "jpg": b"", "thing": ""}
    assert image_column(row, None, Path("a")) == "jpg"
    assert image_column(row, "thing", Path("a")) == "thing"
    with pytest.raises(DataError, match=r"no column 'none'; it has id, text, jpg, thing.*--image-column"):
        image_column(row, "none", Path("a"))
    with pytest.raises(DataError, match="none of its columns"):
        image_column({"id": 1}, None, Path("a"))


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert tables_of(tmp_path) == []
    assert tables_of(tmp_path / "a.png") == []


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"_data_files": [{"filename": "none.arrow"}]}, r"none\.arrow"),
        ({"_data_files": [{"filename": "../out.arrow"}]}, r"out\.arrow"),
        ({"_data_files": []}, "its arrow files"),
        ({"_data_files": [{"filename": "a.arrow"}], "_indices_files": [{}]}, "flatten_indices"),
    ],
)
def test_a_saved_dataset_that_is_not_whole(state: dict[str, object], said: str, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (tmp_path / "out.arrow").write_bytes(b"")
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=said):
        tables_of(folder)


def test_a_shelf_keeps_pictures_in_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SHARD_COUNT", 3)
    contents = [b"\x89PNG%d" % i for i in range(4)] + [b"\xff\xd8\xff", b"what?"]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "00007.tar").write_bytes(b"of an earlier run")
    with Shelf(tmp_path / "pictures") as shelf:
        places = [shelf.put(content) for content in contents]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["00000.tar", "00001.tar"]
    assert [place.rpartition("::")[2] for place in places[3:]] == ["00000.png", "00001.jpg", "00002.bin"]
    assert [read_bytes(place) for place in places] == contents
    assert len(list(members(tmp_path / "pictures" / "00000.tar"))) == 3


def test_a_shelf_that_was_left_has_no_half_tar(tmp_path: Path) -> None:
    def fill() -> None:
        with Shelf(tmp_path) as shelf:
            shelf.put(b"a picture")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(DataError, match="No space left"), Shelf(tmp_path) as shelf:
        shelf.put(b"a picture")


def test_long_cells_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,text\na.png," + "x" * 300_000 + "\n")
    assert [len(row["text"]) for _, row in rows(path) if not isinstance(row, str)] == [300_000]


def test_a_cell_that_is_too_long_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "CELL", 200_000)
    before = csv.field_size_limit(1_000)
    try:
        path = tmp_path / "t.csv"
        path.write_text("image,text\na.png,hello\nb.png," + "x" * 300_000 + "\nc.png,there\n")
        first, odd, last = (row for _, row in rows(path))
    finally:
        csv.field_size_limit(before)
    assert isinstance(odd, str)
    assert "more than 200,000 characters" in odd
    assert [row["image"] for row in (first, last) if not isinstance(row, str)] == ["a.png", "c.png"]
