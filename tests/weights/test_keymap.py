"""Key maps: the same rules in both directions, and nothing that slips through."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from limner.errors import WeightsError
from limner.weights.keymap import (
    LINEAR_TO_POINTWISE,
    POINTWISE_TO_LINEAR,
    TRANSPOSED,
    KeyMap,
    Rule,
    our_names,
    to_ours,
    to_theirs,
)

KEYS: KeyMap = (
    Rule("conv_in.{rest}", "enter.{rest}"),
    Rule("blocks.{i}.resnets.{j}.{rest*}", "down.{i}.resnets.{j}.{rest*}"),
    Rule("attn.in_proj_weight", ("attn.q.weight", "attn.k.weight", "attn.v.weight")),
    Rule("layers.{i}.qkv", ("layers.{i}.q", "layers.{i}.k", "layers.{i}.v")),
    Rule("proj.weight", "proj.weight", POINTWISE_TO_LINEAR),
    Rule("text_projection", "projection.weight", TRANSPOSED),
    Rule("position_ids", None),
)


def published() -> dict[str, Tensor]:
    shapes = {
        "conv_in.weight": (2, 3, 3, 3),
        "blocks.0.resnets.11.conv.norm.weight": (2,),
        "attn.in_proj_weight": (6, 2),
        "layers.4.qkv": (9, 3),
        "proj.weight": (3, 2, 1, 1),
        "text_projection": (2, 5),
        "position_ids": (1, 7),
    }
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_names_and_tensors_go_over_and_come_back() -> None:
    theirs = published()
    ours = to_ours(KEYS, theirs, "file")
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {
        "enter.weight": (2, 3, 3, 3),
        "down.0.resnets.11.conv.norm.weight": (2,),
        **{f"attn.{part}.weight": (2, 2) for part in "qkv"},
        **{f"layers.4.{part}": (3, 3) for part in "qkv"},
        "proj.weight": (3, 2),
        "projection.weight": (5, 2),
    }
    assert torch.equal(ours["attn.k.weight"], theirs["attn.in_proj_weight"][2:4])
    assert torch.equal(ours["projection.weight"], theirs["text_projection"].T)
    back = to_theirs(KEYS, ours)
    del theirs["position_ids"]
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_on_the_meta_device() -> None:
    theirs = {name: tensor.to("meta") for name, tensor in published().items()}
    back = to_theirs(KEYS, to_ours(KEYS, theirs, "file"))
    assert all(tensor.is_meta and tensor.shape == theirs[name].shape for name, tensor in back.items())


def test_every_unknown_name_counts_and_the_first_are_told() -> None:
    more = {f"more.{i}": torch.zeros(1) for i in range(7)}
    with pytest.raises(WeightsError, match=r"^it\.safetensors: 7 unknown tensors: more\.0.* and 2 more$"):
        to_ours(KEYS, {**published(), **more}, "it.safetensors")
    with pytest.raises(WeightsError, match=r"1 tensors without a published name: position_ids"):
        to_theirs(KEYS, {"position_ids": torch.zeros(1)})


@pytest.mark.parametrize(
    "name", ["conv_in.a.b", "conv_in", "conv_in.weight.", "xconv_in.weight", "PROJ.weight"]
)
def test_a_name_matches_whole(name: str) -> None:
    assert our_names(KEYS, [name]) == {name: None}


def test_names_alone() -> None:
    assert our_names(KEYS, ["conv_in.bias", "layers.0.qkv", "position_ids"]) == {
        "conv_in.bias": ("enter.bias",),
        "layers.0.qkv": ("layers.0.q", "layers.0.k", "layers.0.v"),
        "position_ids": (),
    }


def test_the_first_rule_wins_in_both_directions() -> None:
    both = (Rule("text_model.{rest*}", "{rest*}"), Rule("extra", None), Rule("{rest*}", "{rest*}"))
    one, other = {"text_model.a.b": torch.ones(1)}, {"a.b": torch.ones(1)}
    assert set(to_ours(both, one, "new")) == set(to_ours(both, other, "old")) == {"a.b"}
    assert set(to_theirs(both, other)) == {"text_model.a.b"}
    assert to_ours(both, {"extra": torch.ones(1)}, "old") == {}
    late = (Rule("{rest*}", "{rest*}"), Rule("extra", None))
    assert set(to_ours(late, {"extra": torch.ones(1)}, "old")) == {"extra"}


def test_two_tensors_under_one_name_are_an_error() -> None:
    rules = (Rule("a.{x}", "{x}"), Rule("b.{x}", "{x}"))
    with pytest.raises(WeightsError, match=r"f: both a\.w and b\.w are our w"):
        to_ours(rules, {"a.w": torch.ones(1), "b.w": torch.ones(1)}, "f")
    with pytest.raises(WeightsError, match="two tensors would be written as w"):
        to_theirs((Rule("w", "a"), Rule("w", "b")), {"a": torch.ones(1), "b": torch.ones(1)})


def test_fused_tensors_are_whole() -> None:
    with pytest.raises(WeightsError, match=r"f: attn\.in_proj_weight is \(7, 2\).*3 equal parts"):
        to_ours(KEYS, {"attn.in_proj_weight": torch.zeros(7, 2)}, "f")
    with pytest.raises(
        WeightsError, match=r"layers\.1\.qkv cannot be written: it needs layers\.1\.k as well"
    ):
        to_theirs(KEYS, {"layers.1.q": torch.zeros(2), "layers.1.v": torch.zeros(2)})


def test_what_cannot_be_changed_is_said() -> None:
    with pytest.raises(
        WeightsError, match=r"f: proj\.weight is \(3, 2, 3, 3\), which its rule cannot change"
    ):
        to_ours(KEYS, {"proj.weight": torch.zeros(3, 2, 3, 3)}, "f")
    rule = (Rule("w", "w", LINEAR_TO_POINTWISE),)
    assert to_ours(rule, {"w": torch.zeros(3, 2)}, "f")["w"].shape == (3, 2, 1, 1)


@pytest.mark.parametrize(
    "sides",
    [
        ("{a*}.{b*}", "{a*}.{b*}"),
        ("x.{a}{b}", "y.{a}.{b}"),
        ("x.{a}.{a}", "y.{a}"),
        ("x.{a}-{b}", "y.{a}.{b}"),
        ("x.{a}", "y"),
        ("x.{a}", "y.{a*}"),
        ("x.{a}", ("y.{a}", "z.{b}")),
        ("x.{A}", "y.{A}"),
        ("x.{a", "y.{a"),
    ],
)
def test_rules_that_can_be_read_in_two_ways_are_refused(sides: tuple[str, str | tuple[str, ...]]) -> None:
    with pytest.raises(ValueError):
        Rule(*sides)


WORD = st.text("abc01_", min_size=1, max_size=3)
TAIL = st.lists(WORD, min_size=1, max_size=3).map(".".join)


@given(
    plain=st.dictionaries(WORD, st.integers(1, 3), max_size=3),
    deep=st.dictionaries(st.tuples(WORD, WORD, TAIL), st.integers(1, 3), max_size=5),
    fused=st.dictionaries(WORD, st.integers(1, 3), max_size=3),
)
def test_any_tensors_go_there_and_back(
    plain: dict[str, int], deep: dict[tuple[str, str, str], int], fused: dict[str, int]
) -> None:
    theirs = {f"conv_in.{rest}": torch.rand(n, 2) for rest, n in plain.items()}
    theirs |= {f"blocks.{i}.resnets.{j}.{rest}": torch.rand(n) for (i, j, rest), n in deep.items()}
    theirs |= {f"layers.{i}.qkv": torch.rand(3 * n, 2) for i, n in fused.items()}
    ours = to_ours(KEYS, theirs, "f")
    assert len(ours) == len(plain) + len(deep) + 3 * len(fused)
    back = to_theirs(KEYS, dict(sorted(ours.items(), reverse=True)))
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)
