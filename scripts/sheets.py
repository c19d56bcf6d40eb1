"""Sheets of the built-in model's pictures, for a person to look at.

    python scripts/sheets.py readme                  docs/sheet.png: four pictures per prompt of README
    python scripts/sheets.py objects --out FOLDER    40 prompts "a OBJECT on a COLOUR background", unnamed
    python scripts/sheets.py relations --out FOLDER  20 prompts with two objects, likewise

The counting sheets carry no names, so that whoever counts writes down what is seen before opening key.txt.
"""

import argparse
import random
import re
from pathlib import Path

from PIL import Image

import limner
from limner.data.world.scene import COLOURS, RELATIONS
from limner.text.lexicon import load_lexicon
from limner.text.nouns import with_article
from limner.util.images import sheet

ROOT = Path(__file__).parents[1]
PER_SHEET = 10  # prompts on one counting sheet, two to a row


def readme_prompts() -> list[str]:
    """The prompts that README.md names under its sheet, in order."""
    text = (ROOT / "README.md").read_text().split("docs/sheet.png)", 1)[1].split("\n\n")[1]
    return re.findall(r'"([^"]+)"', text)


def object_prompts(objects: list[str], count: int, rng: random.Random) -> list[str]:
    """Prompts over `count` different objects drawn at random."""
    entry = load_lexicon().entry
    names = rng.sample(objects, count)
    return [f"{entry(name).singular} on {with_article(rng.choice(COLOURS))} background" for name in names]


def relation_prompts(objects: list[str], count: int, rng: random.Random) -> list[str]:
    """Prompts that put one object beside, above or below another; every relation equally often."""
    entry = load_lexicon().entry
    prompts = []
    for index in range(count):
        first, second = (entry(name).singular for name in rng.sample(objects, 2))
        relation = RELATIONS[index % len(RELATIONS)]
        said = f"to the {relation}" if relation.endswith("of") else relation
        prompts.append(f"{first} {said} {second} on {with_article(rng.choice(COLOURS))} background")
    return prompts


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=("readme", "objects", "relations"))
    parser.add_argument("--model", default="mini", help="a built-in model, or a folder of weights")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts and the pictures")
    parser.add_argument("--out", type=Path, default=Path("sheets"), help="folder for counting sheets")
    options = parser.parse_args()
    pipe = limner.load(options.model)
    objects, rng = sorted(pipe.model.objects), random.Random(options.seed)

    def draw(prompts: list[str]) -> list[Image.Image]:
        return [image for prompt in prompts for image in pipe(prompt, seed=options.seed, count=4).images]

    if options.what == "readme":
        small = [image.resize((128, 128)) for image in draw(readme_prompts())]
        sheet(small, columns=8).quantize(256).save(ROOT / "docs" / "sheet.png", optimize=True)
        return
    make, count = (object_prompts, 40) if options.what == "objects" else (relation_prompts, 20)
    prompts = make(objects, count, rng)
    options.out.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, PER_SHEET):
        pictures = draw(prompts[start : start + PER_SHEET])
        sheet(pictures, columns=8).save(options.out / f"{options.what}-{start // PER_SHEET + 1}.png")
    lines = [f"{index + 1:2d} {prompt}" for index, prompt in enumerate(prompts)]
    (options.out / "key.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
