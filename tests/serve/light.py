"""`limner serve` as a program, but that plain colours are drawn instead of pictures: for tests of the server
as a whole.

    LIGHT=FOLDER python light.py serve --data ...

FOLDER is the drawers'; what their prompts may say is in drawers.py, and besides:

    "torn"        kill -9 of server and worker when half of a file is written
    "unrecorded"  the server stands still once the files are written, until the file "go" is there
"""

import functools
import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drawers import COLOURS, STEPS, Sketcher
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner.serve import files
from limner.serve.messages import Look, ModelInfo, Painted, Piece

CAN = frozenset({"image", "mask", "extend", "negative_prompt"})


@dataclass
class Painter(Sketcher):
    """Draws pictures of the size that was asked for, with the texts that a file may have, and previews."""

    def open(self, model: str) -> ModelInfo:
        return replace(
            super().open(model),
            default_size=(64, 64),
            sizes=(16, 1024),
            styles=("flat", "glossy"),
            can=CAN,
            defaults={"steps": STEPS, "guidance": 2.5, "sampler": "ddpm", "grid": None, "size": [64, 64]},
        )

    def draw(self, pieces: Sequence[Piece], *, lean: bool) -> Iterator[Sequence[Look]]:
        if any("torn" in str(piece.request.get("prompt")) and piece.attempt == 1 for piece in pieces):
            files._write = half_a_file  # type: ignore[assignment]
        if "upscale" in pieces[0].request:
            yield [self.larger(piece) for piece in pieces]
            return
        yield from super().draw(pieces, lean=lean)

    def look(self, piece: Piece, share: float) -> Look:
        seed, size = piece.request["seed"], piece.request["size"]
        assert isinstance(seed, int)
        assert isinstance(size, list | tuple)
        seeds = [seed + index for index in range(piece.first, piece.first + piece.count)]
        height, width = size
        drawn = [(one, picture(one, (width, height))) for one in seeds]
        painted = [
            Painted(seed=one, width=width, height=height, data=encoded(image, texts(piece, one)))
            for one, image in drawn
        ]
        return Look(
            share=share,
            stage="drawing",
            preview=lambda side: tuple(encoded(image.resize((8, 8)), None) for _, image in drawn),
            painted=tuple(painted) if share == 1 else (),
        )

    def larger(self, piece: Piece) -> Look:
        told = piece.request["upscale"]
        assert isinstance(told, dict)
        found = piece.pictures[str(told["picture"])]
        width, height = (round(side * told["scale"]) for side in (found.width, found.height))
        data = encoded(picture(0, (width, height)), {})
        painted = Painted(seed=found.seed, width=width, height=height, data=data)
        return Look(share=1.0, stage="upscaler", preview=lambda side: (), painted=(painted,))


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """One colour, which follows from the seed."""
    return Image.new("RGB", size, COLOURS[seed % len(COLOURS)])


def encoded(image: Image.Image, told: dict[str, str] | None) -> bytes:
    """A PNG with these texts, or (None) a JPEG."""
    file = io.BytesIO()
    if told is None:
        image.save(file, "JPEG")
    else:
        info = PngInfo()
        for key, value in told.items():
            info.add_itxt(key, value)
        image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def texts(piece: Piece, seed: int) -> dict[str, str]:
    """What a file may tell, by the metadata level."""
    asked = {
        key: value for key, value in piece.request.items() if key in ("prompt", "steps", "size", "model")
    }
    line = f"{asked['prompt']}\nSteps: {STEPS}, Sampler: DDPM, CFG scale: 2.5, Seed: {seed}, Version: limner"
    told = {"parameters": line, "limner": json.dumps({"request": asked | {"seed": seed}})}
    return {"none": {}, "minimal": {"parameters": line}, "full": told}[piece.metadata]


def half_a_file(path: Path, data: bytes) -> None:
    """In place of files._write."""
    path.write_bytes(data[: len(data) // 2])
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """The command line, with a Painter in every engine."""
    from limner import cli
    from limner.serve import cluster, listening
    from limner.serve.store import Store

    folder = Path(os.environ["LIGHT"])
    drawer = functools.partial(Painter, folder, 4)
    listening.LocalEngine = functools.partial(listening.LocalEngine, drawer=drawer)  # type: ignore[assignment,misc]
    cluster.run = functools.partial(cluster.run, drawer=drawer)  # type: ignore[assignment]
    finish = Store.finish

    def held(store: Store, id: str, *rest: Any, **more: Any) -> bool:
        while "unrecorded" in str(store.get(id).request.get("prompt")) and not (folder / "go").exists():
            (folder / "unrecorded").touch()
            time.sleep(0.01)
        return finish(store, id, *rest, **more)

    Store.finish = held  # type: ignore[assignment]
    cli.main()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import light  # so that what is pickled can be found again

    light.main()
