from collections.abc import Callable

import pytest

from limner.evaluate.composition import ORDINARY, Score, judge, overall, relations, score
from limner.evaluate.prompts import GENEVAL, Clause, Prompt
from limner.models.detector import Detection, Seen

Maker = Callable[..., Detection]
View = Callable[..., Seen]


def prompt(task: str, *include: Clause, **more: object) -> Prompt:
    return Prompt(task=task, text="", include=include, **more)  # type: ignore[arg-type]


def counting(count: int) -> Prompt:
    return prompt(
        "counting", Clause(object="apple", count=count), exclude=(Clause(object="apple", count=count + 1),)
    )


CAT, DOG = Clause(object="cat"), Clause(object="dog")


def test_single_object(thing: Maker, view: View) -> None:
    asked = prompt("single_object", CAT)
    assert judge(asked, view(thing("cat"))).right
    assert judge(asked, view(thing("cat"), thing("cat"), thing("dog"))).right, "more is no fault"
    assert judge(asked, view(thing("dog"))).reasons == ("wanted a cat, found none",)


def test_the_threshold_itself_is_not_enough(thing: Maker, view: View) -> None:
    asked = prompt("single_object", CAT)
    assert not judge(asked, view(thing("cat", score=0.3))).right
    assert judge(asked, view(thing("cat", score=0.3001))).right


def test_two_objects_are_both_wanted(thing: Maker, view: View) -> None:
    asked = prompt("two_object", CAT, DOG)
    assert judge(asked, view(thing("dog"), thing("cat"))).right
    assert judge(asked, view()).reasons == ("wanted a cat, found none", "wanted a dog, found none")


@pytest.mark.parametrize("found", [1, 2, 3, 4, 5])
def test_counting_is_exact(thing: Maker, view: View, found: int) -> None:
    verdict = judge(counting(3), view(*(thing("apple") for _ in range(found))))
    assert verdict.right == (found == 3)
    if found != 3:
        assert verdict.reasons == (f"wanted 3 apples, found {found}",)


def test_counting_needs_sure_detections(thing: Maker, view: View) -> None:
    sure, unsure = thing("apple", score=0.91), thing("apple", score=0.9)
    assert judge(counting(2), view(sure, sure, unsure)).right
    assert not judge(counting(2), view(sure, unsure)).right
    apples = prompt("two_object", Clause(object="apple", count=2))
    assert judge(apples, view(sure, unsure)).right, "0.3 is enough elsewhere"


def test_at_most_sixteen_count(thing: Maker, view: View) -> None:
    many = view(*(thing("apple") for _ in range(20)))
    assert judge(prompt("single_object", CAT, exclude=(Clause(object="apple", count=17),)), many).reasons == (
        "wanted a cat, found none",
    )


def test_excluded_clauses_are_alternatives(thing: Maker, view: View) -> None:
    asked = prompt("two_object", CAT, exclude=(DOG, Clause(object="apple", count=2)))
    assert judge(asked, view(thing("cat"), thing("apple"))).right
    assert judge(asked, view(thing("cat"), thing("dog"))).reasons == ("wanted no dogs, found 1",)
    assert not judge(asked, view(thing("cat"), thing("apple"), thing("apple"))).right


def test_colours_of_the_best_detections_only(thing: Maker, view: View) -> None:
    asked = prompt("colors", Clause(object="cat", colour="red"))
    red, blue = thing("cat", colour="red", score=0.6), thing("cat", colour="blue", score=0.9)
    assert judge(asked, view(red)).right
    assert judge(asked, view(red, blue)).reasons == ("wanted a red cat, found blue",)
    assert judge(asked, view(thing("cat"))).reasons == ("wanted a red cat, found no colour",)
    both = prompt("colors", Clause(object="cat", count=2, colour="red"))
    assert judge(both, view(red, red, thing("cat", colour="blue", score=0.4))).right
    assert judge(both, view(red, blue)).reasons == ("wanted 2 red cats, found blue",)


def test_colour_attribution(thing: Maker, view: View) -> None:
    asked = prompt("color_attr", Clause(object="cat", colour="red"), Clause(object="dog", colour="blue"))
    assert judge(asked, view(thing("cat", colour="red"), thing("dog", colour="blue"))).right
    assert len(judge(asked, view(thing("cat", colour="blue"), thing("dog", colour="red"))).reasons) == 2


def test_position(thing: Maker, view: View) -> None:
    asked = prompt("position", CAT, Clause(object="dog", position=("left of", 0)))
    assert judge(asked, view(thing("cat", 0.8), thing("dog", 0.2))).right
    assert judge(asked, view(thing("cat", 0.2), thing("dog", 0.8))).reasons == (
        "wanted a dog left of the cat, found it right of it",
    )
    near = judge(asked, view(thing("cat", 0.5), thing("dog", 0.5)))
    assert near.reasons == ("wanted a dog left of the cat, found it in no clear direction from it",)
    assert judge(asked, view(thing("dog", 0.2))).reasons == (
        "wanted a cat, found none",
        "found nothing that a dog could be left of",
    )


def test_position_is_asked_of_the_best_detections(thing: Maker, view: View) -> None:
    asked = prompt("position", CAT, Clause(object="dog", position=("left of", 0)))
    cat, best, other = thing("cat", 0.5), thing("dog", 0.9, score=0.8), thing("dog", 0.1, score=0.7)
    assert not judge(asked, view(cat, other, best)).right
    two = prompt("position", CAT, Clause(object="dog", count=2, position=("left of", 0)))
    assert not judge(two, view(cat, other, best)).right
    assert judge(two, view(cat, other, thing("dog", 0.2))).right


