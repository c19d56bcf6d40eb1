"""The photos of a person's own folder, looked at and made ready, and the pictures of their class.

photos -> look -> Album -> prepare: OUT/photos ; class_pictures: OUT/class
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from limner.data.catalogue import catalogue
from limner.data.pictures import open_picture
from limner.data.sidecars import MOST_REPEATS
from limner.data.world.backgrounds import PALETTE
from limner.errors import ConfigError, DataError
from limner.train.personal import Wish
from limner.util.images import images_from_pixels
from limner.weights.files import write_json

if TYPE_CHECKING:
    from PIL import Image

    from limner.train.learners.base import Learner

MANY = 100  # photos of one subject are no longer a handful
NEAR = 45.0  # how far, in levels, a ground may be from one of the ten colours to be called by it
PLAIN = 0.9  # share of the edge that has the ground's colour
ROOM = 2  # prepared photos are so many times as large as the network's pictures, at most
MADE: dict[str, object] = {"by": "limner"}  # in the note beside a folder that may be emptied
CLASS_GROUNDS = (
    *(f"on a {colour} background" for colour in PALETTE),
    "in snow",
    "on grass",
    "in the sky",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """One that can be used."""

    key: str
    path: str  # as `data.pictures` opens it
    size: tuple[int, int]  # width and height in pixels
    caption: str  # empty: it has none
    repeats: int
    transparent: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Album:
    """What was found in a folder."""

    photos: tuple[Photo, ...]  # at least one
    broken: tuple[tuple[str, str], ...]  # name, and what is wrong with it

    def notices(self, wish: Wish, side: int) -> list[str]:
        """What a person should know before the training of a model of `side` pixels begins."""
        count = len(self.photos)
        told = [f"{count} photo{'s' if count > 1 else ''} in {wish.folder}"]
        told += [f"left out {name}: {why}" for name, why in self.broken]
        if count == 1:
            told.append(
                "one photo: the subject will look as it does there, ground and all; 3 to 6 of several sides "
                "and in several places are better"
            )
        if wish.method == "dreambooth" and count > MANY:
            told.append(
                f"{count} photos: DreamBooth was made for 3 to 6 of one subject; for a style, or for many "
                "subjects, caption them and use `limner lora`"
            )
        small = [photo for photo in self.photos if min(photo.size) < side]
        if small:
            least = min(small, key=lambda photo: min(photo.size))
            told.append(
                f"{len(small)} of them are smaller than the model's {side} pixels and will be enlarged; the "
                f"smallest is {least.key}, {least.size[0]}x{least.size[1]}"
            )
        clear = sum(photo.transparent for photo in self.photos)
        if clear:
            laid = "plain grounds of several colours" if wish.built_in else "white"
            told.append(f"{clear} of them are transparent, and are laid on {laid}")
        said = sum(bool(photo.caption) for photo in self.photos)
        if said:
            told.append(f"{said} of them have captions, which are used")
        elif wish.method == "lora" and not wish.prompt:
            told.append("no captions: the LoRA will be learned for every prompt; see `limner data caption`")
        if wish.method == "dreambooth" and not wish.classed and wish.prior_weight:
            told.append(
                "no class word: nothing keeps what the model knows of such things; give it by --class dog"
            )
        return told


def look(folder: Path) -> Album:
    """Look at every photo of a folder, kohya's folder names and captions included.

    Raises DataError when it is no folder, or when no photo can be used.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; name the one with the photos")
    found = catalogue(folder)
    photos, broken = [], list(found.left_out)
    for row in range(len(found)):
        key, path = found.text("key", row), found.text("picture", row)
        try:
            found.open(row)
        except DataError as error:
            broken.append((key, str(error)))
            continue
        photos.append(
            Photo(
                key=key,
                path=path,
                size=(int(found.widths[row]), int(found.heights[row])),
                caption=found.text("caption", row),
                repeats=int(found.repeats[row]),
                transparent=_transparent(path),
            )
        )
    if not photos:
        names = "; ".join(f"{name}: {why}" for name, why in broken[:3])
        raise DataError(f"no photo in {folder} can be used: {names}")
    return Album(photos=tuple(photos), broken=tuple(broken))


