"""Pickles: their tensors come out equal, and nothing that they ask for is done."""

import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limner.errors import WeightsError
from limner.weights import files, unpickle
from limner.weights.unpickle import copy_tensors


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    big = torch.randn(6, 4, generator=generator)
    return {
        "plain": big,
        "turned": big.T,
        "part": big[2:4, 1:3],
        "spread": torch.ones(1, 3).expand(4, 3),
        "number": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "half": big.half(),
        "brain": big.bfloat16(),
        "flags": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),  # type: ignore[dict-item]
    }


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize(
    "wrap", [dict, OrderedDict, lambda d: {"state_dict": d, "epoch": 3, "callbacks": {}}]
)
def test_every_tensor_comes_out_equal(
    tmp_path: Path, wrap: Callable[[dict[str, torch.Tensor]], object], as_zip: bool
) -> None:
    path, out = tmp_path / "old.ckpt", tmp_path / "new.safetensors"
    torch.save(wrap(tensors()), path, _use_new_zipfile_serialization=as_zip)
    skipped = copy_tensors(path, out)
    assert skipped in ([], ["epoch", "callbacks"])
    read = files.read(out)
    assert list(read) == list(tensors()) or set(read) == set(tensors())
    for name, tensor in tensors().items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.safetensors", "old.ckpt"]


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


class Eval(Evil):
    def __reduce__(self) -> tuple[object, ...]:
        return eval, (f"open({str(self.mark)!r}, 'w')",)


class Deep(Evil):
    def __reduce__(self) -> tuple[object, ...]:
        return getattr, ("x", "upper")


@pytest.mark.parametrize("kind", [Evil, Eval, Deep])
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, kind: type[Evil], as_zip: bool) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "was-here"
    content = {"state_dict": {"w": torch.ones(2), "x": kind(mark)}}
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(WeightsError, match=r"evil\.pt cannot be converted: it asks for \S+, which is not on"):
        copy_tensors(path, tmp_path / "out.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pt"]


def zipped(path: Path, program: bytes, compress: int = zipfile.ZIP_STORED, **more: bytes) -> None:
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, content in more.items():
            archive.writestr(f"archive/data/{name[1:]}", content)


def programmed(text: str) -> bytes:
    """A program of opcodes: GLOBAL lines and the like, protocol 0."""
    return text.encode("latin-1")


STORAGE = "(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{count}\ntQ"
VIEW = "(S'w'\nctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + "I{start}\n({shape}t({strides}tI00\nNtRd."


def view(count: int = 4, start: int = 0, shape: str = "I4\n", strides: str = "I1\n") -> bytes:
    return programmed(VIEW.format(count=count, start=start, shape=shape, strides=strides))


def test_the_hand_made_program_is_a_good_one(tmp_path: Path) -> None:
    zipped(tmp_path / "a.pt", view(), _0=struct.pack("<4f", 1, 2, 3, 4))
    copy_tensors(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert files.read(tmp_path / "a.safetensors")["w"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (view(start=1), "reaches beyond its numbers"),
        (view(shape="I-4\n"), "of the shape"),
        (view(shape="I99999999999999999999\n"), "of the shape"),
        (view(shape="I1000000\nI1000000\n", strides="I0\nI0\n"), "far larger than the file"),
        (view(count=5), "missing or of another length"),
        (programmed("cbuiltins\nexec\n(S'x'\ntR."), r"builtins\.exec"),
        (programmed("cos\nsystem\n(S'x'\ntR."), r"os\.system"),
        (programmed("ctorch._utils\n_rebuild_tensor_v2.__globals__\n."), "__globals__"),
        (programmed("Pother\n."), "not a storage"),
        (b"(" * 1000 + b"l" * 999 + b".", "no table|broken"),
        (b"", "broken"),
        (view()[:-20], "broken"),
        (b"\x80\x02]q\x00.", "no table of tensors"),
    ],
)
def test_programs_that_lie(tmp_path: Path, program: bytes, message: str) -> None:
    zipped(tmp_path / "a.pt", program, _0=bytes(16))
    assert re.search(message, str(unpickle._answer(tmp_path / "a.pt", tmp_path / "out")["error"]))


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02Nr\xff\xff\xff\xff.",  # a memo of four billion entries
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes without end
    ],
)
def test_programs_that_want_all_memory(tmp_path: Path, program: bytes) -> None:
    zipped(tmp_path / "a.pt", program)
    with pytest.raises(WeightsError, match=r"takes too much memory|is broken"):
        copy_tensors(tmp_path / "a.pt", tmp_path / "out.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_zip_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    zipped(tmp_path / "a.pt", view(count=25_000_000), zipfile.ZIP_DEFLATED, _0=bytes(100_000_000))
    assert (tmp_path / "a.pt").stat().st_size < 200_000
    with pytest.raises(WeightsError, match="packed or larger inside"):
        copy_tensors(tmp_path / "a.pt", tmp_path / "out.safetensors")


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.97])
def test_truncated_files(tmp_path: Path, as_zip: bool, share: float) -> None:
    path = tmp_path / "a.pt"
    torch.save(tensors(), path, _use_new_zipfile_serialization=as_zip)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "error" in unpickle._answer(path, tmp_path / "out.safetensors")


def test_endless_programs_run_out_of_time(tmp_path: Path) -> None:
    pair = b"".join(b"(" + b"h%c" % i * 2 + b"tq%c" % (i + 1) for i in range(60))  # each holds the last twice
    zipped(
        tmp_path / "a.pt", b"\x80\x02)q\x00" + pair + b"}(h\x3cK\x01u.", _0=b""
    )  # hashing it takes 2**60 steps
    with pytest.raises(WeightsError, match="reading takes over 2 s"):
        copy_tensors(tmp_path / "a.pt", tmp_path / "out.safetensors", seconds=2.0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_neither_a_missing_file_nor_another_kind(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights at"):
        copy_tensors(tmp_path / "a.pt", tmp_path / "b.safetensors")
    for content in (b"", b"hello, world", pickle.dumps({"a": 1}), b"\x80"):
        (tmp_path / "a.pt").write_bytes(content)
        assert "error" in unpickle._answer(tmp_path / "a.pt", tmp_path / "b.safetensors")


def test_the_child_imports_no_torch() -> None:
    code = "import sys, limner.weights.unpickle; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
