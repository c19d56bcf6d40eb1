"""The code on the pages runs."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from limner.families import FAMILIES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"


def test_the_python_page_runs(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block, in order, in one namespace, with a tiny model in place of the built-in one."""
    monkeypatch.setitem(FAMILIES, "mini", replace(FAMILIES["mini"], folder=tiny))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(list((tmp_path / "limner-out").iterdir())) == 5 + 3


def test_every_family_and_every_published_model_has_its_row() -> None:
    from limner.weights.published import ALL

    page = (PAGE.parent / "families.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    listed = {name: row for row in cells for name in re.findall(r"`([\w-]+)`", " ".join(row[:3]))}
    assert set(FAMILIES) - set(listed) == set()
    assert {model.name for model in ALL} - set(listed) == set()
    for model in ALL:
        row = listed[model.name]
        assert row[2] == f"`{model.family}`", model.name
        assert ("file" in row[3]) == model.single, model.name


def test_the_page_of_families_names_the_references_that_are_installed() -> None:
    from importlib.metadata import version

    page = (PAGE.parent / "families.md").read_text("utf-8")
    assert f"diffusers {version('diffusers')} and transformers {version('transformers')}" in page
