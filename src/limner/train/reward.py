"""How well a drawn picture shows its scene, for training: a second detector's word on it, from 0 to 1.

Never the detector that evaluates: what has been trained to please a judge is no longer judged by it.
Detectors say their role in their files, and `weights.detector.load_detector` asks for it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from limner.data.world.art import LETTERS, Atlas
from limner.data.world.backgrounds import SETTINGS
from limner.data.world.scene import COLOURS, KINDS, LAYOUTS, Scenes
from limner.evaluate.composition import judge
from limner.evaluate.prompts import Clause, Prompt
from limner.models.detector import Seen
from limner.weights.detector import REWARD, load_detector
from limner.weights.header import fingerprint

CONFIDENCE = 0.2  # share of a reward that is the detector's certainty; the rest are the clauses


class Reward:
    """Raises ConfigError for the detector that evaluates, and WeightsError for a file that is none."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.detector = load_detector(path, device, role=REWARD)
        self.fingerprint = fingerprint([path])

    def of(self, pixels: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        """The reward of each picture for its own prompt, on the pictures' device."""
        seen = self.detector.detect(pixels, threshold=0.05)
        pairs = zip(prompts, seen, strict=True)
        return torch.tensor([reward(prompt, one) for prompt, one in pairs], device=pixels.device)


def reward(prompt: Prompt, seen: Seen) -> float:
    """0.8 x share of what was asked for that `composition.judge` finds, + 0.2 x mean score of the objects."""
    wishes = (prompt.style, prompt.background, prompt.size, prompt.word)
    asked = len(prompt.include) + sum(wish is not None for wish in wishes)  # one too many spoils its clause
    right = 1 - min(asked, len(judge(prompt, seen).reasons)) / asked
    best: dict[str, float] = {}
    for thing in seen.objects:
        best[thing.label] = max(thing.score, best.get(thing.label, 0.0))
    sure = sum(best.get(clause.object, 0.0) for clause in prompt.include) / len(prompt.include)
    return (1 - CONFIDENCE) * right + CONFIDENCE * sure


def asked(atlas: Atlas, scenes: Scenes, captions: Sequence[Sequence[str]]) -> list[Prompt]:
    """Scenes as prompts, one each: what is there, and of style and background only what the caption, in
    canonical words, says."""
    columns = zip(
        *(column.tolist() for column in (scenes.kind, scenes.layout, scenes.style, scenes.object)),
        *(column.tolist() for column in (scenes.colour, scenes.scale, scenes.background)),
        *(column.tolist() for column in (scenes.background_colour, scenes.letters)),
        captions,
        strict=True,
    )
    return [_prompt(atlas, *row) for row in columns]


def _prompt(
    atlas: Atlas,
    kind: int,
    layout: int,
    style: int,
    objects: list[int],
    colours: list[int],
    scales: list[int],
    background: int,
    background_colours: list[int],
    letters: list[int],
    words: Sequence[str],
) -> Prompt:
    runs: list[list[int]] = []  # object, colour, count
    for index, colour in zip(objects, colours, strict=True):
        if index < 0:
            break
        if runs and runs[-1][0] == index:
            runs[-1][2] += 1
        else:
            runs.append([index, colour, 1])
    clauses = [
        Clause(object=atlas.objects[index], count=count, colour=COLOURS[colour] if colour >= 0 else None)
        for index, colour, count in runs
    ]
    too_many = tuple(Clause(object=one.object, count=one.count + 1) for one in clauses if one.count > 1)
    if list(KINDS)[kind] in ("relation", "group relation"):
        name = list(LAYOUTS)[layout]
        relation = "left of" if name == "row of two" or "beside" in name else "above"
        first, second = clauses
        related = Clause(object=first.object, count=first.count, colour=first.colour, position=(relation, 0))
        clauses = [second, related]
    counting = list(KINDS)[kind] == "count"
    spelled = "".join(LETTERS[letter] for letter in letters if letter >= 0)
    ground = list(SETTINGS)[background - 2] if background >= 2 else "background"
    plain = COLOURS[background_colours[0]] if background == 0 else "gradient"
    size = {-1: "small", 1: "large"}.get(scales[0]) if len(runs) == 1 and runs[0][2] == 1 else None
    return Prompt(
        task="counting" if counting else "single_object",  # of the tasks, `judge` only asks for counting
        text=" ".join(words),
        include=tuple(clauses),
        exclude=too_many,
        style=atlas.styles[style] if atlas.styles[style] in words else None,
        background=None if ground not in words else ground if background >= 2 else plain,
        size=None if spelled else size,  # a word takes room from the object
        word=spelled or None,
    )
