"""Configuration of a training run: a TOML file becomes one frozen dataclass, and nothing in it is ignored."""

import math
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch

from limner.errors import ConfigError
from limner.train.objectives import Objective
from limner.train.objectives.ar_prior import ARPrior, ARPriorConfig
from limner.train.objectives.best_of import BestOf, BestOfConfig
from limner.train.objectives.clip import CLIPObjective, CLIPObjectiveConfig
from limner.train.objectives.denoise import Denoise, DenoiseConfig
from limner.train.objectives.detect import Detect, DetectConfig
from limner.train.objectives.diffusion import Diffusion, DiffusionConfig
from limner.train.objectives.distill import Distill, DistillConfig
from limner.train.objectives.dpo import DPO, DPOConfig
from limner.train.objectives.few_step import FewStep, FewStepConfig
from limner.train.objectives.gan_upscaler import GANUpscaler, GANUpscalerConfig
from limner.train.objectives.kl_vae import KLVAEObjective, KLVAEObjectiveConfig
from limner.train.objectives.nft import NFT, NFTConfig
from limner.train.objectives.super_resolution import SuperResolution, SuperResolutionConfig
from limner.train.objectives.unclip_prior import UnCLIPPriorObjective, UnCLIPPriorObjectiveConfig
from limner.train.objectives.upscale import Upscale, UpscaleConfig
from limner.train.objectives.vqvae import VQVAEObjective, VQVAEObjectiveConfig
from limner.train.optim import OptimConfig
from limner.train.trainable import ControlConfig, LoRAConfig, WordsConfig
from limner.util.suggest import suggestion

T = TypeVar("T")

# What may be minimised: the name of a table in the run's file, and what its settings are given to. The class
# of the settings stands once, in `RunConfig`. Called with (settings, device), and a trainable, if given.
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "denoise": Denoise,
    "upscale": Upscale,
    "detect": Detect,
    "few_step": FewStep,
    "best_of": BestOf,
    "nft": NFT,
    "vqvae": VQVAEObjective,
    "ar_prior": ARPrior,
    "clip": CLIPObjective,
    "diffusion": Diffusion,
    "kl_vae": KLVAEObjective,
    "gan_upscaler": GANUpscaler,
    "dpo": DPO,
    "distill": Distill,
    "super_resolution": SuperResolution,
    "unclip_prior": UnCLIPPriorObjective,
}
# What may be trained instead of the whole network: again names of tables, and the objectives that know them.
TRAINABLES: tuple[str, ...] = ("lora", "words", "control")
ALLOWED: dict[str, frozenset[str]] = {
    "diffusion": frozenset({"lora", "words", "control"}),
    "dpo": frozenset({"lora"}),
    "distill": frozenset({"lora"}),
}
TEACHING = frozenset({"diffusion"})  # whose LoRAs may come with a word
# Objectives that copy the network, write into its weights or ask for gradients of their own within a step,
# and so train in one process only.
ALONE = frozenset({"few_step", "best_of", "nft", "vqvae", "kl_vae", "gan_upscaler", "dpo", "distill"})
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long, how large and how often."""

    images: int  # pictures to see; the clock of the run
    batch: int = 64  # pictures per step
    micros: int = 1  # parts that a step's batch is taken in, one after another or by as many processes
    seed: int = 0  # of the weights, the scenes and the noise
    device: str = "auto"  # auto, cpu, cuda or mps
    precision: str = "auto"  # auto, float32 or bfloat16 (autocast over float32 weights)
    compile: bool = False  # torch.compile the loss
    compile_blocks: bool = False  # torch.compile each block of the network by itself: starts sooner
    checkpointing: bool = False  # compute each block twice instead of keeping what its gradient needs
    start: str = ""  # published weights.safetensors to begin with; empty begins with random weights
    ema: float = 0.06  # width of the averaging window of the weights, as a share of the pictures seen
    max_skipped: int = 100  # steps in a row that may fail to be finite before the run stops
    checkpoint_seconds: float = 60.0  # between checkpoints
    sheet_seconds: float = 240.0  # between sheets of samples

    def __post_init__(self) -> None:
        counts = ("images", "batch", "micros", "max_skipped")
        for name, value in ((name, getattr(self, name)) for name in counts):
            if value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")
        if self.batch % self.micros:
            raise ValueError(f"micros divides batch into equal parts, got {self.micros} of {self.batch}")
        if self.compile and self.compile_blocks:
            raise ValueError("compile and compile_blocks exclude each other; take compile_blocks")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One run. Exactly one objective is given, as a table of its own."""

    name: str
    loop: LoopConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    denoise: DenoiseConfig | None = None
    upscale: UpscaleConfig | None = None
    detect: DetectConfig | None = None
    few_step: FewStepConfig | None = None
    best_of: BestOfConfig | None = None
    nft: NFTConfig | None = None
    vqvae: VQVAEObjectiveConfig | None = None
    ar_prior: ARPriorConfig | None = None
    clip: CLIPObjectiveConfig | None = None
    diffusion: DiffusionConfig | None = None
    unclip_prior: UnCLIPPriorObjectiveConfig | None = None
    super_resolution: SuperResolutionConfig | None = None
    distill: DistillConfig | None = None
    dpo: DPOConfig | None = None
    gan_upscaler: GANUpscalerConfig | None = None
    kl_vae: KLVAEObjectiveConfig | None = None
    lora: LoRAConfig | None = None
    words: WordsConfig | None = None
    control: ControlConfig | None = None

    def __post_init__(self) -> None:
        given = [name for name in OBJECTIVES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"a run has exactly one objective: give one table of [{'], ['.join(OBJECTIVES)}]"
            )
        trained = [name for name in TRAINABLES if getattr(self, name) is not None]
        if len(trained) > 1:
            raise ConfigError(f"a run trains one thing: give one table of [{'], ['.join(trained)}]")
        known = ALLOWED.get(given[0], frozenset())
        if trained and trained[0] not in known:
            can = f"it can train [{'], ['.join(sorted(known))}] or" if known else "it trains"
            raise ConfigError(
                f"[{given[0]}] does not know how to train [{trained[0]}]: {can} the whole network"
            )
        if self.lora is not None and self.lora.token and given[0] not in TEACHING:
            raise ConfigError(
                f"lora.token: [{given[0]}] learns no words; leave it out, or learn it by [diffusion] first"
            )
        wishes = [name for name in ("compile_blocks", "checkpointing") if getattr(self.loop, name)]
        if wishes and not hasattr(OBJECTIVES[given[0]], "blocks"):
            raise ConfigError(f"[{given[0]}] does not list its blocks, so loop.{wishes[0]} has nothing to do")

    @property
    def objective(self) -> str:
        """The name of the one objective."""
        return next(name for name in OBJECTIVES if getattr(self, name) is not None)

    @property
    def trainable(self) -> str | None:
        """The name of what is trained; None: the whole network."""
        return next((name for name in TRAINABLES if getattr(self, name) is not None), None)


