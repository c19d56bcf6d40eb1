"""Stable Diffusion from what lies on the disk: folders, single files, and what may be laid over them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from limner.diffusion.paths import VPPath
from limner.errors import ConfigError, WeightsError
from limner.families.base import TYPES, Defaults, Family, Wishes
from limner.families.conditions import Encoder, Tower, Vectors
from limner.families.sd import StableDiffusion
from limner.families.shelf import Shelf
from limner.models.clip import CLIPText
from limner.models.controlnet import ControlNet
from limner.models.kl_vae import KLVAEConfig
from limner.models.tiny_vae import TinyVAE
from limner.models.unet import UNetConfig
from limner.nn import lora as low_rank
from limner.text.prompt import Lora
from limner.util.devices import pick_precision
from limner.weights import described, detect, embeddings, files, folders, hub, lora
from limner.weights.detect import Found
from limner.weights.keymap import KeyMap
from limner.weights.parts import MODELS, Model, Part
from limner.weights.standalone import identify_network

DEFAULTS = Defaults(steps=25, guidance=7.0, sampler="dpmpp_2m", size=(512, 512))
XL_GUIDANCE = 5.0
FEW = 4  # steps of models distilled to few; Turbo and Lightning draw in 1 to 8, LCM in 2 to 8
TOLD_GUIDANCE = 8.5  # scale that an LCM's U-Net is told
EULER = {"EulerDiscreteScheduler": "euler", "EulerAncestralDiscreteScheduler": "euler_ancestral"}
SAMPLES = 64  # numbers of each tensor that a fingerprint looks at


def load(
    path: Path,
    device: torch.device,
    wishes: Wishes = Wishes(),
    models: Sequence[Model] = MODELS,
) -> StableDiffusion:
    """The model at `path`, a diffusers folder or a single file, ready to draw.

    Raises WeightsError when it is none that Limner knows, or broken.
    """
    known = (*models, *described.unpublished(path)) if models is MODELS else models
    found = detect.identify(path, prediction=wishes.prediction, variant=wishes.variant, models=known)
    return assemble(found, device, wishes, models)


def assemble(found: Found, device: torch.device, wishes: Wishes, models: Sequence[Model]) -> StableDiffusion:
    """What `load` makes of the parts that were found. `models` are those that companions may be of."""
    dtype = TYPES[wishes.dtype] if wishes.dtype else pick_precision(device)
    overlays = Overlays(found.model.parts, wishes)
    shelf = Shelf(
        {
            part.folder: detect.loader(found, part.folder, torch.float32 if part.folder == "vae" else dtype)
            for part in found.model.parts
        },
        device,
        wishes.offload,
        overlays.dress,
    )
    texts = [part for part in found.model.parts if part.folder.startswith("text_encoder")]
    towers = tuple(partial(_tower, part, shelf, found.model) for part in texts)
    path = path_of(found.table, found.path)
    if found.prediction == "eps" and path.alphas[-1] == 0:
        raise WeightsError(
            f"{found.path}: noise cannot be predicted where nothing else is left (zero terminal SNR)"
        )
    unet, vae = found.model.part("unet").config, found.model.part("vae").config
    xl = bool(unet.sizes)
    words, passed_over = learned_words(wishes.embeddings, [part.folder for part in texts])
    defaults, few = _defaults(found, unet, vae)
    return StableDiffusion(
        shelf=shelf,
        unet_config=unet,
        vae_config=vae,
        encoder=Encoder(towers, words),
        path=path,
        prediction=found.prediction,
        defaults=defaults,
        zeros=xl and _zeros(found),
        notices=(*found.notices, *passed_over, *few),
        fingerprint=fingerprint(found, dtype),
        device=device,
        control_network=partial(control_network, device=device, dtype=dtype),
        companion=lru_cache(maxsize=1)(
            partial(_companion, shelf=shelf, device=device, wishes=wishes, models=models)
        ),
        adapt=overlays.adapt,
        small_decoder=None if wishes.preview is None else small_decoder(wishes.preview, device),
    )


def _companion(
    name: str, *, shelf: Shelf, device: torch.device, wishes: Wishes, models: Sequence[Model]
) -> StableDiffusion:
    """Another model, whose networks are put away for those of `shelf`."""
    path = hub.fetch(name, wishes.variant) if hub.is_id(name) else Path(name)
    model = load(path, device, replace(wishes, prediction=None), models)
    shelf.beside(model.shelf)
    return model


def fingerprint(found: Found, dtype: torch.dtype) -> str:
    """Ten hexadecimal digits of names, shapes and a few numbers of every tensor: a hash of all the gigabytes
    would take longer than loading them."""
    digest = hashlib.sha256(str(dtype).encode())  # other types draw other pictures
    for part in sorted(found.tensors):  # one part's numbers in memory at a time
        for name, tensor in sorted(detect.rereader(found, part)().items()):
            flat = tensor.reshape(-1)
            some = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].contiguous()
            digest.update(f"{part}/{name} {tuple(tensor.shape)}".encode())
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:10]


@lru_cache(maxsize=2)
def control_network(name: str, *, device: torch.device, dtype: torch.dtype) -> ControlNet:
    """A control network by its file or folder. Raises WeightsError when it is none."""
    network = identify_network(Path(name))
    loaded = network.load(device=device, dtype=dtype)
    if not isinstance(loaded, ControlNet):
        raise WeightsError(f"{name} is {network.title}, and no control network")
    return loaded


def small_decoder(path: Path, device: torch.device) -> TinyVAE:
    """A TAESD to watch pictures by. Raises WeightsError for anything else."""
    network = identify_network(path).load(device=device, dtype=torch.float32)
    if not isinstance(network, TinyVAE):
        raise WeightsError(f"{path} is no TAESD, and only such a decoder is quick enough to watch by")
    return network


class Overlays:
    """The LoRAs that lie over a model; they stay until a prompt asks for others. What a network wears is
    seen to when it is taken from the shelf."""

    def __init__(self, parts: Sequence[Part], wishes: Wishes) -> None:
        self.folder = wishes.loras
        self.parts = {part.folder: part for part in parts if part.folder != "vae"}
        self.wanted: tuple[Lora, ...] = ()
        self.updates: list[dict[str, dict[str, low_rank.Update]]] = []  # of each, by part and layer
        self.few: tuple[str, ...] = ()  # what is to be said about them
        self.worn: WeakKeyDictionary[nn.Module, tuple[Lora, ...]] = WeakKeyDictionary()

    @cached_property
    def places(self) -> dict[str, lora.Place]:
        """Where LoRAs may lie, as names and shapes. Looked up for the first one: it takes half as long as
        loading a model."""
        return {
            name: lora.place(
                files.empty(part.build),
                detect.keys_of(part, "folder"),
                *((_unprefixed(part),) if name in ("unet", "transformer") else ()),
            )
            for name, part in self.parts.items()
        }

    def adapt(self, wanted: tuple[Lora, ...]) -> tuple[str, ...]:
        """Put exactly these over the networks that are taken from now on. Returns a notice for each that
        seems made for few steps. Raises RequestError for a name that no file has, and WeightsError, with none
        in place, for one that does not fit or fits in part only."""
        if wanted == self.wanted:
            return self.few
        self.wanted, self.updates, self.few = (), [], ()
        updates, few = [], []
        for one in wanted:
            file = lora.read(lora.find(one.name, self.folder))
            found, unmatched = lora.match(file, self.places)
            if unmatched:
                raise WeightsError(
                    f"{file.path}: {len(unmatched)} of {len(file.updates)} layers are not in this model: "
                    f"{', '.join(unmatched[:5])}; it was made for another"
                )
            lora.check(file, self.places, found)
            updates.append(found)
            few += [
                f"{one.name} bundles the word {word!r}, which is not heard; words come by --embeddings"
                for word in file.words
            ]
            if lora.for_few_steps(file):
                few.append(
                    f"{one.name} looks as LCM-LoRA and other LoRAs for few steps do: if it is one, draw with "
                    "the sampler lcm, which takes 4 steps without guidance"
                )
        self.wanted, self.updates, self.few = wanted, updates, tuple(few)
        return self.few

    def dress(self, part: str, network: nn.Module) -> None:
        """Put what is wanted over the network of `part`, and take off what is not."""
        if part not in self.parts or self.worn.get(network, ()) == self.wanted:
            return
        low_rank.detach(network)
        for index, (one, found) in enumerate(zip(self.wanted, self.updates, strict=True)):
            weight = one.text if part.startswith("text") else one.unet
            low_rank.attach(network, f"{index}: {one.name}", found[part], weight)
        self.worn[network] = self.wanted


def _unprefixed(part: Part) -> KeyMap:
    """Names of a single file without their prefix, as kohya's LoRAs of XL have them."""
    return part.single_keys(part.config, "") if part.single_keys else ()


