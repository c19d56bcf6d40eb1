"""The tensors of a `.ckpt`, `.pt` or `.bin`, copied into a safetensors file without running what is pickled.

A pickle is a program. `copy_tensors` reads it in a child process whose memory, time and disk are bounded, by
an unpickler that knows a short list of names and has its own harmless stand-in for each: it never imports
what a file asks for, and neither torch nor `torch.load` takes part. Any other name ends the reading.

Both formats of torch.save are read: a zip with data.pkl and one stored entry per storage, and the older
sequence of pickles followed by the storages. Run by itself, this module is the child.
"""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib.stride_tricks import as_strided

from limner.errors import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C  # what the older format begins with
PROGRAM = 64_000_000  # bytes of the pickled program at most, without the numbers
MEMORY = 6 * 2**30  # bytes of address space that the child may take
SECONDS = 60.0  # for a small file; a large one has as many again for each gigabyte
GROWTH = 4  # how many times larger than its file the copy may be
CHUNK = 2**24  # bytes
TABLES = ("state_dict", "params_ema", "params")  # what checkpoints call their weights; the first counts
STORAGES = {  # torch's name -> type in safetensors, bytes of one number
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}


def copy_tensors(path: Path, out: Path, seconds: float | None = None) -> list[str]:
    """Write the tensors of the pickle `path` to the safetensors file `out`, which appears whole or never.

    Returns the names of what is no tensor and was left out. Raises WeightsError, with one sentence, for what
    is not on the list, is broken, or takes too much memory or more than `seconds`.
    """
    if not path.is_file():
        raise WeightsError(f"there are no weights at {path}")
    seconds = seconds or SECONDS * (1 + path.stat().st_size / 2**30)
    beside = out.with_name(f"{out.name}.{os.getpid()}.partial")
    # -P: a file called numpy.py in the current folder must not be imported
    command = [
        sys.executable,
        "-P",
        "-m",
        "limner.weights.unpickle",
        str(path.resolve()),
        str(beside.resolve()),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        said = json.loads(done.stdout or b"{}")
        if "skipped" not in said:
            raise WeightsError(f"{path} cannot be converted: {said.get('error', 'its reader died of it')}")
        beside.replace(out)
    except subprocess.TimeoutExpired:
        raise WeightsError(f"{path} cannot be converted: reading takes over {seconds:.0f} s") from None
    except ValueError:
        raise WeightsError(f"{path} cannot be converted: its reader died of it") from None
    finally:
        beside.unlink(missing_ok=True)
    return [str(name) for name in said["skipped"]]


@dataclass(frozen=True, slots=True)
class _Storage:
    """A run of numbers somewhere in the file."""

    key: str
    dtype: str
    width: int  # bytes of one number
    count: int


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor: numbers of a storage, in steps."""

    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=object)) if self.shape else 1

    @property
    def nbytes(self) -> int:
        return self.count * self.storage.width

    @property
    def packed(self) -> bool:
        """Whether its numbers stand one after the other, in order."""
        expected, packed = 1, True
        for side, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            packed = packed and (side == 1 or stride == expected)
            expected *= side
        return packed


class _Inert:
    """Stands in for what Lightning and numpy leave in checkpoints; holds nothing and does nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    def extend(self, values: object) -> None:
        pass


class _Table(OrderedDict[object, object]):
    """A dictionary; torch sets attributes on it, which are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


def _tensor(storage: object, start: object, shape: object, strides: object, *rest: object) -> _View:
    if not (isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise WeightsError("it holds a tensor without numbers")
    numbers = (start, *shape, *strides)
    if len(shape) != len(strides) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise WeightsError(f"it holds a tensor of the shape {shape!r}"[:200])
    view = _View(storage, start, shape, strides)  # type: ignore[arg-type]
    reach = view.start + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) + 1
    if view.count and reach > storage.count:
        raise WeightsError(f"it holds a tensor of the shape {shape} that reaches beyond its numbers")
    return view


def _parameter(data: object, *rest: object) -> object:
    return data


def _allowed(module: str, name: str) -> object:
    """Our stand-in for a global of the pickle. Nothing is imported, whatever is asked for."""
    if module in ("torch", "torch.storage") and name in STORAGES:
        return STORAGES[name]
    stand_ins: dict[tuple[str, str], Callable[..., object]] = {
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("collections", "OrderedDict"): _Table,
        ("torch.nn.modules.container", "ParameterDict"): _Table,
        ("torch", "Size"): tuple,
        ("torch", "device"): _Inert,
        ("numpy", "dtype"): _Inert,
        ("numpy.core.multiarray", "scalar"): _Inert,
        ("numpy._core.multiarray", "scalar"): _Inert,
        ("_codecs", "encode"): _Inert,
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): _Inert,
        ("pytorch_lightning.utilities.enums", "_FaultTolerantMode"): _Inert,
    }
    if (module, name) not in stand_ins:
        raise WeightsError(
            f"it asks for {module}.{name}, which is not on the list of what weights need"[:200]
        )
    return stand_ins[module, name]


class _Reader(pickle.Unpickler):
    """An unpickler that can make dictionaries, lists, numbers, text and views of storages."""

    def find_class(self, module: str, name: str) -> object:
        return _allowed(module, name)

    def persistent_load(self, pid: object) -> _Storage:
        match pid:
            case ("storage", (str(dtype), int(width)), str(key), str(), int(count), *rest):
                if 0 <= count < 2**48 and rest in ([], [None]):
                    return _Storage(key, dtype, width, count)
        raise WeightsError("it refers to something that is not a storage")


def _opened(file: IO[bytes]) -> tuple[object, Callable[[_Storage], tuple[IO[bytes], int]]]:
    """What is pickled, and where the bytes of a storage begin."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    if start == b"PK\3\4":
        return _opened_zip(file, size)
    if start[:1] != b"\x80":
        raise WeightsError("it is neither a zip nor a pickle of torch.save")
    if _Reader(file).load() != MAGIC or _Reader(file).load() != 1001:
        raise WeightsError("it is a pickle, but not one of torch.save")
    about = _Reader(file).load()
    if not isinstance(about, dict) or about.get("little_endian") is not True:
        raise WeightsError("its numbers are not little-endian")
    content = _Reader(file).load()
    keys = _Reader(file).load()
    if file.tell() > PROGRAM:
        raise WeightsError(f"its program takes over {PROGRAM} bytes")
    storages = {view.storage.key: view.storage for _, view in _views(content)}
    places: dict[str, int] = {}
    for key in keys if isinstance(keys, list) else ():
        count = int.from_bytes(file.read(8), "little")
        if key not in storages or count != storages[key].count:
            raise WeightsError(f"its storage {key!r} is not as long as its tensors say"[:200])
        places[key] = file.tell()
        file.seek(count * storages[key].width, os.SEEK_CUR)
    if file.tell() > size or set(storages) - set(places):
        raise WeightsError("it is cut short")
    return content, lambda storage: (file, places[storage.key])


def _opened_zip(file: IO[bytes], size: int) -> tuple[object, Callable[[_Storage], tuple[IO[bytes], int]]]:
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    if sum(entry.file_size for entry in entries.values()) > size or any(
        entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()
    ):
        raise WeightsError("its zip is packed or larger inside than outside; torch.save writes neither")
    programs = [name for name in entries if name.endswith("data.pkl")]
    if len(programs) != 1 or entries[programs[0]].file_size > PROGRAM:
        raise WeightsError(f"its zip should hold one data.pkl of at most {PROGRAM} bytes")
    root = programs[0].removesuffix("data.pkl")
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
        raise WeightsError("its numbers are not little-endian")
    with archive.open(programs[0]) as program:
        content = _Reader(program).load()

    def place(storage: _Storage) -> tuple[IO[bytes], int]:
        entry = entries.get(f"{root}data/{storage.key}")
        if entry is None or entry.file_size != storage.count * storage.width:
            raise WeightsError(f"its storage {storage.key!r} is missing or of another length"[:200])
        return archive.open(entry), 0

    return content, place


def _views(content: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, _View]]:
    """Names and tensors of a table, of the one in TABLES where it has one, or of the tables inside."""
    if isinstance(content, dict) and depth < 4:
        for name, value in (_weights(content) if not prefix else content).items():
            if isinstance(value, _View):
                yield f"{prefix}{name}", value
            else:
                yield from _views(value, f"{prefix}{name}.", depth + 1)


