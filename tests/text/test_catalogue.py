"""Searching the lexicon, and finding what is wrong with one."""

import pytest

from limner.text.catalogue import problems, search
from limner.text.lexicon import Entry, Lexicon, load_lexicon
from limner.text.nouns import pluralise


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return load_lexicon()


def test_the_file_is_consistent(lexicon: Lexicon) -> None:
    assert problems(lexicon) == []


def test_searching_puts_the_named_object_first(lexicon: Lexicon) -> None:
    assert search(lexicon, "puppy")[0].name == "dog"
    found = [entry.name for entry in search(lexicon, "cake")]
    assert found[0] == "birthday cake"
    assert {"cupcake", "pancakes", "shortcake"} <= set(found)
    assert len(search(lexicon, "")) == len(lexicon)
    assert [entry.name for entry in search(lexicon, "dog", known=frozenset({"hot dog"}))] == ["hot dog"]
    assert {"violin", "drum"} <= {entry.name for entry in search(lexicon, "instruments")}


def test_problems_are_found() -> None:
    def entry(name: str, category: str = "animals", synonyms: tuple[str, ...] = ()) -> Entry:
        return Entry(name=name, plural=pluralise(name), art=name, category=category, synonyms=synonyms)

    broken = Lexicon(
        [
            entry("cat", synonyms=("red",)),
            entry("kitty", synonyms=("cat", "red cat")),
            entry("a cat that has no tail"),
            entry("dog", category="beasts"),
            entry("hen", synonyms=("fowl", "fowls")),
        ]
    )
    found = "\n".join(problems(broken))
    assert "'cat' belongs to cat and to kitty" in found
    assert "'red' of cat is a fixed word already" in found
    assert "'red cat' of kitty is also red and cat" in found
    assert "1 to 4 words" in found
    assert "category 'beasts'" in found
    assert "'fowls' of hen is one and many" in found
