"""The drawn world as files."""

from pathlib import Path

import pytest
from PIL import Image

from limner.data.sources import scan
from limner.data.world import export, source
from limner.data.world.export import draw
from limner.data.world.source import DrawnConfig
from limner.errors import DataError
from limner.text.lexicon import Lexicon, load_lexicon

NAMES = ("apple", "cat", "tree", "key", "ring", "balloon", "house", "star", "scissors", "orange")


@pytest.fixture
def drawn(atlas_folder: Path, monkeypatch: pytest.MonkeyPatch) -> DrawnConfig:
    lexicon = load_lexicon()
    small = Lexicon([lexicon.entry(name) for name in NAMES])
    monkeypatch.setattr(source, "load_lexicon", lambda: small)
    monkeypatch.setattr(export, "BATCH", 4)
    return DrawnConfig(folder=str(atlas_folder))


def test_pictures_lie_beside_their_captions(drawn: DrawnConfig, tmp_path: Path) -> None:
    assert list(draw(tmp_path / "many", count=6, size=32, seed=3, source=drawn)) == [4, 6]
    outcome = scan(tmp_path / "many", whole=True)
    assert [record.key for record in outcome.kept] == [f"{i:06d}" for i in range(6)]
    assert all((record.width, record.height) == (32, 32) for record in outcome.kept)
    assert all(record.caption for record in outcome.kept)
    assert outcome.rejects == []


def test_a_number_shows_the_same_however_many_are_drawn(drawn: DrawnConfig, tmp_path: Path) -> None:
    for name, count, seed in (("a", 6, 1), ("b", 5, 1), ("c", 5, 2)):
        list(draw(tmp_path / name, count=count, size=32, seed=seed, source=drawn))
    files = {name: {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "abc"}
    assert files["b"].items() < files["a"].items()
    assert not files["b"].items() & files["c"].items()


def test_sizes_larger_than_the_art(drawn: DrawnConfig, tmp_path: Path) -> None:
    list(draw(tmp_path / "large", count=1, size=300, source=drawn))
    with Image.open(tmp_path / "large" / "000000.png") as picture:
        assert picture.size == (300, 300)


def test_what_cannot_be_drawn(drawn: DrawnConfig, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        list(draw(tmp_path, count=1, size=32, source=drawn))
    for count, size, said in ((0, 32, "at least one"), (1, 8, "got 8"), (1, 4096, "got 4096")):
        with pytest.raises(DataError, match=said):
            list(draw(tmp_path / "new", count=count, size=size, source=drawn))
    with pytest.raises(DataError, match="cannot write"):
        list(draw(tmp_path / "mine.txt" / "below", count=1, size=32, source=drawn))
