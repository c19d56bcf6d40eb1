"""What AUTOMATIC1111's clients are answered: pictures with their `info`, progress, what a picture says."""

import base64
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from limner import __version__
from limner.pipeline.picture import Picture
from limner.pipeline.postprocess import SAMPLER_NAMES, Record, infotext
from limner.pipeline.request import Request
from limner.serve.a1111_names import title_of
from limner.serve.a1111_schemas import DrawIn, Img2ImgIn, ProgressOut, ProgressState
from limner.serve.engine import Event, ModelInfo
from limner.serve.errors import plain
from limner.serve.infotext import ENOUGH, PAIR
from limner.serve.jobs import Drawn, Job, State
from limner.serve.uploads import infotext_in

INTERRUPTED = "interrupted: nothing of it was finished"
NOT_SHOWN = ("init_images", "mask", "latent_mask")  # of what was asked for
PICTURES = ("image", "mask", "vary", "blend", "controls")


def images_of(
    job: Job, pictures: Sequence[bytes], model: ModelInfo, asked: DrawIn, warnings: Sequence[str]
) -> bytes:
    """The answer to txt2img and img2img, as JSON: of a job that is done, or was interrupted."""
    texts = [
        infotext_in(data) or said_of(job, drawn, model)
        for data, drawn in zip(pictures, job.pictures, strict=True)
    ]
    shown = pictures if asked.send_images is not False else []
    parameters = asked.model_dump(mode="json")
    parameters |= {name: None for name in NOT_SHOWN if name in parameters}
    if isinstance(asked, Img2ImgIn) and asked.include_init_images:
        parameters["init_images"] = asked.init_images
    answer = {
        "images": [base64.b64encode(data).decode() for data in shown],
        "parameters": parameters,
        "info": json.dumps(_info(job, model, asked, texts, warnings)),
    }
    return json.dumps(answer).encode()


def said_of(job: Job, drawn: Drawn, model: ModelInfo) -> str:
    """The infotext of a picture whose file says nothing, for its owner."""
    plain_request = {name: value for name, value in job.request.items() if name not in PICTURES}
    for name in ("extend", "transparent"):  # they need a picture
        plain_request.pop(name, None)
    request = Request.from_dict({**plain_request, "count": 1, "seed": drawn.seed})
    if job.request.get("image") is not None:
        request = replace(request, image=Picture(Image.new("RGB", (1, 1))))
    return infotext(Record(request=request, weights=model.fingerprint))


def _info(
    job: Job, model: ModelInfo, asked: DrawIn, texts: Sequence[str], warnings: Sequence[str]
) -> dict[str, object]:
    """As the web UI's Processed.js(), and beside that what of it is ours."""
    request = job.request
    prompt, negative = str(request.get("prompt") or ""), str(request.get("negative_prompt") or "")
    seeds = [drawn.seed for drawn in job.pictures]
    size = request.get("size")
    height, width = size if isinstance(size, list | tuple) else model.default_size
    cancelled = (INTERRUPTED,) if job.state is State.CANCELLED else ()
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(seeds),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(seeds),
        "seed": request.get("seed"),
        "all_seeds": seeds,
        "subseed": request.get("seed"),
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": SAMPLER_NAMES.get(str(request.get("sampler")), request.get("sampler")),
        "cfg_scale": request.get("guidance"),
        "steps": request.get("steps"),
        "batch_size": asked.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model.name,
        "sd_model_hash": model.fingerprint,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.get("strength") if request.get("image") else None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": list(texts),
        "styles": [request["style"]] if request.get("style") else [],
        "job_timestamp": stamp(job.created),
        "clip_skip": request.get("clip_skip") or 1,
        "is_using_inpainting_conditioning": False,
        "version": f"limner {__version__}",
        "job": job.id,
        "notices": [plain(notice) for notice in job.notices],
        "warnings": [*cancelled, *warnings, *(plain(warning) for warning in job.warnings)],
    }


def progress_of(job: Job | None, event: Event | None, *, image: bool) -> ProgressOut:
    """How far a job is that has not ended; None: there is none."""
    if job is None:
        return ProgressOut(
            progress=0.0,
            eta_relative=0.0,
            state=_state("", 0, "0", 0, 0, stopping=False),
            current_image=None,
            textinfo=None,
            current_task=None,
        )
    share = max(job.progress, event.progress if event is not None else 0.0)
    steps = job.request.get("steps")
    steps = steps if isinstance(steps, int) else 0
    eta = 0.0
    if job.started is not None and share > 0:
        eta = max(0.0, time.time() - job.started) * (1 - share) / share
    previews = event.previews if event is not None and image else None
    waiting = f"waiting, {job.position} in the queue" if job.position is not None else None
    return ProgressOut(
        progress=min(share, 1.0),
        eta_relative=eta,
        state=_state(job.id, 1, stamp(job.created), round(share * steps), steps, stopping=job.cancel),
        current_image=base64.b64encode(previews[0]).decode() if previews else None,
        textinfo=waiting or job.stage or None,
        current_task=job.id,
    )


def _state(job: str, count: int, when: str, step: int, steps: int, *, stopping: bool) -> ProgressState:
    return ProgressState(
        skipped=False,
        interrupted=stopping,
        stopping_generation=stopping,
        job=job,
        job_count=count,
        job_timestamp=when,
        job_no=0,
        sampling_step=min(step, steps),
        sampling_steps=steps,
    )


def stamp(seconds: float) -> str:
    """A time as the web UI writes it, in UTC."""
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(seconds))


def fields_of(text: str) -> dict[str, str]:
    """Infotext in its parts, as they stand there; a size is two."""
    lines = text.strip().split("\n")
    pairs = PAIR.findall(lines[-1][:5000])
    if len(pairs) < ENOUGH:
        pairs = []
    else:
        lines = lines[:-1]
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    fields = {"Prompt": prompt.strip(), "Negative prompt": negative.strip()}
    for key, value in pairs:
        fields |= _sides(key.strip(), _bare(value.strip()))
    return fields


def _sides(key: str, value: str) -> Mapping[str, str]:
    width, times, height = value.partition("x")
    if times and width.isdecimal() and height.isdecimal():
        return {f"{key}-1": width, f"{key}-2": height}
    return {key: value}


def _bare(value: str) -> str:
    if value.startswith('"'):
        with contextlib.suppress(ValueError):
            return str(json.loads(value))
    return value


def model_out(model: ModelInfo) -> dict[str, Any]:
    """A model, without a path."""
    return {
        "title": title_of(model),
        "model_name": model.name,
        "hash": model.fingerprint[:10] or None,
        "sha256": None,
        "filename": model.name,
        "config": None,
    }
