"""What draws in the worker processes of the tests: plain colours, without torch, with the mishaps that a
prompt asks for.

    "die:2"        kill -9 at step 2              "die:saved"     when the files are written
    "hang:2"       say nothing more at step 2     "slow"          20 ms a step
    "wait:NAME"    until the file NAME is there   "endless"       steps without end
    "memory:2"     none for more than 2 pictures  "memory:0"      for no picture at all
    "memory:lean"  only for the lean way          "refuse", "broken", "boom", "sick"
    "mute"         ends without pictures          "until:1"       all this at the first attempt alone

Files in its folder do the rest: "die-open" and "die-pays" hold how often to die of that, "no-drawer" and
"slow-open" are there or not.
"""

import io
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from limner.errors import EngineError, RequestError, WeightsError
from limner.serve import files
from limner.serve.messages import Look, ModelInfo, Painted, Piece

STEPS = 4
COLOURS = ("crimson", "seagreen", "royalblue", "gold", "orchid", "teal", "coral", "slategray")


def encoded(seed: int, side: int = 16, kind: str = "PNG") -> bytes:
    """A square of the seed's colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), COLOURS[seed % len(COLOURS)]).save(file, kind)
    return file.getvalue()


@dataclass
class Sketcher:
    """Draws in STEPS steps. It writes what it was asked for to the file "log" in `folder`."""

    folder: Path
    batch: int  # pictures that pay at once
    device: str

    def __post_init__(self) -> None:
        if (self.folder / "no-drawer").exists():
            raise EngineError("no drawer today")
        self.log(f"made {self.device}")
        self.ill = False

    def log(self, line: str) -> None:
        with (self.folder / "log").open("a") as file:
            file.write(f"{os.getpid()} {line}\n")

    def open(self, model: str) -> ModelInfo:
        self.log(f"open {model}")
        self.die_of("open")
        until = time.monotonic() + 60
        while (self.folder / "slow-open").exists():
            assert time.monotonic() < until
            time.sleep(0.002)
        if model == "torn":
            raise WeightsError("/secret/folder/torn.safetensors has no network")
        return ModelInfo(name=model, family="mini", default_size=(16, 16), fingerprint="0" * 8)

    def pays(self) -> int:
        self.log("pays")
        self.die_of("pays")
        return self.batch

    def die_of(self, what: str) -> None:
        marker = self.folder / f"die-{what}"  # how often to die
        if marker.exists() and (left := int(marker.read_text())):
            marker.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)

    def relieve(self) -> None:
        self.log("relieve")

    def sound(self) -> bool:
        return not self.ill

    def draw(self, pieces: Sequence[Piece], *, lean: bool) -> Iterator[Sequence[Look]]:
        told = " ".join(f"{piece.request['prompt']}+{piece.first}x{piece.count}" for piece in pieces)
        self.log(f"draw{' lean' if lean else ''} {told}")
        for picture in (one for piece in pieces for one in piece.pictures.values()):
            self.log(f"given {picture.id} {picture.file}")
        while any("endless" in str(piece.request["prompt"]) for piece in pieces):
            time.sleep(0.002)
            yield [self.look(piece, 1 / STEPS) for piece in pieces]
        for step in range(STEPS):
            for piece in pieces:
                self.mishaps(piece, step, sum(one.count for one in pieces), lean)
            if step == STEPS - 1 and any("mute" in str(piece.request["prompt"]) for piece in pieces):
                return
            yield [self.look(piece, (step + 1) / STEPS) for piece in pieces]

    def look(self, piece: Piece, share: float) -> Look:
        seed = piece.request["seed"]
        assert isinstance(seed, int)
        seeds = [seed + index for index in range(piece.first, piece.first + piece.count)]
        painted = [Painted(seed=one, width=16, height=16, data=encoded(one)) for one in seeds]
        return Look(
            share=share,
            stage="sketch",
            preview=lambda side: tuple(encoded(one, min(side, 8), "JPEG") for one in seeds),
            painted=tuple(painted) if share == 1 else (),
            notices=("as sketched",) if share == 1 else (),
        )

    def mishaps(self, piece: Piece, step: int, pictures: int, lean: bool) -> None:
        words = dict(word.partition(":")[::2] for word in str(piece.request["prompt"]).split())
        if piece.attempt > int(words.get("until", 100)):
            return
        here = str(step)
        if "slow" in words:
            time.sleep(0.02)
        if words.get("die") == here:
            os.kill(os.getpid(), signal.SIGKILL)
        if words.get("die") == "saved" and step == STEPS - 1:
            files.keep = partial(kept_and_died, files.keep, piece.count)  # type: ignore[assignment]
        if words.get("hang") == here:
            self.log("hangs")
            time.sleep(1000)
        if "memory" in words and not (words["memory"] == "lean" and lean) and step == 1:
            most = 0 if words["memory"] == "lean" else int(words["memory"])
            if pictures > most:
                raise MemoryError
        if name := words.get("wait"):
            until = time.monotonic() + 60
            while not (self.folder / name).exists():
                assert time.monotonic() < until
                time.sleep(0.002)
        if step == 2:
            self.errors(words)

    def errors(self, words: dict[str, str]) -> None:
        if "refuse" in words:
            raise RequestError("/secret/folder/words.txt knows no such thing; ask for a cat")
        if "broken" in words:
            raise EngineError("1 of 1 pictures hold values that are not finite (seeds 7)")
        if "boom" in words:
            raise KeyError("/secret/folder/of/the/server")
        if "sick" in words:
            self.ill = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


def kept_and_died(keep: object, count: int, folder: Path, name: str, data: bytes) -> Path:
    """In place of files.keep: kills the process after the last of a job's files."""
    path = keep(folder, name, data)  # type: ignore[operator]
    if name.endswith(f"-{count - 1}.png"):
        os.kill(os.getpid(), signal.SIGKILL)
    return path


def serving(url: str, folder: Path) -> None:
    """The life of a server with one such drawer, until it is killed."""
    from limner.serve.engine import LocalEngine
    from limner.serve.store import Store

    engine = LocalEngine(Store(url, folder / "pictures"), drawer=partial(Sketcher, folder, 4))
    engine.start()
    time.sleep(1000)


def forgetting(url: str, folder: Path) -> None:
    """A server that ends without a word to its engine, once that draws."""
    from limner.serve.engine import LocalEngine
    from limner.serve.store import Store

    engine = LocalEngine(Store(url, folder / "pictures"), drawer=partial(Sketcher, folder, 4))
    engine.start()
    while not engine.healthy().running:
        time.sleep(0.02)
