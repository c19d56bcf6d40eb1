"""How well the built-in model learns new subjects: DreamBooth's three questions on held-out drawings.

    python scripts/personal_report.py OUT --art FOLDER [--only "dodo,suitcase"] [--sheet docs/personal.png]

FOLDER holds the unpacked npm packages of the art (`npm pack`, as `limner world prepare --from` takes them).
The 30 subjects are drawings of the lexicon that are not in the core list, so no network of the package has
seen them; each is drawn PHOTOS times on plain grounds, taught by `limner dreambooth` as a person would call
it, and then asked for in PROMPTS. Features and classes are those of the evaluator's own detector. They are
not DINO's or CLIP's: the figures compare with each other, and never with those that DreamBooth published.

subject similarity   mean cosine between drawn pictures and the photos, of what the detector makes of the
                     likeliest thing in each ("own features"), where the subject is asked for alone; beside it
                     the same among the photos themselves, and of the class before the training
prompt following     share of pictures in which the detector finds the ground, or the other object, that the
                     prompt asks for; beside it the same of the class before the training
prior preservation   of pictures of the class alone: how alike to the photos they are (lower is better), how
                     different from each other, and how often the detector knows them; before and after

What is done is kept in OUT and not done again.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import limner
from limner.data.world import art
from limner.data.world.art import load_atlas
from limner.data.world.scene import COLOURS, Scenes, World
from limner.evaluate.composition import THRESHOLD
from limner.families.base import Wishes
from limner.models.detector import Detector, Seen, at, peaks, resize
from limner.pipeline.load import load
from limner.pipeline.run import Pipeline
from limner.text.lexicon import load_lexicon
from limner.util.images import images_from_pixels, pixels_from_images, sheet
from limner.weights.detector import load_detector, shipped

SUBJECTS = {  # held-out drawing -> its class, a word of the built-in model
    "boar": "pig", "chipmunk": "hamster", "whole cat": "cat", "dodo": "bird", "whole dog": "dog",
    "donkey": "horse", "goose": "duck", "leopard": "tiger", "mammoth": "elephant", "moose": "deer",
    "orangutan": "monkey", "poodle": "dog", "ram": "sheep", "rat": "mouse", "bactrian camel": "camel",
    "water buffalo": "cow", "spouting whale": "whale", "fly": "bee", "clutch bag": "handbag",
    "suitcase": "backpack", "sandal": "sneaker", "sun hat": "top hat", "banjo": "guitar",
    "pickup truck": "truck", "bullet train": "locomotive", "ferry": "ship", "auto rickshaw": "taxi",
    "bowling ball": "soccer ball", "goggles": "glasses", "granny smith apple": "apple",
}  # fmt: skip
PHOTOS = 5
PROMPTS = (  # what is asked of the subject, and what the detector should find: a ground, or an object
    ("{}", "", ""),
    ("{} on a pink background", "pink", ""),
    ("{} on a white background", "white", ""),
    ("{} on a black background", "black", ""),
    ("{} in snow", "snow", ""),
    ("{} on grass", "grass", ""),
    ("{} left of a tree on a yellow background", "yellow", "tree"),
    ("{} and a star on a blue background", "blue", "star"),
)
PICTURES = 4  # of each prompt
SIDE = 96  # of a picture on the sheet
STYLE = "flat"


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("out", type=Path)
    parser.add_argument("--art", type=Path, required=True, help="unpacked npm packages")
    parser.add_argument("--only", default="", help="subjects, separated by commas")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="of each prompt")
    parser.add_argument("--sheet", type=Path, help="PNG to be written")
    parser.add_argument("--rows", type=int, default=8, help="subjects on the sheet, the first ones")
    options = parser.parse_args()
    chosen = [name.strip() for name in options.only.split(",") if name.strip()] or list(SUBJECTS)
    world = prepared(options.out / "atlas", options.art)
    detector = load_detector(shipped())
    rows, pictures = [], []
    for name in chosen:
        row, shown = report(name, options, world, detector)
        rows.append(row)
        pictures += shown
        print(json.dumps(row), flush=True)
    (options.out / "personal.json").write_text(json.dumps(rows, indent=1))
    for line in summary(rows):
        print(line)
    if options.sheet is not None:
        columns = 2 + len(PROMPTS)
        picture = sheet(
            [one.resize((SIDE, SIDE)) for one in pictures[: options.rows * columns]], columns=columns
        )
        picture.quantize(192).save(options.sheet, optimize=True)
        print(options.sheet)


def prepared(folder: Path, packages: Path) -> World:
    """The held-out drawings."""
    lexicon = load_lexicon()
    drawings = {name: lexicon.entry(name).art for name in SUBJECTS}
    assert not any(lexicon.entry(name).core for name in SUBJECTS)
    if not (folder / "atlas.json").is_file():
        art.prepare(folder, drawings, styles=(STYLE,), source=packages)
    return World(load_atlas(folder, objects=list(SUBJECTS), styles=(STYLE,), sizes=(64, 128, 256)))


def report(
    name: str, options: argparse.Namespace, world: World, detector: Detector
) -> tuple[dict[str, Any], list[Image.Image]]:
    """Teach one subject and measure: (figures, a row of the sheet)."""
    kind, called = SUBJECTS[name], name.replace(" ", "-")
    folder, photos = options.out / called, options.out / "photos" / called
    if not photos.is_dir():
        photos.mkdir(parents=True)
        for number, image in enumerate(images_from_pixels(photographed(world, list(SUBJECTS).index(name)))):
            image.save(photos / f"{number}.png")
    real = pixels_from_images([Image.open(path) for path in sorted(photos.glob("*.png"))])
    costs = taught(folder, photos, kind, options.model)
    before = load(options.model, device="cpu")
    after = load(options.model, device="cpu", wishes=Wishes(loras=folder))
    lora = f"<lora:sks-{'-'.join(kind.split())}:1>"
    new, old = f"a sks {kind}", f"a {kind}"
    photo, _ = looked(detector, real)
    drawn, shown = draw(after, [f"{text.format(new)} {lora}" for text, *_ in PROMPTS], options.pictures)
    plain, _ = draw(before, [text.format(old) for text, *_ in PROMPTS], options.pictures)
    kept, _ = draw(after, [f"{old} {lora}", f"{old} on a white background {lora}"], 2 * options.pictures)
    was, _ = draw(before, [old, f"{old} on a white background"], 2 * options.pictures)
    new_thing, new_seen = looked(detector, drawn)
    old_thing, old_seen = looked(detector, plain)
    kept_thing, kept_seen = looked(detector, kept)
    was_thing, was_seen = looked(detector, was)
    alone = options.pictures * sum(not other for _, _, other in PROMPTS)  # those prompts come first
    row = {
        "subject": name,
        "class": kind,
        **costs,
        "similarity, own": cosine(photo, new_thing[:alone]),
        "among photos, own": among(photo),
        "class before, own": cosine(photo, old_thing[:alone]),
        "prompt, own": followed(new_seen, options.pictures),
        "prompt, class before, own": followed(old_seen, options.pictures),
        "PRES, own": cosine(photo, kept_thing),
        "PRES before, own": cosine(photo, was_thing),
        "DIV, own": 1 - among(kept_thing),
        "DIV before, own": 1 - among(was_thing),
        "class known": known(kept_seen, kind),
        "class known before": known(was_seen, kind),
    }
    return row, [*images_from_pixels(real[:2]), *shown]


def photographed(world: World, index: int) -> Float[Tensor, "b 3 h w"]:
    """PHOTOS pictures of one drawing alone, on plain grounds of different colours."""
    generator = torch.Generator().manual_seed(index)
    places = world.sample(1, torch.Generator().manual_seed(0), unseen=None).object.shape[1]
    grounds = torch.randperm(len(COLOURS), generator=generator)[:PHOTOS]
    none = torch.full((PHOTOS, places), -1)
    values = {field.name: torch.zeros(PHOTOS, dtype=torch.long) for field in fields(Scenes)}
    centre, side = torch.zeros(PHOTOS, places, 2), torch.zeros(PHOTOS, places)
    centre[:, 0] = 0.5 + 0.06 * (2 * torch.rand(PHOTOS, 2, generator=generator) - 1)
    side[:, 0] = 0.72 * (1 + 0.15 * (2 * torch.rand(PHOTOS, generator=generator) - 1))
    drawing = none.clone()
    drawing[:, 0] = index
    scenes = Scenes(
        **values
        | {
            "object": drawing,
            "colour": none,
            "scale": torch.zeros_like(none),
            "centre": centre,
            "side": side,
            "background_colour": torch.stack([grounds, grounds], 1),
            "texture": torch.rand(PHOTOS, 24, generator=generator),
            "letters": torch.full((PHOTOS, 6), -1),
        }
    )
    return world.render(scenes, 256)[0]


def taught(folder: Path, photos: Path, kind: str, model: str) -> dict[str, float]:
    """Run `limner dreambooth`, unless it is done; what it took."""
    told = folder / "costs.json"
    if told.is_file():
        known: dict[str, float] = json.loads(told.read_text())
        return known
    start, used = time.monotonic(), cpu()
    program = [sys.executable, "-c", "from limner.cli import main; main()"]
    command = [*program, "dreambooth", str(photos), "--out", str(folder)]
    subject = ["--subject", f"sks {kind}", "--class", kind, "--model", model]
    subprocess.run([*command, *subject], check=True, stdout=subprocess.DEVNULL)
    costs = {"minutes": (time.monotonic() - start) / 60, "CPU minutes": (cpu() - used) / 60}
    told.write_text(json.dumps(costs))
    return costs


def cpu() -> float:
    """Seconds of all cores that finished child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def draw(
    pipe: Pipeline, prompts: list[str], count: int
) -> tuple[Float[Tensor, "b 3 h w"], list[Image.Image]]:
    """`count` pictures of each prompt, and the first of each, unchosen."""
    images = [pipe(prompt, seed=0, count=count).images for prompt in prompts]
    return pixels_from_images([one for row in images for one in row]), [row[0] for row in images]


