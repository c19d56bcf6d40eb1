"""Names of the MMDiT's tensors: in diffusers folders, and in the original files of SD3 and SD3.5.

The original code fuses queries, keys and values, and has the shift before the scale everywhere; diffusers has
the scale first where nothing but shift and scale is needed: at the end, and for the text of the last block.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from limner.models.mmdit import SD3_MEDIUM, SD35_LARGE, MMDiTConfig
from limner.models.mmdit_control import MMDiTControlConfig
from limner.weights.keymap import Change, KeyMap, Rule
from limner.weights.maps.unet import Pairs, layers

PREFIX = "model.diffusion_model."
CLIP_L_PREFIX = "text_encoders.clip_l.transformer."
CLIP_G_PREFIX = "text_encoders.clip_g.transformer."


def _swapped(weight: Tensor) -> Tensor:
    first, second = weight.chunk(2)
    return torch.cat([second, first])


HALVES_SWAPPED = Change(_swapped, _swapped, rows=True)  # their scale and shift are our shift and scale

DIFFUSERS_ATTENTION: Pairs = (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out"))
DIFFUSERS_TEXT: Pairs = (
    ("add_q_proj", "q"),
    ("add_k_proj", "k"),
    ("add_v_proj", "v"),
    ("to_add_out", "out"),
)


def diffusers_mmdit(config: MMDiTConfig) -> KeyMap:
    """transformer/diffusion_pytorch_model.safetensors <-> MMDiT."""
    last = f"transformer_blocks.{config.depth - 1}.norm1_context.linear"
    ours = f"blocks.{config.depth - 1}.text.modulation.linear"
    return (
        *(Rule(f"{last}.{end}", f"{ours}.{end}", HALVES_SWAPPED) for end in ("weight", "bias")),
        *(
            Rule(f"norm_out.linear.{end}", f"modulation.linear.{end}", HALVES_SWAPPED)
            for end in ("weight", "bias")
        ),
        Rule("pos_embed.pos_embed", "patches.position"),
        *layers(("pos_embed.proj", "patches.linear"), ("proj_out", "last")),
        *_diffusers_common(),
    )


def original_mmdit(config: MMDiTConfig, prefix: str = PREFIX) -> KeyMap:
    """The transformer's part of a single file in the original naming <-> MMDiT."""
    block = f"{prefix}joint_blocks.{{i}}"
    rules: list[Rule] = []
    for theirs, ours in (("x_block", "picture"), ("context_block", "text")):
        rules += _original_stream(f"{block}.{theirs}", f"blocks.{{i}}.{ours}")
    return (
        Rule(f"{prefix}pos_embed", "patches.position"),
        *rules,
        *layers(
            (f"{prefix}x_embedder.proj", "patches.linear"),
            (f"{prefix}t_embedder.mlp.{{i}}", "vector.time.{i}"),
            (f"{prefix}y_embedder.mlp.{{i}}", "vector.pooled.{i}"),
            (f"{prefix}context_embedder", "context"),
            (f"{prefix}final_layer.adaLN_modulation.1", "modulation.linear"),
            (f"{prefix}final_layer.linear", "last"),
        ),
    )


def diffusers_mmdit_control(config: MMDiTControlConfig) -> KeyMap:
    """diffusion_pytorch_model.safetensors of a control network <-> MMDiTControl."""
    single = _diffusers_attention("transformer_blocks.{i}.attn", "blocks.{i}.attention", DIFFUSERS_ATTENTION)
    alone = (
        *single,
        *layers(
            ("transformer_blocks.{i}.norm1.linear", "blocks.{i}.modulation.linear"),
            ("transformer_blocks.{i}.ff.net.0.proj", "blocks.{i}.inner"),
            ("transformer_blocks.{i}.ff.net.2", "blocks.{i}.outer"),
        ),
    )
    return (
        *layers(
            ("controlnet_blocks.{i}", "outs.{i}"),
            ("pos_embed_input.proj", "condition.linear"),
            ("pos_embed.proj", "patches.linear"),
        ),
        Rule("pos_embed.pos_embed", "patches.position"),
        *(() if config.joint else alone),
        *_diffusers_common(),
    )


