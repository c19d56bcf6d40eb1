import io
import json
import os
import shutil
import sys
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from limner.data.world import art
from limner.data.world.art import SIZES, load_atlas, prepare
from limner.errors import DataError

APPLE = {"apple": "red-apple"}


def test_atlas_of_every_object_style_and_size(atlas_folder: Path) -> None:
    atlas = load_atlas(atlas_folder)
    assert atlas.styles == ("flat", "glossy")
    assert len(atlas.objects) == 10
    for size in SIZES:
        assert atlas.tiles[size].shape == (2, 10, 4, size, size)
        assert atlas.letters[size].shape == (26, size, size)
    assert atlas.sources["flat"] == {
        "package": "@iconify-json/fluent-emoji-flat",
        "version": "1.2.3",
        "licence": "MIT",
    }


def test_tiles_are_premultiplied_and_halve_exactly(atlas_folder: Path) -> None:
    tiles = load_atlas(atlas_folder).tiles
    for size in SIZES:
        assert (tiles[size][:, :, :3] <= tiles[size][:, :, 3:]).all()
    for small, large in pairwise(SIZES):
        halved = torch.nn.functional.avg_pool2d(tiles[large].flatten(0, 1).float(), 2)
        assert (halved - tiles[small].flatten(0, 1)).abs().max() <= 1  # each is rounded once


def test_every_drawing_fills_its_tile(atlas_folder: Path) -> None:
    """The apple is drawn off the middle of its canvas, and the cat covers a sixth of it."""
    atlas = load_atlas(atlas_folder, objects=["apple", "cat"])
    for alpha in atlas.tiles[256][0, :, 3]:
        ys, xs = (alpha > 128).nonzero().unbind(1)
        assert min(xs.min(), ys.min()) < 8
        assert max(xs.max(), ys.max()) > 247
    apple = atlas.tiles[256][0, 0, :, 128, 128].tolist()
    assert apple == [0xD0, 0x20, 0x20, 255]


def test_letters_stand_on_one_line_and_advance_by_their_width(atlas_folder: Path) -> None:
    atlas = load_atlas(atlas_folder, sizes=(64,))
    ink = atlas.letters[64][art.LETTERS.index("H")].amax(1)
    assert (ink[:6] == 0).all()
    assert (ink[7:] == 255).all()
    advance = dict(zip(art.LETTERS, atlas.advance.tolist(), strict=True))
    assert advance["I"] < advance["E"] < advance["W"]


def test_part_of_an_atlas_in_the_order_asked_for(atlas_folder: Path) -> None:
    whole = load_atlas(atlas_folder, sizes=(16,))
    part = load_atlas(atlas_folder, objects=["tree", "apple"], styles=["glossy"], sizes=(16,))
    rows = [whole.objects.index("tree"), whole.objects.index("apple")]
    assert (part.objects, part.styles, list(part.tiles)) == (("tree", "apple"), ("glossy",), [16])
    assert torch.equal(part.tiles[16], whole.tiles[16][1:, rows])
    moved = part.to(torch.device("cpu"))
    assert torch.equal(moved.tiles[16], part.tiles[16])
    assert moved.objects == part.objects


@pytest.mark.parametrize(("objects", "styles"), [(["apple", "dragon"], ["flat"]), (["apple"], ["sticker"])])
def test_what_an_atlas_lacks_is_named(atlas_folder: Path, objects: list[str], styles: list[str]) -> None:
    with pytest.raises(DataError, match=r"dragon|sticker"):
        load_atlas(atlas_folder, objects=objects, styles=styles)


def test_no_atlas_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="limner world prepare"):
        load_atlas(tmp_path)


def test_unknown_style_leaves_the_old_atlas_alone(icon_sets: Path, tmp_path: Path) -> None:
    prepare(tmp_path, APPLE, styles=("flat",), source=icon_sets)
    with pytest.raises(DataError, match="oil"):
        prepare(tmp_path, APPLE, styles=("flat", "oil"), source=icon_sets)
    assert load_atlas(tmp_path, sizes=(16,)).styles == ("flat",)


