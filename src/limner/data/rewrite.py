"""Long captions, written by a language model beside the original ones."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import ClassVar

from limner.data.endpoint import TOLD, Endpoint, Refused
from limner.data.pictures import PictureError, open_picture
from limner.data.records import DataSet, Record
from limner.data.steps import Outcome
from limner.errors import ConfigError, DataError

FAILED = "rewrite_failed"  # the fact that says why a record has no new long caption


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewrite:
    """A step that asks an endpoint for a long caption of every record. The caption itself stays.

    Where there is no answer the record stays as it was, and the fact `rewrite_failed` says why. Every answer
    is kept in `journal` as it comes, so that a run that was cut short asks for nothing twice.
    """

    name: ClassVar[str] = "rewrite"
    endpoint: Endpoint
    journal: Path  # folder for the answers; all workers must see it
    told: str = TOLD  # to the model, before each caption
    look: bool = False  # whether it is shown the picture
    again: bool = False  # whether long captions that are there are written anew
    at_once: int = 4  # requests of each worker
    anew: int = 0  # with `again`: how often the set was rewritten before, so that no old answer is taken
    retry: int = 0  # how often the records that had no answer are asked for again

    def __post_init__(self) -> None:
        if not 1 <= self.at_once <= 64:
            raise ConfigError(f"from 1 to 64 requests are made at once, got {self.at_once}")

    def part(self, records: list[Record]) -> Outcome:
        """Raises DataError when the endpoint would answer nothing, or the journal cannot be written."""
        digest = hashlib.sha256("\n".join(record.key for record in records).encode()).hexdigest()[:16]
        path = self.journal / f"{digest}.jsonl"
        known = dict(_read(path))
        lock = Lock()
        try:
            self.journal.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file, ThreadPoolExecutor(self.at_once) as pool:

                def note(asked: str, said: str) -> None:
                    with lock:
                        file.write(json.dumps({"asked": asked, "said": said}) + "\n")
                        file.flush()
                        os.fsync(file.fileno())

                pending = [pool.submit(self._one, record, known, note) for record in records]
                try:
                    kept = [future.result() for future in pending]
                finally:
                    pool.shutdown(cancel_futures=True)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}") from None
        return Outcome(kept=kept)

    def _one(self, record: Record, known: Mapping[str, str], note: Callable[[str, str], None]) -> Record:
        """The record with its long caption. A new answer is noted at once."""
        facts = {name: fact for name, fact in record.facts.items() if name != FAILED}
        if record.long_caption and not self.again:
            return replace(record, facts=facts)
        if not record.caption and not self.look:
            return replace(record, facts=facts | {FAILED: "it has no caption to begin with"})
        if (said := known.get(self._digest(record))) is not None:
            return replace(record, long_caption=said, facts=facts)
        try:
            picture = open_picture(record.picture) if self.look else None
            said = self.endpoint.describe(record.caption, told=self.told, picture=picture)
        except (Refused, PictureError) as error:
            return replace(record, facts=facts | {FAILED: str(error)})
        note(self._digest(record), said)
        return replace(record, long_caption=said, facts=facts)

    def _digest(self, record: Record) -> str:
        """What an answer depends on: another model, another caption and `again` ask anew."""
        asked = [self.endpoint.url, self.endpoint.model, self.told, self.look, record.key, record.caption]
        asked += [self.anew] if self.again else []
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]


def failures(data: DataSet) -> Iterator[tuple[str, str]]:
    """(key, why) of each record that has no new long caption."""
    for record in data.records():
        if FAILED in record.facts:
            yield record.key, str(record.facts[FAILED])


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """The answers in a journal; a line that was not finished is passed over."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    for line in lines:
        try:
            row = json.loads(line)
            if isinstance(row["asked"], str) and isinstance(row["said"], str):
                yield row["asked"], row["said"]
        except (ValueError, KeyError, TypeError):
            continue
