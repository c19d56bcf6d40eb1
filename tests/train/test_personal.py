"""From a folder of photos and a few words to a run, and through it."""

import importlib.util
import json
import os
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from limner.cli import app
from limner.data.world.backgrounds import PALETTE
from limner.errors import ConfigError, DataError
from limner.families import FAMILIES, mini_files
from limner.families.base import Wishes
from limner.train import personal, photos
from limner.train.config import RunConfig, parse, to_dict
from limner.train.learners import load
from limner.train.learners.mini import MiniLearner
from limner.train.personal import Wish
from limner.weights import embeddings, lora
from limner.weights.embeddings import Embedding

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny_mini(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model stands in for the built-in one: it knows cat, dog, apple and bicycle."""
    monkeypatch.setitem(FAMILIES, "mini", replace(FAMILIES["mini"], folder=tiny))
    return tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos of a grey square, one of them on plain blue."""
    at = tmp_path / "photos"
    at.mkdir()
    for name, ground in (("blue", PALETTE["blue"]), ("other", (110, 140, 140))):
        picture = Image.new("RGB", (40, 40), ground)
        picture.paste((128, 128, 128), (10, 10, 30, 30))
        picture.save(at / f"{name}.png")
    return at


@pytest.fixture
def wish(folder: Path, tmp_path: Path) -> Wish:
    return Wish(
        method="dreambooth",
        folder=folder,
        out=tmp_path / "out",
        subject="sks dog",
        kind="dog",
        class_images=2,
        steps=2,
        batch=2,
        rank=2,
        precision="float32",
    )


# -- words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "kind", "word"),
    [("sks dog", "dog", "sks"), ("my rex", "", "my"), ("Old Rex dog", "dog", "Old Rex"), ("sks", "", "sks")],
)
def test_the_new_word_is_what_stands_before_the_class(wish: Wish, subject: str, kind: str, word: str) -> None:
    assert replace(wish, subject=subject, kind=kind).word == word


def test_a_subject_without_a_word_of_its_own_is_refused(wish: Wish) -> None:
    with pytest.raises(ConfigError, match='is only the class "dog"'):
        replace(wish, subject="dog")
    with pytest.raises(ConfigError, match="--subject is the new word and what it is"):
        replace(wish, subject=" ")
    with pytest.raises(ConfigError, match="--token is the new word"):
        replace(wish, method="invert", token="<>")
    for method in ("invert", "dreambooth"):
        with pytest.raises(ConfigError, match=r'"a\.b" cannot be written as a word: use one without dots'):
            replace(wish, method=method, token="a.b", subject="a.b dog")
    with pytest.raises(ConfigError, match="rate is at least 0, got -1"):
        replace(wish, rate=-1.0)


def test_words_that_the_built_in_model_knows_are_not_taught_anew(wish: Wish) -> None:
    assert personal.check_words(wish) == ()
    with pytest.raises(ConfigError, match=r'"kitten" is already a word of the built-in model \("cat"\)'):
        personal.check_words(replace(wish, subject="kitten dog"))
    with pytest.raises(ConfigError, match='"red" is already a word'):
        personal.check_words(replace(wish, subject="red dog"))
    with pytest.raises(ConfigError, match=r'the class is no word.*"dragon": this model has not learned it'):
        personal.check_words(replace(wish, subject="sks dragon", kind="dragon"))
    assert personal.check_words(replace(wish, subject="zebra dog")) == ()  # in the lexicon, and not learned


def test_words_that_mean_nothing_to_it_are_told(wish: Wish) -> None:
    (told,) = personal.check_words(wish, ["a sks dog", "a wistful sks dog in moonlight"])
    assert '"wistful": not in the lexicon' in told
    assert '"moonlight"' in told


def test_published_models_may_be_taught_any_word(wish: Wish, tmp_path: Path) -> None:
    there = replace(wish, model=str(tmp_path))
    assert personal.check_words(there) == ()
    assert "ordinary word" in personal.check_words(replace(there, subject="red dog"))[0]


