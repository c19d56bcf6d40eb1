"""limner data pack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.data import RayOption, SetArgument, WorkersOption, follow
from limner.cli.options import DeviceOption
from limner.cli.screen import console
from limner.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from limner.train.learners.base import Learner


def pack(
    of: SetArgument,
    size: Annotated[int, typer.Option(help="Pictures get the area of a square of this side.")] = 512,
    bucket_step: Annotated[int, typer.Option(help="Sides of buckets are multiples of it.")] = 64,
    upscale: Annotated[bool, typer.Option(help="Whether small pictures are made larger.")] = True,
    encode: Annotated[
        str, typer.Option(help="jpeg, png or webp: write pictures anew. As they are if not given.")
    ] = "",
    quality: Annotated[int, typer.Option(help="Of jpeg and webp, 1 to 100.")] = 95,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="With --encode: no larger than training needs them.")
    ] = False,
    latents: Annotated[
        str, typer.Option(metavar="MODEL", help="Compute latents and texts with the encoders of this model.")
    ] = "",
    flip: Annotated[bool, typer.Option("--flip", help="With --latents: of mirrored pictures, too.")] = False,
    text: Annotated[bool, typer.Option(help="With --latents: whether texts are computed, too.")] = True,
    dtype: Annotated[str, typer.Option(help="Of latents: float32, float16 or bfloat16.")] = "float16",
    batch: Annotated[int, typer.Option(help="With --latents: pictures at once.")] = 4,
    device: DeviceOption = "auto",
    workers: WorkersOption = 1,
    ray: RayOption = False,
) -> None:
    """Write SET/packed: tar shards that any webdataset reader reads, an index, and, with --latents, what the
    encoders of a model make of pictures and captions, so that training need not do it again and again.

    Run it again to go on after it was cut short. What was packed before stays until the new one is whole.
    """
    from limner.data import pack as packing
    from limner.data.records import DataSet

    data = DataSet.open(of)
    step = packing.Pack(
        size=size,
        bucket_step=bucket_step,
        bucket_upscale=upscale,
        encode=encode,
        quality=quality,
        shrink=shrink,
    )
    shapes = step.shapes  # impossible ones are said before anything is done
    if flip and not latents:
        raise DataError("--flip is about latents: training mirrors pictures by itself; add --latents MODEL")
    place = data.folder / packing.FOLDER
    computed = place / "latents"
    before = computed.is_dir()
    follow(packing.pack(data, step, workers=workers, ray=ray))
    if before and not computed.exists() and not latents:
        told = "The latents of what was packed before went with it; --latents MODEL computes them anew."
        console().print(told, style="yellow", markup=False, soft_wrap=True)
    if latents:
        from limner.data.latents import LatentsConfig
        from limner.data.latents import encode as compute
        from limner.train import learners
        from limner.util.devices import pick_device

        config = LatentsConfig(buckets=shapes, flip=flip, text=text, type=dtype, batch=batch)
        encoder = Encoding(learners.load(latents, pick_device(device)))
        follow(compute(place, encoder, config))
    print(place)


@dataclass(frozen=True, slots=True)
class Encoding:
    """A model's encoders, as data is packed with them: the mean of its latents, and what it is told."""

    learner: "Learner"

    @property
    def stamp(self) -> str:
        return self.learner.stamp

    def latents(self, pixels: "Tensor") -> "Tensor":
        return self.learner.latents(pixels)

    def say(self, captions: Sequence[str]) -> Mapping[str, "Tensor"]:
        return self.learner.say(captions).cached()
