"""Pictures: bring one, fetch one, look for some, say what you think of them. Known by their ids alone."""

import time
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, File, Path, Query, Request, Response, UploadFile
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from limner.serve import files
from limner.serve.deps import CallerNeeded, StoreNeeded, house_of
from limner.serve.jobs import Drawn, NotFound, cursor, new_id
from limner.serve.links import viewer
from limner.serve.routes.jobs import Before, Limit
from limner.serve.schemas import ID, PROBLEMS, PictureOut, Pictures, RatingIn, UploadOut, picture_out
from limner.serve.store import Store
from limner.serve.uploads import TYPES, As, encoded, read_upload, settings_in

router = APIRouter(tags=["pictures"], responses=PROBLEMS)
PictureId = Annotated[str, Path(pattern=ID, min_length=32, max_length=32)]


@router.post("/pictures", status_code=201, response_model=UploadOut)
async def bring(
    request: Request,
    who: CallerNeeded,
    file: Annotated[UploadFile, File(description="PNG, JPEG or WebP")],
) -> Response:
    """Bring a picture, to begin with, to mark where to draw, or to read its settings."""
    house_of(request).pace.step(who.owner)
    drawn, settings = await keep_upload(request, who.owner, await file.read(), metadata=who.metadata)
    told = {
        "id": drawn.id,
        "width": drawn.width,
        "height": drawn.height,
        "url": f"/pictures/{drawn.id}",
        "settings": settings,
    }
    return JSONResponse(told, 201)


async def keep_upload(
    request: Request, owner: str, data: bytes, *, metadata: str = "full"
) -> tuple[Drawn, dict[str, object] | None]:
    """Decode the file of a picture, keep it encoded anew, and say what it told of itself.

    Raises Refused for what is no picture that is taken, EngineError when it cannot be kept.
    """
    house = house_of(request)

    def kept() -> tuple[Drawn, dict[str, object] | None]:
        upload = read_upload(data, house.settings.upload_pixels, metadata=metadata)
        name = new_id()
        file = f"{files.UPLOADS}/{name}.png"
        files.keep(house.store.pictures, file, upload.data)
        drawn = Drawn(
            id=name,
            width=upload.width,
            height=upload.height,
            file=file,
            sha256=upload.sha256,
            created=time.time(),
            prompt=upload.prompt,
        )
        house.store.add_upload(owner, drawn)
        return drawn, upload.settings

    return await to_thread.run_sync(kept, limiter=house.images)


@router.get("/pictures", response_model=Pictures)
async def gallery(
    who: CallerNeeded,
    store: StoreNeeded,
    search: Annotated[
        str | None, Query(max_length=200, pattern="^[^\\x00]*$", description="words of the prompt")
    ] = None,
    starred: bool | None = None,
    model: Annotated[str | None, Query(max_length=200, pattern="^[^\\x00]*$")] = None,
    before: Before = None,
    limit: Limit = 50,
) -> Response:
    """Your pictures, newest first."""
    found = await run_in_threadpool(
        store.gallery, who.owner, search=search, starred=starred, model=model, before=before, limit=limit
    )
    more = cursor(found[-1]) if len(found) == limit else None
    return JSONResponse({"items": [picture_out(drawn) for drawn in found], "next": more})


@router.get(
    "/pictures/{id}",
    response_class=Response,
    responses={200: {"content": {kind: {} for kind in TYPES.values()}, "description": "the picture"}},
)
async def fetch(
    id: PictureId,
    request: Request,
    owner: Annotated[str | None, Depends(viewer)],
    store: StoreNeeded,
    as_: Annotated[As | None, Query(alias="as", description="png if not given; webp of a thumbnail")] = None,
    side: Annotated[
        int | None, Query(ge=16, le=1024, description="of a thumbnail, at most, in pixels")
    ] = None,
    quality: Annotated[int, Query(ge=1, le=100, description="of JPEG and WebP, but for thumbnails")] = 92,
) -> Response:
    """A picture's file, or with `side` a thumbnail. Parts of it (Range) are not served."""
    drawn = await run_in_threadpool(store.picture, id, owner)
    form: As = as_ or ("png" if side is None else "webp")
    tag = f'"{drawn.sha256[:32]}-{form}-{side or 0}-{quality}"'
    headers = {
        "ETag": tag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'inline; filename="limner-{id}{"" if side is None else "-small"}.{form}"',
    }
    if owner is None:  # a link is there to be shown by pages of other sites
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    house = house_of(request)
    thumbnails = house.thumbnails
    data = None if side is None else thumbnails.get(drawn.sha256, form, side)
    if data is None:
        data = await run_in_threadpool(_shown, store, drawn, form, side, quality)
        if side is not None:
            thumbnails.put(drawn.sha256, form, side, data)
    return Response(data, headers=headers, media_type=TYPES[form])


@router.get("/pictures/{id}/settings", response_model=dict[str, Any])
async def settings_of(id: PictureId, who: CallerNeeded, store: StoreNeeded) -> Response:
    """How a picture was drawn, as a request that draws it again; {} where that is not known."""
    return JSONResponse(await run_in_threadpool(_settings, store, id, who.owner))


@router.patch("/pictures/{id}", response_model=PictureOut)
async def rate(id: PictureId, asked: RatingIn, who: CallerNeeded, store: StoreNeeded) -> Response:
    """Star a picture, or rate it."""
    drawn = await run_in_threadpool(store.rate, id, who.owner, starred=asked.starred, rating=asked.rating)
    return JSONResponse(picture_out(drawn))


@router.delete("/pictures/{id}", status_code=204, response_class=Response)
async def remove(id: PictureId, who: CallerNeeded, store: StoreNeeded) -> Response:
    """Delete a picture, for good."""
    await run_in_threadpool(store.remove, id, who.owner)
    return Response(status_code=204)


def file_of(store: Store, drawn: Drawn) -> bytes:
    """The PNG of a picture. Raises NotFound when it was removed."""
    try:
        return (store.pictures / files.inside(drawn.file)).read_bytes()
    except FileNotFoundError:
        raise NotFound("there is no such picture") from None


def _shown(store: Store, drawn: Drawn, form: As, side: int | None, quality: int) -> bytes:
    data = file_of(store, drawn)
    if form == "png" and side is None:
        return data
    return encoded(data, form, side, quality=quality) if side is None else encoded(data, form, side)


def _settings(store: Store, id: str, owner: str) -> dict[str, object]:
    drawn = store.picture(id, owner)
    if drawn.job is None:
        return settings_in(file_of(store, drawn)) or {}
    request = store.get(drawn.job, owner).request
    if "upscale" in request:
        return dict(request)
    return {**request, "seed": drawn.seed, "count": 1}
