"""What a DALL-E of own training has learned, in figures and as the sheet of docs/dalle.md.

    python scripts/dalle_report.py MODEL [--atlas FOLDER] [--sheet docs/dalle.png]

MODEL is a folder of vqvae.safetensors, prior.safetensors and, where there is one, clip.safetensors. Measured
on scenes that training never composed: how well codes give pictures back, how many codes are in use, how
surprising the codes are to the transformer, and how often the small CLIP finds a picture's own caption among
64. The sheet shows pictures before and after their codes, and the first pictures of one seed, unchosen: plain
ones, and the best of 16 as the small CLIP has it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

import limner
from limner.data.world.source import DrawnConfig
from limner.evaluate import sheets
from limner.families.dalle import DallE
from limner.models.vqvae import joined
from limner.train.objectives.ar_prior import ARPrior, ARPriorConfig
from limner.train.objectives.ar_prior import Batch as Rows
from limner.train.objectives.clip import Batch, CLIPObjective, CLIPObjectiveConfig, found
from limner.train.objectives.vqvae import held_out, measure
from limner.util.images import images_from_pixels
from limner.weights.header import read_metadata

SCENES = 2_000  # held out
PROMPTS = (
    "a cat on a blue background",
    "a hamburger on a green background",
    "a rocket in space",
    "two apples on a yellow background",
    "a red umbrella on a white background",
    "a dog to the left of a tree on a pink background",
    "a penguin in the snow",
    "a crown above a fox on a purple background",
    "three balloons in the sky",
    "a house on the grass",
)
SIDE = 96  # of a picture on the sheet


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("model", type=Path)
    parser.add_argument("--atlas", default=DrawnConfig().folder, help="where the drawn world was prepared")
    parser.add_argument("--sheet", type=Path, help="PNG to be written")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    pipe = limner.load(str(options.model), device="cpu")
    model = pipe.model
    assert isinstance(model, DallE), f"{options.model} is no DALL-E"
    told = json.loads(read_metadata(options.model / "prior.safetensors")["run"])
    data = DrawnConfig(folder=options.atlas, styles=tuple(told["ar_prior"]["data"]["styles"]))
    codes = str(options.model / "vqvae.safetensors")
    prior = ARPrior(ARPriorConfig(codes=codes, data=data, model=model.prior.config), torch.device("cpu"))
    pixels = held_out(prior.world, model.vqvae.config.size, SCENES)
    for name, value in measure(model.vqvae, pixels).items():
        print(f"{name:<20}{value:10.3f}")
    print_surprise(model, prior)
    if model.judge is not None:
        config = CLIPObjectiveConfig(codes=codes, data=data, model=model.judge.network.config)
        clip = CLIPObjective(config, torch.device("cpu"))
        clip.tokenizer = model.judge.tokenizer
        right = [found(model.judge.network, pairs(clip, seed)).float().mean() for seed in range(16)]
        print(f"{'own caption of 64':<20}{float(torch.stack(right).mean()):10.3f}")
    if options.sheet is not None:
        size = sheets.save(picture(pipe, model, pixels, options.seed), options.sheet)
        print(options.sheet, size, "bytes")


@torch.no_grad()
def print_surprise(model: DallE, prior: ARPrior) -> None:
    """Nats per code on held-out scenes, next to what knowing nothing costs."""
    scenes = prior.world.sample(256, torch.Generator().manual_seed(7), unseen=True)
    pictures, _ = prior.world.render(scenes, model.vqvae.config.size)
    prior.model, prior.tokenizer = model.prior, model.tokenizer
    text = prior.text([words for _, words in prior.captioner.captions(scenes, 7)])
    parts = prior.loss(Rows(text, joined(*model.vqvae.encode(pictures))))
    share = prior.config.coarse_weight
    for name, weight, count in (
        ("coarse", share, model.prior.config.coarse_codes),
        ("fine", 1 - share, model.prior.config.fine_codes),
    ):
        nothing = torch.tensor(float(count)).log()
        print(f"{name + ' nats per code':<20}{float(parts[name]) / weight:10.3f}   of {nothing:.3f}")


def pairs(clip: CLIPObjective, seed: int) -> Batch:
    """64 held-out scenes with their captions, as the codes show them."""
    clip.config = replace(clip.config, through=1.0)
    return clip.batch(64, seed, unseen=True)


@torch.inference_mode()
def picture(pipe: limner.Pipeline, model: DallE, pixels: torch.Tensor, seed: int) -> Image.Image:
    """Five scenes before and after their codes; then each prompt, drawn plainly and as the best of 16."""
    again = model.vqvae.decode(*model.vqvae.encode(pixels[:5])).clamp(-1, 1)
    cells: list[tuple[Image.Image, list[str]]] = []
    for what, batch in (("a scene", pixels[:5]), ("its codes", again)):
        cells += [(larger(image), [what]) for image in images_from_pixels(batch)]
    ways = [("", 1)] if model.judge is None else [("", 1), (", best of 16", 16)]
    for start in range(0, len(PROMPTS), 5):
        for told, rerank in ways:
            for prompt in PROMPTS[start : start + 5]:
                request = limner.Request(prompt=prompt, seed=seed, count=1, rerank=rerank)
                cells.append((larger(pipe.draw(request).images[0]), [prompt + told]))
    return sheets.captioned(cells, width=SIDE)


def larger(image: Image.Image) -> Image.Image:
    """With pixels that can be seen."""
    return image.resize((SIDE, SIDE), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
