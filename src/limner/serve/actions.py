"""What can be done with a picture of a finished job. Each is a request again: tasks are data.

vary_subtle, vary_strong   begin with the picture, and draw a little or much of it anew
reroll                     the same request, another seed
remix                      begin with the picture, under another prompt
region                     draw anew where a mask is white
zoom                       the picture smaller, in the middle of what is drawn around it
pan                        the picture goes on at one side
upscale                    the same picture with more pixels; nothing is drawn
"""

from collections.abc import Mapping, Sequence

from limner.errors import RequestError
from limner.serve.engine import ModelInfo
from limner.serve.errors import Refused
from limner.serve.jobs import Drawn, Job, NotFound, State
from limner.serve.limits import model_of, within
from limner.serve.schemas import ActionIn
from limner.serve.store import Store

STRENGTHS = {"vary_subtle": 0.4, "vary_strong": 0.8, "remix": 0.85, "region": 1.0}
AROUND = 1.0  # strength of zoom and pan, where the model has none of its own
NOISE = {"vary_subtle": 0.1, "vary_strong": 0.5, "remix": 0.5}  # of models that see a picture's content alone
BEGUN = ("image", "strength", "mask", "extend", "transparent", "vary", "vary_noise")  # how a parent began
FACTORS = {"zoom": 2.0, "pan": 1.5, "upscale": 2.0}
STEP = 8  # pixels, of which sides are multiples
ANCESTORS = 100  # jobs that are looked through for one that was drawn


def origin(store: Store, job: Job, owner: str) -> Mapping[str, object]:
    """The request by which a job's pictures were drawn: of one that only enlarged, its parent's.

    Raises RequestError where there is none."""
    found: Job | None = job
    for _ in range(ANCESTORS):
        if found is None:
            break
        if "upscale" not in found.request:
            return found.request
        found = None if found.parent is None else store.get(found.parent, owner)
    raise RequestError("how this picture was drawn is not known; send it as `image` of a new job")


def request_of(
    parent: Job, drawn_by: Mapping[str, object], asked: ActionIn, models: Sequence[ModelInfo]
) -> dict[str, object]:
    """The request that an action on a picture of `parent` comes to; `drawn_by` is its `origin`.

    Raises Refused, 409, while the job has not ended well, NotFound for a picture that is not there, and
    RequestError for an action that lacks something.
    """
    if parent.state is not State.DONE:
        raise Refused(409, "not_done", f"this job is {parent.state}; act on it when it is done")
    picture = next((one for one in parent.pictures if one.index == asked.index), None)
    if picture is None:
        raise NotFound(f"this job has no picture {asked.index}, or it was deleted")
    named = drawn_by.get("model") or parent.model
    if asked.action == "upscale":
        scale = asked.factor or FACTORS["upscale"]
        return {"upscale": {"picture": picture.id, "scale": scale}, "model": named}
    model = model_of(str(named), models)
    request = {name: value for name, value in drawn_by.items() if name not in ("seed", *BEGUN)}
    begun = {name: drawn_by[name] for name in BEGUN if name in drawn_by}
    for name in ("prompt", "count", "seed"):
        if (value := getattr(asked, name)) is not None:
            request[name] = value
    size = _size(parent, drawn_by, picture, model)
    match asked.action:
        case "reroll":
            return request | begun
        case "vary_subtle" | "vary_strong":
            return request | _begin(picture, asked, model, begun)
        case "remix":
            if asked.prompt is None:
                raise RequestError("remix needs the new prompt")
            if not {"image", "vary"} & model.can:  # the same seed keeps what it can of the picture
                return {**request, **begun, "seed": picture.seed if asked.seed is None else asked.seed}
            return request | _begin(picture, asked, model, begun)
        case "region":
            if asked.mask is None:
                raise RequestError("region needs a mask: the id of a picture that is white where to draw")
            marked = {"mask": {"picture": asked.mask}, "size": list(size)}
            return _once(request) | _image(picture, asked) | marked
        case "zoom":
            return _once(request) | _around(picture, asked, model) | _zoomed(asked, size)
        case "pan":
            return _once(request) | _around(picture, asked, model) | _panned(asked, model, size)
    raise AssertionError("unreachable: the schema knows no other action")


