"""Folders for pictures are tried before anything is drawn, by every command that draws."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from limner.cli import app
from limner.errors import RequestError
from limner.pipeline.places import tried


def test_what_can_be_written_to_stays_as_it_was(tmp_path: Path) -> None:
    assert tried(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    (tmp_path / "there").mkdir()
    tried(tmp_path / "there")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


@pytest.mark.parametrize(
    ("name", "why"),
    [("file", "File exists"), ("file/in", "Not a directory"), ("a" * 300, "too long"), ("a\0b", "null")],
)
def test_what_cannot_is_refused(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=f"cannot save pictures in .*{why}.*choose another folder"):
        tried(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


@pytest.mark.parametrize(
    "words",
    [
        ("imagine", "a cat", "--model", "PICTURE"),
        ("blend", "a cat", "a dog", "--model", "PICTURE"),
        ("upscale", "PICTURE", "--model", "PICTURE"),
    ],
)
def test_commands_refuse_it_before_they_load_a_model(tmp_path: Path, words: tuple[str, ...]) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(picture)
    said = [str(picture) if word == "PICTURE" else word for word in words]
    done = CliRunner().invoke(app, [*said, "--out", str(picture)])
    assert isinstance(done.exception, RequestError)
    assert "cannot save pictures in" in str(done.exception)
