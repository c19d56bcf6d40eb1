"""Pictures per second of training a small U-Net of Stable Diffusion's shape, against `diffusers`' example.

    python benchmarks/train_cpu.py [--size 128] [--batch 4] [--steps 8] [--threads 0] [--compile]

Ours is a whole run of `limner train`: pictures read from the disk, latents, texts, steps, averages, log.
The peer is the loop of diffusers' examples/text_to_image/train_text_to_image.py written plainly, without
accelerate and with no averages: a DataLoader, the same transforms, both encoders in every step, AdamW, the
gradient's norm clipped. Both train the same networks from the same files of random weights on the same
pictures in batches of one size, in float32. The third runs ours with latents and texts computed before. The
steps of all three alternate, so that a busy machine slows all of them, and the figures are medians; those
per processor second leave out the time in which others had the processor.

What ours has and the peer has not: networks whose pixels lie channels last, AdamW in one kernel, threads that
read pictures ahead, and with --compile blocks that are compiled (`loop.compile_blocks`), which takes minutes
that are not counted: the first steps warm up. How much it saves to compute latents before depends on the
autoencoder: here it has half of Stable Diffusion's channels, and the U-Net a fifth.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from facts import machine, report
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from limner.data import steps
from limner.data.latents import LatentsConfig, encode
from limner.data.loader import LoaderConfig
from limner.data.pack import Pack, pack
from limner.data.records import DataSet
from limner.data.sources import SourceConfig, bring
from limner.models import clip, kl_vae, unet
from limner.train import learners
from limner.train.config import LoopConfig, RunConfig
from limner.train.loop import fit
from limner.train.objectives.diffusion import DiffusionConfig
from limner.train.optim import OptimConfig
from limner.weights import folders, parts
from limner.weights.convert import tokenizers

WARM = 3  # steps that are not counted
RATE = 1e-4
COLOURS = ("red", "green", "blue", "yellow", "violet", "white")


@dataclass(frozen=True, slots=True)
class Encoding:
    """A learner's encoders, as latents are computed with them."""

    learner: Any

    @property
    def stamp(self) -> str:
        return str(self.learner.stamp)

    def latents(self, pixels: Tensor) -> Tensor:
        return self.learner.latents(pixels)  # type: ignore[no-any-return]

    def say(self, captions: list[str]) -> dict[str, Tensor]:
        return self.learner.say(captions).cached()  # type: ignore[no-any-return]


def publish(folder: Path, width: int, vae_width: int) -> None:
    """A diffusers folder of random weights: Stable Diffusion 1.5 with fewer channels, at all its depths."""
    text = replace(clip.TEXT_L, width=256, depth=4, heads=4, inner=1024)
    channels = tuple(width * times for times in (1, 2, 4, 4))
    model = replace(
        parts.SD15,
        parts=(
            parts.unet_part(replace(unet.SD15, channels=channels, context=256, heads=4)),
            parts.vae_part(replace(kl_vae.SD, channels=tuple(vae_width * times for times in (1, 2, 4, 4)))),
            parts.text_part(text, "cond_stage_model.transformer."),
        ),
    )
    torch.manual_seed(0)
    tensors = {part.folder: dict(part.build().state_dict()) for part in model.parts}
    folders.write(folder, model, tensors, extras=tokenizers(model))