# -- photos --------------------------------------------------------------------------------------------------


def test_an_album_says_what_a_person_should_know(wish: Wish, folder: Path) -> None:
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    clear = Image.new("RGBA", (9, 12), (0, 0, 0, 0))
    clear.save(folder / "clear.png")
    (folder / "blue.txt").write_text("a sks dog on a blue background")
    told = photos.look(folder).notices(wish, 16)
    assert told[0].startswith("3 photos in")
    assert told[1].startswith("left out torn")
    assert "1 of them are smaller than the model's 16 pixels" in told[2]
    assert "clear, 9x12" in told[2]
    assert "1 of them are transparent, and are laid on plain grounds" in told[3]
    assert "1 of them have captions" in told[4]
    assert "no class word" in photos.look(folder).notices(replace(wish, kind=""), 16)[-1]


def test_one_photo_and_very_many_are_told_of(wish: Wish, folder: Path) -> None:
    (folder / "other.png").unlink()
    album = photos.look(folder)
    assert "one photo:" in album.notices(wish, 16)[1]
    many = replace(album, photos=album.photos * 200)
    assert "200 photos: DreamBooth was made for 3 to 6" in many.notices(wish, 16)[1]
    assert not any("DreamBooth" in line for line in many.notices(replace(wish, method="lora"), 16))


def test_folders_without_photos_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        photos.look(tmp_path / "nowhere")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png"):
        photos.look(tmp_path)


def test_photos_are_told_by_their_ground_and_stay(wish: Wish) -> None:
    album = photos.look(wish.folder)
    assert photos.prepare(wish, album, 16) == 2
    at = wish.out / "photos"
    assert (at / "0000.txt").read_text() == "a sks dog on a blue background"
    assert (at / "0001.txt").read_text() == "a sks dog"
    assert photos.look(at).photos[0].size == (32, 32)
    before = (at / "0000.png").stat().st_mtime_ns
    photos.prepare(wish, album, 16)
    assert (at / "0000.png").stat().st_mtime_ns == before
    photos.prepare(replace(wish, subject="tok dog"), album, 16)
    assert (at / "0001.txt").read_text() == "a tok dog"


def test_a_transparent_photo_is_laid_on_grounds_that_its_captions_name(wish: Wish) -> None:
    for path in wish.folder.iterdir():
        path.unlink()
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    clear.paste((200, 30, 30, 255), (10, 10, 30, 30))
    clear.save(wish.folder / "clear.png")
    assert photos.prepare(wish, photos.look(wish.folder), 16) == len(PALETTE)
    at = wish.out / "photos"
    assert (at / "0000-pink.txt").read_text() == "a sks dog on a pink background"
    with Image.open(at / "0000-pink.png") as laid:
        assert laid.getpixel((0, 0)) == PALETTE["pink"]


def test_captions_of_ones_own_name_the_subject(wish: Wish) -> None:
    (wish.folder / "blue.txt").write_text("on the beach")
    for subject in ("sks dog", "tok dog"):  # the other photo says the same of both
        photos.prepare(replace(wish, subject=subject, prompt="a toy"), photos.look(wish.folder), 16)
        assert (wish.out / "photos" / "0000.txt").read_text() == f"a {subject}, on the beach"


def test_class_pictures_are_drawn_once(wish: Wish) -> None:
    learner = load("mini", CPU)
    assert list(photos.class_pictures(wish, learner, 16)) == [(0, 2), (1, 2), (2, 2)]
    at = wish.out / "class"
    assert (at / "00001.txt").read_text() == "a dog on a red background"
    before = (at / "00000.png").stat().st_mtime_ns
    assert list(photos.class_pictures(replace(wish, class_images=3), learner, 16)) == [(2, 3), (3, 3)]
    assert (at / "00000.png").stat().st_mtime_ns == before
    list(photos.class_pictures(replace(wish, kind="cat", subject="sks cat"), learner, 16))
    assert (at / "00000.txt").read_text() == "a cat"
    assert list(photos.class_pictures(replace(wish, prior_weight=0.0), learner, 16)) == []


