"""Samplers, schedules and models by the names of AUTOMATIC1111's web UI, and back."""

import re
from collections.abc import Sequence

from limner.diffusion.grids import GRIDS
from limner.pipeline.postprocess import SAMPLER_NAMES
from limner.serve.engine import ModelInfo
from limner.serve.errors import Refused
from limner.serve.limits import model_of

AUTOMATIC = ("", "automatic", "none")  # the model's own
SHORT = {"euler_ancestral": "k_euler_a", "euler": "k_euler", "heun": "k_heun", "dpmpp_2m": "k_dpmpp_2m"}
TITLE = re.compile(r"(.+?)\s*(?:\[(\w{4,64})\])?")  # of a model: its name, and where it is told its hash


def samplers() -> dict[str, tuple[str, ...]]:
    """Their name of each sampler of ours -> what else it is called."""
    known = {shown: (ours, SHORT.get(ours, f"k_{ours}")) for ours, shown in SAMPLER_NAMES.items()}
    return {shown: tuple(dict.fromkeys(other)) for shown, other in known.items()}


def grids() -> dict[str, str]:
    """Their label of each grid of ours -> our name, which is theirs too."""
    return {name.capitalize(): name for name in GRIDS}


def sampler_named(said: str | None) -> tuple[str | None, str | None]:
    """(sampler, grid), as "DPM++ 2M Karras" names both; None is the model's own. Raises Refused, 404."""
    name = (said or "").strip().lower()
    if name in AUTOMATIC:
        return None, None
    known = _lower_samplers()
    if name in known:
        return known[name], None
    for label, grid in grids().items():
        if (bare := name.removesuffix(f" {label.lower()}")) != name and bare in known:
            return known[bare], grid
    raise Refused(
        404, "unknown_sampler", f"Sampler not found: GET samplers lists {', '.join(SAMPLER_NAMES.values())}"
    )


def grid_named(said: str | None) -> str | None:
    """The grid of a schedule's name; None is the model's own. Raises Refused, 404."""
    name = (said or "").strip().lower()
    if name in AUTOMATIC:
        return None
    known = {label.lower(): grid for label, grid in grids().items()}
    if name not in known:
        raise Refused(
            404, "unknown_scheduler", f"Scheduler not found: GET schedulers lists {', '.join(grids())}"
        )
    return known[name]


def title_of(model: ModelInfo) -> str:
    """What the web UI would show for a model."""
    return f"{model.name} [{model.fingerprint[:10]}]" if model.fingerprint else model.name


def model_titled(said: str | None, models: Sequence[ModelInfo]) -> ModelInfo:
    """The model of a title, a name or a hash; the default where nothing is said. Raises Refused, 404."""
    if not said:
        return model_of(None, models)
    match = TITLE.fullmatch(said.strip())
    name = match[1] if match else said
    for model in models:
        if name.removesuffix(".safetensors") == model.name or said in (model.fingerprint, title_of(model)):
            return model
    told = ", ".join(title_of(model) for model in models) or "none yet"
    raise Refused(404, "unknown_model", f"Checkpoint not found: GET sd-models lists {told}")


def _lower_samplers() -> dict[str, str]:
    named = {shown.lower(): ours for ours, shown in SAMPLER_NAMES.items()}
    for shown, others in samplers().items():
        named |= {other: named[shown.lower()] for other in others}
    return named
