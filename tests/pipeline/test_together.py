"""Several requests at once: each gets what it would get alone."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import ImageChops

from limner.errors import RequestError
from limner.families.base import Model, Order, Plan
from limner.pipeline import together
from limner.pipeline.load import load
from limner.pipeline.request import Request
from limner.pipeline.run import Pipeline

REQUESTS = (
    Request(prompt="a cat on a blue background", seed=3, count=2, steps=3),
    Request(
        prompt="a red apple left of a dragon", negative_prompt="a cat", seed=8, count=1, steps=3, guidance=4.0
    ),
    Request(prompt=" and ".join(["a dog"] * 5), seed=9, count=3, steps=3, style="glossy"),
)


class Alone:
    """A model that draws one order at a time."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.fingerprint, self.defaults = model.fingerprint, model.defaults

    def plan(self, order: Order) -> Plan:
        return self.model.plan(order)


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> Pipeline:
    return load(str(tiny), device="cpu")


@pytest.mark.parametrize("most", [1, 2, 4])
@pytest.mark.parametrize("able", [True, False])
def test_every_picture_is_the_one_that_is_drawn_alone(pipeline: Pipeline, most: int, able: bool) -> None:
    used = pipeline if able else Pipeline(Alone(pipeline.model), pipeline.name)
    assert isinstance(used.model, together.Together) is able
    every = list(together.generate(used, REQUESTS, most=most))
    assert [one.index for one, *_ in every] == [0, 1, 2, 3]
    assert all(len({(one.index, one.total, one.stage) for one in moment}) == 1 for moment in every)
    assert [len(one.preview) for one in every[0]] == [2, 1, 3]
    for request, last in zip(REQUESTS, every[-1], strict=True):
        alone, result = pipeline.draw(request), last.result
        assert result is not None
        assert len(result.images) == len(alone.images)
        for image, other in zip(result.images, alone.images, strict=True):
            off = ImageChops.difference(image, other).getextrema()
            assert max(high for _, high in off) <= (most > 1 and able)  # bits: serve.batching looks at them
        assert (result.seeds, result.request) == (alone.seeds, alone.request)
        assert (result.notices, result.warnings) == (alone.notices, alone.warnings)
    assert every[-1][1].result is not None
    assert every[-1][1].result.warnings  # of the dragon, and nobody else's
    assert every[-1][0].result is not None
    assert not every[-1][0].result.warnings


def test_requests_of_several_shapes(pipeline: Pipeline) -> None:
    several = [REQUESTS[0], replace(REQUESTS[1], steps=4)]
    with pytest.raises(RequestError, match="the same steps; draw these apart"):
        list(together.generate(pipeline, several))
    with pytest.raises(RequestError, match="as many steps each; draw these apart"):
        list(together.generate(pipeline, several, most=1))
    with pytest.raises(RequestError, match="no requests"):
        list(together.generate(pipeline, []))


def test_one_that_cannot_be_drawn_is_refused_before_anything_is(pipeline: Pipeline) -> None:
    with pytest.raises(RequestError, match="names nothing"):
        next(iter(together.generate(pipeline, [REQUESTS[0], Request(prompt="a dragon", steps=3)])))
