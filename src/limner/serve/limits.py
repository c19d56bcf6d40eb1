"""Before a job is queued: is it a request that its model can draw, what does it cost, may its owner pay.

cost = pictures x height x width x steps x (2 with guidance, which asks the network twice) / 1,000,000
"""

import math
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from limner.errors import RequestError
from limner.pipeline.order import size_of
from limner.pipeline.picture import Picture
from limner.pipeline.request import Request
from limner.serve import files
from limner.serve.batching import shape_of
from limner.serve.engine import ModelInfo
from limner.serve.errors import Refused
from limner.serve.jobs import Drawn, NewJob, TooMany
from limner.serve.settings import Settings
from limner.util.suggest import suggestion

ID = re.compile("[0-9a-f]{32}")  # of a job or a picture
TEXTS = ("prompt", "negative_prompt", "blend")
SCALES = (1.0, 4.0)  # of an enlargement
FACTOR = 4  # by which upscalers draw larger at a time, at most; what is asked for comes of that
OWNERS = 10_000  # whose pace is remembered

Find = Callable[[str], Drawn]  # a picture of the caller's; raises NotFound


def prepared(
    asked: Mapping[str, object],
    *,
    models: Sequence[ModelInfo],
    settings: Settings,
    pictures: Find,
    owner: str,
    metadata: str,
    parent: str | None = None,
    action: str | None = None,
    index: int | None = None,
) -> NewJob:
    """A job ready for the store: every choice made, its seed settled, its cost known.

    Raises RequestError for what cannot be drawn or is above the server's limits, what `pictures` raises, and
    Refused, 503, while models are being opened.
    """
    if "upscale" in asked:
        request, model, shape, cost = _enlargement(asked, models, settings, pictures)
    else:
        request, model, shape, cost = _drawing(asked, models, settings, pictures)
    if cost > settings.most_cost:
        raise RequestError(
            f"this costs {cost:,.0f} megapixel-steps, and {settings.most_cost:,.0f} are the most for one "
            "job; ask for fewer or smaller pictures, or fewer steps"
        )
    return NewJob(
        owner=owner,
        request=request,
        model=model,
        shape=shape,
        cost=cost,
        parent=parent,
        action=action,
        index=index,
        metadata=metadata,
    )


def model_of(name: str | None, models: Sequence[ModelInfo]) -> ModelInfo:
    """The model of this name, the first where there is none. Raises RequestError."""
    for model in models:
        if name in (None, model.name):
            return model
    if not models:
        raise Refused(503, "starting", "no model is open yet; try again in a moment", retry_after=5)
    raise RequestError(f'there is no model "{name}"{suggestion(str(name), [one.name for one in models])}')


