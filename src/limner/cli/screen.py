"""What the commands show: messages, progress, pictures made of characters."""

import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from limner.errors import EngineError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID
    from rich.text import Text
    from torch import Tensor

    from limner.pipeline.result import Result
    from limner.pipeline.run import Progress

COLUMNS = 24  # characters, and pixels, across one picture of a preview
CONTROLS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # Unicode categories of what nobody can see
FRAME = 0.25  # seconds between two frames of a preview, at least


def visible(text: str) -> str:
    """On one line, with escapes for what would break it or steer the terminal: messages quote files."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in CONTROLS
        else character
        for character in text
    )


def console(*, stderr: bool = True) -> "Console":
    """Standard error, or output."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextmanager
def bar(*columns: str) -> Iterator["Bar"]:
    """A progress bar on standard error: name, bar, the given columns, time left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    parts = [TextColumn("{task.description}"), BarColumn(), *map(TextColumn, columns), TimeRemainingColumn()]
    with Progress(*parts, console=console()) as shown:
        yield shown


@contextmanager
def prompts_bar(what: str = "prompts") -> Iterator[Callable[[str, int, int], None]]:
    """A bar that is told (name, done, total), one row for each name."""
    with bar(f"{{task.completed}}/{{task.total}} {what}") as shown:
        tasks: dict[str, TaskID] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = shown.add_task(name, total=total)
            shown.update(tasks[name], completed=done)

        yield progress


def watch(steps: Iterator["Progress"], on: "Console", *, show: bool, preview: bool | None) -> "Result":
    """Take all steps, showing how far they are and, where the terminal can, what is forming."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    able = on.is_terminal and on.color_system == "truecolor"
    blocks = show and (able if preview is None else preview and on.is_terminal)
    picture = Text()
    shown = 0.0
    with Live(console=on, auto_refresh=False, transient=True) as live:
        for step in steps:
            if step.result is not None:
                return step.result
            now = time.monotonic()
            if not show or now - shown < FRAME:
                continue
            shown = now
            if blocks:
                picture = half_blocks(step.preview, on.width)
            told = Text(f"{step.stage} {step.index + 1}/{step.total} ")
            line = ProgressBar(total=step.total, completed=step.index + 1, width=40)
            live.update(Group(picture, told, line) if blocks else Group(told, line), refresh=True)
    raise EngineError("drawing ended without a result")


def half_blocks(pixels: "Tensor", width: int) -> "Text":
    """As many pictures (b 3 h w, [-1, 1]) as fit into `width` characters, four at most, side by side: each
    character is two pixels, one above the other."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text
    from torch import cat
    from torch.nn.functional import adaptive_avg_pool2d, pad

    beside = max(1, min(4, width // (COLUMNS + 1)))
    small = adaptive_avg_pool2d(pixels[:beside].float().nan_to_num().clamp(-1, 1), COLUMNS)
    row = cat([pad(picture, (0, 1), value=-1.0) for picture in small], 2)  # one dark column between pictures
    levels = row.add(1).mul(127.5).round().int().permute(1, 2, 0).tolist()
    text = Text(end="")
    for upper, lower in zip(levels[::2], levels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        text.append("\n")
    return text
