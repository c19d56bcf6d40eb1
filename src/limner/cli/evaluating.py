"""limner evaluate: whether pictures show what their prompts ask for."""

from pathlib import Path
from typing import Annotated

import typer

from limner.cli.options import DetectorOption, ModelOption
from limner.cli.screen import console, prompts_bar
from limner.errors import DataError, RequestError

evaluate = typer.Typer(help="Measure whether pictures show what their prompts ask for.", no_args_is_help=True)


@evaluate.command()
def composition(
    detector: DetectorOption = None,
    model: ModelOption = "mini",
    prompts: Annotated[
        str, typer.Option(help="core, all, a file of JSON lines (GenEval's), or sentences as .txt.")
    ] = "core",
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task, such as counting. Repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Prompts of each task, the first ones.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures of each prompt, 1 to 64.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the first picture; every picture has its own.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Of the sampler, 1 to 1000.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt, 0 to 30.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Such as dpmpp_2m, euler.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--world", help="Folder of the drawn world, if not ~/.cache/limner/world.")
    ] = None,
    references: Annotated[
        bool | None,
        typer.Option(
            help="Score composed scenes and nearest training pictures, too. Done if there is a world."
        ),
    ] = None,
    jitter: Annotated[
        float | None, typer.Option(help="Of composed scenes, if not as the model was trained with.")
    ] = None,
    stretch: Annotated[float | None, typer.Option(help="As --jitter, of sizes.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was cut short; same settings.")
    ] = False,
    failures: Annotated[int, typer.Option(help="Wrong pictures on the sheet.")] = 20,
    sheet: Annotated[Path | None, typer.Option(help="Write a PNG of pictures that were wrong.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("limner-evaluation"),
) -> None:
    """Score a model by GenEval's protocol on the drawn world: a table, a JSON file and an HTML page."""
    from limner.data.world.art import DEFAULT_FOLDER
    from limner.evaluate import report, sheets
    from limner.evaluate.session import Settings, run

    if failures < 1:
        raise RequestError(f"--failures is at least 1, got {failures}")

    settings = Settings(
        model=model,
        detector=detector,
        prompts=prompts,
        tasks=tuple(task or ()),
        limit=limit,
        count=count,
        seed=seed,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        world=Path(DEFAULT_FOLDER) if folder is None else folder,
        references=references,
        jitter=jitter,
        stretch=stretch,
    )
    report.prepare(out, resume=resume)
    with prompts_bar() as progress:
        done = run(settings, folder=out, resume=resume, progress=progress)
    paths = report.save(done, out)
    console(stderr=False).print(report.table(done))
    if sheet is not None and (wrong := sheets.failures(done.judged, failures)):
        sheets.save(sheets.failure_sheet(wrong), sheet)
        paths.append(sheet)
    for path in paths:
        print(path)


@evaluate.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder or JSON file of a run.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Of another one.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Say what changed from run A to run B by the prompts of both, with bootstrap intervals; bold is sure."""
    from limner.evaluate import compare as runs

    console(stderr=False).print(runs.table(runs.compare(a, b, seed=seed)))


@evaluate.command()
def gate(
    model: ModelOption = "mini",
    detector: DetectorOption = None,
    record: Annotated[
        bool, typer.Option("--record", help="Make this the score that tests hold the model to.")
    ] = False,
) -> None:
    """Score 60 prompts of the committed set against the recorded score. Exit code 1 if it fell too far."""
    from limner.evaluate import gate as gates
    from limner.evaluate.report import percent

    with prompts_bar() as progress:
        now = gates.measure(model, detector, progress=lambda done, total: progress(model, done, total))
    shares = ", ".join(f"{task} {percent(share)}" for task, share in now.shares.items())
    print(f"{percent(now.overall)} overall on {gates.PROMPTS} prompts: {shares}")
    if record:
        gates.record(now)
        print(gates.RECORDED)
    elif (why := gates.fallen(now, gates.recorded())) is not None:
        print(f"fallen: {why}")
        raise typer.Exit(1)


@evaluate.command("label-sheet")
def label_sheet(
    model: ModelOption = "mini",
    prompts: Annotated[str, typer.Option(help="core, all, or a file of JSON lines.")] = "core",
    number: Annotated[int, typer.Option(help="Pictures, of the six tasks in equal parts.")] = 100,
    seed: Annotated[int, typer.Option(help="Which prompts, and of the first picture.")] = 100,
    out: Annotated[Path, typer.Option(help="Folder for pictures and labels.")] = Path("limner-labels"),
) -> None:
    """Draw pictures to be labelled by eye: sheets, and a file whose `eye` is to be filled in with true or
    false. What the detector sees is never shown."""
    from limner.evaluate import labels

    with prompts_bar() as progress:
        drawn, weights = labels.draw(
            model, prompts, number, seed, progress=lambda done, total: progress(model, done, total)
        )
    for path in labels.write(out, prompts, drawn, weights):
        print(path)


@evaluate.command("labels")
def labels_(
    file: Annotated[Path, typer.Argument(help="Labels, filled in.", show_default=False)],
    model: ModelOption = "mini",
    detector: DetectorOption = None,
) -> None:
    """Say how far the detector agrees with the eye: share, Cohen's kappa, confusion."""
    from limner.evaluate import agreement, labels
    from limner.weights.detector import shipped

    rows = labels.read(file)
    path = shipped() if detector is None else detector
    with prompts_bar() as progress:
        both = labels.compare(rows, model, path, progress=lambda done, total: progress(model, done, total))
    console(stderr=False).print(agreement.table(*both))


@evaluate.command()
def calibrate(
    detector: Annotated[Path, typer.Argument(help="Weights of a [detect] run.", show_default=False)],
    scenes: Annotated[int, typer.Option(help="Fresh scenes to look at.")] = 4000,
    folder: Annotated[
        Path | None, typer.Option("--world", help="Folder of the drawn world, if not ~/.cache/limner/world.")
    ] = None,
    worn: Annotated[bool, typer.Option(help="Spoil the scenes as in training.")] = True,
    write: Annotated[bool, typer.Option(help="Keep the calibration in the file.")] = True,
) -> None:
    """Make a detector's scores chances of being right, and print how reliable they are."""
    from torch import cat

    from limner.data.world.art import DEFAULT_FOLDER
    from limner.evaluate import calibration
    from limner.train.calibrate import judged
    from limner.weights import detector as detectors

    parts = []
    with prompts_bar("scenes") as progress:
        world_folder = Path(DEFAULT_FOLDER) if folder is None else folder
        for part in judged(detector, world_folder, scenes, worn=worn):
            parts.append(part)
            progress("calibrate", min(scenes, 32 * len(parts)), scenes)
    scores, right = cat([score for score, _ in parts]), cat([answer for _, answer in parts])
    half = len(scores) // 2  # the table is of scenes that the fit has not seen
    fitted = calibration.fit(scores[:half], right[:half])
    table, before, after = calibration.reliability(scores[half:], right[half:], fitted)
    console(stderr=False).print(table)
    print(f"expected calibration error {before:.3f} before, {after:.3f} after")
    print(f"slope {fitted.slope:.4f}, shift {fitted.shift:.4f}")
    if write:
        detectors.calibrate(detector, fitted)
        print(detector)


@evaluate.command()
def distance(
    a: Annotated[
        Path, typer.Argument(help="Pictures in a folder, or features in a file.", show_default=False)
    ],
    b: Annotated[Path, typer.Argument(help="The reference, as well.", show_default=False)],
    network: Annotated[
        Path | None, typer.Option(help="TorchScript: 8-bit b 3 h w -> features. It is code; trust it first.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the pictures that the network is shown.")] = 299,
) -> None:
    """FID and KID of two sets by the features of a network that you supply, such as Inception's."""
    from limner.evaluate import distances, features
    from limner.util.devices import pick_device

    device = pick_device()
    measure = None if network is None else features.load_network(network, device)
    first, second = (features.features(path, measure, size=size, device=device) for path in (a, b))
    features.check_same(first.shape, second.shape)
    print(f"{len(first)} and {len(second)} rows of {first.shape[1]} features")
    print(f"FID {distances.frechet(first, second):.6g}")
    print(f"KID {distances.kernel(first, second):.6g}")


@evaluate.command()
def clip(
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures.", show_default=False)],
    weights: Annotated[
        Path,
        typer.Option("--clip", help="Folder with config.json and model.safetensors.", show_default=False),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="One prompt per line, in the order of names; else what Limner's PNG files say."),
    ] = None,
) -> None:
    """CLIP score of pictures with their prompts, 2.5 max(cosine, 0), by a CLIP that you supply."""
    from limner.evaluate import clip_score, features
    from limner.pipeline.replay import read_record
    from limner.util.devices import pick_device

    paths = features.pictures(pictures)
    if prompts is None:
        texts = [read_record(path).request.prompt for path in paths]
    else:
        texts = [line.strip() for line in prompts.read_text("utf-8").splitlines() if line.strip()]
    if len(texts) != len(paths):
        raise DataError(f"{len(texts)} prompts for {len(paths)} pictures; give one each")
    mean, _ = clip_score.score(
        clip_score.CLIPFolder(weights, pick_device()), list(zip(paths, texts, strict=True))
    )
    print(f"CLIP score {mean:.4f} over {len(paths)} pictures (100 x cosine: {100 * mean / 2.5:.2f})")
