"""LoRAs, words and control branches: trained as PEFT trains them, written as others read them."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from limner.errors import ConfigError, WeightsError
from limner.models.controlnet import ControlNetConfig
from limner.nn import lora
from limner.nn.lora import LowRank, Update
from limner.train import learners, trainable
from limner.train.learners.base import Learner
from limner.train.trainable import ControlConfig, Factors, LoRAConfig, WordsConfig
from limner.weights import embeddings
from limner.weights import lora as lora_files
from limner.weights.standalone import control, identify_network

_spec = importlib.util.spec_from_file_location("small_models", Path(__file__).with_name("small_models.py"))
assert _spec is not None
assert _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: small.publish(model, folder / name)
        for name, model in (("sd1", small.SD1), ("xl", small.XL), ("sd3", small.SD3), ("flux", small.FLUX))
    }


def learner(models: dict[str, Path], name: str) -> Learner:
    torch.manual_seed(0)
    return learners.load(str(models[name]), CPU)


def learned(one: Learner, config: LoRAConfig, *, text_encoder: bool = False) -> dict[str, Tensor]:
    """What is averaged of a LoRA that has learned something."""
    model = trainable.prepare(one, config, text_encoder=text_encoder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".up"):
                p += 0.2 * torch.randn(p.shape, generator=generator)
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def said(one: Learner) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    x0 = one.latents(torch.zeros(2, 3, 16, 16))
    x = torch.randn(x0.shape, generator=generator)
    t = torch.full((2,), one.path.start / 3)
    with torch.no_grad():
        return one.predict(x, t, one.say(["a red cat", "blue"], target=(16, 16)))


class Net(nn.Module):
    """A convolution and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, stride=2)
        self.q, self.k = nn.Linear(6, 5), nn.Linear(5, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = rearrange(torch.tanh(self.conv(x)), "b c h w -> b (h w) c")
        return torch.as_tensor(self.k(torch.tanh(self.q(rows))))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_after_three_steps_ours_is_what_peft_has() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    ours, rank, alpha = Net().requires_grad_(False), 2, 3.0
    twin = Net()
    twin.load_state_dict(ours.state_dict())
    theirs = peft.get_peft_model(
        twin, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["conv", "q", "k"], lora_dropout=0.0)
    )
    halves = dict(theirs.named_parameters())
    mine: dict[str, Factors] = {}
    for name in ("conv", "q", "k"):
        down = halves[f"base_model.model.{name}.lora_A.default.weight"].detach().clone()
        up = halves[f"base_model.model.{name}.lora_B.default.weight"].detach().clone()
        mine[name] = Factors(Update(down, up, alpha))
    lora.attach(ours, "a", {n: Update(f.down.detach(), f.up.detach(), alpha) for n, f in mine.items()})
    for name, factors in mine.items():
        layer = ours.get_submodule(name)
        assert isinstance(layer, LowRank)
        layer.updates["a"] = factors  # type: ignore[assignment]
    x, target = torch.randn(4, 3, 8, 8), torch.randn(4, 16, 4)
    optims = [
        torch.optim.AdamW(list(parameters), lr=1e-2, weight_decay=0.01)
        for parameters in (
            (p for factors in mine.values() for p in factors.parameters()),
            (p for p in theirs.parameters() if p.requires_grad),
        )
    ]
    for _ in range(3):
        for network, optim in zip((ours, theirs), optims, strict=True):
            optim.zero_grad()
            (network(x) - target).square().mean().backward()
            optim.step()
    for name, factors in mine.items():
        for side, half in (("lora_A", factors.down), ("lora_B", factors.up)):
            expected = halves[f"base_model.model.{name}.{side}.default.weight"]
            assert (half - expected).norm() <= 1e-5 * expected.norm()
    assert mine["conv"].up.norm() > 0
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "targets"), [("sd1", "attention"), ("xl", "all"), ("sd3", "linear"), ("flux", "all")]
)
def test_what_is_written_is_read_back(
    models: dict[str, Path], tmp_path: Path, name: str, targets: str
) -> None:
    one = learner(models, name)
    plain = said(one)
    averaged = learned(one, LoRAConfig(rank=3, alpha=2.0, targets=targets), text_encoder=True)
    changed = said(one)
    assert (changed - plain).norm() > 1e-3 * plain.norm()
    header = {"run": json.dumps({"name": "fox"})}
    config = LoRAConfig(rank=3, alpha=2.0, targets=targets)
    written = trainable.write(one, config, tmp_path, averaged, header)
    kohya = ["fox.safetensors"] if name in ("sd1", "xl") else []
    assert [path.name for path in written] == ["pytorch_lora_weights.safetensors", *kohya]
    for path in written:
        other = learner(models, name)
        parts = [other.main, *other.texts]
        places = {part: lora_files.place(other.networks[part], other.keys(part)) for part in parts}
        file = lora_files.read(path)
        assert lora_files.attach(file, places, "read") == ()
        torch.testing.assert_close(said(other), changed, rtol=1e-4, atol=1e-5)
        assert file.ranks == (3,)
        assert file.metadata["ss_network_dim"] == "3"
        assert file.metadata["ss_network_alpha"] == "2.0"
        assert file.metadata["modelspec.architecture"].endswith("/lora")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spelling", ["diffusers", "kohya"])
