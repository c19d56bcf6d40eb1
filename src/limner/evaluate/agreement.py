"""Does the detector see what an eye sees? A prompt asked clause by clause, and how far two judges agree.

Is there a cat, is it red, are there exactly three: the same questions are put to the eye and, by the rules of
`composition`, to the detector. GenEval reports 83 % agreement on whole pictures, and 88 % between two people.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rich.table import Table

from limner.errors import DataError
from limner.evaluate.composition import judge
from limner.evaluate.prompts import Prompt
from limner.evaluate.report import percent
from limner.models.detector import Seen
from limner.text.nouns import with_article


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One thing to be said about a picture, yes or no."""

    text: str
    prompt: Prompt  # of this alone: its verdict is the detector's answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Of two judges about the same yes-or-no questions."""

    both: int  # yes and yes
    eye_only: int  # the eye said yes, the detector no
    detector_only: int
    neither: int

    @property
    def count(self) -> int:
        """Of all questions."""
        return self.both + self.eye_only + self.detector_only + self.neither

    @property
    def share(self) -> float:
        """Of the same answers, 0 to 1."""
        return (self.both + self.neither) / self.count

    @property
    def kappa(self) -> float:
        """Agreement beyond chance (Cohen 1960): (share - expected) / (1 - expected), 1 where both always say
        the same one thing."""
        eye, detector = self.both + self.eye_only, self.both + self.detector_only
        expected = (eye * detector + (self.count - eye) * (self.count - detector)) / self.count**2
        return 1.0 if expected == 1 else (self.share - expected) / (1 - expected)


def questions(prompt: Prompt) -> tuple[Question, ...]:
    """What a prompt asks, one by one; a picture is right when the answer to each is yes."""
    bare = replace(prompt, style=None, background=None, size=None, word=None)
    found = []
    for clause in prompt.include:
        alone = replace(clause, position=None)
        upper = [other for other in prompt.exclude if other.object == clause.object]
        if clause.count == 1 and not upper:
            text = f"{with_article(' '.join(filter(None, (clause.colour, clause.object))))}?"
        else:
            text = f"{'exactly' if upper else 'at least'} {clause.count} x {clause.object}?"
            text = text if clause.colour is None else f"{text[:-1]}, {clause.colour}?"
        found.append(Question(text=text, prompt=replace(bare, include=(alone,), exclude=tuple(upper))))
        if clause.position is not None:
            relation, index = clause.position
            target = replace(prompt.include[index], position=None)
            pair = (target, replace(clause, position=(relation, 0)))
            text = f"the {clause.object} {relation} the {target.object}?"
            found.append(Question(text=text, prompt=replace(bare, include=pair, exclude=())))
    wanted = {clause.object for clause in prompt.include}
    for clause in prompt.exclude:
        if clause.object not in wanted:
            alone_not = replace(bare, include=prompt.include[:1], exclude=(clause,))
            found.append(Question(text=f"fewer than {clause.count} x {clause.object}?", prompt=alone_not))
    for name in ("style", "background", "size", "word"):
        if (value := getattr(prompt, name)) is not None:
            asked = {"style": None, "background": None, "size": None, "word": None} | {name: value}
            first = replace(prompt, include=(replace(prompt.include[0], colour=None),), exclude=())
            found.append(Question(text=f"{name}: {value}?", prompt=replace(first, **asked)))
    return tuple(found)


def answers(prompt: Prompt, seen: Seen) -> tuple[bool, ...]:
    """What the detector says to `questions`."""
    return tuple(judge(question.prompt, seen).right for question in questions(prompt))


def agreement(pairs: Iterable[tuple[bool, bool]]) -> Agreement:
    """Of (eye, detector) answers. Raises DataError when there are none."""
    counts = {(eye, detector): 0 for eye in (True, False) for detector in (True, False)}
    for pair in pairs:
        counts[pair] += 1
    if not sum(counts.values()):
        raise DataError("there are no labels to compare")
    return Agreement(
        both=counts[True, True],
        eye_only=counts[True, False],
        detector_only=counts[False, True],
        neither=counts[False, False],
    )


def table(pictures: Agreement, clauses: Agreement) -> Table:
    """Share, kappa and confusion, of whole pictures and of single questions."""
    result = Table("", title="detector and eye", box=None, header_style="bold", pad_edge=False)
    result.add_column("pictures right", justify="right")
    result.add_column("single questions", justify="right")
    both = (pictures, clauses)
    result.add_row("agree", *(percent(one.share) for one in both), style="bold")
    result.add_row("Cohen's kappa", *(f"{one.kappa:.2f}" for one in both))
    for name, field in (
        ("both yes", "both"),
        ("eye yes, detector no", "eye_only"),
        ("eye no, detector yes", "detector_only"),
        ("both no", "neither"),
        ("all", "count"),
    ):
        result.add_row(name, *(str(getattr(one, field)) for one in both))
    return result
