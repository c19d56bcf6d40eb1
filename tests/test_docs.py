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
