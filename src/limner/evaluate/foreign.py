"""Prompts by others: which of them a detector can judge, and GenEval's clauses out of plain sentences.

GenEval's `evaluation_metadata.jsonl` is read by `prompts.read` as it is. T2I-CompBench (Huang et al. 2023)
keeps one prompt per line and no clauses; those sentences that our lexicon reads as one of the six tasks, or
as three objects, get clauses here. What nobody can judge is left out and said, never counted as wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from limner.data.world.caption import COUNTS
from limner.errors import DataError
from limner.evaluate import prompts as files
from limner.evaluate.prompts import Clause, Prompt
from limner.models.detector import Names
from limner.text.lexicon import load_lexicon
from limner.text.words import COLOURS, OPPOSITE, PLURAL, SIZES


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A prompt that is not judged."""

    text: str
    reason: str


def read(source: str | Path, names: Names) -> tuple[list[Prompt], list[LeftOut]]:
    """The prompts of a set, of a file of JSON lines, or of a .txt file of sentences that a detector with
    these names can judge, and the others.

    Classes that the detector calls otherwise are renamed (GenEval's "tv" is our television). Raises DataError
    for a file that cannot be read, and when no prompt is left.
    """
    left_out: list[LeftOut] = []
    plain = Path(source).suffix == ".txt"
    found = list(_sentences(Path(source), left_out)) if plain else files.read(source)
    kept = []
    for prompt in found:
        try:
            kept.append(judgeable(prompt, names))
        except DataError as error:
            left_out.append(LeftOut(text=prompt.text, reason=str(error)))
    if not kept:
        reason = f'; the first, "{left_out[0].text}": {left_out[0].reason}' if left_out else ""
        raise DataError(f"no prompt of {source} can be judged{reason}")
    return kept, left_out


def judgeable(prompt: Prompt, names: Names) -> Prompt:
    """The prompt in the detector's words. Raises DataError with what the detector does not know."""
    for what, value, known in (
        ("style", prompt.style, names.styles),
        ("background", prompt.background, names.backgrounds),
        *(("colour", clause.colour, names.colours) for clause in prompt.include),
        *(("letter", letter, names.letters) for letter in prompt.word or ""),
    ):
        if value is not None and value not in known:
            raise DataError(f'the detector knows no {what} "{value}"')
    include, exclude = (
        tuple(replace(clause, object=_class(clause.object, names)) for clause in clauses)
        for clauses in (prompt.include, prompt.exclude)
    )
    return replace(prompt, include=include, exclude=exclude)


def from_sentence(text: str) -> Prompt:
    """What a plain sentence asks for, as one of the six tasks or three objects.

    Raises DataError when the lexicon does not know a word, or when it is another kind of sentence.
    """
    reading = load_lexicon().read(text)
    if reading.unknown:
        raise DataError(f"unknown: {reading.unknown[0]}")
    words, clauses, joints = list(reading.words), [], []
    while True:
        clause, size, words = _phrase(words)
        clauses.append((clause, size))
        if not words:
            break
        if words[0] != "and" and words[0] not in OPPOSITE:
            raise DataError(f'"{words[0]}" has no clause in GenEval')
        joints.append(words.pop(0))
    include = tuple(clause for clause, _ in clauses)
    counts, coloured = {clause.count for clause in include}, any(clause.colour for clause in include)
    if len({clause.object for clause in include}) < len(include):
        raise DataError("the same object twice has no clause in GenEval")
    if len(include) == 1 and counts != {1} and not coloured and clauses[0][1] is None:
        return _counting(text, include[0])
    if counts != {1}:
        raise DataError("counts of several or of coloured objects are none of GenEval's tasks")
    sizes = [size for _, size in clauses if size is not None]
    if sizes and (len(include) > 1 or coloured):
        raise DataError("sizes are judged of one object alone")
    if len(include) == 1:
        task = "size" if sizes else "colors" if coloured else "single_object"
        return Prompt(task=task, text=text, include=include, size=sizes[0] if sizes else None)
    if set(joints) == {"and"} and len(include) <= 3:
        task = ("color_attr" if coloured else "two_object") if len(include) == 2 else "three_objects"
        return Prompt(task=task, text=text, include=include)
    if len(include) == 2:
        subject, target = include
        return Prompt(task="position", text=text, include=(target, replace(subject, position=(joints[0], 0))))
    raise DataError("that many objects in relation are none of GenEval's tasks")


def _sentences(path: Path, left_out: list[LeftOut]) -> Iterator[Prompt]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot read the prompts {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; give one prompt per line") from None
    for text in filter(None, map(str.strip, lines)):
        try:
            yield from_sentence(text)
        except DataError as error:
            left_out.append(LeftOut(text=text, reason=str(error)))


def _counting(text: str, clause: Clause) -> Prompt:
    return Prompt(
        task="counting", text=text, include=(clause,), exclude=(replace(clause, count=clause.count + 1),)
    )


def _phrase(words: Sequence[str]) -> tuple[Clause, str | None, list[str]]:
    """A noun phrase at the start of canonical words: its clause, its size word, and the words after it."""
    rest = list(words)
    count = 1
    if rest and rest[0] in ("one", *COUNTS):
        count = max(1, 1 + COUNTS.index(word)) if (word := rest.pop(0)) in COUNTS else 1
    qualities: dict[str, str] = {}
    while len(rest) > 1 and rest[0] in (*COLOURS, *SIZES) and rest[1] not in ("and", PLURAL, *OPPOSITE):
        quality = rest.pop(0)
        qualities["colour" if quality in COLOURS else "size"] = quality
    name = rest.pop(0) if rest else ""
    if not load_lexicon().has(name):
        raise DataError(f'"{name}" is no object' if name else "an object is missing")
    plural = bool(rest) and rest[0] == PLURAL
    if plural and count == 1:
        raise DataError("many without a number cannot be counted")
    clause = Clause(object=name, count=count, colour=qualities.get("colour"))
    return clause, qualities.get("size"), rest[plural:]


def _class(name: str, names: Names) -> str:
    """What the detector calls a class of a prompt file."""
    if name in names.objects:
        return name
    reading = load_lexicon().read(name)
    if len(reading.objects) == 1 and not reading.unknown and reading.objects[0] in names.objects:
        return reading.objects[0]
    raise DataError(f'the detector knows no "{name}"')
