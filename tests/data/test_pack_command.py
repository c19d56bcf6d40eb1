"""`limner data pack` from a folder of photos to a run's batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from limner.cli import app
from limner.data.loader import Loader, LoaderConfig
from limner.errors import DataError
from limner.train import learners

run = CliRunner()


def command(*words: object) -> str:
    result = run.invoke(app, ["data", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    for number in range(3):
        levels = np.random.default_rng(number).integers(0, 256, (64 + 32 * number, 64, 3), np.uint8)
        path = tmp_path / "photos" / "2_red apple" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(path)
    command("import", tmp_path / "photos", tmp_path / "set")
    return tmp_path / "set"


def test_from_photos_to_packed_latents_that_a_run_reads(imported: Path, tiny: Path) -> None:
    learner = learners.load(str(tiny), torch.device("cpu"))
    side = learner.size
    words = ("pack", imported, "--size", side, "--bucket-step", side, "--dtype", "float32")
    said = command(*words, "--latents", tiny, "--flip")
    assert said.strip() == str(imported / "packed")
    config = {"size": side, "bucket_step": side, "drop_caption": 0.5, "workers": 0, "flip": True}
    read = Loader(LoaderConfig(folder=str(imported), latents=True, **config), learner.stamp)
    plain = Loader(LoaderConfig(folder=str(imported), **config))
    assert len(read) == 6
    for index in range(6):
        got, pictures = read.batch(1, index, index), plain.batch(1, index, index)
        assert got.latents is not None
        assert pictures.pixels is not None
        assert torch.equal(got.latents, learner.latents(pictures.pixels))
        assert got.said is not None
        for name, tensor in learner.say(got.captions).cached().items():
            torch.testing.assert_close(got.said[name], tensor)
    anew = run.invoke(app, ["data", *map(str, words), "--encode", "png"], catch_exceptions=False)
    assert "latents of what was packed before went with it" in anew.stderr
    assert not (imported / "packed" / "latents").exists()


def test_what_cannot_be_is_said_before_anything_is_done(imported: Path) -> None:
    for words, says in (
        (("--size", 32), "smaller step"),
        (("--flip",), "add --latents MODEL"),
        (("--shrink",), "--encode"),
    ):
        with pytest.raises(DataError, match=says):
            command("pack", imported, *words)
    assert not list(imported.glob("packed*"))
