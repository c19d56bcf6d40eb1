import io
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor

from limner.errors import RequestError
from limner.evaluate.prompts import GENEVAL, TASKS, Clause, Prompt
from limner.evaluate.run import THUMBNAIL, Watcher, choose, evaluate, stratified

CAT = Prompt(task="single_object", text="a cat", include=(Clause(object="cat"),))
DOG = Prompt(task="single_object", text="a dog", include=(Clause(object="dog"),))


def bright(prompt: Prompt, seed: int, count: int) -> Tensor:
    """Pictures whose every second one is dark."""
    assert prompt.text != "a dog" or seed == 12
    levels = torch.tensor([0.5 if index % 2 == 0 else -0.5 for index in range(count)])
    return levels[:, None, None, None].expand(count, 3, 32, 32).clone()


def test_every_picture_is_judged_and_has_its_own_seed(detector: Watcher) -> None:
    assert isinstance(detector, Watcher)
    first, second = evaluate(bright, [CAT, DOG], detector, count=2, seed=10)
    assert [one.seed for one in (*first, *second)] == [10, 11, 12, 13]
    assert [one.verdict.right for one in (*first, *second)] == [True, False, False, False]
    assert Image.open(io.BytesIO(first[0].thumbnail)).size == (THUMBNAIL, THUMBNAIL)
    assert second[0].verdict.reasons == ("wanted a dog, found none",)


def test_what_a_model_refuses_is_wrong_but_no_end(detector: Watcher) -> None:
    def picky(prompt: Prompt, seed: int, count: int) -> Tensor:
        if prompt.text == "a dog":
            raise RequestError("no dogs here")
        return bright(prompt, seed, count)

    first, second = evaluate(picky, [DOG, CAT], detector, count=2)
    assert [one.verdict.reasons for one in first] == [("not drawn: no dogs here",)] * 2
    assert (first[0].seen, first[0].thumbnail) == (None, b"")
    assert second[0].verdict.right
    with pytest.raises(RequestError, match="no dogs here"):
        list(evaluate(picky, [DOG], detector))


def test_what_is_known_is_not_drawn_again(detector: Watcher) -> None:
    first, second = evaluate(bright, [CAT, DOG], detector, count=2, seed=10)

    def silent(prompt: Prompt, seed: int, count: int) -> Tensor:
        raise AssertionError("drawn again")

    assert list(evaluate(silent, [CAT, DOG], detector, count=2, known={0: first, 1: second})) == [
        first,
        second,
    ]


def test_a_choice_is_even_and_repeats() -> None:
    prompts = [replace(CAT, task=task, text=f"{task} {i}") for task in GENEVAL for i in range(5)]
    chosen = stratified(prompts, 14, 7)
    assert [sum(one.task == task for one in chosen) for task in GENEVAL] == [3, 3, 2, 2, 2, 2]
    assert chosen == stratified(prompts, 14, 7) != stratified(prompts, 14, 8)
    with pytest.raises(RequestError, match="6 prompts of the task single_object are needed, and there are 5"):
        stratified(prompts, 36, 7)


def test_choosing() -> None:
    prompts = [replace(CAT, task=task, text=f"{i}") for task in TASKS for i in range(4)]
    few = choose(prompts, limit=2)
    assert len(few) == 2 * 14
    assert [prompt.task for prompt in few[:4]] == [
        "single_object",
        "single_object",
        "two_object",
        "two_object",
    ]
    assert {prompt.task for prompt in choose(prompts, tuple(GENEVAL), 3)} == set(GENEVAL)
    assert choose(prompts) == prompts
    for tasks, limit, message in (
        (("colours",), None, 'no task "colours"'),
        ((), 0, "limit is at least 1"),
    ):
        with pytest.raises(RequestError, match=message):
            choose(prompts, tasks, limit)
    with pytest.raises(RequestError, match="no prompts of the task word"):
        choose([CAT], ("word",))
