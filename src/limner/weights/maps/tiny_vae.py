"""Names of TAESD's tensors: in diffusers folders, and in its own two files, one a direction.

All count the layers of a sequence, activations included; the original decoder begins with one more.
"""

from limner.models.tiny_vae import TinyVAEConfig
from limner.weights.keymap import KeyMap, Rule


def diffusers_tiny_vae() -> KeyMap:
    """diffusion_pytorch_model.safetensors of an AutoencoderTiny <-> TinyVAE."""
    return tuple(
        Rule(f"{side}.layers.{{i}}.{{rest*}}", f"{side}.{{i}}.{{rest*}}") for side in ("encoder", "decoder")
    )


def taesd_encoder() -> KeyMap:
    """taesd_encoder.safetensors and its kin <-> TinyVAE.encoder."""
    return (Rule("{i}.{rest*}", "{i}.{rest*}"),)


def taesd_decoder(config: TinyVAEConfig) -> KeyMap:
    """taesd_decoder.safetensors and its kin <-> TinyVAE.decoder."""
    count = 2 + sum(config.blocks) + 2 * (len(config.blocks) - 1) + 1
    return tuple(Rule(f"{i + 1}.{{rest*}}", f"{i}.{{rest*}}") for i in range(count))
