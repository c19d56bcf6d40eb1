"""What diffusers and transformers write about our networks in config.json, from our configurations."""

from limner.models.clip import CLIPTextConfig
from limner.models.kl_vae import KLVAEConfig
from limner.models.tiny_vae import TinyVAEConfig
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
    return settings


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
