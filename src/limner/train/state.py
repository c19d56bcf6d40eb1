"""Checkpoints: all it takes to go on exactly where a run stopped, never half there.

    checkpoints/0000065536/   one file of tensors for each process, and whole.json, written last
    checkpoints/latest        the name of the newest

A checkpoint is written beside its place, flushed to the disk and moved into place in one step; then the
pointer is. The one before stays, for the day that the newest is torn.
"""

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as read_shards
from torch.distributed.checkpoint.state_dict_saver import async_save

from limner.errors import WeightsError
from limner.train.ema import EMA
from limner.train.parallel import Team, like
from limner.weights import files, header

Optimizers = list[torch.optim.Optimizer]
Clock = dict[str, int]
SUMS = "whole.json"


class Checkpoints:
    """The checkpoints of one run: the newest whole one, and the one before."""

    def __init__(self, folder: Path, team: Team) -> None:
        self.folder, self.team = folder / "checkpoints", team
        self.before: str | None = None  # the last that was written or read
        self.pending: Future[Path] | None = None
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        if team.first:
            for left in self.folder.glob("*.partial"):  # of a process that was killed
                _remove(left)

    def names(self) -> list[str]:
        """All, the one that `latest` points to first, the others from the newest on."""
        names = sorted((p.name for p in self.folder.glob("[0-9]*") if p.name.isdigit()), reverse=True)
        try:
            latest = (self.folder / "latest").read_text().strip()
        except OSError:
            latest = ""
        return sorted(names, key=lambda name: name != latest)  # stable

    def begin(self, ema: EMA, optimizers: Optimizers, clock: Clock) -> None:
        """Save a checkpoint. One process writes it at once; several copy their parts and go on while those
        are written, and `finished` tells how that went.

        Raises OSError when there is no room; the last whole one stays.
        """
        self.finished(wait=True)
        tensors = contents(ema, optimizers)
        beside = self.folder / f"{clock['images_seen']:010d}.partial"
        if self.team.size == 1:
            done: Future[Path] = Future()
            done.set_result(self._write(tensors, beside, dict(clock)))
            self.pending = done  # nothing is pending where writing has failed
            return
        writer = HuggingFaceStorageWriter(str(beside), save_distributed=True)
        written = async_save(tensors, storage_writer=writer, process_group=self.team.beside)
        assert isinstance(written, Future)  # another answer is only for stagers of one's own
        self.pending = self.pool.submit(self._follow, written, beside, dict(clock))

    def finished(self, *, wait: bool = False) -> Path | None:
        """The checkpoint that has come into place since last asked. Raises what went wrong with it, once."""
        if self.pending is None or not (wait or self.pending.done()):
            return None
        pending, self.pending = self.pending, None
        return pending.result()

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self.pending is not None and not self.pending.done()

    def load(self, ema: EMA, optimizers: Optimizers) -> tuple[Clock, list[str]]:
        """Restore the newest whole checkpoint in place: its clock, and what is to be said about others.

        The number of processes need not be the one it was saved by. Raises WeightsError when there is none,
        or when it belongs to another network or other optimisers.
        """
        chosen, notes = self.team.tell(self._newest() if self.team.first else (None, []))
        if chosen is None:
            told = "; ".join(notes) or "there is none"
            raise WeightsError(f"{self.folder} holds no whole checkpoint of a training run: {told}.")
        self.before = chosen
        path = self.folder / chosen
        restore(path, ema, optimizers, self.team)
        clock: Clock = json.loads((path / SUMS).read_text())["clock"]
        return clock, notes

    def close(self) -> None:
        """Wait for what is being written."""
        self.pool.shutdown()

    def _newest(self) -> tuple[str | None, list[str]]:
        notes: list[str] = []
        for name in self.names():
            why = torn(self.folder / name)
            if why is None:
                return name, [f"{note}; went back to checkpoint {name}" for note in notes]
            notes.append(f"checkpoint {name} is torn ({why})")
        return None, notes

    def _write(self, tensors: Mapping[str, Tensor], beside: Path, clock: Clock) -> Path:
        try:
            _remove(beside)
            files.save(tensors, beside / "state.safetensors", {})
            return self._put_in_place(beside, clock)
        except BaseException:
            _remove(beside)
            raise

    def _follow(self, written: "Future[object]", beside: Path, clock: Clock) -> Path:
        """In a thread of its own: once all processes have written, the first puts it into place."""
        try:
            written.result()
            return self._put_in_place(beside, clock) if self.team.first else beside.with_suffix("")
        except BaseException as error:
            if self.team.first:
                _remove(beside)
            raise OSError(f"{type(error).__name__}: {error}".splitlines()[0]) from error

    def _put_in_place(self, beside: Path, clock: Clock) -> Path:
        sums = {file.name: {"bytes": file.stat().st_size, "crc32": _crc32(file)} for file in _parts(beside)}
        _write_through(beside / SUMS, json.dumps({"clock": clock, "files": sums}, indent=1))
        _flush(beside)
        path = beside.with_suffix("")
        _remove(path)  # torn, where it is there already
        beside.rename(path)
        _flush(self.folder)
        pointer = self.folder / "latest.partial"
        _write_through(pointer, path.name)
        pointer.replace(self.folder / "latest")
        _flush(self.folder)
        for name in self.names():
            if name not in (path.name, self.before):
                _remove(self.folder / name)
        self.before = path.name
        return path


