"""Where pictures to be judged come from: a model, and two things to compare it with.

The ceiling is the scorer's own: scenes composed exactly as a prompt says. The floor is retrieval: of the
pictures that training shows, those whose captions are nearest to the prompt.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from limner.data.world.art import LETTERS, load_atlas
from limner.data.world.backgrounds import SETTINGS
from limner.data.world.caption import Captioner
from limner.data.world.scene import (
    COLOURS,
    KINDS,
    LARGE,
    LAYOUTS,
    LIFT,
    PLACES,
    SHRINK,
    SMALL,
    Scenes,
    World,
    WorldConfig,
)
from limner.data.world.source import noun
from limner.errors import DataError, EngineError
from limner.evaluate.prompts import Prompt
from limner.pipeline.request import Request
from limner.pipeline.run import Pipeline
from limner.text.lexicon import load_lexicon
from limner.util.images import pixels_from_images
from limner.util.rng import mix

Source = Callable[[Prompt, int, int], Tensor]  # (prompt, seed, count) -> pixels, count 3 h w
SCALES = {None: 0, "small": -1, "large": 1}


def drawn(pipeline: Pipeline, request: Request) -> Source:
    """Pictures of a model; of `request` the steps, the guidance and the sampler are used."""

    def source(prompt: Prompt, seed: int, count: int) -> Float[Tensor, "b 3 h w"]:
        *_, last = pipeline.generate(replace(request, prompt=prompt.text, seed=seed, count=count))
        if last.result is None:
            raise EngineError("drawing ended without a result")
        return pixels_from_images(last.result.images)

    return source


def world_of(
    prompts: Sequence[Prompt],
    folder: Path,
    styles: Sequence[str],
    size: int,
    config: WorldConfig = WorldConfig(word=0.1),
) -> World:
    """The drawn world with the objects that the prompts name, for pictures of `size`.

    Raises DataError when there is no atlas, or when it lacks a style or an object of the lexicon.
    """
    named = {clause.object for prompt in prompts for clause in prompt.include}
    objects = [entry.name for entry in load_lexicon().entries if entry.name in named]
    sizes = [side for side in (16, 32, 64, 128, 256) if side < 2 * size]
    return World(load_atlas(folder, objects=objects, styles=styles, sizes=sizes), config)


def composed(world: World, size: int) -> Source:
    """Scenes as prompts say."""

    def source(prompt: Prompt, seed: int, count: int) -> Float[Tensor, "b 3 h w"]:
        scenes = compose(prompt, world, count, torch.Generator().manual_seed(mix(seed)))
        return world.render(scenes, size)[0]

    return source


def compose(prompt: Prompt, world: World, count: int, generator: torch.Generator) -> Scenes:
    """Scenes that show exactly what a prompt asks for; the rest is as chance has it in the world.

    Raises DataError for what the world cannot show: too many objects, other objects or styles than the
    atlas's, relations between more than two objects, long words.
    """
    relation = _relation(prompt)
    clauses = [clause for clause in prompt.include for _ in range(clause.count)]
    if relation in ("left of", "above"):
        clauses.reverse()  # whatever stands in relation to the first comes after it
    scenes = world.sample(count, generator, unseen=None)
    layout = _layouts(len(clauses), relation, count, generator)
    anchors = torch.zeros(count, PLACES, 3)
    for row, index in enumerate(layout.tolist()):
        anchors[row, : len(clauses)] = torch.tensor(list(LAYOUTS.values())[index])
    places = torch.full((PLACES,), -1)
    objects, colours, scale = places.clone(), places.clone(), torch.zeros_like(places)
    for place, clause in enumerate(clauses):
        objects[place] = _index("object", clause.object, world.atlas.objects)
        colours[place] = -1 if clause.colour is None else COLOURS.index(clause.colour)
    scale[0] = SCALES[prompt.size]
    stretch = 1 + world.config.stretch * (2 * torch.rand(count, PLACES, generator=generator) - 1)
    stretch[:, 0] *= {None: 1.0, "small": SMALL, "large": LARGE}[prompt.size]
    centre = anchors[..., :2] + world.config.jitter * (
        2 * torch.rand(count, PLACES, 2, generator=generator) - 1
    )
    side = anchors[..., 2] * stretch
    letters = torch.full((count, world.config.word_length), -1)
    if prompt.word is not None:
        if len(prompt.word) > world.config.word_length:
            raise DataError(f'the world has no room for the word "{prompt.word}"')
        letters[:, : len(prompt.word)] = torch.tensor([LETTERS.index(letter) for letter in prompt.word])
        centre[..., 1] -= LIFT
        side *= SHRINK
    scenes = replace(
        scenes,
        kind=torch.full((count,), list(KINDS).index("several")),
        layout=layout,
        object=objects.repeat(count, 1),
        colour=colours.repeat(count, 1),
        scale=scale.repeat(count, 1),
        centre=centre,
        side=side,
        letters=letters,
    )
    if prompt.style is not None:
        scenes.style.fill_(_index("style", prompt.style, world.atlas.styles))
    _ground(scenes, prompt.background, [clause.colour for clause in clauses])
    return scenes


def nearest(world: World, size: int, *, captions: int, seed: int = 0) -> Source:
    """Training pictures by their captions: the most similar ones, by the words' weight of evidence.

    The similarity is the weight of the words in common over the weight of all words of the two, where a word
    that stands in n of N captions weighs log(N / n). Ties go to the caption drawn first.
    """
    scenes = world.sample(captions, torch.Generator().manual_seed(seed))
    names = [noun(load_lexicon().entry(name)) for name in world.atlas.objects]
    said = [Counter(words) for _, words in Captioner(world.atlas, names).captions(scenes, seed)]
    rows: dict[tuple[str, int], list[int]] = {}  # "the second red" -> captions that have it
    for row, words in enumerate(said):
        for token in _tokens(words):
            rows.setdefault(token, []).append(row)
    postings = {token: np.array(found) for token, found in rows.items()}
    weight = {token: math.log(captions / len(found)) for token, found in postings.items()}
    total = np.array([sum(weight[token] for token in _tokens(words)) for words in said])

    def source(prompt: Prompt, _: int, count: int) -> Float[Tensor, "b 3 h w"]:
        common: npt.NDArray[np.float64] = np.zeros(captions)
        wanted = 0.0
        for token in _tokens(Counter(load_lexicon().read(prompt.text).words)):
            if token in postings:
                common[postings[token]] += weight[token]
            wanted += weight.get(token, math.log(captions))
        similar = common / np.maximum(total + wanted - common, 1e-9)
        best = np.argsort(-similar, kind="stable")[:count]
        return world.render(scenes[torch.from_numpy(best)], size)[0]

    return source


def _tokens(words: Counter[str]) -> list[tuple[str, int]]:
    return [(word, number) for word, times in words.items() for number in range(times)]


def _relation(prompt: Prompt) -> str | None:
    """The one relation of a prompt of two objects. Raises DataError when there is more to arrange."""
    relations = [clause.position[0] for clause in prompt.include if clause.position is not None]
    single = all(clause.count == 1 for clause in prompt.include)
    if relations and (len(prompt.include) != 2 or not single):
        raise DataError("the world composes relations between two single objects only")
    return relations[0] if relations else None


def _layouts(objects: int, relation: str | None, count: int, generator: torch.Generator) -> Tensor:
    """Indices into LAYOUTS, one per picture."""
    if relation is not None:
        fitting = ["row of two" if relation in ("left of", "right of") else "column of two"]
    else:
        fitting = [name for name, places in LAYOUTS.items() if len(places) == objects]
    if not fitting:
        raise DataError(f"the world has no layout for {objects} objects")
    indices = torch.tensor([list(LAYOUTS).index(name) for name in fitting])
    return indices[torch.randint(len(indices), (count,), generator=generator)]


def _index(what: str, name: str, known: Sequence[str]) -> int:
    if name not in known:
        raise DataError(f'the atlas has no {what} "{name}"')
    return known.index(name)


def _ground(scenes: Scenes, background: str | None, colours: Sequence[str | None]) -> None:
    """The background that was asked for; where none was, another colour than the objects'."""
    if background in COLOURS:
        scenes.background.fill_(0)
        scenes.background_colour[:, 0] = COLOURS.index(background)
    elif background == "gradient":
        scenes.background.fill_(1)
    elif background is not None:
        scenes.background.fill_(2 + list(SETTINGS).index(background))
    else:
        taken = {COLOURS.index(colour) for colour in colours if colour is not None}
        free = torch.tensor([index for index in range(len(COLOURS)) if index not in taken])
        first = scenes.background_colour[:, 0] % len(free)
        scenes.background_colour.copy_(torch.stack([free[first], free[(first + 1) % len(free)]], 1))
    scenes.letter_colour.copy_((scenes.background_colour[:, 0] + 2) % len(COLOURS))
