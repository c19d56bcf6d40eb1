"""What a family of models is, to those who draw with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from limner.families.stages import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What is used where a request leaves a choice open."""

    steps: int  # of the sampler
    guidance: float  # scale; 1 is the prompt alone
    sampler: str  # a name in diffusion.samplers.SAMPLERS
    size: tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One request with every choice made, as a model is given it."""

    prompt: str
    negative_prompt: str
    steps: int
    guidance: float
    sampler: str
    size: tuple[int, int]  # (height, width) in pixels
    style: str | None  # None: as the prompt says, if it says


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a model will fill an order."""

    stages: tuple[Stage, ...]  # each draws on what the one before has drawn
    notices: tuple[str, ...]  # how words and wishes were understood
    warnings: tuple[str, ...]  # what was asked for and will not be in the picture


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
class Family:
    """A recipe: where its weights are and how they become a model."""

    name: str
    folder: Path  # the weights that come with the package
    load: Callable[[Path, torch.device], Model]  # (folder, device); raises WeightsError
