"""Networks from files: strictly, in float32, without filling memory first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from limner.errors import WeightsError
from limner.weights.files import load, packed, read, save


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(3, 4)
        self.out = nn.Linear(4, 2)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"words.weight": (3, 4), "out.weight": (2, 4), "out.bias": (2,)}
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def test_round_trip_in_float32_and_ready_to_be_asked(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "net.safetensors"
    save(tensors(), path, {})
    net = load(Net, path)
    assert {name: p.dtype for name, p in net.named_parameters()} == dict.fromkeys(tensors(), torch.float32)
    assert all(torch.equal(p, tensors()[name].float()) for name, p in net.named_parameters())
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out.bias": None}, "1 missing: out.bias"),
        ({"more": torch.zeros(1)}, "1 unknown: more"),
        ({"out.bias": torch.zeros(3)}, r"1 of another shape: out.bias is \(3,\), not \(2,\)"),
        ({f"more.{i}": torch.zeros(1) for i in range(7)}, "7 unknown: .* and 2 more"),
    ],
)
def test_anything_else_than_the_network_is_refused(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    path = tmp_path / "net.safetensors"
    save({k: v for k, v in {**tensors(), **change}.items() if v is not None}, path, {})
    with pytest.raises(WeightsError, match=f"does not fit a Net.*{message}"):
        load(Net, path)


def test_broken_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with pytest.raises(WeightsError, match="no weights at"):
        load(Net, path)
    save(tensors(), path, {})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        load(Net, path)


def test_loading_does_not_import_the_compiler(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save({"weight": torch.zeros(3, 4)}, path, {})
    code = (
        "import sys, torch; from pathlib import Path; from limner.weights.files import load;"
        f"load(lambda: torch.nn.Embedding(3, 4), Path({str(path)!r}));"
        "print(*[name for name in ('sympy', 'torch._dynamo') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    (tmp_path / "w.partial").touch(mode=0o600)  # left behind by a process that died
    before = os.umask(0o022)
    try:
        save({"a": torch.zeros(1)}, tmp_path / "w.safetensors", {})
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o644


def test_packed_weights_take_a_byte_a_number_and_come_back_within_half_a_step(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    scales = torch.logspace(-4, 1, 64)[:, None]  # rows of very different size keep their own precision
    wide = torch.randn(64, 4, 16, generator=generator) * scales[:, :, None]
    given = {"wide": wide, "zero": torch.zeros(64, 64), "bias": torch.randn(5000, generator=generator)}
    save(packed(given), tmp_path / "small.safetensors", {"kept": "yes"})
    back = read(tmp_path / "small.safetensors")
    assert sorted(back) == sorted(given)
    step = wide.abs().amax((1, 2), keepdim=True) / 127
    assert ((back["wide"] - wide).abs() <= step * 0.5001).all()
    assert torch.equal(back["zero"], given["zero"])
    assert torch.equal(back["bias"], given["bias"].bfloat16())  # vectors are few, and stay as they were
    assert (tmp_path / "small.safetensors").stat().st_size < 4096 + 4096 + 2 * 5000 + 2 * 64 * 4 + 700
    assert torch.equal(read(tmp_path / "small.safetensors")["wide"], back["wide"])
