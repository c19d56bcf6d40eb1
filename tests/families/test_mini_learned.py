"""What the built-in model was taught: words and LoRAs, read from files and put on."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limner.errors import RequestError, WeightsError
from limner.families import mini_files
from limner.families.base import Order, Wishes
from limner.families.mini import Mini
from limner.families.mini_learned import Wardrobe, tokens_of, with_words, without_networks
from limner.nn.lora import Update
from limner.text.lexicon import load_lexicon
from limner.text.words import picture_order
from limner.util.rng import NoiseSource
from limner.weights import embeddings, files, lora
from limner.weights.embeddings import Embedding
from limner.weights.keymap import Rule

CPU = torch.device("cpu")
ORDER = Order(
    prompt="a sks dog",
    negative_prompt="",
    steps=2,
    guidance=2.0,
    sampler="euler",
    size=(64, 64),
    style=None,
)
LAYERS = ("blocks.0.qkv", "text.blocks.0.qkv")


def rows(count: int = 1, width: int = 32) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A folder with a LoRA that brings the word "sks", and a word of its own, "<mine>"."""
    base = mini_files.load(tiny, CPU).base
    updates = {
        layer: Update(
            0.3 * torch.ones(2, base.get_submodule(layer).weight.shape[1]),
            0.3 * torch.ones(base.get_submodule(layer).weight.shape[0], 2),
        )
        for layer in LAYERS
    }
    keys = {"transformer": tuple(Rule(f"{layer}.weight", f"{layer}.weight") for layer in LAYERS)}
    words = {"sks": {"text_encoder": rows(2)}}
    lora.write(tmp_path / "sks-dog.safetensors", {"transformer": updates}, keys, words=words)
    embeddings.write(tmp_path / "mine.safetensors", Embedding("<mine>", {"text_encoder": rows()}))
    return tmp_path


@pytest.fixture
def model(tiny: Path, folder: Path) -> Mini:
    return mini_files.load(tiny, CPU, Wishes(loras=folder, embeddings=folder))


def drawn(model: Mini, prompt: str) -> torch.Tensor:
    noise, x = NoiseSource([1]), None
    for stage in model.plan(replace(ORDER, prompt=prompt)).stages:
        *_, last = stage.run(x, noise)
        x = last.x
    assert x is not None
    return x


def test_a_learned_word_is_read_wherever_it_stands() -> None:
    lexicon = load_lexicon().with_words({"sks": tokens_of("sks", 2), "my dog": tokens_of("my dog", 1)})
    said = ("<learned sks>", "<learned sks 2>")
    assert lexicon.read("A SKS dog").words == ("a", *said, "dog")
    assert lexicon.read("an orange sks on grass").words == ("a", "orange", *said, "on", "grass")
    assert lexicon.read("my-dog above a cat").words == ("<learned my dog>", "above", "a", "cat")
    assert load_lexicon().read("a sks dog").unknown[0].word == "sks"
    assert lexicon.read("a skz dog").unknown[0].nearest is not None


def test_a_learned_word_stays_with_its_noun_when_a_relation_is_turned() -> None:
    said = ("a", "<learned sks>", "dog", "right of", "a", "cat")
    assert picture_order(said) == ("a", "cat", "left of", "a", "<learned sks>", "dog")


def test_networks_are_taken_out_and_nothing_else_changes() -> None:
    bare, prompt = without_networks("a (red:1.2) cat <lora:ink:0.5>")
    assert bare == "a (red:1.2) cat "
    assert prompt.loras()[0][0].name == "ink"
    assert without_networks("a <mine> AND a cat") == ("a <mine> AND a cat", prompt.__class__(prompt.parts))


