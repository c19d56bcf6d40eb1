import json
from pathlib import Path

import pytest

from limner.errors import DataError
from limner.evaluate.prompts import Clause, Prompt, from_dict, known_sets, read, to_line

FULL = Prompt(
    task="word",
    text='a red "cat"',
    include=(
        Clause(object="dog"),
        Clause(object="cat", count=2, colour="red", position=("left of", 0)),
    ),
    exclude=(Clause(object="cat", count=3),),
    style="flat",
    background="snow",
    size="large",
    word="CAT",
)


def test_a_line_gives_its_prompt_back() -> None:
    assert from_dict(json.loads(to_line(FULL))) == FULL
    assert "\n" not in to_line(FULL)


def test_files_of_geneval_itself_are_read(tmp_path: Path) -> None:
    """Made up here, in the format that GenEval publishes."""
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text(
        '{"tag": "position", "include": [{"class": "cow", "count": 1}, '
        '{"class": "bench", "count": 1, "position": ["above", 0]}], "prompt": "a bench above a cow"}\n'
        "\n"
        '{"tag": "counting", "include": [{"class": "kite", "count": 2}], '
        '"exclude": [{"class": "kite", "count": 3}], "prompt": "two kites"}\n'
    )
    first, second = read(path)
    assert first.include[1] == Clause(object="bench", position=("above", 0))
    assert second.exclude == (Clause(object="kite", count=3),)


def test_sets_are_known_by_name() -> None:
    assert known_sets() == ["all", "core"]
    assert len(read("core")) == 553 + 734


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("3", "a prompt is a JSON object, got 3"),
        ('{"tags": 1}', 'a prompt has no "tags"; did you mean "tag"'),
        ('{"tag": "counting", "prompt": "x"}', "include is a list of at least one clause"),
        ('{"tag": "counting", "prompt": "x", "include": []}', "at least one clause"),
        ('{"tag": "count", "prompt": "x", "include": [{"class": "cat"}]}', 'tag cannot be "count"'),
        ('{"prompt": "x", "include": [{"class": "cat"}]}', 'tag cannot be "None"'),
        ('{"tag": "counting", "include": [{"class": "cat"}]}', "prompt is text, got None"),
        ('{"tag": "counting", "prompt": "x", "include": [7]}', "a clause is a JSON object"),
        ('{"tag": "counting", "prompt": "x", "include": [{"class": ""}]}', "class is text"),
        ('{"tag": "counting", "prompt": "x", "include": [{"class": "cat", "count": 0}]}', "from 1 to 16"),
        ('{"tag": "counting", "prompt": "x", "include": [{"class": "cat", "count": true}]}', "from 1 to 16"),
        ('{"tag": "colors", "prompt": "x", "include": [{"class": "cat", "color": "rde"}]}', 'mean "red"'),
        (
            '{"tag": "position", "prompt": "x", "include": [{"class": "cat", "position": ["above", 0]}]}',
            "an earlier clause, got 0",
        ),
        (
            '{"tag": "position", "prompt": "x", "include": [{"class": "cat", "position": "above"}]}',
            "position is such as",
        ),
        ('{"tag": "word", "prompt": "x", "include": [{"class": "cat"}], "word": "hi"}', "capital letters"),
        ('{"tag": "size", "prompt": "x", "include": [{"class": "cat"}], "size": 3}', 'size cannot be "3"'),
        ('{"tag": "style", "prompt": "x", "include": [{"class": "cat"}], "style": "oil"}', "style cannot be"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{to_line(FULL)}\n{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert f"{path}, line 2" in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'cannot read the prompts cor: No such file.*did you mean "core"'):
        read("cor")
    with pytest.raises(DataError, match="cannot read the prompts"):
        read(tmp_path)
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(DataError, match="holds no prompts"):
        read(tmp_path / "empty")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not UTF-8 at byte 3"):
        read(tmp_path / "latin")
