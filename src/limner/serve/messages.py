"""What the engine, its worker processes and what draws in them say to each other. All of it can be pickled,
and nothing here imports torch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from limner.errors import ConfigError
from limner.serve.jobs import Drawn, Failure


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """How to draw."""

    models: Mapping[str, str] = field(default_factory=lambda: {"mini": "mini"})  # name for clients -> what
    # limner.load takes: a name, a folder, a file, a hub id; the first is the default
    devices: tuple[str, ...] = ("auto",)  # as limner.load takes them
    workers: int = 1  # processes on each device
    threads: int | None = None  # of each process on the CPU; None: all cores, shared out
    loras: Path | None = None  # folder of the files that <lora:NAME:WEIGHT> names; None: there are none
    embeddings: Path | None = None  # folder of learned words; None: there are none
    controls: Path | None = None  # folder of control networks, which requests name; None: there are none
    upscaler: str = "mini"  # what makes finished pictures larger, as `limner upscale` takes it
    dtype: str | None = None  # float32, bfloat16 or float16; None: what suits the device
    offload: bool = False  # keep one network at hand at a time
    keep: int = 1  # models that a process holds at once
    batch: int | None = None  # most pictures drawn together; fewer where that is measured to pay more
    measured: Path | None = None  # folder where that is remembered; None: it is measured at each start
    step_seconds: float = 300.0  # without a sign of life, after which a process hangs
    open_seconds: float = 900.0  # the same while a model is opened
    preview_seconds: float = 0.5  # between previews of a job
    preview_side: int = 256  # pixels of a preview's longer side, at most; 0: no previews
    stay_seconds: float = 10.0  # for which a process goes on with its model while others are asked for
    lull_seconds: float = 120.0  # without work, after which an idle process measures what pays at once
    pause_seconds: float = 0.5  # before a process that died is started again; doubled each time
    name: str | None = None  # of this machine, where several share one store; None: it is alone
    silent_seconds: float = 60.0  # after which a machine that gave no sign is taken to be dead

    def __post_init__(self) -> None:
        """Raises ConfigError for a number that is out of range, and when there is nothing to draw with."""
        if not self.models or not self.devices:
            raise ConfigError("an engine needs a model and a device; name at least one of each")
        for name in ("workers", "keep", "threads", "batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is 1 or more, got {value}")
        for name in ("step_seconds", "open_seconds", "silent_seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """A model as clients see it."""

    name: str  # by which requests ask for it
    family: str  # such as "mini" or "sd"
    default_size: tuple[int, int]  # (height, width) in pixels
    sizes: tuple[int, int] | None = None  # least and most side in pixels; None: not known
    styles: tuple[str, ...] = ()  # that a request may name
    can: frozenset[str] = frozenset()  # of image, mask, extend, controls, loras, negative_prompt, vary, blend
    fingerprint: str = ""  # short hash of its weights
    defaults: Mapping[str, object] = field(default_factory=dict)  # steps, guidance, sampler, size [h, w]


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Pictures of one job that are drawn at once: all of them, or where memory is short a part."""

    job: str
    attempt: int
    request: Mapping[str, object]  # of the whole job, as the store has it
    pictures: Mapping[str, Drawn] = field(default_factory=dict)  # those that the request names, by their ids
    model: str
    shape: str
    metadata: str  # what the files tell: "none", "minimal" or "full"
    first: int = 0  # index of its first picture among the job's
    count: int  # of its pictures

    def halves(self) -> "tuple[Piece, Piece]":
        """Two pieces of a piece of several pictures."""
        half = self.count // 2
        rest = replace(self, first=self.first + half, count=self.count - half)
        return replace(self, count=half), rest


