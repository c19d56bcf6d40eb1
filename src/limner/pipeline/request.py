"""Request: everything that decides a picture, as one frozen value."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from limner.diffusion.samplers import SAMPLERS
from limner.errors import RequestError
from limner.util.rng import SEED_LIMIT
from limner.util.suggest import suggestion

ALIASES = {  # what the same settings are called elsewhere
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "n": "count",
    "num_images_per_prompt": "count",
}
LONGEST_PROMPT = 10_000  # characters
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: what Python makes of bytes that are not UTF-8


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to draw. None leaves a choice to the model; a result carries the request with every choice made.

    Raises RequestError, with a suggestion where there is one, for anything that is no request.
    """

    prompt: str
    negative_prompt: str = ""  # what to move away from
    seed: int | None = None  # of the first picture, the next has seed + 1; None draws one at random
    count: int = 4  # pictures, 1 to 64
    steps: int | None = None  # of the sampler, 1 to 1000
    guidance: float | None = None  # scale, 0 to 30; 1 is the prompt alone
    sampler: str | None = None  # a name in diffusion.samplers.SAMPLERS
    size: tuple[int, int] | None = None  # (height, width) in pixels
    style: str | None = None  # an art style of the model, added to the prompt
    model: str | None = None  # a family, or a folder with weights; None is whichever model draws it

    def __post_init__(self) -> None:
        _check({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_dict(cls, data: object) -> "Request":
        """From plain values, as JSON gives them. Size may be [height, width] or a text for `parse_size`.

        Knows the names in ALIASES too. Raises RequestError for what is no mapping, for an unknown key or one
        that is given twice.
        """
        if not isinstance(data, Mapping):
            raise RequestError(f"a request is a mapping such as {{'prompt': 'a cat'}}, got {data!r}")
        known = [field.name for field in fields(cls)]
        values: dict[str, object] = {}
        for key, value in data.items():
            name = ALIASES.get(key, key)
            if name not in known:
                raise RequestError(
                    f'a request has no "{key}"{suggestion(str(key), [*known, *ALIASES], shown=known)}'
                )
            if name in values:
                raise RequestError(f'"{name}" is given twice, once as "{key}"; give it once')
            values[name] = value
        if "prompt" not in values:
            raise RequestError("a request needs a prompt")
        size = values.get("size")
        if isinstance(size, str):
            values["size"] = parse_size(size)
        elif isinstance(size, list):
            values["size"] = tuple(size)
        _check({field.name: field.default for field in fields(cls)} | values)
        if type(values.get("guidance")) is int:
            values["guidance"] = float(values["guidance"])  # type: ignore[arg-type]  # just checked
        return cls(**values)  # type: ignore[arg-type]  # just checked

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; `from_dict` gives the same request back."""
        values = asdict(self)
        return values | {"size": None if self.size is None else list(self.size)}


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from "192" or "WIDTHxHEIGHT", as people write it. Raises RequestError otherwise."""
    match = re.fullmatch(r"\s*([0-9]{1,6})(?:\s*[xX×]\s*([0-9]{1,6}))?\s*", text)
    if match is None:
        raise RequestError(f'a size is a side such as 192 or WIDTHxHEIGHT such as 192x192, got "{text}"')
    width = int(match[1])
    return (int(match[2]) if match[2] else width), width


def _check(values: Mapping[str, object]) -> None:
    """Raise RequestError unless these values, one for each field, are a request."""
    for name in ("prompt", "negative_prompt"):
        text = values[name]
        if not isinstance(text, str):
            raise RequestError(f"{name} is text, got {text!r}")
        if len(text) > LONGEST_PROMPT:
            raise RequestError(f"{name} has {len(text)} characters; {LONGEST_PROMPT} is the most")
    for name in ("sampler", "style", "model"):
        if not isinstance(values[name], str | None):
            raise RequestError(f"{name} is a name, got {values[name]!r}")
    for name, text in values.items():
        if isinstance(text, str) and (broken := SURROGATE.search(text)):
            raise RequestError(f"{name} is not Unicode at character {broken.start()}; type it in UTF-8")
    count = _whole("count", values["count"], 1, 64)
    if values["seed"] is not None:
        _whole("seed", values["seed"], 0, SEED_LIMIT - count)
    if values["steps"] is not None:
        _whole("steps", values["steps"], 1, 1000)
    if (guidance := values["guidance"]) is not None:
        number = isinstance(guidance, int | float) and not isinstance(guidance, bool)
        if not number or not 0 <= guidance <= 30:  # type: ignore[operator]  # false for NaN, too
            raise RequestError(f"guidance is a number from 0 to 30, got {guidance!r}")
    sampler = values["sampler"]
    if isinstance(sampler, str) and sampler not in SAMPLERS:
        raise RequestError(f'there is no sampler "{sampler}"{suggestion(sampler, SAMPLERS)}')
    if (size := values["size"]) is not None:
        if not isinstance(size, tuple) or len(size) != 2:
            raise RequestError(f"size is (height, width) in pixels, got {size!r}")
        for name, side in zip(("height", "width"), size, strict=True):
            _whole(name, side, 16, 8192)


def _whole(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(f"{name} is a whole number from {low} to {high}, got {value!r}")
    return value
