"""Where the numbers are computed, and in which precision.

The built-in networks are kept in float32, and bfloat16, where it pays, is only the autocast of their matrix
products; published models are loaded in it there, but for their autoencoder.
It pays on CUDA and on CPUs with bfloat16 units (AMX or AVX512-BF16). Elsewhere the CPU emulates it: measured
on two cores with AVX512 alone, a bfloat16 product ran at 50 GFLOP/s where float32 ran at 170.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from limner.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`: "cpu", "cuda", "cuda:1", "mps", or "auto": CUDA if present, else CPU.

    Raises ConfigError for a name that torch does not know and for a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f'unknown device "{name}"; use "auto", "cpu", "cuda", "cuda:N" or "mps"') from error
    if not _present(device):
        raise ConfigError(f'this machine has no device "{name}"; use "auto" or "cpu"')
    return device


def _present(device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    return device.type == "mps" and torch.backends.mps.is_available()


def pick_precision(device: torch.device) -> torch.dtype:
    """The type in which matrix products are fastest at no visible cost: torch.bfloat16 or torch.float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, precision: torch.dtype | None = None) -> AbstractContextManager[object]:
    """A context in which matrix products run in `precision`; None asks `pick_precision`; float32: no change.

    Raises ConfigError for a type other than float32 and bfloat16.
    """
    precision = pick_precision(device) if precision is None else precision
    if precision == torch.float32:
        return nullcontext()
    if precision == torch.bfloat16:
        return torch.autocast(device.type, dtype=precision)
    raise ConfigError(f"cannot compute in {precision}; use torch.float32 or torch.bfloat16")
