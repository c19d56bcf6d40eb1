"""The fixed word classes of the drawn world: what every built-in model understands beside its objects.

Each class maps a canonical word to what else a person may type for it. `DROPPED` lists the words that carry
nothing to draw and are left out without a report. Everything that is in neither, nor an object, is reported.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

COLOURS: dict[str, tuple[str, ...]] = {  # the ten of GenEval (Ghosh et al. 2023)
    "red": ("crimson", "scarlet", "ruby red", "cherry red"),
    "orange": ("amber",),
    "yellow": ("golden", "gold", "lemon yellow"),
    "green": ("emerald", "emerald green", "lime green", "olive green"),
    "blue": ("azure", "navy", "navy blue", "cobalt", "cobalt blue", "sky blue", "royal blue"),
    "purple": ("violet", "lilac", "mauve"),
    "pink": ("magenta", "fuchsia", "hot pink"),
    "brown": ("chocolate brown", "chestnut brown", "tan"),
    "black": ("jet black", "ebony"),
    "white": ("ivory", "snow white"),
}
COUNTS: dict[str, tuple[str, ...]] = {
    "one": ("1", "single", "a single", "exactly one"),
    "two": ("2", "a pair of", "pair of", "a couple of", "couple of", "exactly two"),
    "three": ("3", "a trio of", "trio of", "exactly three"),
    "four": ("4", "exactly four"),
    "five": ("5", "exactly five"),
}
SIZES: dict[str, tuple[str, ...]] = {
    "small": ("tiny", "little", "mini", "miniature", "wee"),
    "large": ("big", "huge", "giant", "enormous", "gigantic", "massive"),
}
RELATIONS: dict[str, tuple[str, ...]] = {
    "left of": (
        "to the left of", "on the left of", "at the left of", "to the left side of",
        "on the left side of", "on the left hand side of", "left side of",
    ),
    "right of": (
        "to the right of", "on the right of", "at the right of", "to the right side of",
        "on the right side of", "on the right hand side of", "right side of",
    ),
    "above": ("over", "on top of", "atop", "higher than", "up above", "over the top of"),
    "below": ("under", "beneath", "underneath", "lower than", "down below"),
}  # fmt: skip
SETTINGS: dict[str, tuple[str, ...]] = {
    "sky": ("blue sky", "clear sky", "daytime sky", "skies"),
    "night": ("night sky", "starry sky", "starry night", "nighttime", "night time", "midnight"),
    "space": ("outer space", "cosmos", "universe", "deep space"),
    "sea": ("ocean", "seas", "open sea", "open ocean"),
    "beach": ("seashore", "shore", "seaside", "sandy beach", "sand"),
    "grass": ("lawn", "meadow", "field", "grassland", "green grass", "pasture", "grassy", "grassy field"),
    "snow": ("snowy", "snowfield", "snowy field", "snowy ground", "snowy landscape"),
    "desert": ("sand dunes", "dunes", "sandy desert"),
    "room": ("living room", "bedroom", "indoors", "interior"),
}
STYLES: dict[str, tuple[str, ...]] = {
    "flat": ("minimal", "minimalist"),
    "glossy": ("3d", "3 d", "shiny", "three dimensional", "glassy"),
    "classic": ("traditional", "noto"),
    "sticker": ("twemoji",),
}
STYLE_OF_SET: dict[str, str] = {  # canonical style word -> the icon set that is drawn so
    "flat": "fluent-emoji-flat",
    "glossy": "fluent-emoji",
    "classic": "noto",
    "sticker": "twemoji",
}
FUNCTION: dict[str, tuple[str, ...]] = {
    "a": ("an",),
    "and": ("&", "+", "plus"),
    "with": (),
    "on": ("upon", "onto", "against"),
    "in": ("inside", "inside of", "within", "into"),
    "to": (),
    "background": ("backdrop", "bg", "wallpaper"),
    "style": ("styled", "design", "look"),
    "gradient": ("gradation", "ombre"),
}

# Filler nouns take their article with them: "a picture of a cat" is "a cat".
FILLER_NOUNS: tuple[str, ...] = (
    "picture", "pictures", "pic", "image", "images", "photo", "photos", "photograph", "drawing",
    "illustration", "render of", "rendering of", "painting of", "sketch of", "icon", "icons", "emoji",
    "emojis", "kind of", "type of", "scene of",
)  # fmt: skip
DROPPED: tuple[str, ...] = (
    *FILLER_NOUNS,
    "the", "this", "that", "these", "those", "some", "any", "my", "your", "our", "its", "it", "there",
    "which", "of", "from", "at", "is", "are", "be", "please", "draw", "paint", "make", "create", "generate",
    "show", "render", "imagine", "give", "me", "for me", "us", "i", "we", "you", "want", "would like",
    "plain", "solid", "color", "colors", "colored", "says", "saying", "reads", "the word", "the words",
    "the text",
)  # fmt: skip

PLURAL, QUOTE, SPACE = "<plural>", "<quote>", "<space>"
PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
LEARNED = "<learned "  # begins the tokens of a word that was taught to a model later
SPECIALS: tuple[str, ...] = (PAD, BOS, EOS, UNK)
LETTERS: tuple[str, ...] = tuple(f"<{letter}>" for letter in "abcdefghijklmnopqrstuvwxyz0123456789")

CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": COLOURS,
    "count": COUNTS,
    "size": SIZES,
    "relation": RELATIONS,
    "setting": SETTINGS,
    "style": STYLES,
    "function": FUNCTION,
}

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# British and irregular spellings of the words that the classes and the lexicon write the American way.
SPELLINGS: dict[str, str] = {
    "colour": "color", "colours": "colors", "coloured": "colored", "centre": "center", "theatre": "theater",
    "racquet": "racket", "racquets": "rackets", "motorised": "motorized", "hypnotised": "hypnotized",
    "savouring": "savoring", "sceptical": "skeptical", "moustache": "mustache",
}  # fmt: skip

# Words that people do type here and that nothing can stand for, with what comes nearest.
HINTS: dict[str, tuple[str, ...]] = {
    "grey": ("white", "black"), "gray": ("white", "black"), "silver": ("white",), "beige": ("white", "brown"),
    "turquoise": ("blue", "green"), "teal": ("blue", "green"), "cyan": ("blue",), "maroon": ("red", "brown"),
    "beside": ("left of", "right of"), "next": ("left of", "right of"), "near": ("left of", "right of"),
    "by": ("left of", "right of"), "between": ("left of", "right of"),
    "behind": ("above", "left of", "right of"),
    "front": ("below", "above"), "left": ("left of",), "right": ("right of",), "top": ("above",),
    "bottom": ("below",), "six": ("five",), "seven": ("five",), "eight": ("five",), "nine": ("five",),
    "ten": ("five",), "dozen": ("five",), "lots": ("five",), "many": ("five", "four", "three"),
    "several": ("three", "four", "five"), "few": ("three",), "medium": ("large", "small"), "sunny": ("sky",),
    "underwater": ("sea",), "water": ("sea",), "lake": ("sea",), "river": ("sea",),
    "forest": ("tree", "grass"),
    "garden": ("grass",), "park": ("grass",), "winter": ("snow",), "kitchen": ("room",),
    "realistic": ("classic",), "cartoon": ("flat", "sticker"),
}  # fmt: skip
# Expressions that no shorter reading may take apart ("next to" holds no "to").
UNSUPPORTED: dict[str, tuple[str, ...]] = {
    "next to": ("left of", "right of"), "close to": ("left of", "right of"),
    "side by side": ("left of", "right of"), "at the side of": ("left of", "right of"),
    "to the side of": ("left of", "right of"), "on the side of": ("left of", "right of"),
    "in between": ("left of", "right of"), "in front of": ("below", "above"),
    "in the middle of": ("above", "below"), "in the middle": (), "in the center": (),
    "on the left": ("left of",), "to the left": ("left of",), "on the right": ("right of",),
    "to the right": ("right of",), "at the top": ("above",), "at the bottom": ("below",),
    "a few": ("three",), "a lot of": ("five",), "lots of": ("five",), "a dozen": ("five",),
}  # fmt: skip
NEGATIONS: frozenset[str] = frozenset({"no", "not", "without", "except", "never", "dont"})

# Noun phrases joined by relations, in the letters of `_letter`: "two red apple <plural> left of a cat" is
# dmnpldn.
_PHRASE = "d?m*[nm]p?"
_CHAIN = re.compile(f"{_PHRASE}(?:[lr]{_PHRASE})+")


def picture_order(said: Sequence[str]) -> tuple[str, ...]:
    """Canonical words with what stands on the left, or above, said first.

    "a cat right of a dog" becomes "a dog left of a cat". Both say the same, and a network that always hears
    the first form need not learn that the order of the nouns and the word between them only mean something
    together. A chain that mixes both directions stays as it was said.
    """
    turned = list(said)
    for match in _CHAIN.finditer("".join(map(_letter, said))):
        start, end = match.span()
        joints = [i for i in range(start, end) if said[i] in OPPOSITE]
        if any(said[i] in ("left of", "above") for i in joints):
            continue
        bounds = [start, *(b for i in joints for b in (i, i + 1)), end]
        pieces = [said[a:b] for a, b in pairwise(bounds)]
        turned[start:end] = [OPPOSITE.get(word, word) for piece in reversed(pieces) for word in piece]
    return tuple(turned)


def _letter(word: str) -> str:
    """The class of a canonical word as one letter; "orange", colour and fruit, counts as a colour."""
    if word in OPPOSITE:
        return "r" if word in ("right of", "below") else "l"
    if word in COUNTS or word == "a":
        return "d"
    if word in COLOURS or word in SIZES:
        return "m"
    if word == PLURAL:
        return "p"
    if word.startswith(LEARNED):
        return "m"  # "a sks dog", and also "a sks": like "orange" it may stand before a noun or for one
    fixed = word in SPECIALS or word in LETTERS or word in (QUOTE, SPACE)
    return "x" if fixed or any(word in members for members in CLASSES.values()) else "n"
