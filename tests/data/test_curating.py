"""limner data filter and dedup, as they are typed."""

from collections.abc import Callable

import pytest
from PIL import Image
from typer.testing import CliRunner

from limner.cli import app
from limner.data.records import DataSet
from limner.errors import ConfigError, DataError, RequestError


def said(*words: str) -> str:
    done = CliRunner().invoke(app, ["data", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_rehearsal_then_the_real_thing(set_of: Callable[..., DataSet], scenes: list[Image.Image]) -> None:
    data = set_of(
        {"good": scenes[0], "again": scenes[0].resize((100, 100)), "tiny": scenes[1].resize((20, 20))},
        {"good": "a [red]cat[/red]"},
    )
    folder = str(data.folder)
    told = said("filter", folder, "--dry-run", "--word", "[red]cat[/red]")
    assert "20 x 20" in told
    assert "[red]cat[/red]" in told
    assert "1 of 3 pictures would stay" in told
    assert len(DataSet.open(data.folder).steps) == 1
    told = said("filter", folder, "--block", str(_list(data, "key: none*")))
    assert "filter: 1 small" in told
    assert said("filter", folder, "--dry-run", "--size", "10").startswith("2 of 2 pictures would stay")
    told = said("dedup", folder)
    assert "dedup: 1 duplicate" in told
    assert [record.key for record in DataSet.open(data.folder).records()] == ["good"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["filter", "none"], DataError),
        (["dedup", "SET", "--embeddings", "a.parquet", "--clip", "b"], RequestError),
        (["dedup", "SET", "--embeddings", "a.csv"], RequestError),
        (["filter", "SET", "--block", "none.txt"], DataError),
        (["filter", "SET", "--score", "0.5"], RequestError),
        (["filter", "SET", "--word", " "], ConfigError),
    ],
)
def test_what_is_refused(words: list[str], error: type[Exception], set_of: Callable[..., DataSet]) -> None:
    folder = str(set_of({"a": Image.new("RGB", (8, 8))}).folder)
    done = CliRunner().invoke(app, ["data", *(folder if word == "SET" else word for word in words)])
    assert isinstance(done.exception, error)


def _list(data: DataSet, text: str) -> object:
    path = data.folder.parent / "block.txt"
    path.write_text(text)
    return path