def test_diffusers_loads_our_lora(models: dict[str, Path], tmp_path: Path, spelling: str) -> None:
    pytest.importorskip("peft")
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    one = learner(models, "sd1")
    config = LoRAConfig(rank=3, alpha=2.0, spelling=spelling)
    averaged = learned(one, config)
    (path,) = trainable.write(one, config, tmp_path, averaged, {})
    unet = UNet2DConditionModel.from_pretrained(models["sd1"] / "unet", low_cpu_mem_usage=False)
    pipe = StableDiffusionPipeline(
        unet=unet, vae=None, text_encoder=None, tokenizer=None, scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(one.latents(torch.zeros(2, 3, 16, 16)).shape, generator=generator)
    with torch.no_grad():
        context = one.say(["a red cat", "blue"]).context
        theirs = unet(x, 333, context).sample
    torch.testing.assert_close(said(one), theirs, rtol=1e-4, atol=1e-4)


def test_an_adapter_that_does_nothing_is_found_out(models: dict[str, Path]) -> None:
    one = learner(models, "sd1")
    trainable.prepare(one, LoRAConfig(rank=2))
    assert trainable.change(one, (16, 16)) == 0
    two = learner(models, "sd1")
    learned(two, LoRAConfig(rank=2))
    assert trainable.change(two, (16, 16)) > 1e-3


@pytest.mark.parametrize("name", ["sd1", "xl"])
def test_a_word_is_written_as_it_is_read(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    one = learner(models, name)
    config = WordsConfig(token="<mine>", start="dog", vectors=2)
    model = trainable.prepare(one, config)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert list(trained) == [f"words.{text}" for text in one.texts]
    dog = one.say(["a dog dog"]).context
    torch.testing.assert_close(one.say(["a <mine>"]).context, dog)  # it begins as the word twice
    one.predict(one.latents(torch.zeros(1, 3, 16, 16)), torch.ones(1), one.say(["a <mine>"])).sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in trained.values())
    averaged = {n: p.detach() + 1 for n, p in trained.items()}
    (path,) = trainable.write(one, config, tmp_path, averaged, {})
    found = embeddings.read(path)
    assert found.name == ("<mine>" if name == "sd1" else "mine")
    for text in one.texts:
        torch.testing.assert_close(found.vectors[text], averaged[f"words.{text}"])


def test_a_control_branch_begins_silent_and_is_read_back(models: dict[str, Path], tmp_path: Path) -> None:
    one = learner(models, "sd1")
    plain = said(one)
    model = trainable.prepare(one, ControlConfig())
    condition, words = torch.rand(2, 3, 16, 16), one.say(["a red cat", "blue"])
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    t = torch.full((2,), one.path.start / 3)
    with torch.no_grad():
        torch.testing.assert_close(one.predict(x, t, words, condition), plain)
        branch = model["controlnet"]
        assert torch.equal(
            branch.get_parameter("first.weight"), one.networks["unet"].get_parameter("first.weight")
        )
        for p in branch.parameters():
            p += 0.05
        heard = one.predict(x, t, words, condition)
    assert not torch.allclose(heard, plain)
    averaged = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith("controlnet.") for name in averaged)
    (folder,) = trainable.write(one, ControlConfig(), tmp_path, averaged, {})
    shape: Any = getattr(branch, "config")  # noqa: B009 (no attribute of modules in general)
    kind = control("small", ControlNetConfig(unet=shape, channels=(16, 32)))
    read = identify_network(folder, (kind,)).load()
    for name, tensor in read.state_dict().items():
        torch.testing.assert_close(tensor, averaged[f"controlnet.{name}"])


def test_what_cannot_be_trained_says_so(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained alone"):
        trainable.check(WordsConfig(token="sks"), text_encoder=True)
    with pytest.raises(ConfigError, match="no new words"):
        trainable.prepare(learner(models, "flux"), WordsConfig(token="sks"))
    with pytest.raises(ConfigError, match="control branches are trained for"):
        trainable.prepare(learner(models, "sd3"), ControlConfig())
    for wrong in ({"rank": 0}, {"targets": "some"}, {"spelling": "peft"}):
        with pytest.raises(ValueError, match="is"):
            LoRAConfig(**wrong)
    with pytest.raises(ValueError, match="without dots"):
        WordsConfig(token="a.b")
    one = learner(models, "sd3")
    config = LoRAConfig(rank=2, spelling="kohya")
    averaged = learned(one, config)
    with pytest.raises(WeightsError, match="spelling"):
        trainable.write(one, config, tmp_path, averaged, {})


@pytest.mark.parametrize("name", ["sd1", "xl", "sd3", "flux"])
def test_a_model_is_written_as_a_folder_that_holds_it(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    one = learner(models, name)
    model = trainable.prepare(one, None)
    averaged = {n: p.detach() + 0.01 for n, p in model.named_parameters() if p.requires_grad}
    (folder,) = trainable.write(one, None, tmp_path, averaged, {})
    (folder,) = trainable.write(one, None, tmp_path, averaged, {})  # in the place of the first
    other = learners.load(str(folder), CPU)
    assert other.prediction == one.prediction
    for part, network in other.networks.items():
        for key, tensor in network.state_dict().items():
            kept = averaged.get(f"{part}.{key}", one.networks[part].state_dict()[key])
            torch.testing.assert_close(tensor, kept)
    assert not list(tmp_path.glob("model.*"))
