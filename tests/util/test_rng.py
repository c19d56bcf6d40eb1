import pytest
import torch

from limner.errors import RequestError
from limner.util.rng import NoiseSource, mix

SHAPE = (3, 8, 8)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    batch = NoiseSource([7, 8, 9, 10])
    for i in range(4):
        alone = NoiseSource([7 + i])
        assert torch.equal(batch.initial(SHAPE)[i], alone.initial(SHAPE)[0])
        assert torch.equal(batch.step(5, SHAPE)[i], alone.step(5, SHAPE)[0])


def test_noise_is_float32_on_the_cpu_in_the_shape_asked_for() -> None:
    source = NoiseSource([1, 2])
    for noise in (source.initial(SHAPE), source.step(0, SHAPE), source.draws(SHAPE)(0)):
        assert noise.shape == (2, *SHAPE)
        assert (noise.dtype, noise.device.type) == (torch.float32, "cpu")


def test_the_same_key_gives_the_same_noise_whatever_was_drawn_before() -> None:
    fresh, used = NoiseSource([3]), NoiseSource([3])
    used.initial(SHAPE)
    used.step(0, SHAPE)
    used.step(9, SHAPE, tag=2)
    assert torch.equal(fresh.step(4, SHAPE), used.step(4, SHAPE))
    assert torch.equal(fresh.initial(SHAPE), used.initial(SHAPE))
    assert torch.equal(fresh.draws(SHAPE, tag=1)(4), used.step(4, SHAPE, tag=1))


def test_every_part_of_the_key_matters() -> None:
    draws = [NoiseSource([seed]).initial(SHAPE) for seed in (0, 1, 2**32, 2**33, 2**63 - 1)]
    draws += [NoiseSource([seed]).initial(SHAPE, tag) for seed in (0, 1, 2**32) for tag in (1, 2)]
    draws += [
        NoiseSource([seed]).step(index, SHAPE, tag)
        for seed in (0, 1, 2**32)
        for index in (0, 1, 2)
        for tag in (0, 1)
    ]
    flat = torch.stack([draw.flatten() for draw in draws])
    likeness = torch.corrcoef(flat) - torch.eye(len(flat))
    assert likeness.abs().max() < 0.35  # 192 independent values: four standard errors are 0.29


def test_noise_is_standard_normal() -> None:
    many = NoiseSource(range(64)).step(0, (32, 32))
    assert many.mean().item() == pytest.approx(0, abs=4 / 256)
    assert many.std().item() == pytest.approx(1, abs=4 / 256)


def test_small_seeds_start_where_other_tools_start() -> None:
    theirs = torch.randn(SHAPE, generator=torch.Generator().manual_seed(123))
    assert torch.equal(NoiseSource([123]).initial(SHAPE)[0], theirs)
    assert torch.equal(NoiseSource([123]).initial(SHAPE, 0)[0], theirs)


@pytest.mark.parametrize("seed", [-1, 2**63, True])
def test_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(RequestError, match=f"whole number.*{seed!r}"):
        NoiseSource([0, seed])


def test_no_seed() -> None:
    with pytest.raises(RequestError, match="no seeds"):
        NoiseSource([])


def test_mix_is_splitmix64() -> None:
    # first outputs of the published generator from state 0: the hash of one word is one step of it
    assert mix(0) == 0xE220A8397B1DCDAF
    assert mix(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4
    assert len({mix(), mix(0), mix(0, 0), mix(1, 2), mix(2, 1), mix(1), mix(2)}) == 7
    assert all(0 <= mix(word, 3) < 2**64 for word in (0, 2**63 - 1, 2**64 - 1))
