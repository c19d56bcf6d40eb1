"""The lexicon as data: one owner per expression, plurals, articles, categories, searching."""

import pytest

from limner.errors import RequestError
from limner.text import words
from limner.text.lexicon import CATEGORIES, FIXED, Lexicon, load_lexicon, surface_key
from limner.text.nouns import pluralise, with_article


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return load_lexicon()


def test_it_is_as_large_as_promised(lexicon: Lexicon) -> None:
    assert len(lexicon) >= 1_000
    assert sum(entry.core for entry in lexicon.entries) == 299
    assert {entry.category for entry in lexicon.entries} == set(CATEGORIES)


def test_names_and_drawings_are_unique(lexicon: Lexicon) -> None:
    assert len({entry.name for entry in lexicon.entries}) == len(lexicon)
    assert len({entry.art for entry in lexicon.entries}) == len(lexicon)


def test_it_is_read_only_once() -> None:
    assert load_lexicon() is load_lexicon()


def test_no_fixed_word_means_two_things() -> None:
    said = [
        surface_key(form)
        for members in words.CLASSES.values()
        for word, others in members.items()
        for form in (word, *others)
    ] + [surface_key(form) for form in (*words.DROPPED, *words.UNSUPPORTED)]
    assert sorted(said) == sorted(set(said))
    assert set(said) == set(FIXED)


def test_hints_name_only_what_is_understood(lexicon: Lexicon) -> None:
    hints = {hint for offered in (*words.HINTS.values(), *words.UNSUPPORTED.values()) for hint in offered}
    assert {hint for hint in hints if not lexicon.has(hint)} == set()
    assert {word for word in words.HINTS if lexicon.has(word)} == set(), "understood, so it needs no hint"


def test_the_colours_are_those_of_geneval() -> None:
    expected = "red orange yellow green blue purple pink brown black white"
    assert " ".join(words.COLOURS) == expected
    assert set(words.STYLE_OF_SET) == set(words.STYLES)


def test_every_plural_is_read_as_its_singular(lexicon: Lexicon) -> None:
    wrong = [
        entry.name
        for entry in lexicon.entries
        if entry.plural != entry.name
        and lexicon.read(f"two {entry.plural}").words[1:] != (entry.name, "<plural>")
    ]
    assert wrong == []


def test_every_name_and_synonym_is_read_as_its_entry(lexicon: Lexicon) -> None:
    wrong = [
        (said, entry.name)
        for entry in lexicon.entries
        for said in (entry.name, *entry.synonyms)
        if lexicon.read(said).words[:1] != (entry.name,)
    ]
    assert wrong == []


def test_every_singular_reads_as_one(lexicon: Lexicon) -> None:
    wrong = [
        entry.singular
        for entry in lexicon.entries
        if lexicon.read(entry.singular).words not in ((entry.name,), ("a", entry.name))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "singular, plural",
    [
        ("cat", "cats"),
        ("fox", "foxes"),
        ("peach", "peaches"),
        ("cherry", "cherries"),
        ("monkey", "monkeys"),
        ("toy", "toys"),
        ("wolf", "wolves"),
        ("goose", "geese"),
        ("snowman", "snowmen"),
        ("policewoman", "policewomen"),
        ("human", "humans"),
        ("sheep", "sheep"),
        ("cup of tea", "cups of tea"),
        ("man in a boat", "men in a boat"),
        ("woman riding a bike", "women riding a bike"),
        ("maple leaf", "maple leaves"),
        ("bus", "buses"),
    ],
)
def test_plurals_follow_english(singular: str, plural: str) -> None:
    assert pluralise(singular) == plural


@pytest.mark.parametrize(
    "noun, phrase",
    [
        ("apple", "an apple"),
        ("cat", "a cat"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("hourglass", "an hourglass"),
        ("x-ray", "an x-ray"),
        ("ice cream", "an ice cream"),
    ],
)
def test_articles_follow_the_sound(noun: str, phrase: str) -> None:
    assert with_article(noun) == phrase


def test_an_entry_says_one_of_itself(lexicon: Lexicon) -> None:
    assert lexicon.entry("scissors").singular == "a pair of scissors"
    assert lexicon.entry("elephant").singular == "an elephant"


def test_an_unknown_name_is_refused_with_the_nearest(lexicon: Lexicon) -> None:
    with pytest.raises(RequestError, match=r"'elefant'.*elephant"):
        lexicon.entry("elefant")
