"""What draws in a worker process: pipelines, their pictures as PNG files that say as much as they may.

No path of the server gets into a file: models, pictures and control networks go by the names that clients
know.
"""

import gc
import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from limner.errors import RequestError
from limner.families import HEARS, mini
from limner.families.base import Defaults, Wishes
from limner.pipeline import enlarge, together
from limner.pipeline.load import find, load
from limner.pipeline.picture import Picture
from limner.pipeline.postprocess import Record, infotext, png, texts
from limner.pipeline.request import Request
from limner.pipeline.result import Result
from limner.pipeline.run import Pipeline, Progress
from limner.serve.batching import MOST, measure
from limner.serve.files import NAME, inside
from limner.serve.messages import EngineSettings, Look, ModelInfo, Painted, Piece
from limner.util.devices import pick_device
from limner.util.images import images_from_pixels

GUIDED = frozenset({"image", "mask", "extend", "negative_prompt"})
CAN = {  # what a request may ask of a family; LoRAs and control networks where the server has some
    "mini": GUIDED | {"loras"},
    "dalle": frozenset({"negative_prompt"}),
    "sd": GUIDED | {"controls", "loras", "blend"},
    "sd3": GUIDED | {"controls", "loras"},
    "flux": GUIDED | {"controls", "loras"},
    "cascade": GUIDED,
    "x4": frozenset({"image", "negative_prompt"}),
    "unclip": frozenset({"vary", "blend", "negative_prompt"}),
    "sd_unclip": frozenset({"vary", "blend", "loras", "negative_prompt"}),
}
PICTURES = ("image", "mask", "vary", "blend")  # fields of a request that may be {"picture": id}
QUALITY = 80  # of previews, in JPEG's own unit
LEAN_TILE = 96  # side of what an upscaler sees at once where memory is short, in pixels


