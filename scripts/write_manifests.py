"""Writes tests/manifests/: names and shapes of published networks. No weights are needed for that.

    python scripts/write_manifests.py [NAME ...]      (no names: all)

`diffusers` (or `transformers`) are the names in a folder: the reference library's class, built on the meta
device with the values of the published config.json. `original` are those of a single file, written down from
the constructors of the original code and the values of its published .yaml. Neither comes from Limner's maps,
so that the tests of those maps compare two things.
"""

import gzip
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

FOLDER = Path(__file__).parents[1] / "tests" / "manifests"
Shapes = dict[str, list[int]]
Named = Iterator[tuple[str, list[int]]]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one file of tests/manifests says."""

    source: str  # where the values come from that name the shapes
    namings: dict[str, Shapes]  # naming -> tensor -> shape

    def text(self) -> str:
        """JSON, with the number of parameters for those who look."""
        count = sum(torch.Size(shape).numel() for shape in next(iter(self.namings.values())).values())
        return json.dumps({"source": self.source, "parameters": count, **self.namings}, indent=0)


def built(network: Callable[..., torch.nn.Module], **config: Any) -> Shapes:
    """Names and shapes of a reference network of that configuration."""
    with torch.device("meta"):
        return {name: list(tensor.shape) for name, tensor in network(**config).state_dict().items()}


# U-Nets and control networks


@dataclass(frozen=True, kw_only=True)
class Original:
    """The values of an original U-Net's .yaml that decide its shapes."""

    in_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    transformer_depth: tuple[int, ...] = (1, 1, 1, 0)  # 0 where attention_resolutions leaves a level out
    middle_depth: int = 1
    context_dim: int = 768
    use_linear: bool = True
    adm_in_channels: int = 0
    num_classes: int = 0  # numbers, each with a vector of its own
    disable_self_attentions: tuple[bool, ...] = (False,) * 4

    @property
    def widths(self) -> list[int]:
        return [self.model_channels * multiple for multiple in self.channel_mult]


def convolution(name: str, inputs: int, outputs: int, side: int = 3) -> Named:
    yield f"{name}.weight", [outputs, inputs, side, side]
    yield f"{name}.bias", [outputs]


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Named:
    yield f"{name}.weight", [outputs, inputs]
    if bias:
        yield f"{name}.bias", [outputs]


def norm(name: str, width: int) -> Named:
    yield f"{name}.weight", [width]
    yield f"{name}.bias", [width]


def residual(name: str, inputs: int, outputs: int, time: int) -> Named:
    yield from norm(f"{name}.in_layers.0", inputs)
    yield from convolution(f"{name}.in_layers.2", inputs, outputs)
    yield from linear(f"{name}.emb_layers.1", time, outputs)
    yield from norm(f"{name}.out_layers.0", outputs)
    yield from convolution(f"{name}.out_layers.3", outputs, outputs)
    if inputs != outputs:
        yield from convolution(f"{name}.skip_connection", inputs, outputs, 1)


def spatial_transformer(
    name: str, width: int, depth: int, config: Original, level: int | None = None
) -> Named:
    yield from norm(f"{name}.norm", width)
    for end in ("proj_in", "proj_out"):
        if config.use_linear:
            yield from linear(f"{name}.{end}", width, width)
        else:
            yield from convolution(f"{name}.{end}", width, width, 1)
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        blind = level is not None and config.disable_self_attentions[level]
        first = config.context_dim if blind else width
        for which, source in (("attn1", first), ("attn2", config.context_dim)):
            yield from linear(f"{block}.{which}.to_q", width, width, bias=False)
            yield from linear(f"{block}.{which}.to_k", source, width, bias=False)
            yield from linear(f"{block}.{which}.to_v", source, width, bias=False)
            yield from linear(f"{block}.{which}.to_out.0", width, width)
        yield from linear(f"{block}.ff.net.0.proj", width, 8 * width)
        yield from linear(f"{block}.ff.net.2", 4 * width, width)
        for which in ("norm1", "norm2", "norm3"):
            yield from norm(f"{block}.{which}", width)


