"""Whether a picture shows what its prompt asks for: GenEval's arithmetic on what a detector saw.

The rules are those of Ghosh et al. 2023 ("GenEval", section 3 and the published code): thresholds, clauses,
the position rule, the scores. Detector and pictures are another world's, so the scores compare models of the
drawn world with each other and never with published ones. The tasks of our own follow the same rules, and
what they ask beyond is decided here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from limner.data.world.scene import LARGE, LAYOUTS, SMALL
from limner.errors import RequestError
from limner.evaluate.prompts import GENEVAL, TASKS, Clause, Prompt
from limner.models.detector import Detection, Seen
from limner.text.lexicon import load_lexicon
from limner.text.nouns import pluralise, with_article

PROTOCOL = "GenEval protocol on the drawn world"
THRESHOLD = 0.3  # a detection counts above this score
COUNTING = 0.9  # ... in the task counting
MOST = 16  # detections of one label, at most
MARGIN = 0.1  # of the position rule, share of both boxes' sides
DIRECTION = 0.5  # of the position rule: sine of 30 degrees
AIR = 0.975  # longer side of a drawing's ink / side of its tile
ORDINARY = AIR * LAYOUTS["one"][0][2]  # longer side of a lone object, share of the picture

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Right, or why not."""

    reasons: tuple[str, ...]  # in words; none when right

    @property
    def right(self) -> bool:
        """Whether the picture shows all that was asked for."""
        return not self.reasons


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Of one task."""

    right: int  # pictures
    pictures: int
    prompts: int

    @property
    def share(self) -> float:
        """Of right pictures, 0 to 1."""
        return self.right / self.pictures


def judge(prompt: Prompt, seen: Seen) -> Verdict:
    """Include clauses are ANDed, exclude clauses ORed; then what our own tasks ask."""
    found = _by_label(seen.objects, COUNTING if prompt.task == "counting" else THRESHOLD)
    wrong: list[str] = []
    groups: list[tuple[Detection, ...] | None] = []  # the detections tested for each clause; None: it failed
    for clause in prompt.include:
        group = found.get(clause.object, ())[: clause.count]
        reasons = _clause(clause, group, groups)
        wrong += reasons
        groups.append(None if reasons else group)
    for clause in prompt.exclude:
        there = len(found.get(clause.object, ()))
        if there >= clause.count:
            wanted = next((c.count for c in prompt.include if c.object == clause.object), 0)
            wrong.append(f"wanted {_many(wanted, clause.object)}, found {there}")
    return Verdict(reasons=(*wrong, *_ours(prompt, seen, groups[0])))


def relations(first: Box, second: Box) -> frozenset[str]:
    """Where `first` stands, seen from `second`: none, one, or on a diagonal two of the four relations.

    Per axis, d' = sign(d) max(|d| - 0.1 (size of first + size of second), 0), where d is the distance of the
    centres; d' over the length of the vector d is compared with 0.5.
    """
    dx, x = _axis(first[0], first[2], second[0], second[2])
    dy, y = _axis(first[1], first[3], second[1], second[3])
    if (length := math.hypot(dx, dy)) == 0:
        return frozenset()
    sides = {
        "left of": -x / length,
        "right of": x / length,
        "above": -y / length,
        "below": y / length,
    }
    return frozenset(name for name, share in sides.items() if share > DIRECTION)


def score(judged: Iterable[tuple[str, str, bool]]) -> dict[str, Score]:
    """Scores of tasks out of (task, prompt, right) of every picture, in the order of TASKS."""
    pictures: dict[str, list[tuple[str, bool]]] = {}
    for task, text, right in judged:
        pictures.setdefault(task, []).append((text, right))
    return {
        task: Score(
            right=sum(right for _, right in pictures[task]),
            pictures=len(pictures[task]),
            prompts=len({text for text, _ in pictures[task]}),
        )
        for task in TASKS
        if task in pictures
    }


def overall(shares: Mapping[str, float]) -> float | None:
    """Unweighted mean of the six tasks of GenEval; None unless all six are there."""
    if any(task not in shares for task in GENEVAL):
        return None
    return sum(shares[task] for task in GENEVAL) / len(GENEVAL)


def _by_label(objects: Sequence[Detection], threshold: float) -> dict[str, tuple[Detection, ...]]:
    """Per label the detections above the threshold, best first."""
    found: dict[str, list[Detection]] = {}
    for thing in sorted(objects, key=lambda thing: -thing.score):
        if thing.score > threshold:
            found.setdefault(thing.label, []).append(thing)
    return {label: tuple(things[:MOST]) for label, things in found.items()}


def _clause(
    clause: Clause, group: Sequence[Detection], earlier: Sequence[Sequence[Detection] | None]
) -> list[str]:
    """What `group`, the best detections of the clause's object, lacks."""
    wanted = _many(clause.count, clause.object)
    if len(group) < clause.count:
        return [f"wanted {wanted}, found {len(group) or 'none'}"]
    wrong = []
    if clause.colour is not None and (others := [t.colour for t in group if t.colour != clause.colour]):
        seen = " and ".join(sorted({str(colour or "no colour") for colour in others}))
        wrong.append(f"wanted {_many(clause.count, clause.object, clause.colour)}, found {seen}")
    if clause.position is not None and not wrong:
        relation, index = clause.position
        targets = earlier[index]
        if targets is None:
            wrong.append(f"found nothing that {wanted} could be {relation}")
        elif not all(relation in relations(a.box, b.box) for a in group for b in targets):
            stands = relations(group[0].box, targets[0].box)
            there = " and ".join(sorted(stands)) or "in no clear direction from"
            wrong.append(f"wanted {wanted} {relation} the {targets[0].label}, found it {there} it")
    return wrong


