"""From what OpenAI's clients ask for to a request of ours: names of models, sizes, quality, formats."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from limner.pipeline.request import parse_size
from limner.serve.engine import ModelInfo
from limner.serve.errors import Refused
from limner.serve.limits import model_of
from limner.serve.openai_schemas import EditIn, Painted, VariationIn, Wished
from limner.serve.settings import Settings
from limner.serve.sizes import check_size
from limner.serve.uploads import As

THEIRS = re.compile(r"(dall-e|gpt-image|chatgpt-image)([.-][\w.-]*)?")  # names that mean our default model
LINKED = re.compile(r"dall-e([.-][\w.-]*)?")  # ... those that answer with a link
Level = Literal["low", "medium", "high", "xhigh", "max"]
LEVELS: dict[str, tuple[Level, float]] = {  # quality -> what it is called now, and times the usual steps
    "low": ("low", 0.5),
    "medium": ("medium", 1.0),
    "standard": ("medium", 1.0),
    "auto": ("medium", 1.0),
    "high": ("high", 1.5),
    "hd": ("high", 1.5),
    "xhigh": ("xhigh", 2.0),
    "max": ("max", 3.0),
}
FEW = 8  # steps: models that draw in so few were taught to, and gain nothing by more
STRENGTHS = {None: 0.75, "low": 0.75, "high": 0.5}  # of an edit without a mask, by its input_fidelity
VARIED = 0.6  # strength of a variation, by models that begin with a picture
QUALITY = 92  # of JPEG and WebP where nothing is said, in their own unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What somebody asked for, understood."""

    told: Mapping[str, object]  # as `deps.submit` takes it, without pictures
    model: ModelInfo
    form: As  # of the pictures' files
    compression: int  # of JPEG and WebP, 1 to 100, the last the best
    linked: bool  # whether to answer with links, not with pictures
    level: Level  # of quality
    warnings: tuple[str, ...] = ()  # of what was asked for and is not heard


def wish_of(asked: Wished, models: Sequence[ModelInfo], settings: Settings) -> Wish:
    """What is asked for, in our words. Raises Refused, with the field: 404 for a model that is not here, 400
    for a size that the model does not draw and for what no model can do."""
    model = model_named(asked.model, models)
    told: dict[str, object] = {"model": model.name, "count": asked.n or 1, "prompt": ""}
    for name in ("prompt", "negative_prompt", "seed", "steps", "guidance", "sampler"):
        if (value := getattr(asked, name, None)) is not None:
            told[name] = value
    if asked.size is not None and asked.size != "auto":
        size = parse_size(asked.size)
        check_size(size, model, settings)
        told["size"] = list(size)
    warnings: list[str] = []
    level: Level = "medium"
    form: As = "png"
    compression = QUALITY
    if isinstance(asked, Painted):
        form = asked.output_format or "png"
        compression = _compression(asked, form)
        level = _quality(asked, model, settings, told, warnings)
        _style(asked, model, told, warnings)
        if asked.background == "transparent":
            raise _unsupported("background", "no model here draws on nothing; ask for opaque, or auto")
    return Wish(
        told=told,
        model=model,
        form=form,
        compression=compression,
        linked=_linked(asked),
        level=level,
        warnings=tuple(warnings),
    )


def edit_of(asked: EditIn, picture: Mapping[str, str], mask: Mapping[str, str] | None) -> dict[str, object]:
    """How an edit begins: all of a region is drawn anew; without one, some of the picture."""
    if mask is not None:
        return {"image": dict(picture), "mask": dict(mask), "strength": asked.strength or 1.0}
    return {"image": dict(picture), "strength": asked.strength or STRENGTHS[asked.input_fidelity]}


def variation_of(
    asked: VariationIn, model: ModelInfo, picture: Mapping[str, str], said: Mapping[str, object]
) -> dict[str, object]:
    """How a variation begins: with what the picture shows where the model can see that, else with its pixels.
    `said` is how the picture says it was drawn, which stands in for a prompt."""
    if "vary" in model.can:
        return {"vary": dict(picture), "vary_noise": asked.strength or 0.0}
    spoken = {"prompt": asked.prompt if asked.prompt is not None else said.get("prompt", "")}
    return spoken | {"image": dict(picture), "strength": asked.strength or VARIED}


def model_named(name: str | None, models: Sequence[ModelInfo]) -> ModelInfo:
    """The model of this name; the default for none, and for OpenAI's names. Raises Refused, 404."""
    known = {model.name: model for model in models}
    if name is None or (name not in known and THEIRS.fullmatch(name)):
        return model_of(None, models)
    if name not in known:
        names = ", ".join(known) or "none yet"
        raise Refused(
            404, "model_not_found", f'there is no model "{name}" here; there is {names}', param="model"
        )
    return known[name]


def _linked(asked: Wished) -> bool:
    """As was said; or else as OpenAI's model of this name answers, or those of the time of the fields."""
    if asked.response_format is not None:
        return asked.response_format == "url"
    if asked.model is not None and THEIRS.fullmatch(asked.model):
        return LINKED.fullmatch(asked.model) is not None
    return not (isinstance(asked, Painted) and asked.modern)


def _quality(
    asked: Painted, model: ModelInfo, settings: Settings, told: dict[str, object], warnings: list[str]
) -> Level:
    level, factor = LEVELS[asked.quality or "auto"]
    usual = model.defaults.get("steps")
    if asked.steps is not None or factor == 1 or not isinstance(usual, int):
        return level
    if usual <= FEW:
        warnings.append(f"quality {asked.quality} was left out: {model.name} draws in {usual} steps")
        return "medium"
    told["steps"] = max(1, min(round(usual * factor), settings.most_steps))
    return level


def _style(asked: Painted, model: ModelInfo, told: dict[str, object], warnings: list[str]) -> None:
    if asked.style in model.styles:
        told["style"] = asked.style
    elif asked.style in ("vivid", "natural"):
        warnings.append(f"style {asked.style} was left out: say in the prompt what it should look like")
    elif asked.style is not None:
        known = ", ".join(model.styles) or "none; say it in the prompt"
        raise _unsupported("style", f'{model.name} has no style "{asked.style}"; it has {known}')


def _compression(asked: Painted, form: As) -> int:
    if asked.output_compression is None:
        return QUALITY
    if form == "png" and asked.output_compression != 100:
        raise _unsupported("output_compression", "a png loses nothing; ask for jpeg or webp, or leave it out")
    return max(1, asked.output_compression)


def _unsupported(param: str, message: str) -> Refused:
    return Refused(400, "invalid_value", message, param=param)
