"""limner dreambooth, lora, invert: teach a model what is in a folder of photos."""

import json
import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.options import DeviceOption
from limner.cli.screen import bar as progress_bar
from limner.cli.screen import console, visible
from limner.cli.training import show, tell_the_end
from limner.errors import EngineError

if TYPE_CHECKING:
    from limner.train.config import RunConfig
    from limner.train.loop import TrainStep
    from limner.train.personal import Wish
    from limner.train.photos import Album

Photos = Annotated[Path, typer.Argument(help="Folder of photos.", show_default=False)]
Out = Annotated[
    Path | None, typer.Option("--out", "--output-dir", help="Folder of the run, if not runs/NAME.")
]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "--pretrained-model-name-or-path",
        help="mini; folder, file or hub id of a published model; folder of your own.",
    ),
]
Prompt = Annotated[
    str,
    typer.Option("--instance-prompt", "--prompt", help="Caption of photos without one, if not made up."),
]
Rank = Annotated[int, typer.Option("--rank", "--network-dim", help="Of the LoRA. 16 if not given.")]
Alpha = Annotated[
    float, typer.Option("--lora-alpha", "--network-alpha", help="It counts alpha / rank; the rank if 0.")
]
Rate = Annotated[float, typer.Option("--learning-rate", "--lr", help="Of AdamW. The model's own if 0.")]
Steps = Annotated[int, typer.Option("--max-train-steps", "--steps", help="The model's own number if 0.")]
BatchSize = Annotated[
    int, typer.Option("--train-batch-size", "--batch", help="Photos a step. 4 for mini, else 1, if 0.")
]
Micros = Annotated[
    int, typer.Option("--gradient-accumulation-steps", help="Take each batch in so many parts.")
]
Size = Annotated[int, typer.Option("--resolution", help="Side in pixels. The model's own if 0.")]
Seed = Annotated[int, typer.Option(help="Of everything that is left to chance.")]
Flip = Annotated[bool, typer.Option("--random-flip", help="Mirror every second photo.")]
TextEncoder = Annotated[
    bool,
    typer.Option("--train-text-encoder", help="Lay the LoRA over the text encoders, too; mini's is anyway."),
]
Snr = Annotated[float, typer.Option("--snr-gamma", help="Above 0: min-SNR weighting, 5 is usual.")]
Checkpointing = Annotated[bool, typer.Option("--gradient-checkpointing", help="Less memory for more time.")]
Precision = Annotated[str, typer.Option("--mixed-precision", help="auto, float32 or bfloat16.")]
Shown = Annotated[
    list[str] | None, typer.Option("--validation-prompt", help="Of the sheets of samples. Repeatable.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder of the run.")
]
Dry = Annotated[bool, typer.Option("--dry-run", help="Print the run and stop: `limner train` takes it.")]
Toml = Annotated[bool, typer.Option("--toml", help="Print it as TOML instead of JSON.")]


