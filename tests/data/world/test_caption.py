import random
import re
from dataclasses import replace

import pytest
import torch

from limner.data.world import caption
from limner.data.world.art import Atlas
from limner.data.world.backgrounds import SETTINGS
from limner.data.world.caption import CaptionConfig, Captioner
from limner.data.world.scene import COLOURS, KINDS, PLACES, Scenes, World, WorldConfig
from limner.data.world.source import noun
from limner.text import words as word_classes
from limner.text.lexicon import load_lexicon
from limner.text.tokenizers import WordTokenizer, default_vocabulary

COUNT = 2_000
ALL = CaptionConfig(background=1.0, style=1.0, synonym=0.3, bare=0.3)
NEVER = CaptionConfig(background=0.0, style=0.0, synonym=0.0, bare=0.0)


def captioner(atlas: Atlas, config: CaptionConfig = CaptionConfig()) -> Captioner:
    lexicon = load_lexicon()
    return Captioner(atlas, [noun(lexicon.entry(name)) for name in atlas.objects], config)


def sampled(atlas: Atlas, count: int = COUNT, seed: int = 0, **settings: float) -> Scenes:
    world = World(atlas, WorldConfig(coloured=0.4, sized=0.3, **settings))
    return world.sample(count, torch.Generator().manual_seed(seed))


def test_what_is_written_reads_as_exactly_what_is_meant(core_atlas: Atlas) -> None:
    scenes = sampled(core_atlas, word=0.3)
    lexicon, known = load_lexicon(), frozenset(core_atlas.objects)
    vocabulary = WordTokenizer(default_vocabulary(core_atlas.objects))
    quoted = 0
    for text, words in captioner(core_atlas, ALL).captions(scenes, 1):
        reading = lexicon.read(text, known)
        assert reading.words == words, text
        assert reading.unknown == (), text
        assert all(word in vocabulary for word in words), text
        quoted += '"' in text
    assert quoted > 50


def test_every_object_is_read_back_bare_and_in_numbers(core_atlas: Atlas) -> None:
    lexicon, writer = load_lexicon(), captioner(core_atlas, NEVER)
    for index, name in enumerate(core_atlas.objects):
        for count, bare in ((1, True), (3, False)):
            text, words = writer._noun_phrase(index, -1, 0, count, bare=bare, rng=random.Random(0))
            assert name in words
            assert lexicon.read(f"{text} on a red background").words == (
                *words,
                *["on", "a", "red", "background"],
            )


def test_no_colour_or_size_joins_the_word_after_it(core_atlas: Atlas) -> None:
    """ "green grass hut" reads as a hut on green grass, so a green hut is never called so."""
    lexicon = load_lexicon()
    hut = core_atlas.objects.index("hut")
    assert "grass hut" in captioner(core_atlas).nouns[hut].synonyms
    writer = captioner(core_atlas, replace(NEVER, synonym=1.0))
    rng = random.Random(0)
    plain = {writer._noun_phrase(hut, -1, 0, 1, bare=False, rng=rng)[0] for _ in range(50)}
    green = {
        writer._noun_phrase(hut, COLOURS.index("green"), 0, 1, bare=False, rng=rng)[0] for _ in range(50)
    }
    assert "a grass hut" in plain
    assert "a green grass hut" not in green
    sizes = [word for _, choices in caption.SIZE_WORDS.values() for word in choices]
    for entry in writer.nouns:
        for quality in (*COLOURS, *sizes):
            assert not lexicon.has(f"{quality} {entry.singular.split()[0]}")


def test_captions_repeat_with_the_seed(core_atlas: Atlas) -> None:
    scenes = sampled(core_atlas, 64)
    writer = captioner(core_atlas)
    first = list(writer.captions(scenes, 7))
    assert first == list(writer.captions(scenes, 7))
    assert first != list(writer.captions(scenes, 8))
    torch.manual_seed(0)
    random.seed(0)
    assert first == list(captioner(core_atlas).captions(scenes, 7))


def test_captions_say_what_the_scene_holds(core_atlas: Atlas) -> None:
    """Objects with counts, colours and sizes, background, style, letters: all that is there, nothing else."""
    scenes = sampled(core_atlas, 500, word=0.3)
    config = replace(ALL, bare=0.0)
    for row, (text, words) in enumerate(captioner(core_atlas, config).captions(scenes, 3)):
        phrases = noun_phrases(words, core_atlas.objects)
        there: dict[str, list[int]] = {}
        for place in range(PLACES):
            if scenes.object[row, place] >= 0:
                there.setdefault(core_atlas.objects[int(scenes.object[row, place])], []).append(place)
        assert {name: count for name, (count, _, _) in phrases.items()} == {
            name: len(places) for name, places in there.items()
        }, text
        for name, (_, colour, size) in phrases.items():
            place = there[name][0]
            assert colour == (
                COLOURS[int(scenes.colour[row, place])] if scenes.colour[row, place] >= 0 else None
            )
            assert size == {-1: "small", 0: None, 1: "large"}[int(scenes.scale[row, place])], text
        kind = int(scenes.background[row])
        first, second = (COLOURS[c] for c in scenes.background_colour[row].tolist())
        said = " ".join(words)
        assert kind != 0 or f"a {first} background" in said
        assert kind != 1 or f"a {first} to {second} gradient background" in said
        assert kind < 2 or list(SETTINGS)[kind - 2] in words
        assert core_atlas.styles[int(scenes.style[row])] in words
        letters = "".join(re.findall(r"<(\w)>", said))
        spelled = "".join("abcdefghijklmnopqrstuvwxyz"[i] for i in scenes.letters[row].tolist() if i >= 0)
        assert letters == spelled


