"""LoRA files in every spelling give one result, and leave nothing behind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from limner.errors import RequestError, WeightsError
from limner.nn import lora as layers
from limner.weights import lora
from limner.weights.keymap import KeyMap, Rule

FOLDER: KeyMap = (
    Rule("down_blocks.{i}.attn1.to_q.{rest}", "down.{i}.q.{rest}"),
    Rule("down_blocks.{i}.attn1.to_out.0.{rest}", "down.{i}.out.{rest}"),
    Rule("conv_in.{rest}", "first.{rest}"),
    Rule("proj_in.{rest}", "enter.{rest}"),
)
SINGLE: KeyMap = (Rule("input_blocks.0.0.{rest}", "first.{rest}"),)
RANK, ALPHA = 2, 3.0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.down = nn.ModuleList(
            nn.ModuleDict({"q": nn.Linear(4, 4), "out": nn.Linear(4, 4)}) for _ in range(2)
        )
        self.enter = nn.Linear(4, 4)  # a 1x1 convolution in published files

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).flatten(2).mT
        for block in self.down:
            y = y + block["out"](torch.tanh(block["q"](y)))
        return self.enter(y)


LAYERS = {  # published name -> shape of down, shape of up
    "down_blocks.0.attn1.to_q": ((RANK, 4), (4, RANK)),
    "down_blocks.1.attn1.to_out.0": ((RANK, 4), (4, RANK)),
    "conv_in": ((RANK, 3, 3, 3), (4, RANK, 1, 1)),
    "proj_in": ((RANK, 4, 1, 1), (4, RANK, 1, 1)),
}


def net() -> Net:
    torch.manual_seed(0)
    return Net().requires_grad_(False)


def factors(seed: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(down, generator=generator), torch.randn(up, generator=generator))
        for name, (down, up) in LAYERS.items()
    }


def spelled(kind: str, seed: int = 1) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in factors(seed).items():
        if kind.startswith("kohya"):
            inner = "input_blocks_0_0" if (kind, name) == ("kohya-sgm", "conv_in") else name.replace(".", "_")
            at = f"lora_unet_{inner}"
            tensors |= {
                f"{at}.lora_down.weight": down,
                f"{at}.lora_up.weight": up,
                f"{at}.alpha": torch.tensor(ALPHA),
            }
        elif kind == "diffusers":
            tensors |= {f"unet.{name}.lora.down.weight": down, f"unet.{name}.lora.up.weight": up}
            tensors[f"unet.{name}.alpha"] = torch.tensor(ALPHA)
        elif kind == "oldest" and "attn1" in name:
            at = f"unet.{name.removesuffix('.0')}_lora".replace("attn1.", "attn1.processor.")
            tensors |= {f"{at}.down.weight": down, f"{at}.up.weight": up}
        else:
            start = "base_model.model" if kind == "peft" else "unet"
            tensors |= {f"{start}.{name}.lora_A.weight": down, f"{start}.{name}.lora_B.weight": up}
    return tensors


def written(path: Path, kind: str, seed: int = 1) -> lora.LoRA:
    metadata = {}
    if kind == "peft":
        path = path.with_name("adapter_model.safetensors")
        path.with_name("adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    elif kind in ("lora_A", "oldest"):
        metadata = {"lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.lora_alpha": ALPHA})}
    save_file(spelled(kind, seed), path, metadata)
    return lora.read(path)


def expected(weight: float) -> Net:
    """The network with the update added to its weights."""
    merged = net()
    ours = {
        "down_blocks.0.attn1.to_q": merged.down[0]["q"],
        "down_blocks.1.attn1.to_out.0": merged.down[1]["out"],
    }
    ours |= {"conv_in": merged.first, "proj_in": merged.enter}
    for name, (down, up) in factors().items():
        update = (up.flatten(1) @ down.flatten(1)).reshape(ours[name].weight.shape)
        ours[name].weight += weight * ALPHA / RANK * update
    return merged


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def same(one: Net, other: Net) -> None:
    assert (one(X) - other(X)).abs().max() <= 1e-5 * other(X).abs().max()


@pytest.mark.parametrize("kind", ["kohya", "kohya-sgm", "diffusers", "lora_A", "peft"])
def test_every_spelling_draws_the_same(tmp_path: Path, kind: str) -> None:
    network = net()
    place = lora.place(network, FOLDER, SINGLE)
    assert lora.attach(written(tmp_path / "a.safetensors", kind), {"unet": place}, "a", 0.7) == ()
    same(network, expected(0.7))
    torch.testing.assert_close(network.first.weight, expected(0.7).first.weight)
    layers.set_weight(network, "a", -0.2)
    same(network, expected(-0.2))


def test_the_oldest_spelling(tmp_path: Path) -> None:
    found = written(tmp_path / "a.safetensors", "oldest")
    assert {name for _, name in found.updates} == set(LAYERS)
    assert found.ranks == (RANK,)


def test_several_at_once_and_nothing_left_behind(tmp_path: Path) -> None:
    network = net()
    before, modules, keys = network(X), dict(network.named_modules()), dict(network.state_dict())
    places = {"unet": lora.place(network, FOLDER)}
    for name, seed in (("a", 1), ("b", 5)):
        lora.attach(written(tmp_path / f"{name}.safetensors", "kohya", seed), places, name, 0.5)
    both = network(X)
    assert layers.attached(network) == ("a", "b")
    layers.detach(network, "b")
    same(network, expected(0.5))
    assert not torch.allclose(both, network(X))
    layers.detach(network)
    assert torch.equal(network(X), before)
    assert {name: id(module) for name, module in network.named_modules()} == {
        n: id(m) for n, m in modules.items()
    }
    assert all(torch.equal(tensor, keys[name]) for name, tensor in network.state_dict().items())


def test_what_does_not_match_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    more = {
        "lora_unet_nowhere.lora_down.weight": torch.zeros(2, 4),
        "lora_unet_nowhere.lora_up.weight": torch.zeros(4, 2),
    }
    more |= {name.replace("unet", "te"): tensor.clone() for name, tensor in more.items()}
    save_file(spelled("kohya") | more, path)
    place = lora.place(net(), FOLDER)
    assert lora.attach(lora.read(path), {"unet": place}, "a") == ("text_encoder: nowhere", "unet: nowhere")
    save_file(more, path)
    with pytest.raises(
        WeightsError, match="fits no part of this model; it would update text_encoder: nowhere"
    ):
        lora.attach(lora.read(path), {"unet": place}, "b")


def test_another_shape_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = spelled("kohya") | {"lora_unet_proj_in.lora_down.weight": torch.zeros(2, 5)}
    save_file(tensors, path)
    network = net()
    with pytest.raises(
        WeightsError, match=r"a\.safetensors: the update of enter is \(2, 5\) and \(4, 2, 1, 1\)"
    ):
        lora.attach(lora.read(path), {"unet": lora.place(network, FOLDER)}, "a")
    assert layers.attached(network) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_unet_conv_in.lora_up.weight": None}, "one half only of conv_in"),
        ({"lora_unet_conv_in.hada_w1_a": torch.zeros(2)}, "no known spelling: lora_unet_conv_in.hada_w1_a"),
        ({"lora_unet_conv_in.dora_scale": torch.zeros(2)}, "no known spelling"),
        ({"lora_unet_conv_in.alpha": torch.zeros(2)}, "halves of conv_in"),
        ({"lora_unet_conv_in.lora_up.weight": torch.zeros(4, 3, 1, 1)}, "halves of conv_in .* do not fit"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    tensors = {name: t for name, t in (spelled("kohya") | change).items() if t is not None}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=message):
        lora.read(tmp_path / "a.safetensors")


def test_names_are_taken_once(tmp_path: Path) -> None:
    network = net()
    places = {"unet": lora.place(network, FOLDER)}
    found = written(tmp_path / "a.safetensors", "kohya")
    lora.attach(found, places, "a")
    with pytest.raises(WeightsError, match='"a" is attached already'):
        lora.attach(found, places, "a")
    with pytest.raises(WeightsError, match='no update called "b"'):
        layers.set_weight(network, "b", 1.0)


def test_a_prompt_opens_nothing_outside_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = tmp_path / "loras", tmp_path / "other.safetensors"
    (folder / "styles").mkdir(parents=True)
    inside = folder / "styles" / "ink.safetensors"
    for path in (inside, other):
        path.write_bytes(b"")
    (folder / "linked.safetensors").symlink_to(other)  # by whoever fills the folder
    monkeypatch.chdir(tmp_path)
    paths = ("styles/ink.safetensors", "styles/ink", "loras/styles/ink.safetensors", inside)
    for name in ("ink", "ink.safetensors", *paths):
        assert lora.find(str(name), folder) == inside
    assert lora.find("linked", folder) == lora.find("linked.safetensors", Path("loras")).absolute()
    outside = (
        other,
        tmp_path / "other",
        "../other",
        "../other.safetensors",
        "styles/../../other.safetensors",
    )
    for name in (*outside, "other.safetensors", "a" * 300 + ".safetensors", "\0.safetensors"):
        with pytest.raises(RequestError, match="there is no LoRA"):
            lora.find(str(name), folder)
        with pytest.raises(RequestError, match="no folder of LoRAs was given"):
            lora.find(str(name), None)