def check_places(wish: Wish) -> None:
    """What OUT/photos and OUT/class hold is replaced by what a run needs, so both must be ours, and apart
    from the pictures that are somebody's own.

    Raises ConfigError when photos, class pictures and OUT lie in each other, when there is no such folder of
    class pictures, and when OUT holds photos or class pictures that Limner did not put there.
    """
    out, own = wish.out, wish.folder
    if _holds(own, out) or _holds(out, own):
        raise ConfigError(
            f"the photos are in {own} and the run would be in {out}: neither may lie in the other, for the "
            "run makes pictures of its own; name another folder by --out"
        )
    _check_ours(out / "photos")
    if not wish.classed:
        return
    if wish.class_folder is None:
        _check_ours(out / "class")
        return
    if not wish.class_folder.is_dir():
        raise ConfigError(f"--class-data-dir: there is no folder {wish.class_folder}")
    for other in (own, out / "photos"):
        if _holds(other, wish.class_folder) or _holds(wish.class_folder, other):
            raise ConfigError(
                f"--class-data-dir {wish.class_folder} and {other} lie in each other; keep photos and class "
                "pictures apart"
            )


def _check_ours(folder: Path) -> None:
    """Raises ConfigError for a folder that is there without the note which says that Limner made it."""
    told = _told(_note(folder))
    ours = isinstance(told, dict) and told.get("by") == MADE["by"]
    if folder.is_symlink() or (folder.exists() and not ours):
        raise ConfigError(
            f"{folder} is there already and was not made by Limner; it stays as it is: name another folder "
            "by --out"
        )


def _empty(folder: Path) -> None:
    """An empty folder in the place of one of ours. Its note says from now on that it is ours and unfinished;
    what is written there last says of what it was made."""
    _check_ours(folder)
    write_json(MADE, _note(folder))
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _note(folder: Path) -> Path:
    """OUT/photos.json of OUT/photos."""
    return folder.with_name(f"{folder.name}.json")


def _holds(outer: Path, inner: Path) -> bool:
    """Whether `inner` is `outer` or lies in it, however they are spelled."""
    outer, inner = outer.expanduser().resolve(), inner.expanduser().resolve()
    above = (inner, *inner.parents)
    return outer in above or (outer.exists() and any(at.exists() and at.samefile(outer) for at in above))


def prepare(wish: Wish, album: Album, side: int) -> int:
    """Copy the photos to OUT/photos, each with its caption beside it, so that the run can go on wherever they
    came from; returns how many there are. What stands there of the same photos stays. Those that count
    several times (kohya's "10_sks dog") lie in folders that say so, 10_.

    For the built-in model they are cut square and told by their ground, where that is plain: "on a blue
    background". Without it the word would come to mean the ground as well. Transparent ones are laid on
    several grounds.

    Raises ConfigError as `check_places` does, before anything is changed.
    """
    check_places(wish)
    folder = wish.out / "photos"
    told: dict[str, object] = MADE | {
        "photos": [[p.key, *p.size, p.caption, p.repeats, *_stamp(p.path)] for p in album.photos],
        "caption": wish.caption,
        "words": [wish.subject, wish.word, wish.token],
        "method": wish.method,
        "side": side,
        "built_in": wish.built_in,
    }
    there = len(_pictures(folder))
    if _told(_note(folder)) == json.loads(json.dumps(told | {"count": there})):
        return there
    _empty(folder)
    for number, photo in enumerate(album.photos):
        repeats = min(photo.repeats, MOST_REPEATS)
        inside = folder / f"{repeats}_" if repeats > 1 else folder
        inside.mkdir(exist_ok=True)
        for name, picture, ground in _versions(wish, photo, side, len(album.photos)):
            path = inside / f"{number:04}{name}"
            if picture is None:
                shutil.copyfile(photo.path, path)
            else:
                picture.save(path)
            caption = _captioned(wish, photo.caption, ground)
            if caption:
                path.with_suffix(".txt").write_text(caption, "utf-8")
    there = len(_pictures(folder))
    write_json(told | {"count": there}, _note(folder))
    return there


