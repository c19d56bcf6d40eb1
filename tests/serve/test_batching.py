"""Which jobs go together, and how many at once."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from limner.errors import EngineError
from limner.pipeline import together
from limner.pipeline.load import load
from limner.pipeline.request import Request
from limner.pipeline.run import Pipeline
from limner.serve import batching
from limner.serve.messages import ModelInfo

MINI = ModelInfo(name="mini", family="mini", default_size=(64, 64))
REQUEST = Request(
    prompt="a cat", seed=1, count=4, steps=16, guidance=2.5, sampler="ddpm", size=(64, 64), model="mini"
)


@pytest.fixture
def pipeline(tiny: Path) -> Pipeline:
    return load(str(tiny), device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a dog"},
        {"negative_prompt": "a dog"},
        {"seed": 2},
        {"count": 1},
        {"guidance": 4.0},
        {"style": "flat"},
    ],
)
def test_what_each_picture_may_have_for_itself(change: dict[str, object]) -> None:
    other = replace(REQUEST, **change)  # type: ignore[arg-type]
    assert batching.shape_of(other.to_dict(), MINI) == batching.shape_of(REQUEST.to_dict(), MINI)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 8},
        {"size": (96, 96)},
        {"sampler": "heun"},
        {"grid": "karras"},
        {"guidance": 1.0},
        {"prompt": "a cat <lora:ink:0.5>"},
        {"prompt": "a cat <lora:ink:1>"},
        {"negative_prompt": "<lora:ink>"},
        {"tiling": True},
        {"image": {"picture": "a"}},
        {"image": {"picture": "b"}},
        {"image": {"picture": "b"}, "mask": {"picture": "a"}},
        {"image": {"picture": "b"}, "strength": 0.5},
    ],
)
def test_what_a_batch_has_in_common(change: dict[str, object]) -> None:
    shapes = {batching.shape_of(REQUEST.to_dict() | more, MINI) for more in ({}, change)}
    assert len(shapes) == 2
    assert batching.shape_of(REQUEST.to_dict() | change, MINI) in shapes  # again the same
    assert batching.shape_of(REQUEST.to_dict(), replace(MINI, name="other")) not in shapes


def clocked(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
    """Batches of n pictures take `seconds(n)`, whatever this machine does; of one prompt, to be quick."""
    monkeypatch.setattr(batching, "PROMPTS", batching.PROMPTS[:1])
    monkeypatch.setattr(batching, "_seconds", lambda pipeline, requests, most: seconds(len(requests)))


@pytest.mark.parametrize(
    ("seconds", "found"),
    [
        (lambda n: n, 1),  # a batch gains nothing
        (lambda n: 1 + n / 10, 8),
        (lambda n: {1: 1, 2: 1.5, 4: 2.9, 8: 5.7}[n], 2),  # 4 and 8 are hardly quicker than 2 and 2
        (lambda n: {1: 1, 2: 1.5, 4: 2.9, 8: 4.0}[n], 8),  # but 8 may be
    ],
)
def test_doubled_while_it_pays(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float], found: int
) -> None:
    clocked(monkeypatch, seconds)
    monkeypatch.setattr(
        batching, "_drawn", lambda pipeline, requests, most: [same(pipeline, r) for r in requests]
    )
    assert batching.measure(pipeline, steps=1, most=8) == found


def same(pipeline: Pipeline, request: Request) -> bytes:
    """The levels of a picture drawn alone."""
    return pipeline.draw(request).images[0].tobytes()


def test_never_where_a_picture_would_change(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch, lambda n: 1.0)

    def drawn(pipeline: Pipeline, requests: list[Request], most: int) -> list[bytes]:
        pictures = [same(pipeline, request) for request in requests]
        return pictures if len(requests) < 4 else [*pictures[:-1], b"another"]

    monkeypatch.setattr(batching, "_drawn", drawn)
    assert batching.measure(pipeline, steps=1, most=8) == 2


def test_never_where_memory_runs_out(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch, lambda n: 1.0)

    def drawn(pipeline: Pipeline, requests: list[Request], most: int) -> list[bytes]:
        if len(requests) > 2:
            raise EngineError("memory ran out in the diffusion")
        return [same(pipeline, request) for request in requests]

    monkeypatch.setattr(batching, "_drawn", drawn)
    assert batching.measure(pipeline, steps=1, most=8) == 2


def test_what_was_found_is_kept(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clocked(monkeypatch, lambda n: 1.0)
    found = batching.measure(pipeline, steps=1, most=2, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == {"pictures": found}
    file.write_text('{"pictures": 7}')
    assert batching.measure(pipeline, steps=1, most=2, cache=tmp_path) == 7
    assert batching.measure(pipeline, steps=1, most=2, size=(96, 96), cache=tmp_path) == found  # another size
    for broken in ("", "[]", '{"pictures": 0}', '{"pictures": "7"}'):
        file.write_text(broken)
        assert batching.measure(pipeline, steps=1, most=2, cache=tmp_path) == found


def test_measured_for_real_the_pictures_are_those_drawn_alone(pipeline: Pipeline) -> None:
    most = batching.measure(pipeline, steps=1, most=4)
    assert most in (1, 2, 4)
    requests = [Request(prompt="a cat", seed=seed, count=1, steps=2) for seed in range(most)]
    *_, last = together.generate(pipeline, requests, most=most)
    for request, one in zip(requests, last, strict=True):
        assert one.result is not None
        assert one.result.images[0].tobytes() == same(pipeline, request)
