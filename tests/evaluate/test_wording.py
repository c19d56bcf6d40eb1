import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from limner.errors import DataError
from limner.evaluate import wording
from limner.evaluate.prompts import BACKGROUNDS, SETS, TASKS, Clause, Prompt, read
from limner.evaluate.wording import HeldOut, reads_as_meant, write
from limner.text.lexicon import load_lexicon
from limner.text.words import COLOURS

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CORE = [entry.name for entry in load_lexicon().entries if entry.core]


@pytest.fixture(scope="module")
def unseen() -> HeldOut:
    return HeldOut(CORE)


@pytest.fixture(scope="module")
def core() -> list[Prompt]:
    return read("core")


@pytest.mark.parametrize("name", ["core", "all"])
def test_the_committed_sets_are_what_the_seed_generates(name: str) -> None:
    """In a process of its own, where annotations are not checked: it is ten times as fast there."""
    code = f"from write_prompts import text; print(text('{name}'), end='')"
    command = [sys.executable, "-X", "utf8", "-c", code]
    done = subprocess.run(command, cwd=SCRIPTS, capture_output=True, encoding="utf-8", check=True)
    assert (SETS / f"{name}.jsonl").read_text("utf-8") == done.stdout, "run python scripts/write_prompts.py"


def test_numbers_and_texts(core: list[Prompt]) -> None:
    assert Counter(prompt.task for prompt in core) == TASKS
    assert len({(prompt.task, prompt.text) for prompt in core}) == len(core)


def test_every_task_asks_for_all_that_it_is_about(core: list[Prompt]) -> None:
    of: dict[str, list[Prompt]] = {}
    for prompt in core:
        of.setdefault(prompt.task, []).append(prompt)
    assert Counter(p.include[0].count for p in of["counting"]).keys() == {2, 3, 4}
    assert all(p.exclude[0].count == p.include[0].count + 1 for p in of["counting"])
    assert {p.include[0].colour for p in of["colors"]} == set(COLOURS)
    assert Counter(p.include[1].position for p in of["position"]) == {
        (relation, 0): 25 for relation in ("left of", "right of", "above", "below")
    }
    for prompt in of["color_attr"]:
        first, second = prompt.include
        assert first.object != second.object
        assert first.colour != second.colour
    assert Counter(p.style for p in of["style"]) == dict.fromkeys(
        ("flat", "glossy", "classic", "sticker"), 20
    )
    assert Counter(p.background for p in of["background"]) == dict.fromkeys(BACKGROUNDS, 4)
    assert Counter(p.size for p in of["size"]) == {"small": 40, "large": 40}
    assert all(len({clause.object for clause in p.include}) == 3 for p in of["three_objects"])
    assert all(p.word is not None and 2 <= len(p.word) <= 6 and f'"{p.word}"' in p.text for p in of["word"])
    assert all(p.include[0].object not in p.text.split() for p in of["synonym"] if " " not in p.text[2:])


def test_what_is_held_out_is_asked_for_in_its_own_tasks_only(core: list[Prompt], unseen: HeldOut) -> None:
    for prompt in core:
        assert unseen.has(prompt) == prompt.task.startswith("unseen"), prompt.text


def test_the_worlds_rule_has_no_mirror_images(unseen: HeldOut) -> None:
    def position(subject: str, relation: str, target: str) -> Prompt:
        clauses = (Clause(object=target), Clause(object=subject, position=(relation, 0)))
        return Prompt(task="position", text="", include=clauses)

    assert unseen.has(position("dog", "left of", "key"))  # pinned in tests/data/world/test_scene.py
    assert unseen.has(position("key", "right of", "dog"))
    assert unseen.has(position("dog", "below", "key"))
    assert not unseen.has(position("key", "left of", "dog"))
    apple = Prompt(task="colors", text="", include=(Clause(object="apple", colour="white"),))
    assert unseen.has(apple)


def test_backgrounds_styles_and_words_are_read_as_meant(core: list[Prompt]) -> None:
    for prompt in core:
        if prompt.task not in ("style", "background", "word"):
            continue
        words = load_lexicon().read(prompt.text).words
        assert prompt.style is None or words[-3:] == ("in", prompt.style, "style"), prompt.text
        if prompt.background is not None:
            ground = ("background",) if prompt.background in COLOURS else ()
            assert {prompt.background, *ground} <= set(words), prompt.text
        if prompt.word is not None:
            spelled = tuple(f"<{letter}>" for letter in prompt.word.lower())
            assert words[-len(spelled) - 1 : -1] == spelled, prompt.text


def test_what_is_misread_is_not_asked() -> None:
    def prompt(text: str) -> Prompt:
        return Prompt(task="colors", text=text, include=(Clause(object="cat", colour="red"),))

    assert reads_as_meant(prompt("a red cat"))
    assert not reads_as_meant(prompt("a cat"))
    assert not reads_as_meant(prompt("a red cat and a dog"))
    assert not reads_as_meant(prompt("a red xqzt cat"))


def test_few_objects_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wording, "TRIES", 2)
    with pytest.raises(DataError, match="2 objects are too few for 80 prompts of the task single_object"):
        write(["cat", "dog"])
