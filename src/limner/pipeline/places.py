"""Where pictures go: tried before the first of them is drawn."""

import contextlib
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from limner.errors import RequestError


def tried(folder: Path) -> Path:
    """`folder`, if pictures can be saved there: it is made, written to, and left as it was. Raises
    RequestError otherwise."""
    missing = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=".", suffix=".partial"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a name that no folder can have
        said = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"cannot save pictures in {folder}: {said}; choose another folder") from None
    finally:
        for one in missing:
            with contextlib.suppress(OSError, ValueError):  # it was not made, or somebody else writes there
                one.rmdir()
    return folder