def noun_phrases(
    words: tuple[str, ...], objects: tuple[str, ...]
) -> dict[str, tuple[int, str | None, str | None]]:
    """Object -> (count, colour, size) as the words say it; "a orange background" is no object."""
    found: dict[str, tuple[int, str | None, str | None]] = {}
    count, colour, size = 0, None, None
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        if word in ("a", "two", "three", "four", "five"):
            count, colour, size = ("a", "two", "three", "four", "five").index(word) + 1, None, None
        elif word in ("small", "large"):
            size = word
        elif word in objects and not (word == "orange" and (colour_before_noun(following, objects))):
            found[word] = (count, colour, size)
        elif word in COLOURS:
            colour = word
    return found


def colour_before_noun(following: str, objects: tuple[str, ...]) -> bool:
    return following in (*objects, "background", "to", "gradient")


def test_relations_in_captions_are_true_of_the_pixels(atlas: Atlas) -> None:
    """By what the drawings cover: all of one stands left of (above) all of the other."""
    world = World(atlas)
    scenes = world.sample(400, torch.Generator().manual_seed(2))
    _, cover = world.render(scenes, 32)
    at = (torch.arange(32) + 0.5) / 32
    area = cover.sum((2, 3)).clamp_min(1e-6)
    x, y = (cover * at).sum((2, 3)) / area, (cover * at[:, None]).sum((2, 3)) / area
    seen = set()
    for row, (_, words) in enumerate(captioner(atlas, NEVER).captions(scenes, 5)):
        relation = next((word for word in words if word in word_classes.RELATIONS), None)
        related = list(KINDS)[int(scenes.kind[row])] in ("relation", "group relation")
        assert (relation is not None) == related
        if relation is None:
            continue
        seen.add(relation)
        split = words.index(relation)
        first, second = (
            [
                k
                for k in range(PLACES)
                if scenes.object[row, k] >= 0 and atlas.objects[int(scenes.object[row, k])] in side
            ]
            for side in (strip_colours(words[:split]), strip_colours(words[split + 1 :]))
        )
        axis = x if relation in ("left of", "right of") else y
        smaller, larger = (first, second) if relation in ("left of", "above") else (second, first)
        assert axis[row, smaller].max() < axis[row, larger].min()
    assert seen == set(word_classes.RELATIONS)


def strip_colours(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words without the colour orange, which is also a fruit."""
    return tuple(
        word
        for word, following in zip(words, (*words[1:], ""), strict=True)
        if not (word == "orange" and following not in ("", "<plural>"))
    )


def test_bare_leaves_lone_articles_away(core_atlas: Atlas) -> None:
    scenes = sampled(core_atlas, 1_000)
    single = scenes.kind == list(KINDS).index("single")
    bare = list(captioner(core_atlas, replace(NEVER, bare=1.0)).captions(scenes, 1))
    for (text, words), alone in zip(bare, single.tolist(), strict=True):
        assert ("a" in words) != alone or words[0] in ("two", "three", "four"), text
        assert text.startswith(("a ", "an ")) != alone or words[0] in ("two", "three", "four"), text
    share = [
        words[0] != "a" for _, words in captioner(core_atlas, replace(NEVER, bare=0.1)).captions(scenes, 1)
    ]
    lone = [without for without, alone in zip(share, single.tolist(), strict=True) if alone]
    assert sum(lone) / len(lone) == pytest.approx(0.1, abs=0.04)


def test_objects_without_a_relation_are_said_in_the_order_they_stand(core_atlas: Atlas) -> None:
    """Left to right, and row after row."""
    scenes = sampled(core_atlas, 600)
    kinds = [list(KINDS)[kind] for kind in scenes.kind.tolist()]
    rows = zip(kinds, captioner(core_atlas, NEVER).captions(scenes, 4), scenes.object.tolist(), strict=True)
    listed = [
        (strip_colours(words), objects) for kind, (_, words), objects in rows if kind in ("pair", "several")
    ]
    assert len(listed) > 50
    for words, objects in listed:
        names = [core_atlas.objects[o] for o in objects if o >= 0]
        assert [word for word in words if word in names] == names


def test_options_say_their_share(core_atlas: Atlas) -> None:
    scenes = sampled(core_atlas, 1_000)
    plain = [words for _, words in captioner(core_atlas, NEVER).captions(scenes, 1)]
    assert not any({"background", "style", *SETTINGS, *core_atlas.styles} & set(words) for words in plain)
    some = replace(NEVER, background=0.6, style=0.3)
    words = [set(words) for _, words in captioner(core_atlas, some).captions(scenes, 1)]
    with_style = sum(bool(set(core_atlas.styles) & said) for said in words) / 1_000
    with_ground = sum(bool({"background", *SETTINGS} & said) for said in words) / 1_000
    assert with_style == pytest.approx(0.3, abs=0.05)
    assert with_ground == pytest.approx(0.6, abs=0.05)


def test_phrasings_are_in_the_word_classes() -> None:
    assert list(caption.SETTING_PHRASES) == list(SETTINGS)
    assert set(caption.RELATION_PHRASES) == set(word_classes.RELATIONS)
    assert {caption.OPPOSITE[caption.OPPOSITE[r]] for r in word_classes.RELATIONS} == set(
        word_classes.RELATIONS
    )
    for relation, phrases in caption.RELATION_PHRASES.items():
        assert set(phrases) <= {relation, *word_classes.RELATIONS[relation]}
