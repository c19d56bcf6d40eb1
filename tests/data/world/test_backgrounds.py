import pytest
import torch
import torch.nn.functional as F

from limner.data.world.backgrounds import PALETTE, SETTINGS, paint
from limner.text import words

KINDS = range(2 + len(SETTINGS))


def textures(count: int) -> torch.Tensor:
    return torch.rand(count, 24, generator=torch.Generator().manual_seed(0))


def painted(kind: int, size: int = 64, count: int = 4) -> torch.Tensor:
    colours = torch.tensor([[row % 10, (row + 3) % 10] for row in range(count)])
    return paint(torch.full((count,), kind), colours, textures(count), size)


def test_words_and_painters_agree() -> None:
    assert list(SETTINGS) == list(words.SETTINGS)
    assert list(PALETTE) == list(words.COLOURS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_background_is_in_range(kind: int) -> None:
    picture = painted(kind)
    assert picture.shape == (4, 3, 64, 64)
    assert picture.dtype == torch.float32
    assert 0 <= picture.min() <= picture.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_background_is_the_same_at_all_sizes(kind: int) -> None:
    small, large = painted(kind, 64), painted(kind, 256)
    error = (F.avg_pool2d(large, 4) - small).abs()
    assert error.mean() < 0.01
    assert error.max() < 0.35  # half a star that lies between two pixels


def test_plain_is_exactly_its_colour() -> None:
    colours = torch.stack([torch.arange(10), torch.arange(10).flip(0)], 1)
    picture = paint(torch.zeros(10, dtype=torch.long), colours, textures(10), 8)
    for row, rgb in enumerate(PALETTE.values()):
        assert torch.equal(picture[row], (torch.tensor(rgb) / 255)[:, None, None].expand(3, 8, 8))


def test_a_gradient_goes_from_its_first_colour_to_its_second() -> None:
    """At angle 0 from left to right, at a quarter turn from top to bottom."""
    texture = torch.zeros(2, 24)
    texture[1, 0] = 0.25
    colours = torch.tensor([[0, 4], [0, 4]])  # red, blue
    across, down = paint(torch.ones(2, dtype=torch.long), colours, texture, 64)
    red, blue = (torch.tensor(PALETTE[name]) / 255 for name in ("red", "blue"))
    torch.testing.assert_close(across[:, 10, 0], red, atol=0.02, rtol=0)
    torch.testing.assert_close(across[:, 10, -1], blue, atol=0.02, rtol=0)
    torch.testing.assert_close(down, across.mT, atol=1e-5, rtol=0)


def test_settings_vary_with_their_texture_and_differ_from_each_other() -> None:
    pictures = [painted(2 + index) for index in range(len(SETTINGS))]
    for index, picture in enumerate(pictures):
        assert (picture[0] - picture[1]).abs().max() > 0.05
        for other in pictures[:index]:
            assert (picture - other).abs().mean() > 0.05


def test_a_batch_paints_each_row_as_if_alone() -> None:
    kind = torch.tensor([0, 3, 1, 5, 10, 3])
    colours = torch.tensor([[1, 2]] * 6)
    texture = textures(6)
    together = paint(kind, colours, texture, 32)
    for row in range(6):
        alone = paint(kind[row : row + 1], colours[:1], texture[row : row + 1], 32)
        torch.testing.assert_close(together[row], alone[0])
