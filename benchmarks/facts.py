"""What every benchmark prints: our figure, the peer's, their ratio, and the machine that both ran on."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

SRC = str(Path(__file__).resolve().parents[1] / "src")


def machine(device: str = "cpu") -> str:
    """Processor, cores, threads, versions: one line."""
    chip = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        chip = names[0] if names else chip
    if device.startswith("cuda"):
        chip = f"{torch.cuda.get_device_name(device)}, {chip}"
    load = os.getloadavg()[0]
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"{chip}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load {load:.1f}, "
        f"Python {python}, torch {version('torch')}"
    )


def seconds(call: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Median wall time of `call`, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def report(claim: str, ours: float, peer: float, unit: str, peer_name: str, *, more_is_better: bool) -> None:
    """Three lines: ours, the peer's, and how many times better ours is."""
    ratio = ours / peer if more_is_better else peer / ours
    print(claim)
    print(f"  limner  {ours:10.4g} {unit}")
    print(f"  peer    {peer:10.4g} {unit}  ({peer_name})")
    print(f"  ratio   {ratio:10.3g} times {'as many' if more_is_better else 'as fast'}")