def _tower(part: Part, shelf: Shelf, model: Model) -> Tower:
    """How a text encoder is used: XL takes the penultimate layer as it is, 2 ends there and norms it."""
    network = shelf.take(part.folder)
    assert isinstance(network, CLIPText)
    xl = "xl" in model.name
    second = part.folder == "text_encoder_2" or part.config.left_out
    return Tower(network=network, pad=0 if second else 49_407, skip=2 if xl else 1, norm=not xl)


def learned_words(folder: Path | None, encoders: list[str]) -> tuple[dict[str, Vectors], tuple[str, ...]]:
    """The learned words in a folder by what to type, and notices of files that are none. Words made for other
    encoders are passed over in silence: folders hold those of several families."""
    found: dict[str, Vectors] = {}
    notices = []
    for path in sorted(folder.rglob("*")) if folder else []:
        if path.suffix in (".pt", ".bin", ".ckpt"):
            notices.append(f"{path.name} was passed over: it is a pickle; see `limner convert`")
        if path.suffix != ".safetensors":
            continue
        try:
            embedding = embeddings.read(path)
        except WeightsError:
            notices.append(f"{path.name} was passed over: it holds no learned word")
            continue
        if set(embedding.vectors) == set(encoders):
            if embedding.name in found:
                notices.append(f"{path.name} was passed over: another file has the word {embedding.name!r}")
            found.setdefault(embedding.name, tuple(embedding.vectors[name] for name in encoders))
    return found, tuple(notices)


