"""What the page is made of: nothing from elsewhere, nothing inline, no markup from text. Needs no browser."""

import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs [serve]")

from limner.serve.routes.page import TYPES, WEB

FILES = sorted(path for path in WEB.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
PARSES = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc|setHTML"
    r"|\beval\(|new Function|setTimeout\(\s*[\"'`]|javascript:"
)
TYPED = re.compile(r"@param|@typedef|@type|@returns|@yields")


def test_all_that_lies_there_is_served() -> None:
    assert {path.suffix for path in FILES} <= TYPES.keys()
    assert {"index.html", "style.css", "app.js", "icon.svg"} <= {path.name for path in FILES}


def test_nothing_is_inline_or_from_elsewhere() -> None:
    page = (WEB / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    for path in FILES:
        found = re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}[^\s\"']*", path.read_text("utf-8"))
        assert set(found) <= {"http://www.w3.org/2000/svg"}, path.name
    for name in re.findall(r'(?:src|href)="(web/[^"]+)"', page):
        assert (WEB.parent / name).is_file(), name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_text_never_becomes_markup_or_code(path: Path) -> None:
    assert not PARSES.search(path.read_text("utf-8"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_modules_are_small_and_say_what_they_are(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith(("/**", "// "))
    assert len(text.splitlines()) <= 400
    for name in re.findall(r'from "(\./[^"]+)"', text):
        assert (WEB / name).is_file()
    if "\nexport function" in text and "(" in text.partition("\nexport function")[2].partition("()")[0]:
        assert TYPED.search(text)


def test_every_id_that_a_script_asks_for_is_in_the_page() -> None:
    page = set(re.findall(r'\bid="([^"]+)"', (WEB / "index.html").read_text("utf-8")))
    for path in SCRIPTS:
        text = path.read_text("utf-8")
        made = set(re.findall(r'\bid: "([^"]+)"', text))
        assert set(re.findall(r'\$\("([^"]+)"\)', text)) <= page | made, path.name
        drawn = set(re.findall(r'\b(?:icon|button)\("([\w-]+)"', text)) | set(
            re.findall(r'drawing: "([\w-]+)"', text)
        )
        assert {f"i-{name}" for name in drawn} <= page, path.name


def test_samplers_are_those_of_the_server() -> None:
    from limner.diffusion.samplers import SAMPLERS

    listed = re.search(
        r"export const SAMPLERS = \[(.*?)\]", (WEB / "details.js").read_text("utf-8"), re.DOTALL
    )
    assert listed is not None
    assert set(re.findall(r'"(\w+)"', listed[1])) == set(SAMPLERS)
