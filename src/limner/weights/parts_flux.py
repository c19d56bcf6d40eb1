"""FLUX.1: dev, which was taught to follow a guidance that it is told, and schnell, for few steps."""

from dataclasses import replace

from limner.models import clip, flux, kl_vae, t5
from limner.weights.maps import flux as maps
from limner.weights.maps import kl_vae as vae_maps
from limner.weights.parts import TABLE, Kind, Model, Part, Shapes, t5_part, text_part, vae_part
from limner.weights.settings import flux_settings

CLIP_PREFIX = "text_encoders.clip_l.transformer."
VAE_PREFIX = "vae."


def telling(config: flux.FluxConfig) -> Shapes:
    """What comes in, and whether it is told the guidance."""
    width = config.width
    shapes: Shapes = {
        "picture.weight": (width, config.inputs * config.patch**2),
        "text.weight": (width, config.context),
    }
    return shapes | ({"guidance.0.weight": (width, flux.WAVES)} if config.guidance else {})


FLUX = Kind(
    build=flux.Flux,
    folder_keys=maps.diffusers_flux,
    settings=flux_settings,
    library="diffusers",
    stem="diffusion_pytorch_model",
    classes=("FluxTransformer2DModel",),
    telling=telling,
)
FLOW = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def flux_part(config: flux.FluxConfig) -> Part:
    """The transformer; files that hold nothing else come without a prefix."""
    return Part(
        folder="transformer",
        kind=FLUX,
        config=config,
        prefix=maps.PREFIX,
        prefixes=("",),
        single_keys=maps.original_flux,
    )


FLUX_DEV = Model(
    name="flux-dev",
    title="FLUX.1 dev",
    family="flux",
    main="transformer",
    parts=(
        flux_part(flux.FLUX_DEV),
        replace(vae_part(kl_vae.FLUX), prefix=VAE_PREFIX, prefixes=(vae_maps.LDM_PREFIX,)),
        text_part(clip.TEXT_L, CLIP_PREFIX),
        t5_part(t5.T5_XXL, "text_encoder_2"),
    ),
    optional=frozenset({"vae", "text_encoder", "text_encoder_2"}),  # not in files of the transformer alone
    predictions=("flow",),
    size=1024,
    pipeline="FluxPipeline",
    tables={TABLE: FLOW},
)
FLUX_SCHNELL = replace(
    FLUX_DEV,
    name="flux-schnell",
    title="FLUX.1 schnell",
    parts=(flux_part(flux.FLUX_SCHNELL), *FLUX_DEV.parts[1:]),
    tables={TABLE: FLOW | {"shift": 1.0, "use_dynamic_shifting": False}},
)
MODELS = (FLUX_DEV, FLUX_SCHNELL)
