"""Stable Diffusion from what lies on the disk: folders, single files, and what may be laid over them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from limner.diffusion.paths import VPPath
from limner.errors import RequestError, WeightsError
from limner.families.base import TYPES, Defaults, Family, Wishes
from limner.families.conditions import Encoder, Tower, Vectors
from limner.families.sd import StableDiffusion
from limner.models.controlnet import ControlNet
from limner.models.tiny_vae import TinyVAE
from limner.nn import lora as low_rank
from limner.text.prompt import Lora
from limner.util.devices import pick_precision
from limner.util.suggest import suggestion
from limner.weights import detect, embeddings, files, hub, lora
from limner.weights.detect import Found
from limner.weights.folders import INDEX
from limner.weights.parts import MODELS, Model, Part
from limner.weights.standalone import identify_network

DEFAULTS = Defaults(steps=25, guidance=7.0, sampler="dpmpp_2m", size=(512, 512))
XL_GUIDANCE = 5.0
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
    found = detect.identify(path, prediction=wishes.prediction, variant=wishes.variant, models=models)
    dtype = TYPES[wishes.dtype] if wishes.dtype else pick_precision(device)
    parts: dict[str, Any] = {
        part.folder: detect.load(
            found, part.folder, device=device, dtype=torch.float32 if part.folder == "vae" else dtype
        )
        for part in found.model.parts
    }
    texts = [part for part in found.model.parts if part.folder.startswith("text_encoder")]
    towers = tuple(_tower(part, parts[part.folder], found.model) for part in texts)
    path_of, grid = _path(found.table)
    if found.prediction == "eps" and path_of.alphas[-1] == 0:
        raise WeightsError(
            f"{path}: noise cannot be predicted where nothing else is left (zero terminal SNR)"
        )
    xl = bool(parts["unet"].config.sizes)
    overlays = Overlays(found, parts, wishes)
    words, passed_over = _words(wishes.embeddings, [part.folder for part in texts])
    return StableDiffusion(
        unet=parts["unet"],
        vae=parts["vae"],
        encoder=Encoder(towers, words),
        path=path_of,
        prediction=found.prediction,
        defaults=replace(
            DEFAULTS,
            size=(found.model.size,) * 2,
            grid=grid,
            guidance=XL_GUIDANCE if xl else DEFAULTS.guidance,
        ),
        zeros=xl and _zeros(found),
        notices=(*found.notices, *passed_over),
        fingerprint=fingerprint(found, dtype),
        device=device,
        control_network=partial(control_network, device=device, dtype=dtype),
        companion=lru_cache(maxsize=1)(
            lambda name: load(
                hub.fetch(name, wishes.variant) if hub.is_id(name) else Path(name),
                device,
                replace(wishes, prediction=None),
                models,
            )
        ),
        adapt=overlays.adapt,
        small_decoder=None if wishes.preview is None else _small_decoder(wishes.preview, device),
    )


def fingerprint(found: Found, dtype: torch.dtype) -> str:
    """Ten hexadecimal digits of names, shapes and a few numbers of every tensor: a hash of all the gigabytes
    would take longer than loading them."""
    digest = hashlib.sha256(str(dtype).encode())  # other types draw other pictures
    for part, tensors in sorted(found.tensors.items()):
        for name, tensor in sorted(tensors.items()):
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


def _small_decoder(path: Path, device: torch.device) -> TinyVAE:
    network = identify_network(path).load(device=device, dtype=torch.float32)
    if not isinstance(network, TinyVAE):
        raise WeightsError(f"{path} is no TAESD, and only such a decoder is quick enough to watch by")
    return network


class Overlays:
    """The LoRAs that lie over a model now; they stay until a prompt asks for others."""

    def __init__(self, found: Found, parts: dict[str, Any], wishes: Wishes) -> None:
        self.folder = wishes.loras
        self.networks = {name: parts[name] for name in parts if name != "vae"}
        self.parts = found.model.parts
        self.worn: tuple[Lora, ...] = ()

    @cached_property
    def places(self) -> dict[str, lora.Place]:
        """Where LoRAs may lie. Looked up for the first one: it takes half as long as loading a model."""
        return {
            part.folder: lora.place(
                self.networks[part.folder],
                detect.keys_of(part, "folder"),
                *(() if part.folder != "unet" else (_unprefixed(part),)),
            )
            for part in self.parts
            if part.folder in self.networks
        }

    def adapt(self, wanted: tuple[Lora, ...]) -> None:
        """Put exactly these in place. Raises RequestError for a name that no file has, and WeightsError, with
        none in place, for one that does not fit or fits in part only."""
        if wanted == self.worn:
            return
        for network in self.networks.values():
            low_rank.detach(network)
        self.worn = ()
        try:
            for index, one in enumerate(wanted):
                file = lora.read(self._file(one.name))
                unmatched = lora.attach(file, self.places, f"{index}: {one.name}", one.unet, one.text)
                if unmatched:
                    raise WeightsError(
                        f"{file.path}: {len(unmatched)} of {len(file.updates)} layers are not in this model: "
                        f"{', '.join(unmatched[:5])}; it was made for another"
                    )
        except BaseException:
            for network in self.networks.values():
                low_rank.detach(network)
            raise
        self.worn = wanted

    def _file(self, name: str) -> Path:
        if Path(name).suffix == ".safetensors" and Path(name).is_file():
            return Path(name)
        known = sorted(self.folder.rglob("*.safetensors")) if self.folder else []
        for path in known:
            if name in (path.stem, path.name):
                return path
        if self.folder is None:
            raise RequestError(
                f"<lora:{name}> names a file, and no folder of LoRAs was given; say where with --loras"
            )
        raise RequestError(
            f'there is no LoRA "{name}" in {self.folder}{suggestion(name, [p.stem for p in known])}'
        )


def _unprefixed(part: Part) -> Any:
    """Names of a single file without their prefix, as kohya's LoRAs of XL have them."""
    return part.single_keys(part.config, "")


def _tower(part: Part, network: Any, model: Model) -> Tower:
    """How a text encoder is used: XL takes the penultimate layer as it is, 2 ends there and norms it."""
    xl = "xl" in model.name
    second = part.folder == "text_encoder_2" or part.config.left_out
    return Tower(network=network, pad=0 if second else 49_407, skip=2 if xl else 1, norm=not xl)


def _words(folder: Path | None, encoders: list[str]) -> tuple[dict[str, Vectors], tuple[str, ...]]:
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


def _path(table: Mapping[str, Any]) -> tuple[VPPath, str]:
    """The path of a folder's table of betas, and the grid that its pictures want."""
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
    if table.get("rescale_betas_zero_snr"):
        return path.zero_terminal_snr(), "trailing"
    return path, "karras"


def _zeros(found: Found) -> bool:
    file = found.path / "model_index.json"
    index = files.read_json(file) if file.is_file() else {}
    refiner = all(part.folder != "text_encoder" for part in found.model.parts)
    return bool(index.get("force_zeros_for_empty_prompt", not refiner))


FAMILY = Family(
    name="sd", folder=None, knows=lambda path: path.is_file() or (path / INDEX).exists(), load=load
)
