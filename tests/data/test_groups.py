from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from limner.cli import app
from limner.data import groups
from limner.data.chain import in_turn
from limner.data.descriptors import describe
from limner.data.embeddings import Embed
from limner.data.groups import Group, names
from limner.data.records import DataSet
from limner.errors import ConfigError, DataError

SetOf = Callable[..., DataSet]
KINDS = {"sky": "a blue sky with", "wood": "brown wood and", "stripe": "many stripes of"}


def drawn(kind: str, seed: int) -> Image.Image:
    """One of three kinds that colours, layout or edges tell apart."""
    rng = np.random.default_rng(seed)
    jitter = rng.integers(-15, 16, 3)
    if kind == "sky":
        picture = Image.new("RGB", (96, 96), tuple((np.array([90, 140, 230]) + jitter).tolist()))
        ImageDraw.Draw(picture).ellipse((10, *rng.integers(8, 30, 1).tolist(), 60, 50), fill="white")
    elif kind == "wood":
        picture = Image.new("RGB", (96, 96), tuple((np.array([120, 80, 40]) + jitter).tolist()))
        for x in range(0, 96, 12):
            ImageDraw.Draw(picture).line((x, 0, x + int(rng.integers(-4, 5)), 96), fill=(70, 40, 15), width=2)
    else:
        picture = Image.new("RGB", (96, 96), "white")
        for y in range(int(rng.integers(0, 3)), 96, 16):
            ImageDraw.Draw(picture).rectangle((0, y, 96, y + 7), fill=(200, 20, 40))
    return picture


@pytest.fixture
def three(set_of: SetOf) -> DataSet:
    pictures = {f"{kind}-{seed}": drawn(kind, seed) for seed in range(8) for kind in KINDS}
    said = {key: f"{KINDS[key.partition('-')[0]]} number {place}" for place, key in enumerate(pictures)}
    return set_of(pictures, said)


def test_groups_are_found_counted_and_named(three: DataSet) -> None:
    list(in_turn(three, [Embed(), Group()]))
    found = {record.key: record.facts["group"] for record in three.records()}
    assert len(set(found.values())) == 3
    for kind in KINDS:
        (name,) = {group for key, group in found.items() if key.startswith(kind)}
        assert name in KINDS[kind]
    assert all(set(record.facts) == {"group"} for record in three.records())
    assert set(groups.sizes(three).values()) == {8}


def test_the_command_writes_sheets_and_sets(three: DataSet) -> None:
    words = ["data", "group", str(three.folder), "--groups", "3", "--split"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    listed = sorted(path.name for path in (three.folder / "groups").glob("*.png"))
    assert len(listed) == 3
    for path in (three.folder / "groups").glob("*.png"):
        with Image.open(path) as shown:
            assert shown.width > 96
        own = DataSet.open(path.with_suffix(""))
        assert len(own) == 8
        assert {record.facts["group"] for record in own.records()} == {path.stem}
    assert CliRunner().invoke(app, words[:-1]).exit_code == 0, "a second time nothing is left to do"
    assert len(DataSet.open(three.folder).steps) == 3
    for wrong in (["--groups", "some"], ["--groups", "0"], ["--embeddings", "a.csv"]):
        assert CliRunner().invoke(app, ["data", "group", str(three.folder), *wrong]).exception is not None


def test_names_are_words_that_others_do_not_say() -> None:
    captions = ["a red cat on grass"] * 9 + ["the red dog on grass"] * 9 + [""] * 5
    labels = [0] * 9 + [1] * 9 + [2] * 5
    assert names(captions, labels, 3) == ["cat", "dog", "group-3"]
    assert names(["same words"] * 6, [0, 0, 0, 1, 1, 1], 2) == ["group-1", "group-2"]
    hostile = ["../../etc/passwd", "..", "<b>", "a/b"] * 3
    assert names(hostile, [0, 1] * 6, 2) != ["", ""]
    assert all("/" not in name and "." not in name for name in names(hostile, [0, 1] * 6, 2))


def test_names_do_not_come_from_chance() -> None:
    rng = np.random.default_rng(0)
    words = ["apple", "house", "river", "cloud", "stone"]
    captions = [" ".join(rng.choice(words, 2)) for _ in range(20)]
    called = names(captions, rng.integers(0, 2, 20).tolist(), 2)
    assert "group-1" in called or "group-2" in called


def test_what_cannot_be_grouped(three: DataSet, set_of: SetOf) -> None:
    with pytest.raises(DataError, match="lacks an embedding"):
        list(in_turn(three, [Group()]))
    with pytest.raises(DataError, match="has no groups"):
        groups.sizes(three)
    with pytest.raises(ConfigError):
        Group(groups=0)
    alike = set_of(dict.fromkeys("abc", drawn("sky", 0)), name="alike")
    with pytest.raises(DataError, match="too few for 2 groups"):
        list(in_turn(alike, [Embed(), Group(groups=2)]))
    list(in_turn(alike, [Embed(), Group()]))
    assert {record.facts["group"] for record in alike.records()} == {"group-1"}


def test_a_description_is_of_colours_layout_and_edges() -> None:
    one = describe(drawn("wood", 0))
    assert one.shape == (240,)
    assert np.linalg.norm(one[:64]) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(one[64:112]) == pytest.approx(0.5, abs=1e-5)
    assert np.linalg.norm(one[112:]) == pytest.approx(1, abs=1e-5)
    flat = describe(Image.new("RGB", (5, 900), "red"))
    assert np.isfinite(flat).all()
    assert flat[64:].any() == np.False_
    upright = describe(drawn("stripe", 0).rotate(90))
    assert upright[:64] == pytest.approx(describe(drawn("stripe", 0))[:64], abs=1e-5)
    assert not np.allclose(upright, describe(drawn("stripe", 0)), atol=0.1)


def test_a_picture_that_went_since_is_not_on_the_sheet(three: DataSet, tmp_path: Path) -> None:
    list(in_turn(three, [Embed(), Group(groups=1)]))
    for record in three.records():
        Path(record.picture).unlink()
    assert groups.sheets(three, tmp_path / "sheets") == {}


def test_a_split_that_was_cut_short_goes_on(three: DataSet, tmp_path: Path) -> None:
    list(in_turn(three, [Embed(), Group(groups=3)]))
    names = list(groups.sizes(three))
    cut = groups.split(three, tmp_path / "own")
    next(cut)
    cut.close()  # type: ignore[attr-defined]  # a generator
    assert len(list(groups.split(three, tmp_path / "own"))) >= 2
    assert [len(DataSet.open(tmp_path / "own" / name)) for name in names] == [8, 8, 8]
    assert list(groups.split(three, tmp_path / "own")) == []