def _weights(content: dict[object, object]) -> dict[object, object]:
    tables = (content[name] for name in TABLES if isinstance(content.get(name), dict))
    return next(tables, content)  # type: ignore[arg-type]  # just checked


def _skipped(content: object) -> list[str]:
    """Names of what stands beside tensors and is none."""
    table = _weights(content) if isinstance(content, dict) else {}
    beside = [content, table] if table is not content else [content]
    return [
        str(name)[:100]
        for part in beside
        if isinstance(part, dict)
        for name, value in part.items()
        if not isinstance(value, _View) and value is not table and not any(_views(value, "."))
    ]


def _bytes(view: _View, file: IO[bytes], start: int) -> Iterator[bytes]:
    """The numbers of a view in order, in pieces."""
    width = view.storage.width
    if view.packed:
        file.seek(start + view.start * width)
        left = view.nbytes
        while left:
            piece = file.read(min(CHUNK, left))
            if not piece:
                raise WeightsError("it is cut short")
            left -= len(piece)
            yield piece
    else:
        file.seek(start)
        numbers = np.frombuffer(file.read(view.storage.count * width), f"V{width}")
        if len(numbers) != view.storage.count:
            raise WeightsError("it is cut short")
        steps = tuple(stride * width for stride in view.strides)
        yield np.ascontiguousarray(as_strided(numbers[view.start :], view.shape, steps)).tobytes()


