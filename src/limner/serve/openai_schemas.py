"""The JSON and the forms of OpenAI's Images API, as its clients of 2023 to 2026 write and read them.

Fields that we do not know are passed over, as there. Numbers and truths may be text, which is all that a form
has. The extensions, in the end of each class, come from a client's `extra_body`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from limner.pipeline.request import NUMBERS
from limner.serve.schemas import TEXT, Prompt, Seed
from limner.util.rng import SEED_LIMIT

FORMATS = Literal["png", "jpeg", "webp"]
SIZE = "^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$"
Short = Annotated[str, Field(max_length=200, pattern=TEXT)]
Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]


def _number(name: str) -> Any:
    low, high = NUMBERS[name]
    return Field(default=None, ge=low, le=high, allow_inf_nan=False)


class Wished(BaseModel):
    """What all three ways to ask for pictures have in common; null is as good as not given."""

    model_config = ConfigDict(extra="ignore")

    model: Short | None = None  # one of ours, or one of OpenAI's names, which stand for our default
    n: int | None = Field(default=None, ge=1, le=10, description="pictures; 1 if not given")
    size: Annotated[str, Field(pattern=SIZE)] | None = Field(default=None, description="WIDTHxHEIGHT or auto")
    response_format: Literal["url", "b64_json"] | None = None
    user: Annotated[str, Field(max_length=1000)] | None = None
    # -- extensions
    seed: Annotated[int, Field(ge=0, lt=SEED_LIMIT - 64)] | None = None
    steps: int | None = Field(default=None, ge=1, le=1000)
    negative_prompt: Prompt | None = None
    guidance: float | None = _number("guidance")
    sampler: Annotated[str, Field(max_length=40)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _given(cls, said: Any) -> Any:
        """An empty field of a form was not filled in."""
        if not isinstance(said, Mapping):
            return said
        return {name: value for name, value in said.items() if value != "" or name == "prompt"}


class Painted(Wished):
    """What the two ways with a prompt have in common."""

    prompt: Prompt
    quality: Quality | None = None  # how many steps
    background: Literal["transparent", "opaque", "auto"] | None = None
    output_format: FORMATS | None = None  # png if not given
    output_compression: int | None = Field(default=None, ge=0, le=100, description="of jpeg and webp")
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3, description="pictures on the way")
    style: Short | None = None  # vivid and natural mean nothing here; else a style of the model

    @property
    def modern(self) -> bool:
        """Whether a field is used that came with the models that answer with the picture itself."""
        later = ("background", "output_format", "output_compression", "stream", "partial_images")
        return any(getattr(self, name) is not None for name in later)


class GenerateIn(Painted):
    """POST /v1/images/generations."""

    moderation: Literal["low", "auto"] | None = None


class EditIn(Painted):
    """POST /v1/images/edits, besides the files `image` (or `image[]`) and `mask`."""

    input_fidelity: Literal["low", "high"] | None = None  # high: less of the picture is drawn anew
    strength: float | None = _number("strength")  # an extension: how much of it is


class VariationIn(Wished):
    """POST /v1/images/variations, besides the file `image`."""

    # -- extensions
    prompt: Prompt | None = None  # for models that need one
    strength: float | None = _number("strength")  # how much of the picture to draw anew


class PictureData(BaseModel):
    """A picture, or where it is for an hour."""

    b64_json: Annotated[str, Field(max_length=1 << 30)] | None = None
    url: Annotated[str, Field(max_length=1000)] | None = None


class TokenKinds(BaseModel):
    """Tokens by kind."""

    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Words and signs of the prompt, and squares of 16 pixels of pictures, as tokens."""

    input_tokens: int
    input_tokens_details: TokenKinds
    output_tokens: int
    output_tokens_details: TokenKinds
    total_tokens: int


class Ours(BaseModel):
    """What OpenAI has no field for."""

    job: Annotated[str, Field(max_length=32)]  # GET /jobs/{id} tells all of it
    model: Short
    seeds: list[Seed]
    notices: list[str]  # how words and wishes were understood
    warnings: list[str]  # what was asked for and is not in the pictures


class ImagesOut(BaseModel):
    """Pictures."""

    created: int
    data: list[PictureData]
    background: Literal["opaque"]
    output_format: FORMATS
    quality: Literal["low", "medium", "high", "xhigh", "max"]
    size: Short
    usage: Usage
    limner: Ours


class ModelCard(BaseModel):
    """A model."""

    id: Short
    object: Literal["model"] = "model"
    created: int = 0  # seconds since 1970; 0: it does not say
    owned_by: Short = "limner"


class ModelCards(BaseModel):
    """All models, the default first."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
