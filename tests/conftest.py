"""While the tests run, every annotation in limner is checked: shapes by jaxtyping, the rest by beartype.

The hook rewrites modules as they are imported, so it stands before the first import of one. The package
itself carries no such decorator, since checking at run time makes torch.compile recompile.
"""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("limner", "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is none."""
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
        ("base", base, shape, {"vocabulary": vocabulary, "objects": objects, "styles": ["flat", "glossy"]}),
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