def dreambooth(
    photos: Photos,
    subject: Annotated[str, typer.Option(help='A new word and what it is, such as "sks dog".')],
    kind: Annotated[str, typer.Option("--class", help="What it is, such as dog: this is kept.")] = "",
    model: ModelName = "mini",
    out: Out = None,
    prompt: Prompt = "",
    class_prompt: Annotated[str, typer.Option(help="Of class pictures, if not made up.")] = "",
    class_folder: Annotated[
        Path | None,
        typer.Option("--class-data-dir", help="Class pictures of your own; drawn if not given."),
    ] = None,
    class_images: Annotated[
        int, typer.Option("--num-class-images", help="To draw. 32 for mini, else 100, if 0.")
    ] = 0,
    prior_weight: Annotated[
        float, typer.Option("--prior-loss-weight", help="How much the class counts; 0 leaves it out.")
    ] = 1.0,
    rank: Rank = 0,
    alpha: Alpha = 0.0,
    rate: Rate = 0.0,
    steps: Steps = 0,
    batch: BatchSize = 0,
    micros: Micros = 1,
    size: Size = 0,
    seed: Seed = 0,
    flip: Flip = False,
    text_encoder: TextEncoder = False,
    min_snr: Snr = 0.0,
    checkpointing: Checkpointing = False,
    precision: Precision = "auto",
    shown: Shown = None,
    device: DeviceOption = "auto",
    resume: Resume = False,
    dry_run: Dry = False,
    toml: Toml = False,
) -> None:
    """Teach a model one subject from a few photos (DreamBooth): a LoRA, and class pictures to forget
    nothing."""
    from limner.train.personal import Wish

    wish = Wish(
        method="dreambooth",
        folder=photos,
        out=out or Path(),
        model=model,
        subject=subject,
        kind=kind,
        prompt=prompt,
        class_prompt=class_prompt,
        class_folder=class_folder,
        class_images=class_images,
        prior_weight=prior_weight,
        rank=rank,
        alpha=alpha,
        rate=rate,
        steps=steps,
        batch=batch,
        micros=micros,
        size=size,
        seed=seed,
        flip=flip,
        text_encoder=text_encoder,
        min_snr=min_snr,
        checkpointing=checkpointing,
        precision=precision,
        device=device,
        shown=tuple(shown or ()),
    )
    _teach(wish, out, resume=resume, dry_run=dry_run, toml=toml)


def lora(
    photos: Photos,
    model: ModelName = "mini",
    out: Out = None,
    prompt: Prompt = "",
    rank: Rank = 0,
    alpha: Alpha = 0.0,
    rate: Rate = 0.0,
    steps: Steps = 0,
    batch: BatchSize = 0,
    micros: Micros = 1,
    size: Size = 0,
    seed: Seed = 0,
    flip: Flip = False,
    text_encoder: TextEncoder = False,
    min_snr: Snr = 0.0,
    checkpointing: Checkpointing = False,
    precision: Precision = "auto",
    shown: Shown = None,
    device: DeviceOption = "auto",
    resume: Resume = False,
    dry_run: Dry = False,
    toml: Toml = False,
) -> None:
    """Teach a model a style, or many things, from captioned pictures: a LoRA. Kohya's folder names count."""
    from limner.train.personal import Wish

    wish = Wish(
        method="lora",
        folder=photos,
        out=out or Path("runs") / f"{photos.resolve().name}-lora",
        model=model,
        prompt=prompt,
        rank=rank,
        alpha=alpha,
        rate=rate,
        steps=steps,
        batch=batch,
        micros=micros,
        size=size,
        seed=seed,
        flip=flip,
        text_encoder=text_encoder,
        min_snr=min_snr,
        checkpointing=checkpointing,
        precision=precision,
        device=device,
        shown=tuple(shown or ()),
    )
    _teach(wish, wish.out, resume=resume, dry_run=dry_run, toml=toml)


def invert(
    photos: Photos,
    token: Annotated[
        str, typer.Option("--token", "--placeholder-token", help='The new word, such as "<mine>".')
    ],
    start: Annotated[
        str, typer.Option("--initializer-token", "--class", help="The word that it begins as, such as dog.")
    ] = "",
    vectors: Annotated[int, typer.Option("--num-vectors", help="How many it stands for.")] = 1,
    model: ModelName = "mini",
    out: Out = None,
    rate: Rate = 0.0,
    steps: Steps = 0,
    batch: BatchSize = 0,
    micros: Micros = 1,
    size: Size = 0,
    seed: Seed = 0,
    flip: Flip = False,
    min_snr: Snr = 0.0,
    precision: Precision = "auto",
    shown: Shown = None,
    device: DeviceOption = "auto",
    resume: Resume = False,
    dry_run: Dry = False,
    toml: Toml = False,
) -> None:
    """Teach a model a new word from a few photos and leave the model as it is (textual inversion)."""
    from limner.train.personal import Wish

    wish = Wish(
        method="invert",
        folder=photos,
        out=out or Path(),
        model=model,
        kind=start,
        token=token,
        vectors=vectors,
        rate=rate,
        steps=steps,
        batch=batch,
        micros=micros,
        size=size,
        seed=seed,
        flip=flip,
        min_snr=min_snr,
        precision=precision,
        device=device,
        shown=tuple(shown or ()),
    )
    _teach(wish, out, resume=resume, dry_run=dry_run, toml=toml)


