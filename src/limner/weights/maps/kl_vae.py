"""Names of the autoencoder's tensors: in diffusers folders, and in the original files of LDM and SGM.

The original code counts the levels of the decoder from the finest, and its attention is written as 1x1
convolutions.
"""

from limner.models.kl_vae import KLVAEConfig
from limner.weights.keymap import POINTWISE_TO_LINEAR, KeyMap, Rule
from limner.weights.maps.unet import Pairs, layers

LDM_PREFIX = "first_stage_model."

DIFFUSERS_RESNET: Pairs = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("conv_shortcut", "skip"),
)
LDM_RESNET: Pairs = (*DIFFUSERS_RESNET[:-1], ("nin_shortcut", "skip"))
DIFFUSERS_ATTENTION: Pairs = (
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "out"),
    ("query", "q"),  # these four: diffusers before 0.15
    ("key", "k"),
    ("value", "v"),
    ("proj_attn", "out"),
)
LDM_ATTENTION: Pairs = (("q", "q"), ("k", "k"), ("v", "v"), ("proj_out", "out"))


def diffusers_vae(prefix: str = "") -> KeyMap:
    """vae/diffusion_pytorch_model.safetensors <-> KLVAE. Reads the attention's names of old files too."""
    pairs = [("quant_conv", "leave"), ("post_quant_conv", "enter")]
    for side, way, resample in (("encoder", "down", "downsamplers"), ("decoder", "up", "upsamplers")):
        pairs += [
            (f"{side}.conv_in", f"{side}.first"),
            (f"{side}.conv_norm_out", f"{side}.norm"),
            (f"{side}.conv_out", f"{side}.last"),
            (f"{side}.{way}_blocks.{{i}}.{resample}.0.conv", f"{side}.{way}.{{i}}.resample.conv"),
            *_inside(
                f"{side}.{way}_blocks.{{i}}.resnets.{{j}}",
                f"{side}.{way}.{{i}}.blocks.{{j}}",
                DIFFUSERS_RESNET,
            ),
            *_inside(f"{side}.mid_block.resnets.0", f"{side}.middle.0", DIFFUSERS_RESNET),
            *_inside(f"{side}.mid_block.attentions.0", f"{side}.middle.1", DIFFUSERS_ATTENTION),
            *_inside(f"{side}.mid_block.resnets.1", f"{side}.middle.2", DIFFUSERS_RESNET),
        ]
    return layers(*((prefix + theirs, ours) for theirs, ours in pairs))


def ldm_vae(config: KLVAEConfig, prefix: str = LDM_PREFIX) -> KeyMap:
    """The autoencoder's part of a single file in the original naming <-> KLVAE. Files that hold nothing else
    come without the prefix."""
    last = len(config.channels) - 1
    pairs = [("quant_conv", "leave"), ("post_quant_conv", "enter")]
    rules: list[Rule] = []
    for side, way, resample in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        pairs += [
            (f"{side}.conv_in", f"{side}.first"),
            (f"{side}.norm_out", f"{side}.norm"),
            (f"{side}.conv_out", f"{side}.last"),
            *_inside(f"{side}.mid.block_1", f"{side}.middle.0", LDM_RESNET),
            (f"{side}.mid.attn_1.norm", f"{side}.middle.1.norm"),
            *_inside(f"{side}.mid.block_2", f"{side}.middle.2", LDM_RESNET),
        ]
        for level in range(last + 1):
            theirs = f"{side}.{way}.{level}"
            ours = f"{side}.{way}.{level if way == 'down' else last - level}"
            pairs += [
                (f"{theirs}.{resample}.conv", f"{ours}.resample.conv"),
                *_inside(f"{theirs}.block.{{j}}", f"{ours}.blocks.{{j}}", LDM_RESNET),
            ]
        for theirs, ours in _inside(f"{prefix}{side}.mid.attn_1", f"{side}.middle.1", LDM_ATTENTION):
            rules.append(Rule(f"{theirs}.weight", f"{ours}.weight", POINTWISE_TO_LINEAR))
            rules.append(Rule(f"{theirs}.bias", f"{ours}.bias"))
    dropped = (Rule(f"{prefix}{part}.{{rest*}}", None) for part in ("loss", "model_ema"))  # of training
    return (*rules, *layers(*((prefix + theirs, ours) for theirs, ours in pairs)), *dropped)


def _inside(theirs: str, ours: str, pairs: Pairs) -> list[tuple[str, str]]:
    return [(f"{theirs}.{a}", f"{ours}.{b}") for a, b in pairs]
