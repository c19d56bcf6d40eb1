"""The JSON of our own routes. Every number has a range, every text a length, and NUL is in none of them."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from limner.diffusion.grids import GRIDS
from limner.diffusion.samplers import SAMPLERS
from limner.pipeline.request import LONGEST_PROMPT, NUMBERS, SIDES
from limner.serve.errors import plain
from limner.serve.jobs import Drawn, Job, State
from limner.util.rng import SEED_LIMIT

ID = "^[0-9a-f]{32}$"
CURSOR = r"^[0-9]{1,12}(\.[0-9]{1,9})?_[0-9a-f]{32}$"
TEXT = "^[^\\x00]*$"  # no database keeps a NUL
Id = Annotated[str, Field(pattern=ID, min_length=32, max_length=32)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern="^[^\\x00-\\x1f]*$")]
Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT, pattern=TEXT)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Time = Annotated[float, Field(ge=0, le=1e11, description="seconds since 1970")]
Side = Annotated[int, Field(strict=True, ge=SIDES[0], le=SIDES[1])]
Edge = Annotated[int, Field(strict=True, ge=0, le=4096)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=SEED_LIMIT)]
Said = Annotated[str, Field(max_length=20_000)]


def _one_of(names: Collection[str]) -> Any:
    """A text that is one of these names, in the schema too."""
    known = sorted(names)

    def check(said: str) -> str:
        if said not in known:
            raise PydanticCustomError("enum", "one of {known}", {"known": ", ".join(known)})
        return said

    return AfterValidator(check), Field(max_length=40, json_schema_extra={"enum": list[Any](known)})


def _number(name: str) -> Any:
    low, high = NUMBERS[name]
    return Field(default=None, ge=low, le=high, allow_inf_nan=False)


def _whole(low: int, high: int) -> Any:
    return Field(default=None, strict=True, ge=low, le=high)


class Asked(BaseModel):
    """What clients send: unknown fields are an error."""

    model_config = ConfigDict(extra="forbid")

    def told(self) -> dict[str, object]:
        """The fields that were given, as plain values; null is as good as not given."""
        return self.model_dump(exclude_none=True, by_alias=True)


class PictureRef(Asked):
    """A picture here, by its id."""

    picture: Id


class ControlIn(Asked):
    """A picture to be followed."""

    image: PictureRef
    model: Annotated[
        str, Field(pattern="^[0-9A-Za-z][0-9A-Za-z._-]{0,99}$", max_length=100, description="its network")
    ]
    weight: float | None = _number("weight")
    start: float | None = _number("start")
    end: float | None = _number("end")


class UpscaleIn(Asked):
    """A picture to be made larger without being drawn again."""

    picture: Id
    scale: float = Field(default=2.0, ge=1, le=4, allow_inf_nan=False)


class JobIn(Asked):
    """What to draw; what is left out is the model's choice. Or, instead of all of it, `upscale`."""

    prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    seed: Seed | None = None
    count: int | None = _whole(1, 64)
    steps: int | None = _whole(1, 1000)
    guidance: float | None = _number("guidance")
    sampler: Annotated[str, *_one_of(SAMPLERS)] | None = None
    size: (
        Annotated[list[Side], Field(min_length=2, max_length=2, description="[height, width] in pixels")]
        | Annotated[str, Field(pattern="^[0-9]{1,4}([xX×][0-9]{1,4})?$", max_length=9)]
        | None
    ) = None
    style: Name | None = None
    model: Name | None = None
    grid: Annotated[str, *_one_of(GRIDS)] | None = None
    image: PictureRef | None = None
    strength: float | None = _number("strength")
    mask: PictureRef | None = None
    feather: int | None = _whole(0, 256)
    extend: Annotated[list[Edge], Field(min_length=4, max_length=4)] | None = None
    controls: Annotated[list[ControlIn], Field(max_length=4)] | None = None
    enlarge: float | None = _number("enlarge")
    enlarge_strength: float | None = _number("enlarge_strength")
    tiling: Annotated[bool, Field(strict=True)] | None = None
    transparent: Annotated[bool, Field(strict=True)] | None = None
    clip_skip: int | None = _whole(1, 32)
    emphasis: Literal["mean", "plain", "comfy", "ignore"] | None = None
    rescale: float | None = _number("rescale")
    skip_layers: float | None = _number("skip_layers")
    vary: PictureRef | None = None
    vary_noise: float | None = _number("vary_noise")
    blend: PictureRef | Prompt | None = None
    blend_at: float | None = _number("blend_at")
    rerank: int | None = _whole(1, 64)
    temperature: float | None = _number("temperature")
    top_k: int | None = _whole(0, 100_000)
    top_p: float | None = _number("top_p")
    upscale: UpscaleIn | None = None
    # -- the same, as other programs call it
    num_inference_steps: int | None = _whole(1, 1000)
    guidance_scale: float | None = _number("guidance")
    n: int | None = _whole(1, 64)
    num_images_per_prompt: int | None = _whole(1, 64)
    # -- not of the drawing
    parent: Id | None = None  # a job that this one goes on from


