"""Personalisation in short: a folder of photos and a few words become a run, and what it needs besides.

Three methods, one objective: DreamBooth (a LoRA, a prior, and for the built-in model a new word), a LoRA of
captioned pictures, and textual inversion (a new word alone).
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from limner.data.loader import LoaderConfig
from limner.errors import ConfigError
from limner.families import FAMILIES
from limner.families.drawn import DrawnWords
from limner.families.mini import BASE
from limner.families.mini_learned import tokens_of
from limner.models.pixel_dit import PixelDiTConfig
from limner.text.lexicon import load_lexicon, surface_key
from limner.train.config import LoopConfig, RunConfig
from limner.train.learners.mini import refuse
from limner.train.objectives.diffusion import DiffusionConfig, PriorConfig
from limner.train.optim import OptimConfig
from limner.train.trainable import DIFFUSERS, LoRAConfig, WordsConfig, filed
from limner.weights import header
from limner.weights.embeddings import spellable

Method = Literal["dreambooth", "lora", "invert"]
FEW = 5  # words that a message lists


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What somebody wants to teach which model. In brackets what diffusers and kohya call it."""

    method: Method
    folder: Path  # photos, with or without captions (instance_data_dir)
    out: Path  # where everything goes (output_dir)
    model: str = "mini"  # (pretrained_model_name_or_path)
    subject: str = ""  # DreamBooth: the new word and its class, such as "sks dog"
    kind: str = ""  # the class, such as "dog"; also what an inverted word begins as (initializer_token)
    token: str = ""  # of textual inversion (placeholder_token)
    vectors: int = 1  # that an inverted word stands for (num_vectors)
    prompt: str = ""  # caption of photos without one; empty: made of the subject (instance_prompt)
    class_prompt: str = ""  # empty: made of the class (class_prompt)
    class_folder: Path | None = None  # class pictures of one's own (class_data_dir)
    class_images: int = 0  # 0: 32 for the built-in model, else 100 (num_class_images)
    prior_weight: float = 1.0  # 0: no prior (prior_loss_weight)
    rank: int = 0  # 0: 16 (rank, network_dim)
    alpha: float = 0.0  # 0: the rank (lora_alpha, network_alpha)
    rate: float = 0.0  # 0: as `RATES` has it (learning_rate)
    steps: int = 0  # 0: as `STEPS` has it (max_train_steps)
    batch: int = 0  # 0: 4 for the built-in model, else 1 (train_batch_size)
    micros: int = 1  # parts of a batch, one after another (gradient_accumulation_steps)
    size: int = 0  # 0: the model's own (resolution)
    seed: int = 0
    flip: bool = False  # (random_flip)
    text_encoder: bool = False  # (train_text_encoder)
    min_snr: float = 0.0  # above 0: min-SNR weighting with this gamma (snr_gamma)
    checkpointing: bool = False  # (gradient_checkpointing)
    precision: str = "auto"  # auto, float32 or bfloat16 (mixed_precision)
    device: str = "auto"
    shown: tuple[str, ...] = ()  # prompts of the sheets (validation_prompt)

    def __post_init__(self) -> None:
        """Raises ConfigError for words that do not go together."""
        if self.method == "dreambooth":
            if not _sayable(self.subject):
                raise ConfigError('--subject is the new word and what it is, such as --subject "sks dog"')
            if self.kind and not self.word:
                raise ConfigError(
                    f'--subject "{self.subject}" is only the class "{self.kind}"; put a new word before it, '
                    f'such as "sks {self.kind}"'
                )
            if self.class_folder is not None and self.prior_weight and not (self.kind or self.class_prompt):
                raise ConfigError(
                    f"--class-data-dir {self.class_folder} holds pictures of a class; say of which, "
                    "such as --class dog"
                )
        if self.method == "invert" and not _sayable(self.token):
            raise ConfigError('--token is the new word, such as --token "<mine>"')
        new = {"invert": self.token, "dreambooth": self.word, "lora": ""}[self.method]
        if new and not spellable(new):
            raise ConfigError(f'"{new}" cannot be written as a word: use one without dots, such as sks')
        for name in ("vectors", "micros"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is at least 1, got {getattr(self, name)}")
        for name in ("class_images", "prior_weight", "rank", "alpha", "rate", "steps", "batch", "size"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is at least 0, got {getattr(self, name)}")

    @property
    def word(self) -> str:
        """The new word of a DreamBooth subject: what stands before the class, or its first word."""
        subject = " ".join(self.subject.split())
        if self.kind and f" {subject}".lower().endswith(f" {self.kind}".lower()):
            return subject[: len(subject) - len(self.kind)].strip()
        return subject.partition(" ")[0]

    @property
    def name(self) -> str:
        """Of the run and of its file."""
        said = {"dreambooth": self.subject, "invert": self.token, "lora": self.out.name}[self.method]
        return "-".join(surface_key(said).split()) or self.method

    @property
    def caption(self) -> str:
        """Of photos that have none."""
        if self.prompt or self.method != "dreambooth":
            return self.prompt
        return f"a {self.subject}" if self.built_in else f"a photo of {self.subject}"

    @property
    def built_in(self) -> bool:
        """Whether the model is one of our own, with the words of the drawn world."""
        return self.model == "mini" or (Path(self.model) / BASE).exists()

    @property
    def classed(self) -> str:
        """The prompt of class pictures; empty: there are none."""
        if self.method != "dreambooth" or not self.prior_weight or not (self.kind or self.class_prompt):
            return ""
        return self.class_prompt or (f"a {self.kind}" if self.built_in else f"a photo of {self.kind}")


# Steps and learning rates of AdamW that the built-in model, and published ones, learn well with.
STEPS = {
    True: {"dreambooth": 300, "lora": 400, "invert": 400},
    False: {"dreambooth": 800, "lora": 1600, "invert": 3000},
}
RATES = {
    True: {"dreambooth": 2e-3, "lora": 1e-3, "invert": 5e-3},
    False: {"dreambooth": 1e-4, "lora": 1e-4, "invert": 5e-4},
}


def check_words(wish: Wish, captions: Sequence[str] = ()) -> tuple[str, ...]:
    """What is worth saying of the words of a wish, and of `captions`, before a model is loaded: for the
    built-in model those that mean nothing to it.

    Raises ConfigError for a new word, or a class, that the built-in model cannot be taught so.
    """
    new = {"invert": wish.token, "dreambooth": wish.word, "lora": ""}[wish.method]
    if not wish.built_in:
        usual = new and load_lexicon().has(new)
        return (f'"{new}" is an ordinary word: the model knows it already; "sks" is rarer',) if usual else ()
    path = folder_of(wish) / BASE
    said = header.read_metadata(path)
    objects, styles = (header.listed(said, name, path) for name in ("objects", "styles"))
    known = DrawnWords(
        objects=frozenset(objects),
        styles=styles,
        spells=said.get("spells") == "true",
        learned={surface_key(new): tokens_of(new, 1)} if new else {},
    )
    if new:
        refuse(new, known)
    if wish.kind and (unknown := known.read(f"a {wish.kind}").unknown):
        raise ConfigError(f"the class is no word of the built-in model: {'; '.join(map(str, unknown))}")
    read = (known.read(text) for text in (wish.subject, wish.prompt, wish.class_prompt, *captions))
    unheard = {word.word: str(word) for reading in read for word in reading.unknown}
    more = f", and {len(unheard) - FEW} more" if len(unheard) > FEW else ""
    told = "; ".join(list(unheard.values())[:FEW])
    return (f"words that mean nothing to the built-in model are left out: {told}{more}",) if unheard else ()


def check_out(out: Path) -> None:
    """Raises ConfigError for a folder that cannot be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".{os.getpid()}.partial"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}; name another folder by --out") from None


def run(wish: Wish, side: int) -> RunConfig:
    """The run of a wish, for a model whose pictures are `side` x `side`."""
    own = wish.built_in
    size = wish.size or side
    batch = wish.batch or (4 if own else 1)
    steps = wish.steps or STEPS[own][wish.method]
    prior = wish.class_folder or wish.out / "class"

    def loader(folder: Path, caption: str) -> LoaderConfig:
        return LoaderConfig(
            folder=str(folder),
            size=size,
            buckets=not own,
            bucket_step=min(64, size),
            caption=caption,
            flip=wish.flip,
            drop_caption=0.1 if wish.method == "lora" or own else 0.0,
            workers=0 if own else 2,
        )

    diffusion = DiffusionConfig(
        model=wish.model,
        data=loader(wish.out / "photos", wish.caption),
        weighting="min_snr" if wish.min_snr else "logit_normal" if own else "uniform",
        snr_gamma=wish.min_snr or 5.0,
        train_text_encoder=wish.text_encoder and not own,
        prior=PriorConfig(data=loader(prior, wish.classed), weight=wish.prior_weight)
        if wish.classed
        else None,
        prompts=wish.shown or _shown(wish),
    )
    word = wish.word if wish.method == "dreambooth" and own else ""
    return RunConfig(
        name=wish.name,
        loop=LoopConfig(
            images=steps * batch,
            batch=batch,
            micros=wish.micros,
            seed=wish.seed,
            device=wish.device,
            precision=wish.precision,
            checkpointing=wish.checkpointing,
            ema=0.03,
            sheet_seconds=1e9 if own else 600.0,
        ),
        optim=OptimConfig(
            muon_lr=0.0,
            adam_lr=wish.rate or RATES[own][wish.method],
            betas=(0.9, 0.99),
            weight_decay=0.0 if wish.method == "invert" else 0.01,
            warmup=min(steps // 10, 100) * batch,
            decay=0.4 if own else 0.0,
        ),
        diffusion=diffusion,
        lora=None
        if wish.method == "invert"
        else LoRAConfig(
            rank=wish.rank or 16,
            alpha=wish.alpha,
            targets="linear" if own else "attention",
            token=word,
            start=(wish.kind or wish.subject.partition(" ")[2]) if word else "",
        ),
        words=WordsConfig(token=wish.token, start=wish.kind, vectors=wish.vectors)
        if wish.method == "invert"
        else None,
    )


def _shown(wish: Wish) -> tuple[str, ...]:
    """Prompts that show how far a run has come."""
    said = {"dreambooth": f"a {wish.subject}", "invert": f"a photo of {wish.token}", "lora": ""}[wish.method]
    if not said:
        return ()
    if not wish.built_in:
        return (said, f"{said} on the beach", f"{said} in the snow", f"a painting of {said}")
    said = said.replace("photo of ", "")
    grounds = ("", " on a pink background", " in snow", " left of a tree")
    own = tuple(said + ground for ground in grounds)
    return (*own, f"a {wish.kind} on a pink background") if wish.kind else own


def result(wish: Wish) -> Path:
    """The one file that a finished run leaves, for --loras or --embeddings."""
    return wish.out / f"{filed(wish.token if wish.method == 'invert' else wish.name)}.safetensors"


def begun(wish: Wish) -> bool:
    """Whether OUT holds a run to go on with: checkpoints, or the small file of weights."""
    saved = any(path.name.isdigit() for path in (wish.out / "checkpoints").glob("[0-9]*"))
    return saved or (wish.out / "weights.safetensors").exists()


def check_new(wish: Wish) -> None:
    """Raises ConfigError for an OUT that holds a run."""
    if begun(wish):
        raise ConfigError(
            f"{wish.out} already holds a run; continue it with --resume, or choose another by --out"
        )


def collect(wish: Wish, written: Sequence[Path] = ()) -> Path:
    """Put what the run has written in the place of `result`: kohya's trainers name the file so, diffusers
    does not. `written` is what the run says it wrote last; without it, as when a finished run is resumed,
    the newer file counts. Raises ConfigError where nothing was written."""
    target, by_diffusers = result(wish), wish.out / DIFFUSERS
    if wish.method == "invert" and written:
        return written[-1]
    stale = by_diffusers in written or _newer(by_diffusers, target)
    if target in written or wish.method == "invert" or not stale:
        if not target.is_file():
            raise ConfigError(f"the run in {wish.out} has written no {target.name}; go on with --resume")
        return target
    beside = target.with_suffix(".partial")
    shutil.copyfile(by_diffusers, beside)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(target)
    return target


def _newer(path: Path, than: Path) -> bool:
    """Whether a file is there and `than` is older, or missing."""
    return path.is_file() and (not than.is_file() or path.stat().st_mtime_ns > than.stat().st_mtime_ns)


def side_of(wish: Wish) -> int:
    """The side that the model was made for, in pixels, from what its files say of themselves."""
    if wish.built_in:
        path = folder_of(wish) / BASE
        return header.network_config(header.read_metadata(path), "PixelDiT", PixelDiTConfig, path).size
    from limner.train import learners

    return learners.load(wish.model, torch.device("cpu")).size


def folder_of(wish: Wish) -> Path:
    """The folder of a built-in model's weights."""
    shipped = FAMILIES["mini"].folder
    return shipped if wish.model == "mini" and shipped is not None else Path(wish.model)


def as_toml(table: Mapping[str, Any], name: str = "") -> str:
    """Nested tables as TOML that `limner train` reads."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"[{name}]"] if name and plain else []
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in plain.items()]
    blocks = ["\n".join(lines)] if lines else []
    for key, value in table.items():
        if isinstance(value, Mapping):
            blocks.append(as_toml(value, f"{name}.{key}" if name else key))
    return "\n\n".join(blocks)


def enough_room(wish: Wish, least: int = 200_000_000) -> None:
    """Raises ConfigError when the disk has less than `least` bytes left: checkpoints need room."""
    free = shutil.disk_usage(wish.out).free
    if free < least:
        raise ConfigError(
            f"only {free / 1e6:.0f} MB are free at {wish.out}, and a run needs about "
            f"{math.ceil(least / 1e6)}; make room, or name another folder by --out"
        )


def _sayable(word: str) -> bool:
    return any(character.isalnum() for character in word)
