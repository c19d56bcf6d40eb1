"""Which sizes a model draws, for clients that ask for those they know from elsewhere."""

from limner.pipeline.request import SIDES, parse_size
from limner.serve.engine import ModelInfo
from limner.serve.errors import Refused
from limner.serve.settings import Settings

KNOWN = ("256x256", "512x512", "1024x1024", "1536x1024", "1024x1536", "1792x1024", "1024x1792")  # OpenAI's


def check_size(size: tuple[int, int], model: ModelInfo, settings: Settings, param: str = "size") -> None:
    """Raises Refused, 400, with what the model does draw, for a (height, width) that it does not."""
    height, width = size
    if not _fits(size, model, settings):
        told = f"{model.name} does not draw {width}x{height}; it draws {sizes_of(model, settings)}"
        raise Refused(400, "invalid_value", told, param=param)


def sizes_of(model: ModelInfo, settings: Settings) -> str:
    """What a model draws, for people, with the usual sizes that are among it."""
    least, most = _bounds(model, settings)
    height, width = model.default_size
    usual = [f"{width}x{height}", *(said for said in KNOWN if _fits(parse_size(said), model, settings))]
    kind = "squares with sides" if _square(model) else "sides"
    return f"{kind} of {least} to {most} pixels, such as {', '.join(dict.fromkeys(usual))}"


def _fits(size: tuple[int, int], model: ModelInfo, settings: Settings) -> bool:
    least, most = _bounds(model, settings)
    return least <= min(size) <= max(size) <= most and (size[0] == size[1] or not _square(model))


def _bounds(model: ModelInfo, settings: Settings) -> tuple[int, int]:
    least, most = model.sizes or SIDES
    return least, min(most, settings.most_side)


def _square(model: ModelInfo) -> bool:
    return model.defaults.get("square") is True
