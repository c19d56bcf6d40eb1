"""Every error that Limner raises on purpose. The message says what was wrong, which value, and what to do.

LimnerError
├── RequestError    what was asked for cannot be done: an absurd size, an unknown sampler
├── WeightsError    a checkpoint does not fit: missing, unknown or misshapen tensors
├── DataError       a source, a record or a file of the training data is broken
├── ConfigError     a setting of a run is unknown, missing or out of range
└── EngineError     the serving engine cannot take or finish a job
"""


class LimnerError(Exception):
    """Root of the tree: `except LimnerError` catches everything Limner raises on purpose."""


class RequestError(LimnerError):
    """What was asked for cannot be done; the request has to change."""


class WeightsError(LimnerError):
    """A checkpoint does not fit the network or the key map."""


class DataError(LimnerError):
    """A source, a record or a file of the data cannot be used."""


class ConfigError(LimnerError):
    """A setting of a run is unknown, missing or out of range."""


class EngineError(LimnerError):
    """The serving engine cannot take or finish a job."""
