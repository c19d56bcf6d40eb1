import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from limner.data import latents as computing
from limner.data import steps
from limner.data.buckets import BucketConfig
from limner.data.latents import Latents, LatentsConfig, _kept, encode
from limner.data.loader import Loader, LoaderConfig
from limner.data.pack import Pack, pack
from limner.data.records import DataSet, Record
from limner.errors import DataError

SIZES = ((64, 64), (128, 64), (70, 64), (66, 60), (100, 50))
SHAPES = BucketConfig(size=64, step=16)


class Halving:
    """An encoder whose results can be recomputed by hand: pixels at an eighth, captions as their lengths."""

    def __init__(self, stamp: str = "abc", scale: float = 1.0) -> None:
        self.stamp, self.scale = stamp, scale
        self.pictures = 0

    def latents(self, pixels: Tensor) -> Tensor:
        self.pictures += len(pixels)
        return avg_pool2d(pixels, 8) * self.scale

    def say(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        lengths = torch.tensor([float(len(caption)) for caption in captions])
        return {
            "context": lengths[:, None, None].expand(-1, 3, 2),
            "mask": lengths[:, None] > torch.arange(3.0),
        }


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(steps, "PART", 3)
    records = []
    for number, size in enumerate(SIZES):
        levels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(levels).save(path)
        records.append(
            Record(
                key=f"k{number}",
                picture=str(path),
                width=size[0],
                height=size[1],
                caption="x" * number,
                long_caption="long" if number % 2 else "",
            )
        )
    data = DataSet.create(tmp_path / "set")
    for _ in (*steps.write(data, "found", {}, records), *pack(data, Pack(size=64, bucket_step=16))):
        pass
    return data.folder / "packed"


def compute(packed: Path, encoder: Halving, **settings: object) -> list[steps.Progress]:
    config = LatentsConfig(buckets=SHAPES, **settings)  # type: ignore[arg-type]
    return list(encode(packed, encoder, config))


def loader(packed: Path, stamp: str = "abc", **settings: object) -> Loader:
    values = {"size": 64, "bucket_step": 16, "drop_caption": 0.0, "workers": 0, **settings}
    return Loader(LoaderConfig(folder=str(packed), **values), stamp)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind, exact", [("float32", 0.0), ("float16", 5e-4), ("bfloat16", 4e-3)])
def test_latents_read_are_those_of_the_pictures(packed: Path, kind: str, exact: float) -> None:
    encoder = Halving()
    progress = compute(packed, encoder, type=kind, flip=True, batch=2)
    assert [one.done for one in progress] == [3, 5]
    assert encoder.pictures == 10
    read, pictures = loader(packed, latents=True, flip=True), loader(packed.parent, flip=True)
    shown = set()
    for index in range(10):
        got, plain = read.batch(2, index, 3), pictures.batch(2, index, 3)
        assert got.pixels is None
        assert plain.pixels is not None
        torch.testing.assert_close(got.latents, encoder.latents(plain.pixels), rtol=exact, atol=exact)
        assert (got.keys, got.captions, got.sizes, got.target) == (
            plain.keys,
            plain.captions,
            plain.sizes,
            plain.target,
        )
        assert (
            max(
                abs(a - b)
                for x, y in zip(got.crops, plain.crops, strict=True)
                for a, b in zip(x, y, strict=True)
            )
            <= 1
        )
        assert got.said is not None
        for row, caption in enumerate(got.captions):
            assert got.said["context"][row].unique().tolist() == [len(caption)]
            assert got.said["mask"][row].dtype == torch.bool
        shown |= set(got.keys)
    assert len(shown) == 5


def test_texts_that_were_dropped_or_told_at_length_are_read_too(packed: Path) -> None:
    compute(packed, Halving())
    said = set()
    data = loader(packed, latents=True, drop_caption=0.4, long_captions=0.5)
    for index in range(40):
        batch = data.batch(1, index, 0)
        assert batch.said is not None
        assert batch.said["context"].unique().tolist() == [len(batch.captions[0])]
        said |= set(batch.captions)
    assert {"", "long", "xx"} <= said
    shuffled = loader(packed, latents=True, shuffle_caption=True)
    assert all(
        shuffled.batch(1, index, 0).said is None or not shuffled.batch(1, index, 0).captions[0]
        for index in range(5)
    )
    own = loader(packed, latents=True, caption="a dog")  # k0 has no caption of its own
    batches = [own.batch(1, index, 0) for index in range(5)]
    assert [batch.captions == ["a dog"] for batch in batches] == [batch.said is None for batch in batches]


def test_what_is_stale_says_of_what_it_is(packed: Path) -> None:
    with pytest.raises(DataError, match="no latents were computed"):
        loader(packed, latents=True)
    compute(packed, Halving("abc"))
    with pytest.raises(DataError, match=r"stale: they are of another encoder \(abc, this run has xyz\)"):
        loader(packed, "xyz", latents=True)
    with pytest.raises(DataError, match="stale: they are of other buckets"):
        loader(packed, latents=True, bucket_step=32)
    with pytest.raises(DataError, match="hold no mirrored pictures"):
        loader(packed, latents=True, flip=True)
    index = packed / "index.parquet"
    table = json.loads((packed / "pack.json").read_text())
    index.write_bytes(index.read_bytes() + b" ")
    table["files"]["index.parquet"] += 1
    (packed / "pack.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match="stale: they are of another packing"):
        Latents.open(packed, "abc", SHAPES)


def test_latents_of_pictures_that_are_not_packed_say_so(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    shutil.copy(tmp_path / "0.png", folder)
    with pytest.raises(DataError, match="is not packed"):
        loader(folder, latents=True)
    with pytest.raises(DataError, match="is not packed"):
        compute(folder, Halving())


def test_missing_records_and_torn_files_are_errors_and_no_replacements(packed: Path) -> None:
    compute(packed, Halving())
    there = Latents.open(packed, "abc", SHAPES)
    with pytest.raises(DataError, match=r"shard-00000.safetensors does not hold 'k9/latents'; compute them"):
        there.take("k9", "shard-00000.tar")
    with pytest.raises(DataError, match="does not hold 'k0/long/'"):
        there.said("k0", "shard-00000.tar", "long")
    torn = packed / "latents" / "shard-00000.safetensors"
    torn.write_bytes(torn.read_bytes()[:-20])
    data = loader(packed, latents=True)
    with pytest.raises(DataError, match=r"shard-00000.safetensors is missing or not whole"):
        data.batch(5, 0, 0)
    (packed / "latents" / "latents.json").write_text("{")
    with pytest.raises(DataError, match="is broken"):
        loader(packed, latents=True)


def test_a_run_that_was_cut_short_goes_on_and_what_was_there_stays(packed: Path) -> None:
    compute(packed, Halving("old"))
    encoder = Halving("new")
    running: Iterator[steps.Progress] = encode(packed, encoder, LatentsConfig(buckets=SHAPES))
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert encoder.pictures == 3
    loader(packed, "old", latents=True).batch(1, 0, 0)
    compute(packed, encoder)
    assert encoder.pictures == 5
    loader(packed, "new", latents=True).batch(1, 0, 0)
    compute(packed, encoder)
    assert encoder.pictures == 5  # nothing to do
    assert sorted(path.name for path in packed.iterdir() if path.is_dir()) == ["latents"]


def test_pictures_that_cannot_be_read_are_left_out_and_named(packed: Path) -> None:
    row = next(row for row in loader(packed).data.table.to_pylist() if row["key"] == "k3")
    shard = packed / row["shard"]
    content = bytearray(shard.read_bytes())
    content[row["offset"] : row["offset"] + 8] = b"\0" * 8
    shard.write_bytes(content)
    assert compute(packed, Halving())[-1].rejects == {"broken": 1}
    data = loader(packed, latents=True)
    batches = [data.batch(1, index, 0) for index in range(5)]
    assert sum(bool(batch.broken) for batch in batches) == 1
    assert "k3" not in {batch.keys[0] for batch in batches}


def test_numbers_that_do_not_fit_are_an_error(packed: Path) -> None:
    with pytest.raises(DataError, match="does not fit into float16; keep it as float32"):
        compute(packed, Halving(scale=1e9))
    compute(packed, Halving(scale=1e9), type="float32")


def test_a_full_disk_leaves_what_was_there(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute(packed, Halving("old"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(computing.files, "save", full)
        with pytest.raises(DataError, match="No space left on device"):
            compute(packed, Halving("new"))
    loader(packed, "old", latents=True).batch(1, 0, 0)


@pytest.mark.parametrize("settings", [{"type": "int8"}, {"batch": 0}])
def test_settings_that_cannot_be(settings: dict) -> None:
    with pytest.raises(DataError, match="got"):
        LatentsConfig(buckets=SHAPES, **settings)


def test_what_is_kept_holds_no_batch() -> None:
    batch = torch.randn(4, 3, 8, 8)
    for kind in ("float32", "float16"):
        kept = _kept(batch[1], kind, "a")
        assert kept.untyped_storage().nbytes() == kept.nbytes
        torch.testing.assert_close(kept.float(), batch[1], atol=1e-2, rtol=0)
    ids = torch.arange(8).view(2, 4)
    assert _kept(ids[1], "float16", "a").tolist() == [4, 5, 6, 7]
