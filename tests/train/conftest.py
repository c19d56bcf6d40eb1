"""Runs that take milliseconds: a small world, small networks, few pictures."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limner.data.world import source
from limner.data.world.scene import WorldConfig
from limner.data.world.source import DrawnConfig
from limner.models.detector import DetectorConfig
from limner.models.pixel_dit import PixelDiTConfig
from limner.models.upscaler import UpscalerConfig
from limner.text.lexicon import Lexicon, load_lexicon
from limner.train.config import LoopConfig, RunConfig
from limner.train.loop import fit
from limner.train.objectives import Objective
from limner.train.objectives.denoise import DenoiseConfig
from limner.train.objectives.detect import DetectConfig
from limner.train.objectives.upscale import UpscaleConfig
from limner.util.images import images_from_pixels
from limner.weights import files

OBJECTS = ("apple", "cat", "tree", "balloon", "house", "star")


@pytest.fixture(autouse=True)
def small_lexicon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only six objects of the lexicon are to be drawn."""
    lexicon = Lexicon(load_lexicon().entry(name) for name in OBJECTS)
    monkeypatch.setattr(source, "load_lexicon", lambda: lexicon)


@pytest.fixture
def denoise(atlas_folder: Path) -> DenoiseConfig:
    return DenoiseConfig(
        data=DrawnConfig(folder=str(atlas_folder)),
        world=WorldConfig(word=0.2),
        model=PixelDiTConfig(
            size=16, patch=4, width=32, depth=2, heads=2, bottleneck=16, text_depth=1, head_channels=8
        ),
    )


@pytest.fixture
def upscale(atlas_folder: Path) -> UpscaleConfig:
    return UpscaleConfig(
        data=DrawnConfig(folder=str(atlas_folder)),
        model=UpscalerConfig(factor=2, channels=8, depth=2),
        size=12,
        large=32,
        crop=16,
    )


@pytest.fixture
def detect(atlas_folder: Path) -> DetectConfig:
    return DetectConfig(
        data=DrawnConfig(folder=str(atlas_folder)),
        model=DetectorConfig(size=64, channels=24, growth=8, levels=3, embedding=32),
        sides=(32, 64, 96),
    )


@pytest.fixture
def loop() -> LoopConfig:
    """Six steps of four pictures, on the CPU in float32."""
    return LoopConfig(
        images=24,
        batch=4,
        seed=3,
        device="cpu",
        precision="float32",
        checkpoint_seconds=1e9,
        sheet_seconds=1e9,
    )


@pytest.fixture(params=["denoise", "upscale", "detect"])
def run(
    request: pytest.FixtureRequest,
    loop: LoopConfig,
    denoise: DenoiseConfig,
    upscale: UpscaleConfig,
    detect: DetectConfig,
) -> RunConfig:
    """A run of each objective."""
    objectives = {"denoise": denoise, "upscale": upscale, "detect": detect}
    return RunConfig(name="test", loop=loop, **{request.param: objectives[request.param]})


@pytest.fixture(scope="session")
def publish() -> Callable[[Objective, Path], Path]:
    """Writes weights as a run publishes them, with no branch silent; nothing has been learned."""

    def publish(objective: Objective, path: Path) -> Path:
        generator = torch.Generator().manual_seed(0)
        objective.model.initialize(generator)
        names = objective.published()
        tensors = {
            name: (p.detach() + 0.05 * torch.randn(p.shape, generator=generator)).to(torch.bfloat16)
            for name, p in objective.model.named_parameters()
            if name in names
        }
        files.save(tensors, path, objective.header())
        return path

    return publish


@pytest.fixture(scope="session")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of 48 x 48 smooth pixels with captions, as a folder."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for index in range(6):
        coarse = torch.rand(1, 3, 4, 4, generator=generator) * 2 - 1
        pixels = torch.nn.functional.interpolate(coarse, (48, 48), mode="bicubic").clamp(-1, 1)
        images_from_pixels(pixels)[0].save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a picture of thing {index}")
    return folder


@pytest.fixture(scope="session")
def interrupted() -> Callable[[RunConfig, Path, int], None]:
    """Checks that a run which is stopped after some steps and resumed ends as one without a break, bit for
    bit: all that a checkpoint holds, and what is published."""

    def check(run: RunConfig, folder: Path, steps: int) -> None:
        for _ in fit(run, folder / "whole"):
            pass
        broken = fit(run, folder / "broken")
        for _ in range(steps):
            next(broken)
        broken.close()
        for _ in fit(run, folder / "broken", resume=True):
            pass
        ends = [sorted((folder / name).rglob("*.safetensors")) for name in ("whole", "broken")]
        last = f"{run.loop.images:010d}"
        held = [[p for p in paths if "checkpoints" not in p.parts or last in p.parts] for paths in ends]
        assert len(held[0]) == len(held[1]) > 1
        for one, other in zip(*held, strict=True):
            whole, again = files.read(one), files.read(other)
            assert whole.keys() == again.keys()
            assert all(torch.equal(whole[name], again[name]) for name in whole)

    return check
