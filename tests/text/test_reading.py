"""Prompts as people type them, and the promise that no word is ever swallowed."""

import re
import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.text import words
from limner.text.lexicon import Lexicon, load_lexicon
from limner.text.reading import NEGATED, NOT_A_WORD, NOT_LEARNED, NOT_SPELLED, fold

CASES = {
    # the two sentences of the README, and plain objects
    "two red apples to the left of a cat on a blue background in flat style": (
        "two|red|apple|<plural>|left of|a|cat|on|a|blue|background|in|flat|style"
    ),
    "a cat": "a|cat",
    "cats": "cat|<plural>",
    "CAT": "cat",
    "An Elephant.": "a|elephant",
    "one dog": "one|dog",
    "1 dog": "one|dog",
    "a single dog": "one|dog",
    "2 dogs": "two|dog|<plural>",
    "a pair of dogs": "two|dog|<plural>",
    "a couple of foxes": "two|fox|<plural>",
    "five tiny mice": "five|small|mouse|<plural>",
    "three wolves and four geese": "three|wolf|<plural>|and|four|goose|<plural>",
    "two sheep": "two|sheep|<plural>",
    "a sheep": "a|sheep",
    "three red fish": "three|red|fish|<plural>",
    "two dogs and a fish": "two|dog|<plural>|and|a|fish",
    "a pair of scissors": "a|scissors",
    "a pair of red jeans": "a|red|jeans",
    "pair of small red and blue jeans": "a|small|red|and|blue|jeans",
    "a pair of red dogs": "two|red|dog|<plural>",
    "a couple of red jeans": "two|red|jeans|<plural>",
    "a pair of, red jeans": "two|red|jeans|<plural>",
    "a pair of red": "two|red",
    "two pairs of scissors": "two|scissors|<plural>",
    "two scissors": "two|scissors|<plural>",
    "some grapes": "grapes",
    "two bunches of grapes": "two|grapes|<plural>",
    "two dice": "two|die|<plural>",
    # synonyms
    "a puppy": "a|dog",
    "three puppies": "three|dog|<plural>",
    "a burger and a donut": "a|hamburger|and|a|doughnut",
    "an aeroplane": "a|airplane",
    "a plane over an auto": "a|airplane|above|a|car",
    "a bike": "a|bicycle",
    "a UFO in outer space": "a|flying saucer|in|space",
    "a tv": "a|television",
    # hyphens, spaces, apostrophes, accents
    "hot dog": "hot dog",
    "hot-dog": "hot dog",
    "hotdogs": "hot dog|<plural>",
    "hot_dog": "hot dog",
    "a t shirt": "a|t-shirt",
    "a tshirt": "a|t-shirt",
    "a T-Shirt!": "a|t-shirt",
    "jack-o'-lantern": "pumpkin",
    "the king\u2019s crown": "crown",
    "the cat's hat": "cat|top hat",
    "a sun flower": "a|sunflower",
    "tea pot": "teapot",
    "a cr\u00eape": "a",
    # one expression inside another
    "a polar bear beside": "a|polar bear",
    "a teddy bear and a bear": "a|teddy bear|and|a|bear",
    "ice cream": "ice cream",
    "a cat in box": "a|cat|in|package",
    "a cat over coat": "a|cat|above|coat",
    "a hot, dog": "a|dog",
    # colours and the orange
    "a crimson rose": "a|red|rose",
    "a violet car": "a|purple|car",
    "navy blue boots": "blue|boot|<plural>",
    "an orange": "a|orange",
    "two oranges": "two|orange|<plural>",
    "an orange cat": "a|orange|cat",
    "an orange orange": "a|orange|orange",
    "a cat on an orange background": "a|cat|on|a|orange|background",
    "an orange and a lemon": "a|orange|and|a|lemon",
    "an orange to the left of a cat": "a|orange|left of|a|cat",
    "an orange, two cats": "a|orange|two|cat|<plural>",
    "a red pair of jeans": "a|red|jeans",
    "the car is orange": "car|orange",
    "a red coloured car": "a|red|car",
    "a red colored car": "a|red|car",
    # relations
    "a fox on the left of a tree": "a|fox|left of|a|tree",
    "a fox to the right of a tree": "a|fox|right of|a|tree",
    "a fox left of a tree": "a|fox|left of|a|tree",
    "a bird on top of a house": "a|bird|above|a|house",
    "a dog underneath an umbrella": "a|dog|below|a|umbrella",
    "a dog beneath a tree": "a|dog|below|a|tree",
    "a dog under a tree": "a|dog|below|a|tree",
    "a cat & a dog": "a|cat|and|a|dog",
    # settings, backgrounds, styles
    "a whale in the ocean": "a|whale|in|sea",
    "an owl at night": "a|owl|night",
    "an owl under the night sky": "a|owl|below|night",
    "a cow in a meadow": "a|cow|in|a|grass",
    "a camel in the desert": "a|camel|in|desert",
    "a penguin on snow": "a|penguin|on|snow",
    "a crab on a sandy beach": "a|crab|on|a|beach",
    "a cat on a blue to pink gradient": "a|cat|on|a|blue|to|pink|gradient",
    "a gradient background from orange to pink": "a|gradient|background|orange|to|pink",
    "a rose, flat design": "a|rose|flat|style",
    "a rose, 3D style": "a|rose|glossy|style",
    "a shiny rose": "a|glossy|rose",
    # filler
    "please draw me a picture of a cat": "a|cat",
    "an image of two cats": "two|cat|<plural>",
    "a photo of an ant": "a|ant",
    "there is a cat on the lawn": "a|cat|on|grass",
    # letters
    'the word "Hi"': "<quote>|<h>|<i>|<quote>",
    "a sheep says 'baa'": "a|sheep|<quote>|<b>|<a>|<a>|<quote>",
    "a cat with \u201cA 1\u201d": "a|cat|with|<quote>|<a>|<space>|<1>|<quote>",
    # nothing
    "": "",
    "  ,.!  ": "",
    '""': "",
}


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return load_lexicon()


