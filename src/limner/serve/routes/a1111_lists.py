"""What AUTOMATIC1111's clients ask before they draw: options, samplers, schedules, models, LoRAs, memory."""

import os
import sys
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from limner.serve.a1111_answers import model_out
from limner.serve.a1111_asked import CHOSEN, OPTIONS, option_set
from limner.serve.a1111_names import grids, model_titled, samplers, title_of
from limner.serve.a1111_schemas import (
    CheckpointOut,
    LoraOut,
    MemoryOut,
    SamplerOut,
    SchedulerOut,
    StyleOut,
    UpscalerOut,
)
from limner.serve.deps import CallerNeeded, EngineNeeded, SettingsNeeded
from limner.serve.settings import Settings

OWNERS = 10_000  # whose options are remembered
NOTHING = (  # of what there is nothing here
    "hypernetworks", "face-restorers", "realesrgan-models", "sd-vae", "latent-upscale-modes", "sd-modules",
    "extensions", "script-info",
)  # fmt: skip
router = APIRouter()

Options = OrderedDict[str, dict[str, object]]  # owner -> what was chosen


def options_of(request: Request, owner: str) -> Mapping[str, object]:
    """What a caller has chosen by POST options: for its own requests alone, until the server stops."""
    return _all(request).get(owner, {})


def _all(request: Request) -> Options:
    state = request.app.state
    if not hasattr(state, "a1111_options"):
        state.a1111_options = OrderedDict()
    options: Options = state.a1111_options
    return options


@router.get("/options", response_model=dict[str, Any])
async def get_options(request: Request, who: CallerNeeded, engine: EngineNeeded) -> dict[str, object]:
    """What holds for your requests, where they say nothing else."""
    chosen = {**OPTIONS, **options_of(request, who.owner)}
    models = engine.models()
    if not models:
        return {**chosen, "sd_model_checkpoint": None, "sd_checkpoint_hash": None}
    named = chosen.get("sd_model_checkpoint")
    model = next((one for one in models if one.name == named), models[0])
    return {**chosen, "sd_model_checkpoint": title_of(model), "sd_checkpoint_hash": model.fingerprint}


@router.post("/options", response_model=None)
async def set_options(
    asked: dict[str, Any], request: Request, who: CallerNeeded, engine: EngineNeeded
) -> None:
    """Choose a model, clip skip or emphasis for your own requests. What cannot be chosen is refused, unless
    it is so anyway."""
    said = {name: option_set(name, value, engine.models()) for name, value in asked.items()}
    options = _all(request)
    options[who.owner] = {
        **options.get(who.owner, {}),
        **{name: value for name, value in said.items() if name in CHOSEN},
    }
    options.move_to_end(who.owner)
    while len(options) > OWNERS:
        options.popitem(last=False)


@router.get("/cmd-flags", response_model=dict[str, Any])
async def flags(_: CallerNeeded, settings: SettingsNeeded) -> dict[str, object]:
    """How the server was started, as far as it concerns clients."""
    return {"api": True, "listen": not settings.loopback, "nowebui": False, "lowvram": settings.offload}


@router.get("/samplers", response_model=list[SamplerOut])
async def list_samplers(_: CallerNeeded) -> list[dict[str, object]]:
    """Samplers, by the web UI's names and ours."""
    return [{"name": name, "aliases": list(other), "options": {}} for name, other in samplers().items()]


@router.get("/schedulers", response_model=list[SchedulerOut])
async def list_schedulers(_: CallerNeeded) -> list[dict[str, object]]:
    """Where samplers stop: grids, as we say. Not every model can be told."""
    known = {"Automatic": "automatic", **grids()}
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": -1, "need_inner_model": False}
        for label, name in known.items()
    ]


@router.get("/sd-models", response_model=list[CheckpointOut])
async def list_models(_: CallerNeeded, engine: EngineNeeded) -> list[dict[str, Any]]:
    """Models, the default first."""
    return [model_out(model) for model in engine.models()]


@router.get("/loras", response_model=list[LoraOut])
async def list_loras(_: CallerNeeded, settings: SettingsNeeded) -> list[dict[str, object]]:
    """What <lora:NAME:1> in a prompt may name."""
    names = await run_in_threadpool(_loras, settings)
    return [{"name": name, "alias": name, "path": "", "metadata": {}} for name in names]


@router.get("/upscalers", response_model=list[UpscalerOut])
async def list_upscalers(_: CallerNeeded) -> list[dict[str, object]]:
    """What makes a finished picture larger."""
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}
        for name in ("None", "Lanczos", "Nearest", "Limner")
    ]


@router.get("/prompt-styles", response_model=list[StyleOut])
async def list_styles(request: Request, who: CallerNeeded, engine: EngineNeeded) -> list[dict[str, object]]:
    """Styles of your model."""
    models = engine.models()
    named = options_of(request, who.owner).get("sd_model_checkpoint")
    known = {model.name for model in models}
    styles = model_titled(str(named) if named in known else None, models).styles if models else ()
    return [{"name": style, "prompt": None, "negative_prompt": None} for style in styles]


@router.get("/embeddings", response_model=dict[str, dict[str, Any]])
async def list_embeddings(_: CallerNeeded) -> dict[str, dict[str, Any]]:
    """Learned words: the models know theirs, and tell none."""
    return {"loaded": {}, "skipped": {}}


@router.get("/scripts", response_model=dict[str, list[str]])
async def list_scripts(_: CallerNeeded) -> dict[str, list[str]]:
    """There are none."""
    return {"txt2img": [], "img2img": []}


async def nothing(_: CallerNeeded) -> list[str]:
    """There is nothing of the kind here."""
    return []


for _name in NOTHING:
    router.add_api_route(f"/{_name}", nothing, response_model=list[str], operation_id=f"a1111_{_name}")


@router.post("/refresh-checkpoints", response_model=None)
@router.post("/refresh-loras", response_model=None)
async def refresh(_: CallerNeeded) -> None:
    """Nothing to do: models are those that the server was started with, LoRAs are always looked up."""


@router.get("/memory", response_model=MemoryOut)
async def memory(_: CallerNeeded) -> dict[str, object]:
    """Of the process that answers. Devices belong to the processes that draw, and are not told."""
    return {"ram": await run_in_threadpool(_ram), "cuda": {"error": "unavailable"}}


def _loras(settings: Settings) -> list[str]:
    if settings.loras is None:
        return []
    return sorted(path.stem for path in settings.loras.glob("*.safetensors") if path.is_file())


def _ram() -> dict[str, object]:
    """Bytes: what the process has used at most, and what the machine has where that is told."""
    try:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (ImportError, OSError, ValueError):  # not on this system
        total = free = used = 0
    return {"free": free, "used": used, "total": total}