def test_a_word_of_a_folder_is_known_and_changes_the_picture(model: Mini, tiny: Path) -> None:
    assert model.read("a <mine> on grass").words == ("a", "<learned mine>", "on", "grass")
    assert model.notices == ("sks-dog.safetensors was passed over: it holds no learned word",)
    plain = mini_files.load(tiny, CPU)
    assert not torch.equal(drawn(model, "a <mine> cat"), drawn(plain, "a cat"))
    assert torch.equal(drawn(model, "a cat"), drawn(plain, "a cat"))


def test_a_lora_brings_its_word_and_goes_again(model: Mini, tiny: Path) -> None:
    before = drawn(model, "a dog")
    with_it = drawn(model, "a sks dog <lora:sks-dog:1>")
    assert not torch.equal(with_it, drawn(model, "a dog <lora:sks-dog:1>"))
    assert not torch.equal(with_it, drawn(model, "a sks dog <lora:sks-dog:0.5>"))
    assert torch.equal(drawn(model, "a dog"), before)
    assert 'says "sks"' in model.plan(ORDER).warnings[0]
    assert torch.equal(drawn(model, "a dog <lora:sks-dog:0>"), before)
    assert not torch.equal(drawn(model, "a dog <lora:sks-dog:1:0>"), before)  # the text encoder's half alone


def test_the_loaded_model_is_not_touched(model: Mini) -> None:
    before = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    model.plan(replace(ORDER, prompt="a sks dog <lora:sks-dog:1>"))
    after = model.base.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_does_not_fit_is_refused(model: Mini, folder: Path) -> None:
    with pytest.raises(RequestError, match=r'there is no LoRA "skz-dog".*did you mean "sks-dog"'):
        model.plan(replace(ORDER, prompt="a dog <lora:skz-dog>"))
    files.save(
        {f"transformer.nowhere.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"},
        folder / "other.safetensors",
        {},
    )
    with pytest.raises(WeightsError, match="fits no part of this model"):
        model.plan(replace(ORDER, prompt="a dog <lora:other>"))
    with pytest.raises(WeightsError, match="rows of 8 numbers, and this model needs 32"):
        with_words(model, {"tok": rows(width=8)})
    with pytest.raises(WeightsError, match="cannot be typed"):
        with_words(model, {"<>": rows()})
    with pytest.raises(WeightsError, match=r'"<SKS>" is there twice'):
        with_words(model, {"sks": rows(), "<SKS>": rows()})
    shutil.copy(folder / "sks-dog.safetensors", folder / "again.safetensors")
    with pytest.raises(WeightsError, match='brings the word "sks", as another of these LoRAs does'):
        model.plan(replace(ORDER, prompt="a sks <lora:sks-dog> <lora:again>"))
    with pytest.raises(RequestError, match="no folder of LoRAs was given"):
        replace(model, wear=Wardrobe(None).wear).plan(replace(ORDER, prompt="a dog <lora:x>"))


def test_a_word_that_a_lora_brings_stands_in_for_the_one_of_a_file(
    model: Mini, tiny: Path, folder: Path
) -> None:
    prompt = "a sks dog <lora:sks-dog:1>"
    wanted = drawn(model, prompt)
    embeddings.write(folder / "sks.safetensors", Embedding("SKS", {"text_encoder": 3 * rows(1)}))
    embeddings.write(folder / "bare.safetensors", Embedding("<>", {"text_encoder": rows()}))
    embeddings.write(folder / "twin.safetensors", Embedding("<Mine>", {"text_encoder": rows()}))
    both = mini_files.load(tiny, CPU, Wishes(loras=folder, embeddings=folder))
    assert set(both.learned) == {"sks", "mine"}
    assert "twin.safetensors was passed over: another file has the word '<Mine>'" in both.notices
    assert "bare.safetensors was passed over: nobody can type its word '<>'" in both.notices
    assert torch.equal(drawn(both, prompt), wanted)
    plan = both.plan(replace(ORDER, prompt=prompt))
    assert sum("as its LoRA has it" in told for told in plan.warnings) == 1
    assert not torch.equal(drawn(both, "a sks dog"), drawn(model, "a sks dog"))