@pytest.mark.parametrize("prompt", CASES)
def test_prompts_become_canonical_words(lexicon: Lexicon, prompt: str) -> None:
    assert "|".join(lexicon.read(prompt).words) == CASES[prompt]


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


def test_synonyms_are_reported_and_plain_plurals_are_not(lexicon: Lexicon) -> None:
    reading = lexicon.read("Two Puppies, three cats and a crimson hot-dog on the lawn")
    assert reading.resolved == (("Puppies", "dogs"), ("crimson", "red"), ("lawn", "grass"))
    assert reading.unknown == ()
    assert reading.dropped == ("the",)
    assert reading.objects == ("dog", "cat", "hot dog")


def test_other_spellings_are_reported(lexicon: Lexicon) -> None:
    assert lexicon.read("a donut and some hotdogs").resolved == (("donut", "doughnut"),)
    assert lexicon.read("a theatre mask").resolved == (("theatre mask", "theater masks"),)


def test_typing_errors_are_reported_and_not_mended(lexicon: Lexicon) -> None:
    reading = lexicon.read("a red elefant and a kittn")
    assert reading.words == ("a", "red", "and", "a")
    elefant, kitten = reading.unknown
    assert (elefant.word, elefant.position, elefant.reason) == ("elefant", 6, NOT_A_WORD)
    assert elefant.nearest[0] == "elephant"
    assert kitten.nearest[0] == "kitten"
    assert str(elefant) == '"elefant": not in the lexicon; nearest: elephant'


@pytest.mark.parametrize(
    "said, nearest",
    [
        ("grey", "white"),
        ("hambruger", "hamburger"),
        ("gitar", "guitar"),
        ("rino", "rhino"),
        ("next to", "left of"),
        ("several", "three"),
        ("fruits", "apple"),
        ("purpel", "purple"),
        ("abov", "above"),
        ("bycicle", "bicycle"),  # 10 of 14 letters alike, 0.714
    ],
)
def test_the_nearest_words_are_offered(lexicon: Lexicon, said: str, nearest: str) -> None:
    (unknown,) = lexicon.read(said).unknown
    assert unknown.word == said
    assert unknown.nearest[0] == nearest
    assert len(unknown.nearest) <= 3


def test_nonsense_gets_no_suggestion(lexicon: Lexicon) -> None:
    (unknown,) = lexicon.read("xqzwvk").unknown
    assert unknown.nearest == ()


def test_negation_points_to_the_negative_prompt(lexicon: Lexicon) -> None:
    unknown = lexicon.read("a cat without a hat").unknown
    assert [word.reason for word in unknown] == [NEGATED]


def test_an_object_that_the_model_has_not_learned_is_reported(lexicon: Lexicon) -> None:
    known = frozenset({"cat", "rose", "tulip", "hammer"})
    reading = lexicon.read("a sunflower above a kitten", known)
    assert reading.words == ("a", "above", "a", "cat")
    (unknown,) = reading.unknown
    assert unknown.reason == NOT_LEARNED
    assert set(unknown.nearest) == {"rose", "tulip"}


