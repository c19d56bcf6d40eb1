"""From a request to files: `run` draws, `postprocess` saves, `request` and `result` are what goes in and out."""
