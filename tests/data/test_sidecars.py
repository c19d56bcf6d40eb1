"""What is said beside a picture: text, JSON, names of folders."""

import pytest

from limner.data.sidecars import LONGEST, Said, clean, of_folders, of_table, read
from limner.errors import DataError


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (("10_sks dog",), (10, "sks dog")),
        (("photos", "3_ein Hündchen", "closer"), (3, "ein Hündchen")),
        (("2_a", "5_b"), (5, "b")),
        (("7_",), (7, "")),
        (("2023_holiday",), (1, "")),
        (("0_nothing",), (1, "")),
        (("dogs", "a_10_b"), (1, "")),
        ((), (1, "")),
    ],
)
def test_folders_as_kohya_calls_them(folders: tuple[str, ...], told: tuple[int, str]) -> None:
    assert of_folders(folders) == told


def test_text_goes_before_json() -> None:
    texts = {
        ".json": b'{"caption": "from json", "long_caption": "much  longer", "score": 0.5, "rest": [1]}',
        ".txt": "\ufeff a dog,\r\n on grass \n".encode(),
    }
    assert read({".json": texts[".json"]}, ("score", "rest", "none")) == Said(
        caption="from json", long_caption="much longer", facts={"score": 0.5, "rest": [1]}
    )
    assert read(texts).caption == "a dog, on grass"
    assert read({**texts, ".json": b'{"caption": 5}'}).caption == "a dog, on grass"
    assert read(texts).long_caption == "much longer"
    assert read({".caption": b"as kohya has it"}).caption == "as kohya has it"
    assert read({}) == Said()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({".txt": b"caf\xe9"}, "not UTF-8"),
        ({".txt": b"x" * (LONGEST + 1)}, "bytes"),
        ({".json": b"{"}, "broken"),
        ({".json": b"[" * 100_000}, "broken"),
        ({".json": b'"only text"'}, "no table"),
        ({".json": b'{"caption": 5}'}, "its caption is 5, and no text"),
        ({".json": b'{"caption": [["a"]]}'}, "its caption is"),
    ],
)
def test_what_cannot_be_read_is_refused(texts: dict[str, bytes], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(texts)


@pytest.mark.parametrize(
    ("row", "caption"),
    [
        ({"text": "a"}, "a"),
        ({"prompt": "b", "description": "c"}, "b"),
        ({"caption": ["first", "second"]}, "first"),
        ({"caption": None, "text": "d"}, "d"),
        ({"caption": ""}, ""),
        ({"caption": float("nan")}, ""),
        ({"caption": []}, ""),
        ({}, ""),
    ],
)
def test_captions_of_a_row(row: dict[str, object], caption: str) -> None:
    assert of_table(row).caption == caption


def test_a_named_column_is_the_caption() -> None:
    assert of_table({"text": "a", "title": "b"}, column="title").caption == "b"


def test_captions_are_one_line_that_any_file_can_hold() -> None:
    assert clean(" a\tb\n\nc\0\x1b ") == "a b c"
    assert clean("cafe\u0301 \U0001f415") == "café \U0001f415"
    assert clean("\ud800") == "?"
