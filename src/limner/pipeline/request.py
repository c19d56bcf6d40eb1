"""Request: everything that decides a picture, as one frozen value."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

from limner.diffusion.grids import GRIDS
from limner.diffusion.samplers import SAMPLERS
from limner.errors import RequestError
from limner.pipeline.picture import Picture
from limner.util.rng import SEED_LIMIT
from limner.util.suggest import suggestion

ALIASES = {  # what the same settings are called elsewhere
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "n": "count",
    "num_images_per_prompt": "count",
}
LONGEST_PROMPT = 10_000  # characters
NUMBERS = {  # least and most
    "guidance": (0, 30),
    "strength": (0.01, 1),
    "enlarge": (1, 4),
    "enlarge_strength": (0.01, 1),
    "refine_from": (0, 1),
    "rescale": (0, 1),
    "skip_layers": (0, 10),
    "vary_noise": (0, 1),
    "blend_at": (0, 1),
    "temperature": (0.01, 10),
    "top_p": (0.01, 1),
    "weight": (0, 2),
    "start": (0, 1),
    "end": (0, 1),
}
NAMES: dict[str, Collection[str]] = {"sampler": SAMPLERS, "grid": GRIDS}
SIDES = (16, 8192)  # pixels, least and most
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: what Python makes of bytes that are not UTF-8


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """A picture to be followed, such as edges or a pose, and the network that reads it."""

    image: Picture
    model: str  # file or folder of a control network
    weight: float = 1.0  # 0 to 2
    start: float = 0.0  # share of the steps from which it is heard
    end: float = 1.0  # share of the steps until which it is heard

    def __post_init__(self) -> None:
        if not isinstance(self.image, Picture):
            raise RequestError(f"a control follows a Picture, got {self.image!r}; see Picture.open")
        if not isinstance(self.model, str) or not self.model:
            raise RequestError(f"a control needs the file or folder of its network, got {self.model!r}")
        for name in ("weight", "start", "end"):
            _number(name, getattr(self, name))
        if not self.start < self.end:
            raise RequestError(f"a control is heard from {self.start:g} to {self.end:g}; give start < end")


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
    model: str | None = None  # a family, a folder or a file with weights; None is whichever model draws it
    # -- what published models can do besides ----------------------------------------------------------------
    grid: str | None = None  # where the sampler stops: a name in diffusion.grids.GRIDS
    image: Picture | None = None  # to begin with
    strength: float = 0.75  # how much of it to draw anew, above 0 to 1: a share of the steps
    mask: Picture | None = None  # white where to draw, black what to keep of `image`
    feather: int = 4  # pixels over which the mask fades, 0 to 256
    extend: tuple[int, int, int, int] = (0, 0, 0, 0)  # pixels around `image`: left, top, right, bottom
    controls: tuple[Control, ...] = ()  # pictures to be followed
    enlarge: float = 1.0  # draw again, so many times larger, 1 to 4
    enlarge_strength: float = 0.7  # how much of the enlarged picture to draw anew
    refiner: str | None = None  # a model that draws the last steps
    refine_from: float = 0.8  # share of the steps after which it does
    tiling: bool = False  # make opposite edges fit together
    transparent: bool = False  # make what the mask keeps transparent
    clip_skip: int | None = None  # layer of the text encoders that is used, 1 the last
    emphasis: str = "mean"  # what weights in the prompt do: mean, plain, comfy, ignore
    rescale: float = 0.0  # of guidance, 0 to 1, against overexposure
    skip_layers: float = 0.0  # of guidance by leaving layers out, 0 to 10 (SD3.5 medium: 2.8)
    vary: Picture | None = None  # its content is drawn again, as CLIP sees it
    vary_noise: float = 0.0  # how loosely, 0 to 1
    blend: Picture | str | None = None  # draw what lies between: a text, or a picture's content
    blend_at: float = 0.5  # how far towards it, 0 to 1
    rerank: int = 1  # draw so many candidates for each picture and keep the best, 1 to 64
    temperature: float | None = None  # of what is drawn token by token, 0.01 to 10
    top_k: int | None = None  # likeliest tokens that are chosen from; 0: all
    top_p: float | None = None  # share of the likeliest that are, above 0 to 1

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
        if values.get("vary") is not None:
            values.setdefault("prompt", "")
        if "prompt" not in values:
            raise RequestError("a request needs a prompt")
        if isinstance(size := values.get("size"), str):
            values["size"] = parse_size(size)
        for name in ("size", "extend"):
            if isinstance(sides := values.get(name), list):
                values[name] = tuple(sides)
        for name in ("image", "mask", "vary", "blend"):
            if values.get(name) is not None and (name != "blend" or isinstance(values[name], Mapping)):
                values[name] = Picture.read(values[name])
        if isinstance(controls := values.get("controls"), list):
            values["controls"] = tuple(_control(control) for control in controls)
        _check({field.name: field.default for field in fields(cls)} | values)
        for name in NUMBERS:
            if type(values.get(name)) is int:
                values[name] = float(values[name])  # type: ignore[arg-type]  # just checked
        return cls(**values)  # type: ignore[arg-type]  # just checked

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; `from_dict` gives the same request back, if the files of its pictures are
        still there. What only some models can do is left out where it was not asked for."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        extra = [field.name for field in fields(self)][_PLAIN:]
        told = {
            name: value for name, value in values.items() if name not in extra or value != _DEFAULTS[name]
        }
        return {name: _told(value) for name, value in told.items()}


_PLAIN = [field.name for field in fields(Request)].index("grid")  # the settings before it are always told
_DEFAULTS = {field.name: field.default for field in fields(Request)}


def _told(value: object) -> object:
    if isinstance(value, Picture):
        return value.told()
    if isinstance(value, Control):
        return {field.name: _told(getattr(value, field.name)) for field in fields(value)}
    return [_told(one) for one in value] if isinstance(value, tuple) else value


def _control(told: object) -> Control:
    if isinstance(told, Control):
        return told
    known = [field.name for field in fields(Control)]
    if not isinstance(told, Mapping) or not {"image", "model"} <= set(told) <= set(known):
        raise RequestError(f"a control is a mapping of {', '.join(known)}, got {told!r}")
    return Control(**{**told, "image": Picture.read(told["image"])})


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from "192" or "WIDTHxHEIGHT", as people write it. Raises RequestError otherwise."""
    match = re.fullmatch(r"\s*([0-9]{1,6})(?:\s*[xX×]\s*([0-9]{1,6}))?\s*", text)
    if match is None:
        told = "a side such as 192 or WIDTHxHEIGHT such as 192x192, each {} to {} pixels".format(*SIDES)
        raise RequestError(f'a size is {told}, got "{text}"')
    width = int(match[1])
    return (int(match[2]) if match[2] else width), width


