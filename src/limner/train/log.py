"""The loss curve of a run: a JSON line for each step, and TensorBoard where that is installed."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limner.train.notes import Notes


class Log:
    """A resumed run goes on after the step of `clock`: lines of steps that were lost with the process are
    taken out. Where a line cannot be written, that is noted, and training goes on."""

    def __init__(self, folder: Path, clock: Mapping[str, int], notes: Notes) -> None:
        self.notes, self.folder = notes, folder
        path = folder / "log.jsonl"
        kept = [line for line in read(folder) if line["step"] <= clock["step"]]
        beside = path.with_suffix(".partial")
        beside.write_text("".join(json.dumps(line) + "\n" for line in kept))
        beside.replace(path)
        self.lines = path.open("a", buffering=1)  # whole lines reach the file, however the process ends
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board = None
        else:
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=clock["images_seen"] + 1)

    def write(self, clock: Mapping[str, int], values: Mapping[str, float], broken: list[str]) -> None:
        """One line; a value that is not finite is null in the file and left out of the board.

        `broken` names the samples of the step that could not be read.
        """
        row = {**clock, **values}
        shown = {name: value if math.isfinite(value) else None for name, value in row.items()}
        told: dict[str, Any] = {**shown, "samples": broken} if broken else dict(shown)
        with self.notes.of("the log"):
            self.lines.write(json.dumps(told) + "\n")
        with self.notes.of("TensorBoard's log"):
            if self.board is not None:
                for name, value in shown.items():
                    if value is not None:
                        self.board.add_scalar(name, value, clock["images_seen"])

    def sheet(self, picture: Image.Image, images_seen: int) -> Path | None:
        """Save a sheet of samples, and show it on the board; None where it could not be written."""
        path = self.folder / "sheets" / f"{images_seen:010d}.png"
        written: Path | None = None
        with self.notes.of("a sheet"):
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
            written = path
            if self.board is not None:
                levels = np.asarray(picture.convert("RGB"))
                self.board.add_image("samples", levels, images_seen, dataformats="HWC")
        return written

    def close(self) -> None:
        """Write what is left."""
        with self.notes.of("the log"):
            self.lines.close()
        with self.notes.of("TensorBoard's log"):
            if self.board is not None:
                self.board.close()


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; one that was cut short is left out."""
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]
