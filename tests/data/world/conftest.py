"""Atlases for scenes: the one that `prepare` drew, and one of names alone."""

from pathlib import Path

import pytest
import torch

from limner.data.world.art import ART_SETS, Atlas, load_atlas
from limner.text.lexicon import load_lexicon


@pytest.fixture(scope="session")
def atlas(atlas_folder: Path) -> Atlas:
    return load_atlas(atlas_folder)


@pytest.fixture(scope="session")
def core_atlas() -> Atlas:
    """Every core object in every style, without a picture: enough to say what stands where."""
    names = tuple(entry.name for entry in load_lexicon().entries if entry.core)
    return Atlas(
        objects=names,
        styles=tuple(ART_SETS),
        tiles={16: torch.zeros(len(ART_SETS), len(names), 4, 16, 16, dtype=torch.uint8)},
        letters={16: torch.zeros(26, 16, 16, dtype=torch.uint8)},
        advance=torch.ones(26),
        sources={},
    )
