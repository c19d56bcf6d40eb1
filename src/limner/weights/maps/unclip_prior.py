"""Names of what unCLIP has besides CLIP and U-Nets: the prior, the projections, statistics of embeddings."""

from einops import rearrange
from torch import Tensor

from limner.weights.keymap import Change, KeyMap, Rule
from limner.weights.maps.unet import Pairs, layers

BLOCK: Pairs = (
    ("norm1", "norm1"),
    ("attn1.to_q", "q"),
    ("attn1.to_k", "k"),
    ("attn1.to_v", "v"),
    ("attn1.to_out.0", "out"),
    ("norm3", "norm2"),
    ("ff.net.0.proj", "inner"),
    ("ff.net.2", "outer"),
)


def _one(tensor: Tensor) -> Tensor:
    return rearrange(tensor, "1 d -> d")


def _first(tensor: Tensor) -> Tensor:
    return rearrange(tensor, "d -> 1 d")


def _table(tensor: Tensor) -> Tensor:
    return rearrange(tensor, "1 n d -> n d")


def _of_batch(tensor: Tensor) -> Tensor:
    return rearrange(tensor, "n d -> 1 n d")


def _row(tensor: Tensor) -> Tensor:
    return rearrange(tensor, "1 1 d -> d")


def _of_table(tensor: Tensor) -> Tensor:
    return rearrange(tensor, "d -> 1 1 d")


VECTOR, TABLE, ROW = Change(_one, _first), Change(_table, _of_batch), Change(_row, _of_table)


def diffusers_prior() -> KeyMap:
    """prior/diffusion_pytorch_model.safetensors <-> UnCLIPPrior."""
    blocks = ((f"transformer_blocks.{{i}}.{theirs}", f"blocks.{{i}}.{ours}") for theirs, ours in BLOCK)
    return (
        Rule("positional_embedding", "position", TABLE),
        Rule("prd_embedding", "last", ROW),
        Rule("clip_mean", "mean", VECTOR),
        Rule("clip_std", "deviation", VECTOR),
        *layers(
            ("proj_in", "picture"),
            ("embedding_proj", "pooled"),
            ("encoder_hidden_states_proj", "text"),
            ("time_embedding.linear_1", "time.0"),
            ("time_embedding.linear_2", "time.2"),
            ("norm_out", "norm"),
            ("proj_to_clip_embeddings", "out"),
            *blocks,
        ),
    )


def diffusers_projection() -> KeyMap:
    """text_proj/diffusion_pytorch_model.safetensors <-> UnCLIPProjection."""
    return (
        Rule("learned_classifier_free_guidance_embeddings", "nothing"),
        *layers(
            ("clip_extra_context_tokens_proj", "picture_rows"),
            ("clip_image_embeddings_project_to_time_embeddings", "picture_time"),
            ("encoder_hidden_states_proj", "text_rows"),
            ("embedding_proj", "text_time"),
            ("text_encoder_hidden_states_norm", "norm"),
        ),
    )


def diffusers_normaliser() -> KeyMap:
    """image_normalizer/diffusion_pytorch_model.safetensors <-> Normaliser."""
    return (Rule("mean", "mean", VECTOR), Rule("std", "deviation", VECTOR))
