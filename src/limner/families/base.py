"""What a family of models is, to those who draw with it."""

from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from limner.errors import RequestError
from limner.families.stages import Stage
from limner.util.suggest import suggestion


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What is used where a request leaves a choice open."""

    steps: int  # of the sampler
    guidance: float  # scale; 1 is the prompt alone
    sampler: str  # a name in diffusion.samplers.SAMPLERS
    size: tuple[int, int]  # (height, width) in pixels
    grid: str | None = None  # a name in diffusion.grids.GRIDS; None: the model has its own
    factor: int = 1  # how many times larger than a picture to begin with, where no size is asked for
    square: bool = False  # whether it draws squares only
    around: float = 1.0  # strength with which it draws best around a picture
    lcm: "Defaults | None" = None  # where the sampler lcm is asked for; None: these


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ControlOrder:
    """A picture to be followed: edges, depth, a pose."""

    pixels: Float[Tensor, "1 3 h w"]  # in [-1, 1], of any size
    model: str  # file or folder of a control network
    weight: float  # of what it adds; 1 as it was trained
    start: float  # share of the steps after which it is heard
    end: float  # share of the steps after which it is not heard any more


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Order:
    """One request with every choice made, as a model is given it."""

    prompt: str
    negative_prompt: str
    steps: int
    guidance: float
    sampler: str
    size: tuple[int, int]  # (height, width) in pixels
    style: str | None  # None: as the prompt says, if it says
    grid: str | None = None  # a name in diffusion.grids.GRIDS; None: the model's own
    image: Float[Tensor, "1 3 h w"] | None = None  # pixels to begin with, of this size
    strength: float = 0.75  # share of the steps that change them, where there are any
    mask: Float[Tensor, "1 1 h w"] | None = None  # 1 where to draw, 0 what to keep, of this size
    extend: tuple[int, int, int, int] = (0, 0, 0, 0)  # what of the mask lies around: left, top, right, bottom
    controls: tuple[ControlOrder, ...] = ()
    enlarge: float = 1.0  # a second pass, so many times larger; 1: there is none
    enlarge_strength: float = 0.7  # share of the steps of the second pass
    refiner: str | None = None  # a model that draws the last steps
    refine_from: float = 0.8  # share of the steps after which it does
    tiling: bool = False  # opposite edges fit together
    clip_skip: int | None = None  # layer of the text encoders: 1 the last; None: the model's own
    emphasis: str = "mean"  # what weights in prompts do: a name in text.emphasis.EMPHASES
    rescale: float = 0.0  # of guidance, 0 to 1
    skip_layers: float = 0.0  # of guidance away from the network without some layers; 0: there is none
    vary: Float[Tensor, "1 3 h2 w2"] | None = None  # pixels whose content is drawn again, of any size
    vary_noise: float = 0.0  # how loosely, 0 to 1
    blend: Float[Tensor, "1 3 h3 w3"] | str | None = None  # draw what lies between this and the rest
    blend_at: float = 0.5  # how far towards it, 0 to 1

    rerank: int = 1  # candidates for each picture, of which the best is kept
    temperature: float | None = None  # of what is drawn token by token; None: the model's own
    top_k: int | None = None  # likeliest tokens that are chosen from, 0: all; None: the model's own
    top_p: float | None = None  # share of the likeliest that are; None: the model's own

    def beyond(self) -> tuple[str, ...]:
        """The wishes that not every model can meet, and that this order has."""
        plain = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        values = ((name, getattr(self, name), usual) for name, usual in plain.items())
        return tuple(name for name, value, usual in values if isinstance(value, Tensor) or value != usual)


BY_TOKENS = ("rerank", "temperature", "top_k", "top_p")  # wishes that only models of tokens can meet


def refuse(order: Order, meets: Collection[str], *, model: str = "this model") -> None:
    """Raises RequestError for a wish of an order that is not among those that a model meets."""
    if order.style is not None:
        raise RequestError(f"{model} has no named styles; write {order.style!r} in the prompt instead")
    if beyond := [name for name in order.beyond() if name not in meets]:
        raise RequestError(f"{model} knows no {', '.join(beyond)}; leave it out")
    if order.mask is not None and order.enlarge != 1:
        raise RequestError("a second pass would redraw what a mask keeps; leave out the mask, or enlarge")


def guided(order: Order) -> bool:
    """Whether there is guidance. Raises RequestError for a scale below 1, that of the prompt alone."""
    if order.guidance < 1:
        raise RequestError(f"guidance of this model is 1 or more, got {order.guidance:g}")
    return order.guidance > 1


def unheard(order: Order, why: str = "it needs guidance above 1") -> tuple[str, ...]:
    """Warnings of what an order says that means nothing where a prompt is asked for alone, and why."""
    names = {"negative_prompt": "the negative prompt", "rescale": "rescale", "skip_layers": "skip_layers"}
    return tuple(f"{said} was left out: {why}" for name, said in names.items() if getattr(order, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a model will fill an order."""

    stages: tuple[Stage, ...]  # each draws on what the one before has drawn
    notices: tuple[str, ...]  # how words and wishes were understood
    warnings: tuple[str, ...]  # what was asked for and will not be in the picture
    by_tokens: bool = False  # whether pictures are drawn token by token


@runtime_checkable
class Model(Protocol):
    """A loaded member of a family."""

    @property
    def fingerprint(self) -> str:
        """Short hash of the weights."""

    @property
    def defaults(self) -> Defaults:
        """What it draws best with."""

    def plan(self, order: Order) -> Plan:
        """Read the words, lay out the stages. Raises RequestError for what this model cannot do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """How a published model is to be loaded, and where what its prompts name lies."""

    prediction: str | None = None  # "eps" or "v", where the file does not say it
    variant: str | None = None  # of a folder's files, such as "fp16"
    dtype: str | None = None  # one of TYPES; None: bfloat16 where the device is fast in it, else float32
    loras: Path | None = None  # folder of the files that <lora:NAME:WEIGHT> names; None: there are none
    embeddings: Path | None = None  # folder of learned words (textual inversion); None: there are none
    preview: Path | None = None  # a TAESD, to watch pictures by; None: rough colours
    offload: bool = False  # keep one network at hand at a time: slower, and the same pixels
    then: tuple[str, ...] = ()  # folders or hub ids of the stages that follow in a cascade

    def __post_init__(self) -> None:
        if self.prediction not in (None, "eps", "v"):
            raise RequestError(f"prediction is eps or v, got {self.prediction!r}")
        if self.dtype is not None and self.dtype not in TYPES:
            raise RequestError(f'there is no type "{self.dtype}"{suggestion(self.dtype, TYPES)}')
        for name in ("loras", "embeddings"):
            folder = getattr(self, name)
            if folder is not None and not folder.is_dir():
                raise RequestError(f"{name}: there is no folder {folder}")


TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A recipe: what its weights look like on the disk, and how they become a model."""

    name: str
    folder: Path | None = None  # weights that come with the package
    marks: tuple[str, ...] = ()  # files of our own training, each of which tells; (): `detect` does
    load: Callable[[Path, torch.device, Wishes], Model]  # raises WeightsError
