"""What diffusers and transformers write about our networks in config.json, from our configurations."""

from limner.models.clip import CLIPTextConfig
from limner.models.kl_vae import KLVAEConfig
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


FREE = frozenset(
    {"architectures", "model_type", "bos_token_id", "eos_token_id", "pad_token_id", "projection_dim"}
)


def differing(ours: dict[str, object], theirs: dict[str, object]) -> dict[str, tuple[object, object]]:
    """{setting: (ours, theirs)} of what both name and mean otherwise. One number for all levels is the
    same as a list of that number."""
    return {
        key: (value, theirs[key])
        for key, value in ours.items()
        if key not in FREE and key in theirs and not _same(value, theirs[key])
    }


def _same(one: object, other: object) -> bool:
    if isinstance(one, list) != isinstance(other, list):
        many, single = (one, other) if isinstance(one, list) else (other, one)
        return isinstance(many, list) and all(item == single for item in many)
    return one == other
