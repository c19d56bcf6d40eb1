"""limner data: from a folder of pictures to a set that training reads. Import and inspect."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.screen import bar as progress_bar
from limner.cli.screen import console, visible
from limner.errors import DataError

if TYPE_CHECKING:
    from limner.data.steps import Progress
    from limner.data.summary import Summary

data = typer.Typer(
    help="Data sets: from a folder of pictures to what training reads.",
    no_args_is_help=True,
)

SetArgument = Annotated[
    Path, typer.Argument(metavar="SET", help="Folder of the data set.", show_default=False)
]
WorkersOption = Annotated[int, typer.Option(help="Processes that share the work.", min=1)]
RayOption = Annotated[bool, typer.Option("--ray", help="Share the work out over the running Ray cluster.")]
THUMBNAIL = 160  # pixels of the longer side of a picture on a contact sheet
BAR = 40  # characters of the longest bar


@data.command("import")
def bring(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder, .tar, table (.csv, .jsonl, .parquet) or saved dataset.", show_default=False
        ),
    ],
    into: SetArgument,
    image_column: Annotated[
        str | None, typer.Option(help="Column of a table with paths or pictures, if not called as usual.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of a table with captions, if not called as usual.")
    ] = None,
    fact: Annotated[
        list[str] | None,
        typer.Option(help="Field of a table, or of JSON beside a picture, to carry along. Repeatable."),
    ] = None,
    kohya: Annotated[
        bool, typer.Option(help='Whether a folder called "10_sks dog" says repeats and caption.')
    ] = True,
    largest: Annotated[
        float,
        typer.Option(
            help="Million pixels of a picture, at most; larger ones are not decoded.", min=0.001, max=89.0
        ),
    ] = 64.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read only the pictures' heads: truncated ones are found later.")
    ] = False,
    workers: WorkersOption = 1,
    ray: RayOption = False,
) -> None:
    """Find pictures and captions, measure them, and note them in SET. They stay where they are.

    Captions are .txt, .caption or .json files beside the pictures, members of one name in webdataset tars,
    columns of a table, or folder names such as "10_sks dog". Run it again to go on after it was cut short.
    """
    from limner.data.sources import Measure, SourceConfig
    from limner.data.sources import bring as steps

    config = SourceConfig(
        source=source,
        image_column=image_column,
        caption_column=caption_column,
        facts=tuple(fact or ()),
        kohya=kohya,
    )
    measure = Measure(largest=round(largest * 1e6), whole=not quick)
    follow(steps(into, config, measure=measure, workers=workers, ray=ray))
    tell(into)


@data.command()
def inspect(
    of: SetArgument,
    sheet: Annotated[
        Path | None, typer.Option(help="Where to put the contact sheet, if not SET/contact.png.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Pictures on the contact sheet, 0 for none.", min=0)] = 64,
    words: Annotated[int, typer.Option(help="How many of the most frequent words to list.", min=0)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what is in a set: counts, sizes, captions, what was dropped and why; and draw a contact sheet."""
    from limner.data.pictures import thumbnails
    from limner.data.records import DataSet
    from limner.data.summary import summarise

    try:
        summary = summarise(DataSet.open(of), words=words, shown=pictures)
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    if as_json:
        print(json.dumps(_table(summary), indent=2, ensure_ascii=False))
    else:
        for line in _lines(summary):
            print(visible(line))
    shown = list(thumbnails((one.picture for one in summary.sheet), THUMBNAIL))
    if shown:
        from limner.util.images import sheet as arrange

        path = sheet or of / "contact.png"
        try:
            arrange(shown).save(path)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot write {path}: {error}") from None
        if as_json:
            console().print(str(path), markup=False, soft_wrap=True)
        else:
            print(path)


def follow(steps: "Iterator[Progress]") -> None:
    """Take all that a step yields, showing how far it is."""
    with progress_bar("{task.completed}/{task.fields[of]}", "{task.fields[told]}") as bar:
        tasks = {}
        try:
            for step in steps:
                if step.name not in tasks:
                    if step.told:
                        bar.console.print(visible(step.told), style="yellow", markup=False, soft_wrap=True)
                    tasks[step.name] = bar.add_task(step.name, total=step.total, of="?", told="")
                dropped = sum(step.rejects.values())
                bar.update(
                    tasks[step.name],
                    completed=step.done,
                    total=step.total,
                    of="?" if step.total is None else step.total,
                    told=f"{dropped} dropped" if dropped else "",
                )
        except KeyboardInterrupt:
            bar.stop()
            bar.console.print("Stopped. The same command goes on where it was.", highlight=False)
            raise typer.Exit(130) from None
        except ModuleNotFoundError as error:
            raise _missing(error) from None


def tell(folder: Path) -> None:
    """One line for the newest step of a set, and one for each reason why it or those beneath it dropped
    pictures."""
    from limner.data.records import DataSet

    data = DataSet.open(folder)
    for step in data.steps:
        for reason, count in step.rejects.items():
            print(f"{step.name}: {count} {visible(reason)}")
    print(f"{folder}: {len(data)} pictures")


def _missing(error: ModuleNotFoundError) -> DataError:
    return DataError(f'{error.name} is missing; install it with pip install "limner[train]"')


def _lines(summary: "Summary") -> Iterator[str]:
    """A summary for people."""
    least, median, most = (pixels**0.5 for pixels in summary.pixels)
    often = f", {summary.shown} an epoch" if summary.shown != summary.pictures else ""
    yield f"{summary.pictures} pictures{often}; steps: {', '.join(step.folder for step in summary.steps)}"
    if summary.pixels[2]:
        yield f"Side of a square as large: {least:.0f} to {most:.0f} pixels, {median:.0f} in the middle"
    for title, bars in (
        ("Shorter side, pixels", summary.sides),
        ("Width / height", summary.aspects),
        ("Words of the caption", summary.captions),
    ):
        yield f"{title}:"
        longest = max(1, *bars.values())
        for name, count in bars.items():
            if count:
                yield f"  {name:>12} {count:>8} {'█' * -(-BAR * count // longest)}"
    if summary.long_captions:
        yield f"Long captions: {summary.long_captions}"
    if summary.words:
        yield "Words: " + ", ".join(f"{word} {count}" for word, count in summary.words)
    if set(summary.repeats) - {1}:
        yield "Repeats: " + ", ".join(f"{times} x {n} pictures" for times, n in summary.repeats.items())
    if summary.facts:
        yield f"Known of them: {', '.join(summary.facts)}"
    for why, count in summary.rejects.items():
        yield f"Dropped: {count} {why}"


def _table(summary: "Summary") -> dict[str, object]:
    return {
        "pictures": summary.pictures,
        "shown": summary.shown,
        "steps": [step.folder for step in summary.steps],
        "pixels": dict(zip(("smallest", "median", "largest"), summary.pixels, strict=True)),
        "sides": summary.sides,
        "aspects": summary.aspects,
        "captions": summary.captions,
        "long_captions": summary.long_captions,
        "words": dict(summary.words),
        "repeats": summary.repeats,
        "facts": summary.facts,
        "rejects": summary.rejects,
    }
