"""Losses of two players, one who draws and one who tells drawn from real (Goodfellow et al. 2014), in one
loop.

Both are parts of the objective's model, both losses are in the one sum, and one backward pass gives each its
own gradient: what the drawing player is told comes through a discriminator whose weights are held (`judged`),
and what the discriminator is told of is a picture cut off from whoever drew it. Nothing but parameters
changes, so a checkpoint of the loop is all there is to a run, and it goes on bit for bit; several processes
need nothing new either. The players move at the same time instead of in turns, each from where the other
stood (Mescheder et al. 2017 analyse just this), which saves drawing every picture twice. Two optimisers in
turns, the other way to do it, would each need learning rates, averages and checkpoints of their own.

What they share is the clipping of the gradient's norm. Under AdamW, whose steps do not depend on a gradient's
scale, that changes little.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

MOST = 1e4  # of the adaptive weight


def judged(discriminator: nn.Module, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 y x"]:
    """What the discriminator says; gradients reach the pixels and not its weights."""
    held = {name: p.detach() for name, p in discriminator.named_parameters()}
    said: Tensor = functional_call(discriminator, held, (pixels,))
    return said


def hinge(real: Float[Tensor, "b 1 y x"], drawn: Float[Tensor, "b 1 y x"]) -> Float[Tensor, ""]:
    """The discriminator's loss: real above 1, drawn below -1 (Lim & Ye 2017; half of each, as in VQGAN)."""
    return (F.relu(1 - real).mean() + F.relu(1 + drawn).mean()) / 2


def crossed(real: Float[Tensor, "b 1 y x"], drawn: Float[Tensor, "b 1 y x"]) -> Float[Tensor, ""]:
    """The discriminator's loss as binary cross-entropy, a mean over both kinds each (Real-ESRGAN)."""
    return F.softplus(-real).mean() + F.softplus(drawn).mean()


def balance(loss: Float[Tensor, ""], adversarial: Float[Tensor, ""], last: Tensor) -> Float[Tensor, ""]:
    """How much more `loss` moves the weights `last` than `adversarial` does (VQGAN, Esser et al. 2021,
    equation 7): by this the adversarial loss is multiplied, so that neither drowns the other. A number
    without a gradient, 10,000 at most."""
    ours, theirs = (
        torch.autograd.grad(one, last, retain_graph=True)[0].norm() for one in (loss, adversarial)
    )
    weight: Tensor = (ours / (theirs + 1e-4)).clamp(0, MOST).detach()
    return weight
