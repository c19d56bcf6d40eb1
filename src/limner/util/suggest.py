"""The end of a message about an unknown name: what may have been meant."""

import difflib
from collections.abc import Iterable


def suggestion(said: str, known: Iterable[str], *, shown: Iterable[str] | None = None) -> str:
    """'; did you mean "euler"?', or the list of all `known` names (or of `shown`) when none is close."""
    names = list(known)
    close = difflib.get_close_matches(said.lower(), names, 1, 0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known: {', '.join(names if shown is None else shown)}"
