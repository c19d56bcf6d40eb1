"""Every layer that published LoRA files name is found in the real networks, on the meta device.

The manifests come from scripts/write_manifests.py, which knows nothing of our names.
"""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limner.errors import WeightsError
from limner.nn import lora as layers
from limner.weights import detect, files, lora, parts
from limner.weights.lora import Place

MANIFESTS = Path(__file__).parents[1] / "manifests"
ALPHA = 8.0
FILES = {  # (manifest, naming) -> whose it is, how many layers of each part it updates, and the ranks
    ("lora_sd15_kohya", "kohya"): (parts.SD15, (192, 72), (128,)),
    ("lora_sd15_kohya", "convolutions"): (parts.SD15, (278, 72), (8, 32)),
    ("lora_diffusers", "sd15_oldest"): (parts.SD15, (128, 48), (4,)),
    ("lora_sdxl_kohya", "original"): (parts.SDXL, (788, 72, 192), (4, 16)),
    ("lora_sdxl_kohya", "diffusers"): (parts.SDXL, (722, 72, 192), (4,)),
    ("lora_diffusers", "peft"): (parts.SDXL, (560, 48, 128), (64,)),
    ("lora_diffusers", "diffusers"): (parts.SDXL, (560, 48, 128), (64,)),
}
Q1, Q2 = "text_model.encoder.layers.0.self_attn.q_proj", "blocks.0.q"


def named(manifest: str, naming: str) -> dict[str, Tensor]:
    told = json.loads(gzip.decompress((MANIFESTS / f"{manifest}.json.gz").read_bytes()))
    assert told["source"]
    return {
        name: torch.empty(shape, device="meta") if shape else torch.tensor(ALPHA)
        for name, shape in told[naming].items()
    }


@pytest.fixture(scope="module")
def all_places() -> dict[str, dict[str, Place]]:
    """Of each model, as families lay them out."""
    return {
        model.name: {
            part.folder: lora.place(
                files.empty(part.build),
                detect.keys_of(part, "folder"),
                *((part.single_keys(part.config, ""),) if part.folder == "unet" else ()),
            )
            for part in model.parts
            if part.folder != "vae"
        }
        for model in (parts.SD15, parts.SDXL)
    }


@pytest.fixture
def places(all_places: dict[str, dict[str, Place]]) -> Iterator[dict[str, dict[str, Place]]]:
    yield all_places
    for of_model in all_places.values():
        for place in of_model.values():
            layers.detach(place.network)


@pytest.mark.parametrize(("manifest", "naming"), FILES)
def test_every_name_finds_its_layer(places: dict[str, dict[str, Place]], manifest: str, naming: str) -> None:
    model, numbers, ranks = FILES[manifest, naming]
    counts = dict(zip(("unet", "text_encoder", "text_encoder_2"), numbers, strict=False))
    found = lora.from_tensors(named(manifest, naming), {}, Path(manifest))
    assert Counter(part for part, _ in found.updates) == counts
    assert found.ranks == ranks
    assert lora.attach(found, places[model.name], "it", 0.5, text_weight=0.25) == ()
    for part, place in places[model.name].items():
        updated = [module for module in place.network.modules() if isinstance(module, layers.LowRank)]
        assert len(updated) == counts[part]
        assert {module.weights["it"] for module in updated} == {0.5 if part == "unet" else 0.25}
        for module in updated:
            ((down, _, scale),) = module.updates.values()
            assert scale == (ALPHA / down.shape[0] if "kohya" in manifest else 1)


def test_a_lora_of_another_model_is_refused(places: dict[str, dict[str, Place]]) -> None:
    found = lora.from_tensors(named("lora_sd15_kohya", "kohya"), {}, Path("one.safetensors"))
    with pytest.raises(WeightsError, match=r"one\.safetensors: the update of .* made for another model"):
        lora.attach(found, places["sdxl"], "it")
    assert all(layers.attached(place.network) == () for place in places["sdxl"].values())


def meta(rank: int, width: int, name: str = Q1, start: str = "base_model.model.") -> dict[str, Tensor]:
    return {
        f"{start}{name}.lora_A.weight": torch.empty(rank, width, device="meta"),
        f"{start}{name}.lora_B.weight": torch.empty(width, rank, device="meta"),
    }


@pytest.mark.parametrize(("width", "part"), [(768, "text_encoder"), (1280, "text_encoder_2")])
def test_the_text_encoders_of_xl_are_told_apart_by_their_width(
    places: dict[str, dict[str, Place]], width: int, part: str
) -> None:
    found = lora.from_tensors(meta(4, width), {}, Path("x"))
    assert lora.attach(found, places["sdxl"], "it", 1.0, text_weight=0.5) == ()
    worn = {name for name, place in places["sdxl"].items() if layers.attached(place.network)}
    assert worn == {part}
    updated = places["sdxl"][part].network.get_submodule(Q2)
    assert isinstance(updated, layers.LowRank)
    assert updated.weights == {"it": 0.5}


@pytest.mark.parametrize(
    ("pattern", "scale"),
    [
        ({"q_proj": 12}, 3.0),
        ({"self_attn.q_proj": 12}, 3.0),
        ({f"^{Q1}": 12}, 3.0),
        ({Q1.replace(".", r"\.") + "$": 12}, 3.0),
        ({"proj": 12}, 2.0),
        ({"^self_attn.q_proj": 12}, 2.0),
        ({}, 2.0),
    ],
)
def test_alpha_in_the_metadata_and_its_exceptions(pattern: dict[str, int], scale: float) -> None:
    for start, prefix in (("base_model.model.", ""), ("text_encoder.", "text_encoder.")):
        said = {f"{prefix}lora_alpha": 8, f"{prefix}alpha_pattern": pattern}
        tensors = meta(4, 768, start=start)
        found = lora.from_tensors(tensors, {"lora_adapter_metadata": json.dumps(said)}, Path("x"))
        assert [update.scale for update in found.updates.values()] == [scale]


def test_a_pattern_that_is_a_program_is_refused() -> None:
    said = {"lora_alpha": 8, "alpha_pattern": {"(a+)+": 4}}
    with pytest.raises(WeightsError, match=r"alpha_pattern that is no layer's name: '\(a\+\)\+'"):
        lora.from_tensors(meta(4, 768), {"lora_adapter_metadata": json.dumps(said)}, Path("x"))
    odd = {"lora_alpha": 8, "use_rslora": True}
    with pytest.raises(WeightsError, match="needs use_rslora"):
        lora.from_tensors(meta(4, 768), {"lora_adapter_metadata": json.dumps(odd)}, Path("x"))


def test_a_file_of_an_early_diffusers_has_no_parts_names() -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora"
    tensors = {
        f"{name}.down.weight": torch.empty(4, 1280, device="meta"),
        f"{name}.up.weight": torch.empty(1280, 4, device="meta"),
    }
    found = lora.from_tensors(tensors, {}, Path("x"))
    assert list(found.updates) == [("", "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0")]