def block(name: str, inputs: int, width: int, depth: int, config: Original, level: int) -> Named:
    yield from residual(f"{name}.0", inputs, width, 4 * config.model_channels)
    if depth:
        yield from spatial_transformer(f"{name}.1", width, depth, config, level)


def way_down(prefix: str, config: Original, kept: list[int]) -> Named:
    """Everything up to the middle; `kept` is filled with the width of every step."""
    time, width = 4 * config.model_channels, config.model_channels
    yield from linear(f"{prefix}time_embed.0", width, time)
    yield from linear(f"{prefix}time_embed.2", time, time)
    if config.adm_in_channels:
        yield from linear(f"{prefix}label_emb.0.0", config.adm_in_channels, time)
        yield from linear(f"{prefix}label_emb.0.2", time, time)
    if config.num_classes:
        yield f"{prefix}label_emb.weight", [config.num_classes, time]
    yield from convolution(f"{prefix}input_blocks.0.0", config.in_channels, width)
    kept.append(width)
    for level, (wide, depth) in enumerate(zip(config.widths, config.transformer_depth, strict=True)):
        if level:
            yield from convolution(f"{prefix}input_blocks.{len(kept)}.0.op", width, width)
            kept.append(width)
        for _ in range(2):
            yield from block(f"{prefix}input_blocks.{len(kept)}", width, wide, depth, config, level)
            kept.append(width := wide)
    yield from residual(f"{prefix}middle_block.0", width, width, time)
    yield from spatial_transformer(f"{prefix}middle_block.1", width, config.middle_depth, config)
    yield from residual(f"{prefix}middle_block.2", width, width, time)


def original_unet(config: Original) -> Named:
    prefix, kept = "model.diffusion_model.", list[int]()
    yield from way_down(prefix, config, kept)
    steps, width = len(kept), config.widths[-1]
    for level in reversed(range(len(config.widths))):
        wide, depth = config.widths[level], config.transformer_depth[level]
        for index in range(3):
            name = f"{prefix}output_blocks.{steps - len(kept)}"
            yield from block(name, width + kept.pop(), wide, depth, config, level)
            width = wide
            if level and index == 2:
                yield from convolution(f"{name}.{2 if depth else 1}.conv", width, width)
    yield from norm(f"{prefix}out.0", width)
    yield from convolution(f"{prefix}out.2", width, 4)


def original_controlnet(config: Original) -> Named:
    prefix, kept = "control_model.", list[int]()
    yield from way_down(prefix, config, kept)
    hint = [3, 16, 16, 32, 32, 96, 96, 256, config.model_channels]
    for index, (inputs, outputs) in enumerate(pairwise(hint)):
        yield from convolution(f"{prefix}input_hint_block.{2 * index}", inputs, outputs)
    for index, width in enumerate(kept):
        yield from convolution(f"{prefix}zero_convs.{index}.0", width, width, 1)
    yield from convolution(f"{prefix}middle_block_out.0", kept[-1], kept[-1], 1)


V1 = Original(use_linear=False)
V2 = Original(context_dim=1024)
XL = Original(
    channel_mult=(1, 2, 4),
    transformer_depth=(0, 2, 10),
    middle_depth=10,
    context_dim=2048,
    adm_in_channels=2816,
)
REFINER = Original(
    model_channels=384, transformer_depth=(0, 4, 4, 0), middle_depth=4, context_dim=1280, adm_in_channels=2560
)
THREE_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
THREE_UP = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
V2_CONFIG = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
XL_CONFIG = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": THREE_DOWN,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER_CONFIG = {
    **XL_CONFIG,
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": (*THREE_DOWN, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *THREE_UP),
    "transformer_layers_per_block": 4,
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}


def unet(source: str, original: Original, **config: Any) -> Manifest:
    theirs = built(diffusers.UNet2DConditionModel, **config)
    return Manifest(source=source, namings={"diffusers": theirs, "original": dict(original_unet(original))})


def controlnet(source: str, original: Original, **config: Any) -> Manifest:
    theirs = built(diffusers.ControlNetModel, **config)
    return Manifest(
        source=source, namings={"diffusers": theirs, "original": dict(original_controlnet(original))}
    )


