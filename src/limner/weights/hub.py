"""Models by their id on the Hugging Face hub, "owner/name" or "owner/name@revision", as folders on this disk.

Of a repository only the safetensors of one variant, the settings and the tokenizers are fetched; pickles
never.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from limner.errors import WeightsError
from limner.weights.files import read_json
from limner.weights.folders import INDEX, NETWORKS, STEMS

ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,100}))?")
SMALL = re.compile(r".*config\.json|\w*tokenizer\w*/[^/]+\.(json|txt|model)")
TOWER = "image_encoder"  # only the parts of unCLIP look at pictures:
SEEING = ("image_normalizer", "super_res_first")


def is_id(model: str) -> bool:
    """Whether `model` is spelled like a hub id and is nothing on this disk."""
    return ID.fullmatch(model) is not None and ".." not in model and not Path(model).exists()


def fetch(model: str, variant: str | None = None) -> Path:
    """The folder of the hub model `model`, fetched where it is not here yet. With HF_HUB_OFFLINE=1, or
    without a connection, only what was fetched before is looked at.

    Raises WeightsError when the id is none, is unknown or closed to this user, has no safetensors, or
    cannot be reached.
    """
    spelled = ID.fullmatch(model)
    if spelled is None or ".." in model:
        raise WeightsError(f"{model!r} is no hub id; those are spelled owner/name or owner/name@revision")
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    name, revision = spelled.groups()
    try:
        here = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        here = None
    if here is not None and _whole(here, variant):
        return here
    try:
        if constants.HF_HUB_OFFLINE:
            raise errors.LocalEntryNotFoundError("told to stay offline")
        files = wanted(model, HfApi().list_repo_files(name, revision=revision), variant)
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except errors.GatedRepoError:
        raise WeightsError(
            f"{model} is open to people who accepted its terms: do so on its page, then run `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise WeightsError(f"{name} has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise WeightsError(
            f"there is no {name} on the hub, or it is private; `hf auth login` shows yours"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise WeightsError(
            f"{model} is not wholly on this disk, and the hub cannot be reached; fetch it once while online"
        ) from None
    except WeightsError:
        raise
    except (
        Exception
    ) as error:  # the errors of connections are those of whichever client the hub's library has
        told = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
        raise WeightsError(f"{model} is not wholly on this disk, and fetching it failed: {told}") from None


def wanted(model: str, names: Sequence[str], variant: str | None) -> list[str]:
    """Which files of a repository are needed: settings, tokenizers, and each part's safetensors in `variant`.

    Raises WeightsError when it is no diffusers folder or has no such safetensors.
    """
    if INDEX not in names:
        raise WeightsError(
            f"{model} is no diffusers repository (it has no {INDEX}); fetch a file of it by hand"
        )
    small = [n for n in names if n == INDEX or SMALL.fullmatch(n)]
    kinds: dict[str, list[str]] = {}
    dot = f".{variant}" if variant else ""
    shape = re.compile(
        rf"([\w-]+)/({'|'.join(STEMS)})({re.escape(dot)}(-\d+-of-\d+)?\.safetensors|\.safetensors\.index{re.escape(dot)}\.json)"
    )
    for name in names:
        if match := shape.fullmatch(name):
            kinds.setdefault(match[1], []).append(name)
    if not kinds:
        there = sorted({n.split(".")[-2] for n in names if n.count(".") == 2 and n.endswith(".safetensors")})
        more = f"; there are the variants {', '.join(there)}" if there else ""
        raise WeightsError(
            f"{model} has no safetensors{f' of the variant {variant!r}' if variant else ''}{more}"
        )
    sees = any(n.startswith(SEEING) for n in names)
    skipped = ("safety_checker/",) if sees else ("safety_checker/", f"{TOWER}/")
    return [
        n
        for n in small + [file for group in kinds.values() for file in group]
        if not n.startswith(skipped) and not n.endswith(".bin")
    ]


def _whole(folder: Path, variant: str | None) -> bool:
    """Whether every network that the folder's index names has safetensors here."""
    try:
        index = read_json(folder / INDEX)
    except WeightsError:
        return False
    parts = [name for name, entry in index.items() if isinstance(entry, list) and entry[-1] in NETWORKS]
    if not set(SEEING) & set(index):
        parts = [part for part in parts if part != TOWER]
    ending = f".{variant}.safetensors" if variant else ".safetensors"
    return bool(parts) and all(any((folder / part).glob(f"*{ending}")) for part in parts)
