"""The built-in model as training sees it."""

import shutil
from pathlib import Path

import pytest
import torch

from limner.errors import ConfigError, DataError
from limner.families import mini_files
from limner.nn import lora
from limner.train import trainable
from limner.train.learners import load
from limner.train.learners.mini import MiniLearner
from limner.train.trainable import LoRAConfig
from limner.weights.header import read_metadata

CPU = torch.device("cpu")


@pytest.fixture
def learner(tiny: Path) -> MiniLearner:
    loaded = load(str(tiny), CPU)
    assert isinstance(loaded, MiniLearner)
    return loaded


def test_it_asks_the_network_as_the_family_does(learner: MiniLearner, tiny: Path) -> None:
    model = mini_files.load(tiny, CPU)
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 0.9])
    text = model.encode(model.read("a red cat"), model.read(""))
    wanted = model.network(text)(torch.cat([x, x]), torch.cat([t, t]))
    said = learner.say(["a red cat", "a red cat", "", ""])
    assert torch.allclose(learner.predict(torch.cat([x, x]), torch.cat([t, t]), said), wanted, atol=1e-5)


def test_pixels_are_its_latents_at_the_size_of_the_network(learner: MiniLearner) -> None:
    pixels = torch.rand(2, 3, 40, 40) * 2 - 1
    assert learner.latents(pixels).shape == (2, 3, 16, 16)
    assert torch.equal(learner.latents(pixels[..., :16, :16]), pixels[..., :16, :16])
    with pytest.raises(DataError, match="draws squares, and these pictures are 30x40"):
        learner.latents(pixels[..., :30])


def test_a_word_begins_as_what_it_is_said_to_be(learner: MiniLearner) -> None:
    table = learner.base.text.token.weight
    at = learner.model.tokenizer.vocabulary.index
    dog, red = table[at("dog")], table[at("red")]
    assert torch.equal(learner.spelled("a dog", 1)["text_encoder"][0], dog)
    assert torch.allclose(learner.spelled("a red dog", 1)["text_encoder"][0], (dog + red) / 2)
    assert torch.equal(learner.spelled("a red dog", 3)["text_encoder"], torch.stack([red, dog, red]))
    assert learner.spelled("", 2)["text_encoder"].std(0).min() > 0


def test_words_that_it_knows_or_nobody_can_type_are_refused(learner: MiniLearner) -> None:
    rows = learner.spelled("dog", 1)
    for word in ("cat", "kittens", "blue", "the", "snow"):
        with pytest.raises(ConfigError, match=f'"{word}" is already a word of the built-in model'):
            learner.learn(word, rows)
    with pytest.raises(ConfigError, match="cannot be typed"):
        learner.learn("<!>", rows)
    with pytest.raises(ConfigError, match="are 32 numbers each"):
        learner.learn("sks", {"text_encoder": torch.zeros(1, 8)})


def test_a_subject_is_learned_and_the_rest_of_the_network_stays(learner: MiniLearner) -> None:
    """Forty steps on one picture: its error falls by more than a third; only the LoRA and the word move."""
    torch.manual_seed(0)
    trainable.prepare(learner, LoRAConfig(rank=8, targets="linear", token="sks", start="dog"))
    trained = {name: p for name, p in learner.networks.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"lora", "words"}
    frozen = {n: p.clone() for n, p in learner.networks.named_parameters() if not p.requires_grad}
    row = trained["words.text_encoder"].detach().clone()
    picture = torch.full((4, 3, 16, 16), 0.7)
    picture[:, 1:, :, 8:] = -0.7
    optimiser = torch.optim.AdamW(trained.values(), lr=2e-2)
    errors = []
    for _ in range(40):
        t = torch.rand(4)
        x = (1 - t)[:, None, None, None] * picture + t[:, None, None, None] * torch.randn(4, 3, 16, 16)
        error = (learner.predict(x, t, learner.say(["a sks dog"] * 4)) - picture).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(float(error.detach()))
    assert sum(errors[-5:]) < sum(errors[:5]) * 0.65
    assert not torch.allclose(trained["words.text_encoder"], row)
    now = dict(learner.networks.named_parameters())
    assert all(torch.equal(frozen[name], now[name]) for name in frozen)
    with torch.no_grad():
        pictures = learner.sample(["a sks dog", "a dog"], [1, 1], steps=2, guidance=1.0)
    assert pictures.shape == (2, 3, 64, 64)
    assert not torch.equal(pictures[0], pictures[1])


def test_the_whole_model_is_written_as_a_folder_that_draws(learner: MiniLearner, tmp_path: Path) -> None:
    learner.networks.requires_grad_(True)
    averaged = {"transformer.patch_out.bias": torch.full((48,), 0.5)}
    (folder,) = learner.write(tmp_path / "model", averaged)
    model = mini_files.load(folder, CPU)
    assert torch.equal(model.base.patch_out.bias, averaged["transformer.patch_out.bias"])
    assert read_metadata(folder / "base.safetensors") == read_metadata(learner.folder / "base.safetensors")
    learner.write(tmp_path / "model")  # in the place of the old one
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_fresh_weights_are_others(tiny: Path, learner: MiniLearner) -> None:
    fresh = load(str(tiny), CPU, True)
    assert not torch.equal(fresh.networks["transformer"].time_in.weight, learner.base.time_in.weight)


def test_models_of_few_steps_and_control_are_refused(
    learner: MiniLearner, tiny: Path, tmp_path: Path
) -> None:
    from limner.weights import files

    copied = shutil.copytree(tiny, tmp_path / "few")
    path = copied / "base.safetensors"
    few = '{"steps": 4, "guidance": 2.0, "low": 1.0, "high": 3.0}'
    said = read_metadata(path)
    shape = said["network"].replace('"guidance_channels": 0', '"guidance_channels": 8')
    tensors = files.read(path) | {"guidance_in.weight": torch.zeros(32, 8)}
    files.save(tensors, path, said | {"few_step": few, "network": shape})
    with pytest.raises(ConfigError, match="distilled to few steps"):
        load(str(copied), CPU)
    with pytest.raises(ConfigError, match="no control branch to train"):
        learner.branch()
    assert lora.attached(learner.base) == ()
