"""Configuration of a training run: a TOML file becomes one frozen dataclass, and nothing in it is ignored."""

import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch

from limner.errors import ConfigError
from limner.train.objectives import Objective
from limner.train.objectives.ar_prior import ARPrior, ARPriorConfig
from limner.train.objectives.best_of import BestOf, BestOfConfig
from limner.train.objectives.clip import CLIPObjective, CLIPObjectiveConfig
from limner.train.objectives.denoise import Denoise, DenoiseConfig
from limner.train.objectives.detect import Detect, DetectConfig
from limner.train.objectives.few_step import FewStep, FewStepConfig
from limner.train.objectives.nft import NFT, NFTConfig
from limner.train.objectives.upscale import Upscale, UpscaleConfig
from limner.train.objectives.vqvae import VQVAEObjective, VQVAEObjectiveConfig
from limner.train.optim import OptimConfig
from limner.util.suggest import suggestion

T = TypeVar("T")
OBJECTIVES = ("denoise", "upscale", "detect", "few_step", "best_of", "nft", "vqvae", "ar_prior", "clip")
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long, how large and how often."""

    images: int  # pictures to see; the clock of the run
    batch: int = 64  # pictures per step
    seed: int = 0  # of the weights, the scenes and the noise
    device: str = "auto"  # auto, cpu, cuda or mps
    precision: str = "auto"  # auto, float32 or bfloat16 (autocast over float32 weights)
    compile: bool = False  # torch.compile the loss
    start: str = ""  # published weights.safetensors to begin with; empty begins with random weights
    ema: float = 0.06  # width of the averaging window of the weights, as a share of the pictures seen
    checkpoint_seconds: float = 60.0  # between checkpoints
    sheet_seconds: float = 240.0  # between sheets of samples

    def __post_init__(self) -> None:
        for name, value in (("images", self.images), ("batch", self.batch)):
            if value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")


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

    def __post_init__(self) -> None:
        given = [name for name in OBJECTIVES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"a run has exactly one objective: give one table of [{'], ['.join(OBJECTIVES)}]"
            )


def build(run: RunConfig, device: torch.device) -> Objective:
    """The objective of a run, with its data and its network on `device`."""
    if run.denoise is not None:
        return Denoise(run.denoise, device)
    if run.upscale is not None:
        return Upscale(run.upscale, device)
    if run.detect is not None:
        return Detect(run.detect, device)
    if run.few_step is not None:
        return FewStep(run.few_step, device)
    if run.best_of is not None:
        return BestOf(run.best_of, device)
    if run.nft is not None:
        return NFT(run.nft, device)
    if run.vqvae is not None:
        return VQVAEObjective(run.vqvae, device)
    if run.ar_prior is not None:
        return ARPrior(run.ar_prior, device)
    assert run.clip is not None  # RunConfig has exactly one
    return CLIPObjective(run.clip, device)


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