Action = Literal["vary_subtle", "vary_strong", "reroll", "upscale", "zoom", "pan", "region", "remix"]
Direction = Literal["left", "right", "up", "down"]


class ActionIn(Asked):
    """Something done to a picture of a finished job."""

    action: Action
    index: Annotated[int, Field(strict=True, ge=0, le=63, description="which picture of the job")] = 0
    prompt: Prompt | None = Field(default=None, description="in place of the job's")
    factor: float | None = Field(
        default=None, ge=1, le=4, allow_inf_nan=False, description="of upscale, zoom and pan"
    )
    direction: Direction | None = Field(default=None, description="of pan")
    mask: Id | None = Field(default=None, description="of region: a picture, white where to draw")
    strength: float | None = _number("strength")
    count: int | None = _whole(1, 64)
    seed: Seed | None = None


class RatingIn(Asked):
    """What somebody thinks of a picture."""

    starred: Annotated[bool, Field(strict=True)] | None = None
    rating: int | None = Field(default=None, strict=True, ge=0, le=5, description="0 takes it back")


class SessionIn(Asked):
    """To sign a browser in."""

    key: Annotated[str, Field(min_length=1, max_length=200, pattern="^[\\x21-\\x7e]+$")]


class PictureOut(BaseModel):
    """A picture."""

    id: Id
    job: Id | None
    index: Annotated[int, Field(ge=0, le=63)]
    seed: Annotated[int, Field(ge=0, lt=SEED_LIMIT)] | None
    width: Annotated[int, Field(ge=1, le=64_000)]
    height: Annotated[int, Field(ge=1, le=64_000)]
    url: Annotated[str, Field(pattern="^/pictures/[0-9a-f]{32}$", max_length=42)]
    starred: bool
    rating: Annotated[int, Field(ge=1, le=5)] | None
    created: Time
    prompt: Said


class UploadOut(BaseModel):
    """A picture that was brought."""

    id: Id
    width: Annotated[int, Field(ge=1, le=64_000)]
    height: Annotated[int, Field(ge=1, le=64_000)]
    url: Annotated[str, Field(pattern="^/pictures/[0-9a-f]{32}$", max_length=42)]
    settings: dict[str, Any] | None = Field(description="how it was drawn, where its file says so")


class FailureOut(BaseModel):
    """Why a job failed."""

    code: Annotated[str, Field(max_length=40)]
    message: Annotated[str, Field(max_length=2000)]


