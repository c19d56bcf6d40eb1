import tomllib
from pathlib import Path

import pytest

from limner.errors import ConfigError
from limner.train.config import RunConfig, parse, read, to_dict

ROOT = Path(__file__).resolve().parents[2]
BOTH = """
name = "small"
[loop]
images = 1_000
[optim]
betas = [0.8, 0.9]
clip = 2
[denoise.data]
styles = ["flat"]
[denoise.model]
size = 32
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_a_file_becomes_a_configuration(tmp_path: Path) -> None:
    run = read(written(tmp_path, BOTH))
    assert (run.name, run.loop.images, run.loop.batch) == ("small", 1000, 64)
    assert run.optim.betas == (0.8, 0.9)
    assert type(run.optim.clip) is float
    assert run.denoise is not None
    assert run.denoise.data.styles == ("flat",)
    assert (run.denoise.model.size, run.denoise.model.patch) == (32, 8)
    assert run.upscale is None


def test_the_other_objectives(tmp_path: Path) -> None:
    run = read(written(tmp_path, 'name = "x"\n[loop]\nimages = 1\n[upscale]\nblur = 0.5'))
    assert run.upscale is not None
    assert run.upscale.blur == 0.5
    assert run.denoise is None
    run = read(written(tmp_path, 'name = "x"\n[loop]\nimages = 1\n[detect]\nsides = [64]'))
    assert run.detect is not None
    assert run.detect.sides == (64,)
    assert run.upscale is None


def test_overrides_set_dotted_keys(tmp_path: Path) -> None:
    overrides = {
        "loop.images": "5",
        "loop.device": "cpu",
        "loop.compile": "true",
        "denoise.data.styles": '["glossy", "flat"]',
        "denoise.caption.style": "0",
        "name": '"other"',
    }
    run = read(written(tmp_path, BOTH), overrides)
    assert run.denoise is not None
    assert (run.loop.images, run.loop.device, run.loop.compile, run.name) == (5, "cpu", True, "other")
    assert run.denoise.data.styles == ("glossy", "flat")
    assert run.denoise.caption.style == 0.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOTH.replace("images", "imagse"), r"loop: unknown key 'imagse'; did you mean \"images\"\?"),
        (BOTH.replace("[optim]", "[zzz]"), r"unknown key 'zzz'; known: name, loop, .*, upscale, detect"),
        (BOTH.replace("size = 32", 'size = "32"'), "size must be a whole number, got '32'"),
        (BOTH.replace("size = 32", "size = true"), "size must be a whole number, got True"),
        (BOTH.replace("1_000", "1.5"), "images must be a whole number, got 1.5"),
        (BOTH.replace("clip = 2", 'clip = "2"'), "clip must be a number, got '2'"),
        (BOTH.replace('["flat"]', '"flat"'), "styles is a list, got 'flat'"),
        (BOTH.replace('["flat"]', "[1]"), "styles must be a string, got 1"),
        (BOTH.replace("[0.8, 0.9]", "[0.8]"), r"betas is a list of 2, got \[0.8\]"),
        ('name = "x"\nloop = 3\n[denoise]', "loop is a table, got 3"),
        (BOTH.replace("images = 1_000", "batch = 3"), "loop: missing images"),
        ("[denoise]", "missing name, loop"),
        ('name = "x"\n[loop]\nimages = 1', "exactly one objective"),
        (BOTH + "[upscale]\nsize = 16", "exactly one objective"),
        (BOTH + "[detect]\nsides = [64]", "exactly one objective"),
        (BOTH + "[detect.world]\ncoloured = 0.5", r"detect: letters are learnt from words"),
        (BOTH + "[detect]\nsides = []", "one or more numbers of pixels"),
        (BOTH.replace("size = 32", "size = 33"), "size 33 is not a multiple of patch 8"),
        (BOTH.replace("1_000", "0"), "loop: images is at least 1, got 0"),
        (BOTH.replace("1_000", "5\nbatch = 0"), "loop: batch is at least 1, got 0"),
        (BOTH.replace("1_000", "5\nmicros = 7"), "loop: micros divides batch into equal parts, got 7 of 64"),
        (BOTH.replace("1_000", "5\nmax_skipped = 0"), "loop: max_skipped is at least 1, got 0"),
        (BOTH.replace("1_000", "5\ncompile = true\ncompile_blocks = true"), "exclude each other"),
        (
            'name = "x"\n[loop]\nimages = 1\ncheckpointing = true\n[upscale]',
            r"\[upscale\] does not list its blocks, so loop.checkpointing has nothing to do",
        ),
        (BOTH.replace("clip = 2", 'schedule = "steps"'), "schedule is trapezoid, constant, linear, cosine"),
        (BOTH + "[lora]", r"\[denoise\] does not know how to train \[lora\]: it trains the whole network"),
        (
            'name = "x"\n[loop]\nimages = 1\n[dpo]\nmodel = "mini"\ndata.folder = "p"\n[lora]\ntoken = "sks"',
            r"lora\.token: \[dpo\] learns no words",
        ),
        (BOTH.replace("clip = 2", "clip = nan"), "clip must be a finite number, got nan"),
        (BOTH.replace("[0.8, 0.9]", "[0.8, inf]"), "betas must be a finite number, got inf"),
        (BOTH.replace("clip = 2", "clip = 0"), "optim: clip is above 0, got 0.0"),
        ("name = ", "run.toml is not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(written(tmp_path, text))


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match=r"run\.toml is not valid TOML: .*utf-8"):
        read(path)


def test_wrong_overrides(tmp_path: Path) -> None:
    path = written(tmp_path, BOTH)
    with pytest.raises(ConfigError, match="bach"):
        read(path, {"loop.bach": "3"})
    with pytest.raises(ConfigError, match=r"cannot set name\.first: name is not a table"):
        read(path, {"name.first": "3"})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml"):
        read(tmp_path / "none.toml")


@pytest.mark.parametrize("text", [BOTH, 'name = "x"\n[loop]\nimages = 1\n[upscale.model]\nfactor = 2'])
def test_the_resolved_configuration_reads_back_as_itself(tmp_path: Path, text: str) -> None:
    run = read(written(tmp_path, text))
    resolved = to_dict(run)
    assert ("denoise" in resolved) != ("upscale" in resolved)
    assert parse(RunConfig, resolved, "again") == run


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_project_is_valid(path: Path) -> None:
    run = read(path)
    assert to_dict(run)["name"] == tomllib.loads(path.read_text())["name"]
