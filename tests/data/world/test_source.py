from pathlib import Path

import pytest

from limner.data.world import source
from limner.data.world.source import DrawnConfig, load, noun
from limner.errors import DataError
from limner.text.lexicon import Lexicon, load_lexicon


@pytest.fixture
def small_lexicon(monkeypatch: pytest.MonkeyPatch) -> Lexicon:
    """Three core objects, and one that is not."""
    lexicon = load_lexicon()
    names = ("tree", "scissors", "apple")
    other = next(entry for entry in lexicon.entries if not entry.core)
    small = Lexicon([*(lexicon.entry(name) for name in names), other])
    monkeypatch.setattr(source, "load_lexicon", lambda: small)
    return small


def test_atlas_and_nouns_come_in_the_order_of_the_lexicon(atlas_folder: Path, small_lexicon: Lexicon) -> None:
    atlas, nouns = load(DrawnConfig(folder=str(atlas_folder), styles=("glossy",)), sizes=(16, 64))
    assert atlas.objects == ("tree", "scissors", "apple")
    assert atlas.styles == ("glossy",)
    assert sorted(atlas.tiles) == [16, 64]
    assert tuple(n.name for n in nouns) == atlas.objects


def test_all_objects_need_an_atlas_of_all(atlas_folder: Path, small_lexicon: Lexicon) -> None:
    with pytest.raises(DataError, match=small_lexicon.entries[-1].name):
        load(DrawnConfig(folder=str(atlas_folder), objects="all"))


def test_unknown_choice_of_objects(atlas_folder: Path) -> None:
    with pytest.raises(DataError, match="'core' or 'all', got 'some'"):
        load(DrawnConfig(folder=str(atlas_folder), objects="some"))


def test_nouns_that_come_in_pairs() -> None:
    lexicon = load_lexicon()
    scissors, apple = (noun(lexicon.entry(name)) for name in ("scissors", "apple"))
    assert (scissors.singular, scissors.plural, scissors.synonyms) == (
        "pair of scissors",
        "pairs of scissors",
        (),
    )
    assert (apple.singular, apple.plural) == ("apple", "apples")


def test_core_is_the_default_and_is_299_objects() -> None:
    assert DrawnConfig().objects == "core"
    assert sum(entry.core for entry in load_lexicon().entries) == 299
