"""limner data import, limner data inspect, limner world draw."""

import builtins
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from limner.cli import app
from limner.data.dedup import Hash
from limner.data.embeddings import Embed
from limner.data.filters import Filter
from limner.data.records import DataSet
from limner.data.world import export
from limner.data.world.source import DrawnConfig
from limner.errors import DataError


def run(*words: object) -> Result:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "10_sks dog").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (40 + i, 30), (i, 2 * i, 3 * i)).save(folder / "10_sks dog" / f"{i}.png")
    (folder / "10_sks dog" / "2.txt").write_text("sks dog\x1b[31m sleeps", encoding="utf-8")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


def test_import_and_inspect(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "set"
    done = run("data", "import", photos, into)
    assert done.stdout.splitlines() == ["measure: 1 not-a-picture", f"{into}: 3 pictures"]
    assert run("data", "import", photos, into).stdout == done.stdout, "nothing was left to do"
    told = run("data", "inspect", into).stdout
    assert "3 pictures, 30 an epoch; steps: 01-found, 02-measure" in told
    assert "Repeats: 10 x 3 pictures" in told
    assert "dog 3, sks 3" in told or "sks 3, dog 3" in told
    assert "Dropped: 1 measure: not-a-picture" in told
    assert told.splitlines()[-1] == str(into / "contact.png")
    assert "\x1b" not in told
    with Image.open(into / "contact.png") as sheet:
        assert sheet.size == (2 * (42 + 4) + 4, 2 * (30 + 4) + 4)


def test_inspect_as_json(photos: Path, tmp_path: Path) -> None:
    run("data", "import", photos, tmp_path / "set", "--no-kohya", "--quick")
    done = run("data", "inspect", tmp_path / "set", "--json", "--pictures", 0)
    told = json.loads(done.stdout)
    assert (told["pictures"], told["captions"]["none"], told["repeats"]) == (3, 2, {"1": 3})
    assert not (tmp_path / "set" / "contact.png").exists()


def test_import_takes_its_options(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (60, 50)).save(tmp_path / "b.png")
    (tmp_path / "t.csv").write_text("where,what,score\na.png,a cat,5\nb.png,a dog,6\n")
    options = ("--image-column", "where", "--caption-column", "what", "--fact", "score", "--largest", 0.002)
    done = run("data", "import", tmp_path / "t.csv", tmp_path / "set", *options)
    assert "measure: 1 too-large" in done.stdout
    (record,) = DataSet.open(tmp_path / "set").records()
    assert (record.caption, record.facts) == ("a cat", {"score": "5"})


def test_a_contact_sheet_where_none_can_be(photos: Path, tmp_path: Path) -> None:
    run("data", "import", photos, tmp_path / "set")
    with pytest.raises(DataError, match="cannot write"):
        run("data", "inspect", tmp_path / "set", "--sheet", tmp_path / "none" / "x.png")


def test_without_pyarrow_the_command_says_what_to_install(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = builtins.__import__

    def lacking(name: str, *rest: object, **more: object) -> object:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="pyarrow")
        return whole(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(DataError, match=r'pyarrow is missing; install it with pip install "limner\[train\]"'):
        run("data", "import", photos, tmp_path / "set")


def test_what_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="limner data import"):
        run("data", "inspect", tmp_path)


def test_world_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def draw(folder: Path, **told: object) -> list[int]:
        asked.update(told, folder=folder)
        return [5]

    monkeypatch.setattr(export, "draw", draw)
    done = run("world", "draw", tmp_path, "--count", 5, "--size", 128, "--seed", 3, "--from", "atlas")
    assert done.stdout == f"{tmp_path}\n"
    assert asked == {
        "folder": tmp_path,
        "count": 5,
        "size": 128,
        "seed": 3,
        "source": DrawnConfig(folder="atlas", objects="core", styles=("flat", "glossy")),
    }


def test_what_was_imported_is_small_enough_for_what_follows(photos: Path, tmp_path: Path) -> None:
    words = ["data", "import", str(photos), str(tmp_path / "set"), "--largest"]
    assert CliRunner().invoke(app, [*words, "90"]).exit_code == 2
    assert CliRunner().invoke(app, [*words, "89"]).exit_code == 0
    assert min(Filter().largest, Hash().largest, Embed().largest) == 89_000_000
