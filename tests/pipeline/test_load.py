"""What is wished for is heard by the family that was found, or refused."""

import importlib.util
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from limner.errors import RequestError
from limner.families import FAMILIES, HEARS, sd_files
from limner.families.base import Wishes
from limner.pipeline.load import load
from limner.weights import folders

_spec = importlib.util.spec_from_file_location(
    "tiny_model", Path(__file__).parents[1] / "weights" / "tiny.py"
)
assert _spec is not None
assert _spec.loader is not None
model: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(model)


def test_every_family_says_what_it_hears() -> None:
    assert list(HEARS) == list(FAMILIES)
    assert all(heard <= {field.name for field in fields(Wishes)} for heard in HEARS.values())


@pytest.mark.parametrize(
    "wish",
    [
        {"dtype": "bfloat16"},
        {"offload": True},
        {"prediction": "v"},
        {"variant": "fp16"},
        {"preview": Path("taesd")},
        {"then": ("elsewhere",)},
    ],
)
def test_wishes_that_would_not_be_heard_are_refused(tiny: Path, wish: dict[str, object]) -> None:
    (name,) = wish
    with pytest.raises(RequestError, match=f"is of the family mini, which knows no {name}; leave it out"):
        load(tiny, device="cpu", wishes=Wishes(**wish))  # type: ignore[arg-type]


def test_folders_are_named_too(tiny: Path) -> None:
    with pytest.raises(RequestError, match="the family mini, which knows no variant, offload"):
        load(tiny, device="cpu", wishes=Wishes(loras=tiny, variant="fp16", offload=True))
    with pytest.raises(RequestError, match="mini is of the family mini"):
        load("mini", device="cpu", wishes=Wishes(offload=True))


def test_the_wishes_that_are_read_are_those_that_are_declared(tmp_path: Path, wishes_read: Any) -> None:
    folders.write(tmp_path / "model", model.MODEL, model.random_tensors(), prediction="eps")
    cpu = torch.device("cpu")
    read = wishes_read(lambda wishes: sd_files.load(tmp_path / "model", cpu, wishes, (model.MODEL,)))
    assert read == HEARS["sd"]
