"""The commands on the page about training run, in order, at tiny size."""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from limner.cli import app
from limner.families import FAMILIES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "training.md"
FEW = ["--max-train-steps", "2", "--train-batch-size", "2", "--mixed-precision", "float32"]
SMALL = {  # what is added to a command so that it takes a moment
    "dreambooth": [*FEW, "--num-class-images", "2"],
    "lora": FEW,
    "invert": FEW,
    "imagine": ["--count", "1", "--steps", "1", "--quiet"],
    "data filter": ["--size", "16"],
    "data pack": ["--size", "32", "--bucket-step", "16"],
}
RUN = (
    *("--set loop.images=4", "--set loop.batch=2", "--set loop.device=cpu"),
    *("--set diffusion.data.size=16", "--set diffusion.data.bucket_step=16"),
)


def commands() -> list[list[str]]:
    """The lines of the page's bash blocks, as their words."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def place(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: photos, captioned pictures, the page's run.toml, and a tiny built-in model."""
    monkeypatch.setitem(FAMILIES, "mini", replace(FAMILIES["mini"], folder=tiny))
    monkeypatch.chdir(tmp_path)
    for folder, count in (("photos", 3), ("pictures", 8)):
        (tmp_path / folder).mkdir()
        for index in range(count):
            picture = Image.effect_noise((80, 80), 90).convert("RGB")
            at = 8 * index
            ImageDraw.Draw(picture).ellipse((at, at, at + 24, at + 24), fill=(255, 30 * index, 0))
            picture.save(tmp_path / folder / f"{index}.png")
            if folder == "pictures":
                (tmp_path / folder / f"{index}.txt").write_text(["a cat", "an apple"][index % 2])
    (toml,) = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    (tmp_path / "run.toml").write_text(toml)
    return tmp_path


def test_every_command_of_the_page_runs(place: Path) -> None:
    listed = commands()
    assert {words[0] for words in listed} == {"limner", "torchrun"}
    done = 0
    for program, *words in listed:
        if program == "torchrun":
            continue
        name = " ".join(words[:2]) if words[0] == "data" else words[0]
        settings = shlex.split(" ".join(RUN)) if name == "train" else SMALL.get(name, [])
        if any(word.startswith("loop.images=") for word in words):  # the run that goes on, a little longer
            settings = [*settings, "--set", "loop.images=6"]
        result = CliRunner().invoke(app, [*words, *settings])
        assert result.exit_code == 0, (words, result.output, result.exception)
        done += 1
    assert done == len(listed) - 1
    for path in ("sks-dog/sks-dog", "style/style", "mine/mine"):
        assert (place / "runs" / f"{path}.safetensors").is_file()
    assert (place / "set" / "packed").is_dir()
    assert (place / "runs" / "style3" / "report.html").is_file()


@pytest.mark.slow
def test_the_command_for_several_processes_runs(place: Path, tiny: Path) -> None:
    """With `limner` replaced by this interpreter, and the tiny model named by its folder."""
    (words,) = [line for line in commands() if line[0] == "torchrun"]
    model = shutil.copytree(tiny, place / "model")
    (place / "set").mkdir()
    for path in (place / "pictures").iterdir():
        shutil.copy(path, place / "set")
    beside = Path(sys.executable).parent
    command = [str(beside / words[0]), *words[1:4], str(beside / words[4]), *words[5:]]
    settings = [*shlex.split(" ".join(RUN)), "--set", f"diffusion.model={model}"]
    result = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (place / "runs" / "spread" / "report.html").is_file()