# The U-Nets of pixels


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The values of IF's and Karlo's .yaml that decide shapes."""

    in_channels: int = 3
    out_channels: int = 6
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_res_blocks: tuple[int, ...] = (3, 3, 3, 3)
    attention: tuple[bool, ...] = (False, True, True, True)
    encoder_channels: int = 0  # 0: there is no attention
    encoder_dim: int = 0  # 0: texts come as wide as encoder_channels, and are not pooled
    norm_encoder: bool = True
    disable_self_attentions: bool = False
    scale_shift: bool = True
    aug: bool = False


def attention_block(name: str, width: int, config: Pixels) -> Named:
    parts = 1 if config.disable_self_attentions else 3
    yield from norm(f"{name}.norm", width)
    yield f"{name}.qkv.weight", [parts * width, width, 1]
    yield f"{name}.qkv.bias", [parts * width]
    yield f"{name}.encoder_kv.weight", [2 * width, config.encoder_channels, 1]
    yield f"{name}.encoder_kv.bias", [2 * width]
    if config.norm_encoder:
        yield from norm(f"{name}.norm_encoder", config.encoder_channels)
    yield f"{name}.proj_out.weight", [width, width, 1]
    yield f"{name}.proj_out.bias", [width]


def original_pixels(config: Pixels, prefix: str = "") -> Named:
    """UNetModel of deepfloyd_if, and of Karlo, with resblock_updown."""
    first, widths = config.model_channels, [config.model_channels * m for m in config.channel_mult]
    time = widths[-1]

    def residual_of(name: str, inputs: int, outputs: int) -> Named:
        for key, shape in residual(name, inputs, outputs, time):
            wide = config.scale_shift and ".emb_layers." in key
            yield key, [2 * shape[0], *shape[1:]] if wide else shape

    yield from linear(f"{prefix}time_embed.0", first, time)
    yield from linear(f"{prefix}time_embed.2", time, time)
    if config.aug:
        yield from linear(f"{prefix}aug_proj.0", first, time)
        yield from linear(f"{prefix}aug_proj.2", time, time)
    if config.encoder_dim:
        yield from norm(f"{prefix}encoder_pooling.0", config.encoder_dim)
        yield f"{prefix}encoder_pooling.1.positional_embedding", [1, config.encoder_dim]
        for part in ("k_proj", "q_proj", "v_proj"):
            yield from linear(f"{prefix}encoder_pooling.1.{part}", config.encoder_dim, config.encoder_dim)
        yield from linear(f"{prefix}encoder_pooling.2", config.encoder_dim, time)
        yield from norm(f"{prefix}encoder_pooling.3", time)
        yield from linear(f"{prefix}encoder_proj", config.encoder_dim, config.encoder_channels)
    yield from convolution(f"{prefix}input_blocks.0.0", config.in_channels, first)
    kept, width = [first], first
    for level, wide in enumerate(widths):
        for _ in range(config.num_res_blocks[level]):
            name = f"{prefix}input_blocks.{len(kept)}"
            yield from residual_of(f"{name}.0", width, wide)
            if config.attention[level]:
                yield from attention_block(f"{name}.1", wide, config)
            kept.append(width := wide)
        if level + 1 < len(widths):
            yield from residual_of(f"{prefix}input_blocks.{len(kept)}.0", width, width)
            kept.append(width)
    yield from residual_of(f"{prefix}middle_block.0", width, width)
    if config.encoder_channels:
        yield from attention_block(f"{prefix}middle_block.1", width, config)
    yield from residual_of(f"{prefix}middle_block.{2 if config.encoder_channels else 1}", width, width)
    steps = len(kept)
    for level in reversed(range(len(widths))):
        for index in range(config.num_res_blocks[level] + 1):
            name = f"{prefix}output_blocks.{steps - len(kept)}"
            yield from residual_of(f"{name}.0", width + kept.pop(), width := widths[level])
            if config.attention[level]:
                yield from attention_block(f"{name}.1", width, config)
            if level and index == config.num_res_blocks[level]:
                yield from residual_of(f"{name}.{2 if config.attention[level] else 1}", width, width)
    yield from norm(f"{prefix}out.0", width)
    yield from convolution(f"{prefix}out.2", width, config.out_channels)


def pixels(source: str, original: Pixels, prefix: str = "", **config: Any) -> Manifest:
    down = {True: "SimpleCrossAttnDownBlock2D", False: "ResnetDownsampleBlock2D"}
    up = {True: "SimpleCrossAttnUpBlock2D", False: "ResnetUpsampleBlock2D"}
    looks, same = original.attention, len(set(original.num_res_blocks)) == 1
    config |= {
        "block_out_channels": [original.model_channels * multiple for multiple in original.channel_mult],
        "layers_per_block": original.num_res_blocks[0] if same else original.num_res_blocks,
        "down_block_types": [down[here] for here in looks],
        "up_block_types": [up[here] for here in reversed(looks)],
        "in_channels": original.in_channels,
        "out_channels": original.out_channels,
        "resnet_time_scale_shift": "scale_shift" if original.scale_shift else "default",
    }
    network: Any = diffusers.UNet2DModel
    if original.encoder_channels:
        network = diffusers.UNet2DConditionModel
        config |= {
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "cross_attention_dim": original.encoder_channels,
            "attention_head_dim": 64,
        }
    theirs = built(network, **config)
    return Manifest(
        source=source, namings={"diffusers": theirs, "original": dict(original_pixels(original, prefix))}
    )


def deepfloyd(source: str, original: Pixels, **config: Any) -> Manifest:
    return pixels(
        source,
        original,
        encoder_hid_dim=4096,
        addition_embed_type="text",
        cross_attention_norm="group_norm",
        act_fn="gelu",
        **config,
    )


# Text encoders and autoencoders


def original_text(prefix: str, width: int, depth: int) -> Named:
    """OpenCLIP's text tower, as SD 2 and SGM keep it: their single files hold all of it, used or not."""
    yield f"{prefix}positional_embedding", [77, width]
    yield f"{prefix}text_projection", [width, width]
    yield f"{prefix}logit_scale", []
    yield f"{prefix}token_embedding.weight", [49_408, width]
    for index in range(depth):
        name = f"{prefix}transformer.resblocks.{index}"
        yield from norm(f"{name}.ln_1", width)
        yield f"{name}.attn.in_proj_weight", [3 * width, width]
        yield f"{name}.attn.in_proj_bias", [3 * width]
        yield from linear(f"{name}.attn.out_proj", width, width)
        yield from norm(f"{name}.ln_2", width)
        yield from linear(f"{name}.mlp.c_fc", width, 4 * width)
        yield from linear(f"{name}.mlp.c_proj", 4 * width, width)
    yield from norm(f"{prefix}ln_final", width)


