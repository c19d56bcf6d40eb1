"""Networks come from a shelf: all at hand, or one at a time, and the pixels are the same."""

import gc
import importlib.util
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from limner.families import sd_files
from limner.families.base import Order, Wishes
from limner.families.sd import StableDiffusion
from limner.families.shelf import Shelf
from limner.util.rng import NoiseSource
from limner.weights import folders, single_file

_spec = importlib.util.spec_from_file_location(
    "tiny_model", Path(__file__).parents[1] / "weights" / "tiny.py"
)
assert _spec is not None
assert _spec.loader is not None
tiny: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

CPU = torch.device("cpu")
ORDER = Order(
    prompt="a red [fox:dog:0.5]",
    negative_prompt="grey",
    steps=3,
    guidance=5.0,
    sampler="ddim",
    size=(32, 32),
    style=None,
)


class Loads:
    """Loaders that say what they were asked for."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, name: str, device: torch.device) -> nn.Module:
        self.said.append(name)
        return nn.Linear(2, 2, device=device)

    def shelf(self, device: torch.device = CPU, offload: bool = False, ready: Any = None) -> Shelf:
        names = {name: lambda at, name=name: self(name, at) for name in ("text", "unet", "vae")}
        return Shelf(names, device, offload, ready)


def test_networks_are_loaded_when_first_taken_and_stay() -> None:
    loads = Loads()
    shelf = loads.shelf()
    assert set(shelf.loaders) == {"text", "unet", "vae"}
    assert loads.said == []
    text = shelf.take("text")
    assert shelf.take("unet") is not text
    assert shelf.take("text") is text
    assert loads.said == ["text", "unet"]
    with pytest.raises(KeyError):
        shelf.take("tower")


def test_with_offload_the_others_are_gone() -> None:
    loads = Loads()
    shelf = loads.shelf(offload=True)
    text = weakref.ref(shelf.take("text"))
    assert shelf.take("text") is text()
    shelf.take("unet")
    gc.collect()
    assert text() is None
    shelf.take("text")
    assert loads.said == ["text", "unet", "text"]


def test_from_an_accelerator_the_others_move_to_main_memory() -> None:
    """The meta device stands in for one, and a layer that only notes where it is sent for a network."""
    sent: list[tuple[str, str]] = []

    class Noted(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def to(self, device: Any) -> Any:
            sent.append((self.name, str(device)))
            return self

    loaders = {name: lambda device, name=name: Noted(name) for name in ("text", "unet")}
    shelf = Shelf(loaders, torch.device("meta"), offload=True)
    text = shelf.take("text")
    shelf.take("unet")
    assert shelf.take("text") is text
    assert sent == [
        ("text", "meta"),
        ("text", "cpu"),
        ("unet", "meta"),
        ("unet", "cpu"),
        ("text", "meta"),
    ]


def test_what_is_taken_is_made_ready_each_time() -> None:
    seen: list[str] = []
    shelf = Loads().shelf(ready=lambda name, network: seen.append(name))
    shelf.take("unet")
    shelf.take("unet")
    assert seen == ["unet", "unet"]


def test_two_shelves_beside_each_other_are_as_one() -> None:
    loads = Loads()
    one, other = loads.shelf(offload=True), loads.shelf(offload=True)
    first = weakref.ref(one.take("unet"))
    one.beside(other)
    second = other.take("unet")
    gc.collect()
    assert first() is None
    assert one.take("unet") is not second
    assert loads.said == ["unet"] * 3


@pytest.mark.parametrize("offload", [False, True])
def test_companions_that_follow_each_other_have_networks_of_their_own(offload: bool) -> None:
    """Each may get the address of the one before, which is gone."""
    loads = Loads()
    own = loads.shelf(offload=offload)
    own.take("unet")
    gone: list[weakref.ref[nn.Module]] = []
    for count in range(1, 4):
        companion = loads.shelf(offload=offload)
        own.beside(companion)
        gone.append(weakref.ref(companion.take("unet")))
        assert loads.said == ["unet"] * (count + 1)
        assert gone[-1]() is not None
        del companion
        assert [one() for one in gone] == [None] * count
        assert len(own._together) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folders.write(tmp_path / "model", tiny.MODEL, tiny.random_tensors(), prediction="eps")
    return tmp_path / "model"


def load(path: Path, wishes: Wishes) -> StableDiffusion:
    return sd_files.load(path, CPU, wishes, models=tiny.MODELS)


def watched(model: StableDiffusion, order: Order = ORDER) -> tuple[Tensor, list[str]]:
    """A picture, and the networks in the order in which they were loaded."""
    said: list[str] = []

    def note(name: str, load: Any) -> Any:
        def noted(device: torch.device) -> nn.Module:
            said.append(name)
            network: nn.Module = load(device)
            return network

        return noted

    model.shelf.loaders = {name: note(name, load) for name, load in model.shelf.loaders.items()}
    with torch.inference_mode():
        plan, x = model.plan(order), None
        said.append("first step")
        for stage in plan.stages:
            *_, last = stage.run(x, NoiseSource([1]))
            x = last.x
    assert x is not None
    return x, said


@pytest.mark.parametrize("layout", ["folder", "single"])
def test_offload_changes_no_pixel(folder: Path, tmp_path: Path, layout: str) -> None:
    path = folder
    if layout == "single":
        path = tmp_path / "model.safetensors"
        single_file.write(path, tiny.MODEL, tiny.random_tensors(), prediction="eps")
    one, other = load(path, Wishes()), load(path, Wishes(offload=True))
    assert one.fingerprint == other.fingerprint
    order = replace(ORDER, image=torch.zeros(1, 3, 32, 32), strength=1.0)
    for asked, read in ((ORDER, []), (order, ["vae"])):
        (plain, _), (drawn, said) = watched(one, asked), watched(other, asked)
        assert torch.equal(plain, drawn)
        # text before the first step, then one after the other; each once
        assert said == [*read, "text_encoder", "first step", "unet", "vae"]
        assert len(other.shelf._held) == 1
        other = load(path, Wishes(offload=True))


def test_loras_are_put_over_networks_that_were_away(folder: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    at = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    (tmp_path / "loras").mkdir()
    save_file(
        {
            f"{at}.lora_down.weight": draw(2, 16),
            f"{at}.lora_up.weight": draw(16, 2),
            f"{text}.lora_down.weight": draw(2, 24),
            f"{text}.lora_up.weight": draw(24, 2),
        },
        tmp_path / "loras" / "ink.safetensors",
    )
    wishes = Wishes(loras=tmp_path / "loras")
    one, other = load(folder, wishes), load(folder, replace(wishes, offload=True))
    inked = replace(ORDER, prompt="a fox <lora:ink:1>")
    pictures = [[watched(model, order)[0] for order in (ORDER, inked, ORDER)] for model in (one, other)]
    assert all(torch.equal(a, b) for a, b in zip(*pictures, strict=True))
    assert torch.equal(pictures[0][0], pictures[0][2])
    assert not torch.equal(pictures[0][0], pictures[0][1])
