"""How alike two pictures look: distances between what a network finds in them.

Limner ships no network for it that may train what draws. Features come from the user: VGG16 or VGG19 as
torchvision publishes them, in safetensors, or a detector of an own `[detect]` run with the role "reward". The
detector that evaluates is refused, for what was trained to please it could not be judged by it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limner.models.detector import Detector
from limner.weights import header, vgg
from limner.weights.detector import REWARD, load_detector

Features = Callable[[Tensor], list[Tensor]]  # pixels b 3 h w in [-1, 1] -> features of each level, b _ _ _
ESRGAN = (0.1, 0.1, 1.0, 1.0, 1.0)  # weights of the levels (Real-ESRGAN, Wang et al. 2021, section 4.1)


def load(path: str, device: torch.device) -> Features:
    """The network in the file `path`; which of the two it is stands in its header. Raises WeightsError for a
    file that is neither, ConfigError for the detector that evaluates."""
    where = Path(path).expanduser()
    if "Detector" in header.read_metadata(where).get("network", ""):
        detector = load_detector(where, device, role=REWARD)
        return lambda pixels: looked(detector, pixels)
    network = vgg.load(where, device)
    return lambda pixels: list(network(pixels))


def looked(detector: Detector, pixels: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
    """What the detector's levels find on the way down."""
    x, found = detector.stem(pixels), []
    for level, block in enumerate(detector.encode):
        x = block(detector.down[level - 1](x) if level else x)
        found.append(x)
    return found


def unlike(
    features: Features, drawn: Float[Tensor, "b 3 h w"], real: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, ""]:
    """Squared distance of features of unit length, rectified, summed over the levels (LPIPS, Zhang et al.
    2018, equation 1, with all weights 1); the mean over pixels and pictures. Gradients reach `drawn`."""
    total = drawn.new_zeros(())
    for one, other in zip(features(drawn), _told(features, real), strict=True):
        error = F.normalize(F.relu(one), dim=1) - F.normalize(F.relu(other), dim=1)
        total = total + error.square().sum(1).mean()
    return total


def apart(
    features: Features,
    drawn: Float[Tensor, "b 3 h w"],
    real: Float[Tensor, "b 3 h w"],
    weights: Sequence[float] = ESRGAN,
) -> Float[Tensor, ""]:
    """Absolute distance of features before their rectifiers, each level weighted (ESRGAN, Wang et al. 2018,
    section 3.3); levels beyond `weights` count as its last. Gradients reach `drawn`."""
    total = drawn.new_zeros(())
    for level, (one, other) in enumerate(zip(features(drawn), _told(features, real), strict=True)):
        total = total + weights[min(level, len(weights) - 1)] * (one - other).abs().mean()
    return total


@torch.no_grad()
def _told(features: Features, real: Tensor) -> list[Tensor]:
    return features(real)
