"""What diffusers and transformers write about our networks in config.json, from our configurations."""

from collections.abc import Mapping
from typing import Any

from limner.models.clip import CLIPTextConfig, CLIPVisionConfig
from limner.models.flux import FluxConfig
from limner.models.kl_vae import KLVAEConfig
from limner.models.mmdit import MMDiTConfig
from limner.models.mmdit_control import MMDiTControlConfig
from limner.models.pixel_unet import PixelUNetConfig
from limner.models.t5 import T5Config
from limner.models.tiny_vae import TinyVAEConfig
from limner.models.unclip_prior import PriorConfig, ProjectionConfig
from limner.models.unet import UNetConfig

BETAS = {  # of all models here; Rombach et al. 2022, and Song et al. 2021 for the names
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def unet_settings(config: UNetConfig) -> dict[str, object]:
    """A UNet2DConditionModel."""
    names = ["CrossAttn" * (depth > 0) for depth in config.depths]
    deep = sorted({depth for depth in config.depths if depth} | {config.middle})
    heads = config.heads or [config.heads_of(channels) for channels in config.channels]
    settings: dict[str, object] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": config.inputs,
        "out_channels": config.outputs,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.layers,
        "down_block_types": [f"{name}DownBlock2D" for name in names],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": [f"{name}UpBlock2D" for name in reversed(names)],
        "transformer_layers_per_block": deep[0] if len(deep) == 1 else [max(1, d) for d in config.depths],
        "attention_head_dim": heads,  # diffusers means their number
        "cross_attention_dim": config.context,
        "norm_num_groups": config.groups,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "use_linear_projection": not config.pointwise,
    }
    if config.sizes:
        settings |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.size_channels,
            "projection_class_embeddings_input_dim": config.pooled + config.sizes * config.size_channels,
        }
    elif config.pooled:
        settings |= {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": config.pooled,
        }
    if config.guidance:
        settings |= {"time_cond_proj_dim": config.guidance}
    if config.blind:
        settings |= {"only_cross_attention": list(config.blind)}
    if config.levels:
        settings |= {"num_class_embeds": config.levels}
    return settings


def pixel_unet_settings(config: PixelUNetConfig) -> dict[str, object]:
    """A UNet2DConditionModel with added keys and values, or a UNet2DModel where there is no attention."""
    down = {True: "SimpleCrossAttnDownBlock2D", False: "ResnetDownsampleBlock2D"}
    up = {True: "SimpleCrossAttnUpBlock2D", False: "ResnetUpsampleBlock2D"}
    same = len(set(config.layers)) == 1
    settings: dict[str, object] = {
        "_class_name": "UNet2DConditionModel" if config.context else "UNet2DModel",
        "in_channels": config.inputs,
        "out_channels": config.outputs,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.layers[0] if same else list(config.layers),
        "down_block_types": [down[looks] for looks in config.looks],
        "up_block_types": [up[looks] for looks in reversed(config.looks)],
        "norm_num_groups": config.groups,
        "norm_eps": 1e-5,
        "act_fn": config.activation,
        "resnet_time_scale_shift": "scale_shift" if config.modulated else "default",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "attention_head_dim": config.head_channels if config.context else 8,  # 8: of no account
    }
    if config.time != 4 * config.channels[0]:
        settings["time_embedding_dim"] = config.time
    if not config.context:
        settings |= {"downsample_type": "conv", "upsample_type": "conv", "mid_block_type": "UNetMidBlock2D"}
        return settings | {"add_attention": False}
    settings |= {
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "cross_attention_dim": config.context,
        "cross_attention_norm": "group_norm" if config.text_norm else None,
        "only_cross_attention": not config.picture,
        "use_linear_projection": False,
        "transformer_layers_per_block": 1,
        "class_embed_type": "timestep" if config.level else None if config.text else "identity",
    }
    if config.text:
        settings |= {"encoder_hid_dim": config.text, "encoder_hid_dim_type": "text_proj"}
    if config.pool_heads:
        settings |= {"addition_embed_type": "text", "addition_embed_type_num_heads": config.pool_heads}
    if config.divisor != 1:
        told = {"resnet_out_scale_factor": config.divisor, "mid_block_scale_factor": config.divisor}
        settings |= told | {"resnet_skip_time_act": True, "time_embedding_act_fn": config.activation}
    return settings


