r"""The prompt language of AUTOMATIC1111: its tree, and what of it is said at each step.

    parse("a (red:1.2) [cat:dog:0.5] <lora:ink:0.8>")   ->  Prompt
    prompt.at(step, steps)                              ->  Lines: plain text in weighted segments
    prompt.changes(steps)                               ->  the steps at which those lines change

`docs/prompts.md` shows the language to users. The rules are the published ones. Differences, all on text
that the original misreads or gives up on: a backslash also takes the meaning from AND, BREAK, `<`, `:` and
`|`; BREAK works inside brackets; a final `:0.7` is a weight only beside an AND; a stray `|` is text and
spoils nothing else; weights stay within LIMIT; brackets deeper than DEPTH are text.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from limner.errors import RequestError

UP, DOWN = 1.1, 1 / 1.1  # what "(x)" and "[x]" multiply by
LIMIT = 1000.0  # largest weight, either sign
DEPTH = 32  # of brackets in brackets; an opening one further in is text, and so is the one that closes it
LATEST = 1e6  # largest step that a switch can name
LORA_KINDS = ("lora", "lyco")  # two names for one thing


class Node:
    """A piece of a prompt: Text, Break, Emphasis, Schedule or Alternate."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Text(Node):
    """Words as they are read, escapes resolved; never empty in a parsed tree."""

    text: str


@dataclass(frozen=True, slots=True)
class Break(Node):
    """`BREAK`: what follows begins a new chunk."""


@dataclass(frozen=True, slots=True)
class Emphasis(Node):
    """`(x)`, `[x]` or `(x:1.3)`: `factor` multiplies the weight of everything inside."""

    nodes: tuple[Node, ...]
    factor: float


@dataclass(frozen=True, slots=True)
class Schedule(Node):
    """`[before:after:when]`, either of them perhaps empty."""

    before: tuple[Node, ...]
    after: tuple[Node, ...]
    when: float  # steps drawn with `before`: a number of them or, if `share`, a part of all of them
    share: bool  # written with a point

    def switch(self, steps: int, earlier: int) -> int:
        """How many of `steps` are drawn with `before`; a second pass goes on counting where the first ended,
        from step `earlier` and from share 1."""
        own = (self.when - (earlier > 0)) * steps if self.share else self.when - earlier
        return int(min(own, steps))


@dataclass(frozen=True, slots=True)
class Alternate(Node):
    """`[a|b|c]`: one after the other, a step each."""

    options: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What stands between two ANDs, and its share of the guidance."""

    nodes: tuple[Node, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ExtraNetwork:
    """`<kind:argument:argument>`: something to load, and no words."""

    kind: str
    arguments: tuple[str, ...]  # as typed; "key=value" where named

    def __str__(self) -> str:
        return f"<{self.kind}:{':'.join(self.arguments)}>"


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA by the name of its file, with how much of it the two networks get (0 nothing, 1 as trained)."""

    name: str
    text: float  # for the text encoders
    unet: float


class Segment(NamedTuple):
    """Text of one weight."""

    text: str
    weight: float


