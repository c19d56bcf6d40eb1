"""AUTOMATIC1111's API: txt2img, img2img, how far they are, and stopping them; larger pictures; png-info.

One request is one job, of batch_size x n_iter pictures with seeds that follow each other. Progress and
interrupt are about the caller's own jobs, whichever API they came by.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool

from limner.serve import a1111_answers as answers
from limner.serve.a1111_asked import drawing_of, mask_warnings
from limner.serve.a1111_pictures import begun, bytes_of, resized
from limner.serve.a1111_schemas import (
    DrawIn,
    DrawnOut,
    ExtraIn,
    ExtraOut,
    FaultOut,
    Img2ImgIn,
    PngInfoIn,
    PngInfoOut,
    ProgressOut,
    Txt2ImgIn,
)
from limner.serve.deps import Caller, CallerNeeded, StoreNeeded, house_of
from limner.serve.engine import ModelInfo
from limner.serve.errors import Problem, Refused
from limner.serve.jobs import Job, State
from limner.serve.routes.a1111_lists import options_of
from limner.serve.routes.a1111_lists import router as lists
from limner.serve.routes.jobs import Once
from limner.serve.schemas import PROBLEMS
from limner.serve.store import Store
from limner.serve.uploads import decoded, infotext_in
from limner.serve.waiting import Asked, files_of, on_pictures, problem_with

FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": FaultOut, "description": said["description"]} for status, said in PROBLEMS.items()
}
FAULTS[500] = {"model": FaultOut, "description": "It went wrong."}
RESIZED = {
    "none": Image.Resampling.LANCZOS,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
LACKING = ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility")
UPSCALER = "limner"
router = APIRouter(tags=["a1111"], prefix="/sdapi/v1", responses=FAULTS)
router.include_router(lists)


def shape(problem: Problem) -> tuple[int, Mapping[str, object]]:
    """Errors as the web UI writes them."""
    kind = "HTTPException" if problem.status < 500 else "Error"
    detail: object = problem.message
    if problem.details:
        kind, detail = "RequestValidationError", [dict(one) for one in problem.details]
    return problem.status, {"error": kind, "detail": detail, "body": "", "errors": problem.message}


SHAPES = {"/sdapi/": shape}


@router.post("/txt2img", response_class=Response, responses={200: {"model": DrawnOut}})
async def txt2img(asked: Txt2ImgIn, request: Request, who: CallerNeeded, once: Once = None) -> Response:
    """Draw pictures."""
    house = house_of(request)
    drawing = drawing_of(asked, house.engine.models(), house.settings, options_of(request, who.owner))
    async with Asked(request, who, once) as ours:
        job = await ours.submit(drawing.told, f"txt2img {asked.model_dump_json(exclude_none=True)}")
        return await _answer(ours, job, drawing.model, asked, drawing.warnings)


@router.post("/img2img", response_class=Response, responses={200: {"model": DrawnOut}})
async def img2img(asked: Img2ImgIn, request: Request, who: CallerNeeded, once: Once = None) -> Response:
    """Draw a picture anew, or where a mask is white."""
    house = house_of(request)
    drawing = drawing_of(asked, house.engine.models(), house.settings, options_of(request, who.owner))
    if not asked.init_images:
        raise Refused(404, "no_image", "Init image not found", param="init_images")
    if len(asked.init_images) > 1:
        raise Refused(422, "unsupported", "init_images: one is taken here", param="init_images")
    size = drawing.told.get("size")
    blur = max(asked.mask_blur_x or 0, asked.mask_blur_y or 0)

    def fitted() -> tuple[bytes, bytes | None]:
        image = bytes_of((asked.init_images or [""])[0], "init_images")
        mask = None if asked.mask is None else bytes_of(asked.mask, "mask")
        return begun(
            image,
            mask,
            size=(size[0], size[1]) if isinstance(size, list) else None,
            mode=asked.resize_mode or 0,
            invert=bool(asked.inpainting_mask_invert),
            most=house.settings.upload_pixels,
        )

    image, mask = await on_pictures(house, fitted)
    async with Asked(request, who, once) as ours:
        told = {**drawing.told, "image": (await ours.bring(image))[0]}
        if mask is not None:
            told |= {"mask": (await ours.bring(mask))[0]}
            told["feather"] = asked.mask_blur if asked.mask_blur is not None else blur or 4
        digest = hashlib.sha256(asked.model_dump_json(exclude_none=True).encode()).hexdigest()
        job = await ours.submit(told, f"img2img {digest}")
        return await _answer(ours, job, drawing.model, asked, (*drawing.warnings, *mask_warnings(asked)))


@router.get("/progress", response_model=ProgressOut)
async def progress(
    request: Request,
    who: CallerNeeded,
    store: StoreNeeded,
    skip_current_image: Annotated[bool, Query()] = False,
) -> ProgressOut:
    """How far your oldest running job is, or else the next one that waits."""
    found = await run_in_threadpool(_unfinished, store, who)
    event = house_of(request).engine.latest(found[0].id) if found else None
    return answers.progress_of(found[0] if found else None, event, image=not skip_current_image)


@router.post("/interrupt", response_model=dict[str, Any])
@router.post("/skip", response_model=dict[str, Any])
async def interrupt(request: Request, who: CallerNeeded, store: StoreNeeded) -> dict[str, Any]:
    """Stop what is drawn for you, or else the next of yours that waits; nothing of anybody else."""

    def stopped() -> None:
        found = _unfinished(store, who)
        for job in [job for job in found if job.state is State.RUNNING] or found[:1]:
            store.cancel(job.id, who.owner)

    await run_in_threadpool(stopped)
    house_of(request).engine.wake()
    return {}


@router.post("/png-info", response_model=PngInfoOut)
async def png_info(asked: PngInfoIn, request: Request, _: CallerNeeded) -> dict[str, object]:
    """What a picture says of how it was drawn."""

    def read() -> dict[str, object]:
        text = infotext_in(bytes_of(asked.image, "image")) or ""
        items = {"parameters": text} if text else {}
        return {"info": text, "items": items, "parameters": answers.fields_of(text) if text else {}}

    return await on_pictures(house_of(request), read)


@router.post("/extra-single-image", response_model=ExtraOut)
async def extra(asked: ExtraIn, request: Request, who: CallerNeeded, once: Once = None) -> Response:
    """Make a picture larger: "Limner" by a network, "Lanczos" and "Nearest" by counting."""
    house = house_of(request)
    name = (asked.upscaler_1 or "None").lower()
    if name not in (*RESIZED, UPSCALER):
        told = "Upscaler not found: GET upscalers lists None, Lanczos, Nearest and Limner"
        raise Refused(404, "unknown_upscaler", told, param="upscaler_1")
    data = await run_in_threadpool(bytes_of, asked.image, "image")
    limit = 2 * house.settings.most_side
    scale, target = await on_pictures(house, partial(_target, data, asked, house.settings.upload_pixels))
    if max(target) > limit:
        raise Refused(400, "too_large", f"a side would be above {limit} pixels; ask for less")
    if name == UPSCALER:
        async with Asked(request, who, once) as ours:
            picture, _, _ = await ours.bring(data)
            times = scale if asked.resize_mode == 0 else min(max(scale, 1.0), 4.0)
            wish = {"upscale": {**picture, "scale": times}}
            digest = hashlib.sha256(asked.model_dump_json().encode()).hexdigest()
            job = await ours.drawn(await ours.submit(wish, f"extra {digest}"))
        if (problem := problem_with(job)) is not None:
            raise problem
        data = (await run_in_threadpool(files_of, house, job))[0]
    if name != UPSCALER or asked.resize_mode == 1:
        how = RESIZED.get(name, Image.Resampling.LANCZOS)
        crop = asked.resize_mode == 0 or asked.upscaling_crop
        data = await on_pictures(house, partial(resized, data, target, how, crop=crop, most=limit**2))
    left = [name for name in LACKING if getattr(asked, name)]
    said = "".join(f"<p>{name} was left out: there is no such thing in Limner</p>" for name in left)
    body = json.dumps({"html_info": said, "image": base64.b64encode(data).decode()})
    return Response(body, media_type="application/json")


def _target(data: bytes, asked: ExtraIn, most: int) -> tuple[float, tuple[int, int]]:
    """How many times larger a picture is to be, and the (width, height) that it comes to."""
    image = decoded(data, most)
    if asked.resize_mode == 0:
        scale = asked.upscaling_resize
        return scale, (round(image.width * scale), round(image.height * scale))
    target = (asked.upscaling_resize_w, asked.upscaling_resize_h)
    sides = target[0] / image.width, target[1] / image.height
    return (max(sides) if asked.upscaling_crop else min(sides)), target


async def _answer(
    ours: Asked, job: Job, model: ModelInfo, asked: DrawIn, warnings: tuple[str, ...]
) -> Response:
    """Once a job has ended; one that was interrupted has no pictures, and says so."""
    job = await ours.drawn(job)
    if job.state is not State.CANCELLED and (problem := problem_with(job)) is not None:
        raise problem
    house = house_of(ours.request)

    def written() -> bytes:
        return answers.images_of(job, files_of(house, job), model, asked, warnings)

    return Response(await on_pictures(house, written), media_type="application/json")


def _unfinished(store: Store, who: Caller) -> list[Job]:
    """What runs, the oldest first; where nothing does, what waits."""
    for state in (State.RUNNING, State.QUEUED):
        if found := store.listed(who.owner, state=state, limit=200):
            return found[::-1]
    return []
