"""Textual-inversion files of the three kinds."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from limner.errors import WeightsError
from limner.weights.embeddings import check, read


@pytest.mark.parametrize(
    ("tensors", "name", "shapes"),
    [
        ({"emb_params": torch.ones(3, 8)}, "cat-toy", {"text_encoder": (3, 8)}),
        (
            {"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 12)},
            "cat-toy",
            {"text_encoder": (2, 8), "text_encoder_2": (2, 12)},
        ),
        ({"<sks>": torch.ones(8)}, "<sks>", {"text_encoder": (1, 8)}),
    ],
)
def test_three_kinds(
    tmp_path: Path, tensors: dict[str, Tensor], name: str, shapes: dict[str, tuple[int, int]]
) -> None:
    save_file(tensors, tmp_path / "cat-toy.safetensors")
    word = read(tmp_path / "cat-toy.safetensors")
    assert word.name == name
    assert {encoder: tuple(rows.shape) for encoder, rows in word.vectors.items()} == shapes
    check(word, {encoder: shape[1] for encoder, shape in shapes.items()})
    with pytest.raises(WeightsError, match="made for another model"):
        check(word, {"text_encoder": 5})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight": torch.ones(3, 8)}, "not a textual-inversion embedding.*it holds a.weight"),
        ({"emb_params": torch.ones(3, 8, 1)}, "not a textual-inversion"),
        ({"emb_params": torch.ones(80, 8)}, "1 to 75 vectors"),
        ({"emb_params": torch.ones(2, 8, dtype=torch.int64)}, "vectors were expected"),
        ({"clip_l": torch.ones(2, 8), "clip_g": torch.ones(1, 12)}, "different numbers"),
    ],
)
def test_other_files(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=message):
        read(tmp_path / "x.safetensors")
