"""limner world, limner train."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from limner.cli.screen import bar as progress_bar
from limner.errors import ConfigError, DataError

world = typer.Typer(help="The drawn world that the built-in model learns from.", no_args_is_help=True)


@world.command()
def prepare(
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Folder with the unpacked npm packages. Fetched with npm if not given."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where to put it, if not ~/.cache/limner/world.")
    ] = None,
    styles: Annotated[
        str | None, typer.Option(help="Art styles, separated by commas. All if not given.")
    ] = None,
    objects: Annotated[str, typer.Option(help="core: the reviewed ones; all: the whole lexicon.")] = "core",
) -> None:
    """Fetch the vector art and render every object once in all sizes; training draws its scenes from it."""
    from limner.data.world import art
    from limner.text.lexicon import load_lexicon

    if objects not in ("core", "all"):
        raise DataError(f'--objects is core or all, got "{objects}"')
    drawings = {entry.name: entry.art for entry in load_lexicon().entries if entry.core or objects == "all"}
    chosen = tuple(art.ART_SETS) if styles is None else tuple(name.strip() for name in styles.split(","))
    target = Path(folder or art.DEFAULT_FOLDER).expanduser()
    with progress_bar("{task.completed}/{task.total}") as bar:
        tasks = {style: bar.add_task(style, total=len(drawings), visible=False) for style in chosen}
        try:
            art.prepare(
                target,
                drawings,
                styles=chosen,
                source=source,
                progress=lambda style, done, total: bar.update(
                    tasks[style], completed=done, total=total, visible=True
                ),
            )
        except ModuleNotFoundError as error:
            raise DataError(f'{error.name} is missing; install it with pip install "limner[train]"') from None
    print(target)


def train(
    config: Annotated[
        Path, typer.Argument(help="A run as TOML, such as configs/mini.toml.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the run, if not runs/NAME.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")
    ] = False,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Such as loop.batch=64. Repeatable."),
    ] = None,
) -> None:
    """Train a network. Everything needed to go on is saved every minute; Ctrl-C stops cleanly."""
    from limner.train.config import read, to_dict
    from limner.train.loop import fit

    run = read(config, dict(_setting(text) for text in change or []))
    if dry_run:
        print(json.dumps(to_dict(run), indent=2))
        return
    folder = Path("runs") / run.name if out is None else out
    seen = 0
    with progress_bar("{task.fields[speed]:.0f} pictures/s", "{task.fields[told]}") as bar:
        task = bar.add_task(run.name, total=run.loop.images, speed=0.0, told="starting")
        try:
            with closing(fit(run, folder, resume=resume)) as training:  # type: ignore[type-var]  # a generator
                for step in training:
                    seen = step.images_seen
                    told = " ".join(f"{name} {value:.3f}" for name, value in step.losses.items())
                    told += f" skipped {step.skipped}" if step.skipped else ""
                    bar.update(task, completed=seen, speed=step.images_per_second, told=told)
                    if step.sheet is not None:
                        bar.console.print(f"{seen} pictures seen: {step.sheet}", style="dim", highlight=False)
        except KeyboardInterrupt:
            bar.stop()
            again = f"limner train {config} --out {folder} --resume"
            bar.console.print(f"Stopped after {seen} pictures. Go on with: {again}", highlight=False)
            raise typer.Exit(130) from None
    print(folder / "weights.safetensors")


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f'--set takes KEY=VALUE, such as loop.batch=64, got "{text}"')
    return key.strip(), value.strip()