def _teach(wish: "Wish", out: Path | None, *, resume: bool, dry_run: bool, toml: bool) -> None:
    """From a wish to its file."""
    from dataclasses import replace

    from limner.train import going_on, personal, photos

    wish = replace(wish, out=out or Path("runs") / wish.name)
    err = console()
    photos.check_places(wish)
    if not (resume or dry_run):
        personal.check_new(wish)  # before anything in OUT is changed
    album = photos.look(wish.folder)
    for note in personal.check_words(wish, [photo.caption for photo in album.photos]):
        err.print(f"Warning: {visible(note)}", style="yellow", markup=False)
    if not dry_run:
        personal.check_out(wish.out)
        if not resume:
            personal.enough_room(wish)
    side = wish.size or personal.side_of(wish)
    for note in album.notices(wish, side):
        err.print(visible(note), style="dim", markup=False)
    run = personal.run(wish, side)
    if dry_run:
        _print_run(run, toml)
        return
    if resume and personal.begun(wish):
        going_on.changed(run, wish.out)  # another run is told of before its photos are replaced
    try:
        path = _train(wish, album, run, side, resume=resume)
    except OSError as error:
        raise EngineError(
            f"cannot write to {wish.out}: {error.strerror or error}; make room and go on with --resume"
        ) from None
    except KeyboardInterrupt:
        err.print(f"Stopped. {_again(wish)}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    print(path)
    err.print(f"Try it: {visible(_use(wish, path))}", style="dim", markup=False, soft_wrap=True)


def _train(wish: "Wish", album: "Album", run: "RunConfig", side: int, *, resume: bool) -> Path:
    """Through the whole run; returns the file that it is about."""
    from rich.markup import escape

    from limner.train import learners, personal, photos
    from limner.train.loop import fit
    from limner.util.devices import pick_device

    photos.prepare(wish, album, side)
    if wish.classed and wish.class_folder is None:
        learner = learners.load(wish.model, pick_device(wish.device))
        with progress_bar("{task.completed}/{task.total} class pictures") as bar:
            task = bar.add_task(escape(wish.kind or "class"), total=None)
            for done, wanted in photos.class_pictures(wish, learner, side):
                bar.update(task, completed=done, total=wanted)
        del learner
    step: TrainStep | None = None
    written: tuple[Path, ...] = ()
    with progress_bar("{task.fields[speed]:.0f} pictures/s", "{task.fields[told]}") as bar:
        task = bar.add_task(escape(run.name), total=run.loop.images, speed=0.0, told="starting")
        with closing(fit(run, wish.out, resume=resume and personal.begun(wish))) as training:  # type: ignore[type-var]  # a generator
            for step in training:
                show(bar, task, step)
                written = step.written or written
    tell_the_end(step)
    return personal.collect(wish, written)


def _print_run(run: "RunConfig", toml: bool) -> None:
    from limner.train.config import to_dict
    from limner.train.personal import as_toml

    print(as_toml(to_dict(run)) if toml else json.dumps(to_dict(run), indent=2))


def _again(wish: "Wish") -> str:
    return f"Go on with the same command and --resume; the folder is {visible(str(wish.out))}"


def _use(wish: "Wish", path: Path) -> str:
    """A command that draws with what was learned; an inverted word is typed as its file has it."""
    from limner.weights import embeddings

    if wish.method == "invert":
        said, folder = f"a {embeddings.read(path).name}", "--embeddings"
    else:
        said = f"a {wish.subject}" if wish.method == "dreambooth" else "a cat"
        said, folder = f"{said} <lora:{path.stem}:1>", "--loras"
    model = [] if wish.model == "mini" else ["--model", wish.model]
    return shlex.join(["limner", "imagine", said, *model, folder, str(path.parent)])