def test_suggestions_stay_within_what_the_model_knows(lexicon: Lexicon) -> None:
    known = frozenset({"cat", "rose"})
    (unknown,) = lexicon.read("elefant", known).unknown
    assert "elephant" not in unknown.nearest


def test_an_unlearned_expression_is_read_by_its_parts_where_they_are_known(lexicon: Lexicon) -> None:
    known = frozenset({"snowman", "hammer", "wrench"})
    assert lexicon.read("a snowman in snow").words == ("a", "snowman in snow")
    assert lexicon.read("a snowman in snow", known).words == ("a", "snowman", "in", "snow")
    assert lexicon.read("hammer and wrench", known).words == ("hammer", "and", "wrench")
    assert lexicon.read("a polar bear", known).words == ("a",)


def test_the_orange_of_a_model_without_oranges(lexicon: Lexicon) -> None:
    known = frozenset({"cat"})
    assert lexicon.read("an orange cat", known).unknown == ()
    (unknown,) = lexicon.read("an orange", known).unknown
    assert unknown.reason == NOT_LEARNED


def test_what_cannot_be_spelled_is_reported(lexicon: Lexicon) -> None:
    reading = lexicon.read('"\u041f!a"')
    assert reading.words == ("<quote>", "<a>", "<quote>")
    assert reading.unknown[0].reason == NOT_SPELLED
    assert reading.unknown[0].word == "\u043f!"
    assert reading.quoted == ("\u041f!a",)


def test_an_emoji_or_another_script_is_not_swallowed(lexicon: Lexicon) -> None:
    assert [word.word for word in lexicon.read("\U0001f431 \u043a\u043e\u0442").unknown] == [
        "\U0001f431",
        "\u043a\u043e\u0442",
    ]


@pytest.mark.parametrize("said", ["1.5", "2.0", "3.5mm", *"©®‼⁉™〰〽㊗㊙"])
def test_broken_numbers_and_signs_are_one_unknown_word(lexicon: Lexicon, said: str) -> None:
    reading = lexicon.read(f"a cat {said} dog")
    assert reading.words == ("a", "cat", "dog")
    assert [word.word for word in reading.unknown] == [said]


def account(lexicon: Lexicon, prompt: str, known: frozenset[str] | None = None) -> None:
    """Every word of the prompt stands in exactly one part, and no part is without consequence."""
    normal = unicodedata.normalize("NFC", prompt)
    reading = lexicon.read(prompt, known)
    covered = 0
    for part in reading.parts:
        assert part.position >= covered, "parts overlap or are out of order"
        assert not re.search(r"[^\W_]", normal[covered : part.position]), "a word was swallowed"
        covered = normal.index(part.said, part.position) + len(part.said)
        assert part.words or part.unknown or part.kind == "dropped" or not re.search(r"[^\W_]", part.said)
        if part.kind == "dropped":
            said = re.sub(r"[\W_]+", " ", fold(part.said))
            assert said in ("a", "an") or words.SPELLINGS.get(said, said) in words.DROPPED
    assert not re.search(r"[^\W_]", normal[covered:]), "a word was swallowed at the end"
    if known is not None:
        assert set(reading.objects) <= known


@settings(max_examples=150, deadline=None)
@given(prompt=st.text(max_size=60))
def test_any_text_is_read_and_accounted_for(lexicon: Lexicon, prompt: str) -> None:
    account(lexicon, prompt)


VOCABULARY = [
    "a", "an", "the", "orange", "two", "pair of", "a pair of", "pairs of", "scissors", "cats", "cat's",
    "hot", "hot-dog", "red", "and", "to", "left of", "on top of", "sun behind a", "in", "snow", "'hi'",
    '"', "&", "1",
    "picture of", "elefant", ",", "next to", "gradient", "3d", "background", "without", "teddy", "bear",
    "face with",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    said=st.lists(
        st.sampled_from(VOCABULARY) | st.text(string.ascii_letters + "'- ", max_size=8), max_size=12
    ),
    known=st.none() | st.just(frozenset({"cat", "scissors", "bear"})),
)
def test_any_sentence_is_read_and_accounted_for(
    lexicon: Lexicon, said: list[str], known: frozenset[str] | None
) -> None:
    account(lexicon, " ".join(said), known)
