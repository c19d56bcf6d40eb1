"""From what AUTOMATIC1111's clients ask for to a request of ours, and word of everything that is not heard.

What the web UI has and Limner lacks may stand at its default, and at whatever else means nothing. What would
only touch up a picture is left out with a warning in `info`; what would make it another one is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from limner.pipeline.postprocess import EMPHASES
from limner.serve.a1111_names import grid_named, model_titled, sampler_named
from limner.serve.a1111_schemas import DrawIn, Img2ImgIn, Txt2ImgIn
from limner.serve.engine import ModelInfo
from limner.serve.errors import Refused
from limner.serve.infotext import parse
from limner.serve.settings import Settings
from limner.serve.sizes import check_size

NONE = (None, "", "None", "none", 0, False)  # means nothing; also [] and {}
LEFT_OUT: dict[str, tuple[object, ...]] = {  # what would only touch up a picture -> values that mean nothing
    "restore_faces": NONE,
    "eta": (*NONE, 1),
    "s_min_uncond": NONE,
    "s_churn": NONE,
    "s_tmax": (*NONE, float("inf")),
    "s_tmin": NONE,
    "s_noise": (None, 1),
    "disable_extra_networks": NONE,
    "hr_upscaler": (*NONE, "Latent"),
    "hr_second_pass_steps": NONE,
    "hr_sampler_name": (*NONE, "Use same sampler"),
    "hr_scheduler": (*NONE, "Use same scheduler"),
    "inpainting_fill": (None, 0, 1),
    "inpaint_full_res_padding": NONE,
    "initial_noise_multiplier": (None, 1),
    "image_cfg_scale": (None, 1.5),
    "override_settings_restore_afterwards": (None, True),
    "seed_resize_from_h": (None, 0, -1),
    "seed_resize_from_w": (None, 0, -1),
    "firstphase_width": NONE,
    "firstphase_height": NONE,
}
REFUSED: dict[str, tuple[object, ...]] = {  # what would make it another one
    "script_name": NONE,
    "subseed_strength": NONE,
    "refiner_checkpoint": NONE,
    "hr_checkpoint_name": (*NONE, "Use same checkpoint"),
    "hr_prompt": NONE,
    "hr_negative_prompt": NONE,
    "latent_mask": NONE,
}
OPTIONS: dict[str, object] = {  # what `options` says where nothing was chosen
    "CLIP_stop_at_last_layers": 1,
    "emphasis": "Original",
    "sd_vae": "Automatic",
    "eta_noise_seed_delta": 0,
    "samples_format": "png",
    "return_grid": False,
    "show_progress_every_n_steps": 1,
    "live_previews_enable": True,
}
CHOSEN = ("sd_model_checkpoint", "CLIP_stop_at_last_layers", "emphasis")  # those that do something
WEIGHINGS = {"Original": "mean", **{shown: name for name, shown in EMPHASES.items() if shown}}
SAME = {"prompt": "prompt", "steps": "steps", "cfg_scale": "guidance", "tiling": "tiling"}  # theirs -> ours
STRENGTHS = {"image": 0.75, "enlarge": 0.7}  # where nothing is said
OWN_GRID = ("mini", "dalle", "flux")  # families that cannot be told where the sampler stops
EXTRAS = 10  # unknown fields that are named


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """What somebody asked for, understood."""

    told: Mapping[str, object]  # as `deps.submit` takes it, without pictures
    model: ModelInfo
    warnings: tuple[str, ...]  # of what was asked for and is not heard


def drawing_of(
    asked: DrawIn, models: Sequence[ModelInfo], settings: Settings, options: Mapping[str, object]
) -> Drawing:
    """What is asked for, in our words. `options` are the caller's own.

    Raises Refused: 404 for a sampler, a schedule or a model that is not here, 422 for what there is not in
    Limner, 400 for a size that the model does not draw.
    """
    warnings = [*_lacking(asked)]
    chosen = {**options, **(asked.override_settings or {})}
    model = model_titled(_text(chosen.get("sd_model_checkpoint")), models)
    told: dict[str, object] = {"prompt": ""}
    told |= {name: value for name, value in parse(asked.infotext or "").items() if name != "model"}
    told["model"] = model.name
    for name, ours in SAME.items():
        if (value := getattr(asked, name)) is not None:
            told[ours] = value
    if asked.negative_prompt:
        told["negative_prompt"] = asked.negative_prompt
    if told.get("negative_prompt") and "negative_prompt" not in model.can:
        del told["negative_prompt"]
        warnings.append(f"the negative prompt was left out: {model.name} draws without one")
    if asked.seed is not None:
        told.pop("seed", None)
        told |= {"seed": asked.seed} if asked.seed >= 0 else {}
    told["count"] = (asked.batch_size or 1) * (asked.n_iter or 1)
    if told["count"] > settings.most_count:  # type: ignore[operator]  # a number, as was just said
        raise Refused(400, "too_many", f"{settings.most_count} pictures are the most, got {told['count']}")
    _sampler(asked, told)
    if told.get("grid") is not None and model.family in OWN_GRID:
        warnings.append(f"the scheduler {told.pop('grid')} was left out: {model.name} has its own")
    _size(asked, model, settings, told)
    _style(asked, model, told)
    _options(chosen, told, warnings)
    if isinstance(asked, Txt2ImgIn):
        _twice(asked, told)
    elif asked.denoising_strength is not None:
        told["strength"] = max(0.01, asked.denoising_strength)
    else:
        told.setdefault("strength", STRENGTHS["image"])
    return Drawing(told=told, model=model, warnings=tuple(warnings))


def mask_warnings(asked: Img2ImgIn) -> tuple[str, ...]:
    """What is not heard of how a mask is to be used."""
    if asked.mask is not None and asked.inpaint_full_res is not False and asked.inpaint_full_res != 0:
        return ("inpaint_full_res was left out: the whole picture is looked at, at its own size",)
    return ()


def option_set(name: str, value: object, models: Sequence[ModelInfo]) -> object:
    """A value for `options`, to be kept. Raises Refused: 404 for an unknown model, 422 for an option that
    cannot be chosen here."""
    if name == "sd_model_checkpoint":
        return model_titled(_text(value), models).name
    unknown: list[str] = []
    _options({name: value}, {}, unknown)
    if unknown:
        raise Refused(422, "unsupported", unknown[0], param=name)
    return value


def _text(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise Refused(422, "invalid", "it is the title of a model", param="sd_model_checkpoint")
    return value


def _lacking(asked: DrawIn) -> list[str]:
    """What is left out. Raises Refused, 422, for what cannot be."""
    for name, nothing in REFUSED.items():
        if _means(getattr(asked, name, None), nothing):
            told = f"{name}: there is no such thing in Limner; leave it out"
            raise Refused(422, "unsupported", told, param=name)
    for script, said in (asked.alwayson_scripts or {}).items():
        if said not in (None, {}, [], {"args": []}):
            told = f"Script not found: {script[:100]}; there are none here"
            raise Refused(422, "unsupported", told, param="alwayson_scripts")
    names = [name for name, nothing in LEFT_OUT.items() if _means(getattr(asked, name, None), nothing)]
    if isinstance(asked, Img2ImgIn) and asked.resize_mode == 3:
        names.append("resize_mode 3")
    names += [name[:50] for name in list(asked.model_extra or {})[:EXTRAS]]
    return [f"{name} was left out: there is no such thing in Limner" for name in names]


def _means(value: object, nothing: tuple[object, ...]) -> bool:
    return value not in nothing and value != [] and value != {}


def _sampler(asked: DrawIn, told: dict[str, object]) -> None:
    sampler, grid = sampler_named(asked.sampler_name or asked.sampler_index)
    grid = grid_named(asked.scheduler) or grid
    told |= {} if sampler is None else {"sampler": sampler}
    told |= {} if grid is None else {"grid": grid}


def _size(asked: DrawIn, model: ModelInfo, settings: Settings, told: dict[str, object]) -> None:
    """A side that is not given is the model's own; neither is, where a picture has both."""
    if asked.width is not None or asked.height is not None:
        height, width = model.default_size
        told["size"] = [asked.height or height, asked.width or width]
    size = told.get("size")
    if isinstance(size, list):
        check_size((int(size[0]), int(size[1])), model, settings, "width")


