import errno
import gc
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from limner.data import pack as packing
from limner.data import steps
from limner.data.catalogue import catalogue
from limner.data.pack import Pack, current, mend, pack, read_packed, swap
from limner.data.records import DataSet, Record
from limner.errors import DataError

SIZES = ((64, 64), (96, 48), (48, 96), (128, 128), (80, 60))


def drawn(folder: Path, count: int) -> list[Record]:
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        size = SIZES[number % len(SIZES)]
        levels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        path = folder / f"{number}.{'jpg' if number % 2 else 'png'}"
        Image.fromarray(levels).save(path)
        caption = "" if number == 3 else f"picture {number} «ß»"
        records.append(
            Record(
                key=f"k{number}",
                picture=str(path),
                width=size[0],
                height=size[1],
                caption=caption,
                long_caption=f"long {number}",
                repeats=1 + number % 2,
                facts={"sharp": number / 8},
            )
        )
    return records


def held(folder: Path, records: Iterable[Record]) -> DataSet:
    data = DataSet.create(folder)
    for _ in steps.write(data, "found", {}, records):
        pass
    return data


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "PART", 2)


@pytest.fixture
def data(tmp_path: Path, small_parts: None) -> DataSet:
    return held(tmp_path / "set", drawn(tmp_path / "pictures", 5))


STEP = Pack(size=64, bucket_step=16)


def index(data: DataSet) -> list[dict]:
    return pq.read_table(data.folder / "packed" / "index.parquet").to_pylist()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_webdataset_reads_what_was_packed(data: DataSet) -> None:
    progress = list(pack(data, STEP))
    assert [one.done for one in progress] == [0, 2, 4, 5]
    shards = sorted(map(str, (data.folder / "packed").glob("*.tar")))
    assert len(shards) == 3
    read = by_webdataset(shards)
    records = list(data.records())
    assert [sample["__key__"] for sample in read] == [record.key for record in records]
    for number, (sample, record) in enumerate(zip(read, records, strict=True)):
        assert sample["txt"].decode() == record.caption
        told = json.loads(sample["json"])
        assert (told["long_caption"], told["sharp"]) == (record.long_caption, number / 8)
        picture = Image.open(io.BytesIO(sample["jpg" if number % 2 else "png"]))
        assert picture.size == (record.width, record.height)


def test_the_index_says_where_everything_lies(data: DataSet) -> None:
    list(pack(data, STEP))
    rows = index(data)
    for row, record in zip(rows, data.records(), strict=True):
        bytes_ = read_packed(data.folder / "packed" / row["shard"], row["offset"], row["size"])
        assert bytes_ == Path(record.picture).read_bytes()
        assert {
            name: row[name] for name in ("key", "caption", "long_caption", "repeats", "width", "height")
        } == {
            name: getattr(record, name)
            for name in ("key", "caption", "long_caption", "repeats", "width", "height")
        }
    assert [row["bucket"] for row in rows] == ["64x64", "80x48", "48x80", "64x64", "80x48"]
    shutil.rmtree(data.folder.parent / "pictures")  # and nothing else is needed
    assert [catalogue(data.folder).open(row).size for row in range(5)] == list(SIZES)
    assert [catalogue(data.folder / "packed").open(row).size for row in range(5)] == list(SIZES)


def test_two_workers_write_the_same_bytes(data: DataSet, tmp_path: Path) -> None:
    other = DataSet.open(shutil.copytree(data.folder, tmp_path / "other"))
    list(pack(data, STEP))
    list(pack(other, STEP, workers=2))
    assert content(data.folder / "packed") == content(other.folder / "packed")


@pytest.mark.parametrize("encode", ["jpeg", "png", "webp"])
def test_pictures_are_written_anew_only_if_asked(data: DataSet, encode: str) -> None:
    list(pack(data, Pack(size=32, bucket_step=16, encode=encode, shrink=True, quality=80)))
    rows = index(data)
    assert [(row["width"], row["height"]) for row in rows] == list(SIZES)  # as they were
    shard = data.folder / "packed" / rows[3]["shard"]
    picture = Image.open(io.BytesIO(read_packed(shard, rows[3]["offset"], rows[3]["size"])))
    assert (picture.format, picture.size) == (encode.upper(), (32, 32))


