import json
from dataclasses import replace
from pathlib import Path

import pytest

from limner.errors import DataError
from limner.evaluate.foreign import from_sentence, judgeable, read
from limner.evaluate.prompts import Clause, Prompt
from limner.models.detector import Names
from limner.text.words import COLOURS

NAMES = Names(
    objects=("cat", "dog", "television", "orange", "apple"),
    letters=("A",),
    colours=tuple(COLOURS),
    styles=("flat",),
    backgrounds=("red", "sky"),
)
GENEVAL_LINES = (  # in the words of its own file
    {"tag": "single_object", "include": [{"class": "tv", "count": 1}], "prompt": "a photo of a tv"},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 3}],
        "exclude": [{"class": "dog", "count": 4}],
        "prompt": "a photo of three dogs",
    },
    {
        "tag": "position",
        "include": [
            {"class": "cat", "count": 1},
            {"class": "orange", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a photo of an orange left of a cat",
    },
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
)


def test_genevals_file_is_judged_where_the_detector_has_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in GENEVAL_LINES))
    prompts, left_out = read(path, NAMES)
    assert [prompt.include[0].object for prompt in prompts] == ["television", "dog", "cat"]
    assert prompts[1].exclude == (Clause(object="dog", count=4),)
    assert prompts[2].include[1] == Clause(object="orange", position=("left of", 0))
    assert [(one.text, one.reason) for one in left_out] == [
        ("a photo of a bench", 'the detector knows no "bench"')
    ]


def test_sentences_get_clauses_or_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "color_val.txt"
    path.write_text("a red cat and a blue dog\n\na dog made of wood\na cat on the right of a dog\n")
    prompts, left_out = read(path, NAMES)
    assert [prompt.task for prompt in prompts] == ["color_attr", "position"]
    assert prompts[0].include == (Clause(object="cat", colour="red"), Clause(object="dog", colour="blue"))
    assert prompts[1].include == (Clause(object="dog"), Clause(object="cat", position=("right of", 0)))
    assert [one.text for one in left_out] == ["a dog made of wood"]
    assert "made" in left_out[0].reason
    path.write_text("nothing at all\n")
    with pytest.raises(DataError, match=r"no prompt of .* can be judged"):
        read(path, NAMES)
    with pytest.raises(DataError, match="cannot read the prompts"):
        read(tmp_path / "none.txt", NAMES)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("a cat", "single_object"),
        ("a photo of a cat", "single_object"),
        ("a cat and a dog", "two_object"),
        ("three dogs", "counting"),
        ("a red dog", "colors"),
        ("a small dog", "size"),
        ("a cat, a dog and an apple", None),
        ("a cat and a dog and an apple", "three_objects"),
        ("a cat above a red dog", "position"),
        ("two dogs and three cats", None),
        ("dogs", None),
        ("a cat and a cat", None),
        ("a small cat and a dog", None),
        ("a cat on a red background", None),
        ("a cat above a dog above an apple", None),
        ("a fluffy cat", None),
    ],
)
def test_kinds_of_sentences(text: str, task: str | None) -> None:
    if task is None:
        with pytest.raises(DataError):
            from_sentence(text)
    else:
        assert from_sentence(text).task == task


def test_counting_is_exact() -> None:
    three = from_sentence("three dogs")
    assert (three.include, three.exclude) == (
        (Clause(object="dog", count=3),),
        (Clause(object="dog", count=4),),
    )


def test_what_a_detector_cannot_say_is_not_asked_of_it() -> None:
    cat = Prompt(task="style", text="a cat", include=(Clause(object="cat"),))
    assert judgeable(cat, NAMES) == cat
    for changed, message in (
        (replace(cat, style="sticker"), 'no style "sticker"'),
        (replace(cat, background="snow"), 'no background "snow"'),
        (replace(cat, word="AB"), 'no letter "B"'),
        (replace(cat, include=(Clause(object="unicorn"),)), 'no "unicorn"'),
    ):
        with pytest.raises(DataError, match=message):
            judgeable(changed, NAMES)
    few = replace(NAMES, colours=("red",))
    with pytest.raises(DataError, match='no colour "blue"'):
        judgeable(replace(cat, include=(Clause(object="cat", colour="blue"),)), few)