def _style(asked: DrawIn, model: ModelInfo, told: dict[str, object]) -> None:
    named = [name for name in asked.styles or () if name not in ("", "None")]
    if unknown := [name for name in named if name not in model.styles]:
        known = ", ".join(model.styles) or "none"
        raise Refused(
            422, "unsupported", f'there is no style "{unknown[0]}"; there is {known}', param="styles"
        )
    if len(set(named)) > 1:
        raise Refused(422, "unsupported", "a picture has one style here", param="styles")
    told |= {"style": named[0]} if named else {}


def _options(chosen: Mapping[str, object], told: dict[str, object], warnings: list[str]) -> None:
    """Those of a request that do something; word of the others, unless they say what is so anyway."""
    for name, value in chosen.items():
        if name == "sd_model_checkpoint" or value is None:
            continue
        if name == "CLIP_stop_at_last_layers" and type(value) is int and 1 <= value <= 32:
            told |= {"clip_skip": value} if value > 1 else {}
        elif name == "emphasis" and isinstance(value, str) and value in WEIGHINGS:
            told |= {"emphasis": WEIGHINGS[value]} if value != "Original" else {}
        elif name not in OPTIONS or value != OPTIONS[name]:
            warnings.append(f"the option {name[:50]} was left out: it cannot be set so in Limner")


def _twice(asked: Txt2ImgIn, told: dict[str, object]) -> None:
    """Drawn once more, larger."""
    if not asked.enable_hr:
        for name in ("enlarge", "enlarge_strength"):
            told.pop(name, None)
        return
    scale = asked.hr_scale or 2.0
    sides = [
        (wanted, side)
        for wanted, side in ((asked.hr_resize_x, asked.width), (asked.hr_resize_y, asked.height))
        if wanted and side
    ]
    if sides:
        scale = max(wanted / side for wanted, side in sides)
    told["enlarge"] = scale
    told["enlarge_strength"] = max(0.01, asked.denoising_strength or STRENGTHS["enlarge"])