def torn(path: Path) -> str | None:
    """Why a checkpoint is not whole; None when it is."""
    try:
        sums = json.loads((path / SUMS).read_text())["files"]
        for name, told in sums.items():
            file = path / name
            if (found := file.stat().st_size) != told["bytes"]:
                return f"{name} has {found:,} of {told['bytes']:,} bytes"
            if _crc32(file) != told["crc32"]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def contents(ema: EMA, optimizers: Optimizers) -> dict[str, Tensor]:
    """Everything that changes in a run, by name; not copies."""
    tensors = {f"model.{name}": p.detach() for name, p in ema.parameters.items()}
    tensors |= {f"ema.{name}": p for name, p in ema.state().items()}
    for optimizer in optimizers:
        for name, p in _named(ema.parameters, optimizer):
            tensors |= {f"optim/{field}/{name}": value for field, value in optimizer.state[p].items()}
    return tensors


def restore(path: Path, ema: EMA, optimizers: Optimizers, team: Team) -> None:
    """Fill parameters, average and moments in place from a whole checkpoint.

    Raises WeightsError when it belongs to another network or other optimisers.
    """
    reader = HuggingFaceStorageReader(str(path))
    held = {name: told.size for name, told in reader.read_metadata().state_dict_metadata.items()}  # type: ignore[union-attr]
    targets = contents(ema, [])
    for key, target in targets.items():
        if held.pop(key, None) != target.shape:
            raise WeightsError(
                f"{path} has no {key} of shape {tuple(target.shape)}: it is of another network."
            )
    owners = {name: (optim, p) for optim in optimizers for name, p in _named(ema.parameters, optim)}
    for key, shape in held.items():
        _, field, name = key.split("/", 2) if key.startswith("optim/") else ("", "", key)
        if name not in owners:
            raise WeightsError(f"{path} has {key}, which this run does not use: it is of another run.")
        optim, p = owners[name]
        # Laid out in memory as the parameter, for sums depend on the order.
        moment = torch.empty_like(p) if shape == p.shape else torch.empty(shape, device=p.device)
        targets[key] = optim.state[p][field] = moment.detach()
    with warnings.catch_warnings():  # that one process means one process
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        read_shards(dict(targets), storage_reader=reader, process_group=team.beside, no_dist=team.size == 1)


def start_from(path: Path, ema: EMA, published: set[str]) -> None:
    """Begin with the weights that another run published; what is never published stays as initialised.

    Raises WeightsError when the file cannot be read, or a tensor is missing or of another shape.
    """
    tensors = files.read(path)
    with torch.no_grad():
        for name, p in ema.parameters.items():
            if name not in published:
                continue
            if name not in tensors or tensors[name].shape != p.shape:
                raise WeightsError(
                    f"{path} has no {name} of shape {tuple(p.shape)}: it is of another network."
                )
            for target in (p, ema.weights[name]):
                target.copy_(like(target, tensors[name].to(target.dtype)))


def go_on_from(path: Path, ema: EMA, published: set[str]) -> Clock:
    """Go on with a run of which only its published weights are left; returns their clock.

    Weights and average are the averaged ones in bfloat16, optimisers are new, and what is never published is
    as initialised. Raises WeightsError as `start_from` does, and for a file without a clock.
    """
    start_from(path, ema, published)
    try:
        clock = json.loads(header.read_metadata(path)["clock"])
        more = ("broken",) if "broken" in clock else ()  # which earlier versions did not count
        return {name: int(clock[name]) for name in ("step", "images_seen", "skipped", *more)}
    except (KeyError, TypeError, ValueError):
        raise WeightsError(f"{path} does not say how far its run had come; start anew with it.") from None


def _named(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in parameters.items() if id(p) in held]


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _crc32(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def _write_through(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Names of files are on the disk only when their folder is."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
