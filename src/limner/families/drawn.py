"""Prompts in the words of the drawn world, as a model that was trained on it reads them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from limner.errors import RequestError
from limner.text import words
from limner.text.lexicon import load_lexicon
from limner.text.reading import NOT_LEARNED, Part, Reading, Unknown
from limner.util.suggest import suggestion


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnWords:
    """What a model of the drawn world has learned."""

    objects: frozenset[str]
    styles: tuple[str, ...]
    spells: bool  # whether it has learned to write words in quotes
    learned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # words of its user -> their tokens

    def read(self, prompt: str, style: str | None = None) -> Reading:
        """The prompt in the words of this model; `style` is added where the prompt names none.

        Raises RequestError for a style that the model has not learned, or another than the prompt names.
        """
        lexicon = load_lexicon().with_words(self.learned) if self.learned else load_lexicon()
        reading = lexicon.read(prompt, known=self.objects)
        reading = replace(reading, parts=self._learned(reading.parts))
        if style is None:
            return reading
        wanted = self._style(style)
        named = {part.words[0] for part in reading.parts if part.kind == "style" and part.words}
        if named - {wanted}:
            raise RequestError(
                f"the prompt asks for {' and '.join(sorted(named))} style, the style setting for {wanted}; "
                "give only one"
            )
        if named:
            return reading
        added = Part(said=style, position=len(prompt), kind="style", words=("in", wanted, "style"))
        return replace(reading, parts=(*reading.parts, added))

    def _learned(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """A style, or a word to write, that the model has not learned becomes an unknown word, so that it is
        reported; the "in", "style" or "with" around it go with it."""
        told = list(parts)
        for index, part in enumerate(parts):
            if part.kind == "style" and part.words[0] not in self.styles:
                nearest, reason = self.styles, NOT_LEARNED
            elif part.kind == "quote" and not self.spells:
                nearest, reason = (), "this model has not learned to write words"
            else:
                continue
            unknown = Unknown(word=part.said, position=part.position, nearest=nearest, reason=reason)
            told[index] = replace(part, kind="unknown", words=(), became=None, unknown=unknown)
            before = next((j for j in reversed(range(index)) if told[j].words), index)
            after = next((j for j in range(index + 1, len(told)) if told[j].words), index)
            for beside, around in ((before, ("in", "with")), (after, ("style",))):
                if told[beside].words and told[beside].words[0] in around:
                    told[beside] = replace(told[beside], kind="dropped", words=())
        return tuple(told)

    def _style(self, said: str) -> str:
        """The learned style that `said` names, itself or by a synonym."""
        parts = load_lexicon().read(said).parts
        if len(parts) == 1 and parts[0].kind == "style" and parts[0].words[0] in self.styles:
            return parts[0].words[0]
        offered = [name for style in self.styles for name in (style, *words.STYLES[style])]
        raise RequestError(f"this model has no style {said!r}{suggestion(said, offered, shown=self.styles)}")


def smaller(reading: Reading) -> Reading:
    """The same things small, whatever size was said."""
    parts: list[Part] = []
    first: int | None = None  # of the words before a thing
    for part in reading.parts:
        if part.kind in ("colour", "learned"):
            first = len(parts) if first is None else first
        elif part.kind == "object":
            parts.insert(len(parts) if first is None else first, replace(part, kind="size", words=("small",)))
            first = None
        elif part.kind != "size":
            first = None
        if part.kind != "size":
            parts.append(part)
    return replace(reading, parts=tuple(parts))


def account(reading: Reading, left_out: int, where: str) -> tuple[list[str], list[str]]:
    """What is to be said of a reading of `where`, such as "the prompt": how words were understood, and what
    will not be in the picture."""
    notices = [f'{where} says "{said}", drawn as {became}' for said, became in reading.resolved]
    warnings = [f"{where} says {unknown}" for unknown in reading.unknown]
    if left_out:
        warnings.append(f"{where} is too long: its last {left_out} words were left out")
    return notices, warnings


def drawable(reading: Reading) -> bool:
    """Whether anything would show: an object, a learned word, a setting, spelled words, or a coloured
    background."""
    kinds = {part.kind for part in reading.parts if part.words}
    ground = "background" in reading.words or "gradient" in reading.words
    return bool(kinds & {"object", "learned", "setting", "quote"}) or ("colour" in kinds and ground)


def nothing(reading: Reading) -> str:
    """Why a prompt cannot be drawn at all."""
    if reading.unknown:
        told = "; ".join(str(unknown) for unknown in reading.unknown)
        return (
            f"the prompt names nothing that this model can draw: {told}. `limner words` lists what it knows"
        )
    return 'the prompt names nothing to draw; try "a cat on a blue background", or see `limner words`'
