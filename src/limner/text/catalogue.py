"""The lexicon as a book to browse and to edit: searching it, and what is wrong with it."""

from limner.text.lexicon import CATEGORIES, FIXED, LONGEST, Entry, Lexicon, surface_key, surfaces


def search(lexicon: Lexicon, query: str, known: frozenset[str] | None = None) -> list[Entry]:
    """Entries for `limner words QUERY`: what it names first, then names, synonyms, categories and
    keywords that contain it. An empty query gives all; `known` narrows to the objects of one model."""
    wanted = surface_key(query)
    exact = lexicon.objects.get(wanted)
    ranked: list[tuple[int, Entry]] = []
    for entry in lexicon.entries:
        if known is not None and entry.name not in known:
            continue
        if exact is not None and exact.words[0] == entry.name:
            ranked.append((0, entry))
        elif wanted in surface_key(entry.name):
            ranked.append((1, entry))
        elif any(wanted in surface_key(synonym) for synonym in entry.synonyms):
            ranked.append((2, entry))
        elif wanted == entry.category or wanted in entry.keywords:
            ranked.append((3, entry))
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])]


def problems(lexicon: Lexicon) -> list[str]:
    """What an editor of lexicon.json has to mend: above all, an expression that has two owners."""
    owners: dict[str, str] = {}
    found = []
    for entry in lexicon.entries:
        if entry.category not in CATEGORIES:
            found.append(f"{entry.name}: category {entry.category!r} is none of {', '.join(CATEGORIES)}")
        if not 1 <= len(entry.name.split()) <= 4 or entry.name != entry.name.lower().strip():
            found.append(f"{entry.name}: a name is 1 to 4 words in lower case")
        single = {surface_key(said) for said, plural, either in surfaces(entry) if not plural and not either}
        for said, plural, _ in surfaces(entry):
            key = surface_key(said)
            if plural and key in single:
                found.append(f"{said!r} of {entry.name} is one and many")
            squashed = key.replace(" ", "")
            if owners.setdefault(squashed, entry.name) != entry.name:
                found.append(f"{said!r} belongs to {owners[squashed]} and to {entry.name}")
            if key in FIXED and key != "orange":  # both a colour and a fruit; see `_is_colour`
                found.append(f"{said!r} of {entry.name} is a fixed word already")
            if len(key.split()) > LONGEST:
                found.append(f"{said!r} of {entry.name} has more than {LONGEST} words")
            first, _, rest = key.partition(" ")
            quality = first in FIXED and FIXED[first].kind in ("colour", "size", "count")
            if quality and rest in lexicon.objects:
                found.append(f"{said!r} of {entry.name} is also {first} and {rest}")
    return found
