"""What --offload saves: the peak of memory is the largest network and not the sum of all.

    python benchmarks/offload.py [--size 64] [--steps 2] [--dtype float32]

The stand-in is a Stable Diffusion XL of few and wide layers with random weights, each network some 200 MB,
stored in `--dtype` and drawn with in float32, as on a CPU. Each figure is of a process of its own: the most
memory that was ever resident, without what Python and the libraries take before a model is opened. Pages of a
file count as well while they are mapped, so files of another type than is drawn with add theirs to the peak.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from facts import machine
from torch import Tensor

from limner.models import clip, kl_vae, unet
from limner.weights import files, folders, parts
from limner.weights.parts import Model, Part

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
UNET = replace(
    unet.SDXL, channels=(256, 384), depths=(0, 2), middle=2, layers=1, context=1024, heads=8, pooled=512
)
TEXT = replace(clip.TEXT_L, width=512, depth=8, heads=8, inner=2048)
MODEL: Model = replace(
    parts.SDXL,
    parts=(
        parts.unet_part(UNET),
        parts.vae_part(replace(kl_vae.SDXL, channels=(256, 512), layers=2)),
        parts.text_part(TEXT, "conditioner.embedders.0.transformer."),
        parts.text_part(replace(TEXT, projection=512), "conditioner.embedders.1.model.", "text_encoder_2"),
    ),
    size=64,
)
CHILD = """
import hashlib, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[6])
from offload import MODEL, resident
from limner.families import sd_files
from limner.families.base import Wishes
from limner.pipeline.request import Request
from limner.pipeline.run import Pipeline
floor = resident()
wishes = Wishes(offload=sys.argv[2] == "offload", dtype="float32")
model = sd_files.load(Path(sys.argv[1]), torch.device("cpu"), wishes, models=(MODEL,))
opened = resident()
side = int(sys.argv[3])
request = Request(prompt=sys.argv[5], steps=int(sys.argv[4]), size=(side, side), seed=1, count=1)
result = Pipeline(model, "stand-in").draw(request)
print(floor, opened, resident(), hashlib.sha256(result.images[0].tobytes()).hexdigest())
"""


def resident() -> int:
    """The most bytes of this process that were ever in memory."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there begins with the memory of whoever started the process
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def random(part: Part, dtype: torch.dtype) -> dict[str, Tensor]:
    """A part's tensors, small enough that nothing overflows."""
    shapes = files.empty(part.build).state_dict()
    generator = torch.Generator().manual_seed(0)
    return {
        name: (0.02 * torch.randn(tensor.shape, generator=generator)).to(dtype)
        for name, tensor in shapes.items()
    }


def measured(folder: Path, how: str, size: int, steps: int) -> tuple[list[int], str]:
    """(before a model, with it opened, peak) in bytes, and a hash of the picture."""
    here = str(Path(__file__).parent)
    told = [str(folder), how, str(size), str(steps), "a red fox", here]
    command = [sys.executable, "-W", "ignore", "-c", CHILD, *told]
    *numbers, picture = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [int(number) for number in numbers], picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="side of the picture in pixels")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", choices=TYPES, default="float32", help="of the files")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        tensors = {part.folder: random(part, TYPES[options.dtype]) for part in MODEL.parts}
        sizes = {name: 4 * sum(t.numel() for t in held.values()) for name, held in tensors.items()}
        folders.write(folder, MODEL, tensors)
        tensors.clear()
        for name, size in sizes.items():
            print(f"{name:<18}{size / 1e6:>8.0f} MB in float32")
        total, largest = sum(sizes.values()), max(sizes.values())
        print(f"{'all of them':<18}{total / 1e6:>8.0f} MB, {total / largest:.2f} times the largest")
        peaks, pictures = {}, set()
        for how in ("plain", "offload"):
            (floor, opened, peak), picture = measured(folder, how, options.size, options.steps)
            peaks[how] = peak - floor
            pictures.add(picture)
            print(
                f"{how:<18}{peaks[how] / 1e6:>8.0f} MB at the peak above {floor / 1e6:.0f} MB of libraries, "
                f"{(opened - floor) / 1e6:.0f} MB while it was opened"
            )
        print(f"ratio             {peaks['plain'] / peaks['offload']:>8.2f}")
        print("the same picture" if len(pictures) == 1 else "ANOTHER PICTURE")


if __name__ == "__main__":
    main()
