"""Whatever is asked of a small Stable Diffusion: pictures of that size, or a RequestError that says why."""

import importlib.util
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from limner.errors import RequestError
from limner.families import sd_files
from limner.models import kl_vae
from limner.pipeline.order import order_of
from limner.pipeline.picture import Picture
from limner.pipeline.request import Request
from limner.pipeline.run import Pipeline
from limner.weights import folders, parts

_spec = importlib.util.spec_from_file_location(
    "tiny_model", Path(__file__).parents[1] / "weights" / "tiny.py"
)
assert _spec is not None
assert _spec.loader is not None
tiny: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

VAE = replace(kl_vae.SD, channels=(8, 8, 8, 8), layers=1, groups=4)  # a latent is 8 x 8 pixels, as published
UNET = replace(tiny.UNET, channels=(8, 8, 16, 16), depths=(0, 0, 1, 0), groups=4, layers=1)
TEXT = replace(tiny.TEXT, depth=1)
DEEP = replace(
    tiny.MODEL,
    parts=(parts.unet_part(UNET), parts.vae_part(VAE), replace(tiny.MODEL.parts[2], config=TEXT)),
)
SIDES = st.integers(16, 200)
PICTURE = Picture(Image.effect_mandelbrot((40, 30), (-2.0, -1.5, 1.0, 1.5), 50).convert("RGB"))
MASK = Picture(Image.linear_gradient("L").resize((40, 30)))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    path = tmp_path_factory.mktemp("sd") / "model"
    tensors = {
        part: {name: 0.1 * tensor for name, tensor in held.items()}
        for part, held in tiny.random_tensors(DEEP).items()
    }
    folders.write(path, DEEP, tensors)
    return Pipeline(sd_files.load(path, torch.device("cpu"), models=(DEEP,)), str(path))


@given(
    size=st.tuples(SIDES, SIDES),
    strength=st.floats(0.01, 1),
    steps=st.integers(1, 3),
    image=st.sampled_from([None, PICTURE]),
    masked=st.booleans(),
    enlarge=st.sampled_from([1.0, 1.0, 1.37]),
    tiling=st.booleans(),
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_size_and_strength(
    pipeline: Pipeline,
    size: tuple[int, int],
    strength: float,
    steps: int,
    image: Picture | None,
    masked: bool,
    enlarge: float,
    tiling: bool,
) -> None:
    request = Request(
        prompt="a red fox",
        size=size,
        strength=strength,
        steps=steps,
        image=image,
        mask=MASK if masked and image else None,
        enlarge=enlarge,
        enlarge_strength=strength,
        tiling=tiling,
        seed=1,
        count=1,
        sampler="euler",
    )
    model = pipeline.model
    assert isinstance(model, sd_files.StableDiffusion)
    if request.mask is not None and enlarge != 1:
        with pytest.raises(RequestError, match="would redraw what a mask keeps"):
            pipeline.draw(request)
        return
    if (image or enlarge != 1) and int(steps * strength) < 1:
        with pytest.raises(RequestError, match=f"strength {strength:g} of {steps} steps leaves none to draw"):
            pipeline.draw(request)
        return
    result = pipeline.draw(request)
    rounded = tuple(max(8, round(side / 8) * 8) for side in size)
    if enlarge == 1:
        assert result.images[0].size == size[::-1]
    else:
        assert (
            result.images[0].size == tuple(max(8, round(round(s * enlarge) / 8) * 8) for s in rounded)[::-1]
        )
    if rounded != size and request.mask is None:
        assert any("was rounded to" in notice for notice in result.notices)
    assert order_of(result.request).size == size


@given(
    size=st.tuples(st.integers(-10, 10_000), st.integers(-10, 10_000)),
    numbers=st.lists(st.floats() | st.integers(-3, 3), min_size=4, max_size=4),
    steps=st.integers(-1, 1001),
)
@settings(max_examples=200, deadline=None)
def test_any_number_is_a_request_or_an_error(size: tuple[int, int], numbers: list[float], steps: int) -> None:
    strength, enlarge, refine_from, rescale = numbers
    with suppress(RequestError):
        told = {"strength": strength, "enlarge": enlarge, "refine_from": refine_from, "rescale": rescale}
        request = Request.from_dict({"prompt": "a", "size": list(size), "steps": steps, **told})
        assert 16 <= min(size) <= max(size) <= 8192
        assert 0 < request.strength <= 1 <= request.enlarge <= 4
        assert Request.from_dict(request.to_dict()) == request
