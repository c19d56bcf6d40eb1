"""Maintain src/limner/text/lexicon.json: check it, fill in keywords, propose synonyms to review.

    python scripts/build_lexicon.py check
    python scripts/build_lexicon.py keywords --write
    python scripts/build_lexicon.py propose dog "hot dog"      (no names: every entry)

`keywords` fills in those of new entries from the Unicode CLDR annotations (Debian: unicode-cldr-core), which
only serve searching. Synonyms decide what is drawn, so nothing is merged by itself: `propose` prints the
lemmas of WordNet (Debian: wordnet-base) sense by sense with the gloss, and an editor copies the right ones.
"""

import argparse
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from limner.text.catalogue import problems
from limner.text.lexicon import Entry, Lexicon, load_lexicon, surface_key

LEXICON = Path(__file__).parents[1] / "src" / "limner" / "text" / "lexicon.json"
WORDNET = Path("/usr/share/wordnet")
CLDR = Path("/usr/share/unicode/cldr/common")
KEYWORDS_KEPT = 6  # per entry; more only makes a search less sharp


def slug(name: str) -> str:
    """An emoji's CLDR name as the icon sets write it: "hot dog" -> "hot-dog", "T. rex" -> "t-rex"."""
    plain = name.lower().replace("’", "").replace("'", "").replace("ñ", "n")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def cldr_keywords() -> dict[str, list[str]]:
    """Icon name -> keywords in the order of CLDR, from the plain and the derived annotations."""
    names: dict[str, str] = {}
    words: dict[str, list[str]] = {}
    for folder in ("annotations", "annotationsDerived"):
        for node in ElementTree.parse(CLDR / folder / "en.xml").iter("annotation"):
            point, text = node.attrib["cp"], node.text or ""
            if node.attrib.get("type") == "tts":
                names[point] = slug(text)
            else:
                words[point] = [word.strip() for word in text.split("|")]
    return {icon: words.get(point, []) for point, icon in names.items()}


def searchable(entry: dict[str, object], keywords: list[str]) -> list[str]:
    """The keywords worth keeping: short, lower case, and not said by the name or a synonym already."""
    said = f"{entry['name']} {' '.join(map(str, entry['synonyms']))}".lower()  # type: ignore[call-overload]
    taken = set(re.findall(r"[a-z0-9]+", said))
    plain = [word for word in keywords if re.fullmatch(r"[a-z][a-z-]+( [a-z-]+)?", word)]
    return [word for word in plain if not set(re.findall(r"[a-z0-9]+", word)) <= taken][:KEYWORDS_KEPT]


def write_entries(rows: list[dict[str, object]]) -> None:
    """One object per line, so that a review shows the entries that changed."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    LEXICON.write_text(f"[\n{lines}\n]\n", "utf-8")


def wordnet_senses(lemma: str) -> Iterator[tuple[list[str], str]]:
    """The noun senses of `lemma` as (lemmas, gloss), most frequent first (wndb(5) gives the file format)."""
    wanted = lemma.replace(" ", "_") + " "
    with (WORDNET / "index.noun").open(encoding="utf-8") as index:
        line = next((line for line in index if line.startswith(wanted)), None)
    if line is None:
        return
    fields = line.split()
    count = int(fields[2])
    with (WORDNET / "data.noun").open("rb") as data:
        for offset in fields[-count:]:
            data.seek(int(offset))
            record, _, gloss = data.readline().decode().partition("|")
            parts = record.split()
            lemmas = [word.replace("_", " ").lower() for word in parts[4 : 4 + 2 * int(parts[3], 16) : 2]]
            yield lemmas, gloss.strip()


def propose(lexicon: Lexicon, entry: Entry) -> list[str]:
    """Lines for a reader: each sense that offers a lemma the lexicon does not have, with its gloss."""
    lines = []
    for lemmas, gloss in wordnet_senses(entry.name):
        fresh = [lemma for lemma in lemmas if not lexicon.has(surface_key(lemma))]
        if fresh:
            lines.append(f"{entry.name}: {', '.join(fresh)}    [{gloss[:90]}]")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run one of the three tasks; the exit status is 1 when `check` or `keywords` found something to mend."""
    parser = argparse.ArgumentParser(description="Check lexicon.json, fill in keywords, propose synonyms.")
    parser.add_argument("task", choices=("check", "keywords", "propose"))
    parser.add_argument("names", nargs="*", help="entries to propose synonyms for; all when none is given")
    parser.add_argument("--write", action="store_true", help="write the keywords into lexicon.json")
    given = parser.parse_args(arguments)
    lexicon = load_lexicon()
    if given.task == "check":
        found = problems(lexicon)
        print("\n".join(found) or f"{len(lexicon.entries)} entries, no problems")
        return 1 if found else 0
    if given.task == "propose":
        chosen = [lexicon.entry(name) for name in given.names] or list(lexicon.entries)
        for entry in chosen:
            print("\n".join(propose(lexicon, entry)), end="\n" if given.names else "")
        return 0
    rows: list[dict[str, object]] = json.loads(LEXICON.read_text("utf-8"))
    found = cldr_keywords()
    bare = 0
    for row in rows:
        keywords = searchable(row, found.get(str(row["art"]), []))
        if keywords and not row["keywords"]:  # what an editor pruned stays pruned
            row["keywords"] = keywords
            bare += 1
    if given.write:
        write_entries(rows)
    print(f"{bare} entries {'filled' if given.write else 'lack keywords; add --write'}")
    return 1 if bare and not given.write else 0


if __name__ == "__main__":
    sys.exit(main())
