"""The convolutional blocks, against what they are made of. The networks are compared with the reference."""

import pytest
import torch
import torch.nn.functional as F

from limner.nn.resnet import Downsample, ResBlock, Upsample

X = torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("outputs", [8, 12])
def test_a_silent_block_only_carries_its_input_over(outputs: int) -> None:
    block = ResBlock(8, outputs, time=6, groups=4)
    assert isinstance(block.skip, torch.nn.Conv2d) == (outputs != 8)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.get_parameter("bias"))
    assert torch.equal(block(X, torch.ones(2, 6)), block.skip(X))


def test_the_timestep_reaches_each_picture_of_the_batch() -> None:
    block = ResBlock(8, 8, time=6, groups=4)
    time = torch.stack([torch.zeros(6), torch.ones(6)])
    one, other = block(X, time), block(X, time.flip(0))
    assert not torch.allclose(one, other)
    torch.testing.assert_close(block(X.flip(0), time.flip(0)), one.flip(0))


def test_a_block_without_time_asks_for_none() -> None:
    block = ResBlock(8, 8, groups=4)
    assert not [name for name, _ in block.named_parameters() if name.startswith("time")]
    assert block(X).shape == X.shape


def test_downsampling_rounds_up_and_pads_where_it_is_told() -> None:
    centred, corner = Downsample(8), Downsample(8, centred=False)
    corner.load_state_dict(centred.state_dict())
    assert centred(X).shape == (2, 8, 3, 4)
    even = X[:, :, :4, :6]
    weight, bias = centred.conv.weight, centred.conv.bias
    torch.testing.assert_close(centred(even), F.conv2d(F.pad(even, (1, 1, 1, 1)), weight, bias, stride=2))
    torch.testing.assert_close(corner(even), F.conv2d(F.pad(even, (0, 1, 0, 1)), weight, bias, stride=2))
    assert not torch.allclose(centred(even), corner(even))


def test_upsampling_doubles_or_meets_a_size() -> None:
    larger = Upsample(8)
    assert larger(X).shape == (2, 8, 10, 14)
    assert larger(X, (9, 13)).shape == (2, 8, 9, 13)
    assert torch.equal(larger(X, (10, 14)), larger(X))