def test_originals_survive_whatever_out_is(wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    """OUT/photos is emptied: it must never be the folder of somebody's own photos."""
    before = {path.name: path.read_bytes() for path in wish.folder.iterdir()}
    monkeypatch.chdir(wish.folder.parent)
    (wish.folder.parent / "link").symlink_to(wish.folder)
    for source, out in (("photos", "."), ("photos", "photos"), ("photos", "photos/run"), ("link", ".")):
        with pytest.raises(ConfigError, match="neither may lie in the other"):
            call("dreambooth", source, "--subject", "sks dog", "--out", out)
        with pytest.raises(ConfigError, match="neither may lie in the other"):
            photos.prepare(replace(wish, out=Path(out)), photos.look(wish.folder), 16)
    album = wish.out / "photos" / "mine.png"
    album.parent.mkdir(parents=True)
    album.write_bytes(b"mine")
    (wish.out / "photos.json").write_text("{}")  # somebody's own
    with pytest.raises(ConfigError, match="photos is there already and was not made by Limner"):
        call("dreambooth", wish.folder, "--subject", "sks dog", "--out", wish.out)
    assert album.read_bytes() == b"mine"
    assert {path.name: path.read_bytes() for path in wish.folder.iterdir()} == before


def test_class_pictures_of_ones_own_survive(wish: Wish) -> None:
    own = wish.out / "class"
    own.mkdir(parents=True)
    (own / "a.png").write_bytes(b"mine")
    for method in (photos.check_places, lambda w: list(photos.class_pictures(w, load("mini", CPU), 16))):
        with pytest.raises(ConfigError, match="class is there already and was not made by Limner"):
            method(wish)
    photos.check_places(replace(wish, class_folder=own))
    with pytest.raises(ConfigError, match="keep photos and class pictures apart"):
        photos.check_places(replace(wish, class_folder=wish.folder))
    with pytest.raises(ConfigError, match="there is no folder"):
        photos.check_places(replace(wish, class_folder=wish.out / "nowhere"))
    assert (own / "a.png").read_bytes() == b"mine"


def test_other_photos_of_the_same_names_are_copied_anew(wish: Wish) -> None:
    photos.prepare(wish, photos.look(wish.folder), 16)
    first = (wish.out / "photos" / "0000.png").read_bytes()
    Image.new("RGB", (40, 40), (250, 0, 0)).save(wish.folder / "blue.png")
    photos.prepare(wish, photos.look(wish.folder), 16)
    assert (wish.out / "photos" / "0000.png").read_bytes() != first
    (wish.out / "photos" / "0001.png").unlink()
    assert photos.prepare(wish, photos.look(wish.folder), 16) == 2


def test_a_copy_that_was_cut_short_is_made_again(wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    album = photos.look(wish.folder)
    photos.prepare(wish, album, 16)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(photos, "_captioned", full)
        with pytest.raises(OSError, match="No space left"):
            photos.prepare(replace(wish, subject="tok dog"), album, 16)
    photos.prepare(wish, album, 16)
    assert (wish.out / "photos" / "0001.txt").read_text() == "a sks dog"


def test_photos_count_as_often_as_their_folder_says(wish: Wish) -> None:
    for folder, name in (("10_sks dog", "blue"), ("1_dog", "other")):
        (wish.folder / folder).mkdir()
        (wish.folder / f"{name}.png").rename(wish.folder / folder / f"{name}.png")
    photos.prepare(wish, photos.look(wish.folder), 16)
    found = {photo.repeats: photo.caption for photo in photos.look(wish.out / "photos").photos}
    assert found == {10: "sks dog", 1: "a sks dog, dog"}
    (wish.folder / "10_sks dog").rename(wish.folder / "3_")
    there = replace(wish, method="lora", model=str(wish.folder))
    photos.prepare(there, photos.look(wish.folder), 16)
    assert [(p.repeats, p.caption) for p in photos.look(wish.out / "photos").photos] == [(1, "dog"), (3, "")]


# -- runs ----------------------------------------------------------------------------------------------------


def test_a_run_survives_toml(wish: Wish) -> None:
    for method in ("dreambooth", "lora", "invert"):
        run = personal.run(replace(wish, method=method, token="<mine>"), 16)
        table = tomllib.loads(personal.as_toml(to_dict(run)))
        assert parse(RunConfig, table, "run.toml") == run


def test_a_published_model_gets_the_settings_of_the_field(wish: Wish, tmp_path: Path) -> None:
    run = personal.run(replace(wish, model=str(tmp_path), steps=0, batch=0, text_encoder=True), 512)
    assert run.diffusion is not None
    assert run.diffusion.prior is not None
    assert run.lora is not None
    assert (run.loop.batch, run.loop.images, run.optim.adam_lr) == (1, 800, 1e-4)
    assert run.diffusion.data.caption == "a photo of sks dog"
    assert run.diffusion.prior.data.caption == "a photo of dog"
    assert run.diffusion.train_text_encoder
    assert (run.lora.targets, run.lora.token) == ("attention", "")


def test_class_pictures_without_a_class_are_refused(wish: Wish) -> None:
    with pytest.raises(ConfigError, match="say of which, such as --class dog"):
        replace(wish, kind="", class_folder=wish.folder)
    assert replace(wish, kind="", class_folder=wish.folder, prior_weight=0.0).classed == ""


def test_what_the_run_wrote_last_is_handed_back(wish: Wish) -> None:
    """A model that is written as diffusers has it alone: the copy under the run's name follows."""
    wish.out.mkdir()
    theirs, ours = wish.out / "pytorch_lora_weights.safetensors", wish.out / "sks-dog.safetensors"
    theirs.write_bytes(b"new")
    ours.write_bytes(b"old")
    os.utime(theirs, ns=(0, 0))
    assert personal.collect(wish).read_bytes() == b"old"
    assert personal.collect(wish, [theirs, ours]).read_bytes() == b"old"
    assert personal.collect(wish, [theirs]).read_bytes() == b"new"
    ours.write_bytes(b"old")
    os.utime(ours, ns=(0, 0))
    os.utime(theirs, ns=(10**9, 10**9))
    assert personal.collect(wish).read_bytes() == b"new"
    with pytest.raises(ConfigError, match=r"has written no word\.safetensors"):
        personal.collect(replace(wish, method="invert", token="word"), [])


def call(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(map(str, words)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_dreambooth_from_photos_to_a_picture(wish: Wish, tiny: Path) -> None:
    """What a person types, and what comes out: one file, which `imagine` uses by --loras."""
    words = ("dreambooth", wish.folder, "--subject", "sks dog", "--class", "dog", "--out", wish.out)
    small = ("--max-train-steps", 2, "--train-batch-size", 2, "--rank", 2, "--num-class-images", 2)
    code, told = call(*words, *small, "--learning-rate", 0.05, "--mixed-precision", "float32")
    path = wish.out / "sks-dog.safetensors"
    assert (code, told.strip()) == (0, str(path))
    file = lora.read(path)
    assert set(file.words) == {"sks"}
    assert file.ranks == (2,)
    assert {part for part, _ in file.updates} == {"transformer"}
    model = mini_files.load(tiny, CPU, Wishes(loras=wish.out))
    order = "a sks dog <lora:sks-dog:1>"
    assert model.wear is not None
    assert model.wear(model, order)[0].read("a sks dog").unknown == ()
    drawn = ("imagine", order, "--loras", wish.out, "-n", 1, "--steps", 1, "--out", wish.out / "drawn")
    assert call(*drawn, "--quiet")[0] == 0
    with pytest.raises(ConfigError, match="already holds a run; continue it with --resume"):
        call(*words, *small)
    again = (*words, *small, "--learning-rate", 0.05, "--mixed-precision", "float32", "--resume")
    before = path.read_bytes()
    assert call(*again)[0] == 0
    assert path.read_bytes() == before
    assert call(*again, "--max-train-steps", 3)[0] == 0
    assert path.read_bytes() == (wish.out / "pytorch_lora_weights.safetensors").read_bytes() != before


def test_inversion_from_photos_to_a_word(wish: Wish, tiny: Path) -> None:
    words = ("invert", wish.folder, "--token", "<mine>", "--initializer-token", "dog", "--out", wish.out)
    code, told = call(*words, "--steps", 2, "--batch", 2, "--num-vectors", 2, "--lr", 0.1)
    assert (code, told.strip()) == (0, str(wish.out / "mine.safetensors"))
    word = embeddings.read(wish.out / "mine.safetensors")
    assert (word.name, word.vectors["text_encoder"].shape) == ("<mine>", (2, 32))
    before = MiniLearner.spelled(load("mini", CPU), "dog", 2)["text_encoder"]  # type: ignore[arg-type]
    assert not torch.allclose(word.vectors["text_encoder"], before, atol=1e-4)
    assert mini_files.load(tiny, CPU, Wishes(embeddings=wish.out)).read("a <mine>").unknown == ()


def test_words_are_filed_as_the_run_files_them(wish: Wish) -> None:
    words = ("invert", wish.folder, "--token", "<My_toy>", "--out", wish.out, "--steps", 1, "--batch", 1)
    path = wish.out / "My_toy.safetensors"
    for _ in range(2):  # the second has nothing left to do
        assert call(*words, "--resume") == (0, f"{path}\n")
    assert embeddings.read(path).name == "<My_toy>"


def test_the_command_that_is_advised_survives_a_shell(wish: Wish) -> None:
    from limner.cli.personal import _use

    odd = replace(wish, method="invert", token='<"mine">', model="my models/a", out=wish.out / "it's")
    rows = {"text_encoder": torch.zeros(1, 4), "text_encoder_2": torch.zeros(1, 4)}
    for encoders, token in ((("text_encoder",), '<"mine">'), (tuple(rows), "mine")):  # XL's: the file's name
        path = odd.out / "mine.safetensors"
        embeddings.write(path, Embedding(token, {name: rows[name] for name in encoders}))
        said = shlex.split(_use(odd, path))
        assert said[2:] == [f"a {token}", "--model", "my models/a", "--embeddings", str(odd.out)]


def test_what_a_step_says_is_shown(wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    from limner.train import loop
    from limner.train.loop import TrainStep

    def fit(run: RunConfig, folder: Path, *, resume: bool) -> Iterator[TrainStep]:
        (folder / "pytorch_lora_weights.safetensors").write_bytes(b"new")
        yield TrainStep(
            images_seen=1,
            images=1,
            losses={},
            gradient=1.0,
            skipped=1,
            images_per_second=1.0,
            saved=None,
            sheet=Path("[a]/sheet.png"),
            notes=("it is [late]",),
            broken=1,
            broken_samples=("a.png: torn",),
            figures={"fd": 3.0},
        )

    monkeypatch.setattr(loop, "fit", fit)
    words = ("dreambooth", wish.folder, "--subject", "sks dog", "--out", wish.out)
    told = CliRunner().invoke(app, list(map(str, words))).stderr
    for said in ("Warning: it is [late]", "Could not be read: a.png: torn", "[a]/sheet.png", "fd: 3"):
        assert said in told


def test_a_finished_run_is_left_alone_before_its_photos_are_touched(wish: Wish) -> None:
    (wish.out / "checkpoints" / "0000000002").mkdir(parents=True)
    with pytest.raises(ConfigError, match="already holds a run"):
        call("dreambooth", wish.folder, "--subject", "sks dog", "--out", wish.out)
    assert [path.name for path in wish.out.iterdir()] == ["checkpoints"]
    (wish.out / "run.json").write_text(json.dumps({"loop": {"batch": 3}, "diffusion": {}, "lora": {}}))
    with pytest.raises(ConfigError, match=r"loop.batch was 3 and is 4"):
        call("dreambooth", wish.folder, "--subject", "sks dog", "--out", wish.out, "--resume")
    assert not (wish.out / "photos").exists()


def test_a_lora_of_captioned_pictures(wish: Wish) -> None:
    (wish.folder / "blue.txt").write_text("a cat on a blue background")
    code, told = call("lora", wish.folder, "--out", wish.out, "--steps", 2, "--batch", 2, "--rank", 1)
    assert (code, told.strip()) == (0, str(wish.out / "out.safetensors"))
    assert lora.read(wish.out / "out.safetensors").words == {}


def test_a_dry_run_writes_nothing(wish: Wish) -> None:
    code, told = call("dreambooth", wish.folder, "--subject", "sks dog", "--out", wish.out, "--dry-run")
    assert code == 0
    assert json.loads(told)["lora"]["token"] == "sks"
    assert not wish.out.exists()


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(
    wish: Wish, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    words = ("dreambooth", wish.folder, "--subject", "sks dog", "--model", tmp_path / "no model")
    with pytest.raises(ConfigError, match=r"cannot write to .*name another folder by --out"):
        call(*words, "--out", tmp_path / "file" / "x")


def test_a_full_disk_is_told_and_nothing_is_half_written(wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    from limner.errors import EngineError

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(photos, "prepare", full)
    with pytest.raises(EngineError, match="No space left on device; make room and go on with --resume"):
        call("dreambooth", wish.folder, "--subject", "sks dog", "--out", wish.out)
    with pytest.raises(ConfigError, match="MB are free"):
        personal.enough_room(wish, least=10**18)


def test_stopping_says_how_to_go_on(wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(photos, "prepare", stopped)
    done = CliRunner().invoke(
        app, ["dreambooth", str(wish.folder), "--subject", "sks dog", "--out", str(wish.out)]
    )
    assert done.exit_code == 130
    assert "the same command and --resume" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_dreambooth_of_a_published_model_leaves_files_for_other_programs(wish: Wish, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    spec = importlib.util.spec_from_file_location("small_models", Path(__file__).with_name("small_models.py"))
    assert spec is not None
    assert spec.loader is not None
    small_models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small_models)
    model = small_models.publish(small_models.SD1, tmp_path / "sd")
    words = ("dreambooth", wish.folder, "--subject", "sks dog", "--class", "dog", "--out", wish.out)
    small = ("--max-train-steps", 1, "--rank", 2, "--num-class-images", 1, "--resolution", 64)
    more = ("--model", model, "--train-text-encoder", "--validation-prompt", "a sks dog")
    code, told = call(*words, *small, *more)
    assert (code, told.strip()) == (0, str(wish.out / "sks-dog.safetensors"))
    kohya = set(load_file(wish.out / "sks-dog.safetensors"))
    assert all(name.startswith(("lora_unet_", "lora_te_")) for name in kohya)
    assert any(name.startswith("lora_te_") for name in kohya)
    diffusers = set(load_file(wish.out / "pytorch_lora_weights.safetensors"))
    assert all(name.startswith(("unet.", "text_encoder.")) for name in diffusers)
    assert photos.look(wish.out / "class").photos[0].size == (64, 64)
    assert (wish.out / "class" / "00000.txt").read_text() == "a photo of dog"
    assert (wish.out / "photos" / "0000.png").read_bytes() == (wish.folder / "blue.png").read_bytes()
