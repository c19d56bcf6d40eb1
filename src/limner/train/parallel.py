"""Several processes that train one network: weights, averages and moments lie spread over them (FSDP2).

    torchrun --nproc-per-node 8 --no-python limner train run.toml

The network knows nothing of it: sharding is applied from outside, block by block.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from limner.errors import ConfigError
from limner.util.devices import autocast

T = TypeVar("T")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered where it lies spread over processes; then each of them has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(target: Tensor, value: Tensor) -> Tensor:
    """`value`, which each process has whole, laid out over the processes as `target` is."""
    if not isinstance(target, DTensor):
        return value
    mesh, placements = target.device_mesh, target.placements
    return distribute_tensor(value.to(target.device), mesh, placements, src_data_rank=None)


def size() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, counted from 0."""
    return int(os.environ.get("RANK", "0"))


def restarted() -> bool:
    """Whether torchrun has started this run again, from its first line, after a process was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def by_block(blocks: Sequence[nn.Module], *, checkpointing: bool, compiled: bool) -> None:
    """Change how blocks are computed, in place, and not what: `checkpointing` forgets what lies inside each
    and computes it again for the gradient (Chen et al. 2016); `compiled` compiles each by itself."""
    for block in blocks:
        forward: Callable[..., Any] = block.forward
        if checkpointing:
            forward = partial(checkpoint, forward, use_reentrant=False)
        if compiled:
            forward = torch.compile(forward)
        block.forward = forward  # hooks of sharding stay around it


class Root(nn.Module):
    """What FSDP takes for the network's forward: whatever is run while the weights outside blocks are whole.

    An objective may call any method of its network, not only `forward`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


class Team:
    """The processes of a run as one of them sees them; a run of one process is a team of one."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.rank, self.size = device, rank(), size()
        self.first = self.rank == 0
        self.root: Root | None = None
        self.precision = torch.float32  # of the weights when they are gathered
        self.scalars: list[nn.Parameter] = []
        # Checkpoints are written while steps go on: what their writers tell each other keeps to itself.
        self.beside = dist.new_group(backend="gloo") if self.size > 1 else None

    def mine(self, micros: int) -> range:
        """The micro-batches of a step that are this process's. Raises ConfigError when some would idle."""
        if micros % self.size:
            raise ConfigError(
                f"{self.size} processes share a step of loop.micros = {micros}: make it a multiple of "
                f"{self.size}"
            )
        return range(self.rank, micros, self.size)

    def spread(self, model: nn.Module, blocks: Sequence[nn.Module], precision: torch.dtype) -> None:
        """Spread the parameters of `model` over the processes, in place; a team of one leaves it alone.

        Each block is gathered when it runs, everything else for the whole step. Blocks compute in
        `precision`; gradients are summed in float32. Scalars stay whole in each process.
        """
        if self.size == 1:
            return
        self.scalars = [p for p in model.parameters() if p.ndim == 0]
        for p in model.parameters():
            p.data = p.data.contiguous()  # FSDP takes nothing else
        self.root, self.precision = Root(model), precision
        mesh = init_device_mesh(self.device.type, (self.size,))
        low = None if precision == torch.float32 else precision
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for part in (*blocks, self.root):
            fully_shard(part, mesh=mesh, mp_policy=policy, ignored_params=set(self.scalars))
            module = cast(FSDPModule, part)  # which it is now
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no mean
            module.set_gradient_divide_factor(1.0)  # losses are already divided by the micro-batches

    def run(self, forward: Callable[[], T]) -> T:
        """`forward()` with the weights in place; its gradients may be asked for afterwards."""
        result: T = forward() if self.root is None else self.root(forward)
        return result

    def ask(self, question: Callable[[], T]) -> T:
        """`question()` with the weights in place, and without gradients; each process has to ask the same."""
        try:
            with torch.no_grad(), autocast(self.device, self.precision):
                return self.run(question)
        finally:
            if self.root is not None:
                cast(FSDPModule, self.root).reshard()

    def gather_gradients(self) -> None:
        """Sum what FSDP does not: the gradients of scalars."""
        for p in self.scalars:
            if p.grad is not None:
                dist.all_reduce(p.grad)

    def sums(self, values: dict[str, float]) -> dict[str, float]:
        """Each value summed over the processes, which have the same names."""
        if self.size == 1:
            return values
        told = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(told)
        return dict(zip(values, told.tolist(), strict=True))

    def agree(self, *wishes: bool) -> list[bool]:
        """What the first process wishes: clocks differ, and all have to do the same."""
        if self.size == 1:
            return list(wishes)
        told = torch.tensor(wishes, dtype=torch.uint8)
        dist.broadcast(told, 0)
        return [bool(wish) for wish in told]

    def gather(self, mine: list[str]) -> list[str]:
        """The lists of all processes one after another."""
        if self.size == 1:
            return mine
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, mine)
        return [line for lines in told for line in lines]

    def tell(self, said: T) -> T:
        """What the first process says."""
        if self.size == 1:
            return said
        told = [said]
        dist.broadcast_object_list(told, 0)
        return told[0]


@contextmanager
def team(device: torch.device) -> Iterator[Team]:
    """Join the processes that torchrun has started, and leave them in order.

    Where the run ends well, all wait for each other before any takes its connections down; where one fails,
    it goes at once, and the others fail for want of it.
    """
    if size() == 1 or dist.is_initialized():
        yield Team(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(device)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """The accelerator of this process, where torchrun has started one for each."""
    if size() > 1 and str(device) == "cuda":  # not where one was named
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device