@dataclass(frozen=True, kw_only=True, slots=True)
class Painted:
    """A finished picture."""

    seed: int | None  # None: nothing was drawn by chance
    width: int  # pixels
    height: int  # pixels
    data: bytes  # of its PNG file


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How far a piece is."""

    share: float  # of its steps, 0 to 1
    stage: str  # what is being done
    preview: Callable[[int], tuple[bytes, ...]]  # JPEGs whose longer side is at most so many pixels
    painted: tuple[Painted, ...] = ()  # its pictures, in the last look
    notices: tuple[str, ...] = ()  # in the last look: how words and wishes were understood
    warnings: tuple[str, ...] = ()  # in the last look: what was asked for and is not in the pictures


@runtime_checkable
class Drawer(Protocol):
    """What draws, on one device. It is made in the worker process, by a function that can be pickled."""

    def open(self, model: str) -> ModelInfo:
        """Make a model ready, and put others away where too many are. Raises LimnerError."""

    def pays(self) -> int:
        """How many pictures, of its usual size, the model opened last is best asked for at once. To find that
        out may take a while."""

    def draw(self, pieces: Sequence[Piece], *, lean: bool) -> Iterator[Sequence[Look]]:
        """Pieces of one shape, of the model opened last: after each step a look at each. `lean`: with as
        little memory as can be, however slow. Raises RequestError for what cannot be drawn, MemoryError or
        what torch has for it, and EngineError."""

    def relieve(self) -> None:
        """Give back memory that is not needed."""

    def sound(self) -> bool:
        """Whether the device still computes. False: the process has to be started again."""


# -- what the engine says ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Make a model ready."""

    model: str


@dataclass(frozen=True, slots=True)
class Measure:
    """Find out how many pictures of the model opened last are best drawn at once."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw whole jobs of one shape together."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """These (job, attempt) need not be drawn on."""

    keys: frozenset[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Quit:
    """End, when what was asked before is done."""


# -- what the worker says ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The drawer is made."""


@dataclass(frozen=True, slots=True)
class Sick:
    """The process ends: its drawer cannot be made, or its device computes no more."""

    why: str  # for the log


@dataclass(frozen=True, slots=True)
class Opening:
    """A model is being opened, or measured, which may take a while."""

    model: str


@dataclass(frozen=True, slots=True)
class Opened:
    """It is open."""

    info: ModelInfo


@dataclass(frozen=True, slots=True)
class Unopened:
    """It cannot be opened."""

    model: str
    why: str  # for the log


@dataclass(frozen=True, slots=True)
class Pays:
    """So many pictures of this model, of its usual size, are best drawn at once."""

    model: str
    pictures: int


@dataclass(frozen=True, slots=True)
class Steps:
    """How far jobs are."""

    shares: Mapping[tuple[str, int], tuple[float, str]]  # (job, attempt) -> share of its steps, stage
    previews: Mapping[str, tuple[bytes, ...]]  # job -> JPEG, one for each picture


@dataclass(frozen=True, slots=True)
class Done:
    """A job's pictures are on the disk."""

    job: str
    attempt: int
    drawn: tuple[Drawn, ...]
    notices: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """A job cannot be done."""

    job: str
    attempt: int
    failure: Failure
    detail: str  # for the log


@dataclass(frozen=True, slots=True)
class Stopped:
    """A job was stopped, as was asked."""

    job: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Unsaved:
    """A job's pictures cannot be written."""

    job: str
    attempt: int
    why: str


@dataclass(frozen=True, slots=True)
class Tight:
    """Memory ran out: of this shape no more than so many pictures at once."""

    shape: str
    pictures: int


@dataclass(frozen=True, slots=True)
class Idle:
    """What was asked is done."""


Said = (
    Ready
    | Sick
    | Opening
    | Opened
    | Unopened
    | Pays
    | Steps
    | Done
    | Failed
    | Stopped
    | Unsaved
    | Tight
    | Idle
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What a worker process is given when it is started."""

    make: Callable[[str], Drawer]  # device -> what draws on it; has to be picklable
    device: str  # as limner.load takes it
    pictures: Path  # folder of the files
    preview_seconds: float  # between previews
    preview_side: int  # longer side of a preview in pixels, at most; 0: there are none
