import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from limner.cli import app
from limner.errors import WeightsError
from limner.train.calibrate import judged
from limner.train.config import LoopConfig, RunConfig, to_dict
from limner.train.loop import fit
from limner.train.objectives.detect import DetectConfig
from limner.weights import header
from limner.weights.detector import load_detector
from limner.weights.files import read, save


@pytest.fixture
def written(loop: LoopConfig, detect: DetectConfig, tmp_path: Path) -> Path:
    """A detector that a run has published, made to see something everywhere."""
    list(fit(RunConfig(name="eye", loop=loop, detect=detect), tmp_path / "run"))
    path = tmp_path / "run" / "weights.safetensors"
    tensors = read(path)
    tensors["place.bias"] = torch.tensor([2.0, 0.5, 0.5, 7.0, 7.0])
    save(tensors, path, header.read_metadata(path))
    return path


def test_a_finished_detector_is_calibrated_in_its_file(written: Path, atlas_folder: Path) -> None:
    parts = list(judged(written, atlas_folder, 40))
    assert len(parts) == 2
    scores, right = parts[0]
    assert len(scores) == len(right) > 32
    assert 0.05 < float(scores.min()) <= float(scores.max()) <= 1
    again, _ = next(judged(written, atlas_folder, 40))
    assert torch.equal(again, scores), "the same scenes every time"
    clean, _ = next(judged(written, atlas_folder, 40, worn=False))
    assert not torch.equal(clean, scores)


def test_the_command_writes_what_was_fitted(
    written: Path, atlas_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 0.05 + 0.95 * torch.rand(400, generator=generator, dtype=torch.float64)
    right = torch.rand(400, generator=generator) < scores**2
    monkeypatch.setattr("limner.train.calibrate.judged", lambda *words, **more: iter([(scores, right)]))
    before = read(written)
    words = ["evaluate", "calibrate", str(written), "--world", str(atlas_folder)]
    done = CliRunner().invoke(app, [*words, "--no-write"], catch_exceptions=False)
    assert "expected calibration error" in done.stdout
    assert "calibration" not in header.read_metadata(written)
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.stdout.splitlines()[-1] == str(written)
    told = json.loads(header.read_metadata(written)["calibration"])
    assert asdict(load_detector(written).calibration) == told
    assert told["shift"] < 0
    assert all(torch.equal(before[name], tensor) for name, tensor in read(written).items())


def test_what_was_not_trained_here_is_refused(
    written: Path, atlas_folder: Path, loop: LoopConfig, detect: DetectConfig
) -> None:
    metadata = header.read_metadata(written)
    save(read(written), written, {key: value for key, value in metadata.items() if key != "run"})
    with pytest.raises(WeightsError, match="does not say how it was trained"):
        next(judged(written, atlas_folder, 4))
    run = to_dict(RunConfig(name="eye", loop=loop, detect=detect))
    run["upscale"] = {}
    del run["detect"]
    save(read(written), written, metadata | {"run": json.dumps(run)})
    with pytest.raises(WeightsError, match="another run than one with"):
        next(judged(written, atlas_folder, 4))
