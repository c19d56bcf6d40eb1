"""OpenAI's Images API: generations, edits and variations of pictures, at once or as they form; and models.

Extensions go through a client's `extra_body`: seed, steps, negative_prompt, guidance, sampler, and style.
"""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.responses import StreamingResponse

from limner.errors import LimnerError
from limner.serve import openai_answers as answers
from limner.serve.deps import CallerNeeded, EngineNeeded, house_of, wait
from limner.serve.errors import Problem, Refused, own_shape, problem_of
from limner.serve.jobs import Job, TooMany
from limner.serve.openai_asked import Wish, edit_of, model_named, variation_of, wish_of
from limner.serve.openai_schemas import (
    EditIn,
    GenerateIn,
    ImagesOut,
    ModelCard,
    ModelCards,
    Painted,
    VariationIn,
)
from limner.serve.routes.jobs import Once
from limner.serve.schemas import PROBLEMS, Errors
from limner.serve.uploads import decoded
from limner.serve.waiting import FOREVER, Asked, on_pictures, problem_with

Form = TypeVar("Form", bound=BaseModel)
LOOK = 0.1  # seconds between looks at a job that is watched
FILE = {"type": "string", "format": "binary"}
PAINTED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ImagesOut,
        "content": {"text/event-stream": {}},
        "description": "the pictures; with `stream` their events",
    }
}
FAULTS = {**PROBLEMS, 500: {"model": Errors, "description": "It went wrong; a repeat may not help."}}
router = APIRouter(tags=["openai"], prefix="/v1", responses=FAULTS)


def shape(problem: Problem) -> tuple[int, Mapping[str, object]]:
    """Our errors are OpenAI's, but that there a wrong field is a bad request."""
    status, body = own_shape(problem)
    return (400 if status == 422 else status), body


SHAPES = {"/v1/": shape}


def _form(model: type[BaseModel], *files: str) -> dict[str, Any]:
    """What a form holds, for the OpenAPI page."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    properties = dict(schema["properties"])
    properties |= {name: {"type": "array", "items": FILE} if "[]" in name else FILE for name in files}
    told = {"type": "object", "properties": properties, "required": list(schema.get("required", []))}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": told}}}}


@router.post("/images/generations", response_class=Response, responses=PAINTED)
async def generate(asked: GenerateIn, request: Request, who: CallerNeeded, once: Once = None) -> Response:
    """Draw pictures."""
    house = house_of(request)
    wish = wish_of(asked, house.engine.models(), house.settings)
    async with Asked(request, who, once) as ours:
        job = await ours.submit(wish.told, f"generate {_said(asked)}")
        return await _answer(ours, job, wish, asked, "image_generation", 0)


@router.post(
    "/images/edits",
    response_class=Response,
    responses=PAINTED,
    openapi_extra=_form(EditIn, "image", "image[]", "mask"),
)
async def edit(request: Request, who: CallerNeeded, once: Once = None) -> Response:
    """Draw a picture anew: where the mask, or else the picture, is transparent; without either, some of all
    of it."""
    fields, files = await _read(request)
    asked = _checked(EditIn, fields)
    house = house_of(request)
    wish = wish_of(asked, house.engine.models(), house.settings)
    picture, mask = _image(files), _one(files, "mask")
    most = house.settings.upload_pixels
    marks = await on_pictures(house, partial(_marks, picture, mask, most))
    async with Asked(request, who, once) as ours:
        image, drawn, _ = await ours.bring(picture)
        where = None if marks is None else (await ours.bring(marks))[0]
        told = {**wish.told, **edit_of(asked, image, where)}
        job = await ours.submit(told, f"edit {_said(asked)} {_digest(picture, mask)}")
        brought = answers.tokens(drawn.width, drawn.height)
        return await _answer(ours, job, wish, asked, "image_edit", brought)


@router.post(
    "/images/variations",
    response_class=Response,
    responses={200: {"model": ImagesOut, "description": "the pictures"}},
    openapi_extra=_form(VariationIn, "image"),
)
async def vary(request: Request, who: CallerNeeded, once: Once = None) -> Response:
    """Draw a picture again, otherwise."""
    fields, files = await _read(request)
    asked = _checked(VariationIn, fields)
    house = house_of(request)
    wish = wish_of(asked, house.engine.models(), house.settings)
    picture = _image(files)
    async with Asked(request, who, once) as ours:
        image, drawn, said = await ours.bring(picture)
        told = {**wish.told, **variation_of(asked, wish.model, image, said)}
        job = await ours.submit(told, f"vary {_said(asked)} {_digest(picture)}")
        return await _whole(ours, job, wish, answers.tokens(drawn.width, drawn.height))


@router.get("/models", response_model=ModelCards)
async def models(_: CallerNeeded, engine: EngineNeeded) -> ModelCards:
    """What can be drawn with, the default first."""
    return ModelCards(data=[answers.model_out(model.name) for model in engine.models()])


@router.get("/models/{id}", response_model=ModelCard)
async def model(
    id: Annotated[str, Path(min_length=1, max_length=200)], _: CallerNeeded, engine: EngineNeeded
) -> ModelCard:
    """One of them; OpenAI's names stand for the default."""
    model_named(id, engine.models())
    return answers.model_out(id)


