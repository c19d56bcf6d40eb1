"""Stable Diffusion 3 and 3.5: medium, and large, of which Turbo has the shapes.

Their first text encoder ends in a projection that changes nothing, the identity, so single files may lack
it.
"""

from dataclasses import replace

from limner.models import clip, kl_vae, mmdit, t5
from limner.weights.maps import mmdit as maps
from limner.weights.parts import TABLE, Kind, Model, Part, Shapes, t5_part, text_part, vae_part
from limner.weights.settings import mmdit_settings


def telling(config: mmdit.MMDiTConfig) -> Shapes:
    """The table of positions."""
    return {"patches.position": (1, config.positions**2, config.width)}


MMDIT = Kind(
    build=mmdit.MMDiT,
    folder_keys=maps.diffusers_mmdit,
    settings=mmdit_settings,
    library="diffusers",
    stem="diffusion_pytorch_model",
    classes=("SD3Transformer2DModel",),
    telling=telling,
)
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
TEXT_L = replace(clip.TEXT_L, projection=768)


def transformer_part(config: mmdit.MMDiTConfig) -> Part:
    """An MMDiT."""
    return Part(
        folder="transformer",
        kind=MMDIT,
        config=config,
        prefix=maps.PREFIX,
        single_keys=maps.original_mmdit,
    )


def texts(
    first: clip.CLIPTextConfig, second: clip.CLIPTextConfig, third: t5.T5Config
) -> tuple[Part, Part, Part]:
    """The text encoders."""
    return (
        text_part(first, maps.CLIP_L_PREFIX),
        text_part(second, maps.CLIP_G_PREFIX, "text_encoder_2"),
        t5_part(third, "text_encoder_3"),
    )


SD3_MEDIUM = Model(
    name="sd3-medium",
    title="Stable Diffusion 3 medium",
    family="sd3",
    main="transformer",
    parts=(
        transformer_part(mmdit.SD3_MEDIUM),
        vae_part(kl_vae.SD3),
        *texts(TEXT_L, clip.TEXT_G, t5.T5_XXL),
    ),
    optional=frozenset({"text_encoder_3"}),
    predictions=("flow",),
    size=1024,
    pipeline="StableDiffusion3Pipeline",
    tables={TABLE: FLOW},
)
SD35_MEDIUM = replace(
    SD3_MEDIUM,
    name="sd35-medium",
    title="Stable Diffusion 3.5 medium",
    parts=(transformer_part(mmdit.SD35_MEDIUM), *SD3_MEDIUM.parts[1:]),
)
SD35_LARGE = replace(
    SD3_MEDIUM,
    name="sd35-large",
    title="Stable Diffusion 3.5 large",
    parts=(transformer_part(mmdit.SD35_LARGE), *SD3_MEDIUM.parts[1:]),
)


def unprojected(model: Model) -> Model:
    """As single files may have it, without the first projection."""
    return replace(
        model,
        name=f"{model.name}-unprojected",
        parts=(*model.parts[:2], *texts(clip.TEXT_L, clip.TEXT_G, t5.T5_XXL)),
    )


MODELS = (
    *(SD3_MEDIUM, SD35_MEDIUM, SD35_LARGE),
    *(unprojected(model) for model in (SD3_MEDIUM, SD35_MEDIUM, SD35_LARGE)),
)
