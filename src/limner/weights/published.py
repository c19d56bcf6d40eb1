"""All published models that Limner knows, of every family."""

from limner.weights import parts, parts_cascade, parts_flux, parts_sd3, parts_unclip
from limner.weights.parts import Model

ALL: tuple[Model, ...] = (
    *(*parts.MODELS, *parts_sd3.MODELS, *parts_flux.MODELS),
    *(*parts_cascade.MODELS, *parts_unclip.MODELS),
)