def test_a_set_that_changed_since_is_read_as_it_is(data: DataSet) -> None:
    list(pack(data, STEP))
    assert current(data)
    assert catalogue(data.folder).packed == data.folder / "packed"
    list(steps.run(data, Keep(2)))
    assert not current(data)
    assert len(catalogue(data.folder)) == 2
    assert catalogue(data.folder).packed is None
    list(pack(data, STEP))
    assert len(catalogue(data.folder)) == 2
    assert catalogue(data.folder).packed is not None
    assert not list(data.folder.glob("packed.*"))


def test_asked_again_there_is_nothing_to_do_and_what_was_lost_is_packed_again(data: DataSet) -> None:
    list(pack(data, STEP))
    before = content(data.folder / "packed")
    assert len(list(pack(data, STEP))) == 1
    assert len(data.steps) == 2
    next((data.folder / "packed").glob("*.tar")).unlink()
    with pytest.raises(DataError, match=r"shard-0000\d.tar is missing; pack the set again"):
        catalogue(data.folder / "packed")
    list(pack(data, STEP))
    after = content(data.folder / "packed")
    assert {name: after[name] for name in after if name != "pack.json"} == {
        name: before[name] for name in before if name != "pack.json"
    }


def test_a_run_that_was_cut_short_goes_on(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    running = pack(data, STEP)
    next(running), next(running)
    running.close()
    assert not (data.folder / "packed").exists()
    asked = watched(monkeypatch)
    list(pack(data, STEP))
    assert asked == ["k2", "k3", "k4"]  # the first shard was kept
    assert len(index(data)) == 5


def test_shards_that_went_with_a_run_that_was_cut_short_are_written_again(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = pack(data, STEP)
    next(running), next(running)
    running.close()
    shutil.rmtree(data.folder / "packed.partial")
    asked = watched(monkeypatch)
    list(pack(data, STEP))
    assert asked == ["k0", "k1", "k2", "k3", "k4"]
    assert current(data)


def test_dying_before_the_index_only_the_index_is_missing(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_finish", die)
        with pytest.raises(KeyboardInterrupt):
            list(pack(data, STEP))
    asked = watched(monkeypatch)
    list(pack(data, STEP))
    assert asked == []
    assert current(data)
    assert len(data.steps) == 2


@pytest.mark.parametrize("at", [1, 2])
def test_a_full_disk_leaves_what_was_there(data: DataSet, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    list(pack(data, STEP))
    list(steps.run(data, Keep(2)))
    before = content(data.folder / "packed")
    calls = 0

    def full(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= at:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing.os, "fsync", full)
        with pytest.raises(DataError, match="No space left on device"):
            list(pack(data, STEP))
    assert content(data.folder / "packed") == before
    assert not list(data.folder.rglob("*.tmp"))
    list(pack(data, STEP))
    assert len(index(data)) == 2


def test_pictures_that_cannot_be_read_are_named(data: DataSet, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "0.png").unlink()
    (tmp_path / "pictures" / "1.jpg").write_bytes(b"no picture")
    (tmp_path / "pictures" / "4.png").write_bytes(b"GIF89a")
    last = list(pack(data, STEP))[-1]
    assert (last.kept, last.rejects) == (2, {"missing": 1, "not-a-picture": 2})
    assert [row["key"] for row in index(data)] == ["k2", "k3"]
    assert sorted(path.name for path in (data.folder / "packed").glob("*.tar")) == ["shard-00001.tar"]


@pytest.mark.parametrize("fresh_is_whole", [True, False])
def test_a_swap_that_was_cut_short_is_ended(
    tmp_path: Path, fresh_is_whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, fresh, old = (tmp_path / name for name in ("packed", "packed.partial", ".packed.before"))
    for folder, text in ((fresh, "new"), (old, "old")):
        folder.mkdir()
        (folder / "text").write_text(text)
    (tmp_path / "packed.old").mkdir()  # the user's
    (tmp_path / "packed.old" / "pack.json").write_text("{}")
    mend(place)
    assert not place.exists()  # nothing says that the old folder is ours
    (old / "pack.json").write_text("{}")
    if fresh_is_whole:
        (fresh / "pack.json").write_text("{}")
    mend(place)
    assert (place / "text").read_text() == ("new" if fresh_is_whole else "old")
    monkeypatch.chdir(place)
    mend(Path())
    swap(fresh if fresh.exists() else old, place)
    assert (tmp_path / "packed.old" / "pack.json").exists()


def test_reading_renames_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(tmp_path / "dogs.old", 1)
    with pytest.raises(DataError, match="there is no folder"):
        catalogue(tmp_path / "dogs")
    assert (tmp_path / "dogs.old").exists()
    monkeypatch.chdir(tmp_path / "dogs.old")
    assert len(catalogue(Path())) == 1


def test_a_pack_of_an_earlier_set_is_made_anew(data: DataSet, tmp_path: Path) -> None:
    list(pack(data, STEP))
    other = held(tmp_path / "other", drawn(tmp_path / "more", 3))
    shutil.copytree(data.folder / "packed", other.folder / "packed")
    list(pack(other, STEP))
    assert current(other)
    assert len(index(other)) == 3


def test_a_folder_that_is_no_pack_stays(data: DataSet) -> None:
    drawn(data.folder / "packed", 1)
    with pytest.raises(DataError, match="is no packed set"):
        list(pack(data, STEP))
    assert (data.folder / "packed" / "0.png").exists()


def test_swap_takes_the_place(tmp_path: Path) -> None:
    for turn in ("one", "two"):
        (tmp_path / "fresh").mkdir()
        (tmp_path / "fresh" / turn).touch()
        swap(tmp_path / "fresh", tmp_path / "place")
        assert [path.name for path in (tmp_path / "place").iterdir()] == [turn]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_torn_shards_and_broken_descriptions_say_so(data: DataSet) -> None:
    list(pack(data, STEP))
    packed = data.folder / "packed"
    shard = packed / "shard-00000.tar"
    with pytest.raises(DataError, match="is cut short"):
        read_packed(shard, shard.stat().st_size - 10, 100)
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(DataError, match="has 1000 bytes instead of"):
        catalogue(packed)
    (packed / "pack.json").write_text("{")
    with pytest.raises(DataError, match="is broken"):
        packing.told(packed)
    (packed / "pack.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(DataError, match="has the format 'other'"):
        packing.told(packed)


@pytest.mark.parametrize(
    "settings, says",
    [({"encode": "gif"}, "jpeg, png or webp"), ({"shrink": True}, "--encode"), ({"quality": 0}, "1 to 100")],
)
def test_settings_that_cannot_be(settings: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Pack(**settings)


def test_keys_with_dots_stay_whole_for_webdataset(tmp_path: Path) -> None:
    (record,) = drawn(tmp_path / "pictures", 1)
    data = held(tmp_path / "set", [Record(key="a.b", picture=record.picture, width=64, height=64)])
    list(pack(data, STEP))
    (shard,) = (data.folder / "packed").glob("*.tar")
    (sample,) = by_webdataset([str(shard)])
    assert sample["__key__"] == "a%2Eb"
    assert {"png", "json", "txt"} <= sample.keys()


class Keep:
    """A step that keeps the first pictures of all."""

    name = "keep"

    def __init__(self, count: int) -> None:
        self.count = count

    __dataclass_fields__: dict = {}  # noqa: RUF012

    def part(self, records: list[Record]) -> steps.Outcome:
        kept = [record for record in records if int(record.key[1:]) < self.count]
        rejects = [
            packing.Reject(key=r.key, picture=r.picture, reason="late") for r in records if r not in kept
        ]
        return steps.Outcome(kept=kept, rejects=rejects)


def by_webdataset(shards: list[str]) -> list[dict]:
    """What the library reads; it leaves its files to be closed by whoever collects the garbage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        read = list(webdataset.WebDataset(shards, shardshuffle=False))
        gc.collect()
    return read


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the records whose pictures are packed from now on."""
    asked: list[str] = []
    whole: Callable = Pack._content

    def content(step: Pack, record: Record) -> object:
        asked.append(record.key)
        return whole(step, record)

    monkeypatch.setattr(Pack, "_content", content)
    return asked


def test_what_a_format_cannot_hold_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (16_400, 4)).save(tmp_path / "in" / "a.png")
    record = Record(key="a", picture=str(tmp_path / "in" / "a.png"), width=16_400, height=4)
    data = held(tmp_path / "set", [record, *drawn(tmp_path / "in", 1)])
    last = list(pack(data, Pack(size=64, bucket_step=16, encode="webp")))[-1]
    assert (last.kept, last.rejects) == (1, {"too-large": 1})
