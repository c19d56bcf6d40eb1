"""Between published tensor names and ours. A key map is data and is read in both directions.

    KEYS = (
        Rule("conv_in.{rest}", "enter.{rest}"),                                    # {rest}: no dot in it
        Rule("blocks.{i}.to_out.0.{rest}", "blocks.{i}.out.{rest}"),
        Rule("attn.in_proj_weight", ("attn.q.weight", "attn.k.weight", "attn.v.weight")),
        Rule("position_ids", None),                                                # known, and dropped
        Rule("deep.{rest*}", "deep.{rest*}"),                                      # {rest*}: anything
    )

The first rule that matches wins, in either direction. So two rules may lead to the same name of ours: both
spellings are read, and the first is the one that is written. Tensors on the meta device go through as well.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from limner.errors import WeightsError

SHOWN = 5  # names in a message
BLANK = re.compile(r"\{([a-z_]+)(\*?)\}")


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to a tensor besides its name: `read` makes theirs ours, `write` makes ours theirs."""

    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], Tensor]
    rows: bool = False  # whether it only moves rows, so that it goes for whatever is multiplied from the left


def _flat(weight: Tensor) -> Tensor:
    return rearrange(weight, "o i 1 1 -> o i")


def _pointwise(weight: Tensor) -> Tensor:
    return rearrange(weight, "o i -> o i 1 1")


def _turned(weight: Tensor) -> Tensor:
    return rearrange(weight, "i o -> o i")


POINTWISE_TO_LINEAR = Change(_flat, _pointwise)  # their 1x1 convolution is our linear layer
LINEAR_TO_POINTWISE = Change(_pointwise, _flat)  # the other way round
TRANSPOSED = Change(_turned, _turned)  # a bare projection that they multiply from the other side


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a key map; both sides are whole names with the same blanks.

    A tuple as `ours`: their tensor is ours, concatenated along axis 0 in equal parts or in `shares`; `change`
    works on the whole. Raises ValueError when a name could be read in two ways.
    """

    theirs: str
    ours: str | tuple[str, ...] | None  # None: known, and dropped when read
    change: Change | None = None
    shares: tuple[int, ...] = ()  # of the parts of a fused tensor, such as 1, 1, 1, 4; (): they are equal
    twin: bool = False  # a copy that some files hold besides: read where there is no other

    def __post_init__(self) -> None:
        blanks = [_blanks(side) for side in (self.theirs, *self.parts)]
        if any(other != blanks[0] for other in blanks[1:]):
            raise ValueError(f"{self.theirs!r} and {self.ours!r} do not have the same blanks")

    @property
    def parts(self) -> tuple[str, ...]:
        """Our names, also when it is one or none."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours or ()

    def split(self, tensor: Tensor) -> tuple[Tensor, ...] | None:
        """A fused tensor's parts; None when it cannot be divided so."""
        if len(self.parts) == 1:
            return (tensor,)
        shares = self.shares or (1,) * len(self.parts)
        if not tensor.ndim or tensor.shape[0] % sum(shares):
            return None
        one = tensor.shape[0] // sum(shares)
        return torch.split(tensor, [share * one for share in shares])


KeyMap = tuple[Rule, ...]


def our_names(rules: KeyMap, names: Iterable[str]) -> dict[str, tuple[str, ...] | None]:
    """What published names are called here: one name each, several when it is fused, none when it is dropped,
    and None when no rule knows it."""
    index = _by_theirs(rules)
    found = {name: index.find(name) for name in names}
    return {
        name: tuple(_filled(part, match[1]) for part in match[0].parts) if match else None
        for name, match in found.items()
    }


