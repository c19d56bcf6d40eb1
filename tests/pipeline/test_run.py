"""Drawing: the same picture whatever the batch, every step shown, nothing broken passed on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import limner
from limner.diffusion.samplers import SAMPLERS, Step
from limner.errors import ConfigError, EngineError, RequestError
from limner.families.base import Defaults, Order, Plan
from limner.families.mini import DEFAULTS
from limner.families.stages import Stage
from limner.pipeline.load import load
from limner.pipeline.request import Request
from limner.pipeline.run import Pipeline
from limner.util.rng import NoiseSource


@pytest.fixture(scope="module")
def pipe(tiny: Path) -> Pipeline:
    return load(tiny, device="cpu")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(pipe: Pipeline, sampler: str) -> None:
    prompt = "two red apples to the left of a cat"
    many = pipe(prompt, seed=11, count=9, steps=4, sampler=sampler)
    assert many.seeds == tuple(range(11, 20))
    for index in (0, 3, 8):
        alone = pipe(prompt, seed=11 + index, count=1, steps=4, sampler=sampler)
        assert alone.images[0].tobytes() == many.images[index].tobytes()
    assert len({image.tobytes() for image in many.images}) == 9


def test_a_result_carries_every_choice(pipe: Pipeline, tiny: Path) -> None:
    result = pipe("a kitten and a zebra", count=2, steps=2)
    request = result.request
    assert (request.steps, request.guidance, request.sampler) == (2, DEFAULTS.guidance, DEFAULTS.sampler)
    assert request.size == (64, 64)
    assert request.model == str(tiny)
    assert request.seed is not None
    assert 0 <= request.seed < 2**32
    assert result.seeds == (request.seed, request.seed + 1)
    assert [(image.mode, image.size) for image in result.images] == [("RGB", (64, 64))] * 2
    assert result.notices == ('the prompt says "kitten", drawn as cat',)
    assert [warning.split(":")[0] for warning in result.warnings] == ['the prompt says "zebra"']
    again = pipe.generate(request)
    assert [image.tobytes() for image in list(again)[-1].result.images] == [  # type: ignore[union-attr]
        image.tobytes() for image in result.images
    ]


def test_random_seeds_differ(pipe: Pipeline) -> None:
    assert pipe("a cat", count=1, steps=1).seeds != pipe("a cat", count=1, steps=1).seeds


def test_every_step_is_shown_and_the_last_has_the_result(pipe: Pipeline) -> None:
    seen = list(pipe.generate(Request(prompt="a cat", seed=1, count=3, steps=4, sampler="euler")))
    assert [(p.index, p.total, p.stage) for p in seen] == [
        (0, 5, "diffusion"),
        (1, 5, "diffusion"),
        (2, 5, "diffusion"),
        (3, 5, "diffusion"),
        (4, 5, "upscaler"),
    ]
    assert [tuple(p.preview.shape) for p in seen] == [(3, 3, 16, 16)] * 4 + [(3, 3, 64, 64)]
    assert [p.result is None for p in seen] == [True] * 4 + [False]


def test_stopping_early_leaves_no_mode_behind(pipe: Pipeline) -> None:
    steps = pipe.generate(Request(prompt="a cat", seed=1, count=1, steps=4))
    next(steps)
    assert not torch.is_inference_mode_enabled()
    del steps
    assert torch.ones(1, requires_grad=True).mul(2).requires_grad


def test_other_sizes_are_resized_and_said_so(pipe: Pipeline) -> None:
    native = pipe("a cat", seed=1, count=1, steps=2)
    large = pipe("a cat", seed=1, count=1, steps=2, size=(128, 128))
    assert large.images[0].size == (128, 128)
    assert large.notices == ("drawn at 64x64 and resized to 128x128",)
    assert native.notices == ()


def test_another_model_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match='and the request asks for "mini"'):
        next(pipe.generate(Request(prompt="a cat", model="mini")))


def test_unknown_models_and_devices(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match='no model "mimi", nor a file or folder of that name; did you mean "mini"'
    ):
        load("mimi")
    with pytest.raises(RequestError, match="known: mini"):
        load(tmp_path / "nothing-here")
    with pytest.raises(RequestError, match="known: mini"):
        load("a" * 5_000)  # longer than a path may be
    with pytest.raises(ConfigError, match="unknown device"):
        load(tiny, device="abacus")


def test_the_public_names_are_these() -> None:
    assert limner.load is load
    assert limner.Request is Request
    assert limner.Pipeline is Pipeline


class Broken:
    """A model whose second picture is not a number."""

    fingerprint = "0" * 10
    defaults = Defaults(steps=2, guidance=1.0, sampler="euler", size=(16, 16))

    def plan(self, order: Order) -> Plan:
        return Plan(stages=(BrokenStage(),), notices=(), warnings=())


class BrokenStage:
    name = "broken stage"
    steps = 2

    def run(self, pixels: Tensor | None, noise: NoiseSource) -> Iterator[Step]:
        x = noise.initial((3, 4, 4))
        yield Step(0, 2, x, x)
        x[1, 0, 0, 0] = float("nan")
        yield Step(1, 2, x, x)

    def look(self, x0: Tensor) -> Tensor:
        return x0


def test_numbers_that_break_down_are_an_error_that_says_where() -> None:
    stage: Stage = BrokenStage()
    assert stage.steps == 2
    steps = Pipeline(Broken(), "broken").generate(Request(prompt="a cat", seed=5, count=3))
    assert next(steps).result is None
    with pytest.raises(EngineError, match=r"after the broken stage, 1 of 3 pictures .* \(seeds 6\)"):
        next(steps)


def test_broken_weights_are_an_error(tiny: Path) -> None:
    pipe = load(tiny, device="cpu")
    model = pipe.model
    model.base.patch_out.bias[0] = float("inf")  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="The weights are broken"):
        pipe("a cat", seed=1, count=1, steps=2, guidance=2.0)