def test_a_target_of_the_wrong_colour_is_no_target(thing: Maker, view: View) -> None:
    asked = prompt(
        "position", Clause(object="cat", colour="red"), Clause(object="dog", position=("above", 0))
    )
    verdict = judge(asked, view(thing("cat", 0.5, 0.8, colour="blue"), thing("dog", 0.5, 0.2)))
    assert verdict.reasons == ("wanted a red cat, found blue", "found nothing that a dog could be above")


def box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def test_sides_are_seen_from_the_second() -> None:
    middle = box(0.5, 0.5, 0.125, 0.125)
    assert relations(box(0.125, 0.5, 0.125, 0.125), middle) == {"left of"}
    assert relations(box(0.875, 0.5, 0.125, 0.125), middle) == {"right of"}
    assert relations(box(0.5, 0.125, 0.125, 0.125), middle) == {"above"}
    assert relations(box(0.5, 0.875, 0.125, 0.125), middle) == {"below"}
    assert relations(box(0.125, 0.125, 0.125, 0.125), middle) == {"left of", "above"}, "a diagonal is both"
    assert relations(middle, middle) == set()


def test_the_margin_grows_with_both_boxes() -> None:
    """On one axis, what is left of the distance d is d - 0.1 (w1 + w2); over d it has to exceed 0.5."""
    for first, second in ((0.5, 0.25), (0.25, 0.5)):
        edge = 2 * 0.1 * (first + second)
        target = box(0.5, 0.5, second, 0.1)
        assert relations(box(0.5 + edge + 1e-6, 0.5, first, 0.1), target) == {"right of"}
        assert relations(box(0.5 + edge - 1e-6, 0.5, first, 0.1), target) == set()
    tall = box(0.5, 0.5, 0.1, 0.9)  # heights have no say on the horizontal
    assert relations(box(0.7, 0.5, 0.1, 0.9), tall) == {"right of"}


def test_the_direction_needs_more_than_half() -> None:
    """Of points, the share of the distance alone decides: 30 degrees is the edge."""
    point = box(0.5, 0.5, 0, 0)
    across = 3**0.5 / 2
    assert relations(box(0.5 + 0.4 * across, 0.5 - 0.4 * 0.499, 0, 0), point) == {"right of"}
    assert relations(box(0.5 + 0.4 * across, 0.5 - 0.4 * 0.502, 0, 0), point) == {"right of", "above"}


def test_style_and_background(thing: Maker, view: View) -> None:
    asked = prompt("style", CAT, style="glossy", background="snow")
    assert judge(asked, view(thing("cat"), style="glossy", background="snow")).right
    assert judge(asked, view(thing("cat"))).reasons == (
        "wanted the style glossy, found flat",
        "wanted the background snow, found white",
    )


@pytest.mark.parametrize(
    ("size", "times", "right"),
    [
        ("small", 0.62, True), ("small", 0.78, True), ("small", 0.80, False), ("small", 1.0, False),
        ("large", 1.18, True), ("large", 1.10, True), ("large", 1.07, False), ("large", 0.62, False),
    ],
)  # fmt: skip
def test_size_is_nearer_the_word_than_the_ordinary(
    thing: Maker, view: View, size: str, times: float, right: bool
) -> None:
    verdict = judge(prompt("size", CAT, size=size), view(thing("cat", side=times * ORDINARY)))
    assert verdict.right == right
    if not right:
        assert verdict.reasons == (f"wanted it {size}, found {times:.2f} times the ordinary side",)


def test_size_is_the_longer_side_and_needs_the_object(view: View) -> None:
    flat = Detection(label="cat", score=0.9, box=(0.05, 0.4, 0.95, 0.6), colour=None)
    assert judge(prompt("size", CAT, size="large"), view(flat)).right
    assert judge(prompt("size", CAT, size="large"), view()).reasons == ("wanted a cat, found none",)


def test_words_are_read_from_left_to_right_and_exactly(thing: Maker, view: View) -> None:
    asked = prompt("word", CAT, word="HI")
    h, i = thing("H", 0.3), thing("I", 0.6)
    assert judge(asked, view(thing("cat"), letters=(i, h))).right
    assert judge(asked, view(thing("cat"), letters=(h, i, thing("I", 0.7)))).reasons == (
        'wanted the word "HI", found "HII"',
    )
    assert judge(asked, view(thing("cat"))).reasons == ('wanted the word "HI", found ""',)
    assert judge(asked, view(thing("cat"), letters=(h, i, thing("X", 0.9, score=0.2)))).right


def test_plurals_are_those_of_the_lexicon_and_of_english(view: View) -> None:
    def reason(name: str) -> str:
        return judge(prompt("counting", Clause(object=name, count=2)), view()).reasons[0]

    assert reason("scissors") == "wanted 2 pairs of scissors, found none"
    assert reason("parking meter") == "wanted 2 parking meters, found none"


def test_scores_are_shares_of_pictures() -> None:
    judged = [("counting", "two cats", right) for right in (True, True, False, False)]
    judged += [("counting", "three cats", True), ("single_object", "a cat", False)]
    assert score(judged) == {
        "single_object": Score(right=0, pictures=1, prompts=1),
        "counting": Score(right=3, pictures=5, prompts=2),
    }
    assert score(judged)["counting"].share == 0.6


def test_overall_is_the_mean_of_the_six_and_of_nothing_else() -> None:
    shares = dict(zip(GENEVAL, (1.0, 0.9, 0.5, 0.8, 0.1, 0.3), strict=True))
    assert overall(shares) == pytest.approx(0.6)
    assert overall(shares | {"word": 0.0, "unseen_colors": 0.0}) == pytest.approx(0.6)
    del shares["position"]
    assert overall(shares) is None
