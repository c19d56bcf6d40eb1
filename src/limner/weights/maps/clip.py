"""Names of CLIP's tensors: as transformers writes them, and as OpenCLIP does.

The text encoders of single files lie under these prefixes, in the naming of the right column:

    Stable Diffusion 1   cond_stage_model.transformer.        transformers
    Stable Diffusion 2   cond_stage_model.model.              OpenCLIP
    XL, first encoder    conditioner.embedders.0.transformer. transformers
    XL, second encoder   conditioner.embedders.1.model.       OpenCLIP
    XL refiner           conditioner.embedders.0.model.       OpenCLIP
"""

from limner.models.clip import CLIPTextConfig
from limner.weights.keymap import TRANSPOSED, KeyMap, Rule
from limner.weights.maps.unet import Pairs, layers

SD1_PREFIX = "cond_stage_model.transformer."
SD2_PREFIX = "cond_stage_model.model."
SDXL_FIRST_PREFIX = "conditioner.embedders.0.transformer."
SDXL_SECOND_PREFIX = "conditioner.embedders.1.model."
SDXL_REFINER_PREFIX = "conditioner.embedders.0.model."

TRANSFORMERS_BLOCK: Pairs = (
    ("layer_norm1", "norm1"),
    ("self_attn.q_proj", "q"),
    ("self_attn.k_proj", "k"),
    ("self_attn.v_proj", "v"),
    ("self_attn.out_proj", "out"),
    ("layer_norm2", "norm2"),
    ("mlp.fc1", "inner"),
    ("mlp.fc2", "outer"),
)
OPENCLIP_BLOCK: Pairs = (
    ("ln_1", "norm1"),
    ("attn.out_proj", "out"),
    ("ln_2", "norm2"),
    ("mlp.c_fc", "inner"),
    ("mlp.c_proj", "outer"),
)


def transformers_text(config: CLIPTextConfig, prefix: str = "", ours: str = "") -> KeyMap:
    """text_encoder/model.safetensors <-> CLIPText. Reads the names with `text_model.` in front, as published,
    and without it, as transformers 5 writes them; writes the former."""
    rules: list[Rule] = []
    for model in (f"{prefix}text_model.", prefix):
        rules += (
            Rule(f"{model}embeddings.token_embedding.weight", f"{ours}token.weight"),
            Rule(f"{model}embeddings.position_embedding.weight", f"{ours}position"),
            Rule(f"{model}embeddings.position_ids", None),  # 0, 1, 2 ...: in older files
            *_transformers_blocks(model, ours),
            *layers((f"{model}final_layer_norm", f"{ours}norm")),
        )
    projection = f"{ours}projection.weight" if config.projection else None
    return (*rules, Rule(f"{prefix}text_projection.weight", projection))


def transformers_vision(prefix: str = "", ours: str = "") -> KeyMap:
    """A picture tower with its projection, as transformers writes it <-> CLIPVision."""
    model = f"{prefix}vision_model."
    return (
        Rule(f"{model}embeddings.class_embedding", f"{ours}whole"),
        Rule(f"{model}embeddings.patch_embedding.weight", f"{ours}patch.weight"),
        Rule(f"{model}embeddings.position_embedding.weight", f"{ours}position"),
        Rule(f"{model}embeddings.position_ids", None),
        *layers((f"{model}pre_layrnorm", f"{ours}norm1"), (f"{model}post_layernorm", f"{ours}norm2")),
        *_transformers_blocks(model, ours),
        Rule(f"{prefix}visual_projection.weight", f"{ours}projection.weight"),
    )


def transformers_clip(text: CLIPTextConfig) -> KeyMap:
    """model.safetensors of a whole CLIP <-> CLIP."""
    return (
        Rule("logit_scale", "logit_scale"),
        *transformers_vision(ours="vision."),
        *transformers_text(text, ours="text."),
    )


def openclip_text(config: CLIPTextConfig, prefix: str = "", ours: str = "") -> KeyMap:
    """The text tower in OpenCLIP's naming, in single files under a prefix <-> CLIPText."""
    left_out = range(config.depth, config.depth + config.left_out)
    projection = f"{ours}projection.weight" if config.projection else None
    return (
        Rule(f"{prefix}token_embedding.weight", f"{ours}token.weight"),
        Rule(f"{prefix}positional_embedding", f"{ours}position"),
        *(Rule(f"{prefix}transformer.resblocks.{i}.{{rest*}}", None) for i in left_out),
        *_openclip_blocks(prefix, ours),
        *layers((f"{prefix}ln_final", f"{ours}norm")),
        Rule(f"{prefix}text_projection", projection, TRANSPOSED),  # a bare matrix, multiplied from the right
        Rule(f"{prefix}text_projection.weight", projection),  # some merged files
        Rule(f"{prefix}logit_scale", None),
        Rule(f"{prefix}attn_mask", None),
    )


def openclip_vision(prefix: str = "visual.", ours: str = "") -> KeyMap:
    """The picture tower in OpenCLIP's naming <-> CLIPVision."""
    return (
        Rule(f"{prefix}class_embedding", f"{ours}whole"),
        Rule(f"{prefix}conv1.weight", f"{ours}patch.weight"),
        Rule(f"{prefix}positional_embedding", f"{ours}position"),
        *layers((f"{prefix}ln_pre", f"{ours}norm1"), (f"{prefix}ln_post", f"{ours}norm2")),
        *_openclip_blocks(prefix, ours),
        Rule(f"{prefix}proj", f"{ours}projection.weight", TRANSPOSED),
    )


def openclip_clip(text: CLIPTextConfig) -> KeyMap:
    """open_clip_model.safetensors <-> CLIP."""
    return (
        Rule("logit_scale", "logit_scale"),
        *openclip_vision(ours="vision."),
        *openclip_text(text, ours="text."),
    )


def _transformers_blocks(theirs: str, ours: str) -> KeyMap:
    pairs = ((f"{theirs}encoder.layers.{{i}}.{a}", f"{ours}blocks.{{i}}.{b}") for a, b in TRANSFORMERS_BLOCK)
    return layers(*pairs)


def _openclip_blocks(theirs: str, ours: str) -> KeyMap:
    block, our = f"{theirs}transformer.resblocks.{{i}}", f"{ours}blocks.{{i}}"
    fused = (
        Rule(f"{block}.attn.in_proj_{kind}", (f"{our}.q.{kind}", f"{our}.k.{kind}", f"{our}.v.{kind}"))
        for kind in ("weight", "bias")
    )
    return (*fused, *layers(*((f"{block}.{a}", f"{our}.{b}") for a, b in OPENCLIP_BLOCK)))