@torch.inference_mode()
def looked(detector: Detector, pixels: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"], list[Seen]]:
    """(the direction in which the detector puts the likeliest thing of each picture, all that it sees). Such
    directions are what it tells its classes apart by; the ground is not in them."""
    maps = detector(resize(pixels, detector.config.size))
    _, cell = peaks(maps.centre)
    return F.normalize(at(maps.embedding, cell)[:, 0].float(), dim=-1), detector.read(maps, THRESHOLD)


def cosine(first: Float[Tensor, "a d"], second: Float[Tensor, "b d"]) -> float:
    """Mean over all pairs."""
    return float((first @ second.T).mean())


def among(things: Float[Tensor, "b d"]) -> float:
    """Mean cosine over all pairs of different pictures."""
    every = things @ things.T
    count = len(every)
    return float((every.sum() - every.trace()) / (count * (count - 1)))


def followed(seen: list[Seen], count: int) -> float:
    """Share of pictures that show what `PROMPTS` ask for besides the subject."""
    right = []
    for index, (_, ground, other) in enumerate(PROMPTS):
        for one in seen[index * count : (index + 1) * count]:
            if ground:
                right.append(one.background == ground)
            if other:
                right.append(any(thing.label == other for thing in one.objects))
    return mean(right)


def known(seen: list[Seen], kind: str) -> float:
    """Share of pictures in which the detector finds the class."""
    return mean(any(thing.label == kind for thing in one.objects) for one in seen)


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Means over the subjects, as a table in Markdown."""
    names = [name for name, value in rows[0].items() if isinstance(value, float | int)]
    lines = [f"{len(rows)} subjects, Limner {limner.__version__}", "", "| figure | mean |", "|---|---|"]
    return lines + [f"| {name} | {mean(row[name] for row in rows):.3f} |" for name in names]


if __name__ == "__main__":
    main()
