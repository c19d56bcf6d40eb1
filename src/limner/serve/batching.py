"""Which jobs may be drawn together, and how many pictures at once pay.

No picture depends on the company that it is drawn in: what a batch would change is not drawn in one.
"""

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from limner.errors import EngineError
from limner.serve.files import keep
from limner.text.prompt import parse

if TYPE_CHECKING:
    import torch

    from limner.pipeline.request import Request
    from limner.pipeline.run import Pipeline
    from limner.serve.messages import ModelInfo

OWN = ("prompt", "negative_prompt", "seed", "count", "guidance", "style")  # each picture may have its own
MOST = 8  # pictures at once that are ever tried
TIMED, COMPARED = 4, 2  # steps of the drawings that are timed, at most, and of those that are compared
GAIN = 1.1  # by how much more pictures must come in a second, for more at once to pay
PROMPTS = tuple(" beside ".join(["a blue background"] * times) for times in (1, 4, 8))  # of several lengths,
# in words that every model of the drawn world knows


def shape_of(request: Mapping[str, object], model: "ModelInfo") -> str:
    """A name for the jobs that may be drawn in one batch with this one: the same model in the same LoRAs,
    size, sampler, steps, grid and pictures to begin with; and with guidance, or all without.

    `request` is as `Request.to_dict` has it, every choice made, pictures by their ids.
    """
    lines = [str(request.get(name) or "") for name in ("prompt", "negative_prompt")]
    guidance = request.get("guidance")
    alike = {name: value for name, value in request.items() if name not in OWN}
    alike["loras"] = [[str(network) for network in parse(line).networks] for line in lines]
    alike["guided"] = not isinstance(guidance, int | float) or guidance > 1
    digest = hashlib.sha256(json.dumps(alike, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return f"{model.name} {digest}"


def measure(
    pipeline: "Pipeline",
    *,
    size: tuple[int, int] | None = None,  # (height, width) in pixels; None: the model's own
    steps: int | None = None,  # of the drawings that are timed; None: the model's own, up to TIMED
    most: int = MOST,  # pictures at once, at most
    cache: Path | None = None,  # a folder where findings are kept; None: nowhere
) -> int:
    """How many pictures at once pay on this machine: of 1, 2, 4 ... the most of which 10 % more come in a
    second than of the fewer that paid, while memory lasts, and while each picture is, bit for bit, the one
    that is drawn alone.

    For `pipeline.together.generate`, as its `most`. A model that draws one picture at a time has 1.
    """
    from limner.pipeline.together import Together

    if not isinstance(pipeline.model, Together) or most < 2:
        return 1
    size = size or pipeline.model.defaults.size
    key = _key(pipeline, size, most)
    if (known := _kept(cache, key)) is not None:
        return known
    found = _measured(pipeline, size, steps or min(pipeline.model.defaults.steps, TIMED), most)
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        keep(cache, f"{key}.json", json.dumps({"pictures": found}).encode())
    return found


def _measured(pipeline: "Pipeline", size: tuple[int, int], steps: int, most: int) -> int:
    from limner.pipeline.request import Request

    def requests(prompt: str, count: int, steps: int = COMPARED) -> "list[Request]":
        return [Request(prompt=prompt, seed=seed, count=1, size=size, steps=steps) for seed in range(count)]

    alone: dict[tuple[str, int], bytes] = {}
    found, pace = 1, _seconds(pipeline, requests(PROMPTS[0], 1, steps), 1)
    tried = 2
    while tried <= most:
        try:
            for prompt in PROMPTS:
                asked = requests(prompt, tried)
                for seed, request in enumerate(asked):
                    if (prompt, seed) not in alone:
                        alone[prompt, seed] = pipeline.draw(request).images[0].tobytes()
                if _drawn(pipeline, asked, tried) != [alone[prompt, seed] for seed in range(tried)]:
                    return found
            now = _seconds(pipeline, requests(PROMPTS[0], tried, steps), tried) / tried
        except EngineError:  # memory ran out
            return found
        if now * GAIN <= pace:
            found, pace = tried, now
        tried *= 2
    return found


def _drawn(pipeline: "Pipeline", requests: "Sequence[Request]", most: int) -> list[bytes]:
    """The levels of the pictures of a batch."""
    from limner.pipeline import together

    *_, last = together.generate(pipeline, requests, most=most)
    return [one.result.images[0].tobytes() for one in last if one.result is not None]


def _seconds(pipeline: "Pipeline", requests: "Sequence[Request]", most: int) -> float:
    """How long a batch takes: the best of three. On the CPU its own time counts, so that what others do on
    this machine does not."""
    clock = time.process_time if _device(pipeline).type == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(3):
        begun = clock()
        _drawn(pipeline, requests, most)
        best = min(best, clock() - begun)
    return best


def _device(pipeline: "Pipeline") -> "torch.device":
    import torch

    return torch.device(getattr(pipeline.model, "device", "cpu"))


def _key(pipeline: "Pipeline", size: tuple[int, int], most: int) -> str:
    """What a finding holds for: these weights at this size, on this device with these threads, by this
    torch."""
    import torch

    model, device = pipeline.model, _device(pipeline)
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    told = (model.fingerprint, size, most, str(device), where, torch.get_num_threads(), torch.__version__)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def _kept(cache: Path | None, key: str) -> int | None:
    """What was found before; None when nothing was, or it cannot be read."""
    if cache is None:
        return None
    try:
        found = json.loads((cache / f"{key}.json").read_text())["pictures"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if type(found) is int and 1 <= found <= 1024 else None
