"""Pictures that a request brings along: what to begin with, masks, what to follow."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from limner.errors import RequestError

MOST_PIXELS = 64_000_000  # of a picture that is read


class Picture:
    """A picture and where it came from. Two are equal when their pixels are."""

    __slots__ = ("digest", "file", "image")

    def __init__(self, image: Image.Image, file: str = "") -> None:
        """Raises RequestError for an empty or an enormous picture."""
        if not 0 < image.width * image.height <= MOST_PIXELS:
            raise RequestError(
                f"a picture of {image.width}x{image.height} is none; {MOST_PIXELS:,} pixels are the most"
            )
        self.image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        self.file = file
        told = f"{self.image.mode} {self.image.size} ".encode() + self.image.tobytes()
        self.digest = hashlib.sha256(told).hexdigest()

    @classmethod
    def open(cls, path: str | Path) -> "Picture":
        """From a file, turned as its EXIF says. Raises RequestError when there is no whole picture in it."""
        try:
            with Image.open(path) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise RequestError(
                        f"{path} is {image.width}x{image.height}; {MOST_PIXELS:,} pixels are the most"
                    )
                return cls(ImageOps.exif_transpose(image), str(path))
        except (FileNotFoundError, IsADirectoryError):
            folder = Path(path).is_dir()
            raise RequestError(f"{path} is a folder" if folder else f"there is no picture {path}") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise RequestError(f"{path} is not a whole picture: {error}") from None

    @classmethod
    def read(cls, value: Any) -> "Picture":
        """From a picture of ours or of PIL, a path, or what `told` gave.

        Raises RequestError for anything else, and when a file is no longer the picture that it was."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Image.Image):
            return cls(value)
        if isinstance(value, str | Path):
            return cls.open(value)
        if isinstance(value, Mapping) and isinstance(value.get("file"), str):
            if not value["file"]:
                raise RequestError("this picture was given from memory, not from a file; give it again")
            found = cls.open(value["file"])
            if value.get("sha256") not in (None, found.digest):
                raise RequestError(f"{value['file']} is no longer the picture that it was; give the old one")
            return found
        raise RequestError(f"a picture is a file or a PIL image, got {value!r}")

    def told(self) -> dict[str, str]:
        """Plain values for JSON: the file, and a hash of the pixels."""
        return {"file": self.file, "sha256": self.digest}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Picture({self.file or self.digest[:10]!r}, {self.image.width}x{self.image.height})"
