"""Pictures to be labelled by eye, and the file of labels.

The sheet says what is asked and never what the detector answered.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from limner.errors import DataError, RequestError
from limner.evaluate import foreign
from limner.evaluate.agreement import Agreement, agreement, answers, questions
from limner.evaluate.prompts import Prompt
from limner.evaluate.prompts import read as read_prompts
from limner.evaluate.run import stratified
from limner.evaluate.sheets import captioned
from limner.pipeline import load as pipelines
from limner.util.devices import pick_device
from limner.util.images import pixels_from_images
from limner.weights.detector import load_detector

LABELS, PAGE = "labels.jsonl", "index.html"  # in the folder of pictures to be labelled
KEYS = ("set", "task", "prompt", "seed", "weights", "asked", "eye")
PER_SHEET = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One picture and what the eye said."""

    set: str  # name or file of the prompts
    task: str
    prompt: str
    seed: int
    weights: str  # fingerprint of the model that drew it
    asked: tuple[str, ...]  # the questions
    eye: tuple[bool, ...]  # the answers


def read(path: Path) -> list[Label]:
    """Labels from a file of JSON lines. Raises DataError for what is none, and for answers still missing."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the labels {path}: {error}") from None
    labels = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                labels.append(_label(json.loads(line)))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise DataError(f"{path}, line {number} is no label: {error}") from None
    if not labels:
        raise DataError(f"{path} holds no labels")
    return labels


def find(label: Label, prompts: Sequence[Prompt]) -> Prompt:
    """The prompt that a label is about, from its set. Raises DataError when it is not there, or no longer the
    same."""
    for prompt in prompts:
        if (prompt.task, prompt.text) == (label.task, label.prompt):
            asked = tuple(question.text for question in questions(prompt))
            if asked != label.asked:
                raise DataError(f'"{label.prompt}" asks {asked} by now, and was labelled for {label.asked}')
            return prompt
    raise DataError(f'the prompts {label.set} hold no "{label.prompt}" of the task {label.task}')


def draw(
    model: str,
    prompts: str,
    number: int,
    seed: int,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[tuple[Prompt, int, Image.Image]], str]:
    """One picture each of `number` prompts, as many of each of the six tasks, by the model's own defaults;
    and the fingerprint of the model. Which prompts follows from the seed, picture i has the seed `seed` + i.

    Raises RequestError, DataError and WeightsError for what does not fit.
    """
    chosen = stratified(read_prompts(prompts), number, seed)
    pipeline = pipelines.load(model)
    drawn = []
    for index, prompt in enumerate(chosen):
        drawn.append((prompt, seed + index, pipeline(prompt.text, seed=seed + index, count=1).images[0]))
        progress(index + 1, number)
    return drawn, pipeline.model.fingerprint


def compare(
    labels: Sequence[Label],
    model: str,
    detector: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Agreement, Agreement]:
    """Of eye and detector: on whole pictures, and on single questions. The pictures are drawn again.

    Raises DataError when the labels are of another model or of other prompts, and as `draw` does.
    """
    pipeline = pipelines.load(model)
    device = pick_device()
    watcher = load_detector(detector, device)
    known: dict[str, list[Prompt]] = {}
    whole, single = [], []
    for index, label in enumerate(labels):
        if label.weights != pipeline.model.fingerprint:
            raise DataError(
                f"the labels are of the model {label.weights}, and {model} is {pipeline.model.fingerprint}; "
                "name the model that was labelled by --model, or label anew"
            )
        prompts = known.setdefault(label.set, read_prompts(label.set))
        prompt = foreign.judgeable(find(label, prompts), watcher.names)
        image = pipeline(prompt.text, seed=label.seed, count=1).images[0]
        pixels = pixels_from_images([image]).to(device)
        said = answers(prompt, watcher.detect(pixels)[0])
        whole.append((all(label.eye), all(said)))
        single += list(zip(label.eye, said, strict=True))
        progress(index + 1, len(labels))
    return agreement(whole), agreement(single)


def write(
    folder: Path, name: str, drawn: Sequence[tuple[Prompt, int, Image.Image]], weights: str
) -> list[Path]:
    """Pictures, sheets of twenty, a page, and a file of labels to be filled in: every null of `eye` becomes
    true or false. Returns the paths of the file, the page and the sheets. Raises RequestError."""
    lines, cells, rows = [], [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / LABELS).exists():
            raise RequestError(f"{folder} already holds {LABELS}; choose another folder")
        for number, (prompt, seed, image) in enumerate(drawn):
            asked = [question.text for question in questions(prompt)]
            values = (name, prompt.task, prompt.text, seed, weights, asked, [None] * len(asked))
            lines.append(json.dumps(dict(zip(KEYS, values, strict=True)), ensure_ascii=False))
            image.save(folder / f"{number:03}.png")
            cells.append((image, [f"{number}: {prompt.text}", *asked]))
            told = "<br>".join(map(escape, asked))
            rows.append(
                f'<figure><img src="{number:03}.png" alt="{number}"><figcaption><b>{number}</b> '
                f"{escape(prompt.text)}<br>{told}</figcaption></figure>"
            )
        sheets = []
        for first in range(0, len(cells), PER_SHEET):
            sheets.append(folder / f"sheet-{first // PER_SHEET + 1}.png")
            captioned(cells[first : first + PER_SHEET], width=192).save(sheets[-1])
        (folder / PAGE).write_text(
            '<!doctype html>\n<meta charset="utf-8">\n<title>Pictures to be labelled</title>\n<style>'
            "body{font:15px system-ui;display:flex;flex-wrap:wrap;gap:1rem} figure{margin:0;width:200px} "
            "img{width:100%}</style>\n" + "\n".join(rows) + "\n",
            "utf-8",
        )
        (folder / LABELS).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    except OSError as error:
        raise RequestError(f"cannot write to {folder}: {error.strerror}") from None
    return [folder / LABELS, folder / PAGE, *sheets]


def _label(told: Mapping[str, object]) -> Label:
    if not isinstance(told, dict) or set(told) != set(KEYS):
        raise ValueError(f"it has not just {', '.join(KEYS)}")
    asked, eye, seed = told["asked"], told["eye"], told["seed"]
    if not isinstance(asked, list) or not isinstance(eye, list) or len(asked) != len(eye):
        raise ValueError("asked and eye are lists of one length")
    if not all(isinstance(answer, bool) for answer in eye):
        raise ValueError("every answer of the eye is true or false")
    if type(seed) is not int:
        raise ValueError(f"seed is a whole number, got {seed!r}")
    return Label(
        set=str(told["set"]),
        task=str(told["task"]),
        prompt=str(told["prompt"]),
        seed=seed,
        weights=str(told["weights"]),
        asked=tuple(map(str, asked)),
        eye=tuple(eye),
    )
