"""LoRA files, however they are spelled, over the networks of a model.

kohya       lora_unet_down_blocks_0_attentions_0_..._to_q.lora_down.weight, .lora_up.weight, .alpha
            lora_te_..., lora_te1_..., lora_te2_...; for XL also in the naming of single files
diffusers   unet.down_blocks.0...to_q.lora.down.weight, .lora_A.weight, text_encoder..., text_encoder_2...
            and the oldest: unet....attn1.processor.to_q_lora.down.weight, ...self_attn.to_q_lora.down.weight
PEFT        base_model.model.down_blocks.0...to_q.lora_A.weight; alpha in adapter_config.json

bundled     beside either, bundle_emb.WORD.emb_params: words that were learned with them (A1111, OneTrainer)

Of transformers (SD3, FLUX) the parts are called transformer. and lora_unet_ or lora_transformer_; kohya, and
the makers of FLUX, update there what lies in one layer of the original files and in several of ours.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from limner.errors import RequestError, WeightsError
from limner.nn import lora
from limner.nn.lora import Update
from limner.util.suggest import suggestion
from limner.weights import files, header
from limner.weights.keymap import POINTWISE_TO_LINEAR, KeyMap, Rule, listing, sources

PARTS = {  # how a spelled name begins -> the part of the model; the longest first
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_transformer_": "transformer",
    "lora_te_": "text_encoder",
    "text_encoder_3.": "text_encoder_3",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "transformer.": "transformer",
    "unet.": "unet",
    "base_model.model.": "",  # any part that has such a layer
}
ELSEWHERE = {"unet": "transformer", "text_encoder_3": "text_encoder_2"}  # where a model has no such part
SIDES = {
    "lora_down.weight": "down",
    "lora.down.weight": "down",
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora_linear_layer.down.weight": "down",
    "lora_up.weight": "up",
    "lora.up.weight": "up",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
}
ALONE = ("img_in", "txt_in")  # layers of FLUX whose names have no part before them
OLDEST = re.compile(r"(.*?)(?:\.processor)?\.to_([qkv]|out)_lora\.(down|up)\.weight")
BUNDLED = re.compile(r"bundle_emb\.([^.]+)\.(.+)")
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
Spelling = Literal["diffusers", "kohya"]
PATTERN = re.compile(r"\^?[\w.-]+")  # a name in PEFT's alpha_pattern: the layer's end, or all of it after ^


@dataclass(frozen=True, slots=True, eq=False)
class LoRA:
    """A file: updates by part and by the layer's name as it is spelled there."""

    path: Path
    updates: Mapping[tuple[str, str], Update]  # (part, or "" where the file does not say; name)
    metadata: Mapping[str, str]
    words: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # word -> {encoder's name: rows}

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that occur, in order."""
        return tuple(sorted({update.rank for update in self.updates.values()}))


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A network that can be updated, and what its layers are called elsewhere."""

    network: nn.Module
    names: Mapping[str, tuple[Rule, tuple[str, ...]]]  # published name of a layer, with dots or with
    # underscores -> its rule, and our layers that lie in it