def parse_sides(text: str) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) from "64,0,64,0"; one number is all four. Raises RequestError otherwise."""
    numbers = [part.strip() for part in text.split(",")]
    if len(numbers) not in (1, 4) or not all(re.fullmatch("[0-9]{1,5}", number) for number in numbers):
        raise RequestError(f'sides are LEFT,TOP,RIGHT,BOTTOM in pixels, such as 64,0,64,0, got "{text}"')
    left, top, right, bottom = (int(number) for number in (numbers * 4)[:4])
    return left, top, right, bottom


def _check(values: Mapping[str, object]) -> None:
    """Raise RequestError unless these values, one for each field, are a request."""
    for name in ("prompt", "negative_prompt", "blend"):
        text = values[name]
        if not isinstance(text, str) and name != "blend":
            raise RequestError(f"{name} is text, got {text!r}")
        if isinstance(text, str) and len(text) > LONGEST_PROMPT:
            raise RequestError(f"{name} has {len(text)} characters; {LONGEST_PROMPT} is the most")
    for name in ("sampler", "style", "model", "grid", "refiner", "emphasis"):
        if not isinstance(values[name], str if name == "emphasis" else str | None):
            raise RequestError(f"{name} is a name, got {values[name]!r}")
    for name, text in values.items():
        if isinstance(text, str) and (broken := SURROGATE.search(text)):
            raise RequestError(f"{name} is not Unicode at character {broken.start()}; type it in UTF-8")
    count = _whole("count", values["count"], 1, 64)
    spans = {"seed": (0, SEED_LIMIT - count), "steps": (1, 1000), "top_k": (0, 100_000), "clip_skip": (1, 32)}
    spans |= {"feather": (0, 256), "rerank": (1, 64)}
    for name, (low, high) in spans.items():
        if values[name] is not None or name in ("feather", "rerank"):
            _whole(name, values[name], low, high)
    for name in NUMBERS.keys() & values.keys():
        if values[name] is not None or name not in ("guidance", "temperature", "top_p"):
            _number(name, values[name])
    for name, known in NAMES.items():
        said = values[name]
        if isinstance(said, str) and said not in known:
            raise RequestError(f'there is no {name} "{said}"{suggestion(said, known)}')
    for name in ("image", "mask", "vary"):
        if not isinstance(values[name], Picture | None):
            raise RequestError(f"{name} is a Picture, got {values[name]!r}; see Picture.open")
    if not isinstance(values["blend"], Picture | str | None):
        raise RequestError(f"blend is a text or a Picture, got {values['blend']!r}; see Picture.open")
    if values["mask"] is not None and values["image"] is None:
        raise RequestError("a mask needs the image that it belongs to")
    extend = values["extend"]
    if not isinstance(extend, tuple) or len(extend) != 4:
        raise RequestError(f"extend is (left, top, right, bottom) in pixels, got {extend!r}")
    for side in extend:
        _whole("extend", side, 0, 4096)
    if any(extend) and values["image"] is None:
        raise RequestError("extend draws on around an image; give the image")
    if values["transparent"] and values["mask"] is None:
        raise RequestError("transparent makes what a mask keeps transparent; give a mask")
    controls = values["controls"]
    if not isinstance(controls, tuple) or not all(isinstance(one, Control) for one in controls):
        raise RequestError(f"controls is a tuple of Control, got {controls!r}")
    for name in ("tiling", "transparent"):
        if not isinstance(values[name], bool):
            raise RequestError(f"{name} is true or false, got {values[name]!r}")
    if (size := values["size"]) is not None:
        if not isinstance(size, tuple) or len(size) != 2:
            raise RequestError(f"size is (height, width) in pixels, got {size!r}")
        for name, side in zip(("height", "width"), size, strict=True):
            _whole(name, side, *SIDES)


def _number(name: str, value: object) -> None:
    low, high = NUMBERS[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]  # false for NaN, too
        raise RequestError(f"{name} is a number from {low} to {high}, got {value!r}")


def _whole(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(f"{name} is a whole number from {low} to {high}, got {value!r}")
    return value