def _begin(
    picture: Drawn, asked: ActionIn, model: ModelInfo, begun: Mapping[str, object]
) -> dict[str, object]:
    """With the picture, as the model can; where it cannot, as the parent began."""
    if "image" in model.can:
        return _image(picture, asked)
    if "vary" in model.can:
        noise = NOISE[asked.action] if asked.strength is None else asked.strength
        return {"vary": {"picture": picture.id}, "vary_noise": noise}
    return dict(begun)


def _image(picture: Drawn, asked: ActionIn) -> dict[str, object]:
    strength = STRENGTHS[asked.action] if asked.strength is None else asked.strength
    return {"image": {"picture": picture.id}, "strength": strength}


def _once(request: Mapping[str, object]) -> dict[str, object]:
    """Without a second pass, which would redraw what is to stay."""
    return {name: value for name, value in request.items() if name not in ("enlarge", "enlarge_strength")}


def _around(picture: Drawn, asked: ActionIn, model: ModelInfo) -> dict[str, object]:
    """As strongly as suits the model, unless there is something new to draw."""
    usual = AROUND if asked.prompt is not None else model.defaults.get("around", AROUND)
    strength = usual if asked.strength is None else asked.strength
    return {"image": {"picture": picture.id}, "strength": strength}


def _size(parent: Job, drawn_by: Mapping[str, object], picture: Drawn, model: ModelInfo) -> tuple[int, int]:
    """(height, width) to draw a picture at again: its own, but of one that was only made larger, that which
    it was drawn at; or the nearest that the model draws."""
    size = picture.height, picture.width
    if "upscale" in parent.request and isinstance(drawn := drawn_by.get("size"), list | tuple):
        size = drawn[0], drawn[1]
    return within(size, *model.sizes) if model.sizes else size


def _zoomed(asked: ActionIn, size: tuple[int, int]) -> dict[str, object]:
    """The size stays, and the picture becomes so many times smaller."""
    factor = asked.factor or FACTORS["zoom"]
    above, beside = (_step(side * (1 - 1 / factor) / 2) for side in size)
    if min(above, beside) < STEP:
        raise RequestError(f"a zoom by {factor:g} adds nothing; ask for a larger factor")
    return {"extend": [beside, above, beside, above], "size": list(size)}


def _panned(asked: ActionIn, model: ModelInfo, size: tuple[int, int]) -> dict[str, object]:
    """So many times larger at one side; all of it smaller, where a side would be more than the model draws.
    Of a model that draws squares the size stays, and as much goes at the other side."""
    if asked.direction is None:
        raise RequestError("pan needs a direction: left, right, up or down")
    factor, across = asked.factor or FACTORS["pan"], asked.direction in ("left", "right")
    height, width = size
    along = width if across else height
    if model.defaults.get("square") is True:
        edge = _step(along * (1 - 1 / factor))
        height, width = (height, width - edge) if across else (height - edge, width)
    else:
        share = min(1.0, model.sizes[1] / max(along * factor, height, width)) if model.sizes else 1.0
        edge = _step(along * (factor - 1) * share)
        if share < 1:
            height, width = _step(height * share), _step(width * share)
    if edge < STEP:
        raise RequestError(f"a pan by {factor:g} adds nothing; ask for a larger factor")
    place = ("left", "up", "right", "down").index(asked.direction)
    larger = [height, width + edge] if across else [height + edge, width]
    return {"extend": [edge if side == place else 0 for side in range(4)], "size": larger}


def _step(pixels: float) -> int:
    return int(pixels / STEP) * STEP
