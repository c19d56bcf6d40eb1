"""The numbers in a published model's tables: a network's config.json, and what a folder says of its sampler.

Others wrote them. What is no number, or none that anything can be made of, is told by file and field, before
something is built of it.
"""

from collections.abc import Mapping
from pathlib import Path

from limner.errors import WeightsError
from limner.weights import files

Span = tuple[int | float, int | float]  # least and most
WIDTH: Span = (1, 1_000_000)
DEPTH: Span = (0, 1000)  # a network of a billion layers would be built for hours
NETWORK: dict[str, Span] = {  # whole numbers of a config.json, or lists of them
    **dict.fromkeys(("layers_per_block", "transformer_layers_per_block", "num_layers"), DEPTH),
    **dict.fromkeys(("num_single_layers", "num_hidden_layers"), DEPTH),
    **dict.fromkeys(("in_channels", "out_channels", "block_out_channels", "latent_channels"), WIDTH),
    **dict.fromkeys(("attention_head_dim", "num_attention_heads", "norm_num_groups"), WIDTH),
    **dict.fromkeys(("cross_attention_dim", "joint_attention_dim", "pooled_projection_dim"), WIDTH),
    **dict.fromkeys(("caption_projection_dim", "pos_embed_max_size", "patch_size", "axes_dims_rope"), WIDTH),
    **dict.fromkeys(("addition_time_embed_dim", "addition_embed_type_num_heads", "encoder_hid_dim"), WIDTH),
    **dict.fromkeys(("projection_class_embeddings_input_dim", "time_cond_proj_dim"), WIDTH),
    **dict.fromkeys(("time_embedding_dim", "embedding_dim", "num_embeddings"), WIDTH),
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"), WIDTH),
    **dict.fromkeys(("d_model", "d_kv", "d_ff", "num_heads", "image_size"), WIDTH),
    **dict.fromkeys(("relative_attention_num_buckets", "relative_attention_max_distance"), WIDTH),
}
FACTORS: dict[str, Span] = {"scaling_factor": (1e-6, 1e6), "shift_factor": (-1e6, 1e6)}  # of a config.json
STEPS: dict[str, Span] = {  # whole numbers of a sampler's table
    "num_train_timesteps": (2, 100_000),
    "base_image_seq_len": (1, 1_000_000),
    "max_image_seq_len": (1, 1_000_000),
}
PATH: dict[str, Span] = {  # the others
    "beta_start": (1e-8, 0.999),
    "beta_end": (1e-8, 0.999),
    "shift": (0.001, 1000),
    "base_shift": (-10, 10),
    "max_shift": (-10, 10),
    "sample_max_value": (0.001, 1000),
    "dynamic_thresholding_ratio": (0, 1),
    "clip_sample_range": (0.001, 1000),
}


def network(path: Path) -> dict[str, object]:
    """A network's config.json. Raises WeightsError as `files.read_json`, and for a number that is none."""
    return _checked(path, NETWORK, FACTORS, lists=True)


def sampler(path: Path) -> dict[str, object]:
    """What a folder says of its sampler, likewise; without what it leaves open (null)."""
    table = {name: said for name, said in _checked(path, STEPS, PATH).items() if said is not None}
    few, many = (table.get(name, usual) for name, usual in zip(tuple(STEPS)[1:], (256, 4096), strict=True))
    if few == many:
        raise WeightsError(f"{path}: base_image_seq_len and max_image_seq_len differ, got {few!r} twice")
    return table


def _checked(
    path: Path, whole: Mapping[str, Span], others: Mapping[str, Span], *, lists: bool = False
) -> dict[str, object]:
    """The table in a file."""
    table = files.read_json(path)
    for name, span in {**whole, **others}.items():
        said = table.get(name)
        every = said if lists and name in whole and isinstance(said, list) and said else [said]
        kinds = (int,) if name in whole else (int, float)
        if said is not None and not all(_within(one, kinds, span) for one in every):
            what = "a whole number" if name in whole else "a number"
            low, high = (f"{int(one):,}" if one == int(one) else f"{one:g}" for one in span)
            raise WeightsError(f"{path}: {name} is {what} from {low} to {high}, got {repr(said)[:80]}")
    return table


def _within(said: object, kinds: tuple[type, ...], span: Span) -> bool:
    number = isinstance(said, kinds) and not isinstance(said, bool)
    return number and span[0] <= said <= span[1]  # type: ignore[operator]  # false for NaN, too