async def _answer(ours: Asked, job: Job, wish: Wish, asked: Painted, kind: str, brought: int) -> Response:
    if not asked.stream:
        return await _whole(ours, job, wish, brought)
    house = house_of(ours.request)
    if house.streams.get(ours.who.owner, 0) >= house.settings.streams:
        await ours.left(job)
        raise TooMany(f"{house.settings.streams} streams at once are the most; close one", 5)
    events = _events(ours, job, wish, kind, asked.partial_images or 0, brought)
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _whole(ours: Asked, job: Job, wish: Wish, brought: int) -> Response:
    job = await ours.drawn(job)
    if (problem := problem_with(job)) is not None:
        raise problem
    origin = str(ours.request.base_url).rstrip("/")  # the guard knows its host for one of ours
    house = house_of(ours.request)
    body = await on_pictures(house, partial(answers.images_of, house, job, wish, origin, brought))
    return Response(body, media_type="application/json")


async def _events(
    ours: Asked, job: Job, wish: Wish, kind: str, partials: int, brought: int
) -> AsyncIterator[str]:
    """Up to so many pictures on the way, evenly over the steps, and the finished ones."""
    house, owner = house_of(ours.request), ours.who.owner
    house.streams[owner] = house.streams.get(owner, 0) + 1
    ending = asyncio.ensure_future(wait(ours.request, job.id, FOREVER, owner))
    sent = due = 0
    silent = 0.0
    try:
        while not (await asyncio.wait({ending}, timeout=LOOK))[0]:
            silent += LOOK
            event = house.engine.latest(job.id)
            now = 0 if event is None else min(partials, int(event.progress * (partials + 1)))
            if event is not None and event.previews and now > due:
                due = now
                for index, preview in enumerate(event.previews):
                    form = partial(answers.partial_of, kind, preview, job, wish, number=sent, index=index)
                    yield await on_pictures(house, form)
                sent += 1
                silent = 0.0
            elif silent >= house.settings.heartbeat:
                yield ": alive\n\n"
                silent = 0.0
        found = ending.result()
        problem = problem_with(found) if found.state.terminal else Refused(503, "stopping", "try again")
        if problem is not None:
            raise problem
        for drawn in found.pictures:
            whole = partial(answers.completed_of, house, kind, drawn, found, wish, brought)
            yield await on_pictures(house, whole)
    except LimnerError as error:
        yield answers.told_late(problem_of(error))
    finally:
        house.streams[owner] -= 1
        if not house.streams[owner]:
            del house.streams[owner]
        await ours.left(job, ending)


async def _read(request: Request) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    """The texts and the files of a form; `image[]` is `image`."""
    fields: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    async with request.form(max_files=20, max_fields=100) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name.removesuffix("[]"), []).append(await value.read())
            else:
                fields[name] = value
    return fields, files


def _checked(model: type[Form], fields: Mapping[str, str]) -> Form:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        wrong = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(wrong) from None


def _image(files: Mapping[str, list[bytes]]) -> bytes:
    if (found := _one(files, "image")) is None:
        raise Refused(400, "missing", "image: a file is needed, of PNG, JPEG or WebP", param="image")
    return found


def _one(files: Mapping[str, list[bytes]], name: str) -> bytes | None:
    found = files.get(name, [])
    if len(found) > 1:
        raise Refused(400, "invalid_value", f"one {name} is taken here, got {len(found)}", param=name)
    return found[0] if found else None


def _marks(picture: bytes, mask: bytes | None, most: int) -> bytes | None:
    """A picture that is white where to draw: what is transparent in the mask, or in the picture itself. None
    where neither says. Raises Refused for a mask of another size, or one that marks nothing."""
    image = decoded(picture, most)
    said = image if mask is None else decoded(mask, most)
    if said.size != image.size:
        sizes = "{}x{}, and the image {}x{}".format(*said.size, *image.size)
        raise Refused(400, "invalid_value", f"the mask is {sizes}; give it the same size", param="mask")
    alpha = said.getchannel("A") if said.mode == "RGBA" else Image.new("L", said.size, 255)
    marks = alpha.point([255] * 128 + [0] * 128)
    if marks.getextrema() == (0, 0):
        if mask is None:
            return None
        told = "the mask marks nothing: make transparent what is to be drawn anew, and the rest opaque"
        raise Refused(400, "invalid_value", told, param="mask")
    kept = io.BytesIO()
    marks.convert("RGB").save(kept, "PNG")
    return kept.getvalue()


def _said(asked: BaseModel) -> str:
    return asked.model_dump_json(exclude_none=True)


def _digest(*files: bytes | None) -> str:
    return " ".join(hashlib.sha256(file or b"").hexdigest() for file in files)
