"""From a request to files: `run` draws, `postprocess` saves; a `request` goes in, a `result` comes out."""