def _versions(
    wish: Wish, photo: Photo, side: int, count: int
) -> Iterator[tuple[str, "Image.Image | None", str]]:
    """(end of the name, the picture or None for a copy of the file, what its ground is called)."""
    if not wish.built_in:
        if ".tar::" in photo.path:
            yield ".png", open_picture(photo.path), ""
        else:
            yield Path(photo.path).suffix.lower(), None, ""
        return
    if photo.transparent:
        from PIL import Image, ImageOps

        with Image.open(photo.path) as opened:
            cut = _square(ImageOps.exif_transpose(opened).convert("RGBA"), side)
        for colour, levels in list(PALETTE.items())[:: max(1, count // 4)]:
            laid = Image.new("RGBA", cut.size, (*levels, 255))
            laid.alpha_composite(cut)
            yield f"-{colour}.png", laid.convert("RGB"), colour
        return
    picture = _square(open_picture(photo.path), side)
    yield ".png", picture, ground_of(picture) or ""


def _square(picture: "Image.Image", side: int) -> "Image.Image":
    """The middle, at most ROOM times as large as the network's pictures."""
    from PIL import Image

    least = min(picture.size)
    left, top = (picture.width - least) // 2, (picture.height - least) // 2
    cut = picture.crop((left, top, left + least, top + least))
    wanted = min(least, ROOM * side)
    return cut if wanted == least else cut.resize((wanted, wanted), Image.Resampling.LANCZOS)


def ground_of(picture: "Image.Image") -> str | None:
    """Which of the drawn world's ten colours the ground has, where it is plain: nine tenths of the edge are
    near one of them."""
    import numpy as np

    levels = np.asarray(picture.convert("RGB"), np.float32)
    edge = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    names, colours = list(PALETTE), np.array(list(PALETTE.values()), np.float32)
    away = np.linalg.norm(edge[:, None] - colours, axis=-1)
    nearest = away.argmin(1)
    best = int(np.bincount(nearest, minlength=len(names)).argmax())
    plain = ((nearest == best) & (away[:, best] < NEAR)).mean()
    return names[best] if plain >= PLAIN else None


def _captioned(wish: Wish, caption: str, ground: str) -> str:
    """A photo's caption in OUT/photos; DreamBooth's name the subject in any case."""
    if caption and wish.method == "dreambooth" and wish.word.lower() not in caption.lower():
        caption = f"a {wish.subject}, {caption}"
    if caption or not wish.built_in:
        return caption
    said = f"a {wish.token}" if wish.method == "invert" else wish.caption
    return f"{said} on a {ground} background" if ground and said else said


def class_pictures(wish: Wish, learner: "Learner", side: int) -> Iterator[tuple[int, int]]:
    """Draw what OUT/class lacks of the class pictures, with the model as it is; yields (done, wanted).

    Those of an earlier run in this folder stay, if they are of the same model, prompt and seed. Nothing is
    drawn where there is no class, or a folder of one's own.
    """
    if not wish.classed or wish.class_folder is not None:
        return
    folder, wanted = wish.out / "class", wish.class_images or (32 if wish.built_in else 100)
    told: dict[str, object] = MADE | {"prompt": wish.classed, "model": wish.model, "stamp": learner.stamp}
    told |= {"seed": wish.seed, "side": side}
    _check_ours(folder)
    if _told(_note(folder)) != told or not folder.exists():
        _empty(folder)
        write_json(told, _note(folder))
    there = {path.stem for path in _pictures(folder)}
    done = len(there)
    yield min(done, wanted), wanted
    for number in range(wanted):
        if f"{number:05}" in there:
            continue
        said = class_prompt(wish, number)
        pixels = learner.sample([said], [wish.seed + number], size=None if wish.built_in else (side, side))
        beside = folder / f"{number:05}.partial"
        images_from_pixels(pixels)[0].save(beside, format="PNG")
        (folder / f"{number:05}.txt").write_text(said, "utf-8")
        beside.replace(folder / f"{number:05}.png")
        done += 1
        yield done, wanted


def class_prompt(wish: Wish, number: int) -> str:
    """Of a class picture. Of the built-in model every second one names a ground, so that it keeps drawing
    the class on those that are asked for, and on any where none is."""
    if not wish.built_in or wish.class_prompt or number % 2 == 0:
        return wish.classed
    return f"{wish.classed} {CLASS_GROUNDS[number // 2 % len(CLASS_GROUNDS)]}"


def _transparent(path: str) -> bool:
    from PIL import Image

    if ".tar::" in path:
        return False
    with Image.open(path) as image:
        return "transparency" in image.info or "A" in image.getbands()


def _pictures(folder: Path) -> list[Path]:
    others = (".txt", ".json", ".partial")
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in others)


def _stamp(path: str) -> tuple[int, int]:
    """When the file of a picture was changed (ns), and its bytes; a picture in a tar is as new as the tar."""
    inside = path.find(".tar::")
    try:
        status = os.stat(path if inside < 0 else path[: inside + len(".tar")])  # noqa: PTH116
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _told(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
