"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ModelOption = Annotated[
    str,
    typer.Option(help="mini; folder, .safetensors file or hub id of a published model; folder of your own."),
]
DetectorOption = Annotated[
    Path | None, typer.Option(help="Weights of a [detect] run, if not the one that comes with Limner.")
]
LorasOption = Annotated[Path | None, typer.Option(help="Folder of LoRAs for <lora:NAME:WEIGHT>.")]
EmbeddingsOption = Annotated[Path | None, typer.Option(help="Folder of learned words.")]
PredictionOption = Annotated[
    str | None, typer.Option(help="eps or v, where a published file does not say it.")
]
VariantOption = Annotated[str | None, typer.Option(help="Of a folder's files, such as fp16.")]
TypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
ThenOption = Annotated[
    list[str] | None,
    typer.Option(help="Folder or hub id of the next stage of a cascade, such as IF-II; repeat it for more."),
]
OffloadOption = Annotated[
    bool, typer.Option("--offload", help="Keep one network in memory at a time: less memory, same pixels.")
]