def original_vae(latents: int, quantised: bool, prefix: str = "first_stage_model.", levels: int = 4) -> Named:
    """ldm.modules.diffusionmodules.model.Encoder and Decoder with ch 128, ch_mult 1 2 4 4, two blocks."""
    widths = [128, 256, 512, 512][:levels]
    for side in ("encoder", "decoder"):
        encodes = side == "encoder"
        name, width = prefix + side, widths[0] if encodes else widths[-1]
        yield from convolution(f"{name}.conv_in", 3 if encodes else latents, width)
        for level, wide in list(enumerate(widths))[:: 1 if encodes else -1]:
            at = f"{name}.{'down' if encodes else 'up'}.{level}"
            for index in range(2 if encodes else 3):
                yield from plain_residual(f"{at}.block.{index}", width, wide)
                width = wide
            if encodes and level + 1 < levels:
                yield from convolution(f"{at}.downsample.conv", width, width)
            if not encodes and level:
                yield from convolution(f"{at}.upsample.conv", width, width)
        yield from plain_residual(f"{name}.mid.block_1", 512, 512)
        yield from norm(f"{name}.mid.attn_1.norm", 512)
        for part in ("q", "k", "v", "proj_out"):
            yield from convolution(f"{name}.mid.attn_1.{part}", 512, 512, 1)
        yield from plain_residual(f"{name}.mid.block_2", 512, 512)
        yield from norm(f"{name}.norm_out", width)
        yield from convolution(f"{name}.conv_out", width, 2 * latents if encodes else 3)
    if quantised:
        yield from convolution(f"{prefix}quant_conv", 2 * latents, 2 * latents, 1)
        yield from convolution(f"{prefix}post_quant_conv", latents, latents, 1)