def path_of(table: Mapping[str, Any], where: Path | str = "") -> VPPath:
    """The path of a folder's table of betas; `where` it lies. Raises WeightsError where they make none."""
    try:
        return _path(table)
    except (ConfigError, ZeroDivisionError) as error:
        told = Path(where) / "*" / folders.PATH_FILE
        raise WeightsError(f"{told}: its betas make no path: {error}") from None


def _path(table: Mapping[str, Any]) -> VPPath:
    start, end = float(table.get("beta_start", 0.00085)), float(table.get("beta_end", 0.012))
    steps = int(table.get("num_train_timesteps", 1000))
    kind = table.get("beta_schedule", "scaled_linear")
    if kind == "scaled_linear":
        path = VPPath.scaled_linear(start, end, steps)
    elif kind == "linear":
        path = VPPath.linear(start, end, steps)
    elif kind == "squaredcos_cap_v2":
        path = VPPath.cosine(steps=steps)
    else:
        raise WeightsError(f"Limner does not know the beta_schedule {kind!r}; scaled_linear is the usual one")
    return path.zero_terminal_snr() if table.get("rescale_betas_zero_snr") else path


def _defaults(found: Found, unet: UNetConfig, vae: KLVAEConfig) -> tuple[Defaults, tuple[str, ...]]:
    """What a model draws best with, as its U-Net and its folder's sampler say, and notices. Models distilled
    to few steps are known by the sampler that they come with: consistency models (LCM) by theirs, and Turbo
    and Lightning by Euler steps that trail on a path where some of the picture is left."""
    said = found.path / "unet" / "config.json"
    side = files.read_json(said).get("sample_size") if said.is_file() else None
    side = side * vae.factor if isinstance(side, int) and 8 <= side <= 1024 else found.model.size
    usual = replace(
        DEFAULTS, size=(side, side), grid="karras", guidance=XL_GUIDANCE if unet.sizes else DEFAULTS.guidance
    )
    consistent = replace(usual, steps=FEW, guidance=1.0, sampler="lcm", grid="lcm")
    kind, trails = found.table.get("_class_name"), found.table.get("timestep_spacing") == "trailing"
    if unet.guidance:
        told = replace(consistent, guidance=TOLD_GUIDANCE)
        return replace(told, lcm=told), ()
    if kind == "LCMScheduler":
        return replace(consistent, lcm=consistent), ()
    if found.table.get("rescale_betas_zero_snr"):
        return replace(usual, grid="trailing", lcm=consistent), ()
    if trails and kind in EULER:
        few = replace(consistent, sampler=EULER[str(kind)], grid="trailing", lcm=consistent)
        notice = f"the sampler of {found.path.name} trails, as that of Turbo and Lightning does"
        return few, (f"{notice}: {FEW} steps without guidance, unless asked otherwise",)
    return replace(usual, lcm=consistent), ()


def _zeros(found: Found) -> bool:
    file = found.path / "model_index.json"
    index = files.read_json(file) if file.is_file() else {}
    refiner = all(part.folder != "text_encoder" for part in found.model.parts)
    return bool(index.get("force_zeros_for_empty_prompt", not refiner))


FAMILY = Family(name="sd", load=load)
