"""DALL-E as a family: folders, orders, pictures that do not depend on their batch, ranking."""

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from limner.cli import app
from limner.errors import EngineError, RequestError, WeightsError
from limner.families import FAMILIES, dalle_files
from limner.families.base import Order
from limner.families.dalle import AutoregressiveStage, DallE
from limner.models.contrast import Contrast, ContrastConfig
from limner.models.token_transformer import TokenTransformer, TokenTransformerConfig, continued
from limner.models.vqvae import VQVAE, VQVAEConfig, parted
from limner.nn.choice import Sampling
from limner.pipeline.load import load
from limner.pipeline.replay import read_request
from limner.pipeline.request import Request
from limner.pipeline.run import Pipeline
from limner.text.tokenizers import default_vocabulary
from limner.util.rng import NoiseSource
from limner.weights.files import save
from limner.weights.header import fingerprint

CPU = torch.device("cpu")
OBJECTS = ("cat", "dog", "apple")
ORDER = Order(
    prompt="a cat on a blue background",
    negative_prompt="",
    steps=6,
    guidance=3.0,
    sampler="euler",
    size=(16, 16),
    style=None,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, none of them silent."""
    at = tmp_path_factory.mktemp("dalle")
    vocabulary = default_vocabulary(OBJECTS)
    words = {"vocabulary": vocabulary, "objects": OBJECTS, "styles": ["flat"], "spells": False}
    generator = torch.Generator().manual_seed(0)

    def write(name: str, network: nn.Module, config: object, more: dict[str, object]) -> None:
        network.initialize(generator)  # type: ignore[operator]
        tensors = {
            key: (tensor + 0.2 * torch.randn(tensor.shape, generator=generator)).to(torch.bfloat16)
            for key, tensor in network.state_dict().items()
        }
        header = {"network": {type(network).__name__: asdict(config)}, **more}  # type: ignore[call-overload]
        save(tensors, at / f"{name}.safetensors", {key: json.dumps(value) for key, value in header.items()})

    codes = VQVAEConfig(size=16, channels=8, depth=1, coarse_codes=9, fine_codes=12, code_width=4)
    write("vqvae", VQVAE(codes), codes, {})
    prior = TokenTransformerConfig(
        vocabulary=len(vocabulary),
        text_length=10,
        coarse_codes=9,
        fine_codes=12,
        side=2,
        width=16,
        depth=2,
        heads=2,
    )
    told = {"codes": fingerprint([at / "vqvae.safetensors"]), **words}
    write("prior", TokenTransformer(prior), prior, told)
    judge = ContrastConfig(
        vocabulary=len(vocabulary), end=2, length=12, size=16, width=16, depth=1, text_depth=1, space=8
    )
    write("clip", Contrast(judge), judge, words)
    return at


@pytest.fixture(scope="module")
def model(folder: Path) -> DallE:
    return dalle_files.load(folder, CPU)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return load(folder, device="cpu")


def test_a_folder_is_known_by_its_prior(pipe: Pipeline, folder: Path) -> None:
    assert isinstance(pipe.model, DallE)
    assert FAMILIES["dalle"].marks == ("prior.safetensors",)
    files = [folder / f"{name}.safetensors" for name in ("vqvae", "prior", "clip")]
    assert pipe.model.fingerprint == fingerprint(files)


def test_what_is_missing_or_of_another_run_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "prior.safetensors", tmp_path)
    with pytest.raises(WeightsError, match=r"has no vqvae.safetensors. A DALL-E's folder holds"):
        load(tmp_path, device="cpu")
    shutil.copy(folder / "clip.safetensors", tmp_path / "vqvae.safetensors")
    with pytest.raises(WeightsError, match="a VQVAE is needed"):
        load(tmp_path, device="cpu")


def test_a_picture_does_not_depend_on_its_batch(pipe: Pipeline) -> None:
    for rerank in (1, 3):
        many = pipe.draw(Request(prompt="a cat", seed=11, count=3, rerank=rerank))
        alone = pipe.draw(Request(prompt="a cat", seed=13, count=1, rerank=rerank))
        assert alone.images[0].tobytes() == many.images[2].tobytes()
        assert len({image.tobytes() for image in many.images}) == 3


def test_every_row_of_codes_is_a_step_and_shows(pipe: Pipeline) -> None:
    seen = list(pipe.generate(Request(prompt="a cat", seed=1, count=2, rerank=2)))
    assert [step.stage for step in seen] == ["codes"] * 6 + ["decoder", "ranking"]
    assert [step.preview.shape for step in seen] == [(2, 3, 16, 16)] * 8
    for row, step in enumerate(seen[:2]):  # coarse rows: what is not drawn yet is grey
        drawn = step.preview != 0
        assert drawn[:, :, : 8 * (row + 1)].float().mean() > 0.9
        assert not drawn[:, :, 8 * (row + 1) :].any()
    last = seen[5].preview
    torch.testing.assert_close(seen[6].preview, last)  # all codes are there: the picture


@pytest.mark.parametrize(("alone", "calls"), [(True, 3), (False, 1)])
def test_every_candidate_of_every_picture_has_numbers_of_its_own(alone: bool, calls: int) -> None:
    told: list[Tensor] = []

    def rows(u: Tensor) -> Iterator[Tensor]:
        told.append(u)
        yield torch.ones(len(u), 2)
        yield torch.ones(len(u), 4)

    stage = AutoregressiveStage(
        rows=rows, length=4, steps=2, candidates=2, alone=alone, preview=lambda codes: codes
    )
    steps = list(stage.run(None, NoiseSource([5, 6, 7])))
    assert [step.x.shape for step in steps] == [(3, 2, 1, 4)] * 2
    assert steps[0].x[0, 0, 0].tolist() == [1, 1, -1, -1]
    assert len(told) == calls
    u = torch.cat(told)
    assert len(u.unique()) == u.numel() == 24
    assert 0 <= u.min() <= u.max() <= 1
    told.clear()
    list(stage.run(None, NoiseSource([6])))
    assert torch.equal(torch.cat(told), u[2:4])


def test_codes_are_those_of_the_formula(model: DallE) -> None:
    """The stage, against the network asked by hand with the same numbers."""
    order = replace(ORDER, negative_prompt="a dog", guidance=2.0, temperature=0.8, top_k=5, top_p=0.9)
    stage = model.plan(order).stages[0]
    noise = NoiseSource([3])
    *_, last = stage.run(None, noise)
    text = [
        torch.tensor([model.tokenizer.encode(words, 10)[0]])
        for words in (("a", "cat", "on", "a", "blue", "background"), ("a", "dog"))
    ]
    u = torch.special.ndtr(noise.step(0, (20,), 8).double()).float()
    sampling = Sampling(temperature=0.8, top_k=5, top_p=0.9)
    *_, codes = continued(model.prior, *text, u, guidance=2.0, sampling=sampling, cached=False)
    assert last.x[0, 0, 0].tolist() == codes[0].tolist()
    decoded = next(iter(model.decoder().run(last.x, noise))).x
    torch.testing.assert_close(decoded, model.vqvae.decode(*parted(codes, 2)))


def test_the_candidate_that_the_judge_likes_best_is_kept(model: DallE) -> None:
    order = replace(ORDER, rerank=5)
    codes, decoder, ranking = model.plan(order).stages
    noise = NoiseSource([4, 9])
    *_, drawn = codes.run(None, noise)
    *_, pixels = decoder.run(drawn.x, noise)
    *_, kept = ranking.run(pixels.x, noise)
    assert pixels.x.shape == (2, 15, 16, 16)
    assert model.judge is not None
    words = ("a", "cat", "on", "a", "blue", "background")
    text = torch.tensor([model.judge.tokenizer.encode(words, 12)[0]])
    for row in range(2):
        candidates = pixels.x[row].unflatten(0, (5, 3))
        fit = model.judge.network(candidates.clamp(-1, 1), text)[:, 0]
        assert fit.max() > fit.min()
        assert torch.equal(kept.x[row], candidates[fit.argmax()])


def test_the_first_candidate_is_the_picture_without_ranking(model: DallE) -> None:
    plain, ranked = (model.plan(replace(ORDER, rerank=count)).stages[0] for count in (1, 4))
    *_, alone = plain.run(None, NoiseSource([8]))
    *_, many = ranked.run(None, NoiseSource([8]))
    assert torch.equal(alone.x[:, 0], many.x[:, 0])
    assert len(many.x[0, :, 0].unique(dim=0)) == 4


def test_ranking_needs_a_judge(folder: Path, tmp_path: Path) -> None:
    for name in ("vqvae", "prior"):
        shutil.copy(folder / f"{name}.safetensors", tmp_path)
    lone = load(tmp_path, device="cpu")
    assert lone.draw(Request(prompt="a cat", seed=1, count=1)).images[0].size == (16, 16)
    with pytest.raises(RequestError, match=r"needs clip.safetensors, of a \[clip\] run"):
        lone.draw(Request(prompt="a cat", seed=1, count=1, rerank=2))


def test_words_and_wishes_are_accounted_for(pipe: Pipeline) -> None:
    result = pipe.draw(
        Request(
            prompt="a kitten and a zebra, glossy",
            seed=1,
            count=1,
            steps=9,
            size=(64, 64),
            negative_prompt="a dog, a dog, a dog, a dog, a dog, a dog",
        )
    )
    assert result.images[0].size == (64, 64)
    assert result.notices == (
        "drawn at 16x16 and resized to 64x64",
        "steps was left out: this model draws token by token, 6 rows",
        'the prompt says "kitten", drawn as cat',
    )
    told = " ".join(result.warnings)
    for said in ("zebra", "glossy", "the negative prompt is too long: its last"):
        assert said in told


def test_a_sampler_that_was_asked_for_is_answered(pipe: Pipeline) -> None:
    for sampler in ("euler", "heun"):  # the one that files of it name, too
        told = pipe.draw(Request(prompt="a cat", seed=1, count=1, sampler=sampler)).notices
        assert told == ("sampler was left out: this model draws token by token",)
    assert pipe.draw(Request(prompt="a cat", seed=1, count=1)).notices == ()


def test_values_that_are_not_finite_are_told(model: DallE) -> None:
    def broken(network: nn.Module) -> nn.Module:
        copy = deepcopy(network)
        for parameter in copy.parameters():
            parameter.fill_(torch.nan)
        return copy

    assert model.judge is not None
    judge = replace(model.judge, network=broken(model.judge.network))  # type: ignore[arg-type]
    for part, change, rerank in (
        ("the logits of code 1 hold values that are not finite", {"prior": broken(model.prior)}, 1),
        (
            "after the decoder, 1 of 1 pictures hold values that are not finite",
            {"vqvae": broken(model.vqvae)},
            1,
        ),
        (r"the ranking gives values that are not finite.*clip\.safetensors", {"judge": judge}, 2),
    ):
        pipe = Pipeline(replace(model, **change), "broken")  # type: ignore[arg-type]
        with pytest.raises(EngineError, match=part):
            pipe.draw(Request(prompt="a cat", seed=1, count=1, rerank=rerank))


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"prompt": "hello"}, "names nothing that this model can draw"),
        ({"size": (16, 32)}, "draws squares"),
        ({"style": "glossy"}, "no style 'glossy'"),
        ({"tiling": True}, "this model has no tiling"),
    ],
)
def test_what_it_cannot_do_is_refused(model: DallE, wish: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model.plan(replace(ORDER, **wish))  # type: ignore[arg-type]


@pytest.mark.parametrize("wish", [{"rerank": 2}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}])
def test_models_that_draw_no_tokens_refuse_wishes_about_them(tiny: Path, wish: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wish))):
        load(tiny, device="cpu").draw(Request(prompt="a cat", count=1, steps=1, **wish))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wish",
    [{"rerank": 0}, {"rerank": 65}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}],
)
def test_wishes_about_tokens_have_limits(wish: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wish))):
        Request(prompt="a cat", **wish)  # type: ignore[arg-type]


def test_the_command_line_draws_and_ranks_and_replays(folder: Path, tmp_path: Path) -> None:
    command = ["imagine", "a cat", "--model", str(folder), "--out", str(tmp_path), "--seed", "3", "-n", "2"]
    wishes = ["--rerank", "4", "--temperature", "0.9", "--top-k", "8", "--top-p", "0.9"]
    done = CliRunner().invoke(app, [*command, *wishes], catch_exceptions=False)
    assert done.exit_code == 0
    path = Path(done.stdout.splitlines()[0])
    request = read_request(path)
    told = (request.rerank, request.temperature, request.top_k, request.top_p)
    assert told == (4, 0.9, 8, 0.9)
    again = CliRunner().invoke(app, ["replay", str(path)], catch_exceptions=False)
    assert "same pixels" in again.stdout


def test_its_words_are_listed(folder: Path) -> None:
    done = CliRunner().invoke(app, ["words", "--model", str(folder), "--category", "animals"])
    rows = [line.split()[0] for line in done.stdout.splitlines()[1:] if not line.startswith(" ")]
    assert rows == ["cat", "dog"]
