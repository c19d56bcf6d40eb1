from pathlib import Path
from sys import modules
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from limner.cli import app
from limner.errors import DataError, WeightsError
from limner.evaluate.distances import frechet, kernel
from limner.evaluate.features import check_same, features, load_network, read


def waves(rows: int, width: int, phase: float) -> Tensor:
    """Features that every machine makes alike."""
    i = torch.arange(1, rows + 1, dtype=torch.float64)[:, None]
    j = torch.arange(1, width + 1, dtype=torch.float64)
    return torch.sin(i * i * j * 0.37 + phase) + 0.1 * torch.cos(i * j * phase)


FIRST, SECOND = waves(60, 12, 0.3), 1.2 * waves(60, 12, 1.1) + 0.2


@pytest.mark.parity
def test_fid_and_kid_are_what_torch_fidelity_says() -> None:
    """Its 0.4.0 said so: fid_statistics_to_metric, and kid_features_to_metric with one subset of all rows."""
    assert frechet(FIRST, SECOND) == pytest.approx(1.6660624546651217, rel=1e-9)
    assert kernel(FIRST, SECOND) == pytest.approx(0.18783506719564258, rel=1e-9)


@pytest.mark.parity
def test_fid_and_kid_beside_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed. The arithmetic needs no torchvision, though the package imports it, and its
    wheels do not fit every build of torch; so it is stood in for."""
    if "torchvision" not in modules:
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            monkeypatch.setitem(modules, f"torchvision{name}", MagicMock())
    fidelity = pytest.importorskip("torch_fidelity.metric_fid", reason="torch-fidelity is not installed")
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    first, second = waves(80, 20, 0.7), waves(90, 20, 0.2)
    statistics = [fidelity.fid_features_to_statistics(each) for each in (first, second)]
    theirs = fidelity.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert frechet(first, second) == pytest.approx(theirs, rel=1e-6)
    found = kid.kid_features_to_metric(first, second[:80], kid_subsets=1, kid_subset_size=80, verbose=False)
    theirs = found["kernel_inception_distance_mean"]
    assert kernel(first, second[:80]) == pytest.approx(theirs, rel=1e-9)


class Mean(torch.nn.Module):
    """Means of the four quarters of each colour, b 12, of 8-bit levels."""

    def forward(self, levels: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(levels.float() / 255, 2)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "network.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.trace(Mean(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).save(str(path))
    return path


def folder(path: Path, seed: int, count: int = 35) -> Path:
    path.mkdir()
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        levels = torch.randint(256, (4, 5, 3), generator=generator).to(torch.uint8).numpy()
        Image.fromarray(levels).save(path / f"{index:02}.png")
    (path / "notes.txt").write_text("no picture")
    return path


def test_pictures_are_measured_by_a_network_of_the_users(network: Path, tmp_path: Path) -> None:
    first, second = folder(tmp_path / "a", 0), folder(tmp_path / "b", 1)
    rows = features(first, load_network(network, torch.device("cpu")), size=16)
    assert rows.shape == (35, 12)
    whole = np.asarray(Image.open(first / "00.png").resize((16, 16), Image.Resampling.BICUBIC)) / 255
    assert rows[0, 0].item() == pytest.approx(whole[:8, :8, 0].mean(), abs=1e-6)
    words = ["evaluate", "distance", str(first), str(second), "--network", str(network), "--size", "16"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert done.stdout.startswith("35 and 35 rows of 12 features\nFID ")
    assert "KID " in done.stdout


def test_features_from_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", FIRST.numpy())
    save_file({"features": SECOND, "more": torch.zeros(3)}, tmp_path / "two.safetensors")
    assert torch.equal(read(tmp_path / "one.npz"), FIRST)
    assert torch.equal(features(tmp_path / "two.safetensors", None), SECOND)
    words = ["evaluate", "distance", str(tmp_path / "one.npz"), str(tmp_path / "two.safetensors")]
    assert "FID 1.66606\nKID 0.187835" in CliRunner().invoke(app, words).stdout
    with pytest.raises(DataError, match="of 12 and of 20 numbers"):
        check_same(FIRST.shape, (4, 20))


def test_what_cannot_be_measured_is_said(network: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "flat.npz", np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    np.savez(tmp_path / "objects.npz", np.array([{"a": 1}], dtype=object))
    for name, message in (
        ("flat.npz", r"should hold one array .* holds arr_0 \(3,\)"),
        ("broken.npz", "holds no features"),
        ("objects.npz", "holds no features"),
        ("broken.safetensors", "holds no features"),
        ("none.npz", "cannot read the features"),
    ):
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither a folder"):
        features(tmp_path / "none", None)
    with pytest.raises(DataError, match="so a network is needed"):
        features(tmp_path / "empty", None)
    with pytest.raises(DataError, match="holds no pictures"):
        features(tmp_path / "empty", load_network(network, torch.device("cpu")))
    (tmp_path / "empty" / "a.png").write_bytes(b"no")
    with pytest.raises(DataError, match="is no picture"):
        features(tmp_path / "empty", lambda levels: levels)
    with pytest.raises(WeightsError, match="no network at"):
        load_network(tmp_path / "none.pt", torch.device("cpu"))
    with pytest.raises(WeightsError, match="is no TorchScript network"):
        load_network(tmp_path / "broken.npz", torch.device("cpu"))
    with pytest.raises(DataError, match="no row of features for each"):
        features(folder(tmp_path / "c", 0, 2), lambda levels: levels[:1], size=8)
