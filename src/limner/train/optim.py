"""Optimisers: Muon for the matrices inside blocks, AdamW for the rest, and the learning rate over a run.

Both keep their moments in float32; optimisers with 8-bit moments are not offered.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from limner.train.parallel import like, whole

SCHEDULES = ("trapezoid", "constant", "linear", "cosine")
FUSED = ("cpu", "cuda", "mps", "xpu")  # where AdamW is one kernel


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Settings of the optimiser."""

    muon_lr: float = 2e-3  # step of the matrices inside blocks; 0 gives them to AdamW too
    adam_lr: float = 1.5e-3  # step of everything else
    momentum: float = 0.95  # of Muon
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW
    weight_decay: float = 0.01  # of matrices, both optimisers
    clip: float = 1.0  # global gradient norm at most
    schedule: str = "trapezoid"  # of the learning rate after warmup: trapezoid, constant, linear or cosine
    warmup: int = 5_000  # images over which the learning rate rises
    decay: float = 0.4  # trapezoid only: share of the run, at its end, over which the rate falls to zero

    def __post_init__(self) -> None:
        for name in ("muon_lr", "adam_lr", "weight_decay", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is at least 0, got {getattr(self, name)}")
        for name, share in (("momentum", self.momentum), *(("betas", beta) for beta in self.betas)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} is from 0 to below 1, got {share}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is a share of the run from 0 to 1, got {self.decay}")
        if self.clip <= 0:
            raise ValueError(f"clip is above 0, got {self.clip}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {', '.join(SCHEDULES)}, got {self.schedule!r}")


def rate(config: OptimConfig, images_seen: int, images: int) -> float:
    """Factor on the learning rates: a linear rise over `warmup` images, then as `schedule` says.

    trapezoid: constant, then a linear fall to zero over the last `decay` of the run. constant: stays. linear,
    cosine: fall to zero from the end of the warmup to the end of the run (as in diffusers and kohya).
    """
    rise = min(1.0, (images_seen + 1) / max(1, config.warmup))
    if config.schedule == "trapezoid":
        left = (images - images_seen) / (config.decay * images) if config.decay else 1.0
        return max(0.0, min(rise, left))
    done = max(0.0, min(1.0, (images_seen - config.warmup) / max(1, images - config.warmup)))
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return rise * fall[config.schedule]


# Quintic iterations that drive all singular values towards 1, each tuned to where the one before leaves off;
# coefficients from Amsel et al. 2025 ("Polar Express").
POLAR = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: (..., rows, columns), any leading axes.

    Singular values above about 1/1000 of the largest come out near 1 after five steps; all steps are matrix
    products.
    """
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x: Tensor = matrix if wide else matrix.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR[:steps]:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al. 2024), for matrices and kernels only.

    A stacked matrix such as q, k, v is updated as `parts` separate ones, as if they were three layers. The
    update is scaled by 0.2 sqrt(max(rows, columns)), which gives it the root mean square of an AdamW step
    (Liu et al. 2025). Matrices that lie spread over processes are gathered for it: each process computes the
    whole update and keeps its own rows.
    """

    def __init__(
        self, params: list[nn.Parameter], parts: list[int], lr: float, momentum: float, decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": decay})
        self.parts = parts

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for p, parts in zip(group["params"], self.parts, strict=True):
                if p.grad is None:
                    continue
                state = self.state[p]
                buffer = state.setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = whole(p.grad.lerp(buffer, group["momentum"]))  # Nesterov
                shape = (parts, p.shape[0] // parts, p[0].numel())  # a convolution's kernels are its rows
                by_shape.setdefault(shape, []).append((p, update))
            for shape, members in by_shape.items():
                stack = torch.stack([update.reshape(shape) for _, update in members])
                stack = orthogonalize(stack) * 0.2 * max(shape[1:]) ** 0.5
                for (p, _), update in zip(members, stack, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(like(p, update.reshape(p.shape)), alpha=-group["lr"])


STACKED = {"qkv": 3, "text_kv": 2, "inner": 2}  # layers of the networks that hold several matrices in one


def optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the model's `blocks` and the kernels of its `inner` convolutions, AdamW for
    the rest; only what asks for gradients is trained, and only matrices decay."""
    matrices: list[nn.Parameter] = []
    parts: list[int] = []
    if config.muon_lr:
        for name, module in model.named_modules():
            convolution = isinstance(module, nn.Conv2d) and "inner." in name
            if convolution or (isinstance(module, nn.Linear) and "blocks." in name):
                weight = module.get_parameter("weight")
                if weight.requires_grad:
                    matrices.append(weight)
                    parts.append(STACKED.get(name.rsplit(".", 1)[-1], 1))
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.adam_lr,
        betas=config.betas,
        fused=all(p.device.type in FUSED for p in rest),
    )
    if not matrices:
        return [adam]
    return [Muon(matrices, parts, config.muon_lr, config.momentum, config.weight_decay), adam]
