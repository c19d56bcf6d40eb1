"""Names of the U-Net's tensors: in diffusers folders, and in the original files of LDM and SGM.

Inside a transformer both say the same. Around it, diffusers counts levels and the blocks in them, as we do;
the original code counts every step of the way (input_blocks.0, 1, ...), so its rules are written out for a
configuration.
"""

from limner.models.unet import UNetConfig
from limner.weights.keymap import POINTWISE_TO_LINEAR, KeyMap, Rule

Pairs = tuple[tuple[str, str], ...]  # (their layer, our layer)

DIFFUSERS_RESNET: Pairs = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("time_emb_proj", "time"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("conv_shortcut", "skip"),
)
LDM_RESNET: Pairs = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "skip"),
)
TRANSFORMER_BLOCK: Pairs = (
    ("norm1", "norm1"),
    ("attn1.to_q", "picture.q"),
    ("attn1.to_k", "picture.k"),
    ("attn1.to_v", "picture.v"),
    ("attn1.to_out.0", "picture.out"),
    ("norm2", "norm2"),
    ("attn2.to_q", "text.q"),
    ("attn2.to_k", "text.k"),
    ("attn2.to_v", "text.v"),
    ("attn2.to_out.0", "text.out"),
    ("norm3", "norm3"),
    ("ff.net.0.proj", "mlp.inner"),
    ("ff.net.2", "mlp.out"),
)


def diffusers_unet(config: UNetConfig) -> KeyMap:
    """unet/diffusion_pytorch_model.safetensors <-> UNet."""
    return (
        *diffusers_encoder(config),
        *_resnet("up_blocks.{i}.resnets.{j}", "up.{i}.blocks.{j}.resnet", DIFFUSERS_RESNET),
        *_transformer("up_blocks.{i}.attentions.{j}", "up.{i}.blocks.{j}.transformer", config),
        *layers(
            ("up_blocks.{i}.upsamplers.0.conv", "up.{i}.resample.conv"),
            ("conv_norm_out", "norm"),
            ("conv_out", "last"),
            ("time_embedding.cond_proj", "guidance"),
        ),
    )


def diffusers_encoder(config: UNetConfig) -> KeyMap:
    """The part that a U-Net and a control network have in common."""
    added = "add_embedding" if config.sizes else "class_embedding"
    return (
        *layers(
            ("conv_in", "first"),
            ("time_embedding.linear_1", "time.0"),
            ("time_embedding.linear_2", "time.2"),
            *(
                ((f"{added}.linear_1", "added.0"), (f"{added}.linear_2", "added.2"))
                if not config.levels
                else (("class_embedding", "level"),)
            ),
            ("down_blocks.{i}.downsamplers.0.conv", "down.{i}.resample.conv"),
        ),
        *_resnet("down_blocks.{i}.resnets.{j}", "down.{i}.blocks.{j}.resnet", DIFFUSERS_RESNET),
        *_transformer("down_blocks.{i}.attentions.{j}", "down.{i}.blocks.{j}.transformer", config),
        *_resnet("mid_block.resnets.{j}", "middle.{j}.resnet", DIFFUSERS_RESNET),
        *_transformer("mid_block.attentions.0", "middle.0.transformer", config),
    )


def ldm_unet(config: UNetConfig, prefix: str = "model.diffusion_model.") -> KeyMap:
    """The U-Net's part of a single file in the original naming <-> UNet."""
    rules = [
        *layers((prefix + "time_embed.cond_proj", "guidance")),  # as converters call it
        *ldm_encoder(config, prefix),
        *layers((prefix + "out.0", "norm"), (prefix + "out.2", "last")),
    ]
    step, levels = 0, len(config.channels)
    for i, depth in enumerate(reversed(config.depths)):
        for j in range(config.layers + 1):
            rules += _ldm_block(f"{prefix}output_blocks.{step}", f"up.{i}.blocks.{j}", depth, config)
            step += 1
        if i + 1 < levels:  # in the step of the last block, behind what is there
            theirs = f"{prefix}output_blocks.{step - 1}.{2 if depth else 1}.conv"
            rules += layers((theirs, f"up.{i}.resample.conv"))
    return tuple(rules)


def ldm_encoder(config: UNetConfig, prefix: str) -> KeyMap:
    """The part that a U-Net and a control network have in common."""
    rules = layers(
        (prefix + "input_blocks.0.0", "first"),
        (prefix + "time_embed.{i}", "time.{i}"),
        (prefix + "label_emb", "level") if config.levels else (prefix + "label_emb.0.{i}", "added.{i}"),
    )
    step, levels = 1, len(config.channels)
    for i, depth in enumerate(config.depths):
        for j in range(config.layers):
            rules += _ldm_block(f"{prefix}input_blocks.{step}", f"down.{i}.blocks.{j}", depth, config)
            step += 1
        if i + 1 < levels:  # a step of its own
            rules += layers((f"{prefix}input_blocks.{step}.0.op", f"down.{i}.resample.conv"))
            step += 1
    middle = prefix + "middle_block"
    return (
        *rules,
        *_resnet(f"{middle}.0", "middle.0.resnet", LDM_RESNET),
        *_transformer(f"{middle}.1", "middle.0.transformer", config),
        *_resnet(f"{middle}.2", "middle.1.resnet", LDM_RESNET),
    )


def layers(*pairs: tuple[str, str]) -> KeyMap:
    """Weight and bias of layers that have another name and nothing else."""
    return tuple(Rule(f"{theirs}.{{rest}}", f"{ours}.{{rest}}") for theirs, ours in pairs)


def _ldm_block(theirs: str, ours: str, depth: int, config: UNetConfig) -> KeyMap:
    transformer = _transformer(f"{theirs}.1", f"{ours}.transformer", config) if depth else ()
    return (*_resnet(f"{theirs}.0", f"{ours}.resnet", LDM_RESNET), *transformer)


def _resnet(theirs: str, ours: str, pairs: Pairs) -> KeyMap:
    return layers(*((f"{theirs}.{their}", f"{ours}.{our}") for their, our in pairs))


def _transformer(theirs: str, ours: str, config: UNetConfig) -> KeyMap:
    change = POINTWISE_TO_LINEAR if config.pointwise else None
    return (
        Rule(f"{theirs}.proj_in.weight", f"{ours}.enter.weight", change),
        Rule(f"{theirs}.proj_out.weight", f"{ours}.leave.weight", change),
        *layers(
            (f"{theirs}.norm", f"{ours}.norm"),
            (f"{theirs}.proj_in", f"{ours}.enter"),
            (f"{theirs}.proj_out", f"{ours}.leave"),
            *(
                (f"{theirs}.transformer_blocks.{{k}}.{their}", f"{ours}.blocks.{{k}}.{our}")
                for their, our in TRANSFORMER_BLOCK
            ),
        ),
    )