class Line(NamedTuple):
    """One AND-part at one step. Equal lines want equal encodings, so it can be a dictionary's key."""

    weight: float  # multiplies the guidance towards this part
    runs: tuple[tuple[Segment, ...], ...]  # at least one; a new run begins at each BREAK

    @property
    def plain(self) -> str:
        """Its words without their weights, for encoders that know no such thing."""
        return " ".join("".join(segment.text for segment in run).strip() for run in self.runs)

    @property
    def weighed(self) -> bool:
        """Whether any of it has a weight."""
        return any(segment.weight != 1 for run in self.runs for segment in run)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A parsed prompt. `str` writes it so that parsing it again gives an equal tree."""

    parts: tuple[Part, ...]  # at least one
    networks: tuple[ExtraNetwork, ...] = ()

    def __str__(self) -> str:
        several = len(self.parts) > 1
        bodies = [
            _written(part.nodes, several) + (f":{part.weight!r}" if part.weight != 1 else "")
            for part in self.parts
        ]
        return " ".join([" AND ".join(bodies), *map(str, self.networks)]).strip()

    def at(self, step: int, steps: int, *, earlier: int = 0) -> tuple[Line, ...]:
        """What is said at `step` (from 0) of `steps`, a line for each part.

        `earlier` is the number of steps of the pass before, when this is the second pass of two. Raises
        RequestError unless 0 <= step < steps.
        """
        if not 0 <= step < steps:
            raise RequestError(f"step {step} is none of {steps} steps; count from 0")
        now = _Now(step, steps, earlier)
        return tuple(_line(part, now) for part in self.parts)

    def changes(self, steps: int, *, earlier: int = 0) -> tuple[int, ...]:
        """The steps, from 0 on and rising, at which a new text begins; (0,) for a prompt that never changes.

        Alternating texts come back: `dict` the encodings by `at(...)` to encode each once.
        """
        turns = {0}.union(*(_turns(part.nodes, steps, earlier) for part in self.parts))
        found, last = [], None
        for step in sorted(turn for turn in turns if 0 <= turn < steps):
            said = self.at(step, steps, earlier=earlier)
            if said != last:
                found.append(step)
            last = said
        return tuple(found)

    def loras(self) -> tuple[tuple[Lora, ...], tuple[str, ...]]:
        """(the LoRAs asked for, warnings about other extra networks and unknown settings).

        `<lora:name>` is weight 1, `<lora:name:0.8>` 0.8 for both networks, `<lora:name:te:unet>` one each,
        `te=` and `unet=` the same by name. Raises RequestError for a weight that is no number.
        """
        found, warnings = [], []
        for network in self.networks:
            if network.kind not in LORA_KINDS:
                known = ", ".join(f"<{kind}:...>" for kind in LORA_KINDS)
                warnings.append(f"{network} was left out: no such kind of extra network; known: {known}")
                continue
            named = dict(said.split("=", 1) for said in network.arguments if "=" in said)
            name, *weights = [said for said in network.arguments if "=" not in said] or [""]
            if unknown := [*weights[2:], *(key for key in named if key not in ("te", "unet"))]:
                warnings.append(f"{network}: {', '.join(unknown)} was left out; known: te, unet")
            text = named.get("te", weights[0] if weights else "1")
            unet = named.get("unet", weights[1] if len(weights) > 1 else text)
            for weight in (text, unet):
                if not NUMBER.fullmatch(weight):
                    raise RequestError(f"{network}: {weight!r} is no weight; write <lora:{name}:0.8>")
            found.append(Lora(name, _bounded(text), _bounded(unet)))
        return tuple(found), tuple(warnings)


NUMERAL = r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?"
NUMBER = re.compile(NUMERAL)
NETWORK = re.compile(r"\\. | < (?P<kind>\w++) : (?P<arguments>[^<>]+) >", re.VERBOSE | re.DOTALL)
TOKEN = re.compile(
    rf"""\\ (?P<escaped>.?)
    | (?P<open> [(\[])
    | (?P<close> [)\]] | : \s*+ (?P<factor>{NUMERAL}) \s*+ \))
    | (?P<share> : \s*+ (?P<weight>{NUMERAL}) \s*+ (?= \bAND\b | \Z))
    | (?P<mark> [:|])
    | (?P<and> \bAND\b)
    | (?P<break> \bBREAK\b \s*+)
    | (?P<text> [^\\()\[\]:|AB]++ | [AB])""",
    re.VERBOSE | re.DOTALL,
)
SPECIAL = re.compile(r"[\\()\[\]] | < (?=\w) | \b (?:AND|BREAK) \b", re.VERBOSE)
MARK = re.compile(r"[:|]")


def parse(text: str, *, compose: bool = True) -> Prompt:
    """The tree of a prompt. Every text is one; what is no syntax is read as words. Linear in its length.

    `compose` False reads AND as a word, as the original does in negative prompts: there is one part only.
    """
    networks = []

    def take(match: re.Match[str]) -> str:
        if match["kind"] is None:
            return match[0]
        networks.append(ExtraNetwork(match["kind"], tuple(match["arguments"].split(":"))))
        return ""

    tokens: list[list[re.Match[str]]] = [[]]
    for token in TOKEN.finditer(NETWORK.sub(take, text)):
        if compose and token.lastgroup == "and":
            tokens.append([])
        else:
            tokens[-1].append(token)
    parts = []
    for said in tokens:
        weight = 1.0
        if len(tokens) > 1 and said and said[-1]["share"]:
            weight = _bounded(said.pop()["weight"])
        parts.append(Part(_tree(said), weight))
    return Prompt(tuple(parts), tuple(networks))


class _Mark(str):
    """A colon or a bar that divides a square bracket; anywhere else it is text."""

    __slots__ = ()


@dataclass(slots=True)
class _Frame:
    """A bracket that is still open."""

    opened: int = -1  # number of its token
    bracket: str = ""
    factor: float = 1.0
    torn: bool = False  # by brackets that cross: it can only weigh
    items: list[Node | str] = field(default_factory=list)

    def sealed(self) -> list[Node | str]:
        """The node that it became; none if there is nothing in it."""
        if self.bracket == "[" and not self.torn and (divided := _divided(self.items)):
            return [divided]
        nodes = _tidy(self.items)
        return [Emphasis(nodes, self.factor)] if nodes else []


def _tree(tokens: Sequence[re.Match[str]]) -> tuple[Node, ...]:
    """The nodes of one part. Brackets may cross, "(a [b) c]": the inner one is then ended and begun anew."""
    pairs, factors = _pairs(tokens)
    frames = [_Frame()]
    for index, token in enumerate(tokens):
        kind, items = token.lastgroup, frames[-1].items
        if kind == "escaped":
            items.append(token["escaped"])
        elif kind == "open" and index in factors:
            frames.append(_Frame(index, token["open"], factors[index]))
        elif kind == "close" and pairs.get(index) in factors:
            crossed = []
            while frames[-1].opened != pairs[index]:
                crossed.append(_Frame(frames[-1].opened, frames[-1].bracket, frames[-1].factor, True))
                _end(frames, torn=True)
            _end(frames, torn=bool(crossed))
            frames += reversed(crossed)
        elif kind in ("mark", "share"):
            items += [_Mark(token[0][0]), token[0][1:]]
        elif kind == "break":
            items.append(Break())
        else:
            items.append(token[0])
    while len(frames) > 1:
        _end(frames, torn=True)
    return _tidy(frames[0].items, outermost=True)


def _end(frames: list[_Frame], *, torn: bool) -> None:
    last = frames.pop()
    last.torn |= torn
    frames[-1].items += last.sealed()


def _pairs(tokens: Sequence[re.Match[str]]) -> tuple[dict[int, int], dict[int, float]]:
    """(closing token -> opening token, opening token -> factor). Round and square ones pair off apart; an
    opening one too deep has no factor."""
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    pairs, factors = {}, {}
    for index, token in enumerate(tokens):
        if bracket := token["open"]:
            if sum(map(len, waiting.values())) < DEPTH:
                factors[index] = UP if bracket == "(" else DOWN
            waiting[bracket].append(index)
        elif (end := token["close"]) and (stack := waiting["[" if end == "]" else "("]):
            opened = pairs[index] = stack.pop()
            if token["factor"] and opened in factors:
                factors[opened] = _bounded(token["factor"])
    return pairs, factors


def _divided(items: Sequence[Node | str]) -> Schedule | Alternate | None:
    """What a square bracket says if bars or colons divide it as they should."""
    fields: list[list[Node | str]] = [[]]
    mark = "|" if any(isinstance(item, _Mark) and item == "|" for item in items) else ":"
    for item in items:
        if isinstance(item, _Mark) and item == mark:
            fields.append([])
        else:
            fields[-1].append(item)
    if mark == "|":
        return Alternate(tuple(map(_tidy, fields)))
    *texts, last = fields
    when = "".join(item if isinstance(item, str) else "?" for item in last).strip()
    if len(texts) not in (1, 2) or not NUMBER.fullmatch(when):
        return None
    before, after = [(), *map(_tidy, texts)][-2:]
    return Schedule(before, after, _bounded(when, LATEST), not when.lstrip("+-").isdigit())


def _tidy(items: Iterable[Node | str], outermost: bool = False) -> tuple[Node, ...]:
    """Items as nodes: neighbouring texts are one, without blanks beside a BREAK and, if `outermost`, at the
    ends."""
    nodes: list[Node] = []
    words: list[str] = []
    for item in (*items, None):
        if isinstance(item, str):
            words.append(item)
            continue
        if words:
            nodes.append(Text("".join(words)))
            words = []
        if item is not None:
            nodes.append(item)
    end = Break() if outermost else None
    around = [end, *nodes, end]
    for index, node in enumerate(nodes):
        if isinstance(node, Text):
            text = node.text.lstrip() if isinstance(around[index], Break) else node.text
            nodes[index] = Text(text.rstrip() if isinstance(around[index + 2], Break) else text)
    return tuple(node for node in nodes if node != Text(""))


def _written(nodes: Iterable[Node], marked: bool) -> str:
    """The nodes in the prompt language; `marked` where a colon or a bar would mean something."""
    said = ""
    for node in nodes:
        match node:
            case Text(text):
                plain = SPECIAL.sub(r"\\\g<0>", text)
                said += MARK.sub(r"\\\g<0>", plain) if marked else plain
            case Break():
                said += " BREAK "
            case Emphasis(inner, factor):
                body = _written(inner, True)
                said += {UP: f"({body})", DOWN: f"[{body}]"}.get(factor, f"({body}:{factor!r})")
            case Schedule(before, after, when, share):
                first = f"{_written(before, True)}:" if before else ""
                said += f"[{first}{_written(after, True)}:{when if share else int(when)}]"
            case Alternate(options):
                said += f"[{'|'.join(_written(option, True) for option in options)}]"
    return said


class _Now(NamedTuple):
    step: int
    steps: int
    earlier: int


def _line(part: Part, now: _Now) -> Line:
    """The part as it is said now; neighbours of one weight are one segment, since tokens may span them."""
    runs: list[list[Segment]] = [[]]
    for segment in _said(part.nodes, now, 1.0):
        if segment is None:
            runs.append([])
        else:
            runs[-1].append(segment)
    return Line(part.weight, tuple(map(_merged, runs)))


def _merged(run: list[Segment]) -> tuple[Segment, ...]:
    alike = groupby(run, lambda segment: segment.weight)
    return tuple(Segment("".join(piece.text for piece in same), weight) for weight, same in alike)


def _said(nodes: Iterable[Node], now: _Now, weight: float) -> Iterator[Segment | None]:
    """Segments as they are said now, with None for a BREAK."""
    for node in nodes:
        match node:
            case Text(text):
                yield Segment(text, weight)
            case Break():
                yield None
            case Emphasis(inner, factor):
                yield from _said(inner, now, max(-LIMIT, min(LIMIT, weight * factor)))
            case Schedule(before, after):
                early = now.step < node.switch(now.steps, now.earlier)
                yield from _said(before if early else after, now, weight)
            case Alternate(options):
                yield from _said(options[now.step % len(options)], now, weight)


def _turns(nodes: Iterable[Node], steps: int, earlier: int) -> set[int]:
    """The steps at which something may change."""
    turns: set[int] = set()
    for node in nodes:
        match node:
            case Emphasis(inner):
                turns |= _turns(inner, steps, earlier)
            case Schedule(before, after):
                turns.add(node.switch(steps, earlier))
                turns |= _turns(before, steps, earlier) | _turns(after, steps, earlier)
            case Alternate():
                turns |= set(range(steps))
    return turns


def _bounded(numeral: str, limit: float = LIMIT) -> float:
    return max(-limit, min(limit, float(numeral)))
