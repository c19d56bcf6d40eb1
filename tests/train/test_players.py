"""Two players in one loop, and the discriminators."""

import pytest
import torch
from torch import nn

from limner.models.discriminator import (
    PatchConfig,
    PatchDiscriminator,
    UNetDiscriminator,
    UNetDiscriminatorConfig,
    spectral_norm,
)
from limner.train.players import balance, crossed, hinge, judged


@pytest.fixture(params=["patch", "unet"])
def discriminator(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    if request.param == "patch":
        return PatchDiscriminator(PatchConfig(channels=8, layers=2))
    return UNetDiscriminator(UNetDiscriminatorConfig(channels=8))


def test_one_backward_pass_gives_each_player_its_own_gradient(discriminator: nn.Module) -> None:
    """The gradients are those of the two losses taken apart, one player after the other."""
    drawing = nn.Conv2d(3, 3, 3, padding=1)
    x, real = torch.randn(2, 2, 3, 16, 16)
    drawn = drawing(x)
    fooled = -judged(discriminator, drawn).mean()
    told = hinge(discriminator(real), discriminator(drawn.detach()))
    (fooled + told).backward()
    together = [p.grad.clone() for p in (*drawing.parameters(), *discriminator.parameters())]
    apart = [
        *torch.autograd.grad(-discriminator(drawing(x)).mean(), list(drawing.parameters())),
        *torch.autograd.grad(
            hinge(discriminator(real), discriminator(drawing(x).detach())), list(discriminator.parameters())
        ),
    ]
    for ours, theirs in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert any(grad.abs().max() > 0 for grad in together[:2])


def test_a_discriminator_learns_and_remembers_nothing_but_parameters(discriminator: nn.Module) -> None:
    assert not list(discriminator.buffers())
    generator = torch.Generator().manual_seed(0)
    optim = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
    for _ in range(40):
        real, drawn = torch.rand(2, 4, 3, 16, 16, generator=generator)
        loss = hinge(discriminator(real), discriminator(drawn * 2 - 1))
        optim.zero_grad()
        loss.backward()
        optim.step()
    assert float(loss.detach()) < 0.3  # 1 where it knows nothing


def test_discriminators_keep_their_shape() -> None:
    """Patches of 70 x 70 pixels, as in the paper: what lies further away does not count."""
    torch.manual_seed(0)
    patches = PatchDiscriminator(PatchConfig(channels=8))
    for module in patches.modules():  # the norm alone sees all of the picture
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    pixels = torch.zeros(1, 3, 128, 128, requires_grad=True)
    said = patches(pixels)
    assert said.shape == (1, 1, 14, 14)
    (grad,) = torch.autograd.grad(said[0, 0, 7, 7], pixels)
    seen = grad.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]
    assert UNetDiscriminator(UNetDiscriminatorConfig(channels=8))(torch.zeros(2, 3, 24, 32)).shape == (
        2,
        1,
        24,
        32,
    )


@pytest.mark.parametrize("shape", [(16, 8, 4, 4), (64, 3, 3, 3), (5, 40)])
def test_spectral_norms_and_their_gradients_are_exact(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    exact = torch.linalg.matrix_norm(weight.flatten(1), 2)
    torch.testing.assert_close(spectral_norm(weight), exact, rtol=1e-3, atol=0)
    ours, theirs = (torch.autograd.grad(norm, weight)[0] for norm in (spectral_norm(weight), exact))
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.95


def test_losses_of_the_discriminator() -> None:
    sure, unsure = torch.full((1, 1, 2, 2), 3.0), torch.zeros(1, 1, 2, 2)
    assert hinge(sure, -sure) == 0
    assert hinge(unsure, unsure) == 1
    torch.testing.assert_close(
        crossed(unsure, unsure), 2 * torch.nn.functional.binary_cross_entropy_with_logits(unsure, sure * 0)
    )


def test_the_adaptive_weight_makes_both_losses_pull_alike() -> None:
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    loss, adversarial = (3 * last).sum(), (0.5 * last).sum()
    assert float(balance(loss, adversarial, last)) == pytest.approx(6, rel=1e-3)
    assert float(balance(loss, 0 * adversarial, last)) == 1e4
