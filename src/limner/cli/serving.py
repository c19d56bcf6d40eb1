"""limner serve, limner keys: pictures for others."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.screen import console, visible
from limner.errors import ConfigError

if TYPE_CHECKING:
    from limner.serve.settings import Settings
    from limner.serve.store import Store

DataOption = Annotated[Path | None, typer.Option(help="Folder of the pictures and the queue: limner-data.")]
DatabaseOption = Annotated[
    str | None, typer.Option(help="postgresql+psycopg://...; an SQLite file in --data if not given.")
]
keys = typer.Typer(help="Who may use the server: keys are shown once and kept hashed.", no_args_is_help=True)


def serve(
    host: Annotated[
        str | None, typer.Option(help="Interface; 127.0.0.1 if not given. Others need a key first.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="7860 if not given; 0 for any that is free.")] = None,
    data: DataOption = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="What `limner imagine` takes, or NAME=WHAT; repeat it for more. mini if not given."
        ),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="auto, cpu, mps, or cuda:0; repeat it for more.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that draw, on each device: 1.")] = None,
    queue: Annotated[int | None, typer.Option(help="Jobs that may wait: 1000.")] = None,
    database: DatabaseOption = None,
    name: Annotated[
        str | None, typer.Option(help="Of this machine, where several share one database.")
    ] = None,
    loras: Annotated[Path | None, typer.Option(help="Folder of LoRAs for <lora:NAME:WEIGHT>.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="Folder of learned words.")] = None,
    controls: Annotated[
        Path | None, typer.Option(help="Folder of control networks, which requests name.")
    ] = None,
    upscaler: Annotated[
        str | None, typer.Option(help="What makes finished pictures larger, as `limner upscale` takes it.")
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Models that a process holds at once: 1.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    offload: Annotated[
        bool | None, typer.Option("--offload", help="Keep one network in memory at a time.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name that this server is called by, such as art.example.")
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="Where the page stands, if a proxy hides that: https://art.example."),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(help="What files tell, without keys: full, minimal or none.")
    ] = None,
    drain: Annotated[
        float | None, typer.Option(help="Seconds for what is drawn, once told to stop: 30.")
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="As replicas in a Ray cluster; see docs/serving.md.")
    ] = False,
    replicas: Annotated[int | None, typer.Option(min=1, help="With --ray: 2 if not given.")] = None,
    address: Annotated[
        str | None, typer.Option(help="With --ray: of a cluster that runs, such as auto.")
    ] = None,
) -> None:
    """Serve a page, and the OpenAI, AUTOMATIC1111 and Limner APIs. Each option, and more of them, may also
    stand in the environment: LIMNER_PORT=7861."""
    settings = _settings(
        host=host,
        port=port,
        data=data,
        model=model,
        device=device,
        workers=workers,
        queue=queue,
        database=database,
        name=name,
        loras=loras,
        embeddings=embeddings,
        controls=controls,
        upscaler=upscaler,
        keep=keep,
        dtype=dtype,
        offload=offload,
        hosts=allow_host,
        origins=origin,
        metadata=metadata,
        drain=drain,
    )
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if ray:
        from limner.serve import cluster

        more = {"replicas": replicas, "address": address}
        given = {name: value for name, value in more.items() if value is not None}
        cluster.run(cluster.settings_of(settings, **given), told=_tell)
        return
    from limner.serve import listening

    listening.run(settings, told=_tell)


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Who it is for.", show_default=False)],
    data: DataOption = None,
    database: DatabaseOption = None,
    metadata: Annotated[
        str, typer.Option(help="What files of its pictures tell: full, minimal, none.")
    ] = "full",
    waiting: Annotated[int, typer.Option(min=0, help="Most unfinished jobs; 0: as the server says.")] = 0,
    budget: Annotated[
        float, typer.Option(min=0.0, help="Megapixel-steps an hour; 0: as many as it likes.")
    ] = 0.0,
) -> None:
    """Make a key and print its secret: it is shown this once."""
    with_store = _store(_settings(data=data, database=database))
    try:
        key, secret = with_store.add_key(name, metadata=metadata, waiting=waiting, budget=budget)
    finally:
        with_store.close()
    console().print(f"key {key.id} for {visible(key.name)}; it is not shown again:", markup=False)
    print(secret)


@keys.command("list")
def list_keys(data: DataOption = None, database: DatabaseOption = None) -> None:
    """Print every key: id, name, since when, and what it may do."""
    from datetime import UTC, datetime

    from rich.table import Table

    store = _store(_settings(data=data, database=database))
    try:
        known = store.keys()
    finally:
        store.close()
    table = Table(box=None, header_style="bold")
    table.add_column("id", min_width=32)
    for column in ("name", "made", "metadata", "waiting", "budget", ""):
        table.add_column(column)
    for key in known:
        made = datetime.fromtimestamp(key.created, UTC).strftime("%Y-%m-%d")
        bounds = (str(key.waiting or "-"), f"{key.budget:g}" if key.budget else "-")
        table.add_row(
            key.id, visible(key.name), made, key.metadata, *bounds, "revoked" if key.revoked else ""
        )
    console(stderr=False).print(table, soft_wrap=True)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.", show_default=False)],
    data: DataOption = None,
    database: DatabaseOption = None,
) -> None:
    """Make a key worthless, at once and for good."""
    store = _store(_settings(data=data, database=database))
    try:
        gone = store.revoke(key)
    finally:
        store.close()
    print(f"revoked {gone.id} ({visible(gone.name)})")


def _tell(address: str) -> None:
    print(f"Limner serves {address}  (Ctrl-C stops)", flush=True)


def _settings(
    *,
    host: str | None = None,
    port: int | None = None,
    data: Path | None = None,
    model: list[str] | None = None,
    device: list[str] | None = None,
    workers: int | None = None,
    queue: int | None = None,
    database: str | None = None,
    name: str | None = None,
    loras: Path | None = None,
    embeddings: Path | None = None,
    controls: Path | None = None,
    upscaler: str | None = None,
    keep: int | None = None,
    dtype: str | None = None,
    offload: bool | None = None,
    hosts: list[str] | None = None,
    origins: list[str] | None = None,
    metadata: str | None = None,
    drain: float | None = None,
) -> "Settings":
    """What was given here, over what the environment says, over the defaults. Raises ConfigError."""
    given = {key: value for key, value in locals().items() if value is not None and value != []}
    try:
        from pydantic import ValidationError

        from limner.serve.settings import Settings
    except ModuleNotFoundError as error:
        raise ConfigError(f'{error.name} is missing: pip install "limner[serve]"') from None
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "settings"
        raise ConfigError(f"{where}: {first['msg']}, got {first['input']!r}") from None


def _store(settings: "Settings") -> "Store":
    from limner.serve.listening import make_folder
    from limner.serve.store import Store

    make_folder(settings.data)
    return Store(settings.database_url, settings.pictures)
