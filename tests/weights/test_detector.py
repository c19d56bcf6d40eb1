import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from limner.errors import WeightsError
from limner.models.detector import Calibration, Detector, DetectorConfig, Names
from limner.weights import detector as module
from limner.weights.detector import calibrate, load_detector, shipped
from limner.weights.files import save

NAMES = Names(
    objects=("apple", "cat"),
    letters=("A",),
    colours=("red", "blue"),
    styles=("flat",),
    backgrounds=("red", "sky"),
)
SHAPE = DetectorConfig(size=32, channels=8, growth=8, levels=2, embedding=4)


def written(path: Path, **changed: object) -> Detector:
    """A detector with random weights and its file; `changed` are entries of the header, None for left out."""
    model = Detector(SHAPE, NAMES)
    model.initialize(torch.Generator().manual_seed(0))
    entries = {"network": {"Detector": asdict(SHAPE)}, **asdict(NAMES), **changed}
    header = {key: json.dumps(value) for key, value in entries.items() if value is not None}
    save(model.state_dict(), path, header)
    return model.eval()


def test_a_detector_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    model = written(path)
    loaded = load_detector(path)
    assert (loaded.config, loaded.names) == (SHAPE, NAMES)
    assert not loaded.training
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for mine, its in zip(
        model.detect(pixels, threshold=0.0), loaded.detect(pixels, threshold=0.0), strict=True
    ):
        assert (mine.objects, mine.letters) == (its.objects, its.letters)
        assert torch.equal(mine.features, its.features)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"objects": None}, "does not say its 'objects'"),
        ({"letters": "A"}, "'letters' in the header should be a list of words"),
        ({"objects": ["apple"]}, r"1 of another shape: prototypes is \(3, 4\), not \(2, 4\)"),
        ({"network": {"Upscaler": {"factor": 4}}}, "holds the network Upscaler; here a Detector is needed"),
        ({"network": {"Detector": asdict(SHAPE) | {"depth": 3}}}, "a Detector has no depth"),
        ({"network": {"Detector": asdict(SHAPE) | {"levels": 9}}}, "levels are 1 to 8, got 9"),
        ({"network": {"Detector": asdict(SHAPE) | {"levels": 3}}}, "missing"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    path = tmp_path / "weights.safetensors"
    written(path, **changed)
    with pytest.raises(WeightsError, match=said):
        load_detector(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot read the weights .*none\.safetensors"):
        load_detector(tmp_path / "none.safetensors")


def test_a_calibration_is_kept_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    written(path)
    raw = load_detector(path)
    assert raw.calibration == Calibration()
    calibrate(path, Calibration(slope=0.5, shift=1.5))
    loaded = load_detector(path)
    assert loaded.calibration == Calibration(slope=0.5, shift=1.5)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    (before,), (after,) = (one.detect(pixels, threshold=0.0) for one in (raw, loaded))
    assert len(before.objects) == len(after.objects) > 1
    for old, new in zip(before.objects, after.objects, strict=True):
        assert (old.label, old.box) == (new.label, new.box)
        logit = torch.tensor(old.score, dtype=torch.float64).logit()
        assert new.score == pytest.approx(float((0.5 * logit + 1.5).sigmoid()), rel=1e-5)


@pytest.mark.parametrize("told", ["no", "[1]", '{"slope": 1}', '{"slope": -1, "shift": 0}'])
def test_a_broken_calibration_is_refused(tmp_path: Path, told: str) -> None:
    path = tmp_path / "weights.safetensors"
    written(path, calibration=json.loads(told) if told != "no" else "no")
    with pytest.raises(WeightsError, match="the calibration in the header is broken"):
        load_detector(path)


def test_the_detector_that_comes_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "detector.safetensors")
    with pytest.raises(WeightsError, match="the detector of the package is not there"):
        shipped()
    written(tmp_path / "detector.safetensors")
    assert load_detector(shipped()).names == NAMES