def cost_of(request: Request) -> float:
    """Megapixel-steps of a request with every choice made. The most it can be: a strength saves nothing."""
    assert request.size is not None
    area = request.size[0] * request.size[1] / 1e6
    passes = 1.0 + (request.enlarge**2 if request.enlarge != 1 else 0.0)
    twice = 1 if request.guidance is not None and request.guidance <= 1 else 2
    cost = request.count * request.rerank * area * (request.steps or 1) * passes * twice
    return max(cost, 1e-6)


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Pace:
    """How fast an owner may submit, to this process. What it may spend an hour, the store knows."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate  # jobs a second
        self.burst = burst  # jobs at once
        self.clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def step(self, owner: str) -> None:
        """One more job of this owner. Raises TooMany when they come too fast."""
        with self._lock:
            now = self.clock()
            bucket = self._buckets.setdefault(owner, _Bucket(float(self.burst), now))
            self._buckets.move_to_end(owner)
            while len(self._buckets) > OWNERS:
                self._buckets.popitem(last=False)
            bucket.tokens = min(self.burst, bucket.tokens + (now - bucket.at) * self.rate)
            bucket.at = now
            if bucket.tokens < 1:
                raise TooMany(
                    f"more than {self.rate:g} jobs a second; wait a moment", (1 - bucket.tokens) / self.rate
                )
            bucket.tokens -= 1


def _drawing(
    asked: Mapping[str, object], models: Sequence[ModelInfo], settings: Settings, pictures: Find
) -> tuple[dict[str, object], str, str, float]:
    told, brought = _without_pictures(asked, pictures)
    request = Request.from_dict(told)
    for name in TEXTS:
        if "\0" in str(getattr(request, name) or ""):
            raise RequestError(f"{name} holds a NUL, which no database keeps; leave it out")
    model = model_of(request.model, models)
    _check(request, model, settings)
    request = _settled(request, model, settings, brought.get("image"))
    _check_size(request, model, settings)
    plain = request.to_dict()
    for name, drawn in brought.items():
        if name.startswith("controls."):
            controls = plain["controls"]
            assert isinstance(controls, list)
            controls[int(name.removeprefix("controls."))]["image"] = {"picture": drawn.id}
        else:
            plain[name] = {"picture": drawn.id}
    return plain, model.name, shape_of(plain, model), cost_of(request)


def _without_pictures(
    asked: Mapping[str, object], pictures: Find
) -> tuple[dict[str, object], dict[str, Drawn]]:
    """A request for `from_dict`, with stand-ins, and which pictures they stand for."""
    told = dict(asked)
    brought: dict[str, Drawn] = {}
    for name in ("image", "mask", "vary", "blend"):
        value = told.get(name)
        if value is None or (name == "blend" and isinstance(value, str)):
            continue
        brought[name] = found(value, name, pictures)
        told[name] = _stand_in()
    controls = told.pop("controls", None) or []
    if not isinstance(controls, list | tuple) or not all(isinstance(one, Mapping) for one in controls):
        raise RequestError("controls is a list of {image, model, weight, start, end}")
    followed: list[dict[str, object]] = []
    for number, control in enumerate(controls):
        network = control.get("model")
        if not isinstance(network, str) or not files.NAME.fullmatch(network):
            raise RequestError(f"a control's model is the name of one of the server's, got {network!r}")
        brought[f"controls.{number}"] = found(control.get("image"), "controls.image", pictures)
        followed.append({**control, "image": _stand_in()})
    if followed:
        told["controls"] = followed
    return told, brought


def found(value: object, name: str, pictures: Find) -> Drawn:
    """The picture that {"picture": ID} names. Raises RequestError for anything else, NotFound if none is."""
    told = value.get("picture") if isinstance(value, Mapping) and set(value) == {"picture"} else None
    if not isinstance(told, str) or not ID.fullmatch(told):
        raise RequestError(f'{name} is {{"picture": ID}} with the id of a picture here')
    return pictures(told)


def _stand_in() -> Picture:
    return Picture(Image.new("RGB", (1, 1)))


def _check(request: Request, model: ModelInfo, settings: Settings) -> None:
    """Raises RequestError for wishes that the model cannot meet, or that the server does not allow."""
    if request.count > settings.most_count:
        raise RequestError(f"{settings.most_count} pictures are the most for one job, got {request.count}")
    if request.steps is not None and request.steps > settings.most_steps:
        raise RequestError(f"{settings.most_steps} steps are the most, got {request.steps}")
    if request.style is not None and request.style not in model.styles:
        raise RequestError(f'there is no style "{request.style}"{suggestion(request.style, model.styles)}')
    if request.refiner is not None:
        raise RequestError("a refiner cannot be chosen here; leave it out")
    wishes = {
        "image": request.image is not None,
        "mask": request.mask is not None,
        "extend": any(request.extend),
        "controls": bool(request.controls),
        "loras": bool(re.search(r"<\s*lora\s*:", request.prompt + request.negative_prompt, re.IGNORECASE)),
        "negative_prompt": bool(request.negative_prompt),
        "vary": request.vary is not None,
        "blend": request.blend is not None,
    }
    if beyond := [name for name, wished in wishes.items() if wished and name not in model.can]:
        raise RequestError(f"the model {model.name} knows no {', '.join(beyond)}; leave it out")


def _settled(request: Request, model: ModelInfo, settings: Settings, image: Drawn | None) -> Request:
    """With every choice made, so that drawing it again draws the same."""
    usual = model.defaults
    if request.sampler == "lcm" and isinstance(lcm := usual.get("lcm"), Mapping):
        usual = lcm
    size = request.size
    if size is None:
        size = model.default_size
        if image is not None:
            factor = usual.get("factor", 1)
            size = size_of(
                request,
                size,
                factor if isinstance(factor, int) else 1,
                square=usual.get("square") is True,
                picture=(image.width, image.height),
            )
            if model.sizes is not None and not any(request.extend):
                size = within(size, model.sizes[0], min(model.sizes[1], settings.most_side))
    settled = {
        name: usual.get(name) if (said := getattr(request, name)) is None else said
        for name in ("steps", "guidance", "sampler", "grid")
    }
    return Request.from_dict(
        {
            **_shallow(request),
            **settled,
            "size": size,
            "seed": secrets.randbelow(2**32) if request.seed is None else request.seed,
            "model": model.name,
        }
    )


def within(size: tuple[int, int], least: int, most: int) -> tuple[int, int]:
    """A size of this shape, as near as can be, with no side outside of these: in steps of 8 pixels."""
    share = min(most / max(size), max(1.0, least / min(size)))
    if share == 1:
        return size
    height, width = (min(most, max(least, round(side * share / 8) * 8)) for side in size)
    return height, width


def _shallow(request: Request) -> dict[str, object]:
    return {name: getattr(request, name) for name in Request.__dataclass_fields__}


def _check_size(request: Request, model: ModelInfo, settings: Settings) -> None:
    assert request.size is not None
    least, most = model.sizes or (16, settings.most_side)
    most = min(most, settings.most_side)
    if not least <= min(request.size) <= max(request.size) <= most:
        height, width = request.size
        raise RequestError(
            f"the model {model.name} draws sides of {least} to {most} pixels here, got {width}x{height}"
        )
    if model.defaults.get("square") is True and request.size[0] != request.size[1]:
        height, width = request.size
        raise RequestError(f"the model {model.name} draws squares, and {width}x{height} is none")
    if max(request.size) * request.enlarge > 2 * settings.most_side:
        raise RequestError(f"enlarged, a side would be above {2 * settings.most_side} pixels; ask for less")


def _enlargement(
    asked: Mapping[str, object], models: Sequence[ModelInfo], settings: Settings, pictures: Find
) -> tuple[dict[str, object], str, str, float]:
    """A picture made larger, without being drawn again."""
    told = asked["upscale"]
    if not isinstance(told, Mapping) or not {"picture"} <= set(told) <= {"picture", "scale"}:
        raise RequestError('upscale is {"picture": ID, "scale": 2}')
    if unknown := set(asked) - {"upscale", "model"}:
        raise RequestError(f"upscale stands alone; leave out {', '.join(sorted(map(str, unknown)))}")
    scale = told.get("scale", 2.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not SCALES[0] <= scale <= SCALES[1]:
        raise RequestError(f"scale is a number from {SCALES[0]:g} to {SCALES[1]:g}, got {scale!r}")
    picture = found({"picture": told["picture"]}, "upscale", pictures)
    if max(picture.width, picture.height) * scale > 2 * settings.most_side:
        raise RequestError(
            f"{picture.width}x{picture.height} times {scale:g} would have a side above "
            f"{2 * settings.most_side} pixels; ask for less"
        )
    named = asked.get("model")
    model = model_of(named if isinstance(named, str) else None, models)
    passes = max(1, math.ceil(math.log(scale, FACTOR)))
    way = picture.width * picture.height * FACTOR ** (2 * passes)  # pixels that are drawn, then made fewer
    if way > (4 * settings.most_side) ** 2:
        raise RequestError(
            f"{picture.width}x{picture.height} is too large to be made larger: {way:,} pixels on the way, "
            f"and {(4 * settings.most_side) ** 2:,} are the most"
        )
    cost = max(way / 1e6, 1e-6)
    request: dict[str, object] = {"upscale": {"picture": picture.id, "scale": float(scale)}}
    return request, model.name, f"upscale {model.name} {secrets.token_hex(8)}", cost
