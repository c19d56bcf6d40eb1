"""limner data filter, dedup, group, caption: what is worth learning from, and what it is called."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.data import RayOption, SetArgument, WorkersOption, follow, tell
from limner.cli.screen import console, visible
from limner.errors import RequestError

if TYPE_CHECKING:
    from limner.data.embeddings import Embed
    from limner.data.records import DataSet
    from limner.data.steps import Progress, Step

EmbeddingsOption = Annotated[
    Path | None,
    typer.Option(help="Compare by these: a .parquet of key and embedding, made by a model of yours."),
]
ClipOption = Annotated[
    str | None,
    typer.Option(help="Compare by a CLIP: its folder or hub id, or weights.safetensors of a [clip] run."),
]


def filter_set(
    of: SetArgument,
    size: Annotated[int, typer.Option(help="Pixels of the shorter side, at least.", min=0)] = 64,
    aspect: Annotated[float, typer.Option(help="Longer side by shorter side, at most.")] = 4.0,
    sharpness: Annotated[
        float, typer.Option(help="Variance of the Laplacian, at least; 0: any. Photographs have 100s.")
    ] = 3.0,
    entropy: Annotated[float, typer.Option(help="Bits of the grey levels, at least; 0: any.")] = 0.5,
    text: Annotated[
        float, typer.Option(help="Share covered by text, at most, such as 0.02; 1: any. A rough guess.")
    ] = 1.0,
    block: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of what is not wanted, one a line: words, key:, phash:, sha256:. Repeatable."
        ),
    ] = None,
    word: Annotated[
        list[str] | None, typer.Option(help="Leave out what has this in its caption. Repeatable.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="A .parquet or .csv with the columns key and score.")
    ] = None,
    score: Annotated[float | None, typer.Option(help="Score, at least.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and leave the set as it is.")
    ] = False,
    workers: WorkersOption = 1,
    ray: RayOption = False,
) -> None:
    """Leave out what is too small, too narrow, blurred, empty, covered with text, broken or blocked."""
    from limner.data.embeddings import stamp_of
    from limner.data.filters import Block, Filter, read_block
    from limner.data.records import DataSet
    from limner.data.steps import run

    if score is not None and scores is None:
        raise RequestError("--score needs --scores, the file that says which picture has which")
    lists = [read_block(path) for path in block or []]
    step = Filter(
        size=size,
        aspect=aspect,
        sharpness=sharpness,
        entropy=entropy,
        text=text,
        block=Block(
            words=(*(word or ()), *(one for held in lists for one in held.words)),
            keys=tuple(one for held in lists for one in held.keys),
            phashes=tuple(one for held in lists for one in held.phashes),
            sha256=tuple(one for held in lists for one in held.sha256),
        ),
        scores="" if scores is None else str(scores.absolute()),
        stamp="" if scores is None else stamp_of(scores),
        score=score or 0.0,
    )
    data = DataSet.open(of)
    if dry_run:
        _rehearsed(data, step, workers, ray)
    else:
        follow(run(data, step, workers=workers, ray=ray))
        tell(of)


def dedup(
    of: SetArgument,
    distance: Annotated[
        int, typer.Option(help="Bits of 64 that duplicates differ in, at most, 0 to 16.")
    ] = 8,
    embeddings: EmbeddingsOption = None,
    clip: ClipOption = None,
    similarity: Annotated[
        float, typer.Option(help="Cosine of the embeddings of duplicates, at least.")
    ] = 0.96,
    workers: WorkersOption = 1,
    ray: RayOption = False,
) -> None:
    """Keep the largest of pictures that are nearly the same; the rejects say of which each was one."""
    from limner.data.chain import in_turn
    from limner.data.dedup import Dedup, Hash
    from limner.data.records import DataSet

    if embed := _embed(embeddings, clip):
        steps: list[Step] = [embed, Dedup(by="embedding", similarity=similarity, source=embed.source)]
    else:
        steps = [Hash(), Dedup(distance=distance)]
    follow(in_turn(DataSet.open(of), steps, workers=workers, ray=ray))
    tell(of)


def group(
    of: SetArgument,
    groups: Annotated[str, typer.Option(help="How many; auto: what fits best, up to 12.")] = "auto",
    embeddings: EmbeddingsOption = None,
    clip: ClipOption = None,
    seed: Annotated[int, typer.Option(help="Of the search for groups.", min=0)] = 0,
    split: Annotated[
        bool, typer.Option("--split", help="Also make a set of each group, in SET/groups/NAME.")
    ] = False,
    workers: WorkersOption = 1,
    ray: RayOption = False,
) -> None:
    """Put pictures that look alike into groups, named by their captions, each with a contact sheet. Without
    embeddings they are compared by colours, layout and edges."""
    from limner.data import groups as found
    from limner.data.chain import in_turn
    from limner.data.embeddings import Embed
    from limner.data.records import DataSet

    if groups != "auto" and not groups.isdecimal():
        raise RequestError(f"--groups is auto or a whole number, got {groups!r}")
    embed = _embed(embeddings, clip) or Embed()
    step = found.Group(groups=None if groups == "auto" else int(groups), seed=seed, source=embed.source)
    data = DataSet.open(of)
    follow(in_turn(data, [embed, step], workers=workers, ray=ray))
    folder = of / "groups"
    for path in found.sheets(data, folder).values():
        print(path)
    if split:
        follow(progress for _, progress in found.split(data, folder))
    for name, count in found.sizes(data).items():
        print(f"{name}: {count} pictures" + (f", {folder / name}" if split else ""))


def caption(
    of: SetArgument,
    clean: Annotated[
        bool, typer.Option("--clean", help="Take out HTML, addresses, controls, and names of files.")
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(help="Such as 'a photo of {caption}'; facts such as {group} may stand in it."),
    ] = None,
    empty_only: Annotated[
        bool, typer.Option("--empty-only", help="The template is for pictures without a caption only.")
    ] = False,
    endpoint: Annotated[
        str | None, typer.Option(help="Write long captions by this OpenAI-compatible address, ending in /v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of the endpoint.")] = None,
    key_env: Annotated[
        str, typer.Option(help="Environment variable with the endpoint's key, which is never stored.")
    ] = "OPENAI_API_KEY",
    look: Annotated[bool, typer.Option("--look", help="Let the endpoint's model see the picture.")] = False,
    prompt: Annotated[str | None, typer.Option(help="What to tell the model, if not the usual.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Write long captions anew that are there.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the endpoint.")] = 60.0,
    tries: Annotated[int, typer.Option(help="Of each request, further and further apart.", min=1)] = 5,
    at_once: Annotated[int, typer.Option(help="Requests of each worker, 1 to 64.")] = 4,
    workers: WorkersOption = 1,
    ray: RayOption = False,
) -> None:
    """Clean captions, put them into a template, have long ones written beside them; in this order."""
    from dataclasses import replace
    from itertools import islice

    from limner.data.captions import Clean, Template
    from limner.data.chain import all_taken, in_turn
    from limner.data.endpoint import TOLD, Endpoint
    from limner.data.records import DataSet
    from limner.data.rewrite import Rewrite, failures
    from limner.data.steps import run

    steps: list[Step] = [Clean()] if clean else []
    steps += [] if template is None else [Template(template=template, empty_only=empty_only)]
    data = DataSet.open(of)
    if endpoint is not None:
        if model is None:
            raise RequestError("--endpoint needs --model, the name of the model there")
        there = Endpoint(url=endpoint, model=model, key_variable=key_env, timeout=timeout, tries=tries)
        journal = data.folder / "answers"
        asking = Rewrite(
            endpoint=there, journal=journal, told=prompt or TOLD, look=look, again=again, at_once=at_once
        )
        if again:
            asking = replace(asking, anew=sum(step.name == Rewrite.name for step in data.steps))
        steps.append(asking)
        if all_taken(data, steps):
            told = data.steps[-1].settings
            if any(failures(data)):
                asking = replace(asking, retry=int(str(told.get("retry", 0))) + 1)
                if again and told.get("again"):  # only those that failed, then
                    asking = replace(asking, anew=int(str(told.get("anew", 0))))
                follow(run(data, asking, workers=workers, ray=ray))
            elif again:
                follow(run(data, asking, workers=workers, ray=ray))
    if not steps:
        raise RequestError("say what to do with the captions: --clean, --template or --endpoint")
    follow(in_turn(data, steps, workers=workers, ray=ray))
    tell(of)
    if endpoint is not None and (count := sum(1 for _ in failures(data))):
        told_of = [f"{key}: {why}" for key, why in islice(failures(data), 3)]
        console().print(
            visible(
                f"{count} pictures have no new long caption, such as {'; '.join(told_of)}. Run it again."
            ),
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def _embed(embeddings: Path | None, clip: str | None) -> "Embed | None":
    from limner.data.embeddings import Embed, stamp_of

    if embeddings is not None and clip is not None:
        raise RequestError("--embeddings and --clip are two ways to the same; give one")
    if embeddings is not None:
        if embeddings.suffix != ".parquet":
            raise RequestError(f"--embeddings is a .parquet file, got {str(embeddings)!r}")
        return Embed(source=str(embeddings.absolute()), stamp=stamp_of(embeddings))
    if clip is None:
        return None
    if not Path(clip).exists():
        return Embed(source=clip)
    return Embed(source=str(Path(clip).absolute()), stamp=stamp_of(Path(clip)))


def _rehearsed(data: "DataSet", step: "Step", workers: int, ray: bool) -> None:
    """A table of what a step would leave out, with one example of each reason."""
    from rich.table import Table
    from rich.text import Text

    from limner.data.chain import rehearse
    from limner.data.records import Reject

    counts: Counter[str] = Counter()
    examples: dict[str, Reject] = {}

    def progress() -> "Iterator[Progress]":
        for told in rehearse(data, step, workers=workers, ray=ray):
            if isinstance(told, Reject):
                counts[told.reason] += 1
                examples.setdefault(told.reason, told)
            else:
                yield told

    follow(progress())
    table = Table("reason", "pictures", "such as", "why")
    for reason, count in counts.most_common():
        one = examples[reason]
        table.add_row(reason, str(count), Text(one.key), Text(visible(one.detail)))
    if counts:
        console(stderr=False).print(table)
    print(f"{len(data) - counts.total()} of {len(data)} pictures would stay")
