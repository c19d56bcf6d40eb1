"""The autoencoder's objective."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from limner.data.loader import LoaderConfig
from limner.errors import ConfigError, WeightsError
from limner.models.discriminator import PatchConfig
from limner.models.kl_vae import KLVAEConfig, Posterior
from limner.models.vgg import VGG, VGGConfig
from limner.train import perceptual
from limner.train.config import LoopConfig, RunConfig
from limner.train.loop import fit
from limner.train.objectives.kl_vae import KLVAEObjective, KLVAEObjectiveConfig, divergence
from limner.train.optim import OptimConfig
from limner.weights import standalone, vgg

CPU = torch.device("cpu")
SHAPE = KLVAEConfig(channels=(16, 16), layers=1, groups=4)
OPTIM = OptimConfig(muon_lr=0.0, adam_lr=4e-3, betas=(0.5, 0.9), weight_decay=0.0, warmup=1, decay=0.5)
SMALL_VGG = VGGConfig(widths=(4, 4, 4, 4, 4), layers=(2, 2, 3, 3, 3))


@pytest.fixture
def config(snapshots: Path) -> KLVAEObjectiveConfig:
    return KLVAEObjectiveConfig(
        data=LoaderConfig(folder=str(snapshots), size=16, buckets=False, bucket_step=8, workers=0),
        model=SHAPE,
        discriminator=PatchConfig(channels=8, layers=2),
        adversarial_start=0,
    )


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A VGG16 of few channels, as torchvision names it."""
    torch.manual_seed(0)
    network = VGG(SMALL_VGG)
    tensors = {"classifier.0.weight": torch.zeros(2, 2)}
    for level, places in zip(network.levels, SMALL_VGG.places, strict=True):
        for layer, place in zip(level, places, strict=True):  # type: ignore[arg-type]
            tensors[f"features.{place}.weight"] = layer.weight.detach()
            tensors[f"features.{place}.bias"] = layer.bias.detach()
    save_file(tensors, tmp_path / "vgg16.safetensors")
    return tmp_path / "vgg16.safetensors"


def run(config: KLVAEObjectiveConfig, loop: LoopConfig) -> RunConfig:
    return RunConfig(name="test", loop=loop, optim=OPTIM, kl_vae=config)


def test_a_handful_of_pictures_is_learned(
    config: KLVAEObjectiveConfig, loop: LoopConfig, tmp_path: Path
) -> None:
    """Six pictures to an error of 0.27 of 2 and 16 dB, with a discriminator that joins later."""
    config = replace(config, adversarial_start=120)
    steps = list(fit(run(config, replace(loop, images=160, batch=4, ema=0.03)), tmp_path))
    assert "discriminator" not in steps[29].losses
    assert {"pixels", "kl", "adversarial", "discriminator"} == steps[30].losses.keys()
    assert steps[0].losses["pixels"] > 0.45
    assert steps[-1].losses["pixels"] < 0.27
    assert steps[-1].figures["psnr"] > 16
    assert steps[-1].losses["discriminator"] < 1
    check_published(tmp_path)


def check_published(folder: Path) -> None:
    """diffusers reads what was written, and its latents are of unit deviation; so does Limner."""
    theirs = AutoencoderKL.from_pretrained(folder / "vae")
    assert theirs.config.scaling_factor != pytest.approx(0.18215)
    own = standalone.autoencoder("", replace(SHAPE, scale_factor=theirs.config.scaling_factor))
    ours = standalone.identify_network(folder / "vae", (own,)).load()
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        wanted = theirs.encode(pixels).latent_dist.mean
        torch.testing.assert_close(ours.encode(pixels).mean, wanted, rtol=1e-4, atol=1e-4)  # type: ignore[operator]


def test_latents_are_brought_to_unit_deviation(config: KLVAEObjectiveConfig, tmp_path: Path) -> None:
    objective = KLVAEObjective(config, CPU)
    averaged = {name: 1.5 * p for name, p in objective.model.named_parameters()}
    (folder,) = objective.write(tmp_path, averaged, {})
    scale = AutoencoderKL.from_pretrained(folder).config.scaling_factor
    objective.model.load_state_dict(averaged)
    with torch.no_grad():
        raw = objective.autoencoder.encode(objective.pictures.shown(16)).mean
    assert float(raw.std() * scale) == pytest.approx(1, rel=1e-3)


