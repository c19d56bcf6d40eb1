"""What a file or folder is: decided by the names and shapes of all its tensors, never by a file's name."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limner.errors import WeightsError
from limner.weights import files, folders, header, single_file
from limner.weights.keymap import KeyMap, listing, our_names, to_ours, to_theirs
from limner.weights.parts import Model, Part, Shapes
from limner.weights.parts_cascade import described
from limner.weights.published import ALL
from limner.weights.settings import differing, unknown

Layout = Literal["folder", "single"]
CLOSE = 3  # models that are compared name by name where none is as its telling tensors say


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """A model on the disk, recognised and not loaded yet."""

    model: Model
    path: Path
    layout: Layout
    tensors: Mapping[str, Mapping[str, Tensor]]  # part -> its tensors under published names, memory-mapped
    prediction: str  # what its networks predict: "eps", "v", "x0" or "flow"
    table: Mapping[str, object]  # of its path, as `folders.PATH_FILE` has it; empty: the usual one
    notices: tuple[str, ...]  # to be shown to whoever draws
    metadata: Mapping[str, str]  # of a single file
    tables: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # folder of a sampler -> table
    absent: tuple[str, ...] = ()  # parts that the model can have and that are not there
    variant: str | None = None  # of a folder's files


@dataclass(frozen=True, slots=True)
class Differences:
    """How tensors differ from what a part should hold, by published names."""

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    shapes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.count)

    @property
    def count(self) -> int:
        return len(self.missing) + len(self.unknown) + len(self.shapes)

    def __str__(self) -> str:
        told = (("missing", self.missing), ("unknown", self.unknown), ("of another shape", self.shapes))
        return "; ".join(f"{len(names)} {what}: {listing(names)}" for what, names in told if names)


def identify(
    path: Path,
    *,
    prediction: str | None = None,  # "eps" or "v": what the user says; None: what the file says
    variant: str | None = None,  # of a folder's files, such as "fp16"
    models: Sequence[Model] = ALL,
) -> Found:
    """Which of `models` lies at `path`, a diffusers folder or a single file in the original naming.

    Raises WeightsError for a pickle, for a broken file, and for what is none of them: then with the model
    that it resembles most and the names that differ.
    """
    said: str | None
    tables: Mapping[str, Mapping[str, object]] = {}
    table: Mapping[str, object] = {}
    if path.is_dir():
        folder = folders.read(path, variant)
        models = (*models, *described(folder.settings))
        model = _model(path, "folder", folder.tensors, models, folder.classes)
        tensors, metadata, tables = folder.tensors, {}, folder.tables
        table = tables.get(next(iter(model.tables)), next(iter(tables.values()), {}))
        said, where = folders.prediction(path, table) if table else None, "its folder"
        notices = [*folder.notices, *_check_settings(path, model, folder)]
    else:
        whole = files.read(path)
        metadata = header.read_metadata(path)
        model = _model(path, "single", whole, models)
        tensors, notices = single_file.split(model, whole)[0], []
        said, where = single_file.prediction(path, whole, metadata)
        if model.predictions == ("flow",):
            said = None  # what marks and files beside it say is about other paths
        table = {"rescale_betas_zero_snr": True} if "ztsnr" in whole else {}
        if any(name.startswith("model_ema.") for name in whole):
            notices.append(f"{path.name} holds averaged weights as well; they are left aside")
    if prediction and said and prediction != said:
        notices.append(f"{where} says that the model predicts {said}; drawn with {prediction}, as asked")
    if not prediction and not said and len(model.predictions) > 1 and model.predictions[0] != "eps":
        first, second = model.predictions
        notices.append(
            f"{path.name} does not say whether it predicts {first} or {second}; {first} is assumed, which is "
            f"right for {model.title} at {model.size} pixels. If pictures are noise, ask for {second}"
        )
    found = prediction or said or model.predictions[0]
    if found not in model.predictions:
        advice = "; leave prediction out" if prediction and len(model.predictions) == 1 else ""
        raise WeightsError(
            f"a {model.title} predicts {' or '.join(model.predictions)}, not {found!r}{advice}"
        )
    return Found(
        model=model,
        path=path,
        layout="folder" if path.is_dir() else "single",
        tensors={part.folder: tensors[part.folder] for part in model.parts if tensors.get(part.folder)},
        prediction=found,
        table=table,
        tables=tables,
        variant=variant,
        absent=tuple(part.folder for part in model.parts if not tensors.get(part.folder)),
        notices=tuple(notices),
        metadata=metadata,
    )


def load(
    found: Found, name: str, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """The part called `name` ("unet", "vae", "text_encoder" ...), ready to be asked. `dtype` None: as
    stored."""
    return files.fill(
        found.model.part(name).build, ours(found, name), f"{found.path} ({name})", device=device, dtype=dtype
    )


def loader(found: Found, name: str, dtype: torch.dtype | None = None) -> Callable[[torch.device], nn.Module]:
    """Loads the part called `name` to a device whenever it is called, as `load` does, from its file: neither
    it nor what it returns keeps other parts in memory. For `families.shelf`."""
    model, path, layout, read = found.model, found.path, found.layout, rereader(found, name)
    part = model.part(name)

    def fresh(device: torch.device) -> nn.Module:
        where = f"{path} ({name})"
        named = to_ours(keys_of(part, layout), read(), where)
        return files.fill(part.build, named, where, device=device, dtype=dtype)

    return fresh


def rereader(found: Found, name: str) -> Callable[[], dict[str, Tensor]]:
    """Maps the file of the part called `name` anew whenever it is called: {published name: tensor}. What was
    read of it leaves the memory with these tensors. Raises WeightsError where the part is absent."""
    model, path, layout, variant = found.model, found.path, found.layout, found.variant
    if name in found.absent:
        raise WeightsError(f"{path} has no {name}")

    def read() -> dict[str, Tensor]:
        if layout == "folder":
            return folders.read_part(path / name, variant)[0]
        return single_file.split(model, files.read(path))[0][name]

    return read


def ours(found: Found, name: str) -> dict[str, Tensor]:
    """The tensors of the part called `name` under our names, as stored. Raises WeightsError where it is
    absent."""
    if name in found.absent:
        raise WeightsError(f"{found.path} has no {name}")
    keys = keys_of(found.model.part(name), found.layout)
    return to_ours(keys, found.tensors[name], f"{found.path} ({name})")


@lru_cache(maxsize=256)
def keys_of(part: Part, layout: Layout) -> KeyMap:
    """The key map of a part. Raises WeightsError for one that single files never hold."""
    if layout == "folder":
        return part.kind.folder_keys(part.config)
    if part.single_keys is None:
        raise WeightsError(f"{part.folder} is in folders only; there is no naming for a single file")
    return part.single_keys(part.config, part.prefix)


def manifest(part: Part, layout: Layout) -> Shapes:
    """Names and shapes of the tensors that a part has in a layout."""
    theirs = to_theirs(keys_of(part, layout), files.empty(part.build).state_dict())
    return {name: tuple(tensor.shape) for name, tensor in theirs.items()}


def differences(part: Part, layout: Layout, tensors: Mapping[str, Tensor]) -> Differences:
    """What keeps `tensors` from being just this part."""
    keys, wanted = keys_of(part, layout), _wanted(part)
    known = our_names(keys, tensors)
    unknown = [name for name, found in known.items() if found is None]
    held = {name: torch.empty(tensors[name].shape, device="meta") for name, found in known.items() if found}
    covered = {our for name in held for our in known[name] or ()}
    missing = [name for name in manifest(part, layout) if name not in held] if set(wanted) - covered else []
    expected = our_names(keys, missing)
    missing = [name for name in missing if not set(expected[name] or ()) <= covered]
    shapes = [f"{name} {tuple(held[name].shape)}" for name in _misshapen(keys, held, wanted)]
    return Differences(tuple(missing), tuple(unknown), tuple(shapes))


def _misshapen(keys: KeyMap, tensors: Mapping[str, Tensor], wanted: Shapes) -> list[str]:
    def fit(some: Mapping[str, Tensor]) -> bool:
        try:
            return all(tuple(t.shape) == wanted.get(name) for name, t in to_ours(keys, some, "").items())
        except WeightsError:
            return False

    return [] if fit(tensors) else [name for name, tensor in tensors.items() if not fit({name: tensor})]


@lru_cache(maxsize=32)
def _wanted(part: Part) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in files.empty(part.build).state_dict().items()}


def _model(
    path: Path,
    layout: Layout,
    tensors: Mapping[str, Mapping[str, Tensor]] | Mapping[str, Tensor],
    models: Sequence[Model],
    classes: Mapping[str, str] | None = None,  # of a folder's parts
) -> Model:
    unlike = {
        number: _unlike(model, layout, tensors)
        for number, model in enumerate(models)
        if layout == "folder" or model.single
    }
    order = sorted(unlike, key=lambda number: unlike[number])
    likely = [number for place, number in enumerate(order) if place < CLOSE or not unlike[number]]
    best: tuple[int, Model, str] | None = None
    for model in (models[number] for number in likely):
        found, strange = _apart(model, layout, tensors, classes or {})
        problems = {
            part.folder: _compared(path, part, layout, found.get(part.folder, {}))
            for part in model.parts
            if found.get(part.folder) or part.folder not in model.optional
        }
        count = len(strange) + sum(found.count for found in problems.values())
        if not count:
            return model
        told = [f"{name}: {problem}" for name, problem in problems.items() if problem]
        told += [f"of no part: {listing(strange)}"] if strange else []
        if best is None or count < best[0]:
            best = count, model, ". ".join(told)
    if best is None:
        raise WeightsError(f"{path} cannot be compared with any model")
    raise WeightsError(
        f"{path} is no model that Limner knows. It resembles {best[1].title} most, but: {best[2]}"
    )


def _compared(path: Path, part: Part, layout: Layout, tensors: Mapping[str, Tensor]) -> Differences:
    """As `differences`. Raises WeightsError for a part of one's own size of which no network can be built."""
    try:
        _wanted(part)
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise WeightsError(
            f"{path / part.folder / 'config.json'} describes no network that can be built: {error}"
        ) from None
    return differences(part, layout, tensors)


