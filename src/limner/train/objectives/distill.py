"""Objective: the same pictures in four steps (latent consistency models, Luo et al. 2023, algorithm 1).

The teacher, the model as it was, takes one guided DDIM step along the path; the student has to name the same
picture at both ends of it, and so learns where the whole path ends. At t = 0 its answer is the picture
itself, by `diffusion.predictions.consistency` (c_skip and c_out). The guidance is not told, it becomes part
of the model: of the whole network, written with the sampler LCM, or of a LoRA (LCM-LoRA, Luo et al. 2023),
which turns other models of its kind into models of few steps.

What the student has to agree with is a running average of itself (`decay`). It lies among the parameters, so
that checkpoints hold it and runs resume exactly.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from limner.data.loader import LoaderConfig
from limner.diffusion import losses, predictions
from limner.diffusion.predictions import Denoise
from limner.errors import ConfigError
from limner.train import learners, trainable
from limner.train.frozen import Frozen, standing_in, uncast
from limner.train.learners.base import Said
from limner.train.learners.sd import SDLearner
from limner.train.pictures import Pictures
from limner.train.trainable import LoRAConfig, Trainable
from limner.util.images import images_from_pixels, sheet
from limner.util.rng import mix
from limner.weights.parts import LCM

TARGET = "target"  # the average, among the networks
LATENTS, NOISE, TIME, SCALE = range(4)  # what chance is drawn for, each from numbers of its own
STEPS = 4  # of the sheets


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """Which model, which pictures. In brackets what diffusers' example calls it."""

    model: str  # Stable Diffusion as a folder, a file or a hub id (pretrained_teacher_model)
    data: LoaderConfig
    guidance: tuple[float, float] = (6.0, 16.0)  # range of the teacher's guidance scale, 1 + w_min, 1 + w_max
    grid: int = 50  # DDIM steps of the teacher's whole path (num_ddim_timesteps)
    decay: float = 0.95  # of the average, at every micro-batch (ema_decay); 0: the student as it is
    huber: float = 1e-3  # where the loss turns from square to absolute (huber_c)
    prompts: tuple[str, ...] = ()  # of the sheets; (): captions of the data

    def __post_init__(self) -> None:
        low, high = self.guidance
        if not 1 <= low <= high:
            raise ValueError(f"guidance is a range of scales from 1 on, got {list(self.guidance)}")
        if not 0 <= self.decay < 1 or self.huber <= 0 or self.grid < STEPS:
            raise ValueError(
                f"decay is from 0 to below 1, huber above 0 and grid {STEPS} at least; got {self.decay}, "
                f"{self.huber} and {self.grid}"
            )


class Batch(NamedTuple):
    """One step's pictures, with everything random about the step already drawn."""

    x0: Float[Tensor, "b c h w"]
    noise: Float[Tensor, "b c h w"]
    t: Float[Tensor, " b"]  # where the teacher's step begins
    r: Float[Tensor, " b"]  # where it ends
    scale: Float[Tensor, " b"]  # of its guidance
    said: Said
    empty: Said  # of the empty caption