class PipelineDrawer:
    """A `Drawer` on a device."""

    def __init__(self, settings: EngineSettings, pictures: Path, device: str) -> None:
        """Raises ConfigError when there is no such device."""
        self.settings = settings
        self.pictures = pictures  # folder of the files
        self.device = pick_device(device)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.held: OrderedDict[str, Pipeline] = OrderedDict()  # by the clients' names, used last at the end
        self.infos: dict[str, ModelInfo] = {}
        self.most: dict[str, int] = {}  # model -> pictures of its usual size at once

    # -- models --

    def open(self, model: str) -> ModelInfo:
        """See `Drawer.open`."""
        if model not in self.held:
            while len(self.held) >= self.settings.keep:
                self.held.popitem(last=False)
                self.relieve()
            self.held[model] = self._loaded(model, offload=self.settings.offload)
        self.held.move_to_end(model)
        return self.infos[model]

    def pays(self) -> int:
        """See `Drawer.pays`."""
        name, pipeline = next(reversed(self.held.items()))
        most = MOST if self.settings.batch is None else self.settings.batch
        self.most[name] = measure(pipeline, most=most, cache=self.settings.measured)
        return self.most[name]

    def relieve(self) -> None:
        """See `Drawer.relieve`."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def sound(self) -> bool:
        """See `Drawer.sound`. After an illegal access every later call of CUDA fails as well."""
        try:
            return float(torch.ones(1, device=self.device).sum()) == 1.0
        except torch.OutOfMemoryError:
            return True
        except RuntimeError:
            return False

    def _loaded(self, model: str, *, offload: bool) -> Pipeline:
        source = dict(self.settings.models).get(model)
        if source is None:
            raise RequestError(f'this server has no model "{model}"')
        family, settings = find(source)[0].name, self.settings
        heard = HEARS[family]
        wishes = Wishes(
            loras=settings.loras if "loras" in heard else None,
            embeddings=settings.embeddings if "embeddings" in heard else None,
            dtype=settings.dtype if "dtype" in heard else None,
            offload=offload and "offload" in heard,
        )
        pipeline = load(source, device=str(self.device), wishes=wishes)
        pipeline = Pipeline(pipeline.model, model)
        self.infos[model] = self._info(model, family, pipeline)
        return pipeline

    def _info(self, name: str, family: str, pipeline: Pipeline) -> ModelInfo:
        defaults = pipeline.model.defaults
        can = set(CAN[family])
        if self.settings.loras is None:
            can.discard("loras")
        if self.settings.controls is None:
            can.discard("controls")
        if getattr(pipeline.model, "scales", None) is not None:  # it draws in few steps, without guidance
            can.discard("negative_prompt")
        return ModelInfo(
            name=name,
            family=family,
            default_size=defaults.size,
            sizes=mini.SIDES if family == "mini" else None,
            styles=tuple(getattr(pipeline.model, "styles", ())),
            can=frozenset(can),
            fingerprint=pipeline.model.fingerprint,
            defaults=_plain(defaults),
        )

    # -- drawing --

    def draw(self, pieces: Sequence[Piece], *, lean: bool) -> Iterator[Sequence[Look]]:
        """See `Drawer.draw`. Lean: one picture at a time, networks put away while they are not asked."""
        if "upscale" in pieces[0].request:
            yield from ([look] for piece in pieces for look in self._larger(piece, lean))
            return
        name = pieces[0].model
        self.open(name)  # it may have been put away for a lean drawing
        pipeline = self.held[name]
        requests = [self._request(piece) for piece in pieces]
        offloads = lean and "offload" in HEARS[self.infos[name].family] and not self.settings.offload
        if offloads:
            del self.held[name], pipeline
            self.relieve()
            pipeline = self._loaded(name, offload=True)
        for drawn in together.generate(pipeline, requests, most=1 if lean else self._most(name, requests[0])):
            yield [self._look(piece, one) for piece, one in zip(pieces, drawn, strict=True)]

    def _most(self, name: str, request: Request) -> int:
        """Pictures of the size of this request that are best drawn at once."""
        usual = self.infos[name].default_size
        share = prod(usual) / prod(request.size or usual)
        return max(1, int(self.most.get(name, 1) * min(1.0, share)))

    def _request(self, piece: Piece) -> Request:
        """What a pipeline is asked for. Raises RequestError."""
        told = dict(piece.request)
        for name in PICTURES:
            if isinstance(value := told.get(name), Mapping):
                told[name] = self._picture(piece, value)
        if told.get("refiner") is not None:
            raise RequestError("this server has no refiners; leave it out")
        controls = told.get("controls")
        if isinstance(controls, list | tuple):
            told["controls"] = [
                {
                    **control,
                    "image": self._picture(piece, control["image"]),
                    "model": self._control(control["model"]),
                }
                for control in controls
            ]
        seed = told.get("seed")
        return Request.from_dict(
            told | {"count": piece.count, "seed": seed + piece.first if isinstance(seed, int) else None}
        )

    def _picture(self, piece: Piece, named: Mapping[str, object]) -> Picture:
        """A picture of this server's. In files it goes by its id."""
        found = piece.pictures.get(str(named.get("picture")))
        if found is None:
            raise RequestError("a picture is given by its id on this server")
        try:
            picture = Picture.open(self.pictures / inside(found.file))
        except RequestError:
            raise RequestError(f"the picture {found.id} is gone or damaged; give another") from None
        picture.file = found.id
        return picture

    def _control(self, name: object) -> str:
        """Where a control network lies. Raises RequestError when there is none of that name."""
        folder = self.settings.controls
        if folder is not None and isinstance(name, str) and NAME.fullmatch(name):
            for path in (folder / name, folder / f"{name}.safetensors"):
                if path.exists():
                    return str(path)
        raise RequestError(f'this server has no control network "{str(name)[:100]}"')

    def _look(self, piece: Piece, progress: Progress) -> Look:
        result = progress.result
        return Look(
            share=(progress.index + 1) / progress.total,
            stage=progress.stage,
            preview=lambda side: previews(progress.preview, side),
            painted=() if result is None else tuple(_painted(result, piece)),
            notices=() if result is None else result.notices,
            warnings=() if result is None else result.warnings,
        )

    # -- larger --

    def _larger(self, piece: Piece, lean: bool) -> Iterator[Look]:
        """A finished picture made larger."""
        told = piece.request["upscale"]
        assert isinstance(told, Mapping)  # as limits.prepared has it
        source = self._picture(piece, told)
        scale, found = told.get("scale"), piece.pictures[str(told["picture"])]
        yield Look(share=0.0, stage="upscaler", preview=lambda side: ())
        upscaler = enlarge.load(
            self.settings.upscaler, device=str(self.device), tile=LEAN_TILE if lean else None
        )
        with torch.inference_mode():
            image = enlarge.enlarge(
                source.image, upscaler, float(scale) if isinstance(scale, int | float) else None
            )
        said = dict[str, str]()
        if piece.metadata != "none":
            said = dict(enlarge.said_by(self.pictures / inside(found.file)).texts)
            known = {"parameters": "parameters"} | (
                {"limner": enlarge.SOURCE} if piece.metadata == "full" else {}
            )
            said = {name: said[key] for key, name in known.items() if key in said}
            said["postprocessing"] = f"Postprocess upscale by: {image.width / source.image.width:g}"
        larger = Painted(seed=found.seed, width=image.width, height=image.height, data=png(image, said))
        pixels = torch.zeros(1, 3, 8, 8)
        yield Look(
            share=1.0, stage="upscaler", preview=lambda side: previews(pixels, side), painted=(larger,)
        )