def control_shape(tensors: Mapping[str, Tensor]) -> MMDiTControlConfig | None:
    """What control network these could be, under diffusers' names: they have as many blocks as their makers
    liked. None: it is none."""
    blocks = {name.split(".")[1] for name in tensors if name.startswith("controlnet_blocks.")}
    first, table = tensors.get("pos_embed_input.proj.weight"), tensors.get("pos_embed.pos_embed")
    if first is None or not blocks:
        return None
    joint = table is not None
    network = replace(
        SD3_MEDIUM,
        depth=len(blocks),
        heads=first.shape[0] // SD3_MEDIUM.head_width,
        positions=math.isqrt(table.shape[1]) if table is not None else SD35_LARGE.positions,
        normed=any(".norm_q." in name for name in tensors),
        dual=sum(name.endswith(".attn2.to_q.weight") for name in tensors),
    )
    return MMDiTControlConfig(network=network, joint=joint, zeros=joint)


def _diffusers_common() -> KeyMap:
    """What the network and its control networks have in common."""
    block, picture, text = "transformer_blocks.{i}", "blocks.{i}.picture", "blocks.{i}.text"
    return (
        *_diffusers_attention(f"{block}.attn", f"{picture}.attention", DIFFUSERS_ATTENTION),
        *_diffusers_attention(f"{block}.attn2", f"{picture}.own", DIFFUSERS_ATTENTION),
        *_diffusers_attention(f"{block}.attn", f"{text}.attention", DIFFUSERS_TEXT, "norm_added"),
        *layers(
            (f"{block}.norm1.linear", f"{picture}.modulation.linear"),
            (f"{block}.norm1_context.linear", f"{text}.modulation.linear"),
            (f"{block}.ff.net.0.proj", f"{picture}.inner"),
            (f"{block}.ff.net.2", f"{picture}.outer"),
            (f"{block}.ff_context.net.0.proj", f"{text}.inner"),
            (f"{block}.ff_context.net.2", f"{text}.outer"),
            ("time_text_embed.timestep_embedder.linear_1", "vector.time.0"),
            ("time_text_embed.timestep_embedder.linear_2", "vector.time.2"),
            ("time_text_embed.text_embedder.linear_1", "vector.pooled.0"),
            ("time_text_embed.text_embedder.linear_2", "vector.pooled.2"),
            ("context_embedder", "context"),
        ),
    )


def _diffusers_attention(theirs: str, ours: str, pairs: Pairs, norm: str = "norm") -> KeyMap:
    return (
        *layers(*((f"{theirs}.{a}", f"{ours}.{b}") for a, b in pairs)),
        *(Rule(f"{theirs}.{norm}_{end}.weight", f"{ours}.{end}_scale") for end in ("q", "k")),
    )


def _original_stream(theirs: str, ours: str) -> KeyMap:
    rules: list[Rule] = []
    for a, b in ((f"{theirs}.attn", f"{ours}.attention"), (f"{theirs}.attn2", f"{ours}.own")):
        rules += [
            Rule(f"{a}.qkv.{end}", tuple(f"{b}.{part}.{end}" for part in "qkv")) for end in ("weight", "bias")
        ]
        rules += [Rule(f"{a}.ln_{end}.weight", f"{b}.{end}_scale") for end in ("q", "k")]
        rules += layers((f"{a}.proj", f"{b}.out"))
    return (
        *rules,
        *layers(
            (f"{theirs}.adaLN_modulation.1", f"{ours}.modulation.linear"),
            (f"{theirs}.mlp.fc1", f"{ours}.inner"),
            (f"{theirs}.mlp.fc2", f"{ours}.outer"),
        ),
    )