def plain_residual(name: str, inputs: int, outputs: int) -> Named:
    yield from norm(f"{name}.norm1", inputs)
    yield from convolution(f"{name}.conv1", inputs, outputs)
    yield from norm(f"{name}.norm2", outputs)
    yield from convolution(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from convolution(f"{name}.nin_shortcut", inputs, outputs, 1)


def text(source: str, width: int, depth: int, original: Shapes, projected: bool = False) -> Manifest:
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        projection_dim=width,
    )
    network = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    named = built(network, config=config)
    published = {name if name.startswith("text_") else f"text_model.{name}": named[name] for name in named}
    return Manifest(source=source, namings={"transformers": published, "original": original})


def vae(source: str, latents: int, quantised: bool, levels: int = 4) -> Manifest:
    theirs = built(
        diffusers.AutoencoderKL,
        block_out_channels=(128, 256, 512, 512)[:levels],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=latents,
        use_quant_conv=quantised,
        use_post_quant_conv=quantised,
    )
    original = dict(original_vae(latents, quantised, levels=levels))
    return Manifest(source=source, namings={"diffusers": theirs, "original": original})


def picture(source: str, width: int, depth: int, heads: int, projection: int) -> Manifest:
    """A picture tower with patches of 14, as transformers names it."""
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        projection_dim=projection,
        patch_size=14,
    )
    theirs = built(transformers.CLIPVisionModelWithProjection, config=config)
    return Manifest(source=source, namings={"transformers": theirs})


def projections() -> Manifest:
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    theirs = built(UnCLIPTextProjModel, time_embed_dim=1280, cross_attention_dim=1536)
    return Manifest(
        source="text_proj/config.json of karlo-v1-alpha and karlo-v1-alpha-image-variations",
        namings={"diffusers": theirs},
    )


def first_text(prefix: str) -> Shapes:
    """OpenAI's text tower in a single file: as transformers named it when these files were made."""
    config = transformers.CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    named = {
        f"{prefix}text_model.{name}": shape
        for name, shape in built(transformers.CLIPTextModel, config=config).items()
    }
    return named | {f"{prefix}text_model.embeddings.position_ids": [1, 77]}


# LoRA files

KOHYA = {
    "text": ("CLIPAttention", "CLIPMLP"),
    "unet": ("Transformer2DModel",),
    "convolutions": ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"),
}


def layers_inside(network: Callable[..., torch.nn.Module], kinds: tuple[str, ...], **config: Any) -> Shapes:
    """Weights of the linear layers and convolutions inside modules of these classes, by the layer's name."""
    with torch.device("meta"):
        built_network = network(**config)
    found: Shapes = {}
    for name, module in built_network.named_modules():
        if type(module).__name__ in kinds:
            for inner, layer in module.named_modules():
                if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                    found[f"{name}.{inner}"] = list(layer.weight.shape)
    return found


def text_layers(width: int, depth: int, projected: bool = False) -> Shapes:
    """Those of a CLIP text encoder, in the names of transformers 4 that LoRA files have."""
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        projection_dim=width,
    )
    network = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    found = layers_inside(network, KOHYA["text"], config=config)
    return {name if name.startswith("text_") else f"text_model.{name}": found[name] for name in found}


def original_layers(config: Original) -> Shapes:
    """Layers of an original U-Net that kohya's scripts update with conv_dim: in residual blocks, transformers
    and changes of size, not the first, the last and the embeddings."""
    return {
        name.removeprefix("model.diffusion_model.").removesuffix(".weight"): shape
        for name, shape in original_unet(config)
        if len(shape) > 1 and "_block" in name and "input_blocks.0.0." not in name
    }


