"""An objective of a few numbers, for what has to be tried many times and in several processes."""

import os
import socket
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from limner.train import loop as loop_file
from limner.train.config import LoopConfig, RunConfig
from limner.train.loop import fit
from limner.train.objectives.denoise import DenoiseConfig
from limner.train.optim import OptimConfig


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).tanh()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(7), requires_grad=False)

    def initialize(self, generator: torch.Generator) -> None:
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.3, generator=generator)
            elif p.ndim == 1 and p.requires_grad:
                nn.init.zeros_(p)

    def encode(self, x: Tensor) -> Tensor:
        """Not `forward`: objectives call what they like."""
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x * self.scale * self.frozen[0]


class Toy:
    """Learns the squares of its inputs."""

    def __init__(self) -> None:
        self.model = Net()
        self.read: list[tuple[int, int]] = []

    def batch(self, count: int, seed: int, index: int = 0) -> tuple[Tensor, ...]:
        self.read.append((count, index))
        return (torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)),)

    def loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        y = self.model.encode(batch[0])
        return {"square": (y[:, :5] - batch[0].square()).square().mean(), "size": 0.01 * y.square().mean()}

    def blocks(self) -> list[nn.Module]:
        return list(self.model.blocks)

    def draw(self, model: Net) -> Image.Image:
        level = int(model.encode(torch.ones(1, 5)).detach().abs().sum().clamp(0, 255))
        return Image.new("RGB", (4, 4), (level,) * 3)

    def published(self) -> set[str]:
        return {name for name, p in self.model.named_parameters() if p.requires_grad}

    def header(self) -> dict[str, str]:
        return {"toy": "1"}


def toy_run(*, images: int = 24, batch: int = 4, micros: int = 1, **loop: object) -> RunConfig:
    """Steps of a millisecond. Gradients are never clipped, so sums of two are the same in any order."""
    settings = {"seed": 3, "device": "cpu", "precision": "float32", "sheet_seconds": 1e9}
    settings |= {"checkpoint_seconds": 1e9, "ema": 0.1, **loop}
    return RunConfig(
        name="toy",
        loop=LoopConfig(images=images, batch=batch, micros=micros, **settings),  # type: ignore[arg-type]
        optim=OptimConfig(clip=1e9, warmup=8),
        denoise=DenoiseConfig(),
    )


def in_processes(count: int, work: Callable[[], object]) -> list[int | None]:
    """Exit codes of `count` processes that do `work` as torchrun starts them; forked, which is quick."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def child(rank: int) -> None:
        torch.set_num_threads(1)
        if count > 1:
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"}
        work()

    with warnings.catch_warnings():  # Python 3.12 warns of threads; none here holds a lock
        warnings.simplefilter("ignore", DeprecationWarning)
        fork = get_context("fork")
        children = [fork.Process(target=child, args=(rank,), daemon=True) for rank in range(count)]
        for process in children:
            process.start()
    for process in children:
        process.join(100)
        assert process.exitcode is not None, "a process hangs"
    return [process.exitcode for process in children]


def train_toy(run: RunConfig, folder: Path, *, resume: bool = False) -> None:
    """A whole run, in a process of its own."""
    loop_file.build = lambda run, device: Toy()  # type: ignore[assignment]
    for _ in fit(run, folder, resume=resume):
        pass
