"""The prompt language: each rule, every text, and the page that explains it."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.errors import RequestError
from limner.text.prompt import (
    DEPTH,
    DOWN,
    LIMIT,
    Alternate,
    Break,
    Emphasis,
    ExtraNetwork,
    Lora,
    Part,
    Prompt,
    Schedule,
    Text,
    parse,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "prompts.md"


def said(prompt: Prompt, step: int = 0, steps: int = 10, *, earlier: int = 0) -> str:
    """All lines at a step as the page writes them, with ten steps where nothing else is told."""
    lines = []
    for line in prompt.at(step, steps, earlier=earlier):
        runs = [
            "".join(text if weight == 1 else f"{{{text} {weight:.3g}}}" for text, weight in run)
            for run in line.runs
        ]
        weight = f" x {line.weight:g}" if line.weight != 1 else ""
        lines.append(" ".join(" / ".join(runs).split()) + weight)
    return "\n".join(lines)


def over(text: str, steps: int = 10, *, earlier: int = 0) -> list[tuple[int, str]]:
    """(first step from 0, text) wherever it changes."""
    prompt = parse(text)
    turns = prompt.changes(steps, earlier=earlier)
    return [(step, said(prompt, step, steps, earlier=earlier)) for step in turns]


@pytest.mark.parametrize(
    "text, read",
    [
        ("a cat", "a cat"),
        ("(a)", "{a 1.1}"),
        ("((a)) b", "{a 1.21} b"),
        ("[a]", "{a 0.909}"),
        ("([a])", "a"),  # 1.1 / 1.1
        ("(a:1.3)", "{a 1.3}"),
        ("(a: +1.5 )", "{a 1.5}"),
        ("(a:-.5)", "{a -0.5}"),
        ("((a:2) b:3)", "{a 6}{ b 3}"),
        ("(a:b)", "{a:b 1.1}"),
        ("(a:1.2.3)", "{a:1.2.3 1.1}"),
        ("(a:1.2:1.5)", "{a:1.2 1.5}"),
        ("(a) (a)", "{a 1.1} {a 1.1}"),
        ("(a)(b)", "{ab 1.1}"),
        ("((a", "{a 1.21}"),
        ("a (b [c", "a {b 1.1}c"),
        ("a) b] :1.3)", "a) b] :1.3)"),
        ("()[]", ""),
        ("a | b", "a | b"),
        ("(a|b)", "{a|b 1.1}"),
        (r"\(a\) \[b\] \\ \x \| \:", r"(a) [b] \ x | :"),
        ("trailing\\", "trailing"),
        ("(a [b) c] d", "{a 1.1}b{ c 0.909} d"),  # crossing brackets weigh as they would apart
        ("(a [b (c] d:2) e", "{a 1.1}b {c 2}{ d 2.2}{ e 1.1}"),
        ("12:30", "12:30"),
        ("sandy BRANDT", "sandy BRANDT"),
    ],
)
def test_weights_and_escapes(text: str, read: str) -> None:
    assert said(parse(text)) == read


def test_the_tree() -> None:
    tree = parse(r"a (b:1.3) [c] [d:e:3] [f|] BREAK g AND \[h\]:0.5 <lora:x:1>")
    first = (
        Text("a "),
        Emphasis((Text("b"),), 1.3),
        Text(" "),
        Emphasis((Text("c"),), DOWN),
        Text(" "),
        Schedule((Text("d"),), (Text("e"),), 3.0, False),
        Text(" "),
        Alternate(((Text("f"),), ())),
        Break(),
        Text("g"),
    )
    second = Part((Text("[h]"),), 0.5)
    assert tree == Prompt((Part(first), second), (ExtraNetwork("lora", ("x", "1")),))
    assert str(tree) == r"a (b:1.3) [c] [d:e:3] [f|] BREAK g AND \[h\]:0.5 <lora:x:1>"


@pytest.mark.parametrize(
    "text, turns",
    [
        # as the doctests of the original give them, its steps counting from 1
        ("test", [(0, "test")]),
        ("a [b:3]", [(0, "a"), (3, "a b")]),
        ("a [b: 3]", [(0, "a"), (3, "a b")]),
        ("a [[[b]]:2]", [(0, "a"), (2, "a {b 0.826}")]),
        ("[(a:2):3]", [(0, ""), (3, "{a 2}")]),
        ("a [b : c : 1] d", [(0, "a b d"), (1, "a c d")]),
        ("a[b:[c:d:2]:1]e", [(0, "abe"), (1, "ace"), (2, "ade")]),
        ("a [unbalanced", [(0, "a {unbalanced 0.909}")]),
        ("a [b:.5] c", [(0, "a c"), (5, "a b c")]),
        ("((a][:b:c [d:3]", [(0, "{a] 1.21}{:b:c 1.1}"), (3, "{a] 1.21}{:b:c d 1.1}")]),
        ("[a|(b:1.1)]", [(step, "a" if step % 2 == 0 else "{b 1.1}") for step in range(10)]),
        ("[fe|]male", [(step, "female" if step % 2 == 0 else "male") for step in range(10)]),
        (
            "[fe|||]male",
            [(0, "female"), (1, "male"), (4, "female"), (5, "male"), (8, "female"), (9, "male")],
        ),
        # further ones
        ("[a::4]b", [(0, "ab"), (4, "b")]),
        ("[a:b:0]", [(0, "b")]),
        ("[a:b:0.0]", [(0, "b")]),
        ("[a:b:-3]", [(0, "b")]),
        ("[a:b:10]", [(0, "a")]),
        ("[a:b:99999999999999999999999]", [(0, "a")]),
        ("[a:b:1.0]", [(0, "a")]),
        ("[a:b:0.25]", [(0, "a"), (2, "b")]),
        ("[a:a:5]", [(0, "a")]),
        ("[a:b:c:5]", [(0, "{a:b:c:5 0.909}")]),
        ("[a:b:c]", [(0, "{a:b:c 0.909}")]),
        ("[a (b:c:5]", [(0, "{a 0.909}b:c:5")]),
        ("[[a|b]:c:2]", [(0, "a"), (1, "b"), (2, "c")]),
        (r"[a\:b:c:5]", [(0, "a:b"), (5, "c")]),
        (r"[a\|b|c:5]", [(step, "c:5" if step % 2 else "a|b") for step in range(10)]),
        ("(x [a:b:5]:1.5)", [(0, "{x a 1.5}"), (5, "{x b 1.5}")]),
        ("[a:b:5] AND [c:d:7]", [(0, "a\nc"), (5, "b\nc"), (7, "b\nd")]),
    ],
)
def test_what_changes_and_when(text: str, turns: list[tuple[int, str]]) -> None:
    assert over(text) == turns


@pytest.mark.parametrize(
    "text, turns",
    [
        ("a [b:.5] c", [(0, "a b c")]),
        ("a [b:1.5] c", [(0, "a c"), (5, "a b c")]),
        ("a [b:13] c", [(0, "a c"), (3, "a b c")]),
        ("a [b:7] c", [(0, "a b c")]),
        ("a [b:1.0] c", [(0, "a b c")]),
    ],
)
def test_a_second_pass_goes_on_counting(text: str, turns: list[tuple[int, str]]) -> None:
    assert over(text, earlier=10) == turns


def test_a_step_that_does_not_exist() -> None:
    for step, steps in ((10, 10), (-1, 10), (0, 0)):
        with pytest.raises(RequestError, match="count from 0"):
            parse("a").at(step, steps)


def test_break_begins_a_run_wherever_it_stands() -> None:
    assert said(parse("a,  BREAK \n b")) == "a, / b"
    assert [len(run) for run in parse("BREAK a BREAK BREAK b").at(0, 1)[0].runs] == [0, 1, 0, 1]
    assert said(parse("(a BREAK b:1.3)")) == "{a 1.3} / {b 1.3}"
    assert said(parse("[a BREAK b|c]"), 0) == "a / b"
    assert said(parse("BREAKFAST, \\BREAK, break")) == "BREAKFAST, BREAK, break"


@pytest.mark.parametrize(
    "text, read",
    [
        ("a AND b:0.7", "a\nb x 0.7"),
        ("a :-1.5 AND b:2.", "a x -1.5\nb x 2"),
        ("a:0.7", "a:0.7"),
        ("a\\:0.7 AND b", "a:0.7\nb"),
        ("(a AND b)", "{a 1.1}\nb)"),
        ("[a AND b:c:3]", "{a 0.909}\nb:c:3]"),
        ("AND", "\n"),
        ("GRAND ANDES and \\AND", "GRAND ANDES and AND"),
        ("a:0.5AND b", "a:0.5AND b"),
    ],
)
def test_composition(text: str, read: str) -> None:
    assert said(parse(text)) == read


def test_a_negative_prompt_does_not_compose() -> None:
    prompt = parse("a AND [b:0.5 AND c:3]:0.7", compose=False)
    assert len(prompt.parts) == 1
    assert (said(prompt, 0), said(prompt, 3)) == ("a AND b:0.7", "a AND 0.5 AND c:0.7")
    assert parse(str(prompt)) == prompt


def test_loras_leave_the_text() -> None:
    prompt = parse("a <lora:x:0.5>cat (dog:1<lora:y:0.3:te=0.9>.2), <lyco:z> <a> 1 < 2")
    assert said(prompt) == "a cat {dog 1.2}, <a> 1 < 2"
    assert prompt.loras() == ((Lora("x", 0.5, 0.5), Lora("y", 0.9, 0.9), Lora("z", 1.0, 1.0)), ())
    both, _ = parse("<lora:x:0.2:0.4><lora:y:unet=0.6>").loras()
    assert both == (Lora("x", 0.2, 0.4), Lora("y", 1.0, 0.6))
    assert parse(r"\<lora:x:1>").networks == ()


def test_what_no_lora_is_gets_reported() -> None:
    found, warnings = parse("<hypernet:h:1> <lora:x:1:1:8:dyn=4>").loras()
    assert found == (Lora("x", 1.0, 1.0),)
    assert [line.split(" was")[0] for line in warnings] == [
        "<hypernet:h:1>",
        "<lora:x:1:1:8:dyn=4>: 8, dyn",
    ]
    with pytest.raises(RequestError, match="'much' is no weight"):
        parse("<lora:x:much>").loras()


PIECES = [
    *"()[]:|\\<> \n,ab1.",
    "AND",
    "BREAK",
    " AND ",
    " BREAK ",
    ":0.5",
    ":1.3)",
    ":3]",
    "<lora:x:1>",
    "é",
]


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.text()), st.booleans())
def test_every_text_is_a_prompt_and_goes_there_and_back(text: str, compose: bool) -> None:
    prompt = parse(text, compose=compose)
    assert parse(str(prompt)) == prompt
    first = prompt.at(0, 7)
    turns = prompt.changes(7)
    assert turns[0] == 0
    lines = [prompt.at(step, 7) for step in range(7)]
    assert turns == tuple(step for step in range(7) if step == 0 or lines[step] != lines[step - 1])
    assert all(abs(segment.weight) <= LIMIT for line in first for run in line.runs for segment in run)
    prompt.at(3, 7, earlier=5)


@given(st.text(alphabet="ab ,.\n-", max_size=30))
def test_text_without_syntax_is_itself(text: str) -> None:
    assert "".join(segment.text for run in parse(text).at(0, 1)[0].runs for segment in run) == text.strip()


def weights_by_position(text: str) -> list[tuple[str, float]]:
    """The published rule for brackets alone: round and square ones each multiply from where they opened."""
    letters: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        letters[start:] = [(letter, weight * factor) for letter, weight in letters[start:]]

    for piece in re.findall(r":1\.5\)|.", text):
        if piece in opened:
            opened[piece].append(len(letters))
        elif piece == "]" and opened["["]:
            multiply(opened["["].pop(), DOWN)
        elif piece in (")", ":1.5)") and opened["("]:
            multiply(opened["("].pop(), 1.1 if piece == ")" else 1.5)
        else:
            letters += [(letter, 1.0) for letter in piece]
    for bracket, factor in (("(", 1.1), ("[", DOWN)):
        for start in opened[bracket]:
            multiply(start, factor)
    return letters


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["(", ")", "[", "]", ":1.5)", "a", "b"]), max_size=DEPTH).map("".join))
def test_brackets_that_cross_weigh_as_they_would_apart(text: str) -> None:
    (run,) = parse(text).at(0, 1)[0].runs
    letters = [(letter, segment.weight) for segment in run for letter in segment.text]
    wanted = weights_by_position(text)
    assert [letter for letter, _ in letters] == [letter for letter, _ in wanted]
    assert [weight for _, weight in letters] == pytest.approx([weight for _, weight in wanted])


N = 10_000


@pytest.mark.parametrize(
    "text",
    [
        "(" * N,
        "(" * N + "a" + ")" * N,
        "[" * N + "a" + "]" * N,
        "[a:" * N + ":.5]" * N,
        "[a|" * N + "]",
        "([" * (N // 2) + "a" + ")]" * (N // 2),
        "(" * DEPTH + "a]" * N,
        ":" * N,
        ":" + "1" * N,
        ": " * N + ")",
        "(a:" + " " * N,
        "<a:" * N,
        "<" + "a" * N,
        "\\" * N,
        "a BREAK " * (N // 8),
        "a AND b:1 " * (N // 20),
        "word, " * N,
    ],
    ids=lambda text: text[:6],
)
def test_long_and_deep_prompts_are_quick(text: str) -> None:
    started = time.process_time()
    prompt = parse(text)
    assert parse(str(prompt)) == prompt
    prompt.at(0, 20)
    assert len(repr(prompt)) > 0
    assert time.process_time() - started < 4  # seconds, on a slow and busy machine; mostly below 0.5


def test_brackets_too_deep_are_text() -> None:
    deep = "(" * (DEPTH + 2) + "a" + ")" * (DEPTH + 2)
    ((segment,),) = parse(deep).at(0, 1)[0].runs
    assert segment.text == "((a))"
    assert segment.weight == pytest.approx(1.1**DEPTH)
    assert said(parse("((a:900):900)")) == "{a 1e+03}"
    assert said(parse("(a:1" + "0" * 5000 + ")")) == "{a 1e+03}"


def test_torch_stays_out() -> None:
    code = "import sys, limner.text.prompt; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def examples() -> Iterator[tuple[str, list[str]]]:
    """(prompt, how the page says that it is read)."""
    for block in re.findall(r"^```text\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S):
        for prompt, readings in re.findall(r"^(\S.*)\n((?:    .*\n)+)", block, re.M):
            yield prompt, [line[4:] for line in readings.splitlines()]


def account(prompt: Prompt) -> list[str]:
    """What the page says of a prompt, with 20 steps."""
    turns = prompt.changes(20)
    lines = said(prompt, 0, 20).splitlines()
    if turns == tuple(range(20)):
        lines = [f"steps {n + 1}, {n + 3}, {n + 5}...: {said(prompt, n, 20)}" for n in (0, 1)]
    elif len(turns) > 1:
        ends = (*turns[1:], 20)
        lines = [f"steps {a + 1}-{b}: {said(prompt, a, 20)}" for a, b in zip(turns, ends, strict=True)]
    found, warnings = prompt.loras()
    lines += [f"load {one.name}: text encoder {one.text:g}, network {one.unet:g}" for one in found]
    return lines + [f"warning: {warning}" for warning in warnings]


@pytest.mark.parametrize("prompt, readings", list(examples()), ids=lambda value: str(value)[:20])
def test_the_page_says_how_each_example_is_read(prompt: str, readings: list[str]) -> None:
    assert account(parse(prompt)) == readings
    assert parse(str(parse(prompt))) == parse(prompt)


def test_the_page_has_its_examples_and_its_python_runs() -> None:
    assert len(list(examples())) == 21
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    exec(compile(block, str(PAGE), "exec"), {})


def test_a_line_without_its_weights() -> None:
    (line,) = parse("a (red:1.2)  fox BREAK [in] snow").at(0, 1)
    assert (line.plain, line.weighed) == ("a red  fox in snow", True)
    assert not parse("a red fox").at(0, 1)[0].weighed
