"""Jobs and pictures for tests of the store, with everything that a test does not care about filled in."""

import time

from limner.serve.jobs import Drawn, NewJob, new_id


def new(
    *,
    owner: str = "anna",
    request: dict[str, object] | None = None,
    model: str = "mini",
    shape: str = "mini 192x192",
    cost: float = 1.0,
    parent: str | None = None,
    action: str | None = None,
    index: int | None = None,
    metadata: str = "full",
) -> NewJob:
    """A job to submit."""
    return NewJob(
        owner=owner,
        request={"prompt": "a red cat", "seed": 1} if request is None else request,
        model=model,
        shape=shape,
        cost=cost,
        parent=parent,
        action=action,
        index=index,
        metadata=metadata,
    )


def drawn(
    *,
    job: str | None = "0" * 32,
    index: int = 0,
    attempt: int = 1,
    prompt: str = "a red cat",
    created: float | None = None,
) -> Drawn:
    """A picture, of a job or (None) an upload. Its file is not written."""
    id = new_id()
    return Drawn(
        id=id,
        job=job,
        index=index,
        seed=None if job is None else 7 + index,
        width=96,
        height=64,
        file=f"uploads/{id}.png" if job is None else f"{job}/{attempt}-{index}.png",
        sha256="0" * 64,
        created=round(time.time(), 6) if created is None else created,
        prompt=prompt,
    )