def pixel_unet_config(settings: Mapping[str, Any]) -> PixelUNetConfig:
    """The configuration of a text-to-picture or super-resolution U-Net that a config.json describes; what it
    says besides is for `differing` to judge. Raises KeyError and TypeError for what is none."""
    channels, layers = tuple(settings["block_out_channels"]), settings["layers_per_block"]
    return PixelUNetConfig(
        inputs=settings["in_channels"],
        outputs=settings["out_channels"],
        channels=channels,
        layers=(layers,) * len(channels) if isinstance(layers, int) else tuple(layers),
        looks=tuple("Attn" in name for name in settings["down_block_types"]),
        context=settings["cross_attention_dim"],
        text=settings.get("encoder_hid_dim") or 0,
        pool_heads=settings.get("addition_embed_type_num_heads", 64),
        level=settings.get("class_embed_type") == "timestep",
        picture=not settings.get("only_cross_attention"),
        text_norm=settings.get("cross_attention_norm") == "group_norm",
        head_channels=settings["attention_head_dim"],
        time=settings.get("time_embedding_dim") or 4 * channels[0],
        modulated=settings["resnet_time_scale_shift"] == "scale_shift",
        activation="gelu" if settings["act_fn"] == "gelu" else "silu",
        divisor=settings.get("resnet_out_scale_factor", 1.0),
        groups=settings["norm_num_groups"],
    )


def vae_settings(config: KLVAEConfig) -> dict[str, object]:
    """An AutoencoderKL."""
    settings: dict[str, object] = {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(config.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(config.channels),
        "layers_per_block": config.layers,
        "latent_channels": config.latents,
        "norm_num_groups": config.groups,
        "act_fn": "silu",
        "scaling_factor": config.scale_factor,
        "use_quant_conv": config.pointwise,
        "use_post_quant_conv": config.pointwise,
    }
    return settings | ({"shift_factor": config.shift} if config.shift else {})


def tiny_vae_settings(config: TinyVAEConfig) -> dict[str, object]:
    """An AutoencoderTiny."""
    levels = len(config.blocks)
    return {
        "_class_name": "AutoencoderTiny",
        "in_channels": 3,
        "out_channels": 3,
        "encoder_block_out_channels": [config.width] * levels,
        "decoder_block_out_channels": [config.width] * levels,
        "block_out_channels": [config.width] * levels,
        "num_encoder_blocks": list(config.blocks),
        "num_decoder_blocks": list(reversed(config.blocks)),
        "latent_channels": config.latents,
        "upsampling_scaling_factor": 2,
        "upsample_fn": "nearest",
        "act_fn": "relu",
        "scaling_factor": 1.0,
    }


def text_settings(config: CLIPTextConfig) -> dict[str, object]:
    """A CLIPTextModel, with projection where it has one."""
    return {
        "architectures": ["CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.inner,
        "hidden_act": config.activation,
        "projection_dim": config.projection or config.width,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.length,
        "layer_norm_eps": 1e-5,
        "bos_token_id": config.end - 1,
        "eos_token_id": config.end,
        "pad_token_id": 1,
    }


def t5_settings(config: T5Config) -> dict[str, object]:
    """A T5EncoderModel."""
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": config.vocabulary,
        "d_model": config.width,
        "d_kv": config.head_width,
        "d_ff": config.inner,
        "num_layers": config.depth,
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.distance,
        "feed_forward_proj": "gated-gelu",
        "is_gated_act": True,
        "dense_act_fn": "gelu_new",
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def vision_settings(config: CLIPVisionConfig) -> dict[str, object]:
    """A CLIPVisionModelWithProjection."""
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.inner,
        "hidden_act": config.activation,
        "projection_dim": config.projection,
        "image_size": config.size,
        "patch_size": config.patch,
        "num_channels": 3,
        "layer_norm_eps": 1e-5,
    }


def prior_settings(config: PriorConfig) -> dict[str, object]:
    """A PriorTransformer."""
    return {
        "_class_name": "PriorTransformer",
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "num_layers": config.depth,
        "embedding_dim": config.embedding,
        "num_embeddings": config.length,
        "additional_embeddings": 4,
        "time_embed_act_fn": "silu",
        "norm_in_type": None,
        "embedding_proj_norm_type": None,
        "encoder_hid_proj_type": "linear",
        "added_emb_type": "prd",
        "time_embed_dim": None,
        "embedding_proj_dim": None,
        "clip_embed_dim": None,
    }


def projection_settings(config: ProjectionConfig) -> dict[str, object]:
    """A UnCLIPTextProjModel."""
    return {
        "_class_name": "UnCLIPTextProjModel",
        "clip_extra_context_tokens": config.tokens,
        "clip_embeddings_dim": config.embedding,
        "time_embed_dim": config.time,
        "cross_attention_dim": config.context,
    }


def normaliser_settings(embedding: int) -> dict[str, object]:
    """A StableUnCLIPImageNormalizer."""
    return {"_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": embedding}


def flux_settings(config: FluxConfig) -> dict[str, object]:
    """A FluxTransformer2DModel."""
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": config.inputs * config.patch**2,
        "out_channels": None if config.inputs == config.latents else config.latents * config.patch**2,
        "num_layers": config.double,
        "num_single_layers": config.single,
        "attention_head_dim": sum(config.axes),
        "num_attention_heads": config.heads,
        "joint_attention_dim": config.context,
        "pooled_projection_dim": config.pooled,
        "guidance_embeds": config.guidance,
        "axes_dims_rope": list(config.axes),
    }


