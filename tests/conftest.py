"""While the tests run, every annotation in limner is checked: shapes by jaxtyping, the rest by beartype.

The hook rewrites modules as they are imported, so it stands before the first import of one. The package
itself carries no such decorator, since checking at run time makes torch.compile recompile.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core: threads would get into their way
    os.environ.setdefault("OMP_NUM_THREADS", "1")
install_import_hook("limner", "beartype.beartype")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none, those marked `slow` or `huge` unless `-m` names them."""
    for mark in ("slow", "huge"):
        if mark not in config.getoption("markexpr"):
            for item in items:
                if item.get_closest_marker(mark):
                    item.add_marker(pytest.mark.skip(reason=f"run by hand, with -m {mark}"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights: the built-in model's shape, small enough to draw in milliseconds.

    It has learned cats, dogs, apples and bicycles, flat and glossy, and draws 64 x 64 pixels. No branch is
    silent, so that every input shows in the output.
    """
    import torch

    from limner.models.pixel_dit import PixelDiT, PixelDiTConfig
    from limner.models.upscaler import Upscaler, UpscalerConfig
    from limner.text.tokenizers import default_vocabulary
    from limner.weights.files import save

    folder = tmp_path_factory.mktemp("tiny")
    generator = torch.Generator().manual_seed(0)
    objects = ("cat", "dog", "apple", "bicycle")
    vocabulary = default_vocabulary(objects)
    shape = PixelDiTConfig(
        vocabulary=len(vocabulary),
        size=16,
        patch=4,
        width=32,
        depth=2,
        heads=2,
        bottleneck=16,
        text_depth=1,
        text_length=24,
        head_channels=8,
    )
    larger = UpscalerConfig(factor=4, channels=8, depth=2)
    base, upscaler = PixelDiT(shape), Upscaler(larger)
    for name, network, config, more in (
        (
            "base",
            base,
            shape,
            {"vocabulary": vocabulary, "objects": objects, "styles": ["flat", "glossy"], "spells": True},
        ),
        ("upscaler", upscaler, larger, {"size": 16}),
    ):
        network.initialize(generator)
        tensors = {
            key: (tensor + 0.05 * torch.randn(tensor.shape, generator=generator)).to(torch.bfloat16)
            for key, tensor in network.state_dict().items()
        }
        header = {"network": {type(network).__name__: asdict(config)}, **more}
        path = folder / f"{name}.safetensors"
        save(tensors, path, {key: json.dumps(value) for key, value in header.items()})
    return folder


DRAWN = {  # object -> (its icon's name in the sets, SVG on a 32 x 32 canvas)
    "apple": ("red-apple", '<circle cx="20" cy="18" r="9" fill="#d02020"/>'),
    "cat": ("cat-face", '<rect x="3" y="5" width="14" height="14" fill="#808080"/>'),
    "tree": ("deciduous-tree", '<path d="M16 2 L30 30 L2 30 Z" fill="#20a040"/>'),
    "key": ("key", '<rect x="2" y="12" width="28" height="8" fill="#e0c020"/>'),
    "ring": ("ring", '<circle cx="16" cy="16" r="10" fill="none" stroke="#c0a030" stroke-width="5"/>'),
    "balloon": ("balloon", '<ellipse cx="16" cy="16" rx="9" ry="13" fill="#e04080"/>'),
    "house": ("house", '<path d="M4 30 V14 L16 4 L28 14 V30 Z" fill="#a06040"/>'),
    "star": ("star", '<path d="M16 1 L20 12 L31 16 L20 20 L16 31 L12 20 L1 16 L12 12 Z" fill="#f0d040"/>'),
    "scissors": ("scissors", '<path d="M4 4 L28 28 M28 4 L4 28" stroke="#606060" stroke-width="4"/>'),
    "orange": ("tangerine", '<circle cx="16" cy="16" r="13" fill="#f08020"/>'),
}


@pytest.fixture(scope="session")
def icon_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two unpacked npm packages that draw the objects of `DRAWN`, in the layout of iconify."""
    folder = tmp_path_factory.mktemp("packages")
    for package in ("@iconify-json/fluent-emoji-flat", "@iconify-json/fluent-emoji"):
        at = folder / package.rpartition("/")[2] / "package"
        at.mkdir(parents=True)
        icons = {icon: {"body": body} for icon, body in DRAWN.values()}
        (at / "icons.json").write_text(json.dumps({"icons": icons, "width": 32, "height": 32}))
        (at / "package.json").write_text(json.dumps({"name": package, "version": "1.2.3"}))
        (at / "info.json").write_text(json.dumps({"license": {"spdx": "MIT"}}))
    return folder


@pytest.fixture(scope="session")
def atlas_folder(icon_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The atlas that `prepare` makes of `icon_sets`."""
    from limner.data.world.art import prepare

    folder = tmp_path_factory.mktemp("atlas")
    objects = {name: icon for name, (icon, _) in DRAWN.items()}
    prepare(folder, objects, styles=("flat", "glossy"), source=icon_sets)
    return folder


@pytest.fixture
def wishes_read() -> Callable[[Callable[[Any], object]], set[str]]:
    """A function that says at which wishes a loader looks."""
    from limner.families.base import Wishes

    names = {field.name for field in fields(Wishes)}

    class Watched(Wishes):
        read: ClassVar[set[str]] = set()

        def __getattribute__(self, name: str) -> Any:
            if name in names:
                Watched.read.add(name)
            return super().__getattribute__(name)

    def read(load: Callable[[Any], object]) -> set[str]:
        wishes = Watched()
        Watched.read.clear()
        load(wishes)
        return Watched.read

    return read