def test_missing_drawings_and_packages(icon_sets: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no drawing named unicorn \(1 missing\)"):
        prepare(tmp_path, {**APPLE, "unicorn": "unicorn"}, styles=("flat",), source=icon_sets)
    with pytest.raises(DataError, match="@iconify-json/noto"):
        prepare(tmp_path, APPLE, styles=("classic",), source=icon_sets)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("package.json", b"{", r"package\.json is not a JSON object; fetch the package again"),
        ("package.json", b"[]", r"package\.json is not a JSON object"),
        (
            "package.json",
            b'{"name": "@iconify-json/fluent-emoji-flat"}',
            "is no icon set, it lacks 'version'",
        ),
        ("info.json", None, r"cannot read .*info\.json: No such file"),
        ("info.json", b"{}", "it lacks 'license'"),
        ("info.json", b'{"license": "MIT"}', "is no icon set"),
        ("icons.json", b"\xff", r"icons\.json is not a JSON object"),
        pytest.param("icons.json", b"[" * 100_000, r"icons\.json is not a JSON object", id="nested"),
        ("icons.json", b"{}", "it lacks 'icons'"),
        ("icons.json", b'{"icons": ["red-apple"]}', "is no icon set"),
        ("icons.json", b'{"icons": {"red-apple": 3}}', "is no icon set"),
        ("icons.json", b'{"icons": {"red-apple": {}}}', "it lacks 'body'"),
        ("icons.json", b'{"icons": {"red-apple": {"body": 3}}}', "no drawing named red-apple"),
        ("icons.json", b'{"icons": {"red-apple": {"body": "<path"}}}', "red-apple cannot be rendered"),
        ("icons.json", b'{"icons": {"red-apple": {"body": ""}}}', "red-apple cannot be rendered"),
        (
            "icons.json",
            b'{"icons": {"red-apple": {"body": "", "width": "a"}}}',
            "red-apple cannot be rendered",
        ),
    ],
)
def test_a_broken_package_leaves_the_old_atlas_alone(
    icon_sets: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    atlas, packages = tmp_path / "atlas", tmp_path / "packages"
    prepare(atlas, APPLE, styles=("flat",), source=icon_sets)
    shutil.copytree(icon_sets, packages)
    broken = packages / "fluent-emoji-flat" / "package" / name
    broken.unlink()
    if content is not None:
        broken.write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(atlas, APPLE, styles=("glossy", "flat"), source=packages)
    assert load_atlas(atlas, sizes=(16,)).styles == ("flat",)


def test_without_the_renderer_the_old_atlas_is_left_alone(
    icon_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, APPLE, styles=("flat",), source=icon_sets)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    monkeypatch.setattr(art, "fetch", lambda *_: pytest.fail("fetched before the renderer was missed"))
    with pytest.raises(ModuleNotFoundError) as missing:
        prepare(tmp_path, APPLE, styles=("flat",))
    assert missing.value.name == "resvg_py"
    assert load_atlas(tmp_path, sizes=(16,)).styles == ("flat",)


def test_a_style_named_twice_is_drawn_once(icon_sets: Path, tmp_path: Path) -> None:
    prepare(tmp_path, APPLE, styles=("flat", "flat"), source=icon_sets)
    assert load_atlas(tmp_path, sizes=(16,)).styles == ("flat",)


def test_a_folder_that_cannot_be_written_to(icon_sets: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the atlas to .*file: .*; choose another"):
        prepare(tmp_path / "file", APPLE, styles=("flat",), source=icon_sets)


def test_a_failed_prepare_leaves_what_was_there(
    icon_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, APPLE, styles=("flat",), source=icon_sets)
    seen: list[tuple[str, int, int]] = []

    def stop(*progress: str | int) -> None:
        seen.append(progress)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, APPLE, styles=("glossy",), source=icon_sets, progress=stop)
    assert seen == [("glossy", 1, 1)] * 2
    with pytest.raises(DataError, match="no atlas"):
        load_atlas(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "new").rmdir()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


NPM = """#!/bin/sh
[ "$1" = pack ] || exit 2
cp "{archive}" iconify-json-noto-9.9.9.tgz && echo iconify-json-noto-9.9.9.tgz
"""


def test_fetch_unpacks_what_npm_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "made.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("package/icons.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    npm(tmp_path, NPM.format(archive=archive), monkeypatch)
    into = tmp_path / "into"
    into.mkdir()
    folder = art.fetch("@iconify-json/noto", into)
    assert json.loads((folder / "icons.json").read_text()) == {}
    assert folder.is_relative_to(into)


def test_fetch_reports_what_npm_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm(tmp_path, "#!/bin/sh\necho no network >&2\nexit 1\n", monkeypatch)
    with pytest.raises(DataError, match="no network"):
        art.fetch("@iconify-json/noto", tmp_path)


def test_fetch_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="--from FOLDER"):
        art.fetch("@iconify-json/noto", tmp_path)


def npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an npm that runs `script` first on the path."""
    program = folder / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_icons_may_have_their_own_canvas() -> None:
    body = '<rect x="40" y="40" width="20" height="20" fill="#ffffff"/>'
    icons = {"icons": {"box": {"body": body, "width": 64, "height": 64}}}
    tile = art._tight_tile(icons, "box", 64)
    assert tile.shape == (4, 64, 64)
    assert tile.dtype == np.float32
    assert tile[3].mean() > 0.85
