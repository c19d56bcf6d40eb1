"""Single files in the original naming of LDM and SGM: all parts of a model, each under its prefix."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import WeightsError
from limner.weights import files
from limner.weights.keymap import KeyMap, Rule, our_names, to_theirs
from limner.weights.parts import Model

LEFT: KeyMap = tuple(  # what training left in files, and marks without numbers
    Rule(name, None)
    for name in (
        "model_ema.{rest*}",  # a second, averaged copy; the published programs draw with the first
        "betas",
        "alphas_{rest*}",
        "sqrt_{rest*}",
        "log_one_minus_alphas_cumprod",
        "posterior_{rest*}",
        "lvlb_weights",
        "logvar",
        "scale_factor",
        "global_step",
        "denoiser.sigmas",
        "model.decay",
        "model.num_updates",
        "cond_stage_model.logit_scale",
        "low_scale_model.{rest*}",  # the x4 upscaler's other path
        "text_encoders.{which}.logit_scale",
        "v_pred",  # the model predicts v
        "ztsnr",  # and was trained down to no signal at all
    )
)


def split(model: Model, tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """{part: its tensors, prefix and all}, and the names that belong to no part of `model`. Of several
    prefixes that a name begins with, the longest counts; other spellings of one become the first."""
    places = [
        (prefix, part) for part in model.parts if part.single_keys for prefix in (part.prefix, *part.prefixes)
    ]
    places.sort(key=lambda place: -len(place[0]))
    parts: dict[str, dict[str, Tensor]] = {part.folder: {} for part in model.parts}
    bare = next((part for prefix, part in places if not prefix), None)
    rest = {}
    for name, tensor in tensors.items():
        for prefix, part in places:
            if prefix and name.startswith(prefix):
                parts[part.folder][part.prefix + name.removeprefix(prefix)] = tensor
                break
        else:
            rest[name] = tensor
    strange = [name for name, found in our_names(LEFT, rest).items() if found is None]
    if bare is None:
        return parts, strange
    parts[bare.folder] |= {bare.prefix + name: rest[name] for name in strange}
    return parts, []


def write(
    path: Path,
    model: Model,
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    prediction: str | None = None,  # None: "eps", or what it can predict only
    zero_snr: bool = False,  # whether it was trained down to no signal at all
) -> None:
    """Write `model` with `tensors`, {part: tensors under our names}, as one file. What it predicts is
    said in the metadata, in the words of ModelSpec 1.0.

    Raises WeightsError when the model is one of folders only, or lacks a part.
    """
    if not model.single:
        raise WeightsError(f"a {model.title} is written as a folder only; there is no naming for one file")
    if absent := model.lacking(tensors):
        raise WeightsError(f"a {model.title} cannot be written without {', '.join(absent)}")
    prediction = prediction or model.usual
    theirs: dict[str, Tensor] = {}
    for part in model.parts:
        if part.single_keys is None or part.folder not in tensors:
            continue
        theirs |= to_theirs(part.single_keys(part.config, part.prefix), tensors[part.folder])
    if zero_snr:  # marks without numbers, as other programs write and read them
        theirs |= {
            name: torch.zeros(0) for name in ("ztsnr", "v_pred") if prediction == "v" or name == "ztsnr"
        }
    said = {"v": "v", "eps": "epsilon"}.get(prediction, prediction)
    files.save(
        theirs, path, {"format": "pt", "modelspec.sai_model_spec": "1.0.0", "modelspec.prediction_type": said}
    )


def prediction(path: Path, names: Iterable[str], metadata: Mapping[str, str]) -> tuple[str | None, str]:
    """What the networks of a file predict, "eps" or "v", and where that is written: a mark among its tensors,
    its metadata, or a .yaml beside it. (None, "") when nothing says it."""
    if "v_pred" in set(names):
        return "v", "a mark in the file"
    said = metadata.get("modelspec.prediction_type", "").lower()
    if said in ("v", "epsilon"):
        return ("v" if said == "v" else "eps"), "the file's metadata"
    beside = path.with_suffix(".yaml")
    if beside.is_file():
        with beside.open("rb") as file:
            lines = file.read(1_000_000).decode("utf-8", "replace").splitlines()
        settings = {line.split("#")[0].replace('"', "").replace("'", "").strip() for line in lines}
        return ("v" if "parameterization: v" in settings else "eps"), beside.name
    return None, ""
