"""The objective's gradients equal those of the arithmetic in diffusers' examples (train_text_to_image,
train_dreambooth, train_dreambooth_sd3), written plainly over diffusers' own networks of equal weights."""

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limner.data.loader import LoaderConfig
from limner.diffusion import losses
from limner.errors import ConfigError
from limner.families.sd import StableDiffusion
from limner.models.kl_vae import KLVAEConfig
from limner.pipeline.load import load
from limner.train.config import LoopConfig, RunConfig
from limner.train.learners.base import drawn
from limner.train.loop import fit
from limner.train.objectives.diffusion import Batch, Diffusion, DiffusionConfig, PriorConfig, check
from limner.train.objectives.kl_vae import KLVAEObjectiveConfig
from limner.train.optim import OptimConfig
from limner.train.trainable import ControlConfig, LoRAConfig, Trainable, WordsConfig
from limner.weights.keymap import to_theirs
from limner.weights.parts import vae_part
from limner.weights.settings import mmdit_settings, unet_settings

_spec = importlib.util.spec_from_file_location("small_models", Path(__file__).with_name("small_models.py"))
assert _spec is not None
assert _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)
FLUX, SD1, SD3, XL, publish = small.FLUX, small.SD1, small.SD3, small.XL, small.publish

CPU = torch.device("cpu")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (250, 250, 250)}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of each colour, with its name as caption and one to follow beside it."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        Image.new("RGB", (24, 24), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
        Image.new("RGB", (24, 24), colour[::-1]).save(folder / f"{name}.cond.png")
    return folder


@pytest.fixture(scope="session")
def data(pictures: Path) -> LoaderConfig:
    return LoaderConfig(
        folder=str(pictures), size=16, buckets=False, bucket_step=8, drop_caption=0.0, workers=0
    )


@pytest.fixture(scope="session")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(SD1, tmp_path_factory.mktemp("models") / "sd1")


def made(model: Path, data: LoaderConfig, trained: Trainable = None, **settings: Any) -> Diffusion:
    torch.manual_seed(0)
    return Diffusion(DiffusionConfig(model=str(model), data=data, **settings), CPU, trained)