class Distill:
    """The objective. It writes what it learns itself (`Writing`)."""

    def __init__(self, config: DistillConfig, device: torch.device, trained: Trainable = None) -> None:
        """Raises ConfigError for models that are not distilled here."""
        self.config, self.trained, self.device = config, trained, device
        learner = learners.load(config.model, device)
        if not isinstance(learner, SDLearner):
            raise ConfigError(
                f"{config.model} runs on a straight path; consistency models are distilled here of Stable "
                "Diffusion 1, 2 and XL (the built-in model has few_step)"
            )
        if learner.family.defaults.sampler == "lcm":
            raise ConfigError(f"{config.model} draws in few steps already; begin with what it was made of")
        self.learner, self.path = learner, learner.path
        if self.path.steps % config.grid:
            raise ConfigError(
                f"grid divides the {self.path.steps} steps of this model's path, got {config.grid}"
            )
        trainable.prepare(learner, trained)
        self.frozen = Frozen(learner, trained)
        self.model = learner.networks
        self.student = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if config.decay:
            begun = {n.replace(".", "/"): p.detach().clone() for n, p in self.student.items()}
            self.model[TARGET] = nn.ParameterDict(
                {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in begun.items()}
            )
        self.pictures = Pictures(config.data, device, learner.multiple)

    @torch.no_grad()
    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """Pictures in order; everything else from `seed`."""
        pixels, loaded = self.pictures.batch(count, seed, index)
        x0 = self.learner.latents(pixels, _chance(seed, LATENTS)).float()
        stride = self.path.steps // self.config.grid
        t = stride * torch.randint(1, self.config.grid + 1, (count,), generator=_chance(seed, TIME)) - 1
        low, high = self.config.guidance
        scale = low + (high - low) * torch.rand(count, generator=_chance(seed, SCALE))
        placed = loaded.sizes, loaded.crops, loaded.target
        return Batch(
            x0=x0,
            noise=torch.randn(x0.shape, generator=_chance(seed, NOISE)).to(x0),
            t=t.float().to(x0.device),
            r=(t - stride).clamp(min=0).float().to(x0.device),
            scale=scale.to(x0.device),
            said=self.learner.say(loaded.captions, *placed),
            empty=self.learner.say([""] * count, *placed),
        )

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Pseudo-Huber distance of what is said at both ends of the teacher's step (the published code's form
        of algorithm 1)."""
        x_t = losses.noised(batch.x0, batch.noise, self.path.alpha(batch.t), self.path.sigma(batch.t))
        goal = self.goal(x_t, batch)
        said = predictions.consistency(self._denoise(batch.said))(x_t, batch.t)
        width = self.config.huber
        return {"consistency": ((said.float() - goal).square() + width**2).sqrt().sub(width).mean()}

    @torch.no_grad()
    def goal(self, x_t: Float[Tensor, "b c h w"], batch: Batch) -> Float[Tensor, "b c h w"]:
        """What the average says where the teacher's guided DDIM step ends. In training, the average first
        takes in the weights as they are."""
        with self.frozen.in_place():
            cond, uncond = (self._denoise(said)(x_t, batch.t).float() for said in (batch.said, batch.empty))
        x0 = uncond + losses.along(batch.scale, uncond) * (cond - uncond)
        alpha, sigma = (losses.along(of(batch.t), x_t) for of in (self.path.alpha, self.path.sigma))
        noise = (x_t - alpha * x0) / sigma
        x_r = losses.noised(x0, noise, self.path.alpha(batch.r), self.path.sigma(batch.r))
        student = predictions.consistency(self._denoise(batch.said))
        if not self.config.decay:
            with uncast():
                return student(x_r, batch.r).float()
        held = dict(self.model[TARGET].named_parameters())
        average = {name: held[name.replace(".", "/")] for name in self.student}
        if self.model.training:
            for name, p in self.student.items():
                average[name].lerp_(p.detach(), 1 - self.config.decay)
        with standing_in(self.student, average):
            return student(x_r, batch.r).float()

    def _denoise(self, said: Said) -> Denoise:
        """(x, t) -> x0 by the main network as it stands."""

        def network(x: Tensor, t: Tensor) -> Tensor:
            return self.learner.predict(x, t, said)

        match self.learner.prediction:
            case "v":
                return predictions.v(network, self.path)
            case "x0":
                return predictions.x0(network)
            case _:
                return predictions.eps(network, self.path)

    def blocks(self) -> list[nn.Module]:
        return self.learner.blocks()

    def broken(self) -> list[str]:
        return self.pictures.broken()

    def published(self) -> set[str]:
        """Everything that is trained, and its average."""
        held = set(self.student)
        return held | {name for name, _ in self.model.named_parameters() if name.startswith(f"{TARGET}.")}

    def header(self) -> dict[str, str]:
        """The model, what was trained of it, and that it is for few steps: by this word a LoRA is known."""
        said = {"model": Path(self.config.model).name, "distilled": "lcm"}
        if isinstance(self.trained, LoRAConfig):
            said["trained"] = json.dumps({"LoRAConfig": asdict(self.trained)}, sort_keys=True)
        return said

    def write(self, folder: Path, averaged: Mapping[str, Tensor], header: Mapping[str, str]) -> list[Path]:
        """As `Writing` has it. A whole model comes with the sampler LCM, so that it is drawn with in four
        steps."""
        return trainable.write(self._few(), self.trained, folder, averaged, header)

    def draw(self, model: Any) -> Image.Image:
        """A sheet of pictures in four steps; above, the teacher's in four steps of its own."""
        prompts = list(self.config.prompts) or self.pictures.loader.batch(4, 0, 0).captions
        seeds, side = list(range(len(prompts))), self.config.data.size
        with self.frozen.in_place():
            before = self.learner.sample(prompts, seeds, steps=STEPS, size=(side, side))
        after = self._few().sample(prompts, seeds, steps=STEPS, size=(side, side))
        return sheet(images_from_pixels(torch.cat([before, after])), columns=len(prompts))

    def _few(self) -> SDLearner:
        """The learner as a model of few steps: the same networks, another sampler."""
        learner = self.learner
        usual = learner.family.defaults.lcm or learner.family.defaults
        family = replace(learner.family, defaults=usual)
        # what leads from noise to the picture is another, the path is the same
        table = {key: said for key, said in learner.origin.found.table.items() if key in PATH} | {
            key: said for key, said in LCM.items() if key not in PATH
        }
        found = replace(learner.origin.found, table=table)
        return replace(learner, family=family, origin=replace(learner.origin, found=found))


PATH = (
    "beta_start",
    "beta_end",
    "beta_schedule",
    "num_train_timesteps",
    "rescale_betas_zero_snr",
    "trained_betas",
)


def _chance(seed: int, use: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(seed, 4, use) % 2**63)
