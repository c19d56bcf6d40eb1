import math

import pytest
import torch

from limner.nn.embeddings import positions_2d, timestep_embedding


def test_timestep_embedding_by_its_definition() -> None:
    embedded = timestep_embedding(torch.tensor([0.0, 3.5]), 8, period=100.0)
    assert embedded.shape == (2, 8)
    assert embedded[0].tolist() == [1.0] * 4 + [0.0] * 4
    for i in range(4):
        angle = 3.5 / 100 ** (i / 4)
        assert embedded[1, i].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert embedded[1, 4 + i].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_positions_tell_rows_and_columns_apart() -> None:
    grid = positions_2d(3, 5, 16).reshape(3, 5, 16)
    rows, columns = grid.split(8, -1)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert torch.equal(columns, columns[:1].expand_as(columns))
    distances = torch.cdist(grid.flatten(0, 1), grid.flatten(0, 1))
    assert distances[~torch.eye(15, dtype=torch.bool)].min() > 0.3