def mmdit_settings(config: MMDiTConfig) -> dict[str, object]:
    """An SD3Transformer2DModel."""
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": config.patch,
        "in_channels": config.latents,
        "out_channels": config.latents,
        "num_layers": config.depth,
        "attention_head_dim": config.head_width,
        "num_attention_heads": config.heads,
        "joint_attention_dim": config.context,
        "caption_projection_dim": config.width,
        "pooled_projection_dim": config.pooled,
        "pos_embed_max_size": config.positions,
        "dual_attention_layers": list(range(config.dual)),
        "qk_norm": "rms_norm" if config.normed else None,
    }


def mmdit_control_settings(config: MMDiTControlConfig) -> dict[str, object]:
    """An SD3ControlNetModel."""
    settings = mmdit_settings(config.network) | {
        "_class_name": "SD3ControlNetModel",
        "joint_attention_dim": config.network.context if config.joint else None,
        "extra_conditioning_channels": 0,
        "use_pos_embed": config.joint,
        "force_zeros_for_pooled_projection": config.zeros,
    }
    return settings | ({"pos_embed_type": "sincos"} if config.joint else {})


FREE = frozenset(  # say nothing about what a network makes of its input
    {
        *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "sample_size"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "projection_dim", "addition_embed_type_num_heads"),
        *(
            "dropout",
            "attention_dropout",
            "initializer_range",
            "initializer_factor",
            "gradient_checkpointing",
        ),
        *("tie_word_embeddings", "decoder_start_token_id", "dropout_rate", "classifier_dropout"),
        *("is_encoder_decoder", "num_decoder_layers", "is_decoder", "output_past", "n_positions"),
        "scale_decoder_outputs",
        *("force_upcast", "upcast_attention", "use_cache", "return_dict", "latent_magnitude", "latent_shift"),
    }
)
USUAL: dict[str, object] = {  # what our networks do, where no configuration of ours has a choice
    "resnet_time_scale_shift": "default",
    "resnet_out_scale_factor": 1,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "resnet_skip_time_act": False,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "mid_block_add_attention": True,
    "conditioning_channels": 3,
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
    "add_attention": True,
}


def differing(ours: dict[str, object], theirs: dict[str, object]) -> dict[str, tuple[object, object]]:
    """{setting: (ours, theirs)} of what both mean otherwise. One number for all levels is the same as a list
    of that number."""
    return {
        key: (value, theirs[key])
        for key, value in (USUAL | ours).items()
        if key not in FREE and key in theirs and not _same(value, theirs[key])
        if key in ours or theirs[key] is not None
    }


def unknown(ours: dict[str, object], theirs: dict[str, object], where: str) -> list[str]:
    """A notice about what only `theirs` names, if it asks for anything."""
    more = {
        key: value
        for key, value in theirs.items()
        if key not in ours and key not in USUAL and key not in FREE and not key.startswith("_")
        if value not in (None, False, [], {})
    }
    told = ", ".join(f"{key} ({str(value)[:40]})" for key, value in sorted(more.items()))
    return [f"passed over in {where}/config.json, as Limner does not know it: {told}"] if more else []


def _same(one: object, other: object) -> bool:
    if isinstance(one, list) != isinstance(other, list):
        many, single = (one, other) if isinstance(one, list) else (other, one)
        return isinstance(many, list) and all(item == single for item in many)
    return one == other
