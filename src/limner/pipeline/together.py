"""Several requests of one shape, drawn in lock step; each gets the pictures that it would get alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch

from limner.errors import RequestError
from limner.families.base import Order, Plan
from limner.pipeline.request import Request
from limner.pipeline.run import Pipeline, Progress, walk


@runtime_checkable
class Together(Protocol):
    """A model that can draw several orders in one batch."""

    def plan_together(self, orders: Sequence[Order], most: int) -> Plan:
        """The stages of a batch with one picture of each order, in their order; no call of a network is asked
        for more than `most` of them at once. What is to be said of an order, `plan` says.

        The orders differ in nothing but prompts, style and the scale of guidance. Raises RequestError for
        others, and as `plan` does.
        """


@torch.inference_mode()
def generate(
    pipeline: Pipeline,
    requests: Sequence[Request],
    *,
    most: int = 4,  # pictures that a network is asked for in one call; serve.batching measures what pays
) -> Iterator[tuple[Progress, ...]]:
    """Draw step by step: after every step the progress of each request, in their order, and at last with its
    result. Stop taking items to cancel all of them.

    One shape means as many steps in the same stages: see `serve.batching.shape_of`. Models that are no
    `Together` are asked for one request after the other, at every step. Raises RequestError for requests of
    several shapes, and as `Pipeline.generate` does for any of them: drawn alone, they tell whose it was.
    """
    if not requests:
        raise RequestError("no requests: give at least one")
    if most > 1 and isinstance(pipeline.model, Together):
        yield from _together(pipeline, pipeline.model, requests, most)
        return
    for progress in zip(*(pipeline.generate(request) for request in requests), strict=True):
        if len({one.total for one in progress}) > 1:
            raise RequestError("requests that are drawn together have as many steps each; draw these apart")
        yield progress


def _together(
    pipeline: Pipeline, model: Together, requests: Sequence[Request], most: int
) -> Iterator[tuple[Progress, ...]]:
    every = [pipeline.ready(request) for request in requests]
    counts = [ready.request.count for ready in every]
    plan = model.plan_together([ready.order for ready in every for _ in ready.seeds], most)
    for seen in walk(plan.stages, tuple(seed for ready in every for seed in ready.seeds)):
        shares = zip(every, seen.preview.split(counts), strict=True)
        last = seen.index == seen.total - 1
        yield tuple(
            replace(seen, preview=share, result=pipeline.finished(ready, share) if last else None)
            for ready, share in shares
        )
