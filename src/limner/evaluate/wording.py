"""Prompt sets out of a seed and a list of objects: GenEval's six tasks with its numbers of prompts, and ours.

The six tasks ask only for what training may have shown: a pair that the world's rule holds out is never among
them, and always in the two tasks called unseen. Every prompt is read by the lexicon as it is meant. As in
GenEval, people are not coloured. Its "a photo of" is left away, for nothing here is one.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from limner.data.world.caption import COUNTS, SETTING_PHRASES
from limner.data.world.scene import BACKGROUNDS, COLOURS, held_out
from limner.data.world.source import noun
from limner.errors import DataError
from limner.evaluate.prompts import TASKS, Clause, Prompt
from limner.text.lexicon import Entry, load_lexicon
from limner.text.nouns import with_article
from limner.text.words import OPPOSITE, PLURAL, SIZES, STYLES

SEED = 2023  # of the committed sets
TRIES = 60  # candidates per prompt before giving up; one pair in twenty is held out
PEOPLE = frozenset({"people", "body"})  # categories that are not coloured

Deal = Callable[[], Entry]  # the next object of a shuffled deck


def write(objects: Sequence[str], seed: int = SEED) -> list[Prompt]:
    """All tasks, in the order of TASKS. Each depends on the seed, its own name and `objects` alone.

    Raises DataError when the objects are too few for that many different prompts.
    """
    entries, unseen = [load_lexicon().entry(name) for name in objects], HeldOut(objects)
    return [prompt for task in TASKS for prompt in _task(task, entries, unseen, seed)]


class HeldOut:
    """What is never trained on, of some objects; `World` has the rule."""

    def __init__(self, objects: Sequence[str]) -> None:
        names = tuple(objects)
        self.index = {name: index for index, name in enumerate(names)}
        self.colours = held_out(names, ("",), COLOURS)[:, 0]
        self.relations = held_out(names, ("left of", "above"), names)

    def has(self, prompt: Prompt) -> bool:
        """Whether a prompt asks for an object in a colour, or for two in a relation, that is held out."""
        for clause in prompt.include:
            here = self.index[clause.object]
            if clause.colour is not None and self.colours[here, COLOURS.index(clause.colour)]:
                return True
            if clause.position is not None:
                relation, other = clause.position
                there = self.index[prompt.include[other].object]
                first, second = (here, there) if relation in ("left of", "above") else (there, here)
                if self.relations[first, int(relation in ("above", "below")), second]:
                    return True
        return False


def reads_as_meant(prompt: Prompt) -> bool:
    """Whether the lexicon reads just the counts, colours, objects and relations that are meant."""
    phrases = [
        [
            COUNTS[clause.count - 1],
            *([prompt.size] if prompt.size else []),
            *([clause.colour] if clause.colour else []),
            clause.object,
            *([PLURAL] if clause.count > 1 else []),
        ]
        for clause in prompt.include
    ]
    last = prompt.include[-1]
    if last.position is not None:
        meant = [*phrases[1], last.position[0], *phrases[0]]
    else:
        meant = [word for phrase in phrases[:-1] for word in phrase]
        meant += [*(["and"] if len(phrases) > 1 else []), *phrases[-1]]
    reading = load_lexicon().read(prompt.text)
    names = sorted(clause.object for clause in prompt.include)
    return (
        list(reading.words[: len(meant)]) == meant
        and sorted(reading.objects) == names
        and not reading.unknown
    )


def _task(task: str, entries: Sequence[Entry], unseen: HeldOut, seed: int) -> list[Prompt]:
    rng = random.Random(f"{seed} {task}")
    deck = _deck(entries, rng)
    prompts: dict[str, Prompt] = {}
    for _ in range(TRIES * TASKS[task]):
        prompt = MAKERS[task](task, partial(next, deck), len(prompts), rng)
        if prompt is None or prompt.text in prompts:
            continue
        if unseen.has(prompt) == task.startswith("unseen") and reads_as_meant(prompt):
            prompts[prompt.text] = prompt
            if len(prompts) == TASKS[task]:
                return list(prompts.values())
    raise DataError(f"{len(entries)} objects are too few for {TASKS[task]} prompts of the task {task}")


def _deck(entries: Sequence[Entry], rng: random.Random) -> Iterator[Entry]:
    """Every object once, then all again in another order."""
    cards = list(entries)
    while True:
        rng.shuffle(cards)
        yield from cards


def _phrase(entry: Entry, *, count: int = 1, quality: str | None = None, called: str | None = None) -> str:
    if count > 1:
        return " ".join(filter(None, (COUNTS[count - 1], quality, entry.plural)))
    return with_article(" ".join(filter(None, (quality, called or noun(entry).singular))))


# Makers take the task, the deck, how many prompts it has so far and a source of chance. None is a bad deal.


def _objects(number: int, task: str, deal: Deal, index: int, rng: random.Random) -> Prompt | None:
    entries = [deal() for _ in range(number)]
    if len({entry.name for entry in entries}) < number:
        return None
    phrases = [_phrase(entry) for entry in entries]
    return Prompt(
        task=task, text=_listed(phrases), include=tuple(Clause(object=entry.name) for entry in entries)
    )


def _counting(task: str, deal: Deal, index: int, rng: random.Random) -> Prompt:
    entry, count = deal(), 2 + index % 3
    return Prompt(
        task=task,
        text=_phrase(entry, count=count),
        include=(Clause(object=entry.name, count=count),),
        exclude=(Clause(object=entry.name, count=count + 1),),
    )


def _coloured(number: int, task: str, deal: Deal, index: int, rng: random.Random) -> Prompt | None:
    entries, colours = [deal() for _ in range(number)], rng.sample(COLOURS, number)
    colours[0] = COLOURS[index % len(COLOURS)]
    bad = any(entry.category in PEOPLE or set(entry.name.split()) & set(COLOURS) for entry in entries)
    if bad or len({entry.name for entry in entries}) < number or len(set(colours)) < number:
        return None
    pairs = list(zip(entries, colours, strict=True))
    return Prompt(
        task=task,
        text=_listed([_phrase(entry, quality=colour) for entry, colour in pairs]),
        include=tuple(Clause(object=entry.name, colour=colour) for entry, colour in pairs),
    )


def _position(task: str, deal: Deal, index: int, rng: random.Random) -> Prompt | None:
    subject, target, relation = deal(), deal(), list(OPPOSITE)[index % len(OPPOSITE)]
    if subject.name == target.name:
        return None
    return Prompt(
        task=task,
        text=f"{_phrase(subject)} {relation} {_phrase(target)}",
        include=(Clause(object=target.name), Clause(object=subject.name, position=(relation, 0))),
    )


def _style(task: str, deal: Deal, index: int, rng: random.Random) -> Prompt:
    entry, style = deal(), list(STYLES)[index % len(STYLES)]
    return Prompt(
        task=task,
        text=f"{_phrase(entry)} in {style} style",
        include=(Clause(object=entry.name),),
        style=style,
    )


def _background(task: str, deal: Deal, index: int, rng: random.Random) -> Prompt:
    entry, background = deal(), BACKGROUNDS[index % len(BACKGROUNDS)]
    first, second = rng.sample(COLOURS, 2)
    if background in SETTING_PHRASES:
        where = SETTING_PHRASES[background][0][0]
    else:
        name = f"{first} to {second} gradient" if background == "gradient" else background
        where = f"on {with_article(name)} background"
    return Prompt(
        task=task,
        text=f"{_phrase(entry)} {where}",
        include=(Clause(object=entry.name),),
        background=background,
    )


def _size(task: str, deal: Deal, index: int, rng: random.Random) -> Prompt:
    entry, size = deal(), list(SIZES)[index % len(SIZES)]
    return Prompt(
        task=task, text=_phrase(entry, quality=size), include=(Clause(object=entry.name),), size=size
    )


def _word(task: str, deal: Deal, index: int, rng: random.Random) -> Prompt | None:
    entry, word = deal(), deal().name
    if entry.name == word or not 2 <= len(word) <= 6 or not (word.isascii() and word.isalpha()):
        return None
    return Prompt(
        task=task,
        text=f'{_phrase(entry)} with the word "{word.upper()}"',
        include=(Clause(object=entry.name),),
        word=word.upper(),
    )


def _synonym(task: str, deal: Deal, index: int, rng: random.Random) -> Prompt | None:
    entry = deal()
    if not noun(entry).synonyms:
        return None
    called = rng.choice(noun(entry).synonyms)
    return Prompt(task=task, text=_phrase(entry, called=called), include=(Clause(object=entry.name),))


def _listed(phrases: Sequence[str]) -> str:
    """ "A", "A and B", "A, B and C"."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


MAKERS: dict[str, Callable[[str, Deal, int, random.Random], Prompt | None]] = {
    "single_object": partial(_objects, 1),
    "two_object": partial(_objects, 2),
    "counting": _counting,
    "colors": partial(_coloured, 1),
    "position": _position,
    "color_attr": partial(_coloured, 2),
    "style": _style,
    "background": _background,
    "size": _size,
    "three_objects": partial(_objects, 3),
    "word": _word,
    "synonym": _synonym,
    "unseen_colors": partial(_coloured, 1),
    "unseen_position": _position,
}
