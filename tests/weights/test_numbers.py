"""Numbers in published tables that are none: every one is told by file and field."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from limner.errors import WeightsError
from limner.families.base import Wishes
from limner.families.sd_files import load, path_of
from limner.pipeline.load import load as load_any
from limner.weights import described, files, folders, numbers, published

_spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).with_name("tiny.py"))
assert _spec is not None
assert _spec.loader is not None
tiny: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("numbers") / "model"
    folders.write(path, tiny.MODEL, tiny.random_tensors())
    return path


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "model"))


def change(path: Path, **fields: object) -> None:
    files.write_json(files.read_json(path) | fields, path)


@pytest.mark.parametrize(
    ("part", "field", "said", "told"),
    [
        ("unet", "block_out_channels", [0, -3], r"a whole number from 1 to 1,000,000, got \[0, -3\]"),
        ("unet", "block_out_channels", [], r"a whole number from 1 to 1,000,000, got \[\]"),
        ("unet", "attention_head_dim", "x", "a whole number from 1 to 1,000,000, got 'x'"),
        ("unet", "layers_per_block", 10**9, "a whole number from 0 to 1,000, got 1000000000"),
        ("vae", "scaling_factor", "x", "a number from 1e-06 to 1,000,000, got 'x'"),
        ("text_encoder", "hidden_size", True, "a whole number from 1 to 1,000,000, got True"),
    ],
)
def test_a_network_of_nonsense_is_told_by_file_and_field(
    folder: Path, part: str, field: str, said: object, told: str
) -> None:
    change(folder / part / "config.json", **{field: said})
    message = rf"model/{part}/config\.json: {field} is {told}"
    for read in (load_any, folders.read, described.folder):
        with pytest.raises(WeightsError, match=message):
            read(folder)


def test_what_no_network_can_be_built_of_is_told_by_its_file(folder: Path) -> None:
    change(folder / "unet" / "config.json", norm_num_groups=7)  # which 16 channels do not make
    with pytest.raises(WeightsError, match=r"model/unet/config\.json describes no network that can be built"):
        load_any(folder)


@pytest.mark.parametrize(
    ("field", "said", "told"),
    [
        ("shift", "abc", "a number from 0.001 to 1,000, got 'abc'"),  # SD3's, and FLUX's
        ("shift", 0, "a number from 0.001 to 1,000, got 0"),
        ("max_shift", "x", "a number from -10 to 10, got 'x'"),  # FLUX's
        ("beta_start", "x", "a number from 1e-08 to 0.999, got 'x'"),
        ("beta_end", float("nan"), "a number from 1e-08 to 0.999, got nan"),
        ("num_train_timesteps", 10**400, "a whole number from 2 to 100,000, got 1000"),
        ("num_train_timesteps", "x", "a whole number from 2 to 100,000, got 'x'"),
        ("num_train_timesteps", 0, "a whole number from 2 to 100,000, got 0"),
        ("num_train_timesteps", -5, "a whole number from 2 to 100,000, got -5"),
        ("num_train_timesteps", 1, "a whole number from 2 to 100,000, got 1"),
        ("sample_max_value", "big", "a number from 0.001 to 1,000, got 'big'"),  # IF's
        ("clip_sample_range", [1], r"a number from 0.001 to 1,000, got \[1\]"),  # unCLIP's
    ],
)
def test_a_samplers_nonsense_is_told_by_file_and_field(
    folder: Path, field: str, said: object, told: str
) -> None:
    change(folder / "scheduler" / folders.PATH_FILE, **{field: said})
    message = rf"model/scheduler/{folders.PATH_FILE}: {field} is {told}"
    for read in (load_any, folders.read, described.folder):
        with pytest.raises(WeightsError, match=message):
            read(folder)


def test_what_is_left_open_is_the_usual(folder: Path) -> None:
    table = folder / "scheduler" / folders.PATH_FILE
    change(table, shift=None, beta_start=None, max_shift=1.15)
    said = numbers.sampler(table)
    assert said["max_shift"] == 1.15
    assert "beta_start" not in said
    assert path_of(said).steps == 1000
    change(table, base_image_seq_len=4096)
    with pytest.raises(WeightsError, match="max_image_seq_len differ, got 4096 twice"):
        numbers.sampler(table)


def test_betas_that_make_no_path_are_told_by_their_file(folder: Path) -> None:
    change(folder / "scheduler" / folders.PATH_FILE, beta_start=0.9, beta_end=0.9)  # nothing is left of it
    with pytest.raises(WeightsError, match=rf"model/\*/{folders.PATH_FILE}: its betas make no path"):
        load(folder, CPU, Wishes(), tiny.MODELS)


def test_the_published_networks_pass(tmp_path: Path) -> None:
    for model in published.ALL:
        for part in model.parts:
            files.write_json(part.kind.settings(part.config), tmp_path / "config.json")
            numbers.network(tmp_path / "config.json")
        for table in model.tables.values():
            files.write_json(dict(table), tmp_path / folders.PATH_FILE)
            numbers.sampler(tmp_path / folders.PATH_FILE)
