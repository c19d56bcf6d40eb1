"""Names of FLUX's tensors: in diffusers folders, and in the original files.

The original code fuses queries, keys and values, and in blocks with one stream the feed-forward layer's first
half with them. diffusers has the scale before the shift at the end. All-in-one files have the prefix
`model.diffusion_model.`; files of the transformer alone come with it and without.
"""

from limner.models.flux import FluxConfig
from limner.weights.keymap import KeyMap, Rule
from limner.weights.maps.mmdit import HALVES_SWAPPED
from limner.weights.maps.unet import layers

PREFIX = "model.diffusion_model."

TIME, DOUBLE, SINGLE = "time_text_embed.", "transformer_blocks.{i}.", "single_transformer_blocks.{i}."


def diffusers_flux(config: FluxConfig) -> KeyMap:
    """transformer/diffusion_pytorch_model.safetensors <-> Flux."""
    ends = ("weight", "bias")
    return (
        *diffusers_trunk(),
        *(Rule(f"norm_out.linear.{end}", f"modulation.linear.{end}", HALVES_SWAPPED) for end in ends),
        *layers(("proj_out", "last")),
    )


def diffusers_flux_control() -> KeyMap:
    """diffusion_pytorch_model.safetensors of a control network <-> FluxControlNet."""
    return (
        *diffusers_trunk(),
        *layers(
            ("controlnet_x_embedder", "condition"),
            ("controlnet_blocks.{i}", "double_outs.{i}"),
            ("controlnet_single_blocks.{i}", "single_outs.{i}"),
        ),
    )


def diffusers_trunk() -> KeyMap:
    """What the network and those that control it have in common."""
    picture, text, alone = "doubles.{i}.picture", "doubles.{i}.text", "singles.{i}"
    heads = (
        (f"{DOUBLE}attn.", "to_{}", "norm_{}", picture),
        (f"{DOUBLE}attn.", "add_{}_proj", "norm_added_{}", text),
        (f"{SINGLE}attn.", "to_{}", "norm_{}", alone),
    )
    perceptrons = (
        ("timestep_embedder", "time"),
        ("text_embedder", "pooled"),
        ("guidance_embedder", "guidance"),
    )
    return (
        *layers(
            ("x_embedder", "picture"),
            ("context_embedder", "text"),
            *((f"{TIME}{a}.linear_{n + 1}", f"{b}.{2 * n}") for a, b in perceptrons for n in (0, 1)),
            *(
                (theirs + linear.format(part), f"{ours}.attention.{part}")
                for theirs, linear, _, ours in heads
                for part in "qkv"
            ),
            (f"{DOUBLE}attn.to_out.0", f"{picture}.attention.out"),
            (f"{DOUBLE}attn.to_add_out", f"{text}.attention.out"),
            (f"{DOUBLE}norm1.linear", f"{picture}.modulation.linear"),
            (f"{DOUBLE}norm1_context.linear", f"{text}.modulation.linear"),
            (f"{DOUBLE}ff.net.0.proj", f"{picture}.inner"),
            (f"{DOUBLE}ff.net.2", f"{picture}.outer"),
            (f"{DOUBLE}ff_context.net.0.proj", f"{text}.inner"),
            (f"{DOUBLE}ff_context.net.2", f"{text}.outer"),
            (f"{SINGLE}norm.linear", f"{alone}.modulation.linear"),
            (f"{SINGLE}proj_mlp", f"{alone}.inner"),
            (f"{SINGLE}proj_out", f"{alone}.outer"),
        ),
        *(
            Rule(f"{theirs}{norm.format(part)}.weight", f"{ours}.attention.{part}_scale")
            for theirs, _, norm, ours in heads
            for part in "qk"
        ),
    )


def original_flux(config: FluxConfig, prefix: str = PREFIX) -> KeyMap:
    """The transformer's part of a single file in the original naming <-> Flux."""
    double, single = f"{prefix}double_blocks.{{i}}.", f"{prefix}single_blocks.{{i}}."
    sides = ((f"{double}img_", "doubles.{i}.picture"), (f"{double}txt_", "doubles.{i}.text"))
    perceptrons = (("time_in", "time"), ("vector_in", "pooled"), ("guidance_in", "guidance"))
    rules: list[Rule] = []
    for theirs, ours in sides:
        rules += (
            *_fused(f"{theirs}attn.qkv", *(f"{ours}.attention.{part}" for part in "qkv")),
            *_scales(f"{theirs}attn.norm", ours),
            *layers(
                (f"{theirs}attn.proj", f"{ours}.attention.out"),
                (f"{theirs}mod.lin", f"{ours}.modulation.linear"),
                (f"{theirs}mlp.0", f"{ours}.inner"),
                (f"{theirs}mlp.2", f"{ours}.outer"),
            ),
        )
    parts = ("attention.q", "attention.k", "attention.v", "inner")
    return (
        *rules,
        *_fused(f"{single}linear1", *(f"singles.{{i}}.{part}" for part in parts), shares=(1, 1, 1, 4)),
        *_scales(f"{single}norm", "singles.{i}"),
        *layers(
            (f"{single}linear2", "singles.{i}.outer"),
            (f"{single}modulation.lin", "singles.{i}.modulation.linear"),
            (f"{prefix}img_in", "picture"),
            (f"{prefix}txt_in", "text"),
            *(
                (f"{prefix}{a}.{n}_layer", f"{b}.{i}")
                for a, b in perceptrons
                for n, i in (("in", 0), ("out", 2))
            ),
            (f"{prefix}final_layer.adaLN_modulation.1", "modulation.linear"),
            (f"{prefix}final_layer.linear", "last"),
        ),
    )


def _fused(theirs: str, *ours: str, shares: tuple[int, ...] = ()) -> KeyMap:
    ends = ("weight", "bias")
    return tuple(
        Rule(f"{theirs}.{end}", tuple(f"{part}.{end}" for part in ours), shares=shares) for end in ends
    )


def _scales(theirs: str, ours: str) -> KeyMap:
    return tuple(
        Rule(f"{theirs}.{name}_norm.scale", f"{ours}.attention.{name[0]}_scale") for name in ("query", "key")
    )