def _copy(source: Path, out: Path) -> list[str]:
    """In the child: read `source`, write `out`, and return the names of what was left out."""
    with source.open("rb") as file:
        content, place = _opened(file)
        views = dict(_views(content))
        if not views:
            raise WeightsError("it holds no table of tensors")
        if sum(view.nbytes for view in views.values()) > max(GROWTH * source.stat().st_size, 2**20):
            raise WeightsError("its tensors are far larger than the file")
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, view in views.items():
            span = [at, at + view.nbytes]
            header[name] = {"dtype": view.storage.dtype, "shape": view.shape, "data_offsets": span}
            at = span[1]
        said = json.dumps(header).encode()
        said += b" " * (-len(said) % 8)
        with out.open("wb") as target:
            target.write(len(said).to_bytes(8, "little") + said)
            for view in views.values():
                where, start = place(view.storage)
                for piece in _bytes(view, where, start) if view.count else ():
                    target.write(piece)
            target.flush()
            os.fsync(target.fileno())
        return _skipped(content)


def _bound(size: int) -> None:
    """Limits on this process, and a watch that ends it when anything starts a program or a connection. The
    unpickler makes neither possible; this is the second lock."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        largest = max(2 * GROWTH * size, 2**24)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    def watch(event: str, args: tuple[object, ...]) -> None:
        if event.startswith(("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.")):
            os._exit(3)

    sys.addaudithook(watch)


def _answer(source: Path, out: Path) -> dict[str, object]:
    try:
        return {"skipped": _copy(source, out)}
    except WeightsError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "reading it takes too much memory"}
    except Exception as error:  # whatever a broken pickle brings about becomes one sentence
        return {"error": f"it is broken ({type(error).__name__}: {str(error)[:150]})"}


if __name__ == "__main__":
    _bound(Path(sys.argv[1]).stat().st_size)
    sys.stdout.write(json.dumps(_answer(Path(sys.argv[1]), Path(sys.argv[2]))))
