"""What lies in a file or folder, told to people: `limner inspect`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from limner.errors import WeightsError
from limner.weights import detect, embeddings, files, folders, header, lora
from limner.weights.header import refuse_pickle
from limner.weights.parts import Model
from limner.weights.parts_cascade import STAGES
from limner.weights.published import ALL
from limner.weights.standalone import Standalone, candidates, identify_network


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One part of what was found."""

    name: str
    tensors: int
    parameters: int
    types: str  # such as "float16", or "float16 (680), float32 (6)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a file or folder is."""

    what: str
    rows: tuple[Row, ...]
    facts: Mapping[str, str]  # prediction, ranks, tokens and the like
    metadata: Mapping[str, str]
    notices: tuple[str, ...]

    def __str__(self) -> str:
        lines = [self.what]
        lines += [
            f"  {r.name:<16}{r.parameters:>15,} parameters in {r.tensors} tensors, {r.types}"
            for r in self.rows
        ]
        lines += [f"  {name}: {value}" for name, value in self.facts.items()]
        lines += [
            f"  metadata {key}: {' '.join(value.split())[:100]}" for key, value in self.metadata.items()
        ]
        return "\n".join([*lines, *(f"  Note: {notice}" for notice in self.notices)])


def inspect(
    path: Path,
    models: Sequence[Model] = ALL,
    kinds: tuple[Standalone, ...] | None = None,  # of networks alone; None: all known
) -> Report:
    """What `path` is: a model, a cascade, a network alone, a LoRA, an embedding, or a file or folder of
    Limner's own.

    Raises WeightsError for a pickle, for a broken file, and for what is none of them: with what it resembles.
    """
    if path.is_dir() and not (path / folders.INDEX).is_file():
        if stages := folders.stages(path, STAGES):
            return _of_cascade({one.name: detect.identify(one, models=models) for one in stages})
        if own := own_networks(path):
            return _of_own(own)
        network = identify_network(path, kinds)
        return _report(network.title, {"network": network.tensors}, {}, {}, network.notices)
    if path.is_dir():
        return _of_model(detect.identify(path, models=models))
    refuse_pickle(path)
    tensors, metadata = files.read(path), header.read_metadata(path)
    if "network" in metadata:
        return _report("a file of Limner's own", {"network": tensors}, {}, metadata)
    if lora.is_lora(tensors):
        found = lora.read(path)
        parts: dict[str, dict[str, Tensor]] = {}
        for (part, name), update in found.updates.items():
            parts.setdefault(part or "any part", {}).update(
                {f"{name}.0": update.down, f"{name}.1": update.up}
            )
        ranks = ", ".join(map(str, found.ranks))
        return _report("a LoRA", parts, {"ranks": ranks, "layers": str(len(found.updates))}, metadata)
    if embeddings.is_embedding(tensors, (tuple(tensor.shape) for tensor in tensors.values())):
        word = embeddings.read(path)
        places = str(len(next(iter(word.vectors.values()))))
        vectors = {name: {name: rows} for name, rows in word.vectors.items()}
        return _report(
            "a textual-inversion embedding", vectors, {"word": word.name, "places": places}, metadata
        )
    if network_found := next(
        (kind for kind in (candidates(tensors) if kinds is None else kinds) if kind.fits(tensors)), None
    ):
        return _report(network_found.title, {"network": tensors}, {}, metadata)
    return _of_model(detect.identify(path, models=models))


def own_networks(folder: Path) -> dict[str, Path]:
    """{what it is: its file} of the networks in a folder that Limner wrote."""
    said = {path: header.read_metadata(path).get("network") for path in sorted(folder.glob("*.safetensors"))}
    return {path.stem: path for path, network in said.items() if network is not None}


def called(own: Mapping[str, Path]) -> str:
    """What a folder with these networks is."""
    whole = "a DALL-E" if {"vqvae", "prior"} <= own.keys() else "a model"
    return f"{whole} of Limner's own training, a folder of {len(own)} networks"


def _of_own(own: Mapping[str, Path]) -> Report:
    said = {name: header.read_metadata(path) for name, path in own.items()}
    facts = {name: " ".join(metadata["network"].split())[:100] for name, metadata in said.items()}
    return _report(called(own), {name: files.read(path) for name, path in own.items()}, facts, {})


def _of_cascade(stages: Mapping[str, detect.Found]) -> Report:
    facts = {name: found.model.title for name, found in stages.items()}
    parts = {f"{name}/{part}": held for name, one in stages.items() for part, held in one.tensors.items()}
    notices = tuple(f"{name}: {said}" for name, found in stages.items() for said in found.notices)
    return _report(f"a cascade, a folder of {len(stages)} stages", parts, facts, {}, notices)


def _of_model(found: detect.Found) -> Report:
    where = "a diffusers folder" if found.layout == "folder" else "a single file"
    facts = {"predicts": found.prediction, "trained at": f"{found.model.size} pixels"}
    if found.absent:
        facts["not in it"] = ", ".join(found.absent)
    return _report(f"{found.model.title}, {where}", found.tensors, facts, found.metadata, found.notices)


def _report(
    what: str,
    parts: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, str],
    metadata: Mapping[str, str],
    notices: tuple[str, ...] = (),
) -> Report:
    rows = tuple(_row(name, tensors) for name, tensors in parts.items())
    return Report(what=what, rows=rows, facts=facts, metadata=metadata, notices=notices)


def _row(name: str, tensors: Mapping[str, Tensor]) -> Row:
    if not tensors:
        raise WeightsError(f"{name} holds no tensors")
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    told = [f"{kind} ({count})" for kind, count in types.most_common()] if len(types) > 1 else list(types)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return Row(name=name, tensors=len(tensors), parameters=parameters, types=", ".join(told))
