from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from limner.errors import DataError
from limner.evaluate.agreement import Agreement, agreement, answers, questions, table
from limner.evaluate.composition import judge
from limner.evaluate.prompts import Clause, Prompt
from limner.models.detector import Seen

CAT, DOG = Clause(object="cat"), Clause(object="dog")
BESIDE = Prompt(
    task="position", text="a dog left of a cat", include=(CAT, replace(DOG, position=("left of", 0)))
)
THREE = Prompt(
    task="counting",
    text="three cats",
    include=(replace(CAT, count=3),),
    exclude=(replace(CAT, count=4),),
)
RED = Prompt(task="color_attr", text="", include=(replace(CAT, colour="red"), replace(DOG, colour="blue")))


def asked(prompt: Prompt) -> list[str]:
    return [question.text for question in questions(prompt)]


def test_every_clause_is_a_question() -> None:
    assert asked(BESIDE) == ["a cat?", "a dog?", "the dog left of the cat?"]
    assert asked(THREE) == ["exactly 3 x cat?"]
    assert asked(RED) == ["a red cat?", "a blue dog?"]
    more = replace(BESIDE, include=(CAT,), style="flat", background="snow", size="small", word="HI")
    assert asked(more) == ["a cat?", "style: flat?", "background: snow?", "size: small?", "word: HI?"]
    none = replace(BESIDE, include=(CAT,), exclude=(DOG,))
    assert asked(none) == ["a cat?", "fewer than 1 x dog?"]


def test_a_picture_is_right_when_every_answer_is_yes(
    thing: Callable[..., object], view: Callable[..., Seen]
) -> None:
    cat, dog = thing("cat", 0.8, colour="red"), thing("dog", 0.2, colour="blue")
    wrong = thing("dog", 0.9, 0.9, colour="green")
    pictures = [
        view(*things) for things in ((cat, dog), (cat, wrong), (cat,), (dog,), (cat,) * 3, (cat,) * 4)
    ]
    for prompt in (BESIDE, THREE, RED):
        for seen in pictures:
            assert all(answers(prompt, seen)) == judge(prompt, seen).right
    assert answers(BESIDE, pictures[0]) == (True, True, True)
    assert answers(BESIDE, pictures[1]) == (True, True, False)
    assert answers(BESIDE, pictures[2]) == (True, False, False)
    assert answers(THREE, pictures[4]) == (True,)
    assert answers(THREE, pictures[5]) == (False,)
    assert answers(RED, pictures[1]) == (True, False)


def test_share_and_kappa() -> None:
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    found = agreement(pairs)
    assert (found.both, found.eye_only, found.detector_only, found.neither) == (20, 5, 10, 15)
    assert found.share == 0.7
    assert found.kappa == pytest.approx(0.4)  # the example of many textbooks
    assert Agreement(both=3, eye_only=0, detector_only=0, neither=0).kappa == 1
    assert Agreement(both=0, eye_only=2, detector_only=2, neither=0).kappa == pytest.approx(-1)
    with pytest.raises(DataError, match="no labels"):
        agreement([])
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table(found, found))
    lines = [" ".join(line.split()) for line in captured.get().splitlines()]
    assert "agree 70.0 % 70.0 %" in lines
    assert "Cohen's kappa 0.40 0.40" in lines
    assert "eye yes, detector no 5 5" in lines
