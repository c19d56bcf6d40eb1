"""The two-level autoencoder: shapes, what each level is told, codes there and back."""

import pytest
import torch

from limner.models.vqvae import VQVAE, VQVAEConfig, joined, parted

TINY = VQVAEConfig(size=16, halvings=1, channels=16, depth=1, coarse_codes=12, fine_codes=20, code_width=4)


@pytest.fixture(scope="module")
def network() -> VQVAE:
    made = VQVAE(TINY)
    generator = torch.Generator().manual_seed(0)
    made.initialize(generator)
    torch.nn.init.normal_(made.last.weight, std=0.1, generator=generator)
    for quantizer in (made.coarse, made.fine):
        torch.nn.init.normal_(quantizer.codes, generator=generator)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_picture_becomes_two_grids(network: VQVAE, pixels: torch.Tensor) -> None:
    coarse, fine = network.encode(pixels)
    assert (coarse.shape, fine.shape) == ((3, 4, 4), (3, 8, 8))
    assert 0 <= coarse.min() <= coarse.max() < 12
    assert 0 <= fine.min() <= fine.max() < 20
    assert network.decode(coarse, fine).shape == (3, 3, 16, 16)


@pytest.mark.parametrize(("size", "halvings", "fine"), [(32, 2, 8), (64, 2, 16), (64, 3, 8)])
def test_other_shapes(size: int, halvings: int, fine: int) -> None:
    config = VQVAEConfig(size=size, halvings=halvings, channels=8, depth=1, coarse_codes=4, fine_codes=4)
    assert config.fine == fine
    made = VQVAE(config)
    made.initialize(torch.Generator().manual_seed(0))
    grids = made.encode(torch.zeros(1, 3, size, size))
    assert [grid.shape[1] for grid in grids] == [fine // 2, fine]
    assert made.decode(*grids).shape == (1, 3, size, size)


def test_shapes_that_cannot_be_are_refused() -> None:
    for wrong in ({"size": 36}, {"halvings": 0}, {"channels": 20}):
        with pytest.raises(ValueError, match="multiple"):
            VQVAEConfig(**wrong)  # type: ignore[arg-type]


def test_decoding_draws_what_was_quantised(network: VQVAE, pixels: torch.Tensor) -> None:
    coarse, fine, _, _ = network.quantize(pixels)
    torch.testing.assert_close(
        network.draw(coarse.q, fine.q), network.decode(coarse.tokens, fine.tokens), atol=1e-5, rtol=1e-4
    )


def test_fine_codes_are_chosen_knowing_the_coarse_ones(network: VQVAE, pixels: torch.Tensor) -> None:
    seen = network.encoder(pixels)
    told = network.told(network.coarse.look_up(network.encode(pixels)[0]))
    other = network.told(network.coarse.look_up((network.encode(pixels)[0] + 1) % 12))
    z, changed = (network.to_fine(torch.cat([part, seen], 1)) for part in (told, other))
    assert not torch.equal(z, changed)
    assert torch.equal(network.fine(z).tokens, network.encode(pixels)[1])


def test_both_levels_show_in_the_picture(network: VQVAE, pixels: torch.Tensor) -> None:
    coarse, fine = network.encode(pixels)
    drawn = network.decode(coarse, fine)
    assert not torch.allclose(drawn, network.decode((coarse + 1) % 12, fine), atol=1e-3)
    assert not torch.allclose(drawn, network.decode(coarse, (fine + 1) % 20), atol=1e-3)


def test_a_row_of_codes_has_the_coarse_ones_first_and_may_be_short() -> None:
    coarse, fine = torch.arange(4).reshape(1, 2, 2), 10 + torch.arange(16).reshape(1, 4, 4)
    row = joined(coarse, fine)
    assert row.tolist() == [[0, 1, 2, 3, *range(10, 26)]]
    for whole, back in zip((coarse, fine), parted(row, 2), strict=True):
        assert torch.equal(whole, back)
    short = parted(row[:, :6], 2)
    assert torch.equal(short[0], coarse)
    assert short[1][0, 0].tolist() == [10, 11, -1, -1]
    assert (short[1][0, 1:] == -1).all()
