"""Picture order: what stands on the left, or above, is said first."""

import pytest

from limner.text.tokenizers import WordTokenizer, default_vocabulary
from limner.text.words import picture_order

SAID = {
    "a|cat|right of|a|dog": "a|dog|left of|a|cat",
    "cat|below|dog": "dog|above|cat",
    "a|red|cat|right of|two|dog|<plural>|on|a|blue|background": (
        "two|dog|<plural>|left of|a|red|cat|on|a|blue|background"
    ),
    "flat|style|a|large|cat|below|a|orange": "flat|style|a|orange|above|a|large|cat",  # the fruit
    "a|orange|right of|a|orange|cat|in|flat|style": "a|orange|cat|left of|a|orange|in|flat|style",
    "a|cat|right of|a|dog|right of|a|fox": "a|fox|left of|a|dog|left of|a|cat",
    "a|cat|right of|a|dog|below|a|fox": "a|fox|above|a|dog|left of|a|cat",
    "a|cat|right of|a|dog|and|a|fox|below|a|hat": "a|dog|left of|a|cat|and|a|hat|above|a|fox",
}
LEFT_ALONE = (
    "",
    "a|cat|left of|a|dog",
    "a|cat|above|a|dog|right of|a|fox",  # both directions in one chain
    "right of|a|dog",  # nothing to turn round
    "a|cat|right of",
    "a|sea|right of|a|dog",  # a setting stands nowhere
    "with|<quote>|<a>|<quote>|right of|a|dog",
)


@pytest.mark.parametrize(("said", "turned"), SAID.items())
def test_what_is_left_or_above_is_said_first(said: str, turned: str) -> None:
    assert picture_order(said.split("|")) == tuple(turned.split("|"))
    assert picture_order(turned.split("|")) == tuple(turned.split("|"))


@pytest.mark.parametrize("said", LEFT_ALONE)
def test_what_cannot_be_turned_is_left_alone(said: str) -> None:
    assert picture_order(said.split("|")) == tuple(said.split("|"))


def test_a_model_hears_one_form_of_both() -> None:
    tokenizer = WordTokenizer(default_vocabulary(["cat", "dog"]))
    one = tokenizer.encode(["a", "cat", "right of", "a", "dog"], 12)
    assert one == tokenizer.encode(["a", "dog", "left of", "a", "cat"], 12)
