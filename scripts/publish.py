"""Weights of a run into the package: packed to one byte a number, with the header they have.

    python scripts/publish.py runs/mini/weights.safetensors src/limner/weights/mini/base.safetensors

Half the size of what `limner train` writes (`limner.weights.files.packed`). Whether a network minds is to be
measured: pictures before and after, and the detector's score.
"""

import argparse
from pathlib import Path

from limner.weights import files, header


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    chosen = parser.parse_args()
    files.save(files.packed(files.read(chosen.source)), chosen.target, header.read_metadata(chosen.source))
    before, after = (path.stat().st_size for path in (chosen.source, chosen.target))
    print(f"{chosen.target}: {after:,} bytes of {before:,}")


if __name__ == "__main__":
    main()
