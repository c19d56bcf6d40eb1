"""The transformer over tokens: it looks back only, its cache changes nothing, ranges and places are right."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from limner.models.token_transformer import Cache, TokenTransformer, TokenTransformerConfig, continued
from limner.nn.choice import Sampling

TINY = TokenTransformerConfig(
    vocabulary=11, text_length=5, coarse_codes=6, fine_codes=7, side=2, width=24, depth=2, heads=2
)


@pytest.fixture(scope="module")
def network() -> TokenTransformer:
    """With random weights, none of them silent."""
    made = TokenTransformer(TINY)
    generator = torch.Generator().manual_seed(0)
    made.initialize(generator)
    for p in made.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator))
    return made.eval().requires_grad_(False)


def row(batch: int = 2, seed: int = 0) -> Tensor:
    """Whole rows of tokens."""
    generator = torch.Generator().manual_seed(seed)
    parts = [(11, 0, 5), (6, 11, 4), (7, 17, 16)]
    drawn = [start + torch.randint(count, (batch, n), generator=generator) for count, start, n in parts]
    return torch.cat(drawn, 1)


def test_the_vocabulary_has_a_range_for_each_kind(network: TokenTransformer) -> None:
    assert TINY.ranges == (range(11), range(11, 17), range(17, 24))
    assert (TINY.coarse, TINY.fine, TINY.codes) == (4, 16, 20)
    text, codes = torch.tensor([[1, 2]]), torch.tensor([[0, 1, 2, 3, 0, 6]])
    assert network.tokens(text, codes).tolist() == [[1, 2, 11, 12, 13, 14, 17, 23]]
    known = torch.randn(3, 24)
    whole = network.out(known)
    for kind, asked in enumerate(TINY.ranges):
        torch.testing.assert_close(network.logits(known, kind), whole[:, asked.start : asked.stop])


def test_what_comes_later_changes_nothing(network: TokenTransformer) -> None:
    tokens = row()[:, :-1]
    known = network(tokens)
    assert known.shape == (2, 24, 24)
    for at in (3, 7, 12, 22):
        changed = tokens.clone()
        changed[:, at] = row(seed=5)[:, at]
        changed[:, at] = torch.where(changed[:, at] == tokens[:, at], _next(tokens[:, at]), changed[:, at])
        told = network(changed)
        torch.testing.assert_close(told[:, :at], known[:, :at])
        assert not torch.allclose(told[:, at:], known[:, at:], atol=1e-3)


def _next(token: Tensor) -> Tensor:
    first = (token >= 11) * 11 + (token >= 17) * 6
    return first + (token - first + 1) % torch.where(token >= 17, 7, torch.where(token >= 11, 6, 11))


def test_the_coarse_code_beneath_the_next_place_is_told(network: TokenTransformer) -> None:
    tokens = row(1)
    plain = network.token(tokens[:, :-1]) + network.places()[1:]
    told = network.embed(tokens[:, :-1]) - plain
    assert (told[0, :8] == 0).all()
    beneath = [y // 2 * 2 + x // 2 for y in range(4) for x in range(4)]
    wanted = network.beneath(tokens[0, 5:9] - 11)[beneath]
    torch.testing.assert_close(told[0, 8:], wanted)
    for start in (0, 6, 9, 15):
        torch.testing.assert_close(
            network.embed(tokens[:, :-1], start), network.embed(tokens[:, :-1])[:, start:]
        )


def test_a_cache_is_read_on_from_where_it_ends(network: TokenTransformer) -> None:
    tokens = row()
    whole = network(tokens[:, :-1])
    cache = Cache(TINY, 2, whole)
    parts = [network(tokens[:, :5], cache)]
    parts += [network(tokens[:, :end], cache) for end in range(6, 25)]
    assert [part.shape[1] for part in parts] == [5] + [1] * 19
    assert cache.read == 24
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=4, top_p=0.9)])
def test_cached_and_uncached_sampling_agree_token_by_token(
    network: TokenTransformer, guidance: float, sampling: Sampling
) -> None:
    text = row(8)[:, :5]
    u = torch.rand(8, 20, generator=torch.Generator().manual_seed(3))
    without = None if guidance == 1 else row(8, seed=9)[:, :5]

    def drawn(cached: bool) -> Iterator[Tensor]:
        return continued(network, text, without, u, guidance=guidance, sampling=sampling, cached=cached)

    steps = list(zip(drawn(True), drawn(False), strict=True))
    assert [cached.shape[1] for cached, _ in steps] == [2, 4, 8, 12, 16, 20]  # after each row of each grid
    for cached, uncached in steps:
        assert torch.equal(cached, uncached)
    assert len(steps[-1][0].unique()) > 4


def test_sampling_follows_the_chances(network: TokenTransformer) -> None:
    """The first code of many pictures of one text, against the softmax of the logits, with guidance."""
    text, without = row(1)[:, :5], row(1, seed=9)[:, :5]
    u = torch.rand(4_000, 20, generator=torch.Generator().manual_seed(0))
    u = u.index_fill(1, torch.arange(1, 20), 0.5)
    first = next(continued(network, text.expand(4_000, 5), without.expand(4_000, 5), u, guidance=1.7))[:, 0]
    cond, uncond = (network.logits(network(side)[:, -1], 1) for side in (text, without))
    wanted = (uncond + 1.7 * (cond - uncond)).softmax(-1)[0]
    share = torch.bincount(first, minlength=6) / 4_000
    assert share.tolist() == pytest.approx(wanted.tolist(), abs=0.03)


def test_guidance_of_one_asks_only_once(network: TokenTransformer) -> None:
    text, u = row(3)[:, :5], torch.rand(3, 20, generator=torch.Generator().manual_seed(4))
    *_, plain = continued(network, text, None, u)
    *_, guided = continued(network, text, row(3, seed=9)[:, :5], u, guidance=1.0)
    assert torch.equal(plain, guided)


def test_heads_must_share_the_width_evenly() -> None:
    with pytest.raises(ValueError, match="width 24 is not a multiple of heads 5"):
        TokenTransformerConfig(width=24, heads=5)
