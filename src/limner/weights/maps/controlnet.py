"""Names of a ControlNet's tensors: in diffusers folders, and in the original files."""

from limner.models.controlnet import ControlNetConfig
from limner.weights.keymap import KeyMap
from limner.weights.maps.unet import diffusers_encoder, layers, ldm_encoder


def diffusers_controlnet(config: ControlNetConfig) -> KeyMap:
    """diffusion_pytorch_model.safetensors of a control network <-> ControlNet."""
    return (
        *diffusers_encoder(config.unet),
        *layers(
            ("controlnet_cond_embedding.conv_in", "condition.first"),
            ("controlnet_cond_embedding.blocks.{i}", "condition.inner.{i}"),
            ("controlnet_cond_embedding.conv_out", "condition.last"),
            ("controlnet_down_blocks.{i}", "down_out.{i}"),
            ("controlnet_mid_block", "middle_out"),
        ),
    )


def ldm_controlnet(config: ControlNetConfig, prefix: str = "control_model.") -> KeyMap:
    """A control network's part of an original file <-> ControlNet. Some files come without the prefix.

    Its embedding is one sequence in which every second layer is an activation without tensors.
    """
    hint = prefix + "input_hint_block"
    inner = 2 * (len(config.channels) - 1)
    return (
        *ldm_encoder(config.unet, prefix),
        *layers(
            (f"{hint}.0", "condition.first"),
            *((f"{hint}.{2 * i + 2}", f"condition.inner.{i}") for i in range(inner)),
            (f"{hint}.{2 * inner + 2}", "condition.last"),
            (prefix + "zero_convs.{i}.0", "down_out.{i}"),
            (prefix + "middle_block_out.0", "middle_out"),
        ),
    )
