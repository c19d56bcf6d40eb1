"""unCLIP's prior, and the CLIP of files that it may learn from."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import PriorTransformer
from transformers import CLIPConfig, CLIPModel

from limner.data.loader import LoaderConfig
from limner.errors import ConfigError, WeightsError
from limner.models.contrast import Contrast, ContrastConfig
from limner.models.unclip_prior import PriorConfig
from limner.train.config import LoopConfig, RunConfig
from limner.train.objectives.clip import CLIPObjective, CLIPObjectiveConfig, found, tokens_of
from limner.train.objectives.unclip_prior import UnCLIPPriorObjective, UnCLIPPriorObjectiveConfig
from limner.train.optim import OptimConfig, optimizers
from limner.weights import files

CPU = torch.device("cpu")
OPTIM = OptimConfig(muon_lr=0.0, adam_lr=5e-3, weight_decay=0.0, warmup=1)
SHAPE = ContrastConfig(size=16, width=16, depth=1, text_depth=1, space=16, length=16)
PRIOR = PriorConfig(embedding=16, context=16, length=16, width=32, depth=2, heads=2)


@pytest.fixture(params=["softmax", "sigmoid"])
def of_files(snapshots: Path, request: pytest.FixtureRequest) -> CLIPObjectiveConfig:
    data = LoaderConfig(
        folder=str(snapshots), size=16, bucket_step=8, buckets=False, drop_caption=0.0, workers=0
    )
    return CLIPObjectiveConfig(files=data, model=SHAPE, loss=request.param)


@pytest.fixture
def config(snapshots: Path, tmp_path: Path) -> UnCLIPPriorObjectiveConfig:
    """By the network of a [clip] run over files that has learned nothing."""
    data = LoaderConfig(
        folder=str(snapshots), size=16, bucket_step=8, buckets=False, drop_caption=0.0, workers=0
    )
    run = CLIPObjective(CLIPObjectiveConfig(files=data, model=SHAPE), CPU)
    run.model.initialize(torch.Generator().manual_seed(0))
    files.save(dict(run.model.named_parameters()), tmp_path / "clip.safetensors", run.header())
    return UnCLIPPriorObjectiveConfig(data=data, clip=str(tmp_path / "clip.safetensors"), model=PRIOR)


def test_pictures_on_the_disk_find_their_captions(of_files: CLIPObjectiveConfig) -> None:
    """Six pictures and their captions: from guessing to a loss of 0.1, or of 0.5 where each of the six is
    judged by itself beside a bias; each finds its own."""
    objective = CLIPObjective(of_files, CPU)
    objective.model.initialize(torch.Generator().manual_seed(0))
    optims, batch, told = optimizers(objective.model, replace(OPTIM, adam_lr=2e-3)), objective.batch(6, 0), []
    for _ in range(80):
        (part,) = objective.loss(batch).values()
        part.backward()
        for one in optims:
            one.step()
        objective.model.zero_grad()
        told.append(float(part.detach()))
    assert told[0] > 1
    assert told[-1] < (0.1 if of_files.loss == "softmax" else 0.5)
    assert found(objective.model, batch).all()
    assert objective.draw(objective.model).width > 16


def test_the_sigmoid_loss_is_siglips() -> None:
    """Against algorithm 1 of the paper, pair by pair."""
    network = Contrast(replace(SHAPE, vocabulary=49408, end=49407, bias=1))
    network.initialize(torch.Generator().manual_seed(0))
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    tokens = tokens_of(["a cat", "two dogs", ""], 16)
    network.requires_grad_(False)
    cosines = network(pixels, tokens).double()
    assert float(network.logit_scale.exp()) == pytest.approx(10, rel=1e-3)
    wanted = 0.0
    for i in range(3):
        for j in range(3):
            logit = cosines[i, j] * network.logit_scale.double().exp() - 10.0
            wanted -= float(F.logsigmoid(logit if i == j else -logit)) / 3
    assert float(network.loss(pixels, tokens)) == pytest.approx(wanted, rel=1e-5)


def test_embeddings_are_foretold(config: UnCLIPPriorObjectiveConfig) -> None:
    """Of six pictures as they are noised once: the error falls from 1 to 0.1; and from pure noise the caption
    tells which picture is meant."""
    torch.manual_seed(0)
    objective = UnCLIPPriorObjective(config, CPU)
    optims, batch, told = optimizers(objective.model, OPTIM), objective.batch(6, 0), []
    first = batch._replace(t=torch.full((6,), 999.0))
    for _ in range(80):
        part = objective.loss(first)["embedding"] + objective.loss(batch)["embedding"]
        part.backward()
        for one in optims:
            one.step()
        objective.model.zero_grad()
        told.append(float(part.detach()) / 2)
    assert told[0] > 0.9
    assert told[-1] < 0.1
    fit = F.cosine_similarity(
        objective.foretell(batch)[:, None], objective.prior.unscaled(batch.x0)[None], dim=-1
    )
    assert (fit.argmax(1) == torch.arange(6)).all()


def test_embeddings_are_counted_in_deviations(config: UnCLIPPriorObjectiveConfig) -> None:
    objective = UnCLIPPriorObjective(config, CPU)
    x0 = torch.cat([objective.batch(1, 0, index).x0 for index in range(6)])
    torch.testing.assert_close(x0.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(x0.std(0, correction=0), torch.ones(16), atol=1e-3, rtol=0)
    assert not objective.prior.mean.requires_grad
    assert {"prior.mean", "prior.deviation"} <= objective.published()


def test_texts_of_other_lengths_do_not_touch_each_other(config: UnCLIPPriorObjectiveConfig) -> None:
    """What a text is filled up with is never looked at."""
    objective = UnCLIPPriorObjective(config, CPU)
    pooled, context, lengths = objective.towers.say(["a cat", "two small dogs on a red hill", ""])
    assert lengths == (4, 9, 2)
    batch = objective.batch(3, 0)._replace(pooled=pooled, context=context, lengths=lengths)
    together = objective._predicted(batch.noise, batch)
    for row, length in enumerate(lengths):
        one = objective.prior(
            batch.noise[row : row + 1],
            batch.t[row : row + 1],
            pooled[row : row + 1],
            context[row : row + 1, :length],
        )
        torch.testing.assert_close(together[row : row + 1], one, rtol=1e-4, atol=1e-5)


def test_a_run_resumes_bit_for_bit_and_diffusers_reads_it(
    config: UnCLIPPriorObjectiveConfig, loop: LoopConfig, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    run = RunConfig(name="prior", loop=replace(loop, images=8, batch=2), optim=OPTIM, unclip_prior=config)
    interrupted(run, tmp_path, 2)
    theirs = PriorTransformer.from_pretrained(tmp_path / "whole" / "prior")
    measured = UnCLIPPriorObjective(config, CPU).prior
    torch.testing.assert_close(theirs.clip_mean[0], measured.mean)
    torch.testing.assert_close(theirs.clip_std[0], measured.deviation)


def test_embeddings_come_from_a_published_clip(config: UnCLIPPriorObjectiveConfig, tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    theirs = CLIPModel(
        CLIPConfig(
            text_config={**shape, "eos_token_id": 49407, "bos_token_id": 49406, "vocab_size": 49408},
            vision_config={**shape, "image_size": 16, "patch_size": 8},
            projection_dim=16,
        )
    ).eval()
    theirs.save_pretrained(tmp_path / "published")
    model = replace(PRIOR, length=77)
    objective = UnCLIPPriorObjective(replace(config, clip=str(tmp_path / "published"), model=model), CPU)
    pooled, context, lengths = objective.towers.say(["a cat"])
    tokens = tokens_of(["a cat"], 77)
    with torch.no_grad():
        out = theirs.text_model(tokens)
        torch.testing.assert_close(pooled, theirs.text_projection(out.pooler_output), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            context[:, : lengths[0]], out.last_hidden_state[:, : lengths[0]], rtol=1e-4, atol=1e-4
        )


def test_what_cannot_be_read_is_counted_once(
    config: UnCLIPPriorObjectiveConfig, snapshots: Path, tmp_path: Path
) -> None:
    """One picture without a head, one cut short; both are met when embeddings are measured."""
    folder = tmp_path / "pictures"
    shutil.copytree(snapshots, folder)
    (folder / "none.png").write_bytes(b"none")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:-200])
    objective = UnCLIPPriorObjective(replace(config, data=replace(config.data, folder=str(folder))), CPU)
    assert sorted(one.split(":")[0] for one in objective.broken()) == ["5", "none"]
    assert objective.broken() == []


def test_what_does_not_go_together_is_refused(
    config: UnCLIPPriorObjectiveConfig, of_files: CLIPObjectiveConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="embedding 16, context 16 and length 16"):
        UnCLIPPriorObjective(replace(config, model=replace(PRIOR, embedding=13)), CPU)
    network = files.read(Path(config.clip))
    files.save(network, tmp_path / "drawn.safetensors", {"network": '{"Contrast": {}}'})
    with pytest.raises(WeightsError, match="words of the drawn world"):
        UnCLIPPriorObjective(replace(config, clip=str(tmp_path / "drawn.safetensors")), CPU)
    with pytest.raises(ValueError, match="softmax or sigmoid"):
        replace(of_files, loss="hinge")
    with pytest.raises(ValueError, match="files"):
        replace(of_files, codes="codes.safetensors")