def to_ours(rules: KeyMap, tensors: Mapping[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    """Published tensors under our names. `where` begins the messages.

    Raises WeightsError with the names when no rule knows a tensor, when two come out under one name, or when
    a tensor cannot be split or changed as its rule says.
    """
    index = _by_theirs(rules)
    ours: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    unknown = []
    matches = [(name, tensor, index.find(name)) for name, tensor in tensors.items()]
    for name, tensor, found in sorted(matches, key=lambda match: bool(match[2] and match[2][0].twin)):
        if found is None:
            unknown.append(name)
            continue
        rule, blanks = found
        names = [_filled(part, blanks) for part in rule.parts]
        if rule.ours is None or (rule.twin and ours.keys() >= set(names)):
            continue
        changed = _changed(rule.change.read if rule.change else None, tensor, name, where)
        if (pieces := rule.split(changed)) is None:
            raise WeightsError(
                f"{where}: {name} is {tuple(tensor.shape)}; it should hold {sum(rule.shares) or len(names)} "
                "equal parts along its first axis"
            )
        for part, piece in zip(names, pieces, strict=True):
            if part in ours:
                raise WeightsError(f"{where}: both {source[part]} and {name} are our {part}; one is too many")
            ours[part], source[part] = piece, name
    if unknown:
        raise WeightsError(f"{where}: {len(unknown)} unknown tensors: {listing(unknown)}")
    return ours


def to_theirs(rules: KeyMap, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their published names. What `to_ours` drops is not written.

    Raises WeightsError with the names when no rule knows a tensor, when a fused tensor lacks a part, or when
    two come out under one name.
    """
    index = _Index((part, rule) for rule in rules for part in rule.parts)
    theirs: dict[str, Tensor] = {}
    unknown: list[str] = []
    used: set[str] = set()
    for name in tensors:
        if name in used:
            continue
        if (found := index.find(name)) is None:
            unknown.append(name)
            continue
        rule, blanks = found
        names = [_filled(part, blanks) for part in rule.parts]
        target = _filled(rule.theirs, blanks)
        if absent := [part for part in names if part not in tensors]:
            raise WeightsError(f"{target} cannot be written: it needs {listing(absent)} as well")
        if target in theirs or used.intersection(names):
            raise WeightsError(f"two tensors would be written as {target}; {name} is the second")
        used.update(names)
        whole = tensors[name] if len(names) == 1 else torch.cat([tensors[part] for part in names])
        theirs[target] = _changed(rule.change.write if rule.change else None, whole, name, "writing")
    if unknown:
        raise WeightsError(f"{len(unknown)} tensors without a published name: {listing(unknown)}")
    return theirs


def sources(rules: KeyMap, names: Iterable[str]) -> dict[str, tuple[Rule, tuple[str, ...]]]:
    """{published name: (its rule, what it is of ours)} of the tensors in which `names` of ours lie. What has
    no published name is left out."""
    index = _Index((part, rule) for rule in rules for part in rule.parts)
    matches = (index.find(name) for name in names)
    return {
        _filled(rule.theirs, blanks): (rule, tuple(_filled(part, blanks) for part in rule.parts))
        for rule, blanks in (match for match in matches if match)
    }


def listing(names: Iterable[str]) -> str:
    """The first few names and how many more there are."""
    every = sorted(names)
    rest = len(every) - SHOWN
    return ", ".join(every[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


class _Index:
    """Finds the first rule for a name without trying every pattern: by table or by its beginning."""

    def __init__(self, sides: Iterable[tuple[str, Rule]]) -> None:
        self.whole: dict[str, tuple[int, Rule]] = {}
        self.patterns: list[tuple[str, int, Rule, re.Pattern[str]]] = []
        for place, (side, rule) in enumerate(sides):
            if "{" in side:
                self.patterns.append((side.partition("{")[0], place, rule, _compiled(side)))
            else:
                self.whole.setdefault(side, (place, rule))

    def find(self, name: str) -> tuple[Rule, dict[str, str]] | None:
        """The rule and what stands in its blanks."""
        exact = self.whole.get(name)
        for prefix, place, rule, pattern in self.patterns:
            if exact and place > exact[0]:
                break
            if name.startswith(prefix) and (match := pattern.fullmatch(name)):
                return rule, match.groupdict()
        return (exact[1], {}) if exact else None


@lru_cache(maxsize=16)
def _by_theirs(rules: KeyMap) -> _Index:
    return _Index((rule.theirs, rule) for rule in rules)


def _changed(
    change: Callable[[Tensor], Tensor] | None, tensor: Tensor, name: str, where: str | Path
) -> Tensor:
    if change is None:
        return tensor
    try:
        return change(tensor)
    except (RuntimeError, ValueError, IndexError):
        raise WeightsError(
            f"{where}: {name} is {tuple(tensor.shape)}, which its rule cannot change"
        ) from None


def _blanks(side: str) -> dict[str, str]:
    """The blanks of a pattern, {name: "*" or ""}. One in each segment between dots and one star in all: more
    could be filled in two ways."""
    found = [(match[1], match[2]) for match in BLANK.finditer(side)]
    crowded = any(len(BLANK.findall(segment)) > 1 for segment in side.split("."))
    if crowded or sum(star == "*" for _, star in found) > 1 or len(dict(found)) != len(found):
        raise ValueError(f"{side!r} can be read in two ways")
    if "{" in BLANK.sub("", side) or "}" in BLANK.sub("", side):
        raise ValueError(f"{side!r} is not a pattern: blanks are {{name}} or {{name*}}, in small letters")
    return dict(found)


@lru_cache(maxsize=4096)
def _compiled(side: str) -> re.Pattern[str]:
    pieces = BLANK.split(side)  # text, name, star, text, name, star, ..., text
    pattern = re.escape(pieces[0])
    for name, star, text in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        pattern += f"(?P<{name}>{'.*' if star else '[^.]+'})" + re.escape(text)
    return re.compile(pattern, re.DOTALL)


def _filled(side: str, blanks: Mapping[str, str]) -> str:
    return BLANK.sub(lambda match: blanks[match[1]], side)
