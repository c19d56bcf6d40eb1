"""The house that docs/design.md and README.md show is the one on the disk."""

import importlib.util
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grimp
import pytest
from importlinter import cli as importlinter_cli

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "limner"
REACH = 3_500  # lines of code that a reader meets between a prompt and a picture, at most
PLANNED = "not built yet"
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ""}
BANNED = re.compile(r"\b(hidden_states|manager|helper|scheduler)\b", re.IGNORECASE)
_spec = importlib.util.spec_from_file_location("reach", ROOT / "scripts" / "reach.py")
assert _spec is not None
assert _spec.loader is not None
reach: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reach)


def _block(page: str, opening: str) -> list[str]:
    """The lines of the first fenced block that starts with the line `opening`."""
    match = re.search(
        rf"^```\w*\n{re.escape(opening)}\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S
    )
    assert match, f"{page} has no tree that starts with {opening}"
    return match.group(1).splitlines()


def _entries(lines: list[str]) -> Iterator[tuple[str, str]]:
    """(path, what is said about it) of each line of a tree whose levels are two blanks deep."""
    folders: list[str] = []
    for line in lines:
        depth = (len(line) - len(line.lstrip(" "))) // 2
        name, _, note = line.strip().partition(" ")
        del folders[depth - 1 :]
        yield "".join([*folders, name]), note.strip()
        if name.endswith("/"):
            folders.append(name)


