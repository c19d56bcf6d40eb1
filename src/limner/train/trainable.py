"""What is trained of a model: all of the network, a LoRA over it, a new word, or a control branch.

What is new stands among the learner's networks, as "lora", "words" or "controlnet", so that its parameters
have names of their own in checkpoints; everything else of the model stays as it is.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limner.errors import ConfigError, WeightsError
from limner.nn import lora
from limner.nn.lora import LowRank, Update
from limner.train.learners.base import Learner, Networks
from limner.weights import embeddings
from limner.weights import lora as lora_files
from limner.weights.embeddings import Embedding

LORA, WORDS, CONTROL = "lora", "words", "controlnet"  # among the networks
ATTENTION = frozenset({"q", "k", "v", "out", "qkv", "text_kv"})  # what layers of attention are called
TARGETS = ("attention", "linear", "all")
SPELLINGS = ("diffusers", "kohya", "both")
DIFFUSERS = "pytorch_lora_weights.safetensors"  # the name by which diffusers looks for it


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig:
    """Low-rank updates (Hu et al. 2021). In brackets what kohya's trainers call it."""

    rank: int = 16  # channels between the two matrices (network_dim)
    alpha: float = 0.0  # the update counts alpha / rank; 0: as much as the rank (network_alpha)
    targets: str = "attention"  # layers: attention, linear (all such layers of the blocks), or all, with
    # convolutions
    spelling: str = "both"  # of the files: diffusers, kohya, or both where the model has both
    token: str = ""  # a new word that is learned with it, and bundled in its files; empty: there is none
    start: str = ""  # the word that it begins as, such as "dog"; empty: noise

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 0:
            raise ValueError(f"rank is at least 1 and alpha at least 0, got {self.rank} and {self.alpha}")
        for name, known in (("targets", TARGETS), ("spelling", SPELLINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {', '.join(known)}, got {getattr(self, name)!r}")
        if self.token and not embeddings.spellable(self.token):
            raise ValueError(f"token is a word without dots, such as sks, got {self.token!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class WordsConfig:
    """A new word that stands for vectors (textual inversion, Gal et al. 2022). In brackets what diffusers'
    example calls it."""

    token: str  # what is typed, such as "<mine>" (placeholder_token)
    start: str = ""  # the word that it begins as, such as "dog"; empty: noise (initializer_token)
    vectors: int = 1  # how many it stands for (num_vectors)

    def __post_init__(self) -> None:
        if not embeddings.spellable(self.token):
            raise ValueError(f"token is a word without dots, such as <mine>, got {self.token!r}")
        if not 1 <= self.vectors <= embeddings.MOST:
            raise ValueError(f"vectors are 1 to {embeddings.MOST}, got {self.vectors}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlConfig:
    """A branch that follows a picture (ControlNet, Zhang et al. 2023). It begins as the network's own way
    down."""

    conditions: str = ""  # folder of the pictures to follow, KEY.png; empty: NAME.cond.png beside NAME.png


Trainable = LoRAConfig | WordsConfig | ControlConfig | None  # None: the whole network


class Factors(nn.Module):
    """The two matrices of one layer's update. They are used where the layer is, which asks for them anew each
    time: sharding puts others in their place."""

    def __init__(self, update: Update) -> None:
        super().__init__()
        self.down, self.up, self.scale = nn.Parameter(update.down), nn.Parameter(update.up), update.scale

    def __iter__(self) -> Iterator[Tensor | float]:
        return iter((self.down, self.up, self.scale))


def check(trainable: Trainable, *, text_encoder: bool) -> None:
    """Raises ConfigError for what cannot be trained together; nothing is loaded for it."""
    if text_encoder and isinstance(trainable, WordsConfig | ControlConfig):
        what = "a word" if isinstance(trainable, WordsConfig) else "a control branch"
        raise ConfigError(f"train_text_encoder does not go with {what}, which is trained alone; leave it out")


def prepare(learner: Learner, trainable: Trainable, *, text_encoder: bool = False) -> Networks:
    """Have just that of the learner's networks require gradients. Call it once. Returns the main network and
    those that are trained; the others are asked before a step, and belong to no process more than another.

    Raises ConfigError where the family has no such thing.
    """
    check(trainable, text_encoder=text_encoder)
    learner.networks.requires_grad_(False)
    texts = [name for name in learner.texts if name in learner.networks] if text_encoder else []
    if text_encoder and not texts:
        raise ConfigError("train_text_encoder: this model has no text encoder of its own network to train")
    match trainable:
        case None:
            for name in (learner.main, *texts):
                learner.networks[name].requires_grad_(True)
        case LoRAConfig():
            learner.networks[LORA] = nn.ModuleDict()
            for name in (learner.main, *texts):
                lay(learner, name, trainable)
            if trainable.token:
                teach(learner, trainable.token, trainable.start)
        case WordsConfig():
            teach(learner, trainable.token, trainable.start, trainable.vectors)
        case ControlConfig():
            learner.branch().requires_grad_(True)
    held = {name: network for name, network in learner.networks.items() if _changes(network)}
    return Networks({learner.main: learner.networks[learner.main], **held})


def _changes(network: nn.Module) -> bool:
    laid = any(isinstance(layer, LowRank) and LORA in layer.updates for layer in network.modules())
    return laid or any(p.requires_grad for p in network.parameters())


def teach(learner: Learner, token: str, start: str, count: int = 1) -> None:
    """Have a word stand for `count` new vectors, which begin as those of `start` do and are trained."""
    begun = learner.spelled(start, count)
    vectors = {name: nn.Parameter(rows.clone()) for name, rows in begun.items()}
    learner.networks[WORDS] = nn.ParameterDict(vectors)
    learner.learn(token, vectors)


def lay(learner: Learner, part: str, config: LoRAConfig) -> None:
    """Lay new updates over a network. They change nothing at first: `up` is zero, and `down` is drawn as a
    layer's weights are (He et al. 2015; the defaults of PEFT and of kohya's trainers)."""
    network, adapter = learner.networks[part], learner.networks[LORA]
    assert isinstance(adapter, nn.ModuleDict)
    fresh = {}
    for layer in layers(learner, part, config.targets):
        weight = network.get_submodule(layer).get_parameter("weight")
        down = torch.empty(config.rank, *weight.shape[1:], device=weight.device)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        up = torch.zeros(weight.shape[0], config.rank, *(1,) * (weight.ndim - 2), device=weight.device)
        fresh[layer] = Update(down, up, config.alpha or None)
    lora.attach(network, LORA, fresh)
    for layer, update in fresh.items():
        factors, laid = Factors(update), network.get_submodule(layer)
        assert isinstance(laid, LowRank)
        laid.updates[LORA] = factors  # type: ignore[assignment]  # unpacked alike
        adapter[f"{part}/{layer.replace('.', '/')}"] = factors


def layers(learner: Learner, part: str, targets: str) -> list[str]:
    """The layers of a network that `targets` means, in its order; of those only that can be published.

    Raises ConfigError where there is none.
    """
    network, found = learner.networks[part], []
    for name, module in network.named_modules():
        parent, _, last = name.rpartition(".")
        attends = last in ATTENTION and not parent.endswith("mlp")
        inside = any(f"{row}." in f"{name}." for row in ("blocks", "doubles", "singles"))
        transforms = inside and "resnet" not in name
        wanted = {
            "attention": isinstance(module, nn.Linear) and attends,
            "linear": isinstance(module, nn.Linear) and transforms,
            "all": isinstance(module, nn.Linear | nn.Conv2d) and "." in name,
        }
        if wanted[targets]:
            found.append(name)
    known = lora_files.published(learner.keys(part), found)
    if not (kept := [name for name in found if name in known]):
        raise ConfigError(f"lora.targets: the {part} of this model has no layers for {targets!r}")
    return kept


def updates(learner: Learner, averaged: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Update]]:
    """{part: {layer: update}} of the LoRA that is trained; `averaged` as in `Learner.write`."""
    found: dict[str, dict[str, Update]] = {}
    for part, network in learner.networks.items():
        for name, layer in network.named_modules():
            if isinstance(layer, LowRank) and LORA in layer.updates:
                down, up, scale = layer.updates[LORA]
                key = f"{LORA}.{part}/{name.replace('.', '/')}"
                down = (averaged or {}).get(f"{key}.down", down)
                up = (averaged or {}).get(f"{key}.up", up)
                found.setdefault(part, {})[name] = Update(down.detach(), up.detach(), scale * len(down))
    return found


def write(
    learner: Learner,
    trainable: Trainable,
    folder: Path,
    averaged: Mapping[str, Tensor],
    header: Mapping[str, str],
) -> list[Path]:
    """What was trained, in the form in which it is published; returns the files and folders.

    LoRA            NAME.safetensors as kohya's trainers write it, pytorch_lora_weights.safetensors as
                    diffusers does
    a word          TOKEN.safetensors
    control branch  controlnet/, a diffusers folder
    all of it       model/, a diffusers folder, or what the family has

    `header` goes into the metadata of a LoRA's and a word's file, and is not in the folders; "run" in it
    may say the run's name. Raises WeightsError for what cannot be written.
    """
    name = _name(header)
    match trainable:
        case None:
            return learner.write(folder / "model", averaged)
        case LoRAConfig():
            return _write_lora(learner, trainable, folder, averaged, header, name)
        case WordsConfig():
            path = folder / f"{filed(trainable.token)}.safetensors"
            rows = _words(learner, averaged)
            embeddings.write(path, Embedding(_written(trainable.token, rows), rows), header)
            return [path]
        case ControlConfig():
            return learner.write_branch(folder / "controlnet", averaged)


@torch.no_grad()
def change(learner: Learner, size: tuple[int, int], *, seed: int = 0) -> float:
    """How much a LoRA changes what the network predicts, as a share of the prediction's own size: for noise
    halfway along the path and an empty caption. 0 for one that does nothing."""
    generator = torch.Generator().manual_seed(seed)
    x0 = learner.latents(torch.zeros(1, 3, *size))
    x = torch.randn(x0.shape, generator=generator).to(x0)
    t = torch.full((1,), learner.path.start / 2, device=x0.device)

    def asked(weight: float) -> Tensor:
        for network in learner.networks.values():
            if LORA in lora.attached(network):
                lora.set_weight(network, LORA, weight)
        return learner.predict(x, t, learner.say([""], target=size)).float()

    plain, changed = asked(0.0), asked(1.0)
    return float((changed - plain).norm() / plain.norm().clamp(min=1e-12))


def _write_lora(
    learner: Learner,
    config: LoRAConfig,
    folder: Path,
    averaged: Mapping[str, Tensor],
    header: Mapping[str, str],
    name: str,
) -> list[Path]:
    """Both spellings; each counts as written when it can be read back with as many updates as went in."""
    laid = updates(learner, averaged)
    keys = {part: learner.keys(part) for part in (learner.main, *learner.texts) if part in learner.networks}
    kohya = set(laid) <= set(lora_files.KOHYA)
    wanted = {"diffusers": DIFFUSERS, "kohya": f"{name}.safetensors"}
    paths = []
    for spelling in ("diffusers", "kohya"):
        if config.spelling not in (spelling, "both") or (spelling == "kohya" and not kohya):
            continue
        path = folder / wanted[spelling]
        metadata = dict(header) | described(learner, config, name)
        lora_files.write(
            path,
            laid,
            keys,
            spelling=spelling,
            metadata=metadata,
            words={config.token: _words(learner, averaged)} if config.token else {},
        )
        _read_back(path, sum(map(len, laid.values())))
        paths.append(path)
    if not paths:
        raise WeightsError(
            "kohya's trainers have no spelling for this model's layers; set lora.spelling to diffusers"
        )
    return paths


def _read_back(path: Path, count: int) -> None:
    """Raises WeightsError where a file does not hold all its updates."""
    found = lora_files.read(path)
    if len(found.updates) != count:
        raise WeightsError(f"{path} holds {len(found.updates)} updates and should hold {count}")


def described(learner: Learner, config: LoRAConfig, name: str) -> dict[str, str]:
    """What other programs look for in a LoRA's metadata: kohya's `ss_` keys, and those of modelspec 1.0.0."""
    base, architecture = _base(learner)
    alpha = config.alpha or config.rank
    arguments = {"conv_dim": str(config.rank), "conv_alpha": str(alpha)} if config.targets == "all" else {}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(float(alpha)),
        "ss_network_args": json.dumps(arguments),
        "ss_base_model_version": base,
        "ss_v2": str(base == "sd_v2"),
        "ss_output_name": name,
        "ss_lora": json.dumps(asdict(config), sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.resolution": f"{learner.size}x{learner.size}",
        "modelspec.prediction_type": {"eps": "epsilon", "v": "v"}.get(learner.prediction, learner.prediction),
    }


def _base(learner: Learner) -> tuple[str, str]:
    """(kohya's word for the model that a LoRA is for, modelspec's)."""
    config = getattr(learner.networks[learner.main], "config", None)
    kind = type(learner.networks[learner.main]).__name__
    if kind == "MMDiT":
        return "sd3", "stable-diffusion-3-medium"
    if kind == "Flux":
        return "flux1", "flux-1-dev" if getattr(config, "guidance", False) else "flux-1-schnell"
    if kind != "UNet":
        return "limner_mini", "limner-mini"
    if getattr(config, "sizes", 0):
        return "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
    if getattr(config, "pointwise", True):
        return "sd_v1", "stable-diffusion-v1"
    return "sd_v2", f"stable-diffusion-v2-{'768-v' if learner.prediction == 'v' else '512'}"


def _words(learner: Learner, averaged: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "n _"]]:
    held = learner.networks[WORDS].named_parameters()
    return {name: averaged.get(f"{WORDS}.{name}", rows).detach() for name, rows in held}


def _written(token: str, rows: Mapping[str, Tensor]) -> str:
    """Words of two encoders are called as their file is."""
    return token if len(rows) == 1 else filed(token)


def filed(token: str) -> str:
    """A token as a file may be called."""
    return "".join(sign if sign.isalnum() or sign in "-_ " else "" for sign in token).strip() or "word"


def _name(header: Mapping[str, str]) -> str:
    try:
        said = json.loads(header.get("run", "{}"))
    except ValueError:
        return "lora"
    name = said.get("name") if isinstance(said, dict) else None
    return filed(name) if isinstance(name, str) else "lora"
