"""DeepFloyd IF, a folder for each stage, and Stable Diffusion's upscaler, which enlarges four times."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from limner.models import clip, kl_vae, pixel_unet, t5, unet
from limner.models.pixel_unet import PixelUNetConfig
from limner.weights.maps import clip as clip_maps
from limner.weights.maps import pixel_unet as maps
from limner.weights.parts import TABLE, Kind, Model, Part, Shapes, t5_part, text_part, unet_part, vae_part
from limner.weights.settings import pixel_unet_config, pixel_unet_settings

STAGES = ("I", "II", "III")  # folders inside of one that holds a cascade
NOISING = "image_noising_" + TABLE  # folder of the path by which the small picture is noised
LOW = "low_res_" + TABLE  # the same of the upscaler


def telling(config: PixelUNetConfig) -> Shapes:
    """What comes in, and what the middle hears."""
    first, last = config.channels[0], config.channels[-1]
    shapes: Shapes = {"first.weight": (first, config.inputs, 3, 3)}
    if config.context:
        shapes["middle.0.attention.text_k.weight"] = (last, config.context)
    return shapes


PIXEL_UNET = Kind(
    build=pixel_unet.PixelUNet,
    folder_keys=maps.diffusers_pixel_unet,
    settings=pixel_unet_settings,
    library="diffusers",
    stem="diffusion_pytorch_model",
    classes=("UNet2DConditionModel", "UNet2DModel"),
    telling=telling,
)
DDPM: dict[str, object] = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 1000,
}
LEARNED = DDPM | {
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
}
X4_BETAS: dict[str, object] = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
UNWATCHED = {"safety_checker": [None, None], "feature_extractor": [None, None], "watermarker": [None, None]}


def pixel_part(config: PixelUNetConfig, folder: str = "unet") -> Part:
    """A pixel U-Net."""
    return Part(folder=folder, kind=PIXEL_UNET, config=config)


def stage(name: str, config: PixelUNetConfig, text: t5.T5Config = t5.T5_XXL) -> Model:
    """A stage of IF. T5 may be missing: one serves all stages."""
    second = config.level
    return Model(
        name=name,
        title=f"DeepFloyd IF, stage {'II' if second else 'I'}",
        family="cascade",
        main="unet",
        parts=(pixel_part(config), replace(t5_part(text, "text_encoder"), single_keys=None)),
        optional=frozenset({"text_encoder"}),
        predictions=("eps",),
        size=256 if second else 64,
        pipeline="IFSuperResolutionPipeline" if second else "IFPipeline",
        index=UNWATCHED,
        tables={TABLE: LEARNED | {"sample_max_value": 1.0}, NOISING: DDPM}
        if second
        else {TABLE: LEARNED | {"sample_max_value": 1.5}},
    )


def described(settings: Mapping[str, Mapping[str, Any]]) -> tuple[Model, ...]:
    """The stage of IF that a folder's config.json files describe, if they do: stages were published in more
    sizes than are listed here."""
    said = settings.get("unet", {})
    if said.get("addition_embed_type") != "text":
        return ()
    try:
        return (stage("if", pixel_unet_config(said)),)
    except (KeyError, TypeError, ValueError):
        return ()


IF_I_XL = stage("if-i-xl", pixel_unet.IF_I_XL)
IF_I_L = stage("if-i-l", pixel_unet.IF_I_L)
IF_I_M = stage("if-i-m", pixel_unet.IF_I_M)
X4 = Model(
    name="x4",
    title="Stable Diffusion x4 upscaler",
    family="x4",
    main="unet",
    parts=(
        unet_part(unet.X4),
        vae_part(kl_vae.X4),
        text_part(clip.TEXT_H_SD2, clip_maps.SD2_PREFIX),
    ),
    predictions=("v", "eps"),
    size=1024,
    pipeline="StableDiffusionUpscalePipeline",
    index={"safety_checker": [None, None], "feature_extractor": [None, None], "max_noise_level": 350},
    tables={
        TABLE: X4_BETAS | {"_class_name": "DDIMScheduler", "steps_offset": 1, "set_alpha_to_one": False},
        LOW: X4_BETAS | {"_class_name": "DDPMScheduler"},
    },
)
MODELS = (IF_I_XL, IF_I_L, IF_I_M, X4)
