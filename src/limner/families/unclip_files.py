"""unCLIP from what lies on the disk."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from limner.diffusion.paths import VPPath
from limner.errors import WeightsError
from limner.families import sd_files
from limner.families.base import TYPES, Defaults, Family, Wishes
from limner.families.embedder import Embedder, Sampling
from limner.families.sd_unclip import StableUnCLIP
from limner.families.shelf import Shelf
from limner.families.unclip import Karlo
from limner.models.unclip_prior import Normaliser
from limner.util.devices import pick_precision
from limner.weights import detect
from limner.weights.detect import Found
from limner.weights.parts import Model
from limner.weights.published import ALL

KARLO = Defaults(steps=25, guidance=8.0, sampler="ddpm", size=(256, 256))
STABLE_GUIDANCE = 10.0
STABLE = ("unet", "vae", "text_encoder")  # parts that are Stable Diffusion's


def load(
    path: Path, device: torch.device, wishes: Wishes = Wishes(), models: Sequence[Model] = ALL
) -> "Karlo | StableUnCLIP":
    """The model at `path`, a diffusers folder, ready to draw.

    Raises WeightsError when it is none that Limner knows, or broken.
    """
    found = detect.identify(path, prediction=wishes.prediction, variant=wishes.variant, models=models)
    return karlo(found, device, wishes) if found.model.main == "decoder" else stable(found, device, wishes)


def stable(found: Found, device: torch.device, wishes: Wishes) -> StableUnCLIP:
    """Stable Diffusion 2.1 unCLIP."""
    drawing = replace(found.model, parts=tuple(part for part in found.model.parts if part.folder in STABLE))
    sd = sd_files.assemble(replace(found, model=drawing), device, wishes, ALL)
    normaliser = detect.load(found, "image_normalizer", device=device, dtype=torch.float32)
    assert isinstance(normaliser, Normaliser)
    networks = shelf(found, device, wishes, leave=(*STABLE, "image_normalizer"))
    sd.shelf.beside(networks)
    return StableUnCLIP(
        sd=sd,
        embedder=embedder(found, device, wishes, networks),
        normaliser=normaliser,
        noising=sampling(found.tables.get("image_noising_scheduler", {})).path,
        defaults=replace(sd.defaults, guidance=STABLE_GUIDANCE),
    )


def karlo(found: Found, device: torch.device, wishes: Wishes) -> Karlo:
    """Karlo."""
    networks = shelf(found, device, wishes)
    return Karlo(
        shelf=networks,
        embedder=embedder(found, device, wishes, networks),
        decoder=sampling(found.tables.get("decoder_scheduler", {})),
        super_res=sampling(found.tables.get("super_res_scheduler", {})),
        sides=(found.model.size // 4, found.model.size),
        defaults=replace(KARLO, size=(found.model.size,) * 2),
        notices=found.notices,
        fingerprint=sd_files.fingerprint(found, dtype_of(device, wishes)),
        device=device,
    )


def embedder(found: Found, device: torch.device, wishes: Wishes, networks: Shelf) -> Embedder:
    """What finds picture embeddings, with what there is for it."""
    held = {part.folder for part in found.model.parts} - set(found.absent)
    tower = "prior_text_encoder" if "image_normalizer" in held else "text_encoder"
    whole = {"prior", tower} <= held
    return Embedder(
        shelf=networks,
        device=device,
        prior=sampling(found.tables.get("prior_scheduler", {"clip_sample_range": 5.0})) if whole else None,
        sees="image_encoder" in held,
        tower=tower,
    )


def shelf(found: Found, device: torch.device, wishes: Wishes, leave: Sequence[str] = ()) -> Shelf:
    """All networks that were found, but those to be left."""
    names = [part.folder for part in found.model.parts if part.folder not in (*found.absent, *leave)]
    dtype = dtype_of(device, wishes)
    return Shelf({name: detect.loader(found, name, dtype) for name in names}, device, wishes.offload)


def dtype_of(device: torch.device, wishes: Wishes) -> torch.dtype:
    """What networks are asked in."""
    return TYPES[wishes.dtype] if wishes.dtype else pick_precision(device)


def sampling(table: Mapping[str, object]) -> Sampling:
    """What the table of one of a folder's samplers says. Raises WeightsError for a path that is unknown."""
    kind, steps = table.get("beta_schedule", "squaredcos_cap_v2"), table.get("num_train_timesteps", 1000)
    if kind != "squaredcos_cap_v2" or not isinstance(steps, int):
        raise WeightsError(
            f"unCLIP's paths are squaredcos_cap_v2 of a number of steps, got {kind!r}, {steps!r}"
        )
    limit = table.get("clip_sample_range", 1.0)
    if not isinstance(limit, int | float):
        raise WeightsError(f"clip_sample_range is a number, got {limit!r}")
    return Sampling(
        path=VPPath.cosine(steps=steps),
        limit=float(limit),
        leading=table.get("_class_name", "UnCLIPScheduler") != "UnCLIPScheduler",
    )


FAMILY = Family(name="unclip", load=load)
STABLE_FAMILY = Family(name="sd_unclip", load=load)
