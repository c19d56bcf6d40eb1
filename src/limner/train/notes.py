"""What goes wrong beside the training itself, and is told instead of ending it."""

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

UNWRITTEN = (OSError, SafetensorError)  # what a full disk raises


class Notes:
    """Messages that wait to be shown. The same one is told again only after something else was."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.last = ""

    def add(self, note: str) -> None:
        """To be shown with the next step."""
        if note != self.last:
            self.waiting.append(note)
            self.last = note

    def take(self) -> tuple[str, ...]:
        """Those that were not shown yet."""
        taken, self.waiting = tuple(self.waiting), []
        return taken

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Writing `what`: a full disk is noted, not raised."""
        try:
            yield
        except UNWRITTEN as error:
            self.add(f"{what} could not be written: {error}. Training goes on with what was written before.")