def kohya(parts: dict[str, Shapes], rank: int, narrow: int = 0) -> Shapes:
    """Down, up and alpha of layers; `narrow` is the rank of 3x3 convolutions, 0: they are left out."""
    named: Shapes = {}
    for prefix, layers in parts.items():
        for layer, shape in layers.items():
            if size := narrow if shape[2:] == [3, 3] else rank:
                name = f"{prefix}_{layer.replace('.', '_')}"
                named |= {f"{name}.{half}.weight": s for half, s in halves(shape, size, "lora_").items()}
                named[f"{name}.alpha"] = []
    return named


def halves(shape: list[int], rank: int, prefix: str) -> Shapes:
    return {
        f"{prefix}down": [rank, *shape[1:]],
        f"{prefix}up": [shape[0], rank, *(1 for _ in shape[2:])],
    }


def diffusers_lora(parts: dict[str, Shapes], rank: int) -> dict[str, Shapes]:
    """Attention layers as PEFT and diffusers call them, by diffusers' own conversions."""
    peft = {
        f"{prefix}.{layer}.lora_{side}.weight": shape
        for prefix, layers in parts.items()
        for layer, whole in layers.items()
        for side, shape in zip("AB", halves(whole, rank, "").values(), strict=True)
        if layer.endswith((".to_q", ".to_k", ".to_v", ".to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"))
    }
    return {"peft": peft, "diffusers": diffusers.utils.convert_state_dict_to_diffusers(peft)}


def oldest(named: Shapes) -> Shapes:
    """The attention processors of diffusers 0.14 to 0.19."""
    return {
        re.sub(
            r"(\.processor)?\.(?:to_)?([qkv]|out)(?:_proj)?(?:\.0)?\.lora(?:_linear_layer)?\.",
            lambda found: f"{'' if '_proj' in found[0] else '.processor'}.to_{found[2]}_lora.",
            name,
        ): shape
        for name, shape in named.items()
    }


KOHYA_SOURCE = "networks/lora.py of kohya-ss/sd-scripts: which modules of the network have which name"


def lora_sd15_kohya() -> Manifest:
    unet_layers = layers_inside(
        diffusers.UNet2DConditionModel, KOHYA["convolutions"], cross_attention_dim=768
    )
    inside = {name: shape for name, shape in unet_layers.items() if ".attentions." in name}
    clip = {"lora_te": text_layers(768, 12)}
    return Manifest(
        source=f"{KOHYA_SOURCE}; network_dim 128, and 32 with conv_dim 8",
        namings={
            "kohya": kohya({"lora_unet": inside, **clip}, 128),
            "convolutions": kohya({"lora_unet": unet_layers, **clip}, 32, 8),
        },
    )


def lora_sdxl_kohya() -> Manifest:
    theirs = layers_inside(
        diffusers.UNet2DConditionModel, KOHYA["unet"], **XL_CONFIG, up_block_types=THREE_UP
    )
    texts = {"lora_te1": text_layers(768, 12), "lora_te2": text_layers(1280, 32, projected=True)}
    return Manifest(
        source=f"{KOHYA_SOURCE}, over library/sdxl_original_unet.py (SGM's names), network_dim 16 and "
        "conv_dim 4; in diffusers' names as its convert_state_dict_to_kohya writes, rank 4",
        namings={
            "original": kohya({"lora_unet": original_layers(XL), **texts}, 16, 4),
            "diffusers": kohya({"lora_unet": theirs, **texts}, 4),
        },
    )


def lora_diffusers() -> Manifest:
    xl = layers_inside(diffusers.UNet2DConditionModel, KOHYA["unet"], **XL_CONFIG, up_block_types=THREE_UP)
    first = layers_inside(diffusers.UNet2DConditionModel, KOHYA["unet"], cross_attention_dim=768)
    texts = {"text_encoder": text_layers(768, 12), "text_encoder_2": text_layers(1280, 32, projected=True)}
    small = diffusers_lora({"unet": first, "text_encoder": texts["text_encoder"]}, 4)
    return Manifest(
        source="train_text_to_image_lora_sdxl.py of diffusers 0.30, target_modules, rank 64; "
        "sd15_oldest: train_dreambooth_lora.py of diffusers 0.16, rank 4",
        namings={
            **diffusers_lora({"unet": xl, **texts}, 64),
            "sd15_oldest": oldest(small["diffusers"]),
        },
    )