def place(network: nn.Module, *maps: KeyMap) -> Place:
    """A network whose layers may be called as in any of the published namings `maps`. To be made before the
    first update is attached."""
    weights = [
        f"{ours}.weight"
        for ours, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    names: dict[str, tuple[Rule, tuple[str, ...]]] = {}
    for keys in maps:
        for theirs, (rule, ours) in sources(keys, weights).items():
            known = theirs.removesuffix(".weight")
            layers = tuple(name.removesuffix(".weight") for name in ours)
            for name in (known, known.removeprefix("text_model.")):
                names.setdefault(name, (rule, layers))
                names.setdefault(name.replace(".", "_"), (rule, layers))
    return Place(network, names)


def is_lora(names: Iterable[str]) -> bool:
    """Whether every tensor's name is one that LoRA files have."""
    every = [_split(name) for name in names if not BUNDLED.fullmatch(name)]
    return bool(every) and all(split is not None for split in every)


def read(path: Path) -> LoRA:
    """The updates in a LoRA file. Raises WeightsError with the names of what is none, such as the tensors of
    LoHa, LoKr and DoRA, and of those that lack their other half."""
    return from_tensors(files.read(path), header.read_metadata(path), path)


def from_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> LoRA:
    """The updates among the tensors of the file at `path`. Raises as `read` does."""
    halves: dict[tuple[str, str], dict[str, Tensor]] = {}
    unknown = []
    words: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if bundled := BUNDLED.fullmatch(name):
            words.setdefault(bundled[1], {})[bundled[2]] = tensor
        elif (split := _split(name)) is None:
            unknown.append(name)
        else:
            halves.setdefault(split[:2], {})[split[2]] = tensor
    if unknown or not halves:
        raise WeightsError(
            f"{path} is no LoRA that Limner can read; of no known spelling: {listing(unknown) or 'nothing'}"
        )
    if single := [name for (_, name), found in halves.items() if not {"down", "up"} <= set(found)]:
        raise WeightsError(f"{path} has one half only of {listing(single)}")
    settings = _settings(path, metadata)
    updates = {key: _update(path, key, found, settings) for key, found in halves.items()}
    return LoRA(path, updates, metadata, words)


def find(name: str, folder: Path | None) -> Path:
    """The file that `<lora:NAME>` means: a file of that name in or below `folder`, or the path of one there,
    with or without its ending. A prompt, which may be a stranger's, opens nothing outside the folder. Raises
    RequestError where there is none."""
    if folder is None:
        raise RequestError(
            f"<lora:{name}> names a file, and no folder of LoRAs was given; say where with --loras"
        )
    top = os.path.abspath(folder)  # noqa: PTH100 (keeps links: what the folder links to is in it)
    said = f"{name.removesuffix('.safetensors')}.safetensors"
    for at in (folder / said, Path(said)):
        path = Path(os.path.abspath(at))  # noqa: PTH100
        if path.is_relative_to(top) and os.path.isfile(path):  # noqa: PTH113 (False for endless names, too)
            return path
    known = sorted(folder.rglob("*.safetensors"))
    for path in known:
        if name in (path.stem, path.name):
            return path
    raise RequestError(f'there is no LoRA "{name}" in {folder}{suggestion(name, [p.stem for p in known])}')


def match(file: LoRA, places: Mapping[str, Place]) -> tuple[dict[str, dict[str, Update]], tuple[str, ...]]:
    """{part: {name of a layer: update}}, and the names, as spelled in the file, that no network has. The
    networks may be on the meta device: names and shapes are all that counts.

    Raises WeightsError when none is known.
    """
    found: dict[str, dict[str, Update]] = {part: {} for part in places}
    unmatched = []
    for (part, spelled), update in file.updates.items():
        there = part if part in places else ELSEWHERE.get(part, part)
        candidates = [there] if part else list(places)
        known = [p for p in candidates if p in places and spelled in places[p].names]
        if not known:
            unmatched.append(f"{part}: {spelled}" if part else spelled)
            continue
        several = [(p, _divided(update, *places[p].names[spelled])) for p in known]
        if len(known) > 1:  # XL's text encoders have the same names and other widths
            several.sort(key=lambda one: not _fits(places[one[0]], one[1]))
        found[several[0][0]] |= several[0][1]
    if not any(found.values()):
        raise WeightsError(f"{file.path} fits no part of this model; it would update {listing(unmatched)}")
    return found, tuple(sorted(unmatched))


def _fits(place: Place, updates: Mapping[str, Update]) -> bool:
    return all(lora.fits(place.network, layer, update) for layer, update in updates.items())


def _divided(update: Update, rule: Rule, layers: tuple[str, ...]) -> dict[str, Update]:
    """{our layer: its update}: all hear the same, and each has its rows of what is said. What cannot be
    divided is given to the first, which it will not fit."""
    up = update.up
    if rule.change is not None and rule.change.rows:
        up = rule.change.read(up)
    pieces = rule.split(up) or (up,)
    return {
        layer: Update(update.down, piece, update.alpha) for layer, piece in zip(layers, pieces, strict=False)
    }


def check(file: LoRA, places: Mapping[str, Place], found: Mapping[str, Mapping[str, Update]]) -> None:
    """Raises WeightsError where an update that `match` found has not the shape of its layer."""
    for part, updates in found.items():
        try:
            lora.attach(places[part].network, file.path.name, updates)
        except WeightsError as error:
            raise WeightsError(f"{file.path}: {error}") from None
        lora.detach(places[part].network, file.path.name)


def for_few_steps(file: LoRA) -> bool:
    """Whether `file` seems to be LCM-LoRA or of its kind: it says so in its metadata, or it updates what the
    published ones do, the U-Net down to how it is told the time, and was not made by a trainer of styles."""
    if any(re.search(r"\blcm\b", value, re.IGNORECASE) for value in file.metadata.values()):
        return True
    told = any(name.endswith("time_emb_proj") for _, name in file.updates)
    alone = all(part in ("unet", "") for part, _ in file.updates)
    return told and alone and not any(key.startswith("ss_") for key in file.metadata)


def attach(
    file: LoRA,
    places: Mapping[str, Place],
    name: str,
    weight: float = 1.0,
    text_weight: float | None = None,  # None: as `weight`
) -> tuple[str, ...]:
    """Lay the updates of `file` over `places`, {"unet": ..., "text_encoder": ...}, under `name`;
    `nn.lora.set_weight` and `detach` take it from there.

    Returns the names, as spelled in the file, that no network has. Raises WeightsError, and changes nothing,
    when none is known or a shape does not fit.
    """
    found, unmatched = match(file, places)
    done: list[str] = []
    try:
        for part, updates in found.items():
            of_text = part.startswith("text") and text_weight is not None
            lora.attach(places[part].network, name, updates, text_weight if of_text else weight)  # type: ignore[arg-type]
            done.append(part)
    except WeightsError as error:
        for part in done:
            lora.detach(places[part].network, name)
        raise WeightsError(f"{file.path}: {error}") from None
    return unmatched


def published(keys: KeyMap, layers: Sequence[str]) -> dict[str, tuple[str, Rule]]:
    """{layer of ours: (its published name, its rule)} of those layers whose updates can be written: those
    that lie alone in a published one."""
    every = sources(keys, [f"{layer}.weight" for layer in layers])
    return {
        ours[0].removesuffix(".weight"): (theirs.removesuffix(".weight"), rule)
        for theirs, (rule, ours) in every.items()
        if len(ours) == 1 and theirs.endswith(".weight")
        if rule.change is None or rule.change.rows or rule.change is POINTWISE_TO_LINEAR
    }


def write(
    path: Path,
    updates: Mapping[str, Mapping[str, Update]],
    keys: Mapping[str, KeyMap],
    *,
    spelling: Spelling = "diffusers",
    metadata: Mapping[str, str] | None = None,
    words: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write {part: {layer of ours: update}} as a LoRA file; `keys` are the published names of each part's
    tensors. diffusers reads the rank off the tensors and alpha out of the metadata, which are added here to
    those given; kohya's spelling has alpha beside each update. `words`, {word: {text encoder: rows}}, are
    bundled.

    Raises WeightsError for a layer without a published name of its own, and for parts that kohya has no
    spelling for.
    """
    tensors: dict[str, Tensor] = {}
    told: dict[str, object] = {}
    if spelling == "kohya" and (odd := sorted(set(updates) - set(KOHYA))):
        raise WeightsError(f"kohya's trainers spell no updates of {listing(odd)}; write them for diffusers")
    for part, laid in updates.items():
        names = published(keys[part], list(laid))
        if lost := [layer for layer in laid if layer not in names]:
            raise WeightsError(f"no published name for the updates of {listing(lost)} ({part})")
        start = KOHYA.get(part, "")
        if start.startswith("lora_te") and "text_encoder_2" not in updates and "text_encoder_2" not in keys:
            start = "lora_te_"  # of the models with one
        for layer, update in laid.items():
            theirs, rule = names[layer]
            down, up = _as_published(update, rule)
            if spelling == "kohya":
                at = start + theirs.replace(".", "_")
                tensors |= {f"{at}.lora_down.weight": down, f"{at}.lora_up.weight": up}
                tensors[f"{at}.alpha"] = torch.tensor(update.scale * update.rank)
            else:
                tensors |= {f"{part}.{theirs}.lora_A.weight": down, f"{part}.{theirs}.lora_B.weight": up}
        if laid and spelling == "diffusers":
            told |= {f"{part}.{key}": value for key, value in _as_peft_says(laid, names).items()}
    for word, rows in (words or {}).items():
        called = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"} if len(rows) > 1 else {}
        tensors |= {
            f"bundle_emb.{word}.{called.get(encoder, 'emb_params')}": row.detach()
            for encoder, row in rows.items()
        }
    adapter = {"lora_adapter_metadata": json.dumps(told, sort_keys=True)} if told else {}
    files.save(tensors, path, dict(metadata or {}) | adapter)


def _as_published(update: Update, rule: Rule) -> tuple[Tensor, Tensor]:
    """Both sides in the form of the published layer."""
    down, up = update.down.detach(), update.up.detach()
    if rule.change is not None and rule.change.rows:
        up = rule.change.write(up)
    elif rule.change is not None and down.ndim == 2:  # a 1x1 convolution there
        down, up = rearrange(down, "r i -> r i 1 1"), rearrange(up, "o r -> o r 1 1")
    return down, up


def _as_peft_says(laid: Mapping[str, Update], names: Mapping[str, tuple[str, Rule]]) -> dict[str, object]:
    """What PEFT has in adapter_config.json: rank and alpha of most layers, and what others have."""
    ranks = {names[layer][0]: update.rank for layer, update in laid.items()}
    alphas = {names[layer][0]: update.scale * update.rank for layer, update in laid.items()}
    rank, alpha = (_usual(list(values.values())) for values in (ranks, alphas))
    return {
        "r": int(rank),
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(ranks),
        "peft_type": "LORA",
        "lora_dropout": 0.0,
        "bias": "none",
    }


def _usual(values: Sequence[float | int]) -> float:
    return float(max(set(values), key=lambda value: (values.count(value), value)))


def _split(name: str) -> tuple[str, str, str] | None:
    """(part, layer, "down", "up" or "alpha") of a tensor's name, or None."""
    if old := OLDEST.fullmatch(name):
        of_text = old[1].endswith("self_attn")
        last = f"{old[2]}_proj" if of_text else {"out": "to_out.0"}.get(old[2], f"to_{old[2]}")
        layer, side = f"{old[1]}.{last}", old[3]
    else:
        ending = next((ending for ending in SIDES if name.endswith("." + ending)), None)
        if ending is None:
            return None
        layer, side = name.removesuffix("." + ending), SIDES[ending]
    for start, part in PARTS.items():
        if layer.startswith(start):
            inner = layer.removeprefix(start)
            return part, inner.removeprefix("base_model.model."), side
    return ("", layer, side) if "." in layer or layer in ALONE else None


def _update(
    path: Path, key: tuple[str, str], found: Mapping[str, Tensor], settings: Mapping[str, object]
) -> Update:
    down, up, alpha = found["down"], found["up"], found.get("alpha")
    if (
        {down.ndim, up.ndim} - {2, 4}
        or down.shape[0] != up.shape[1]
        or (alpha is not None and alpha.numel() != 1)
    ):
        raise WeightsError(
            f"{path}: the halves of {key[1]} are {tuple(down.shape)} and {tuple(up.shape)}; they do not fit"
        )
    part, layer = key
    said = settings.get(f"{part}.lora_alpha", settings.get("lora_alpha"))
    pattern = settings.get(f"{part}.alpha_pattern", settings.get("alpha_pattern"))
    if isinstance(pattern, dict):
        said = next((value for name, value in pattern.items() if _is_meant(name, layer, path)), said)
    if alpha is not None:
        return Update(down, up, float(alpha.to(torch.float32)))
    return Update(down, up, float(said) if isinstance(said, int | float) else None)


def _is_meant(name: str, layer: str, path: Path) -> bool:
    """Whether PEFT's pattern `name` means `layer`. Patterns that are more than names would be programs."""
    name = name.replace("\\.", ".").removesuffix("$")
    if not PATTERN.fullmatch(name):
        raise WeightsError(f"{path} has an alpha_pattern that is no layer's name: {name!r}")
    return layer == name[1:] if name.startswith("^") else f".{layer}".endswith(f".{name}")


def _settings(path: Path, metadata: Mapping[str, str]) -> Mapping[str, object]:
    """What PEFT says beside the tensors: in the metadata, or in adapter_config.json."""
    beside = path.with_name("adapter_config.json")
    try:
        said = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        said = {}
    if not said and path.stem == "adapter_model" and beside.is_file():
        said = files.read_json(beside)
    settings: dict[str, object] = said if isinstance(said, dict) else {}
    odd = [key for key, value in settings.items() if key.endswith(("use_rslora", "use_dora")) and value]
    if odd:
        raise WeightsError(f"{path} needs {listing(odd)}, unknown to Limner")
    return settings
