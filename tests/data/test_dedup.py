from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance

from limner.data.chain import in_turn
from limner.data.dedup import Dedup, Hash
from limner.data.embeddings import Embed
from limner.data.records import DataSet, Record
from limner.data.steps import run, write
from limner.errors import ConfigError, DataError

SetOf = Callable[..., DataSet]


def test_the_largest_stays_and_is_named(set_of: SetOf, scenes: list[Image.Image]) -> None:
    one = scenes[0]
    data = set_of(
        {
            "a-small": one.resize((96, 96)),
            "b-large": one.resize((250, 250)),
            "c-dark": ImageEnhance.Brightness(one).enhance(0.92),
            "d-other": scenes[1],
            "e-broken": scenes[2],
        }
    )
    (data.folder.parent / "set-pictures" / "e-broken.png").write_bytes(b"\x89PNG\r\n")
    list(in_turn(data, [Hash(), Dedup()]))
    assert [record.key for record in data.records()] == ["b-large", "d-other"]
    told = {reject.key: (reject.reason, reject.detail) for reject in data.rejects()}
    assert told["e-broken"][0] in ("broken", "not-a-picture")
    assert told["a-small"][0] == told["c-dark"][0] == "duplicate"
    assert told["a-small"][1].startswith("of b-large: ")
    assert told["c-dark"][1].endswith("of 64 bits differ")
    assert all(set(record.facts) == {"phash"} for record in data.records())
    before = data.steps
    list(in_turn(data, [Hash(), Dedup()]))
    assert data.steps == before, "taken once, it is done"
    list(in_turn(data, [Hash(), Dedup(distance=2)]))
    assert [step.name for step in data.steps] == ["import", "hash", "dedup", "hash", "dedup"]


def test_of_equal_ones_the_captioned_stays_then_the_first(set_of: SetOf, scenes: list[Image.Image]) -> None:
    data = set_of(dict.fromkeys("abc", scenes[0]) | dict.fromkeys("de", scenes[1]), {"b": "a cat"})
    list(in_turn(data, [Hash(), Dedup(distance=0)]))
    assert [record.key for record in data.records()] == ["b", "d"]


def test_a_chain_is_not_one_group(tmp_path: Path) -> None:
    """b is near a, and c is near b but not a: c stays, since what it is near to goes."""
    tint = bytes(108).hex()
    hashes = {"a": 0, "b": 0b111111, "c": 0b111111111111}
    records = [
        Record(key=key, picture=key, width=9 - place, height=1, facts={"phash": f"{bits:016x}", "tint": tint})
        for place, (key, bits) in enumerate(hashes.items())
    ]
    data = DataSet.create(tmp_path / "set")
    list(write(data, "hash", {}, records))
    list(run(data, Dedup(distance=6)))
    assert [record.key for record in data.records()] == ["a", "c"]


def test_nothing_of_the_drawn_world_is_a_duplicate(set_of: SetOf, scenes: list[Image.Image]) -> None:
    data = set_of({f"{place:02}": scene for place, scene in enumerate(scenes)})
    list(in_turn(data, [Hash(), Dedup()]))
    assert len(data) == len(scenes)


def test_embeddings_are_compared_as_all_with_all_would_be(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 8))
    rows = centres[rng.integers(0, 40, 700)] + 0.12 * rng.normal(size=(700, 8))
    keys = [f"{place:03}" for place in range(700)]
    sizes = rng.integers(1, 50, 700).tolist()
    data = DataSet.create(tmp_path / "set")
    list(
        write(
            data,
            "import",
            {},
            [
                Record(key=key, picture=key, width=size, height=1)
                for key, size in zip(keys, sizes, strict=True)
            ],
        )
    )
    path = tmp_path / "made.parquet"
    order = rng.permutation(700)
    table = pa.table({"embedding": rows[order].tolist(), "key": [keys[at] for at in order]})
    pq.write_table(table, path, row_group_size=100)
    list(in_turn(data, [Embed(source=str(path)), Dedup(by="embedding", similarity=0.95)]))
    halved = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16).astype(np.float64)
    halved /= np.linalg.norm(halved, axis=1, keepdims=True)
    kept: list[int] = []
    for place in sorted(range(700), key=lambda at: (-sizes[at], at)):
        if not kept or (halved[kept] @ halved[place]).max() < 0.95:
            kept.append(place)
    assert [record.key for record in data.records()] == [keys[place] for place in sorted(kept)]
    assert 30 < len(kept) < 500
    assert not any("embedding" in record.facts for record in data.records())


def test_what_does_not_fit_is_refused(set_of: SetOf, scenes: list[Image.Image], tmp_path: Path) -> None:
    data = set_of({"a": scenes[0], "b": scenes[1]})
    with pytest.raises(DataError, match="a lacks phash and tint"):
        list(run(data, Dedup()))
    path = tmp_path / "made.parquet"
    pq.write_table(pa.table({"key": ["a"], "embedding": [[1.0, 0.0]]}), path)
    with pytest.raises(DataError, match="no embedding of 'b' and 0 more of 2"):
        list(run(data, Embed(source=str(path))))
    for table, message in (
        ({"key": ["a", "b"], "vector": [[1.0], [1.0]]}, "holds no embeddings"),
        ({"key": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]}, "several lengths"),
        ({"key": ["a", "b"], "embedding": [[0.0], [1.0]]}, "zero or not finite"),
        ({"key": ["a", "b"], "embedding": [1.0, 1.0]}, "several lengths"),
    ):
        pq.write_table(pa.table(table), path)
        with pytest.raises(DataError, match=message):
            list(run(data, Embed(source=str(path))))
    for wrong in ({"distance": 17}, {"similarity": 0.0}):
        with pytest.raises(ConfigError):
            Dedup(**wrong)  # type: ignore[arg-type]