def backward(objective: Diffusion, batch: Batch) -> dict[str, Tensor]:
    objective.model.zero_grad()
    torch.stack(list(objective.loss(batch).values())).sum().backward()
    named = objective.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def agree(objective: Diffusion, ours: dict[str, Tensor], network: Any, part: str) -> None:
    """Gradients under their names, each within 1e-5 of the largest of its kind."""
    mine = {n.removeprefix(f"{part}."): g for n, g in ours.items() if n.startswith(f"{part}.")}
    theirs = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    written = to_theirs(objective.learner.keys(part), mine)
    assert written.keys() == theirs.keys()
    whole = torch.cat([gradient.flatten() for gradient in theirs.values()]).norm()
    apart = torch.cat([(written[name] - theirs[name]).flatten() for name in theirs]).norm()
    assert apart <= 1e-5 * whole
    for name, gradient in theirs.items():
        assert (written[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-7 * whole, name


def their_unet(objective: Diffusion) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    network = objective.learner.networks["unet"]
    settings = {k: v for k, v in unet_settings(network.config).items() if not k.startswith("_")}
    theirs = UNet2DConditionModel(**settings)
    theirs.load_state_dict(to_theirs(objective.learner.keys("unet"), network.state_dict()), strict=True)
    return theirs


def their_table(**more: Any) -> Any:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **more)


def their_loss(
    unet: Any, table: Any, batch: Batch, *, gamma: float | None = None, prior: float | None = None
) -> Tensor:
    """The middle of train_text_to_image.py and train_dreambooth.py, 0.30 and later."""
    assert batch.said is not None
    latents, noise, context = batch.x0, batch.noise, batch.said.context
    if prior is not None:
        assert batch.prior is not None
        assert batch.prior.said is not None
        latents = torch.cat([latents, batch.prior.x0])
        noise = torch.cat([noise, batch.prior.noise])
        context = torch.cat([context, batch.prior.said.context])
    t = torch.cat([batch.t, batch.prior.t]) if prior is not None and batch.prior else batch.t
    timesteps = t.long()
    noisy = table.add_noise(latents, noise, timesteps)
    velocity = table.config.prediction_type == "v_prediction"
    target = table.get_velocity(latents, noise, timesteps) if velocity else noise
    added = None
    if batch.said.sizes is not None:
        added = {"text_embeds": batch.said.pooled, "time_ids": batch.said.sizes}
    answer = unet(noisy, timesteps, context, added_cond_kwargs=added, return_dict=False)[0]
    if prior is not None:
        answer, answer_prior = answer.chunk(2)
        target, target_prior = target.chunk(2)
        return F.mse_loss(answer, target) + prior * F.mse_loss(answer_prior, target_prior)
    if gamma is None:
        return F.mse_loss(answer, target)
    snr = table.alphas_cumprod[timesteps] / (1 - table.alphas_cumprod[timesteps])
    weights = torch.stack([snr, gamma * torch.ones_like(timesteps)], 1).min(1)[0]
    weights = weights / (snr + 1) if velocity else weights / snr
    loss = F.mse_loss(answer, target, reduction="none").mean(dim=(1, 2, 3)) * weights
    return loss.mean()


@pytest.mark.parity
@pytest.mark.parametrize(
    ("prediction", "weighting"), [("eps", "uniform"), ("eps", "min_snr"), ("v", "min_snr")]
)
def test_gradients_of_stable_diffusion(
    sd1: Path, data: LoaderConfig, prediction: str, weighting: str
) -> None:
    objective = made(sd1, data, weighting=weighting, fresh=True, prediction=prediction)
    batch = objective.batch(3, seed=5)
    ours = backward(objective, batch)
    theirs = their_unet(objective)
    table = their_table(prediction_type="epsilon" if prediction == "eps" else "v_prediction")
    their_loss(theirs, table, batch, gamma=5.0 if weighting == "min_snr" else None).backward()
    agree(objective, ours, theirs, "unet")


@pytest.mark.parity
def test_gradients_with_prior_preservation(sd1: Path, data: LoaderConfig) -> None:
    objective = made(sd1, data, prior=PriorConfig(data=data, weight=0.7), noise_offset=0.1)
    batch = objective.batch(2, seed=3)
    assert batch.prior is not None
    assert not torch.equal(batch.noise, batch.prior.noise)
    ours = backward(objective, batch)
    theirs = their_unet(objective)
    their_loss(theirs, their_table(), batch, prior=0.7).backward()
    agree(objective, ours, theirs, "unet")


@pytest.mark.parity
def test_gradients_of_xl_with_sizes_and_crops(tmp_path: Path, pictures: Path, data: LoaderConfig) -> None:
    objective = made(publish(XL, tmp_path / "xl"), replace(data, crop="random"))
    batch = objective.batch(2, seed=1)
    assert batch.said is not None
    assert batch.said.sizes is not None
    assert batch.said.sizes.tolist() == [[24, 24, *crop, 16, 16] for crop in batch.crops]
    ours = backward(objective, batch)
    theirs = their_unet(objective)
    their_loss(theirs, their_table(), batch).backward()
    agree(objective, ours, theirs, "unet")


@pytest.mark.parity
@pytest.mark.parametrize("weighting", ["logit_normal", "cosmap"])
def test_gradients_of_sd3(tmp_path: Path, data: LoaderConfig, weighting: str) -> None:
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    objective = made(publish(SD3, tmp_path / "sd3"), data, weighting=weighting)
    network = objective.learner.networks["transformer"]
    settings = {k: v for k, v in mmdit_settings(network.config).items() if not k.startswith("_")}
    theirs = SD3Transformer2DModel(**settings)
    theirs.load_state_dict(to_theirs(objective.learner.keys("transformer"), network.state_dict()))
    batch = objective.batch(3, seed=2)
    ours = backward(objective, batch)
    assert batch.said is not None
    sigmas = batch.t.reshape(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * batch.x0 + sigmas * batch.noise
    answer = theirs(
        hidden_states=noisy,
        timestep=batch.t * 1000,
        encoder_hidden_states=batch.said.context,
        pooled_projections=batch.said.pooled,
        return_dict=False,
    )[0]
    weights = compute_loss_weighting_for_sd3(weighting_scheme=weighting, sigmas=sigmas)
    target = batch.noise - batch.x0
    loss = (weights.float() * (answer.float() - target.float()) ** 2).reshape(len(target), -1)
    loss.mean(1).mean().backward()
    agree(objective, ours, theirs, "transformer")


def test_flux_is_told_little_guidance_and_learns_the_velocity(tmp_path: Path, data: LoaderConfig) -> None:
    objective = made(publish(FLUX, tmp_path / "flux"), data, weighting="logit_normal", shift=3.0)
    batch = objective.batch(2, seed=2)
    assert batch.said is not None
    t = batch.t.reshape(-1, 1, 1, 1)
    network = objective.learner.networks["transformer"]
    answer = network(
        (1 - t) * batch.x0 + t * batch.noise, batch.t, batch.said.context, batch.said.pooled,
        guidance=torch.ones(2),
    )  # fmt: skip
    expected = (answer - (batch.noise - batch.x0)).square().mean()
    torch.testing.assert_close(objective.loss(batch)["flow"], expected)
    assert objective.learner.shift((512, 512)) > 1


# -- learning ------------------------------------------------------------------------------------------------


def run(model: Path, data: LoaderConfig, steps: int, rate: float, **tables: Any) -> RunConfig:
    loop = LoopConfig(
        images=8 * steps, batch=8, device="cpu", precision="float32", checkpoint_seconds=1e9,
        sheet_seconds=1e9,
    )  # fmt: skip
    optim = OptimConfig(muon_lr=0.0, adam_lr=rate, warmup=16, weight_decay=0.0)
    settings = DiffusionConfig(model=str(model), data=data, sheet_steps=2, prompts=("red",))
    return RunConfig(name="small", loop=loop, optim=optim, diffusion=settings, **tables)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_lora_learns_four_pictures_and_is_written(sd1: Path, data: LoaderConfig, tmp_path: Path) -> None:
    lora = LoRAConfig(rank=8, targets="all")
    steps = list(fit(run(sd1, data, 20, 2e-2, lora=lora), tmp_path / "run"))
    values = [step.losses["eps"] for step in steps]
    assert sum(values[:4]) / 4 > 0.9
    assert sum(values[-6:]) / 6 < 0.65
    assert steps[-1].figures["adapter_change"] > 0.1
    written = {path.name for path in (tmp_path / "run").glob("*.safetensors")}
    assert written == {"pytorch_lora_weights.safetensors", "small.safetensors"}


@pytest.mark.parametrize(
    ("trained", "rate", "least"),
    [
        (None, 3e-3, 0.45),
        (ControlConfig(), 3e-3, 0.8),
        (WordsConfig(token="<mine>", start="dog", vectors=4), 0.1, 0.98),
    ],
    ids=["all", "control", "word"],
)
def test_one_batch_is_learned(
    sd1: Path, data: LoaderConfig, trained: Trainable, rate: float, least: float
) -> None:
    """To a share of the loss at the start: a word has four vectors to do it with."""
    objective = made(sd1, data, trained)
    batch = objective.batch(4, seed=1)
    assert all("<mine>" in said for said in batch.captions) or not isinstance(trained, WordsConfig)
    wanted = [p for p in objective.model.parameters() if p.requires_grad]
    optim = torch.optim.Adam(wanted, lr=rate)
    values = []
    for _ in range(25):
        loss = torch.stack(list(objective.loss(batch).values())).sum()
        optim.zero_grad()
        loss.backward()
        optim.step()
        values.append(float(loss.detach()))
    assert values[-1] < least * values[0]


# -- data, chance and what does not go together --------------------------------------------------------------


def test_the_same_seed_gives_the_same_batch(sd1: Path, data: LoaderConfig) -> None:
    objective = made(sd1, data, ControlConfig())
    one, again, other = (objective.batch(3, seed, 2) for seed in (4, 4, 5))
    for name in ("x0", "noise", "t", "condition"):
        assert torch.equal(getattr(one, name), getattr(again, name))
    assert not torch.equal(one.noise, other.noise)
    assert one.condition is not None
    for said, pixels in zip(one.captions, one.condition, strict=True):
        shown = ((pixels.mean((1, 2)) + 1) * 127.5).round().int().tolist()
        assert shown == list(COLOURS[said][::-1])


def test_pictures_to_follow_that_are_missing_or_broken_are_named(
    sd1: Path, data: LoaderConfig, pictures: Path, tmp_path: Path
) -> None:
    """One is not there: its picture is left out. One cannot be read: nothing is learned of its picture."""
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    (folder / "red.cond.png").unlink()
    (folder / "blue.cond.png").write_bytes((pictures / "blue.cond.png").read_bytes()[:60])
    objective = made(sd1, replace(data, folder=str(folder)), ControlConfig())
    assert [one.split(":")[0] for one in objective.broken()] == ["red"]
    batch = objective.batch(3, seed=1)
    assert sorted(batch.captions) == ["blue", "green", "white"]
    assert batch.weight.tolist() == [float(said != "blue") for said in batch.captions]
    assert [one.split(":")[0] for one in objective.broken()] == ["blue"]
    named = [p for p in objective.model.parameters() if p.requires_grad]
    torch.stack(list(objective.loss(batch).values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in named)


def test_the_pictures_of_a_prior_follow_their_own(
    sd1: Path, data: LoaderConfig, pictures: Path, tmp_path: Path
) -> None:
    """Though they are called as those of the data are."""
    folder = tmp_path / "prior"
    shutil.copytree(pictures, folder)
    for name in COLOURS:
        Image.new("RGB", (24, 24), (0, 0, 0)).save(folder / f"{name}.cond.png")
    prior = PriorConfig(data=replace(data, folder=str(folder)))
    batch = made(sd1, data, ControlConfig(), prior=prior).batch(2, seed=1)
    assert batch.condition is not None
    assert batch.condition.max() > -1
    assert batch.prior is not None
    assert batch.prior.condition is not None
    assert batch.prior.condition.max() == -1


def test_words_are_learned_by_one_process(data: LoaderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = DiffusionConfig(model="mini", data=data)
    for trained in (WordsConfig(token="sks"), LoRAConfig(token="sks")):
        with pytest.raises(ConfigError, match="train it in one process, without torchrun"):
            check(config, trained)
    check(config, LoRAConfig())


def test_where_on_the_path_flow_models_learn(tmp_path: Path, data: LoaderConfig) -> None:
    base = made(publish(SD3, tmp_path / "sd3"), data)
    found = {}
    for weighting in ("uniform", "logit_normal", "mode", "cosmap"):
        base.config = replace(base.config, weighting=weighting, shift=1.0)
        t, weight = base.times(20_000, (16, 16), torch.Generator().manual_seed(0))
        found[weighting] = t
        assert 0 < t.min() <= t.max() <= 1
        wanted = losses.cosmap_density(t) if weighting == "cosmap" else torch.ones_like(t)
        torch.testing.assert_close(weight, wanted)
    assert abs(found["uniform"].mean() - 0.5) < 0.01
    assert found["logit_normal"].std() < found["mode"].std() < found["uniform"].std()
    base.config = replace(base.config, weighting="uniform", shift=0.0)
    t, _ = base.times(20_000, (16, 16), torch.Generator().manual_seed(0))
    inside = found["uniform"] > 1e-3  # the end of the path, below which nothing is put
    uniform = found["uniform"][inside]
    torch.testing.assert_close(t[inside], 3 * uniform / (1 + 2 * uniform))  # by SD3's own factor


def test_zero_terminal_snr_ends_in_noise_and_is_written(
    sd1: Path, data: LoaderConfig, tmp_path: Path
) -> None:
    objective = made(sd1, data, fresh=True, prediction="v", zero_terminal_snr=True)
    path = objective.learner.path
    assert float(path.alpha(torch.tensor(path.start))) == 0
    (folder,) = objective.write(tmp_path, {}, {})
    again = made(folder, data)
    assert again.learner.prediction == "v"
    assert float(again.learner.path.alpha(torch.tensor(path.start))) == 0


@pytest.mark.parametrize(
    ("settings", "trained", "told"),
    [
        ({"train_text_encoder": True}, WordsConfig(token="sks"), "trained alone"),
        ({"fresh": True}, LoRAConfig(), "fresh networks are trained whole"),
        ({"weighting": "mode"}, None, "straight paths"),
        ({"shift": 2.0}, None, "straight paths"),
        ({"zero_terminal_snr": True}, None, "predicts v or x0"),
    ],
)
def test_what_does_not_go_together(
    sd1: Path, data: LoaderConfig, settings: dict[str, Any], trained: Trainable, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        made(sd1, data, trained, **settings)


def test_settings_that_mean_nothing(sd1: Path, data: LoaderConfig) -> None:
    for wrong in ({"weighting": "some"}, {"prediction": "v"}, {"snr_gamma": 0.0}, {"mode_scale": 3.0}):
        with pytest.raises(ValueError, match=r"."):
            DiffusionConfig(model=str(sd1), data=data, **wrong)
    with pytest.raises(ConfigError, match="flip and latents"):
        made(sd1, replace(data, flip=True), ControlConfig())
    with pytest.raises(ConfigError, match="no model"):
        made(sd1 / "nowhere", data)
    with pytest.raises(ConfigError, match="multiples of 4"):
        made(sd1, replace(data, size=18))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_small_latent_diffusion_learns_the_colours_of_the_drawn_world(tmp_path: Path) -> None:
    """The autoencoder, then a fresh U-Net, then pictures by the family's own plan: each shows the colour that
    it was asked for. The backgrounds are those of the drawn world."""
    from limner.data.world.backgrounds import PALETTE

    colours = {name: PALETTE[name] for name in ("red", "green", "blue", "yellow", "black", "white")}
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, colour in colours.items():
        for place in range(4):
            picture = Image.new("RGB", (16, 16), colour)
            picture.paste((128, 128, 128), (3 * place, 2 * place, 3 * place + 4, 2 * place + 4))
            picture.save(pictures / f"{name}-{place}.png")
            (pictures / f"{name}-{place}.txt").write_text(f"a {name} background")
    data = LoaderConfig(folder=str(pictures), size=16, buckets=False, bucket_step=8, workers=0)
    loop = LoopConfig(
        images=16 * 250, batch=16, device="cpu", precision="float32", checkpoint_seconds=1e9,
        sheet_seconds=1e9, ema=0.1,
    )  # fmt: skip
    optim = OptimConfig(muon_lr=0.0, adam_lr=3e-3, warmup=200, weight_decay=0.0)
    shape = KLVAEConfig(channels=(16, 16), layers=1, groups=4)
    vae = KLVAEObjectiveConfig(data=data, model=shape, adversarial_weight=0.0)
    *_, last = fit(RunConfig(name="vae", loop=loop, optim=optim, kl_vae=vae), tmp_path / "vae-run")
    assert last.figures["psnr"] > 20
    base = replace(SD1, name="latent", parts=(small.SD1.parts[0], vae_part(shape), small.SD1.parts[2]))
    folder = publish(base, tmp_path / "base")
    shutil.rmtree(folder / "vae")
    shutil.copytree(tmp_path / "vae-run" / "vae", folder / "vae")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()  # its settings are enough
    settings = DiffusionConfig(model=str(folder), data=data, fresh=True, prediction="v", sheet_steps=4)
    whole = RunConfig(name="latent", loop=replace(loop, images=16 * 700), optim=optim, diffusion=settings)
    for step in fit(whole, tmp_path / "run"):
        assert step.losses["v"] > 0
    pipeline = load(tmp_path / "run" / "model", device="cpu")
    assert isinstance(pipeline.model, StableDiffusion)
    right = 0
    for name in colours:
        pixels = drawn(pipeline.model, [f"a {name} background"], [0], steps=12, guidance=3.0, size=(16, 16))
        levels = (pixels.median(-1).values.median(-1).values[0] + 1) * 127.5
        nearest = min(colours, key=lambda one: float((levels - torch.tensor(colours[one])).norm()))
        right += nearest == name
    assert right >= 5
