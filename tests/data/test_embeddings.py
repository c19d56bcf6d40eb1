"""CLIP towers as dedup and group take them: published ones, a picture tower alone, and a [clip] run's."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from typer.testing import CliRunner

from limner.cli import app
from limner.data.embeddings import Embed, decode, encode, load_tower
from limner.data.records import DataSet
from limner.data.steps import run
from limner.errors import DataError, WeightsError
from limner.models.contrast import Contrast, ContrastConfig
from limner.text.tokenizers import default_vocabulary
from limner.weights import files


@pytest.fixture(scope="module")
def published(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, transformers.CLIPVisionModelWithProjection]:
    """A picture tower of random weights as unCLIP models hold it, and the same within a whole CLIP."""
    shared = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    seeing = {**shared, "image_size": 28, "patch_size": 7, "projection_dim": 16}
    torch.manual_seed(0)
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**shared, "eos_token_id": 49_407, "projection_dim": 16},
            vision_config=seeing,
            projection_dim=16,
        )
    ).eval()
    alone = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**seeing)).eval()
    alone.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name.startswith("vi")}, strict=True
    )
    folder = tmp_path_factory.mktemp("clips")
    model.save_pretrained(folder / "whole")
    alone.save_pretrained(folder / "unclip" / "image_encoder")
    return folder, alone


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a [clip] run writes, with random weights."""
    vocabulary = default_vocabulary(("cat",))
    shape = ContrastConfig(
        vocabulary=len(vocabulary), end=1, width=16, heads=2, depth=1, text_depth=1, space=8
    )
    network = Contrast(shape)
    network.initialize(torch.Generator().manual_seed(0))
    told = {
        "network": {"Contrast": asdict(shape)},
        "vocabulary": vocabulary,
        "objects": ["cat"],
        "styles": [],
    }
    path = tmp_path_factory.mktemp("clip") / "weights.safetensors"
    files.save(network.state_dict(), path, {key: json.dumps(value) for key, value in told.items()})
    return path


@pytest.mark.parity
def test_published_towers_say_what_transformers_says(
    published: tuple[Path, transformers.CLIPVisionModelWithProjection],
) -> None:
    folder, model = published
    levels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    middle, spread = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    prepared = torch.from_numpy(((levels / 255 - middle) / spread).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        wanted = model(prepared).image_embeds.numpy()
    pictures = [Image.fromarray(one) for one in levels]
    for name in ("whole", "unclip"):
        np.testing.assert_allclose(load_tower(str(folder / name))(pictures), wanted, rtol=1e-3, atol=1e-4)


def test_a_tower_of_an_own_run_finds_duplicates(
    own: Path, set_of: Callable[..., DataSet], scenes: list[Image.Image]
) -> None:
    wide = scenes[0].crop((0, 4, 192, 188))  # a crop, which no hash would be sure of
    data = set_of({"a": scenes[0], "b": wide, "c": scenes[1]})
    words = ["data", "dedup", str(data.folder), "--clip", str(own), "--similarity", "0.9999"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert [step.name for step in DataSet.open(data.folder).steps] == ["import", "embed", "dedup"]
    (embedded, *_) = list(run(set_of({"a": scenes[0]}, name="other"), Embed(source=str(own))))
    assert embedded.total == 1
    vectors = load_tower(str(own))([scenes[0], scenes[0].resize((400, 400)), scenes[1]])
    assert vectors.shape == (3, 8)
    same = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    assert same > 0.999


def test_embeddings_as_facts() -> None:
    vector = np.random.default_rng(0).normal(size=40)
    back = decode(encode(vector))
    np.testing.assert_allclose(back, vector / np.linalg.norm(vector), atol=1e-3)
    for wrong in (np.zeros(3), np.array([1.0, math.nan]), np.array([math.inf])):
        with pytest.raises(DataError, match="zero or not finite"):
            encode(wrong)
    for text in ("???", "AAA"):
        with pytest.raises(DataError, match="no embedding"):
            decode(text)


def test_what_is_no_tower(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no CLIP"):
        load_tower(str(tmp_path))
    (tmp_path / "image_encoder").mkdir()
    (tmp_path / "image_encoder" / "config.json").write_text('{"hidden_size": 0}')
    with pytest.raises(WeightsError, match="hidden_size in the table is a whole number"):
        load_tower(str(tmp_path))