class JobOut(BaseModel):
    """A job."""

    id: Id
    state: State
    model: Annotated[str, Field(max_length=200)]
    request: dict[str, Any]
    parent: Id | None
    action: Annotated[str, Field(max_length=40)] | None
    index: Annotated[int, Field(ge=0, le=63)] | None
    attempts: Annotated[int, Field(ge=0, le=100)]
    position: Annotated[int, Field(ge=1, le=1_000_000)] | None
    progress: Share
    stage: Annotated[str, Field(max_length=200)]
    cost: Annotated[float, Field(ge=0, le=1e12)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=SEED_LIMIT)]], Field(max_length=64)]
    pictures: Annotated[list[PictureOut], Field(max_length=64)]
    notices: Annotated[list[Said], Field(max_length=1000)]
    warnings: Annotated[list[Said], Field(max_length=1000)]
    failure: FailureOut | None
    metadata: Literal["none", "minimal", "full"]
    created: Time
    started: Time | None
    ended: Time | None
    cancel: bool


class Jobs(BaseModel):
    """Some jobs, newest first, and where the list goes on."""

    items: Annotated[list[JobOut], Field(max_length=200)]
    next: Annotated[str, Field(pattern=CURSOR, max_length=60)] | None


class Pictures(BaseModel):
    """Some pictures, newest first, and where the list goes on."""

    items: Annotated[list[PictureOut], Field(max_length=200)]
    next: Annotated[str, Field(pattern=CURSOR, max_length=60)] | None


class ErrorOut(BaseModel):
    """What went wrong."""

    message: Annotated[str, Field(max_length=4000)]
    type: Annotated[str, Field(max_length=60)]
    param: Annotated[str, Field(max_length=500)] | None
    code: Annotated[str, Field(max_length=60)] | None


class Errors(BaseModel):
    """Every answer of status 400 and above."""

    error: ErrorOut


UNSEEN = "this model cannot begin with a picture: it is drawn anew, from another seed"
PROBLEMS: dict[int | str, dict[str, Any]] = {  # what any route may answer
    status: {"model": Errors, "description": said}
    for status, said in {
        400: "It cannot be done as it was asked.",
        401: "A key is needed.",
        403: "Pages of other sites cannot do this.",
        404: "There is no such thing.",
        409: "It contradicts something before.",
        413: "Too large.",
        415: "Of a type that is not taken.",
        422: "A field is missing, unknown or out of range.",
        429: "Too much at once; Retry-After says when.",
        503: "Not now; Retry-After says when.",
    }.items()
}


def picture_out(drawn: Drawn) -> dict[str, object]:
    """As PictureOut."""
    return {
        "id": drawn.id,
        "job": drawn.job,
        "index": drawn.index,
        "seed": drawn.seed,
        "width": drawn.width,
        "height": drawn.height,
        "url": f"/pictures/{drawn.id}",
        "starred": drawn.starred,
        "rating": drawn.rating,
        "created": drawn.created,
        "prompt": drawn.prompt,
    }


def job_out(job: Job) -> dict[str, object]:
    """As JobOut: neither the owner nor the names of files."""
    notices = (UNSEEN,) if _blind(job) else ()
    failure = job.failure and {"code": job.failure.code, "message": plain(job.failure.message)}
    return {
        "id": job.id,
        "state": job.state.value,
        "model": job.model,
        "request": job.request,
        "parent": job.parent,
        "action": job.action,
        "index": job.index,
        "attempts": job.attempts,
        "position": job.position,
        "progress": job.progress,
        "stage": job.stage,
        "cost": job.cost,
        "seeds": list(job.seeds),
        "pictures": [picture_out(drawn) for drawn in job.pictures],
        "notices": [plain(notice) for notice in (*notices, *job.notices)],
        "warnings": [plain(warning) for warning in job.warnings],
        "failure": failure,
        "metadata": job.metadata,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "cancel": job.cancel,
    }


def _blind(job: Job) -> bool:
    """Whether a picture was to be varied, and the model could not see it."""
    return job.action in ("vary_subtle", "vary_strong") and not {"image", "vary"} & job.request.keys()