def photograph(folder: Path, count: int, size: int) -> None:
    """JPEGs half as large again as they are trained at, with captions."""
    folder.mkdir()
    side = size * 3 // 2
    for number in range(count):
        chance = np.random.default_rng(number)
        small = Image.fromarray(chance.integers(0, 256, (24, 24, 3), np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg", quality=92)
        first, second = chance.choice(COLOURS, 2)
        (folder / f"{number:04}.txt").write_text(f"a {first} picture with some {second} in it")


def ours(model: Path, data: Path, out: Path, args: argparse.Namespace, *, latents: bool) -> Iterator[object]:
    """A run; each `next` is a step."""
    run = RunConfig(
        name=out.name,
        loop=LoopConfig(
            images=10**6,
            batch=args.batch,
            device="cpu",
            precision="float32",
            compile_blocks=args.compile,
            checkpoint_seconds=10**6,
            sheet_seconds=10**6,
        ),
        optim=OptimConfig(muon_lr=0.0, adam_lr=RATE, betas=(0.9, 0.999), schedule="constant", warmup=0),
        diffusion=DiffusionConfig(
            model=str(model),
            data=LoaderConfig(folder=str(data), size=args.size, drop_caption=0.0, latents=latents),
        ),
    )
    return fit(run, out)


class Photographs(Dataset):  # type: ignore[type-arg]
    """The peer's data: resized by the shorter side, cut in the middle, from -1 to 1; captions as tokens."""

    def __init__(self, folder: Path, size: int, tokenizer: Any) -> None:
        self.paths, self.size = sorted(folder.glob("*.jpg")), size
        captions = [path.with_suffix(".txt").read_text() for path in self.paths]
        self.ids = tokenizer(
            captions, max_length=77, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.open(self.paths[index]).convert("RGB")
        scale = self.size / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR
        )
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - 0.5) / 0.5, self.ids[index]


def peer(model: Path, data: Path, args: argparse.Namespace) -> Iterator[None]:
    """The example's loop; each `next` is a step."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.optimization import get_scheduler
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    text = CLIPTextModel.from_pretrained(model, subfolder="text_encoder").requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae").requires_grad_(False)
    network = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    noising = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    network.train()
    adam = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    rates = get_scheduler("constant", optimizer=adam, num_warmup_steps=0, num_training_steps=10**6)
    batches = DataLoader(
        Photographs(data, args.size, tokenizer), args.batch, shuffle=True, drop_last=True, num_workers=0
    )
    while True:
        for pixels, ids in batches:
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            t = torch.randint(0, noising.config.num_train_timesteps, (len(latents),)).long()
            noisy = noising.add_noise(latents, noise, t)
            context = text(ids, return_dict=False)[0]
            answer = network(noisy, t, context, return_dict=False)[0]
            loss = F.mse_loss(answer.float(), noise.float(), reduction="mean")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            adam.step()
            rates.step()
            adam.zero_grad()
            loss.item()
            yield


def alternate(runs: dict[str, Iterator[object]], count: int) -> dict[str, tuple[float, float]]:
    """Median seconds of a step of each, by the clock on the wall and by the processor's."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(WARM + count):
        for name, run in runs.items():
            wall, busy = time.perf_counter(), time.process_time()
            next(run)
            if number >= WARM:
                taken[name].append((time.perf_counter() - wall, time.process_time() - busy))
    return {
        name: (statistics.median(w for w, _ in each), statistics.median(b for _, b in each))
        for name, each in taken.items()
    }


def drain(progress: Iterator[steps.Progress]) -> None:
    for _ in progress:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--width", type=int, default=64, help="channels of the U-Net's first level (SD: 320)")
    parser.add_argument("--vae-width", type=int, default=64, help="of the autoencoder's first (SD: 128)")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch has it")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of ours")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        publish(root / "model", args.width, args.vae_width)
        photograph(root / "photographs", 16, args.size)
        drain(bring(root / "set", SourceConfig(source=str(root / "photographs"))))
        drain(pack(DataSet.open(root / "set"), Pack(size=args.size)))
        shapes = LoaderConfig(folder="-", size=args.size).shapes
        learner = learners.load(str(root / "model"), torch.device("cpu"))
        drain(encode(root / "set" / "packed", Encoding(learner), LatentsConfig(buckets=shapes)))
        del learner

        runs: dict[str, Iterator[object]] = {
            "limner": ours(root / "model", root / "photographs", root / "run", args, latents=False),
            "diffusers": peer(root / "model", root / "photographs", args),
            "precomputed": ours(root / "model", root / "set", root / "before", args, latents=True),
        }
        times = alternate(runs, args.steps)
        for run in runs.values():
            run.close()  # type: ignore[attr-defined]

    def told(claim: str, one: str, other: str, peer_name: str) -> None:
        for clock, unit in enumerate(("pictures/s", "pictures per processor second")):
            mine, theirs = (args.batch / times[name][clock] for name in (one, other))
            report(claim, mine, theirs, unit, peer_name, more_is_better=True)

    print(machine())
    shape = f"U-Net {args.width} wide, autoencoder {args.vae_width}, {args.size} px, batches of {args.batch}"
    told(f"Training, {shape}", "limner", "diffusers", "the example of diffusers")
    told(
        f"Latents and texts computed before, {shape}", "precomputed", "limner", "ours, encoding as it trains"
    )


if __name__ == "__main__":
    main()
