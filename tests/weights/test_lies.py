"""Safetensors headers that lie: one clear error each, before a byte of the numbers is touched."""

import json
from pathlib import Path

import pytest

from limner.errors import WeightsError
from limner.weights.files import read
from limner.weights.header import read_header

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(path: Path, header: object, data: bytes = bytes(8)) -> Path:
    said = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(said).to_bytes(8, "little") + said + data)
    return path


def test_a_good_one(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", {"w": GOOD, "__metadata__": {"k": "v"}})
    assert read(path)["w"].tolist() == [0, 0]
    assert read_header(path).metadata == {"k": "v"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"w": GOOD, "v": GOOD}, "overlap or leave a gap"),
        ({"w": GOOD, "v": {**GOOD, "data_offsets": [4, 12]}}, "overlap or leave a gap"),
        ({"w": {**GOOD, "data_offsets": [8, 16]}}, "overlap or leave a gap"),
        ({"w": {**GOOD, "shape": [2**62, 2**62]}}, "do not fit together"),
        ({"w": {**GOOD, "shape": [-2]}}, "do not fit together"),
        ({"w": {**GOOD, "shape": [True]}}, "do not fit together"),
        ({"w": {**GOOD, "shape": [4], "data_offsets": [0, 16]}}, "take 16 bytes, but 8 follow"),
        ({"w": {**GOOD, "shape": [1], "data_offsets": [0, 4]}}, "take 4 bytes, but 8 follow"),
        ({"w": {**GOOD, "dtype": "F64"}}, "do not fit together"),
        ({"w": {**GOOD, "dtype": "X9"}}, "do not fit together"),
        ({"w": {"dtype": "F32"}}, "do not fit together"),
        ({"w": [1]}, "do not fit together"),
        ({"../../w": GOOD}, "is no name for a tensor"),
        ({"a\\..\\w": GOOD}, "is no name for a tensor"),
        ({"a\nb": GOOD}, "is no name for a tensor"),
        ({"w": GOOD, "__metadata__": {"a": 1}}, "metadata is not text"),
        ([], "not a table"),
        (b'{"w":%s,"w":%s}' % ((json.dumps(GOOD).encode(),) * 2), "stands there twice"),
        (b"[" * 100_000, "nested too deep"),
        (b"{" + b" " * 50, "not a whole safetensors file"),
        (b"\xff\xfe\x00\x00", "not a whole safetensors file"),
    ],
)
def test_lies(tmp_path: Path, header: object, message: str) -> None:
    path = written(tmp_path / "a.safetensors", header)
    with pytest.raises(WeightsError, match=message) as caught:
        read(path)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_a_header_of_100_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((100_000_000).to_bytes(8, "little"))
        file.truncate(120_000_000)  # sparse
    with pytest.raises(WeightsError, match="a header of 100000000 bytes"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"hi", b"a text, and no weights", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_other_files_are_told_as_what_they_are_not(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="is no safetensors file"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_absurd_lengths(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(WeightsError, match="a header of"):
        read(path)


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.PTH", "a.bin"])
def test_pickles_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=r"is a pickle: opening it can run any program.*limner convert"):
        read(written(tmp_path / name, {"w": GOOD}))


@pytest.mark.parametrize("start", [b"PK\3\4", b"\x80\2}q", b"\x80\4\x95\x10"])
def test_pickles_by_what_they_begin_with(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(start + bytes(60))
    with pytest.raises(WeightsError, match="is a pickle"):
        read(tmp_path / "a.safetensors")
