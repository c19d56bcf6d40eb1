"""unCLIP: Karlo, in its two folders, and Stable Diffusion 2.1 told of a picture. In folders only: the single
files of the latter lack the statistics of CLIP's embeddings."""

from dataclasses import replace

from limner.models import clip, kl_vae, pixel_unet, unclip_prior, unet
from limner.weights.maps import clip as clip_maps
from limner.weights.maps import unclip_prior as maps
from limner.weights.maps.pixel_unet import diffusers_pixel_unet
from limner.weights.parts import SD21, TEXT, Kind, Model, Part, Shapes, text_part, unet_part, vae_part
from limner.weights.settings import (
    normaliser_settings,
    pixel_unet_settings,
    prior_settings,
    projection_settings,
    vision_settings,
)

STEM = "diffusion_pytorch_model"
PRIOR = Kind(
    build=unclip_prior.UnCLIPPrior,
    folder_keys=lambda config: maps.diffusers_prior(),
    settings=prior_settings,
    library="diffusers",
    stem=STEM,
    classes=("PriorTransformer",),
)
PROJECTION = Kind(
    build=unclip_prior.UnCLIPProjection,
    folder_keys=lambda config: maps.diffusers_projection(),
    settings=projection_settings,
    library="unclip",  # the room of diffusers' pipeline, as model_index.json names it
    stem=STEM,
    classes=("UnCLIPTextProjModel",),
)
NORMALISER = Kind(
    build=unclip_prior.Normaliser,
    folder_keys=lambda config: maps.diffusers_normaliser(),
    settings=normaliser_settings,
    library="stable_diffusion",
    stem=STEM,
    classes=("StableUnCLIPImageNormalizer",),
)
VISION = Kind(
    build=clip.CLIPVision,
    folder_keys=lambda config: clip_maps.transformers_vision(),
    settings=vision_settings,
    library="transformers",
    stem="model",
    classes=("CLIPVisionModelWithProjection",),
)


def decoder_telling(config: pixel_unet.PixelUNetConfig) -> Shapes:
    """What comes in, and what the middle hears."""
    return {
        "first.weight": (config.channels[0], config.inputs, 3, 3),
        "middle.0.attention.text_k.weight": (config.channels[-1], config.context),
    }


DECODER = Kind(
    build=pixel_unet.PixelUNet,
    folder_keys=diffusers_pixel_unet,
    settings=lambda config: pixel_unet_settings(config) | {"class_embed_type": "identity"},
    library="diffusers",
    stem=STEM,
    classes=("UNet2DConditionModel",),
    telling=decoder_telling,
)
SUPER_RES = Kind(
    build=pixel_unet.PixelUNet,
    folder_keys=diffusers_pixel_unet,
    settings=lambda config: (
        pixel_unet_settings(config) | {"add_attention": False, "mid_block_type": "UNetMidBlock2D"}
    ),
    library="diffusers",
    stem=STEM,
    classes=("UNet2DModel",),
)
COSINE = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}
OF_PRIOR = COSINE | {
    "_class_name": "UnCLIPScheduler",
    "clip_sample": True,
    "clip_sample_range": 5.0,
    "prediction_type": "sample",
    "variance_type": "fixed_small_log",
}
OF_DECODER = OF_PRIOR | {
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "variance_type": "learned_range",
}
OF_SUPER_RES = OF_DECODER | {"variance_type": "fixed_small_log"}
OF_NOISING = COSINE | {"_class_name": "DDPMScheduler"}


def picture_part(config: clip.CLIPVisionConfig) -> Part:
    """A picture tower."""
    return Part(folder="image_encoder", kind=VISION, config=config)


def prior_parts(
    prior: unclip_prior.PriorConfig, text: clip.CLIPTextConfig, folder: str = "text_encoder"
) -> tuple[Part, Part]:
    """A prior and the text tower that it hears."""
    return (
        Part(folder="prior", kind=PRIOR, config=prior),
        Part(folder=folder, kind=TEXT, config=text),
    )


def stable_parts(
    network: unet.UNetConfig, vae: kl_vae.KLVAEConfig, text: clip.CLIPTextConfig, embedding: int
) -> tuple[Part, ...]:
    """Stable Diffusion, and the statistics of what it is told of a picture."""
    told = text_part(text, clip_maps.SD2_PREFIX)
    return (
        unet_part(network),
        vae_part(vae),
        told,
        Part(folder="image_normalizer", kind=NORMALISER, config=embedding),
    )


def decoder_parts(
    projection: unclip_prior.ProjectionConfig,
    decoder: pixel_unet.PixelUNetConfig,
    super_res: pixel_unet.PixelUNetConfig,
) -> tuple[Part, ...]:
    """What draws of an embedding."""
    return (
        Part(folder="text_proj", kind=PROJECTION, config=projection),
        Part(folder="decoder", kind=DECODER, config=decoder),
        *(Part(folder=f"super_res_{which}", kind=SUPER_RES, config=super_res) for which in ("first", "last")),
    )


TEXT_L = replace(clip.TEXT_L, projection=768)
SD21_UNCLIP = Model(
    name="sd21-unclip",
    title="Stable Diffusion 2.1 unCLIP",
    family="sd_unclip",
    main="unet",
    parts=(
        *stable_parts(unet.SD21_UNCLIP, kl_vae.SD, clip.TEXT_H_SD2, clip.VISION_H.projection),
        picture_part(clip.VISION_H),
    ),
    predictions=SD21.predictions,
    size=768,
    pipeline="StableUnCLIPImg2ImgPipeline",
    tables={**SD21.tables, "image_noising_scheduler": OF_NOISING},
)
SD21_UNCLIP_SMALL = replace(
    SD21_UNCLIP,
    name="sd21-unclip-small",
    title="Stable Diffusion 2.1 unCLIP, small",
    parts=(
        *stable_parts(
            replace(unet.SD21_UNCLIP, pooled=2 * clip.VISION_L.projection),
            kl_vae.SD,
            clip.TEXT_H_SD2,
            clip.VISION_L.projection,
        ),
        picture_part(clip.VISION_L),
        *prior_parts(unclip_prior.KARLO_PRIOR, TEXT_L, "prior_text_encoder"),
    ),
    optional=frozenset({"image_encoder", "prior", "prior_text_encoder"}),
    tables={**SD21_UNCLIP.tables, "prior_scheduler": OF_PRIOR},
)
KARLO = Model(
    name="karlo",
    title="Karlo",
    family="unclip",
    main="decoder",
    parts=(
        *prior_parts(unclip_prior.KARLO_PRIOR, TEXT_L),
        *decoder_parts(unclip_prior.KARLO_PROJECTION, pixel_unet.KARLO_DECODER, pixel_unet.KARLO_SUPER_RES),
        picture_part(clip.VISION_L),
    ),
    optional=frozenset({"image_encoder"}),
    predictions=("eps",),
    size=256,
    pipeline="UnCLIPPipeline",
    tables={
        "decoder_scheduler": OF_DECODER,
        "super_res_scheduler": OF_SUPER_RES,
        "prior_scheduler": OF_PRIOR,
    },
)
KARLO_VARIATIONS = replace(
    KARLO,
    name="karlo-variations",
    title="Karlo for variations",
    parts=KARLO.parts[1:],
    optional=frozenset(),
    pipeline="UnCLIPImageVariationPipeline",
    tables={"decoder_scheduler": OF_DECODER, "super_res_scheduler": OF_SUPER_RES},
)
MODELS = (SD21_UNCLIP, SD21_UNCLIP_SMALL, KARLO, KARLO_VARIATIONS)
