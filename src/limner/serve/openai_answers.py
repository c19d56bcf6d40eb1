"""What OpenAI's clients are answered: pictures or links, all at once or as they form, and what was used."""

import base64
import io
import json
import re
import time
from collections.abc import Mapping

from PIL import Image
from pydantic import BaseModel

from limner.serve.deps import House
from limner.serve.errors import Problem, own_shape, plain
from limner.serve.jobs import Drawn, Job, NotFound
from limner.serve.links import link
from limner.serve.openai_asked import Wish
from limner.serve.openai_schemas import ImagesOut, ModelCard, Ours, PictureData, TokenKinds, Usage
from limner.serve.routes.pictures import file_of
from limner.serve.uploads import As, encoded

SQUARE = 16  # pixels, of what is counted as a token of a picture
WORD = re.compile(r"\w+|[^\w\s]")


def images_of(house: House, job: Job, wish: Wish, origin: str, brought: int = 0) -> bytes:
    """The whole answer for a job that is done, as JSON. `origin` is where the client reached us, such as
    http://127.0.0.1:7860, `brought` the tokens of pictures that it sent. Raises NotFound for removed ones."""
    first = _first(job)
    answer = ImagesOut(
        created=int(job.created),
        data=[_data(house, drawn, wish, origin) for drawn in job.pictures],
        background="opaque",
        output_format=wish.form,
        quality=wish.level,
        size=f"{first.width}x{first.height}",
        usage=usage_of(job, brought, len(job.pictures)),
        limner=_ours(job, wish),
    )
    return answer.model_dump_json(exclude_none=True).encode()


def usage_of(job: Job, brought: int, pictures: int) -> Usage:
    """What was read and drawn, in words and squares of pixels."""
    said = " ".join(str(job.request.get(name) or "") for name in ("prompt", "negative_prompt"))
    words = len(WORD.findall(said))
    first = _first(job)
    painted = pictures * tokens(first.width, first.height)
    return Usage(
        input_tokens=words + brought,
        input_tokens_details=TokenKinds(text_tokens=words, image_tokens=brought),
        output_tokens=painted,
        output_tokens_details=TokenKinds(text_tokens=0, image_tokens=painted),
        total_tokens=words + brought + painted,
    )


def tokens(width: int, height: int) -> int:
    """Squares that cover a picture of so many pixels."""
    return -(-width // SQUARE) * -(-height // SQUARE)


def partial_of(kind: str, preview: bytes, job: Job, wish: Wish, *, number: int, index: int) -> str:
    """The event of a picture on the way: `number` counts those, `index` the pictures of the job."""
    size = job.request.get("size")
    height, width = size if isinstance(size, list | tuple) else (0, 0)
    with Image.open(io.BytesIO(preview), formats=("JPEG",)) as small:
        image = small.resize((width, height), Image.Resampling.BICUBIC) if width and height else small.copy()
    kept = io.BytesIO()
    image.save(kept, "PNG", compress_level=1)
    data = kept.getvalue() if wish.form == "png" else encoded(kept.getvalue(), wish.form)
    shown = _shown(data, wish, image.width, image.height)
    return event(f"{kind}.partial_image", {"partial_image_index": number, "image_index": index, **shown})


def completed_of(house: House, kind: str, drawn: Drawn, job: Job, wish: Wish, brought: int) -> str:
    """The event of a finished picture. Raises NotFound when it was removed."""
    shown = _shown(_file(house, drawn, wish.form, wish.compression), wish, drawn.width, drawn.height)
    told: dict[str, object] = {"image_index": drawn.index, **shown}
    told["usage"] = usage_of(job, brought, 1).model_dump()
    told["limner"] = _ours(job, wish).model_dump()
    return event(f"{kind}.completed", told)


def event(name: str, data: Mapping[str, object]) -> str:
    """A server-sent event, as OpenAI writes them."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n"  # JSON has no line breaks


def told_late(problem: Problem) -> str:
    """An error, after an answer was begun."""
    return event("error", own_shape(problem)[1])


def model_out(name: str) -> ModelCard:
    """A model, by the name that the client used."""
    return ModelCard(id=name)


def as_json(answer: BaseModel) -> bytes:
    """Of an answer."""
    return answer.model_dump_json(exclude_none=True).encode()


def _data(house: House, drawn: Drawn, wish: Wish, origin: str) -> PictureData:
    if wish.linked:
        target = f"/pictures/{drawn.id}?as={wish.form}"
        if wish.form != "png":
            target += f"&quality={wish.compression}"
        return PictureData(url=origin + link(house.sessions, target))
    return PictureData(b64_json=base64.b64encode(_file(house, drawn, wish.form, wish.compression)).decode())


def _file(house: House, drawn: Drawn, form: As, compression: int) -> bytes:
    data = file_of(house.store, drawn)
    return data if form == "png" else encoded(data, form, quality=compression)


def _shown(data: bytes, wish: Wish, width: int, height: int) -> dict[str, object]:
    return {
        "b64_json": base64.b64encode(data).decode(),
        "background": "opaque",
        "created_at": int(time.time()),
        "output_format": wish.form,
        "quality": wish.level,
        "size": f"{width}x{height}",
    }


def _ours(job: Job, wish: Wish) -> Ours:
    return Ours(
        job=job.id,
        model=job.model,
        seeds=list(job.seeds),
        notices=[plain(notice) for notice in job.notices],
        warnings=[*wish.warnings, *(plain(warning) for warning in job.warnings)],
    )


def _first(job: Job) -> Drawn:
    if not job.pictures:
        raise NotFound("the pictures of this request were deleted")
    return job.pictures[0]