MANIFESTS: dict[str, Callable[[], Manifest]] = {
    "unet_sd15": lambda: unet(
        "unet/config.json of stable-diffusion-v1-5; configs/stable-diffusion/v1-inference.yaml of CompVis",
        V1,
        cross_attention_dim=768,
    ),
    "unet_sd15_inpainting": lambda: unet(
        "unet/config.json of stable-diffusion-inpainting; v1-inpainting-inference.yaml of runwayml",
        Original(use_linear=False, in_channels=9),
        cross_attention_dim=768,
        in_channels=9,
    ),
    "unet_sd21": lambda: unet(
        "unet/config.json of stable-diffusion-2-1 and 2-1-base; v2-inference-v.yaml of Stability AI",
        V2,
        **V2_CONFIG,
    ),
    "unet_sd21_unclip": lambda: unet(
        "unet/config.json of stable-diffusion-2-1-unclip; v2-1-stable-unclip-h-inference.yaml",
        Original(context_dim=1024, adm_in_channels=2048),
        **V2_CONFIG,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2048,
    ),
    "unet_sdxl": lambda: unet(
        "unet/config.json of stable-diffusion-xl-base-1.0, also sdxl-turbo; sd_xl_base.yaml of Stability AI",
        XL,
        **XL_CONFIG,
        up_block_types=THREE_UP,
    ),
    "unet_sdxl_refiner": lambda: unet(
        "unet/config.json of stable-diffusion-xl-refiner-1.0; sd_xl_refiner.yaml of Stability AI",
        REFINER,
        **REFINER_CONFIG,
    ),
    "unet_x4": lambda: unet(
        "unet/config.json of stable-diffusion-x4-upscaler; x4-upscaling.yaml of Stability AI",
        Original(
            in_channels=7,
            model_channels=256,
            channel_mult=(1, 2, 2, 4),
            transformer_depth=(0, 1, 1, 1),
            context_dim=1024,
            num_classes=1000,
            disable_self_attentions=(True, True, True, False),
        ),
        in_channels=7,
        block_out_channels=(256, 512, 512, 1024),
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        cross_attention_dim=1024,
        num_class_embeds=1000,
        only_cross_attention=(True, True, True, False),
        use_linear_projection=True,
    ),
    "unet_if_i_xl": lambda: deepfloyd(
        "config.yml of DeepFloyd/IF-I-XL-v1.0, as diffusers' convert_if.py reads it",
        Pixels(model_channels=704, encoder_channels=2816, encoder_dim=4096),
    ),
    "unet_if_i_l": lambda: deepfloyd(
        "IF-I-L, as large as its card says (0.9 billion)",
        Pixels(encoder_channels=1280, encoder_dim=4096),
    ),
    "unet_if_i_m": lambda: deepfloyd(
        "IF-I-M, as large as its card says (0.4 billion)",
        Pixels(model_channels=192, encoder_channels=768, encoder_dim=4096),
    ),
    "unet_if_ii": lambda: deepfloyd(
        "levels and blocks of IF-II-L as diffusers' convert_if.py counts them; widths are an example",
        Pixels(
            in_channels=6,
            model_channels=128,
            channel_mult=(1, 2, 3, 4, 4),
            num_res_blocks=(2, 2, 3, 5, 5),
            attention=(False, False, False, True, True),
            encoder_channels=512,
            encoder_dim=4096,
            disable_self_attentions=True,
            aug=True,
        ),
        class_embed_type="timestep",
        only_cross_attention=True,
        time_embedding_dim=512,
    ),
    "decoder_karlo": lambda: pixels(
        "decoder/config.json of karlo-v1-alpha",
        Pixels(encoder_channels=1536, norm_encoder=False),
        "model.",
        class_embed_type="identity",
    ),
    "super_res_karlo": lambda: pixels(
        "super_res_first/config.json and super_res_last/config.json of karlo-v1-alpha (equal shapes)",
        Pixels(in_channels=6, out_channels=3, attention=(False,) * 4, scale_shift=False),
        "model_last_step.",
        add_attention=False,
    ),
    "controlnet_sd15": lambda: controlnet(
        "config.json of lllyasviel/control_v11p_sd15_canny; models/cldm_v15.yaml of lllyasviel/ControlNet",
        V1,
        cross_attention_dim=768,
    ),
    "controlnet_sd21": lambda: controlnet(
        "config.json of thibaud/controlnet-sd21-canny-diffusers; cldm_v21.yaml of lllyasviel/ControlNet",
        V2,
        **V2_CONFIG,
    ),
    "controlnet_sdxl": lambda: controlnet(
        "config.json of diffusers/controlnet-canny-sdxl-1.0; cldm.py of lllyasviel/ControlNet with "
        "the values of sd_xl_base.yaml (published in diffusers' naming only)",
        XL,
        **XL_CONFIG,
    ),
    "text_sd15": lambda: text(
        "text_encoder/config.json of stable-diffusion-v1-5; v1-inference.yaml of CompVis",
        768,
        12,
        first_text("cond_stage_model.transformer."),
    ),
    "text_sd21": lambda: text(
        "text_encoder/config.json of stable-diffusion-2-1; v2-inference-v.yaml of Stability AI, "
        "ViT-H-14.json of open_clip",
        1024,
        23,
        dict(original_text("cond_stage_model.model.", 1024, 24)),
    ),
    "text_sdxl_first": lambda: text(
        "text_encoder/config.json of stable-diffusion-xl-base-1.0; sd_xl_base.yaml of Stability AI",
        768,
        12,
        first_text("conditioner.embedders.0.transformer."),
    ),
    "text_sdxl_second": lambda: text(
        "text_encoder_2/config.json of stable-diffusion-xl-base-1.0; sd_xl_base.yaml of Stability AI, "
        "ViT-bigG-14.json of open_clip (in the refiner's file: conditioner.embedders.0.model.)",
        1280,
        32,
        dict(original_text("conditioner.embedders.1.model.", 1280, 32)),
        projected=True,
    ),
    "vae_sd": lambda: vae(
        "vae/config.json of stable-diffusion-v1-5, 2-1, xl-base-1.0 and sdxl-vae-fp16-fix (equal shapes); "
        "v1-inference.yaml of CompVis",
        4,
        True,
    ),
    "vae_x4": lambda: vae(
        "vae/config.json of stable-diffusion-x4-upscaler; x4-upscaling.yaml of Stability AI", 4, True, 3
    ),
    "vae_flux": lambda: vae(
        "vae/config.json of FLUX.1-dev and stable-diffusion-3-medium (equal shapes); original naming under "
        "the prefix of SD3's single file",
        16,
        False,
    ),
    "vae_taesd": lambda: Manifest(
        source="config.json of madebyollin/taesd and taesdxl (equal shapes)",
        namings={"diffusers": built(diffusers.AutoencoderTiny)},
    ),
    "prior_karlo": lambda: Manifest(
        source="prior/config.json of karlo-v1-alpha; prior_1B_vit_l.yaml of kakaobrain/karlo",
        namings={"diffusers": built(diffusers.PriorTransformer)},
    ),
    "text_proj_karlo": projections,
    "text_karlo": lambda: text("text_encoder/config.json of karlo-v1-alpha", 768, 12, {}, projected=True),
    "picture_karlo": lambda: picture(
        "image_encoder/config.json of karlo-v1-alpha-image-variations and stable-diffusion-2-1-unclip-small",
        1024,
        24,
        16,
        768,
    ),
    "picture_sd21_unclip": lambda: picture(
        "image_encoder/config.json of stable-diffusion-2-1-unclip", 1280, 32, 16, 1024
    ),
    "lora_sd15_kohya": lora_sd15_kohya,
    "lora_sdxl_kohya": lora_sdxl_kohya,
    "lora_diffusers": lora_diffusers,
}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or MANIFESTS:
        path = FOLDER / f"{name}.json.gz"
        path.write_bytes(
            gzip.compress(MANIFESTS[name]().text().encode(), mtime=0)
        )  # the same bytes every time
        print(f"{path}: {path.stat().st_size} bytes")
