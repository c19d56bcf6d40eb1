"""Names of the pixel U-Net's tensors: in diffusers folders, and in the original files of IF and Karlo.

Diffusers counts levels and the blocks in them, as we do; the original code counts every step of the way
(input_blocks.0, 1, ...), so its rules are written out for a configuration. There, too, queries, keys and
values are one 1x1 convolution, those of a head side by side.
"""

from functools import partial

from einops import rearrange
from torch import Tensor

from limner.models.pixel_unet import PixelUNetConfig
from limner.weights.keymap import Change, KeyMap, Rule
from limner.weights.maps.unet import DIFFUSERS_RESNET, LDM_RESNET, Pairs, layers

DIFFUSERS_ATTENTION: Pairs = (
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("norm_cross", "text_norm"),
    ("add_k_proj", "text_k"),
    ("add_v_proj", "text_v"),
    ("to_out.0", "out"),
)
DIFFUSERS_POOL: Pairs = (
    ("norm1", "norm1"),
    ("pool.q_proj", "q"),
    ("pool.k_proj", "k"),
    ("pool.v_proj", "v"),
    ("proj", "out"),
    ("norm2", "norm2"),
)
ORIGINAL_POOL: Pairs = (
    ("0", "norm1"),
    ("1.q_proj", "q"),
    ("1.k_proj", "k"),
    ("1.v_proj", "v"),
    ("2", "out"),
    ("3", "norm2"),
)


def diffusers_pixel_unet(config: PixelUNetConfig) -> KeyMap:
    """unet/diffusion_pytorch_model.safetensors <-> PixelUNet; decoder and super_res_* of Karlo, too."""
    return (
        *layers(
            ("conv_in", "first"),
            ("time_embedding.linear_1", "time.0"),
            ("time_embedding.linear_2", "time.2"),
            ("class_embedding.linear_1", "level.0"),
            ("class_embedding.linear_2", "level.2"),
            ("encoder_hid_proj", "project"),
            ("conv_norm_out", "norm"),
            ("conv_out", "last"),
        ),
        Rule("add_embedding.pool.positional_embedding", "pool.place"),
        *_inside("add_embedding", "pool", DIFFUSERS_POOL),
        *(
            rule
            for theirs, ours in (("down_blocks.{i}", "down.{i}"), ("up_blocks.{i}", "up.{i}"))
            for rule in (
                *_inside(f"{theirs}.resnets.{{j}}", f"{ours}.blocks.{{j}}.resnet", DIFFUSERS_RESNET),
                *_inside(f"{theirs}.attentions.{{j}}", f"{ours}.blocks.{{j}}.attention", DIFFUSERS_ATTENTION),
            )
        ),
        *_inside("down_blocks.{i}.downsamplers.0", "down.{i}.resample", DIFFUSERS_RESNET),
        *_inside("up_blocks.{i}.upsamplers.0", "up.{i}.resample", DIFFUSERS_RESNET),
        *_inside("mid_block.resnets.{j}", "middle.{j}.resnet", DIFFUSERS_RESNET),
        *_inside("mid_block.attentions.0", "middle.0.attention", DIFFUSERS_ATTENTION),
    )


def original_pixel_unet(config: PixelUNetConfig, prefix: str = "") -> KeyMap:
    """pytorch_model.bin of IF, without a prefix, <-> PixelUNet. Karlo's decoder has the prefix "model.", its
    super-resolution "model_first_steps." and "model_last_step."."""
    rules = [
        *layers(
            (prefix + "input_blocks.0.0", "first"),
            (prefix + "time_embed.{i}", "time.{i}"),
            (prefix + "aug_proj.{i}", "level.{i}"),
            (prefix + "encoder_proj", "project"),
            (prefix + "out.0", "norm"),
            (prefix + "out.2", "last"),
        ),
        Rule(prefix + "encoder_pooling.1.positional_embedding", "pool.place"),
        *_inside(prefix + "encoder_pooling", "pool", ORIGINAL_POOL),
    ]
    step, on = 1, len(config.channels) - 1
    for i, (count, looks) in enumerate(zip(config.layers, config.looks, strict=True)):
        for j in range(count):
            rules += _block(f"{prefix}input_blocks.{step}", f"down.{i}.blocks.{j}", looks, config)
            step += 1
        if i < on:  # a step of its own
            rules += _inside(f"{prefix}input_blocks.{step}.0", f"down.{i}.resample", LDM_RESNET)
            step += 1
    middle = prefix + "middle_block"
    rules += _block(middle, "middle.0", config.context > 0, config)
    rules += _inside(f"{middle}.{1 + (config.context > 0)}", "middle.1.resnet", LDM_RESNET)
    step = 0
    for i, (count, looks) in enumerate(reversed(list(zip(config.layers, config.looks, strict=True)))):
        for j in range(count + 1):
            rules += _block(f"{prefix}output_blocks.{step}", f"up.{i}.blocks.{j}", looks, config)
            step += 1
        if i < on:  # in the step of the last block, behind what is there
            theirs = f"{prefix}output_blocks.{step - 1}.{1 + looks}"
            rules += _inside(theirs, f"up.{i}.resample", LDM_RESNET)
    return tuple(rules)


def _block(theirs: str, ours: str, looks: bool, config: PixelUNetConfig) -> KeyMap:
    resnet = _inside(f"{theirs}.0", f"{ours}.resnet", LDM_RESNET)
    if not looks:
        return resnet
    theirs, ours = f"{theirs}.1", f"{ours}.attention"
    picture = ("q", "k", "v") if config.picture else ("q",)
    fused = []
    for name, parts in (("qkv", picture), ("encoder_kv", ("text_k", "text_v"))):
        for kind in ("weight", "bias"):
            change = _by_head(len(parts), config.head_channels, kind)
            inner = tuple(f"{ours}.{part}.{kind}" for part in parts)
            fused.append(Rule(f"{theirs}.{name}.{kind}", inner, change))
    return (
        *resnet,
        *fused,
        *_inside(theirs, ours, (("norm", "norm"), ("norm_encoder", "text_norm"))),
        Rule(f"{theirs}.proj_out.weight", f"{ours}.out.weight", _by_head(1, 1, "weight")),
        Rule(f"{theirs}.proj_out.bias", f"{ours}.out.bias"),
    )


def _inside(theirs: str, ours: str, pairs: Pairs) -> KeyMap:
    return layers(*((f"{theirs}.{their}", f"{ours}.{our}") for their, our in pairs))


def _by_head(parts: int, width: int, kind: str) -> Change:
    """Theirs head after head, ours part after part; their weights are 1x1 convolutions along a line."""
    theirs, ours = "(h p d)", "(p h d)"
    if kind == "weight":
        theirs, ours = "(h p d) i 1", "(p h d) i"
    return Change(
        partial(_turned, pattern=f"{theirs} -> {ours}", p=parts, d=width),
        partial(_turned, pattern=f"{ours} -> {theirs}", p=parts, d=width),
    )


def _turned(tensor: Tensor, *, pattern: str, p: int, d: int) -> Tensor:
    return rearrange(tensor, pattern, p=p, d=d)
