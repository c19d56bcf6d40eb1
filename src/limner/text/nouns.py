"""English nouns: their plurals and articles."""

IRREGULAR: dict[str, str] = {
    "mouse": "mice", "goose": "geese", "man": "men", "woman": "women", "child": "children",
    "person": "people", "foot": "feet", "tooth": "teeth", "leaf": "leaves", "loaf": "loaves",
    "knife": "knives", "wolf": "wolves", "scarf": "scarves", "elf": "elves", "ox": "oxen",
    "potato": "potatoes", "tomato": "tomatoes", "mango": "mangoes", "hero": "heroes",
    "superhero": "superheroes", "mosquito": "mosquitoes", "volcano": "volcanoes", "tornado": "tornadoes",
    "sheep": "sheep", "deer": "deer", "moose": "moose", "fish": "fish", "squid": "squid", "bison": "bison",
    "aircraft": "aircraft", "cactus": "cacti", "die": "dice", "human": "humans", "talisman": "talismans",
}  # fmt: skip
AFTER_HEAD = frozenset({"of", "with", "in", "on", "at", "from", "behind", "for"})  # "cups of tea"
DOERS = frozenset({"man", "woman", "person", "boy", "girl", "child", "monkey", "face"})  # "men riding a bike"
AN = frozenset({"hourglass", "x-ray", "heir", "hour"})  # sound like a vowel
NOT_AN = ("uni", "use", "eu", "ufo", "one-", "ukulele", "utensil")  # sound like a consonant


def pluralise(noun: str) -> str:
    """The plural of a noun phrase by the rules of English: "cup of tea" -> "cups of tea"."""
    phrase = noun.split(" ")
    head = len(phrase) - 1
    if head:
        if phrase[0] in DOERS and phrase[1].endswith("ing"):
            head = 0
        else:
            head = next((i for i, word in enumerate(phrase) if i and word in AFTER_HEAD), head + 1) - 1
    word = phrase[head]
    if word in IRREGULAR:
        plural = IRREGULAR[word]
    elif word.endswith("man"):
        plural = word[:-2] + "en"
    elif word.endswith(("s", "x", "z", "ch", "sh")):
        plural = word + "es"
    elif word.endswith("y") and word[-2:-1] not in "aeiou":
        plural = word[:-1] + "ies"
    else:
        plural = word + "s"
    phrase[head] = plural
    return " ".join(phrase)


def with_article(noun: str) -> str:
    """The noun after "a" or "an": "an apple", "a unicorn", "an x-ray"."""
    vowel = noun[:1] in "aeiou" and not noun.startswith(NOT_AN)
    return f"an {noun}" if vowel or noun in AN else f"a {noun}"
