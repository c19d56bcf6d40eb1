"""Captions: what a scene shows, said exactly and in many ways.

A caption is text as a person would type it, and the canonical words that `text.lexicon` reads from that text
(tested to agree), so that the model is trained on precisely what it will be given.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from limner.data.world.art import LETTERS, Atlas
from limner.data.world.backgrounds import SETTINGS
from limner.data.world.scene import COLOURS, KINDS, LAYOUTS, Scenes
from limner.text.lexicon import load_lexicon
from limner.text.nouns import with_article
from limner.text.words import OPPOSITE

COUNTS = ("a", "two", "three", "four", "five")
SIZE_WORDS = {-1: ("small", ("small", "tiny", "little")), 1: ("large", ("large", "big", "huge"))}
RELATION_PHRASES = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
SETTING_PHRASES = {  # text -> canonical words
    "sky": (("in the sky", ("in", "sky")),),
    "night": (("at night", ("night",)),),
    "space": (("in space", ("in", "space")), ("in outer space", ("in", "space"))),
    "sea": (("in the sea", ("in", "sea")), ("in the ocean", ("in", "sea"))),
    "beach": (("on the beach", ("on", "beach")), ("at the beach", ("beach",))),
    "grass": (
        ("on the grass", ("on", "grass")),
        ("on grass", ("on", "grass")),
        ("in a meadow", ("in", "a", "grass")),
    ),
    "snow": (("in the snow", ("in", "snow")), ("in snow", ("in", "snow"))),
    "desert": (("in the desert", ("in", "desert")), ("in a desert", ("in", "a", "desert"))),
    "room": (("in a room", ("in", "a", "room")), ("in the room", ("in", "room"))),
}

Clause = tuple[str, list[str]]  # what is written, what it means


@dataclass(frozen=True, kw_only=True, slots=True)
class Noun:
    """How an object may be called."""

    name: str  # the canonical word
    singular: str  # what stands after the article: "cat", "pair of scissors"
    plural: str  # what stands after a number
    synonyms: tuple[str, ...] = ()  # what else may stand after the article


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionConfig:
    """How much of a scene its captions say."""

    background: float = 0.85  # share of captions that name the background
    style: float = 0.5  # share of captions that name the art style
    synonym: float = 0.15  # share of singular objects called by another name
    bare: float = 0.1  # share of lone objects without their article: "cat on a blue background"


class Captioner:
    """Writes captions for the scenes of one atlas; `nouns` are the names of its objects, in its order."""

    def __init__(self, atlas: Atlas, nouns: list[Noun], config: CaptionConfig = CaptionConfig()) -> None:
        self.styles = atlas.styles
        self.nouns = nouns
        self.config = config

    def captions(self, scenes: Scenes, seed: int) -> Iterator[tuple[str, tuple[str, ...]]]:
        """One (text, canonical words) per scene; the same seed writes the same captions."""
        kinds, layouts = list(KINDS), list(LAYOUTS)
        objects_of = (scenes.kind, scenes.layout, scenes.style, scenes.object, scenes.colour, scenes.scale)
        rest_of = (scenes.background, scenes.background_colour, scenes.letters)
        columns = (column.tolist() for column in (*objects_of, *rest_of))
        for row, values in enumerate(zip(*columns, strict=True)):
            kind, layout, style, objects, colours, scales, background, background_colours, letters = values
            rng = random.Random(f"{seed} {row}")
            groups = self._groups(objects, colours, scales, rng)
            clause = self._objects(kinds[kind], layouts[layout], groups, rng)
            parts = [clause]
            if letters[0] >= 0:
                parts.append(self._word(letters))
            if rng.random() < self.config.background:
                parts.append(self._background(background, background_colours, rng))
            text, words = " ".join(p[0] for p in parts), [word for p in parts for word in p[1]]
            if rng.random() < self.config.style:
                name = self.styles[style]
                text, words = rng.choice(
                    (
                        (f"{text} in {name} style", [*words, "in", name, "style"]),
                        (f"{text}, {name} style", [*words, name, "style"]),
                        (f"{name} style, {text}", [name, "style", *words]),
                        (f"{text}, {name}", [*words, name]),
                    )
                )
            yield text, tuple(words)

    def _groups(
        self, objects: list[int], colours: list[int], scales: list[int], rng: random.Random
    ) -> list[Clause]:
        """The noun phrases of a scene, one per run of equal objects."""
        runs: list[list[int]] = []  # object, colour, scale, count
        for o, c, s in zip(objects, colours, scales, strict=True):
            if o < 0:
                break
            if runs and runs[-1][0] == o:
                runs[-1][3] += 1
            else:
                runs.append([o, c, s, 1])
        lone = len(runs) == 1 and runs[0][3] == 1
        bare = lone and self.config.bare > 0 and rng.random() < self.config.bare
        return [self._noun_phrase(*run, bare=bare, rng=rng) for run in runs]

    def _noun_phrase(
        self, index: int, colour: int, scale: int, count: int, *, bare: bool, rng: random.Random
    ) -> Clause:
        noun = self.nouns[index]
        text, words = [], []
        if scale:
            canonical, choices = SIZE_WORDS[scale]
            text.append(rng.choice(choices))
            words.append(canonical)
        if colour >= 0:
            text.append(COLOURS[colour])
            words.append(COLOURS[colour])
        words.append(noun.name)
        if count == 1:
            other = noun.synonyms and rng.random() < self.config.synonym
            said = rng.choice(noun.synonyms) if other else noun.singular
            if text and load_lexicon().has(f"{text[-1]} {said.split()[0]}"):
                said = noun.singular  # "green grass hut" would be read as a hut on green grass
            text.append(said)
            if bare:
                return " ".join(text), words
            return with_article(" ".join(text)), [COUNTS[0], *words]
        said = rng.choice((COUNTS[count - 1], COUNTS[count - 1], str(count)))
        return " ".join([said, *text, noun.plural]), [COUNTS[count - 1], *words, "<plural>"]

    def _objects(self, kind: str, layout: str, groups: list[Clause], rng: random.Random) -> Clause:
        if kind in ("relation", "group relation"):
            first, second = groups
            relation = "left of" if layout == "row of two" or "beside" in layout else "above"
            if rng.random() < 0.5:
                first, second, relation = second, first, OPPOSITE[relation]
            said = rng.choice(RELATION_PHRASES[relation])
            return f"{first[0]} {said} {second[0]}", [*first[1], relation, *second[1]]
        if len(groups) == 1:
            return groups[0]
        # In the order they stand, as one reads a page: who stands where is then no guess for the network.
        text = ", ".join(g[0] for g in groups[:-1]) + " and " + groups[-1][0]
        return text, [*(w for g in groups[:-1] for w in g[1]), "and", *groups[-1][1]]

    def _word(self, letters: list[int]) -> Clause:
        word = "".join(LETTERS[letter] for letter in letters if letter >= 0)
        spelled = [f"<{letter}>" for letter in word.lower()]
        return f'with the word "{word}"', ["with", "<quote>", *spelled, "<quote>"]

    def _background(self, background: int, colours: list[int], rng: random.Random) -> Clause:
        if background >= 2:
            text, meaning = rng.choice(SETTING_PHRASES[list(SETTINGS)[background - 2]])
            return text, list(meaning)
        first, second = (COLOURS[c] for c in colours)
        plain = background == 0
        name = first if plain else f"{first} to {second} gradient"
        words = [first] if plain else [first, "to", second, "gradient"]
        preposition = rng.choice(("on", "with"))
        return f"{preposition} {with_article(name)} background", [preposition, "a", *words, "background"]
