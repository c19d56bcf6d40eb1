"""What a weights file says about itself."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from limner.errors import WeightsError
from limner.weights.files import save
from limner.weights.header import fingerprint, listed, network_config, read_metadata

PATH = Path("some.safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    width: int
    depth: int = 2

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width {self.width} is too small")
        _ = self.width % self.depth


def test_metadata_comes_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save({"w": torch.zeros(2)}, path, {"objects": '["cat"]', "näme": "Löwe"})
    assert read_metadata(path) == {"objects": '["cat"]', "näme": "Löwe"}


def test_a_file_without_metadata_has_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save({"w": torch.zeros(2)}, path, {})
    assert read_metadata(path) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", b"\xff" * 40, (10).to_bytes(8, "little") + b'{"a": 1', b"\x02" + b"\0" * 7 + b"[]"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_metadata(path)


def test_a_header_nested_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_metadata(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.safetensors: No such file"):
        read_metadata(tmp_path / "none.safetensors")


def test_lists() -> None:
    assert listed({"objects": '["cat", "dog"]'}, "objects", PATH) == ("cat", "dog")
    for said in ("cat", '"cat"', "[1]", "[" * 100_000):
        with pytest.raises(WeightsError, match="'objects'"):
            listed({"objects": said}, "objects", PATH)
    with pytest.raises(WeightsError, match="'objects'"):
        listed({}, "objects", PATH)


def test_network_config() -> None:
    metadata = {"network": json.dumps({"Net": {"width": 8}})}
    assert network_config(metadata, "Net", Shape, PATH) == Shape(width=8)
    most = {"network": json.dumps({"Net": {"width": 10_000}})}
    assert network_config(most, "Net", Shape, PATH).width == 10_000


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"Other": {"width": 8}}, "holds the network Other; here a Net is needed"),
        ({}, "holds a network without a name; here a Net is needed"),
        ({"": {"width": 8}}, "holds a network without a name; here a Net is needed"),
        ({"Net": {"width": 8, "heads": 2}}, "a Net has no heads"),
        ({"Net": {}}, "cannot be built.*width"),
        ({"Net": {"width": 0}}, "width 0 is too small"),
        ({"Net": {"width": 8, "depth": 0}}, "cannot be built: .*zero"),
        ({"Net": {"width": 10_001}}, "width of a Net is a whole number from 0 to 10000, got 10001"),
        ({"Net": {"width": 8, "depth": -1}}, "depth of a Net is a whole number from 0 to 10000, got -1"),
        ({"Net": {"width": 8.0}}, "got 8.0"),
        ({"Net": {"width": True}}, "got True"),
        ({"Net": {"width": "8"}}, "got '8'"),
        ([1], "here a Net is needed"),
    ],
)
def test_network_config_is_strict(network: object, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        network_config({"network": json.dumps(network)}, "Net", Shape, PATH)


def test_fingerprint_is_that_of_all_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"a")
    two.write_bytes(b"bc")
    assert fingerprint([one, two]) == "ba7816bf8f"  # SHA-256 of "abc", FIPS 180-2, appendix B.1
    with pytest.raises(WeightsError, match="cannot read"):
        fingerprint([tmp_path / "3"])
