"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ModelOption = Annotated[
    str,
    typer.Option(help="mini; folder, .safetensors file or hub id of a published model; folder of your own."),
]
DetectorOption = Annotated[
    Path | None, typer.Option(help="Weights of a [detect] run, if not the detector that comes with Limner.")
]
