"""Request: everything that decides a picture, as one frozen value."""

import math
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
        for name in ("prompt", "negative_prompt"):
            if not isinstance(text := getattr(self, name), str):
                raise RequestError(f"{name} is text, got {text!r}")
            if len(text) > LONGEST_PROMPT:
                raise RequestError(f"{name} has {len(text)} characters; {LONGEST_PROMPT} is the most")
        for name in ("sampler", "style", "model"):
            if not isinstance(text := getattr(self, name), str | None):
                raise RequestError(f"{name} is a name, got {text!r}")
        _check_whole("count", self.count, 1, 64)
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, SEED_LIMIT - self.count)
        if self.steps is not None:
            _check_whole("steps", self.steps, 1, 1000)
        if self.guidance is not None:
            _check_guidance(self.guidance)
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise RequestError(f'there is no sampler "{self.sampler}"{suggestion(self.sampler, SAMPLERS)}')
        if self.size is not None:
            if not isinstance(self.size, tuple) or len(self.size) != 2:
                raise RequestError(f"size is (height, width) in pixels, got {self.size!r}")
            for name, side in zip(("height", "width"), self.size, strict=True):
                _check_whole(name, side, 16, 8192)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Request":
        """From plain values, as JSON gives them. Size may be [height, width] or a text for `parse_size`.

        Knows the names in ALIASES too. Raises RequestError for an unknown key or one that is given twice.
        """
        known = [field.name for field in fields(cls)]
        values: dict[str, object] = {}
        for key, value in data.items():
            name = ALIASES.get(key, key)
            if name not in known:
                raise RequestError(
                    f'a request has no "{key}"{suggestion(key, [*known, *ALIASES], shown=known)}'
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
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks the types

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; `from_dict` gives the same request back."""
        values = asdict(self)
        return values | {"size": None if self.size is None else list(self.size)}


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from "192" or "WIDTHxHEIGHT", as people write it. Raises RequestError otherwise."""
    match = re.fullmatch(r"\s*(\d{1,6})(?:\s*[xX×]\s*(\d{1,6}))?\s*", text)
    if match is None:
        raise RequestError(f'a size is a side such as 192 or WIDTHxHEIGHT such as 192x192, got "{text}"')
    width = int(match[1])
    return (int(match[2]) if match[2] else width), width


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise RequestError(f"{name} is a whole number from {low} to {high}, got {value!r}")


def _check_guidance(value: object) -> None:
    number = type(value) in (int, float)
    if not number or not math.isfinite(value) or not 0 <= value <= 30:  # type: ignore[arg-type, operator]
        raise RequestError(f"guidance is a number from 0 to 30, got {value!r}")
