"""Stable Diffusion 3 and 3.5 from what lies on the disk: diffusers folders and single files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limner.diffusion.paths import flux_shift
from limner.errors import WeightsError
from limner.families.base import TYPES, Defaults, Family, Wishes
from limner.families.conditions import Encoder, Tower
from limner.families.flow import Canvas
from limner.families.sd3 import COLOURS, Shift, StableDiffusion3
from limner.families.sd_files import Overlays, fingerprint, learned_words, small_decoder
from limner.families.shelf import Shelf
from limner.models.clip import CLIPText
from limner.models.mmdit_control import MMDiTControl
from limner.text.clip_tokenizer import END
from limner.text.t5_tokenizer import T5Tokenizer
from limner.util.devices import pick_precision
from limner.weights import described, detect, files
from limner.weights.detect import Found
from limner.weights.parts import Model
from limner.weights.parts_sd3 import MODELS
from limner.weights.standalone import identify_network

MEDIUM = Defaults(steps=28, guidance=7.0, sampler="euler", size=(1024, 1024))
LATER_MEDIUM = replace(MEDIUM, steps=40, guidance=4.5)  # 3.5
LARGE = replace(MEDIUM, guidance=4.5)
TURBO = replace(MEDIUM, steps=4, guidance=1.0)
CLIPS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"


def load(
    path: Path, device: torch.device, wishes: Wishes = Wishes(), models: Sequence[Model] = MODELS
) -> StableDiffusion3:
    """The model at `path`, a diffusers folder or a single file with its CLIPs, ready to draw. T5 may be
    absent.

    Raises WeightsError when it is none that Limner knows, or broken.
    """
    known = (*models, *described.unpublished(path)) if models is MODELS else models
    found = detect.identify(path, prediction=wishes.prediction, variant=wishes.variant, models=known)
    return assemble(found, device, wishes)


def assemble(found: Found, device: torch.device, wishes: Wishes) -> StableDiffusion3:
    """What `load` makes of the parts that were found."""
    dtype = TYPES[wishes.dtype] if wishes.dtype else pick_precision(device)
    tokenizer, unheard = _tokenizer(found)
    held = [part for part in found.model.parts if part.folder != T5 or tokenizer is not None]
    overlays = Overlays(held, wishes)
    loaders = {
        part.folder: detect.loader(found, part.folder, torch.float32 if part.folder == "vae" else dtype)
        for part in held
    }
    shelf = Shelf(
        loaders | {CLIPS[0]: partial(_projected, load=loaders[CLIPS[0]])},
        device,
        wishes.offload,
        overlays.dress,
    )
    config, vae = (found.model.part(name).config for name in ("transformer", "vae"))
    words, passed_over = learned_words(wishes.embeddings, list(CLIPS))
    defaults, uncertain = _defaults(found)
    return StableDiffusion3(
        shelf=shelf,
        config=config,
        canvas=Canvas(
            shelf=shelf,
            config=vae,
            device=device,
            colours=COLOURS,
            small_decoder=None if wishes.preview is None else small_decoder(wishes.preview, device),
        ),
        encoders=tuple(
            Encoder((partial(_tower, name, shelf),), {word: (one[index],) for word, one in words.items()})
            for index, name in enumerate(CLIPS)
        ),
        tokenizer=tokenizer,
        shift=_shift({**next(iter(found.model.tables.values())), **found.table}),
        defaults=replace(defaults, size=(found.model.size,) * 2),
        notices=(*found.notices, *unheard, *passed_over, *uncertain),
        fingerprint=fingerprint(found, dtype),
        device=device,
        control_network=partial(control_network, device=device, dtype=dtype),
        adapt=overlays.adapt,
    )


@lru_cache(maxsize=2)
def control_network(name: str, *, device: torch.device, dtype: torch.dtype) -> MMDiTControl:
    """A control network by its file or folder. Raises WeightsError when it is none of SD3."""
    network = identify_network(Path(name))
    loaded = network.load(device=device, dtype=dtype)
    if not isinstance(loaded, MMDiTControl):
        raise WeightsError(f"{name} is {network.title}, and no control network of Stable Diffusion 3")
    return loaded


def _projected(device: torch.device, *, load: Callable[[torch.device], nn.Module]) -> nn.Module:
    """The first tower with the projection that its file may lack: the identity."""
    network = load(device)
    assert isinstance(network, CLIPText)
    if network.projection is None:
        width = network.config.width
        network.projection = nn.Linear(width, width, bias=False)
        network.projection.weight = nn.Parameter(torch.eye(width).to(network.position), requires_grad=False)
    return network


def _tower(name: str, shelf: Shelf) -> Tower:
    """The penultimate layer as it is, as in XL."""
    network = shelf.take(name)
    assert isinstance(network, CLIPText)
    return Tower(network=network, pad=END if name == CLIPS[0] else 0, skip=2, norm=False)


def _tokenizer(found: Found) -> tuple[T5Tokenizer | None, tuple[str, ...]]:
    """That of T5, and what is to be said where T5 is left out."""
    if T5 in found.absent:
        said = "it came without its third text encoder (T5): long prompts and lettering come out less well"
        return None, (said,)
    if found.path.is_dir():
        return T5Tokenizer.read(found.path / "tokenizer_3"), ()
    beside = found.path.parent
    try:
        return T5Tokenizer.read(beside / "tokenizer_3" if (beside / "tokenizer_3").is_dir() else beside), ()
    except WeightsError:
        said = (
            "its third text encoder (T5) was left out: a single file does not hold the vocabulary. Put "
            f"tokenizer.json or spiece.model of any T5 1.1 beside {found.path.name}"
        )
        return None, (said,)


def _shift(table: Mapping[str, Any]) -> Shift:
    """What a folder's table says about the path. Raises WeightsError for what Limner does not know."""
    odd = ("shift_terminal", "invert_sigmas", "use_beta_sigmas")
    if told := [name for name in odd if table.get(name)]:
        raise WeightsError(f"Limner does not know what {told[0]} in a sampler's settings asks for")
    if not table.get("use_dynamic_shifting"):
        return Shift(factor=float(table.get("shift", 3.0)))
    by_tokens = partial(
        flux_shift,
        low=float(table.get("base_shift", 0.5)),
        high=float(table.get("max_shift", 1.15)),
        few=int(table.get("base_image_seq_len", 256)),
        many=int(table.get("max_image_seq_len", 4096)),
    )
    return Shift(by_tokens=by_tokens)


def _defaults(found: Found) -> tuple[Defaults, tuple[str, ...]]:
    """What a version draws best with, and notices. Turbo has the shapes of large, and is known by what it
    says of itself."""
    index = found.path / "model_index.json"
    called = [found.metadata.get("modelspec.title", "")]
    called += [str(files.read_json(index).get("_name_or_path", ""))] if index.is_file() else []
    if any("turbo" in said.lower() for said in (*called, found.metadata.get("modelspec.architecture", ""))):
        return TURBO, ()
    config = found.model.part("transformer").config
    if not config.normed or config.dual:
        return LATER_MEDIUM if config.normed else MEDIUM, ()
    if any("large" in said.lower() for said in called):
        return LARGE, ()
    usual, few = (f"{one.steps} steps at guidance {one.guidance:g}" for one in (LARGE, TURBO))
    notice = f"{found.path.name} does not say whether it is Large or Large Turbo, which look alike"
    return LARGE, (f"{notice}: {usual}, unless asked otherwise; Turbo takes {few}",)


FAMILY = Family(name="sd3", load=load)