def _ours(prompt: Prompt, seen: Seen, first: Sequence[Detection] | None) -> list[str]:
    """What our own tasks ask beyond clauses. `first` are the detections of the first clause.

    Size: the longer side of the box is nearer, by ratio, to the side of a small (large) object than to the
    ordinary side: under 0.79 (over 1.09) times the ordinary one.
    """
    wrong = []
    for name, wanted, found in (
        ("style", prompt.style, seen.style),
        ("background", prompt.background, seen.background),
    ):
        if wanted is not None and wanted != found:
            wrong.append(f"wanted the {name} {wanted}, found {found}")
    if prompt.size is not None and first is not None:
        left, top, right, bottom = first[0].box
        ratio = max(right - left, bottom - top) / ORDINARY
        fits = ratio < math.sqrt(SMALL) if prompt.size == "small" else ratio > math.sqrt(LARGE)
        if not fits:
            wrong.append(f"wanted it {prompt.size}, found {ratio:.2f} times the ordinary side")
    if prompt.word is not None and (word := spelled(seen)) != prompt.word:
        wrong.append(f'wanted the word "{prompt.word}", found "{word}"')
    return wrong


def spelled(seen: Seen) -> str:
    """The letters of a picture, from left to right."""
    letters = [letter for letter in seen.letters if letter.score > THRESHOLD]
    return "".join(letter.label for letter in sorted(letters, key=lambda one: one.box[0] + one.box[2]))


def _axis(low: float, high: float, other_low: float, other_high: float) -> tuple[float, float]:
    """Distance of the centres, and what is left of it after the margin."""
    distance = (low + high - other_low - other_high) / 2
    margin = MARGIN * (abs(high - low) + abs(other_high - other_low))
    return distance, math.copysign(max(abs(distance) - margin, 0.0), distance)


def _many(count: int, name: str, colour: str | None = None) -> str:
    """ "a red apple", "3 apples"."""
    quality = f"{colour} " if colour else ""
    if count == 1:
        return with_article(f"{quality}{name}")
    try:
        plural = load_lexicon().entry(name).plural
    except RequestError:  # of a user's own prompts
        plural = pluralise(name)
    return f"{count or 'no'} {quality}{plural}"
