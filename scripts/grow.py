"""Make published weights of a PixelDiT into a start for one with larger patches: same tokens, more pixels.

    python scripts/grow.py src/limner/weights/mini/base.safetensors runs/grown.safetensors --factor 2
    limner train configs/mini.toml --set loop.start=runs/grown.safetensors

The new network sees the mean of each factor x factor pixels, and says the old picture enlarged; training then
learns what lies between. Everything but the first and the last layer is as it was.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from limner.weights import files, header


def grown(tensors: dict[str, Tensor], patch: int, factor: int) -> dict[str, Tensor]:
    """The tensors of a network whose patches are `factor` times larger along each side."""
    told = dict(tensors)
    into = rearrange(tensors["patch_in.weight"].float(), "d (c p q) -> d c p q", p=patch, q=patch)
    into = repeat(into / factor**2, "d c p q -> d (c p a q b)", a=factor, b=factor)
    told["patch_in.weight"] = into
    for name in ("patch_out.weight", "patch_out.bias"):
        out = tensors[name].float().reshape(-1, *tensors[name].shape[1:] or (1,))
        out = rearrange(out, "(c p q) d -> d c p q", p=patch, q=patch)
        out = F.interpolate(out, scale_factor=factor, mode="bilinear", align_corners=False)
        told[name] = rearrange(out, "d c p q -> (c p q) d").reshape(-1, *tensors[name].shape[1:])
    told["head.4.weight"] = torch.zeros_like(tensors["head.4.weight"])  # learned for coarser pixels: silent
    told["head.4.bias"] = torch.zeros_like(tensors["head.4.bias"])
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--factor", type=int, default=2, help="how many times more pixels along each side")
    chosen = parser.parse_args()
    metadata = header.read_metadata(chosen.source)
    network = json.loads(metadata["network"])
    shape = network["PixelDiT"]
    tensors = grown(files.read(chosen.source), shape["patch"], chosen.factor)
    shape["patch"] *= chosen.factor
    shape["size"] *= chosen.factor
    files.save(tensors, chosen.target, metadata | {"network": json.dumps(network)})
    print(f"{chosen.target}: {shape['size']} px, patches of {shape['patch']}")


if __name__ == "__main__":
    main()
