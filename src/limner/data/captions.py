"""Captions made fit to learn from: cleaned of what the web left in them, or put into a template."""

import html
import re
from dataclasses import dataclass, replace
from typing import ClassVar

from limner.data.records import Record
from limner.data.sidecars import clean as printable
from limner.data.steps import Outcome
from limner.errors import ConfigError

URL = re.compile(r"(?:\b(?:https?|ftp)://|\bwww\.)[^\s<>\"')\]]+", re.IGNORECASE)
MAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
AMPERSANDS = re.compile(r"&(?:(?:amp|#0*38|#x0*26);)+", re.IGNORECASE)
TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>|<!--.{0,500}?-->", re.DOTALL)
UNSEEN = re.compile(  # orders to a terminal; marks that turn or hide text, but not what joins emoji
    r"\x1b\[[0-?]*[ -/]*[@-~]|[\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
PICTURE = r"(?:jpe?g|png|gif|webp|bmp|tiff?|heic|avif)"
FILE = re.compile(  # a caption that is nothing but what a camera or a program called the file
    rf"""(?: [^\s/\\]+ \. {PICTURE}                                            # holiday-07.jpg
         | (?:img|dscn?|dscf|pxl|gopr|mvimg|vid|wp|p|imag|photo|image|picture|pic|untitled|download)
           [\s_-]* [\d_()\s-]* (?:\.{PICTURE})?                                # IMG_2041, image (3)
         | screen\s?shot [\s_-]* [\d.,:_\s-]* (?:at|um)? [\d.,:_\s-]* (?:[ap]m)? (?:\.{PICTURE})?
         | [0-9a-f]{{8}}-(?:[0-9a-f]{{4}}-){{3}}[0-9a-f]{{12}}                 # a UUID
         | (?=[0-9a-f]*\d) [0-9a-f]{{12,}}                                     # a hash
         | [\d\W_]+                                                            # figures and signs only
       )""",
    re.IGNORECASE | re.VERBOSE,
)
UNTITLED = frozenset({"photo", "image", "picture", "pic", "p"})  # words, where no number follows
PLACE = "{caption}"
LONGEST = 10_000  # characters of a caption that are looked at; the rest goes
NAME = 200  # characters of a file's name, at most
ROUNDS = 20  # of unfolding; what asks for more was made to
FIELD = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Clean:
    """A step that cleans captions, long ones too. What was there is kept as the fact `caption_was`, where it
    changed. No record is left out: one without a caption is for `Filter` or the training to judge."""

    name: ClassVar[str] = "clean"

    def part(self, records: list[Record]) -> Outcome:
        """Raises nothing."""
        kept = []
        for record in records:
            caption, long = clean(record.caption), clean(record.long_caption)
            facts = record.facts if caption == record.caption else _was(record)
            kept.append(replace(record, caption=caption, long_caption=long, facts=facts))
        return Outcome(kept=kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A step that says each caption in a template, such as "a photo of {caption}"; kohya's folder names are
    captions, too. {group} and other facts can stand in it. What was there is kept as the fact `caption_was`.

    A record that lacks what the template names keeps its caption. One without a placeholder is the caption of
    every record.
    """

    name: ClassVar[str] = "template"
    template: str
    empty_only: bool = False  # whether captions that are there stay as they are

    def __post_init__(self) -> None:
        if not self.template.strip():
            raise ConfigError("the template is empty; it is such as 'a photo of {caption}'")
        rest = FIELD.sub("", self.template)
        if (
            "{" in rest
            or "}" in rest
            or any(not name.isidentifier() for name in FIELD.findall(self.template))
        ):
            raise ConfigError(
                f"the template {self.template!r} has braces that name nothing; it is such as "
                "'a photo of {caption}'"
            )

    def part(self, records: list[Record]) -> Outcome:
        """Raises nothing."""
        return Outcome(kept=[self._say(record) for record in records])

    def _say(self, record: Record) -> Record:
        if self.empty_only and record.caption:
            return record
        known = {name: str(fact) for name, fact in record.facts.items()} | {"caption": record.caption}
        if any(not known.get(name) for name in FIELD.findall(self.template)):
            return record
        said = FIELD.sub(lambda found: known[found[1]], self.template)  # once: captions may hold braces
        return replace(record, caption=said, facts=_was(record))


def clean(text: str) -> str:
    """One line without control characters, HTML, addresses of pages and of people; "" for what is the name of
    a file only. Cleaning twice changes nothing more. Of more than 10,000 characters the rest is cut off."""
    before, rounds, text = None, 0, text[:LONGEST]
    while before != text:  # "&lt;b&gt;" unfolds in rounds; each shortens the text or ends this
        rounds += 1
        before, text = text, AMPERSANDS.sub("&", text) if rounds <= ROUNDS else re.sub("[<>&]", " ", text)
        text = MAIL.sub(" ", URL.sub(" ", TAG.sub(" ", html.unescape(text))))
        text = " ".join(printable(UNSEEN.sub("", text)).split())
        text = re.sub(r"\(\s*\)|\[\s*\]", " ", text)
        text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split())).strip(" ,;|")
    name = FILE.fullmatch(text) if len(text) <= NAME else None
    return "" if name and text.lower() not in UNTITLED else text


def _was(record: Record) -> dict[str, str | int | float]:
    return {"caption_was": record.caption} | record.facts
