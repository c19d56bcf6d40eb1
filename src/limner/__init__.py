"""Limner: words to pictures, completely and on your own machine.

    >>> import limner
    >>> pipe = limner.load("mini")
    >>> result = pipe("two red apples to the left of a cat on a blue background", seed=7)

The names below are the public ones. Those that need torch are imported when first used, so that importing
limner and asking the command line for help cost next to nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

from limner.errors import ConfigError, DataError, EngineError, LimnerError, RequestError, WeightsError

# Left to itself, MKL adds up in an order that follows from where numbers happen to lie in memory: the last
# bits of pictures change from process to process. It reads this once, when torch is imported.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

if TYPE_CHECKING:
    from limner.pipeline.load import load
    from limner.pipeline.request import Request
    from limner.pipeline.result import Result
    from limner.pipeline.run import Pipeline, Progress

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DataError",
    "EngineError",
    "LimnerError",
    "Pipeline",
    "Progress",
    "Request",
    "RequestError",
    "Result",
    "WeightsError",
    "load",
]

_HOME = {  # public name -> the file that it is imported from on first use
    "Pipeline": "limner.pipeline.run",
    "Progress": "limner.pipeline.run",
    "Request": "limner.pipeline.request",
    "Result": "limner.pipeline.result",
    "load": "limner.pipeline.load",
}


if not TYPE_CHECKING:  # a type checker reads the imports above and reports unknown names itself

    def __getattr__(name: str) -> object:
        """Import a public name on first use (PEP 562) and keep it, so that this runs once for each."""
        if name not in _HOME:
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}"
            )
        value: object = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
