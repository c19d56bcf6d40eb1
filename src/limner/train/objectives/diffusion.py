"""Train a published family, or what is laid over it: a LoRA, a word, a control branch.

The objective is always the same: noise a picture, ask the network, compare with what it should have said.
DreamBooth is it with a few pictures and a prior; textual inversion and ControlNet are it with another
trainable.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from limner.data import buckets
from limner.data.loader import Loaded, Loader, LoaderConfig
from limner.data.pictures import open_picture
from limner.diffusion import losses
from limner.diffusion.losses import Prediction
from limner.diffusion.paths import VPPath, shift
from limner.errors import ConfigError, DataError
from limner.train import learners, parallel, trainable
from limner.train.learners.base import Learner, Said, Sides, recalled
from limner.train.trainable import ControlConfig, LoRAConfig, Trainable, WordsConfig
from limner.util.images import images_from_pixels, pixels_from_images, sheet
from limner.util.rng import mix

WEIGHTINGS = ("uniform", "min_snr", "logit_normal", "mode", "cosmap")
ALONG_FLOW = ("logit_normal", "mode", "cosmap")  # are of straight paths
PREDICTIONS = ("eps", "v", "x0", "flow")
TEMPLATES = ("a photo of {}", "a picture of {}", "a close-up of {}", "a drawing of {}", "{}")
LATENTS, NOISE, OFFSET, TIME, WORDING = range(5)  # what chance is drawn for, each from numbers of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    """Pictures that keep what the network knew (DreamBooth's prior preservation, Ruiz et al. 2022, eq. 2).
    As many as of the others are in each step."""

    data: LoaderConfig
    weight: float = 1.0  # of their loss (prior_loss_weight)

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight is above 0, got {self.weight}; leave the prior out instead")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """Which model, which pictures, how errors are weighed. In brackets what diffusers' examples call it."""

    model: str  # "mini", a folder, a file or a hub id (pretrained_model_name_or_path)
    data: LoaderConfig
    fresh: bool = False  # the main network begins with random weights, in the shape that its settings say
    prediction: str = ""  # of a fresh network: eps, v, x0 or flow; empty: as its folder says
    weighting: str = "uniform"  # uniform, min_snr; and of flow models logit_normal, mode, cosmap
    # (weighting_scheme)
    snr_gamma: float = 5.0  # of min_snr (snr_gamma)
    logit_mean: float = 0.0  # of logit_normal; above 0 leans to noise here (logit_mean, the other way round)
    logit_std: float = 1.0  # of logit_normal (logit_std)
    mode_scale: float = 1.29  # of mode (mode_scale)
    shift: float = 0.0  # of a flow path towards noise; 0: as the model draws pictures of this size
    zero_terminal_snr: bool = False  # the path ends in pure noise; for v and x0 (rescale_betas_zero_snr)
    noise_offset: float = 0.0  # share of one number more for each channel; 0.05 to 0.1 is usual
    posterior: bool = True  # latents are drawn from what the autoencoder says; if not, its mean is taken
    train_text_encoder: bool = False  # too, with the network or in its LoRA
    prior: PriorConfig | None = None  # None: there is none (with_prior_preservation)
    prompts: tuple[str, ...] = ()  # of the sheets; (): captions of the data (validation_prompt)
    sheet_steps: int = 20  # of the sampler

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting is {', '.join(WEIGHTINGS)}, got {self.weighting!r}")
        if self.prediction and self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {', '.join(PREDICTIONS)}, got {self.prediction!r}")
        if self.prediction and not self.fresh:
            raise ValueError(
                f"prediction = {self.prediction!r} is for fresh networks: others have learned what they "
                "predict"
            )
        if self.zero_terminal_snr and self.prediction in ("eps", "flow"):
            raise ValueError(f"zero_terminal_snr needs v or x0, and prediction is {self.prediction}")
        if self.snr_gamma <= 0 or self.logit_std < 0 or self.shift < 0 or self.noise_offset < 0:
            raise ValueError("snr_gamma is above 0; logit_std, shift and noise_offset are at least 0")
        if not -1 <= self.mode_scale <= losses.MODE_SCALE_MAX:
            raise ValueError(f"mode_scale is from -1 to {losses.MODE_SCALE_MAX:.4f}, got {self.mode_scale}")


class Batch(NamedTuple):
    """One step's pictures, with everything random about the step already drawn."""

    x0: Float[Tensor, "b c h w"]
    noise: Float[Tensor, "b c h w"]
    t: Float[Tensor, " b"]
    weight: Float[Tensor, " b"]  # of the errors
    captions: tuple[str, ...]  # where they are said with gradients
    sizes: tuple[Sides, ...]
    crops: tuple[Sides, ...]
    target: Sides
    said: Said | None  # otherwise
    condition: Float[Tensor, "b 3 H W"] | None  # pixels in [-1, 1]
    prior: "Batch | None" = None


class Diffusion:
    """The objective. It writes what it learns itself (`Writing`), and says which pictures were broken."""

    def __init__(self, config: DiffusionConfig, device: torch.device, trained: Trainable = None) -> None:
        """Raises ConfigError for what does not go together, before anything is loaded where that can be
        known."""
        check(config, trained)
        self.config, self.trained, self.device = config, trained, device
        self.learner = learners.load(
            config.model,
            device,
            config.fresh,
            prediction=config.prediction or None,
            zero_terminal_snr=config.zero_terminal_snr,
        )
        fits(config, self.learner)
        self.model = trainable.prepare(self.learner, trained, text_encoder=config.train_text_encoder)
        words = isinstance(trained, WordsConfig) or (isinstance(trained, LoRAConfig) and bool(trained.token))
        # What the trained network itself says is asked within the step, where its weights are whole.
        inside = not any(name in self.learner.networks for name in self.learner.texts)
        self.spoken = words or config.train_text_encoder or inside
        self.loader = Loader(config.data, self.learner.stamp if config.data.latents else "")
        self.prior = None
        if config.prior is not None:
            self.prior = Loader(config.prior.data, self.learner.stamp if config.prior.data.latents else "")
        loaders = [self.loader, *([self.prior] if self.prior else [])]
        self.followed: dict[Loader, dict[str, Path]] = {}  # pictures to follow, by the key of their picture
        if isinstance(trained, ControlConfig):
            self.followed = {one: _followed(one, trained) for one in loaders}
        self.met: list[str] = [f"{key}: {why}" for one in loaders for key, why in one.left_out]

    # -- a step ----------------------------------------------------------------------------------------------

    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """`count` pictures, and as many of the prior where there is one."""
        batch = self._batch(self.loader, count, seed, index)
        if self.prior is None:
            return batch
        return batch._replace(prior=self._batch(self.prior, count, mix(seed, 1) % 2**63, index))

    def _batch(self, loader: Loader, count: int, seed: int, index: int) -> Batch:
        loaded = loader.batch(count, index, seed)
        self.met += [f"{key}: {why}" for key, why in loaded.broken]
        x0 = self._latents(loaded, seed)
        noise = torch.randn(x0.shape, generator=_chance(seed, NOISE))
        if self.config.noise_offset:
            noise = losses.offset(noise, self.config.noise_offset, _chance(seed, OFFSET))
        t, weight = self.times(count, loaded.target, _chance(seed, TIME))
        captions = self._captions(loaded.captions, seed)
        placed = loaded.sizes, loaded.crops, loaded.target
        said: Said | None = None
        if loaded.said is not None and not self.spoken:
            said = recalled(self.learner, loaded.said, *placed)
        elif not self.spoken:
            said = self.learner.say(captions, *placed)
        condition = None
        if isinstance(self.trained, ControlConfig):
            condition, there = self._conditions(loaded, self.followed[loader])
            weight = weight * there
        return Batch(
            x0=x0,
            noise=noise.to(x0),
            t=t.to(x0.device),
            weight=weight.to(x0.device),
            captions=tuple(captions),
            sizes=tuple(loaded.sizes),
            crops=tuple(loaded.crops),
            target=loaded.target,
            said=said,
            condition=condition,
        )

    def times(
        self, count: int, size: Sides, generator: torch.Generator
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """(t of the path, weights of the errors) of `count` pictures of `size`. Tables of steps are drawn
        from in whole steps; on the flow path t is drawn, then shifted towards noise, as SD3 does (sections
        3.1 and 5.3.2)."""
        config, path = self.config, self.learner.path
        one = torch.ones(count)
        if isinstance(path, VPPath):
            t = torch.randint(path.steps, (count,), generator=generator).float()
        else:
            match config.weighting:
                case "logit_normal":
                    t = losses.logit_normal(count, config.logit_mean, config.logit_std, generator=generator)
                case "mode":
                    t = losses.mode(count, config.mode_scale, generator)
                case _:
                    t = losses.uniform(count, generator)
            t = shift(t, config.shift or self.learner.shift(size)).clamp(min=path.end)
        if config.weighting == "min_snr":
            kind = cast(Prediction, self.learner.prediction)
            return t, losses.min_snr(path.alpha(t), path.sigma(t), config.snr_gamma, kind)
        if config.weighting == "cosmap":
            return t, losses.cosmap_density(t)
        return t, one

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The error of the prediction, and of the prior's, weighed; means over the pictures."""
        parts = {self.learner.prediction: self._loss(batch)}
        if batch.prior is not None and self.config.prior is not None:
            parts["prior"] = self.config.prior.weight * self._loss(batch.prior)
        return parts

    def _loss(self, batch: Batch) -> Float[Tensor, ""]:
        said = batch.said
        if said is None:
            said = self.learner.say(batch.captions, batch.sizes, batch.crops, batch.target)
        path, kind = self.learner.path, cast(Prediction, self.learner.prediction)
        alpha, sigma = path.alpha(batch.t), path.sigma(batch.t)
        x_t = losses.noised(batch.x0, batch.noise, alpha, sigma)
        wanted = losses.target(kind, batch.x0, batch.noise, alpha, sigma)
        answer = self.learner.predict(x_t, batch.t, said, batch.condition)
        return (batch.weight * losses.squared_error(answer, wanted)).mean()

    # -- what the loop asks besides --------------------------------------------------------------------------

    def blocks(self) -> list[nn.Module]:
        return self.learner.blocks()

    def broken(self) -> list[str]:
        met, self.met = list(dict.fromkeys(self.met)), []
        return met

    def published(self) -> set[str]:
        """Everything that is trained."""
        return {name for name, p in self.model.named_parameters() if p.requires_grad}

    def header(self) -> dict[str, str]:
        """The model, and what was trained of it."""
        said = {"model": Path(self.config.model).name, "prediction": self.learner.prediction}
        if self.trained is not None:
            said["trained"] = json.dumps({type(self.trained).__name__: asdict(self.trained)}, sort_keys=True)
        return said

    def write(self, folder: Path, averaged: Mapping[str, Tensor], header: Mapping[str, str]) -> list[Path]:
        """As `Writing` has it; what is written is told in `trainable.write`."""
        return trainable.write(self.learner, self.trained, folder, averaged, header)

    def evaluate(self) -> dict[str, float]:
        """For a LoRA, how much it changes what the network says: 0 would be one that does nothing."""
        if not isinstance(self.trained, LoRAConfig):
            return {}
        return {"adapter_change": trainable.change(self.learner, self._shown())}

    def draw(self, model: Any) -> Image.Image:
        """A sheet of pictures by the family's own plan, of the run's prompts or four captions."""
        prompts = list(self.config.prompts) or self._captions(self.loader.batch(4, 0, 0).captions, 0)
        pixels = self.learner.sample(
            prompts, list(range(len(prompts))), steps=self.config.sheet_steps, size=self._shown()
        )
        return sheet(images_from_pixels(pixels), columns=min(4, len(prompts)))

    # -- data ------------------------------------------------------------------------------------------------

    def _shown(self) -> Sides:
        """The size of a square picture of this run."""
        side = max(1, self.config.data.size // self.learner.multiple) * self.learner.multiple
        return side, side

    def _latents(self, loaded: Loaded, seed: int) -> Float[Tensor, "b c h w"]:
        if loaded.latents is not None:
            return loaded.latents.to(self.device)
        assert loaded.pixels is not None  # one of the two is there
        chance = _chance(seed, LATENTS) if self.config.posterior else None
        return self.learner.latents(loaded.pixels.to(self.device), chance).float()

    def _captions(self, captions: list[str], seed: int) -> list[str]:
        """As they are. Where a word is learned, each has it: what has no caption is told by a template."""
        if not isinstance(self.trained, WordsConfig):
            return captions
        token, chance = self.trained.token, _chance(seed, WORDING)
        picks = torch.randint(len(TEMPLATES), (len(captions),), generator=chance).tolist()
        return [
            caption
            if token.lower() in caption.lower()
            else f"{caption}, {token}"
            if caption
            else TEMPLATES[pick].format(token)
            for caption, pick in zip(captions, picks, strict=True)
        ]

    def _conditions(
        self, loaded: Loaded, followed: Mapping[str, Path]
    ) -> tuple[Float[Tensor, "b 3 H W"], Float[Tensor, " b"]]:
        """The pictures to follow, cut as those that are learned, and 1 for each that is there: one that
        cannot be read is named as broken and black, and nothing is to be learned of it."""
        pictures, there = [], torch.ones(len(loaded.keys))
        for row, (key, (top, left)) in enumerate(zip(loaded.keys, loaded.crops, strict=True)):
            high, wide = loaded.target
            try:
                shown = buckets.cover(open_picture(str(followed[key])), (wide, high))
            except DataError as error:
                self.met.append(f"{key}: {error}")
                there[row] = 0
                pictures.append(Image.new("RGB", (wide, high)))
            else:
                pictures.append(shown.crop((left, top, left + wide, top + high)))
        return torch.as_tensor(pixels_from_images(pictures)).to(self.device), there


def check(config: DiffusionConfig, trained: Trainable) -> None:
    """Raises ConfigError for settings that do not go together; nothing is loaded for it."""
    trainable.check(trained, text_encoder=config.train_text_encoder)
    loaders = [config.data, *([config.prior.data] if config.prior else [])]
    if config.fresh and trained is not None:
        raise ConfigError(
            "fresh networks are trained whole: a LoRA, a word or a control branch is laid over one that has "
            "learned; leave out fresh, or the trainable"
        )
    word = isinstance(trained, WordsConfig) or (isinstance(trained, LoRAConfig) and bool(trained.token))
    if word and parallel.size() > 1:
        raise ConfigError(
            "a word is a few numbers: train it in one process, without torchrun; a LoRA goes with torchrun "
            "where lora.token is left out"
        )
    if isinstance(trained, ControlConfig) and any(one.flip or one.latents for one in loaders):
        raise ConfigError(
            "pictures to follow are read beside their pictures as these are shown: set flip and latents to "
            "false where a control branch is trained"
        )


def fits(config: DiffusionConfig, learner: Learner) -> None:
    """Raises ConfigError for what this model cannot learn so."""
    straight = not isinstance(learner.path, VPPath)
    if config.weighting in ALONG_FLOW and not straight:
        raise ConfigError(
            f"weighting {config.weighting!r} is of straight paths, and {config.model} runs on a table of "
            "steps: take uniform or min_snr"
        )
    if config.shift and not straight:
        raise ConfigError(f"shift is of straight paths, and {config.model} runs on a table of steps")
    multiple = learner.multiple
    for data in (config.data, *([config.prior.data] if config.prior else [])):
        step = data.bucket_step if data.buckets else data.size
        if multiple == learner.size:  # it draws pictures of one size, and makes them of others
            continue
        if step % multiple:
            raise ConfigError(
                f"sides of pictures are multiples of {multiple} for this model, and those of {data.folder} "
                f"are of {step}: change {'bucket_step' if data.buckets else 'size'}"
            )


def _chance(seed: int, use: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(seed, 2, use) % 2**63)


def _followed(loader: Loader, config: ControlConfig) -> dict[str, Path]:
    """{key: picture to follow}. Pictures without one are left out, and named. Raises DataError where none has
    one."""
    places = [_condition(loader, row, config) for row in range(len(loader.data))]
    missing = {row: f"{path} is not there" for row, path in enumerate(places) if not path.is_file()}
    keys = [loader.data.text("key", row) for row in range(len(places))]
    loader.leave_out(missing)
    return {key: path for row, (key, path) in enumerate(zip(keys, places, strict=True)) if row not in missing}


def _condition(loader: Loader, row: int, config: ControlConfig) -> Path:
    if config.conditions:
        return Path(config.conditions).expanduser() / f"{loader.data.text('key', row)}.png"
    if loader.data.packed is not None:
        raise DataError(
            "packed pictures have nothing beside them: name the folder of the pictures to follow by "
            "control.conditions, each called KEY.png"
        )
    picture = Path(loader.data.text("picture", row))
    return picture.with_name(f"{picture.stem}.cond.png")