def _unlike(model: Model, layout: Layout, tensors: Mapping[str, object]) -> float:
    """How many telling tensors of the main part are not there, infinite without that part. It only settles
    which models are compared name by name."""
    main = model.part(model.main)
    held = _apart(model, layout, tensors, {})[0].get(main.folder)
    if not held:
        return math.inf
    ours = {name: torch.empty(shape, device="meta") for name, shape in main.kind.telling(main.config).items()}
    telling = to_theirs(keys_of(main, layout), ours)
    wrong = sum(name not in held or held[name].shape != tensor.shape for name, tensor in telling.items())
    return float(wrong)


def _apart(
    model: Model, layout: Layout, tensors: Mapping[str, Any], classes: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Tensors by part, and what is of no part. Those of a folder come by part already; there a network of a
    class that the model has none of is passed over, such as a picture tower beside Stable Diffusion."""
    if layout == "single":
        return single_file.split(model, tensors)
    parts = {part.folder for part in model.parts}
    known = {name for part in model.parts for name in part.kind.classes}
    strange = [name for name in tensors if name not in parts and classes.get(name) in {None, *known}]
    return dict(tensors), strange


def _check_settings(path: Path, model: Model, folder: folders.Folder) -> list[str]:
    """Shapes do not tell the number of heads and the like, so config.json has to agree. Returns notices."""
    notices = []
    for part in (part for part in model.parts if part.folder in folder.settings):
        usual, said = part.kind.settings(part.config), dict(folder.settings[part.folder])
        wrong = differing(usual, said)
        told = ", ".join(f"{key} is {theirs!r}, not {ours!r}" for key, (ours, theirs) in wrong.items())
        if wrong:
            raise WeightsError(
                f"{path / part.folder}: tensors as of a {model.title}, but in config.json {told}"
            )
        notices += unknown(usual, said, part.folder)
    return notices
