"""Names of T5's tensors, as transformers writes them; single files have the same under a prefix.

SD3        text_encoders.t5xxl.transformer.
FLUX       text_encoders.t5xxl.transformer.
alone      no prefix (t5xxl_fp16.safetensors)
"""

from limner.models.t5 import T5Config
from limner.weights.keymap import KeyMap, Rule
from limner.weights.maps.unet import Pairs

T5_PREFIX = "text_encoders.t5xxl.transformer."

BLOCK: Pairs = (
    ("0.layer_norm", "norm1"),
    ("0.SelfAttention.q", "q"),
    ("0.SelfAttention.k", "k"),
    ("0.SelfAttention.v", "v"),
    ("0.SelfAttention.o", "out"),
    ("1.layer_norm", "norm2"),
    ("1.DenseReluDense.wi_0", "gate"),
    ("1.DenseReluDense.wi_1", "inner"),
    ("1.DenseReluDense.wo", "outer"),
)


def transformers_t5(config: T5Config, prefix: str = "") -> KeyMap:
    """text_encoder/model.safetensors <-> T5Encoder. Reads files of whole T5s, of which it leaves the decoder,
    and those that hold the embedding twice."""
    return (
        Rule(f"{prefix}shared.weight", "token.weight"),
        Rule(f"{prefix}encoder.embed_tokens.weight", "token.weight", twin=True),
        Rule(
            f"{prefix}encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "bucket.weight"
        ),
        *(
            Rule(
                f"{prefix}encoder.block.{{i}}.layer.{theirs}.weight",
                f"blocks.{{i}}.{ours}.{'scale' if ours.startswith('norm') else 'weight'}",
            )
            for theirs, ours in BLOCK
        ),
        Rule(f"{prefix}encoder.final_layer_norm.weight", "norm.scale"),
        *(Rule(f"{prefix}{rest}", None) for rest in ("decoder.{rest*}", "lm_head.weight")),
    )
