"""How fast a run is, how much of the machine it uses, and how long it waits for its data."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

TIMES = ("pictures/s", "FLOP/s", "of peak", "waiting")  # what differs from one run to the next
RECENT = 20  # steps that a speed is taken over
ROUNDS = 5
SIDES = {"cpu": 512}  # of the matrices that the peak is measured with
LARGE = 8192  # on accelerators
ATEN = torch.ops.aten


def _forward(q: Tensor, k: Tensor, v: Tensor, *_: object, out_val: object, **__: object) -> int:
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))


def _backward(out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object, out_val: object, **__: object) -> int:
    return int(sdpa_backward_flop_count(out.shape, q.shape, k.shape, v.shape))


FORMULAS: dict[Any, Callable[..., int]] = {  # attention on the CPU is what torch's own list lacks
    **flop_registry,
    ATEN._scaled_dot_product_flash_attention_for_cpu: _forward,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


class Counter(TorchDispatchMode):
    """Counts floating-point operations by torch's formulas, and changes no bit of what is computed.

    torch's own FlopCounterMode takes operations apart to count them, and their sums come out another way.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


@lru_cache
def peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two square matrices: the best of a few, measured once, in a moment."""
    side = SIDES.get(device.type, LARGE)
    left = torch.full((side, side), 0.5, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        float((left @ left)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


class Speed:
    """The clocks of a run: told when a step begins to wait for data, and when it is done."""

    def __init__(self, micros: int = 1, peak: float = 0.0) -> None:
        self.peak = peak  # FLOP/s of this machine, 0 where it is not known
        self.micros = micros  # micro-batches of a step in this process
        self.flops = 0  # of the gradients of one of them, once counted
        self.ends = [time.perf_counter()]
        self.waits: list[float] = []
        self._wait = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For data."""
        start = time.perf_counter()
        yield
        self._wait += time.perf_counter() - start

    @contextmanager
    def counting(self) -> Iterator[None]:
        """The floating-point operations of the first micro-batch that runs inside; the others run free."""
        if self.flops:
            yield
            return
        with Counter() as counter:
            yield
        self.flops = counter.total

    def tick(self) -> None:
        """A step is done."""
        self.ends = [*self.ends[-RECENT:], time.perf_counter()]
        self.waits = [*self.waits[1 - RECENT :], self._wait]
        self._wait = 0.0

    @property
    def seconds(self) -> float:
        """Of a step, over the recent ones."""
        return max(1e-9, (self.ends[-1] - self.ends[0]) / max(1, len(self.ends) - 1))

    @property
    def waited(self) -> float:
        """Share of the recent steps' time that went by waiting for data, from 0 to 1."""
        return min(1.0, sum(self.waits) / max(1, len(self.waits)) / self.seconds)

    @property
    def flops_per_second(self) -> float:
        """Achieved in this process, counted over whole steps; 0 before the first."""
        return self.flops * self.micros / self.seconds

    def told(self, pictures: int, processes: int) -> dict[str, float]:
        """For the log, under the names in `TIMES`: `pictures` a step, in so many processes."""
        told = (pictures / self.seconds, self.flops_per_second * processes, self.used, self.waited)
        return dict(zip(TIMES, told, strict=True))

    @property
    def used(self) -> float:
        """Share of the measured peak, 0 where that is not known."""
        return self.flops_per_second / self.peak if self.peak else 0.0
