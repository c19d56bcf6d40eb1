"""Commands: what they print, what they save, and how they fail."""

import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.text import Text
from typer.testing import CliRunner, Result

from limner import __version__, cli
from limner.cli import app, main
from limner.cli.screen import half_blocks
from limner.errors import ConfigError, DataError, EngineError, RequestError, WeightsError
from limner.families.mini import DEFAULTS
from limner.pipeline.replay import read_request
from limner.pipeline.request import Request
from limner.train import config as train_config
from limner.train import loop
from limner.train.loop import TrainStep

ROOT = Path(__file__).resolve().parent.parent


def run(*words: object) -> Result:
    """Run a command; errors that Limner raises on purpose come out as they are."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    """Run `main` as a shell would: (exit code, standard output, standard error)."""

    def call(*words: object) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["limner", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


def test_imagine_saves_what_it_prints(tiny: Path, tmp_path: Path) -> None:
    done = run(
        "imagine", "a kitten and a zebra", "--model", tiny, "--out", tmp_path, "--seed", 7, "--steps", 2
    )
    assert done.exit_code == 0
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in paths] == [
        *(f"0000{i}-{6 + i}-a-kitten-and-a-zebra.png" for i in range(1, 5)),
        "00005-7-a-kitten-and-a-zebra-grid.png",
    ]
    assert all(path.parent == tmp_path and path.is_file() for path in paths)
    assert 'the prompt says "kitten", drawn as cat' in done.stderr
    assert 'Warning: the prompt says "zebra": this model has not learned it' in done.stderr


@pytest.mark.parametrize(("count", "said"), [(1, "1 picture, seed 7"), (2, "2 pictures, seed 7")])
def test_imagine_counts_as_people_do(tiny: Path, tmp_path: Path, count: int, said: str) -> None:
    done = run(
        *("imagine", "a cat", "--model", tiny, "--out", tmp_path),
        *("--seed", 7, "--steps", 1, "--count", count),
    )
    assert said in done.stderr


def test_imagine_passes_every_option_on(tiny: Path, tmp_path: Path) -> None:
    done = run(
        *("imagine", "a cat", "--model", tiny, "--out", tmp_path, "--count", 1, "--seed", 3, "--steps", 3),
        *("--guidance", 2, "--sampler", "heun", "--size", "96x96", "--negative", "a dog", "--style", "flat"),
        *("--no-grid", "--no-preview", "--quiet"),
    )
    (path,) = done.stdout.splitlines()
    assert done.stderr == ""
    request = read_request(path)
    assert (request.prompt, request.negative_prompt, request.seed, request.count) == ("a cat", "a dog", 3, 1)
    assert (request.steps, request.guidance, request.sampler) == (3, 2.0, "heun")
    assert (request.size, request.style, request.model) == ((96, 96), "flat", str(tiny))


def test_quiet_keeps_warnings(tiny: Path, tmp_path: Path) -> None:
    done = run("imagine", "a kitten, a zebra", "--model", tiny, "--out", tmp_path, "--steps", 1, "--quiet")
    assert "zebra" in done.stderr
    assert "kitten" not in done.stderr


def test_json_is_all_of_standard_output(tiny: Path, tmp_path: Path) -> None:
    done = run(
        *("imagine", "a kitten and a zebra", "--model", tiny, "--out", tmp_path),
        *("--seed", 5, "--count", 2, "--steps", 1, "--json"),
    )
    told = json.loads(done.stdout)
    assert done.stderr == ""
    assert told["seeds"] == [5, 6]
    assert [Path(path).is_file() for path in (*told["files"], told["grid"])] == [True] * 3
    assert told["request"]["sampler"] == DEFAULTS.sampler
    assert (len(told["notices"]), len(told["warnings"])) == (1, 1)
    assert told["seconds"] > 0


def test_replay_says_whether_the_pixels_are_the_same(tiny: Path, tmp_path: Path) -> None:
    run("imagine", "a cat", "--model", tiny, "--out", tmp_path, "--seed", 5, "--count", 2, "--steps", 2)
    paths = sorted(tmp_path.iterdir())
    for path in paths:
        done = run("replay", path)
        assert done.exit_code == 0
        assert "same pixels" in done.stdout
    with Image.open(paths[0]) as image:
        from limner.pipeline.postprocess import save
        from limner.pipeline.replay import read_record

        other = save(Image.new("RGB", image.size), tmp_path, read_record(paths[0]))
    done = run("replay", other, "--model", tiny, "--out", tmp_path / "again")
    assert done.exit_code == 1
    assert "different: " in done.stdout
    drawn = next((tmp_path / "again").iterdir())
    assert done.stdout.startswith(str(drawn))
    assert Image.open(drawn).tobytes() == Image.open(paths[0]).tobytes()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("imagine", "xqzt"), RequestError, "names nothing that this model can draw"),
        (("imagine", "a cat", "--steps", -1), RequestError, "steps is a whole number"),
        (("imagine", "a cat", "--sampler", "eulr"), RequestError, 'did you mean "euler"'),
        (("imagine", "a cat", "--size", "big"), RequestError, "a size is a side"),
        (("imagine", "a cat", "--size", "99999"), RequestError, "height"),
        (("imagine", "a cat", "--style", "oil"), RequestError, "no style 'oil'"),
        (("words", "--category", "animal"), RequestError, 'did you mean "animals"'),
        (("words", "aple"), RequestError, 'no word for "aple"; nearest: apple'),
        (
            ("words", "crimson", "--category", "animals"),
            RequestError,
            'no word for "crimson" is in the category "animals", but in: colour',
        ),
    ],
)
def test_wishes_that_cannot_be_met(
    tiny: Path, words: tuple[object, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(*words, "--model", tiny)


def test_words_lists_what_the_model_knows(tiny: Path) -> None:
    everything = run("words", "--model", tiny).stdout
    for word in ("cat", "apple", "red", "left of", "beach", "glossy"):
        assert f"\n{word} " in everything
    assert "zebra" not in everything
    assert "cat-face" in everything  # the name of the art
    kitten = run("words", "kitten", "--model", tiny)
    assert "cat " in kitten.stdout
    assert "dog" not in kitten.stdout
    assert kitten.stderr == "1 word\n"
    assert "red " in run("words", "crimson", "--model", tiny).stdout
    animals = run("words", "--category", "animals", "--model", tiny).stdout
    assert "dog" in animals
    assert "apple" not in animals


def test_errors_are_one_red_line_and_an_exit_code(
    typed: object, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = typed
    assert callable(call)
    code, out, err = call("imagine", "xqzt", "--model", tiny)
    assert (code, out) == (2, "")
    assert err.startswith('Error: the prompt names nothing that this model can draw: "xqzt"')
    assert len(err.splitlines()) == 1

    def fail(*_: object, **__: object) -> None:
        raise EngineError("the numbers broke down")

    monkeypatch.setattr("limner.pipeline.load.load", fail)
    assert call("imagine", "a cat") == (1, "", "Error: the numbers broke down\n")


def test_errors_show_what_would_steer_the_terminal(typed: object, tiny: Path) -> None:
    assert callable(typed)
    name = "Löwe\n\x1b[31m\u202e\u2028\udcff"
    code, _, err = typed("imagine", "a cat", "--model", name)
    assert code == 2
    assert r'"Löwe\n\x1b[31m\u202e\u2028\udcff"' in err
    assert len(err.splitlines()) == 1
    code, _, err = typed("imagine", "a \udcff cat", "--model", tiny)
    assert (code, err) == (2, "Error: prompt is not Unicode at character 2; type it in UTF-8\n")


def test_replay_shows_what_a_forged_file_would_steer_the_terminal_with(
    typed: object, tiny: Path, tmp_path: Path
) -> None:
    assert callable(typed)
    request = Request(
        prompt="a cat",
        seed=1,
        count=1,
        steps=1,
        guidance=1.0,
        sampler="euler",
        size=(64, 64),
        model=str(tiny),
    )
    told = {"request": request.to_dict(), "weights": "\x1b[31m\n\ud800", "grid": False, "version": "1"}
    texts = PngInfo()
    texts.add_text("limner", json.dumps(told))
    Image.new("RGB", (64, 64)).save(path := tmp_path / "a.png", pnginfo=texts)
    code, out, _ = typed("replay", path)
    assert code == 1
    assert r"drawn by the weights \x1b[31m\n\ud800, these are" in out
    assert len(out.splitlines()) == 1


def test_unknown_options_and_commands_are_answered_with_known_ones(typed: object) -> None:
    assert callable(typed)
    code, _, err = typed("imagine", "a cat", "--seeed", "3")
    assert code == 2
    assert "--seed" in err
    code, _, err = typed("imagin", "a cat")
    assert code == 2
    assert "imagine" in err


def test_version() -> None:
    assert run("version").stdout == f"limner {__version__}\n"


def test_half_blocks_show_the_pictures_side_by_side() -> None:
    pixels = torch.full((5, 3, 48, 48), -1.0)
    pixels[0, 0, :24] = 1  # the upper half of the first picture is red
    text = half_blocks(pixels, 80)
    lines = text.plain.splitlines()
    assert [len(line) for line in lines] == [3 * 25] * 12
    assert set(text.plain) == {"▀", "\n"}

    def colours(row: int, column: int) -> tuple[str, str]:
        style = next(s.style for s in text.spans if s.start == row * 76 + column)
        assert not isinstance(style, str)
        assert style.color is not None
        assert style.bgcolor is not None
        return style.color.name, style.bgcolor.name

    assert colours(0, 0) == ("#ff0000", "#ff0000")
    assert colours(11, 0) == ("#000000", "#000000")
    assert colours(0, 30) == ("#000000", "#000000")


def test_half_blocks_survive_anything() -> None:
    pixels = torch.full((1, 3, 16, 16), float("nan"))
    pixels[0, 0, 0, 0] = float("inf")
    text = half_blocks(pixels, 10)
    assert isinstance(text, Text)
    assert len(text.plain.splitlines()) == 12


def test_the_page_is_what_help_says() -> None:
    path = ROOT / "scripts" / "write_cli_docs.py"
    spec = importlib.util.spec_from_file_location("write_cli_docs", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text("utf-8") == script.page(), "run python scripts/write_cli_docs.py"
    assert [
        name for name, command in script._walk("limner", script.get_command(app)) if not command.help
    ] == []


def test_help_and_words_do_without_torch(tiny: Path) -> None:
    code = (
        "import sys\n"
        "from limner.cli import main\n"
        "for words in (['imagine', '--help'], ['words', 'kitten', '--model', sys.argv[1]]):\n"
        "    sys.argv = ['limner', *words]\n"
        "    try: main()\n"
        "    except SystemExit as stopped: assert not stopped.code\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny], capture_output=True, text=True, check=True)
    assert "--guidance" in done.stdout
    assert "cat-face" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_train_dry_run_prints_the_resolved_configuration() -> None:
    done = run("train", ROOT / "configs" / "mini.toml", "--dry-run", "--set", "loop.batch=7")
    told = json.loads(done.stdout)
    assert told["loop"]["batch"] == 7
    assert told["loop"]["seed"] == 0


@pytest.mark.parametrize(
    ("setting", "message"), [("loop.batch", "takes KEY=VALUE"), ("loop.bach=3", "unknown key 'bach'")]
)
def test_train_refuses_settings_that_are_none(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run("train", ROOT / "configs" / "mini.toml", "--set", setting)


def _fake_training(stop: bool) -> object:
    """A run of two steps; with `stop`, Ctrl-C is pressed during the second."""
    closed: list[Path] = []

    def fit(run: train_config.RunConfig, folder: Path, *, resume: bool = False) -> Iterator[TrainStep]:
        try:
            for seen in (50, 100):
                if stop and seen == 100:
                    raise KeyboardInterrupt
                yield TrainStep(
                    images_seen=seen,
                    images=100,
                    losses={"velocity": 0.5},
                    gradient=1.0,
                    skipped=1,
                    images_per_second=10.0,
                    saved=None,
                    sheet=Path("sheet.png"),
                )
        finally:
            closed.append(folder)

    return fit, closed


def test_train_runs_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, closed = _fake_training(stop=False)  # type: ignore[misc]
    monkeypatch.setattr(loop, "fit", fit)
    done = run("train", ROOT / "configs" / "mini.toml", "--out", tmp_path, "--set", "loop.images=100")
    assert done.exit_code == 0
    assert done.stdout.strip() == str(tmp_path / "weights.safetensors")
    assert "50 pictures seen: sheet.png" in done.stderr
    assert closed == [tmp_path]


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, closed = _fake_training(stop=True)  # type: ignore[misc]
    monkeypatch.setattr(loop, "fit", fit)
    out, config = tmp_path / "a [b] run", ROOT / "configs" / "mini.toml"
    setting = ("--set", "loop.images=100", "--set", "loop.device='cpu'", "--set", "name='a [/b]'")
    done = run("train", config, "--out", out, *setting)
    assert done.exit_code == 130
    _, _, told = done.stderr.partition("Stopped after 50 pictures. Go on with: ")
    assert shlex.split(told) == ["limner", "train", str(config), *setting, "--out", str(out), "--resume"]
    assert closed == [out]


def test_world_prepare_calls_the_artist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limner.data.world import art

    called: dict[str, object] = {}

    def prepare(folder: Path, objects: dict[str, str], **options: object) -> None:
        called.update(options, folder=folder, objects=objects)
        progress = options["progress"]
        assert callable(progress)
        progress("flat", 1, len(objects))

    monkeypatch.setattr(art, "prepare", prepare)
    done = run(
        "world", "prepare", "--folder", tmp_path, "--from", tmp_path / "art", "--styles", "flat, glossy"
    )
    assert done.stdout.strip() == str(tmp_path)
    assert called["styles"] == ("flat", "glossy")
    assert called["source"] == tmp_path / "art"
    objects = called["objects"]
    assert isinstance(objects, dict)
    assert objects["cat"] == "cat-face"
    with pytest.raises(DataError, match="core or all"):
        run("world", "prepare", "--objects", "some")


def test_world_prepare_shows_no_bar_before_the_first_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limner.data.world import art

    def prepare(*_: object, **options: object) -> None:
        progress = options["progress"]
        assert callable(progress)
        progress("glossy", 1, 2)

    monkeypatch.setattr(art, "prepare", prepare)
    done = run("world", "prepare", "--folder", tmp_path, "--styles", "flat,glossy")
    assert "glossy" in done.stderr
    assert "flat" not in done.stderr


def test_world_prepare_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limner.data.world import art

    def prepare(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'resvg_py'", name="resvg_py")

    monkeypatch.setattr(art, "prepare", prepare)
    with pytest.raises(
        DataError, match=r'resvg_py is missing; install it with pip install "limner\[train\]"'
    ):
        run("world", "prepare", "--folder", tmp_path)


def test_a_folder_without_weights_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no model: there is neither base"):
        run("imagine", "a cat", "--model", tmp_path)
    with pytest.raises(WeightsError, match="cannot read the weights"):
        run("words", "cat", "--model", tmp_path)


def test_the_entry_point_is_main() -> None:
    from importlib.metadata import entry_points

    (entry,) = [point for point in entry_points(group="console_scripts") if point.name == "limner"]
    assert entry.load() is cli.main
