"""Scenes composed per second, against a plain Pillow loop that pastes the same tiles in the same places.

    python benchmarks/compose.py [--atlas FOLDER] [--scenes 1024] [--size 64] [--device cpu]

The atlas is the one of `limner world prepare`. Both give pixels and what each object covers. The peer gets
its backgrounds ready-made and recolours nothing, which is in its favour; ours draws the scene, paints and
recolours. The figures per processor second hold on a busy machine, too.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from facts import machine, report, seconds
from PIL import Image

from limner.data.world.art import DEFAULT_FOLDER, Atlas, load_atlas
from limner.data.world.backgrounds import paint
from limner.data.world.scene import PLACES, Scenes, World
from limner.util.images import images_from_pixels


def straight(atlas: Atlas, size: int) -> list[list[Image.Image]]:
    """Tiles as Pillow wants them, by style and object: colour not multiplied by alpha."""
    stored = min((s for s in atlas.tiles if s >= size), default=max(atlas.tiles))
    tiles = atlas.tiles[stored].cpu().numpy().transpose(0, 1, 3, 4, 2).astype(np.float32)
    alpha = np.maximum(tiles[..., 3:], 1)
    rgba = np.concatenate([tiles[..., :3] / alpha * 255, tiles[..., 3:]], -1).clip(0, 255).astype(np.uint8)
    return [[Image.fromarray(tile, "RGBA") for tile in style] for style in rgba]


def paste(
    tiles: list[list[Image.Image]], scenes: Scenes, grounds: list[Image.Image], size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The peer: one picture after the other, one object after the other; gives what `World.render` gives."""
    columns = (scenes.style, scenes.object, scenes.centre, scenes.side)
    pictures, covers = [], np.zeros((len(grounds), PLACES, size, size), np.float32)
    rows = zip(grounds, covers, *(column.tolist() for column in columns), strict=True)
    for ground, cover, style, objects, centres, sides in rows:
        picture = ground.copy()
        for place in range(PLACES):
            if objects[place] < 0:
                continue
            side = max(1, round(sides[place] * size))
            tile = tiles[style][objects[place]].resize((side, side), Image.Resampling.BILINEAR)
            corner = tuple(round(c * size - side / 2) for c in centres[place])
            picture.paste(tile, corner, tile)
            mask = Image.new("L", (size, size))
            mask.paste(tile.getchannel("A"), corner)
            cover[place] = np.asarray(mask, np.float32) / 255
            cover[:place] *= 1 - cover[place]
        pictures.append(np.asarray(picture.convert("RGB")))
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, torch.from_numpy(covers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--atlas", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--scenes", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    world = World(load_atlas(args.atlas.expanduser()), device=args.device)
    generator = torch.Generator().manual_seed(0)
    batches = max(1, args.scenes // args.batch)

    def compose() -> None:
        for _ in range(batches):
            world.render(world.sample(args.batch, generator), args.size)

    count = batches * args.batch
    start = time.process_time()
    ours = count / seconds(compose, args.repeats, args.device)
    ours_busy = count * (args.repeats + 1) / (time.process_time() - start)

    scenes = World(world.atlas.to(torch.device("cpu"))).sample(args.batch, generator)
    painted = paint(scenes.background, scenes.background_colour, scenes.texture, args.size)
    grounds = [picture.convert("RGBA") for picture in images_from_pixels(painted * 2 - 1)]
    tiles = straight(world.atlas, args.size)
    start = time.process_time()
    peer = args.batch / seconds(lambda: paste(tiles, scenes, grounds, args.size), args.repeats)
    peer_busy = args.batch * (args.repeats + 1) / (time.process_time() - start)

    print(machine(args.device))
    report(
        f"Scenes composed at {args.size} px, backgrounds included, batches of {args.batch}",
        ours,
        peer,
        "scenes/s",
        "Pillow, one process",
        more_is_better=True,
    )
    print(f"  per processor second: limner {ours_busy:.0f}, peer {peer_busy:.0f} scenes")


if __name__ == "__main__":
    main()
