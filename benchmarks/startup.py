"""From the typed command to pictures on the disk, against `diffusers`: fresh processes, measured in turn.

    python benchmarks/startup.py [--model mini] [--repeats 3] [--random-weights]

The peer imports diffusers, makes a DiT pipeline of about the same size and picture size with random weights,
and draws and saves four pictures in as many steps. It reads no weights from the disk, which is in its favour.
`--random-weights` measures ours with random weights too, where the built-in ones are not there yet.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from facts import SRC, machine, report

PROMPT = "two red apples to the left of a cat on a blue background"
STEPS = 16
PEER = f"""
import sys
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
transformer = DiTTransformer2DModel(
    num_attention_heads=4, attention_head_dim=64, in_channels=3, out_channels=3,
    num_layers=7, sample_size=48, patch_size=8, num_embeds_ada_norm=1000,
)
vae = AutoencoderKL(
    latent_channels=3, block_out_channels=(32, 32, 32), norm_num_groups=8,
    down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
)
pipe = DiTPipeline(transformer, vae, DDIMScheduler())
pipe.set_progress_bar_config(disable=True)
for index, picture in enumerate(pipe([0, 1, 2, 3], num_inference_steps={STEPS}).images):
    picture.save(f"{{sys.argv[1]}}/{{index}}.png")
"""


def random_model(folder: Path) -> None:
    """A model folder in the built-in model's shape, with random weights."""
    import torch

    from limner.models.pixel_dit import PixelDiT, PixelDiTConfig
    from limner.models.upscaler import Upscaler, UpscalerConfig
    from limner.text.lexicon import load_lexicon
    from limner.text.tokenizers import default_vocabulary
    from limner.weights.files import save

    objects = [entry.name for entry in load_lexicon().entries if entry.core]
    vocabulary = default_vocabulary(objects)
    shape, larger = PixelDiTConfig(vocabulary=len(vocabulary), size=48), UpscalerConfig()
    words = {"vocabulary": vocabulary, "objects": objects, "styles": ["flat", "glossy"]}
    for name, network, config, more in (
        ("base", PixelDiT(shape), shape, words),
        ("upscaler", Upscaler(larger), larger, {"size": 48}),
    ):
        network.initialize(torch.Generator().manual_seed(0))
        tensors = {key: tensor.to(torch.bfloat16) for key, tensor in network.state_dict().items()}
        header = {"network": {type(network).__name__: asdict(config)}, **more}
        save(
            tensors, folder / f"{name}.safetensors", {key: json.dumps(value) for key, value in header.items()}
        )


def clock(command: list[str], repeats: int) -> float:
    """Median wall time of a fresh process; the first one, which fills the disk cache, is not counted."""
    environment = {**os.environ, "PYTHONPATH": SRC}
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - start)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--random-weights", action="store_true")
    args = parser.parse_args()

    script = Path(sys.executable).with_name("limner")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "limner.cli"]
    with tempfile.TemporaryDirectory() as temporary:
        folder, model = Path(temporary), args.model
        if args.random_weights:
            model = str(folder / "model")
            Path(model).mkdir()
            random_model(Path(model))
        out = folder / "out"
        steps = ["--steps", str(STEPS), "--no-grid", "--quiet", "--seed", "0"]
        imagine = [*start, "imagine", PROMPT, "--model", model, "--out", str(out), *steps]
        asked = clock([*start, "--help"], args.repeats)
        drawn = clock(imagine, args.repeats)
        saved = len(list(out.rglob("*.png")))
        if saved < 4:
            sys.exit(f"expected four pictures in {out}, found {saved}")
        shutil.rmtree(out)
        out.mkdir()
        imported = clock([sys.executable, "-c", "import diffusers"], args.repeats)
        peer = clock([sys.executable, "-W", "ignore", "-c", PEER, str(out)], args.repeats)

    print(machine())
    bare = "import diffusers alone"
    report("limner --help, typed to printed", asked, imported, "s", bare, more_is_better=False)
    report(
        f"limner imagine, typed to four pictures on the disk, {STEPS} steps",
        drawn,
        peer,
        "s",
        "diffusers DiTPipeline, random weights",
        more_is_better=False,
    )


if __name__ == "__main__":
    main()