def build(run: RunConfig, device: torch.device) -> Objective:
    """The objective of a run, with its data and its network on `device`."""
    make, settings = OBJECTIVES[run.objective], getattr(run, run.objective)
    if run.trainable is None:
        return make(settings, device)
    return make(settings, device, getattr(run, run.trainable))


def read(path: Path, overrides: Mapping[str, str] | None = None) -> RunConfig:
    """Read a TOML file; `overrides` sets dotted keys such as loop.images to TOML values.

    Raises ConfigError for a missing file, bad TOML, an unknown key (with the nearest known one) or a wrong
    type.
    """
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"cannot read the run configuration {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None
    for key, value in (overrides or {}).items():
        *tables, last = key.split(".")
        table = data
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigError(f"cannot set {key}: {name} is not a table.")
        table[last] = _literal(value)
    return parse(RunConfig, data, where=path.name)


def parse(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """The dataclass `cls` from nested tables; ConfigError for unknown or missing keys and wrong types."""
    hints = get_type_hints(cls)
    for key in data:
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}{suggestion(key, hints)}")
    values = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in data.items()}
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(missing)}.")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.") from None


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved configuration as nested tables; what is None is left out."""

    def tidy(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tidy(v) for k, v in value.items() if v is not None}
        return list(value) if isinstance(value, tuple) else value

    result: dict[str, Any] = tidy(asdict(config))
    return result


def _convert(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(option for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{where} is {' or '.join(map(str, get_args(hint)))}, got {value!r}.")
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is a table, got {value!r}.")
        return parse(hint, value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is a list, got {value!r}.")
        kinds = get_args(hint)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) != len(value):
            raise ConfigError(f"{where} is a list of {len(kinds)}, got {value!r}.")
        return tuple(_convert(kind, v, where) for kind, v in zip(kinds, value, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be {NAMES[hint]}, got {value!r}.")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, got {value!r}.")
    return value


def _literal(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string
