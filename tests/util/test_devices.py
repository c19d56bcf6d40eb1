import pytest
import torch

from limner.errors import ConfigError
from limner.util.devices import autocast, pick_device, pick_precision


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")


def test_named_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match="cuda:1"):
        pick_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "", "cpu:one"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown device"):
        pick_device(name)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "expected"),
    [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_cpu_computes_in_bfloat16_only_with_units_for_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert pick_precision(torch.device("cpu")) == expected


def test_torch_can_be_asked_about_this_cpu() -> None:
    """The two questions are private names of torch: a release that drops them must be noticed here."""
    assert pick_precision(torch.device("cpu")) in (torch.float32, torch.bfloat16)


def test_autocast_changes_products_and_nothing_else() -> None:
    cpu = torch.device("cpu")
    a = torch.ones(2, 2)
    with autocast(cpu, torch.float32):
        assert (a @ a).dtype == torch.float32
    with autocast(cpu, torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        assert (a + a).dtype == torch.float32
    with autocast(cpu):
        assert (a @ a).dtype == pick_precision(cpu)
    with pytest.raises(ConfigError, match="float16"):
        autocast(cpu, torch.float16)


@pytest.mark.gpu
def test_cuda_products_run_in_the_picked_precision() -> None:
    device = pick_device("cuda")
    a = torch.ones(2, 2, device=device)
    with autocast(device):
        assert (a @ a).dtype == pick_precision(device)
