"""Maps of FLUX: over names and shapes of the published files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor

from limner.errors import WeightsError
from limner.models.flux import FLUX_DEV, FLUX_SCHNELL, Flux, FluxConfig
from limner.nn import lora as nn_lora
from limner.weights import files, lora, standalone
from limner.weights.keymap import to_ours, to_theirs
from limner.weights.maps.flux import PREFIX, diffusers_flux, diffusers_flux_control, original_flux
from limner.weights.settings import flux_settings

PUBLISHED = pytest.mark.parametrize("config", [FLUX_DEV, FLUX_SCHNELL], ids=["dev", "schnell"])
WIDTH = 3072
DOUBLE = {  # of one side of a block of flux1-dev.safetensors: shapes of the weights; all have biases
    "mod.lin": (6 * WIDTH, WIDTH),
    "attn.qkv": (3 * WIDTH, WIDTH),
    "attn.proj": (WIDTH, WIDTH),
    "mlp.0": (4 * WIDTH, WIDTH),
    "mlp.2": (WIDTH, 4 * WIDTH),
}
SINGLE = {
    "linear1": (7 * WIDTH, WIDTH),
    "linear2": (WIDTH, 5 * WIDTH),
    "modulation.lin": (3 * WIDTH, WIDTH),
}
REST = {
    "img_in": (WIDTH, 64),
    "txt_in": (WIDTH, 4096),
    "time_in.in_layer": (WIDTH, 256),
    "time_in.out_layer": (WIDTH, WIDTH),
    "vector_in.in_layer": (WIDTH, 768),
    "vector_in.out_layer": (WIDTH, WIDTH),
    "final_layer.linear": (64, WIDTH),
    "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
}
GUIDANCE = {"guidance_in.in_layer": (WIDTH, 256), "guidance_in.out_layer": (WIDTH, WIDTH)}


def original(config: FluxConfig) -> dict[str, tuple[int, ...]]:
    """What flux1-dev.safetensors and flux1-schnell.safetensors hold."""
    layers = dict(REST) | (GUIDANCE if config.guidance else {})
    scales = []
    for i in range(19):
        for side in ("img", "txt"):
            layers |= {f"double_blocks.{i}.{side}_{name}": shape for name, shape in DOUBLE.items()}
            scales.append(f"double_blocks.{i}.{side}_attn.norm")
    for i in range(38):
        layers |= {f"single_blocks.{i}.{name}": shape for name, shape in SINGLE.items()}
        scales.append(f"single_blocks.{i}.norm")
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    return shapes | {f"{name}.{part}_norm.scale": (128,) for name in scales for part in ("query", "key")}


def diffusers(config: FluxConfig) -> dict[str, tuple[int, ...]]:
    settings = flux_settings(config)
    settings.pop("_class_name")
    with torch.device("meta"):
        return shapes(FluxTransformer2DModel(**settings).state_dict())


def shapes(named: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named.items()}


def meta(named: dict[str, tuple[int, ...]], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: torch.empty(shape, device="meta") for name, shape in named.items()}


@PUBLISHED
@pytest.mark.parametrize("naming", ["diffusers", "original", "all in one"])
def test_published_files_become_ours_and_again_themselves(config: FluxConfig, naming: str) -> None:
    network = files.empty(lambda: Flux(config))
    prefix = PREFIX if naming == "all in one" else ""
    rules = diffusers_flux(config) if naming == "diffusers" else original_flux(config, prefix)
    theirs = meta(diffusers(config) if naming == "diffusers" else original(config), prefix)
    assert shapes(to_ours(rules, theirs, "test")) == shapes(network.state_dict())
    assert shapes(to_theirs(rules, network.state_dict())) == shapes(theirs)


def test_the_original_is_what_the_reference_takes_it_for() -> None:
    """Numbers through diffusers' own conversion. It knows the published width only, so blocks are few."""
    config = FluxConfig(double=1, single=1, context=8, pooled=4)
    network = files.empty(lambda: Flux(config))
    generator = torch.Generator().manual_seed(0)
    ours = {
        name: torch.randint(0, 100, (*shape[:1], *(1 for _ in shape[1:])), generator=generator)
        .to(torch.uint8)
        .expand(shape)
        for name, shape in shapes(network.state_dict()).items()
    }
    single = to_theirs(original_flux(config, PREFIX), ours)
    converted = convert_flux_transformer_checkpoint_to_diffusers(single)
    folder = to_theirs(diffusers_flux(config), ours)
    assert converted.keys() == folder.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in folder.items())


def test_a_fused_layer_that_cannot_be_divided_says_so() -> None:
    name = "single_blocks.0.linear1.bias"
    with pytest.raises(WeightsError, match=r"linear1.bias is \(13,\); it should hold 7 equal parts"):
        to_ours(original_flux(FLUX_DEV, ""), {name: torch.empty(13)}, "test")


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")  # theirs, of their own import
def test_a_published_control_network_is_known_by_its_blocks() -> None:
    """InstantX's canny: 5 blocks and 10."""
    config = replace(FLUX_DEV, double=5, single=10)
    settings = flux_settings(config)
    settings = {key: value for key, value in settings.items() if key not in ("_class_name", "out_channels")}
    with torch.device("meta"):
        theirs = dict(FluxControlNetModel(**settings).state_dict())
    (kind,) = standalone.flux_controls(theirs)
    assert "5 and 10" in kind.title
    ours = kind.spelling(theirs)
    assert ours is not None
    assert shapes(to_theirs(diffusers_flux_control(), ours)) == shapes(theirs)
    without = {name: tensor for name, tensor in theirs.items() if "guidance" not in name}
    assert standalone.flux_controls(without)[0].fits(without)
    assert not standalone.flux_controls({"controlnet_blocks.0.weight": torch.empty(1)})


@PUBLISHED
def test_loras_find_every_layer_of_both_namings(config: FluxConfig) -> None:
    network = files.empty(lambda: Flux(config))
    place = lora.place(network, diffusers_flux(config), original_flux(config, ""))
    generator = torch.Generator().manual_seed(0)
    linear = {name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    for names, prefix, halves, joined in (
        (diffusers(config), "transformer.", ("lora_A", "lora_B"), "."),
        (original(config), "lora_unet_", ("lora_down", "lora_up"), "_"),
        (original(config), "", ("lora_A", "lora_B"), "."),
    ):
        layers = {name.removesuffix(".weight"): shape for name, shape in names.items() if len(shape) == 2}
        tensors = {}
        for name, (rows, columns) in layers.items():
            spelled = prefix + name.replace(".", joined)
            tensors[f"{spelled}.{halves[0]}.weight"] = torch.empty(2, columns, device="meta")
            tensors[f"{spelled}.{halves[1]}.weight"] = torch.empty(rows, 2, device="meta")
        file = lora.from_tensors(tensors, {}, Path("test.safetensors"))
        found, unmatched = lora.match(file, {"transformer": place})
        assert not unmatched
        assert found["transformer"].keys() == linear
        assert all(nn_lora.fits(network, name, update) for name, update in found["transformer"].items())
    up = torch.randn(2 * WIDTH, 1, generator=generator)
    halves = {
        "transformer.norm_out.linear.lora_A.weight": torch.ones(1, WIDTH),
        "transformer.norm_out.linear.lora_B.weight": up,
    }
    file = lora.from_tensors(halves, {}, Path("test.safetensors"))
    ((_, update),) = lora.match(file, {"transformer": place})[0]["transformer"].items()
    assert torch.equal(update.up, torch.cat([up[WIDTH:], up[:WIDTH]]))  # their scale comes first
