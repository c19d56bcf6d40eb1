"""Packs the drawings that the lexicon names, of all four art sets, into one small file to carry along.

    python scripts/pack_art.py FOLDER art.tar.xz     FOLDER holds the unpacked npm packages

About 6 MB instead of 160: unpacked somewhere, it serves `limner world prepare --from` on a machine without a
network. The art itself keeps its licences, which are named in each package; it is not part of Limner.
"""

import argparse
import io
import json
import tarfile
from pathlib import Path

from limner.data.world.art import ART_SETS, find_package
from limner.text.lexicon import load_lexicon


def parts(package: Path, names: set[str]) -> dict[str, bytes]:
    """The files that `prepare` reads, with no icons but the named ones."""
    table = json.loads((package / "icons.json").read_bytes())
    table["icons"] = {name: icon for name, icon in table["icons"].items() if name in names}
    kept = {key: table[key] for key in ("prefix", "icons", "width", "height") if key in table}
    return {"icons.json": json.dumps(kept, separators=(",", ":")).encode()} | {
        name: (package / name).read_bytes() for name in ("package.json", "info.json")
    }


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    names = {entry.art for entry in load_lexicon().entries}
    with tarfile.open(options.out, "w:xz") as tar:
        for style, package in ART_SETS.items():
            for name, data in parts(find_package(package, options.folder), names).items():
                member = tarfile.TarInfo(f"{style}/package/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, {len(names)} drawings of each set")


if __name__ == "__main__":
    main()
