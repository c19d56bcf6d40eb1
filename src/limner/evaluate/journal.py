"""What a run has judged so far, on the disk: a run that was cut short goes on where it stopped."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from limner.errors import RequestError
from limner.evaluate.composition import Verdict
from limner.evaluate.prompts import Prompt
from limner.evaluate.run import Judged
from limner.models.detector import Detection, Seen

FILE = "composition.partial.jsonl"  # in the folder of a run, until it is finished


class Journal:
    """A line of settings, then one line for every prompt that was judged, written as it comes."""

    def __init__(self, folder: Path, settings: Mapping[str, object], *, resume: bool = False) -> None:
        """Begin a journal in `folder`, or with `resume` go on with the one that is there.

        Raises RequestError when there is none to go on with, when one is there but `resume` is not asked for,
        when a setting differs from what the journal says, and when the folder cannot be written.
        """
        self.path = folder / FILE
        self._told: dict[tuple[str, int], list[dict[str, Any]]] = {}
        told = json.loads(json.dumps(dict(settings)))
        try:
            if resume:
                self._read(told)
                self._file = self.path.open("a", encoding="utf-8")
            else:
                refuse(folder)
                folder.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("x", encoding="utf-8")
                self._write(told)
        except OSError as error:
            raise RequestError(f"cannot write {self.path}: {error.strerror}") from None

    def known(self, source: str, prompts: Sequence[Prompt]) -> dict[int, list[Judged]]:
        """What the journal says about the prompts, by their number."""
        return {
            number: [_judged(prompts[number], picture) for picture in pictures]
            for (name, number), pictures in self._told.items()
            if name == source and number < len(prompts)
        }

    def write(self, source: str, number: int, judged: Sequence[Judged]) -> None:
        """Add what came of prompt `number`, unless the journal has it. Raises RequestError on a full disk."""
        if (source, number) in self._told:
            return
        try:
            self._write({"source": source, "number": number, "pictures": [_told(one) for one in judged]})
        except OSError as error:
            raise RequestError(f"cannot write {self.path}: {error.strerror}") from None

    def close(self) -> None:
        """The file stays; `report.save` takes it away when the report is there."""
        self._file.close()

    def _write(self, line: Mapping[str, object]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _read(self, settings: Mapping[str, object]) -> None:
        """All whole lines; what was torn when the process died is cut off."""
        if not self.path.is_file():
            raise RequestError(f"there is no run to go on with in {self.path.parent}; leave --resume away")
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            first, *lines = [json.loads(line) for line in whole.decode().splitlines()]
            self._told = {(str(line["source"]), int(line["number"])): line["pictures"] for line in lines}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RequestError(f"{self.path} is broken; delete it and begin anew") from None
        for name in sorted({*first, *settings}):
            before, now = first.get(name), settings.get(name)
            if before != now:
                raise RequestError(
                    f"the run in {self.path.parent} has the {name} {_short(before)}, not {_short(now)}; "
                    "resume with the same settings, or choose another folder"
                )
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))


def refuse(folder: Path) -> None:
    """Raises RequestError when the folder holds a run that was cut short."""
    if (folder / FILE).exists():
        raise RequestError(
            f"{folder} holds a run that was cut short; go on with it by --resume, or choose another folder"
        )


def _told(one: Judged) -> dict[str, object]:
    return {
        "seed": one.seed,
        "reasons": list(one.verdict.reasons),
        "seen": None if one.seen is None else _seen_told(one.seen),
        "thumbnail": base64.b64encode(one.thumbnail).decode(),
    }


def _judged(prompt: Prompt, told: Mapping[str, Any]) -> Judged:
    return Judged(
        prompt=prompt,
        seed=told["seed"],
        verdict=Verdict(reasons=tuple(told["reasons"])),
        seen=None if told["seen"] is None else _seen(told["seen"]),
        thumbnail=base64.b64decode(told["thumbnail"]),
    )


def _seen_told(seen: Seen) -> dict[str, object]:
    """All of it and exactly, which the report's JSON is not."""
    features = seen.features.detach().cpu().float().contiguous().numpy().tobytes()
    return {
        "objects": [[thing.label, thing.score, thing.box, thing.colour] for thing in seen.objects],
        "letters": [[thing.label, thing.score, thing.box, thing.colour] for thing in seen.letters],
        "style": seen.style,
        "background": seen.background,
        "features": base64.b64encode(features).decode(),
    }


def _seen(told: Mapping[str, Any]) -> Seen:
    def things(rows: Sequence[Sequence[Any]]) -> tuple[Detection, ...]:
        return tuple(
            Detection(label=label, score=score, box=(box[0], box[1], box[2], box[3]), colour=colour)
            for label, score, box, colour in rows
        )

    return Seen(
        objects=things(told["objects"]),
        letters=things(told["letters"]),
        style=told["style"],
        background=told["background"],
        features=torch.frombuffer(bytearray(base64.b64decode(told["features"])), dtype=torch.float32),
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