def test_a_run_goes_on_from_a_published_autoencoder(config: KLVAEObjectiveConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = KLVAEObjective(config, CPU)
    (folder,) = first.write(tmp_path, dict(first.model.named_parameters()), {})
    again = KLVAEObjective(replace(config, start=str(folder)), CPU)
    for name, tensor in first.autoencoder.state_dict().items():
        assert torch.equal(tensor, again.autoencoder.state_dict()[name])
    assert all(p.requires_grad for p in again.model.parameters())
    before = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    with torch.no_grad():
        for p in again.model.parameters():
            p.add_(1)
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == before


def test_a_run_with_two_players_resumes_bit_for_bit(
    config: KLVAEObjectiveConfig, loop: LoopConfig, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    config = replace(config, adversarial_start=4)  # comes in before the break
    interrupted(run(config, replace(loop, images=12, batch=4)), tmp_path, 2)


def test_the_discriminator_comes_in_after_so_many_pictures(config: KLVAEObjectiveConfig) -> None:
    """Whatever a micro-batch holds."""
    objective = KLVAEObjective(replace(config, adversarial_start=8), CPU)
    for count, index, plays in ((4, 1, False), (4, 2, True), (2, 3, False), (2, 4, True)):
        assert objective.batch(count, 0, index).adversarial is plays


def test_kl_is_that_of_normal_distributions() -> None:
    mean, logvar = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    wanted = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(divergence(Posterior(mean, logvar)), wanted.flatten(1).sum(1))


def test_the_adaptive_weight_balances_the_last_layer(config: KLVAEObjectiveConfig) -> None:
    """Behind it, both losses move the decoder's last weights alike: VQGAN's equation 7, times 0.5."""
    objective = KLVAEObjective(config, CPU)
    parts = objective.loss(objective.batch(4, 0))
    last = objective.autoencoder.decoder.last.weight
    pixels, adversarial = (
        torch.autograd.grad(parts[name], last, retain_graph=True)[0].norm()
        for name in ("pixels", "adversarial")
    )
    assert float(adversarial / pixels) == pytest.approx(0.5, rel=0.05)


def test_pictures_are_compared_by_the_users_network(config: KLVAEObjectiveConfig, features: Path) -> None:
    objective = KLVAEObjective(replace(config, features=str(features)), CPU)
    batch = objective.batch(4, 0)
    assert float(objective.loss(batch)["perceptual"].detach()) > 0
    network = vgg.load(features)
    told = network(batch.pixels)
    assert [tuple(level.shape[2:]) for level in told] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    assert perceptual.unlike(lambda x: list(network(x)), batch.pixels, batch.pixels) == 0
    assert perceptual.apart(lambda x: list(network(x)), batch.pixels, batch.pixels) == 0
    with pytest.raises(WeightsError, match="VGG16 or VGG19"):
        KLVAEObjective(replace(config, features=str(_without(features))), CPU)


def _without(path: Path) -> Path:
    """The same file with a layer less."""
    from limner.weights import files

    tensors = files.read(path)
    del tensors["features.0.weight"]
    save_file(tensors, path.with_name("less.safetensors"))
    return path.with_name("less.safetensors")


def test_vgg_finds_what_its_layers_find_in_torchvisions_row() -> None:
    """Convolutions, rectifiers and poolings as torchvision counts them, one after another."""
    torch.manual_seed(0)
    network = VGG(SMALL_VGG)
    row: list[torch.nn.Module] = []
    for level in network.levels:
        for layer in level:  # type: ignore[union-attr]
            row += [layer, torch.nn.ReLU()]
        row.append(torch.nn.MaxPool2d(2))
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    x = ((pixels + 1) / 2 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    wanted = []
    ends = {places[-1] for places in SMALL_VGG.places}
    for place, layer in enumerate(row):
        x = layer(x)
        if place in ends:
            wanted.append(x)
    for ours, theirs in zip(network(pixels), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert ends == {2, 7, 14, 21, 28}  # conv1_2, conv2_2, conv3_3, conv4_3 and conv5_3


def test_what_does_not_go_together_is_refused(config: KLVAEObjectiveConfig) -> None:
    with pytest.raises(ConfigError, match="multiple of 2"):
        KLVAEObjective(replace(config, data=replace(config.data, size=17)), CPU)
    with pytest.raises(ConfigError, match="fewer layers"):
        KLVAEObjective(replace(config, discriminator=PatchConfig(layers=5)), CPU)
    with pytest.raises(ValueError, match="kl_weight"):
        replace(config, kl_weight=-1.0)