def _painted(result: Result, piece: Piece) -> Iterator[Painted]:
    """The pictures of a result as files."""
    request = result.request
    if request.controls:
        told = piece.request["controls"]
        assert isinstance(told, list | tuple)
        names = [str(one["model"]) for one in told]
        controls = [replace(one, model=name) for one, name in zip(request.controls, names, strict=True)]
        request = replace(request, controls=tuple(controls))
    for image, seed in zip(result.images, result.seeds, strict=True):
        record = Record(request=replace(request, seed=seed, count=1), weights=result.weights)
        yield Painted(
            seed=seed, width=image.width, height=image.height, data=png(image, said(record, piece.metadata))
        )


def said(record: Record, metadata: str) -> dict[str, str]:
    """The texts of a file: "none"; "minimal", the infotext without other pictures; or "full"."""
    if metadata == "full":
        return texts(record)
    if metadata == "none":
        return {}
    request = record.request
    blend = None if isinstance(request.blend, Picture) else request.blend
    return {"parameters": infotext(replace(record, request=replace(request, vary=None, blend=blend)))}


def previews(pixels: Float[Tensor, "b 3 h w"], side: int) -> tuple[bytes, ...]:
    """JPEGs of pictures as they are now, which may hold anything; no side is longer than `side` pixels."""
    return _jpegs(images_from_pixels(pixels.detach().float().nan_to_num()), side)


def _jpegs(images: Sequence[Image.Image], side: int) -> tuple[bytes, ...]:
    encoded = []
    for image in images:
        file = io.BytesIO()
        small = image.convert("RGB")
        small.thumbnail((side, side))
        small.save(file, "JPEG", quality=QUALITY)
        encoded.append(file.getvalue())
    return tuple(encoded)


def _plain(defaults: Defaults) -> dict[str, object]:
    """Defaults as a request says them."""
    told: dict[str, object] = {
        name: getattr(defaults, name) for name in ("steps", "guidance", "sampler", "grid")
    }
    told["size"] = list(defaults.size)
    if defaults.factor != 1:
        told["factor"] = defaults.factor
    if defaults.square:
        told["square"] = True
    if defaults.around != 1:
        told["around"] = defaults.around
    if defaults.lcm is not None:
        told["lcm"] = _plain(defaults.lcm)
    return told