def _files_on_disk() -> set[str]:
    """Every file of the package, but for the __init__.py that each room has anyway."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file()
        and not {"__pycache__", ".DS_Store"} & set(path.parts)
        and (path.name != "__init__.py" or path.parent == PACKAGE)
    }


def _sources(*folders: str) -> Iterator[tuple[Path, str]]:
    """Path and text of every text file that belongs to the project, or of those below `folders`."""
    skipped = {
        ".git",
        "__pycache__",
        "node_modules",
        "venv",
        ".venv",
        "shared",
        "out",
        "outputs",
        "runs",
        "dist",
    }
    for start in folders or (".",):
        for folder, subfolders, names in os.walk(ROOT / start):
            subfolders[:] = [
                name for name in subfolders if name not in skipped and not name.endswith("_cache")
            ]
            if ".hypothesis" in subfolders:
                subfolders.remove(".hypothesis")
            for name in names:
                path = Path(folder) / name
                if path.suffix in TEXT and path.stat().st_size < 2_000_000:
                    yield path, path.read_text("utf-8")


def test_design_shows_every_file_and_no_other() -> None:
    entries = dict(_entries(_block("docs/design.md", "src/limner/")))
    shown = {
        path for path, note in entries.items() if not path.endswith("/") and not note.startswith(PLANNED)
    }
    disk = _files_on_disk()
    assert disk - shown == set(), (
        f"on the disk, but not in the tree of docs/design.md: {sorted(disk - shown)}"
    )
    assert shown - disk == set(), (
        f"in the tree of docs/design.md, but not on the disk: {sorted(shown - disk)}"
    )


def test_design_marks_what_is_planned_and_says_what_every_file_is_for() -> None:
    entries = dict(_entries(_block("docs/design.md", "src/limner/")))
    built = {path for path, note in entries.items() if note.startswith(PLANNED) and (PACKAGE / path).exists()}
    assert built == set(), f'exists by now, so "{PLANNED}" is no longer true'
    missing = {path for path, note in entries.items() if not note.startswith(PLANNED)}
    assert {path for path in missing if not (PACKAGE / path).exists()} == set()
    assert {path for path, note in entries.items() if not path.endswith("/") and not note} == set()


def test_readme_shows_the_rooms_that_exist() -> None:
    lines = _block("README.md", "src/limner/")
    inside = {line.split()[0] for line in lines if line.startswith("  ")}
    rooms = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert inside == rooms | modules, f"shown {sorted(inside)}, exist {sorted(rooms | modules)}"
    around = {line.split()[0] for line in lines if not line.startswith("  ")}
    assert {name for name in around if not (ROOT / name).is_dir()} == set()


def test_readme_has_exactly_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    prompt = "two red apples to the left of a cat on a blue background"
    commands = [
        f'pip install -c constraints.txt . && limner imagine "{prompt}"',
        'pip install -c constraints.txt -e ".[dev]" && pytest -n auto',
    ]
    assert [line.strip() for line in text.splitlines() if " && " in line] == commands


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page if (ROOT / page).exists() else ROOT / "docs" / page
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text("utf-8"))
    broken = [link for link in targets if "://" not in link and not (path.parent / link).exists()]
    assert broken == []


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_files_import_only_from_rows_below(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "pyproject.toml")
    failed = importlinter_cli.lint_imports(config_filename=config, no_cache=True, no_logo=True)
    assert failed == 0, capsys.readouterr().out


def test_design_shows_the_rows_that_are_linted() -> None:
    page = (ROOT / "docs" / "design.md").read_text("utf-8").split("## Rows")[1].split("## Tree")[0]
    rows = [re.split(r"\s{2,}", line.strip())[0] for line in page.splitlines() if line.startswith("    ")]
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    assert rows == [re.sub("[()]", "", layer) for layer in contract["layers"]]


@pytest.mark.parametrize("family", reach.FAMILIES.values(), ids=list(reach.FAMILIES))
def test_readers_reach(family: str) -> None:
    graph = grimp.build_graph("limner", exclude_type_checking_imports=True, cache_dir=None)
    lines = sum(reach.code(reach.source(module)) for module in reach.reach(family, graph))
    assert 500 < lines < REACH, f"{family} imports {lines} lines of this repository"


def test_every_family_has_a_reach() -> None:
    from limner.families import FAMILIES

    assert list(reach.FAMILIES) == list(FAMILIES)
    assert all(family.name == name for name, family in FAMILIES.items())


def test_blank_lines_comments_and_docstrings_are_no_code() -> None:
    text = '"""Said\ntwice."""\n\n# why\nx = 1  # what\n\n\ndef f():\n    """Told."""\n    return x\n'
    assert reach.code(text) == 3


@pytest.mark.parametrize("family", reach.FAMILIES.values(), ids=list(reach.FAMILIES))
def test_drawing_needs_only_the_base_install(family: str) -> None:
    graph = grimp.build_graph("limner", include_external_packages=True, cache_dir=None)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    base = {_distribution(line) for line in project["dependencies"]} | {"limner", "pil"}
    imported = {
        upstream.split(".")[0]
        for module in reach.reach(family, graph)
        for upstream in graph.find_modules_directly_imported_by(module)
    }
    foreign = {name for name in imported if _distribution(name) not in base} - set(sys.stdlib_module_names)
    assert foreign == set(), f"imported to draw with {family}, but not installed by `pip install .`"


def _distribution(requirement: str) -> str:
    """The normalised name in "Some_Name[extra]>=1" (PEP 503)."""
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")


def test_nothing_points_outside_the_clone() -> None:
    outside = re.compile(r"\.\./shared|" + "/" + r"work/|" + "/" + r"tmp/lim\b|" + "/" + r"root/")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path, text in _sources()
        if (match := outside.search(text))
    ]
    assert [line for line in found if not line.startswith("tests/test_house.py")] == []


def test_our_words() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path, text in _sources("src")
        if path.suffix == ".py" and not path.name.startswith("a1111_")  # whose JSON says "scheduler"
        for match in BANNED.finditer(text)
    ]
    assert found == []
    assert [str(path) for path, _ in _sources("src") if path.name == "utils.py"] == []


def test_annotations_stay_what_jaxtyping_can_check() -> None:
    future = "from __future__ import " + "annotations"
    assert [str(path) for path, text in _sources("src", "tests") if future in text] == []


def test_annotations_are_checked_while_tests_run() -> None:
    import torch
    from jaxtyping import TypeCheckError

    from limner.util.images import images_from_pixels

    with pytest.raises(TypeCheckError, match="b 3 h w"):
        images_from_pixels(torch.zeros(1, 4, 2, 2))


def test_constraints_pin_every_dependency_exactly() -> None:
    lines = [
        line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line and line[0] != "#"
    ]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert "torch==2.13.0" in lines
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {
        _distribution(line)
        for line in sum(project["optional-dependencies"].values(), project["dependencies"])
    }
    assert sorted(wanted - {"limner"} - {_distribution(line) for line in lines}) == []
