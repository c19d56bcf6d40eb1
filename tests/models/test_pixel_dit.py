from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limner.models.pixel_dit import PixelDiT, PixelDiTConfig

TINY = PixelDiTConfig(
    vocabulary=20,
    size=16,
    patch=4,
    width=32,
    depth=2,
    heads=2,
    bottleneck=16,
    text_depth=1,
    text_length=8,
    head_channels=8,
)


NAMES = [
    "blocks.0.k_scale",
    "blocks.0.mlp.inner.weight",
    "blocks.0.mlp.out.weight",
    "blocks.0.modulation",
    "blocks.0.norm1.scale",
    "blocks.0.norm2.scale",
    "blocks.0.out.weight",
    "blocks.0.q_scale",
    "blocks.0.qkv.weight",
    "blocks.0.text_kv.weight",
    "head.0.bias",
    "head.0.weight",
    "head.2.bias",
    "head.2.weight",
    "head.4.bias",
    "head.4.weight",
    "modulation.bias",
    "modulation.weight",
    "modulation_out.bias",
    "modulation_out.weight",
    "norm.scale",
    "patch_in.weight",
    "patch_out.bias",
    "patch_out.weight",
    "pooled_in.bias",
    "pooled_in.weight",
    "position",
    "text.blocks.0.mlp.inner.weight",
    "text.blocks.0.mlp.out.weight",
    "text.blocks.0.norm1.scale",
    "text.blocks.0.norm2.scale",
    "text.blocks.0.out.weight",
    "text.blocks.0.qkv.weight",
    "text.norm.scale",
    "text.position",
    "text.token.weight",
    "time_in.bias",
    "time_in.weight",
    "time_out.bias",
    "time_out.weight",
    "token_in.bias",
    "token_in.weight",
]


def network(config: PixelDiTConfig = TINY, *, awake: bool = True) -> PixelDiT:
    """Initialised; `awake` also gives the silent branches random weights."""
    model = PixelDiT(config)
    generator = torch.Generator().manual_seed(0)
    model.initialize(generator)
    if awake:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.eval()


def inputs(count: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t, t, tokens and the mask of those that are words."""
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(count, 3, 16, 16, generator=generator)
    tokens = torch.randint(1, 20, (count, 6), generator=generator)
    tokens[0, 4:] = 0
    return x_t, torch.rand(count, generator=generator), tokens, tokens != 0


@torch.no_grad()
def draw(model: PixelDiT, x_t: Tensor, t: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return model(x_t, t, *model.encode(tokens, mask), mask)


def test_shapes() -> None:
    model = network()
    x_t, t, tokens, mask = inputs()
    context, pooled = model.encode(tokens, mask)
    assert context.shape == (3, 6, 32)
    assert pooled.shape == (3, 32)
    picture, halfway = model.features(x_t, t, context, pooled, mask)
    assert picture.shape == x_t.shape
    assert halfway.shape == (3, 16, 32)
    torch.testing.assert_close(model(x_t, t, context, pooled, mask), picture)


def test_a_new_network_answers_with_nothing() -> None:
    """Silent branches: x0 = 0 whatever the input, the best guess of a network that knows nothing."""
    model = network(awake=False)
    assert draw(model, *inputs()).abs().max() == 0


def test_initialisation_sets_every_weight_and_repeats() -> None:
    shape = replace(TINY, labels=4)
    first, second = PixelDiT(shape), PixelDiT(shape)
    with torch.no_grad():
        for p in second.parameters():
            p.fill_(torch.nan)
    for model in (first, second):
        model.initialize(torch.Generator().manual_seed(3))
    for (name, p), (_, q) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def test_every_input_and_every_parameter_matters() -> None:
    model = network(replace(TINY, labels=5))
    x_t, t, tokens, mask = inputs()
    x_t.requires_grad_()
    t.requires_grad_()
    context, pooled = model.encode(tokens, mask)
    picture, halfway = model.features(x_t, t, context, pooled, mask)
    assert model.label is not None
    (picture.square().sum() + model.label(halfway).square().sum()).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert unused == []
    assert x_t.grad is not None
    assert x_t.grad.abs().amin((1, 2, 3)).max() > 0
    assert t.grad is not None
    assert (t.grad != 0).all()


def test_padding_changes_nothing() -> None:
    model = network()
    x_t, t, tokens, mask = inputs()
    expected = draw(model, x_t, t, tokens, mask)
    longer = torch.cat([tokens, torch.zeros(3, 2, dtype=torch.long)], 1)
    torch.testing.assert_close(draw(model, x_t, t, longer, longer != 0), expected)
    other = tokens.clone()
    other[0, 4:] = 7  # behind the mask
    torch.testing.assert_close(draw(model, x_t, t, other, mask)[0], expected[0])


def test_word_order_matters_and_pictures_do_not_see_each_other() -> None:
    model = network()
    x_t, t, tokens, mask = inputs()
    expected = draw(model, x_t, t, tokens, mask)
    swapped = tokens.clone()
    swapped[1, :2] = tokens[1, :2].flip(0)
    assert tokens[1, 0] != tokens[1, 1]
    out = draw(model, x_t, t, swapped, mask)
    assert (out[1] - expected[1]).abs().max() > 1e-3
    torch.testing.assert_close(out[[0, 2]], expected[[0, 2]])
    alone = draw(model, x_t[2:], t[2:], tokens[2:], mask[2:])
    torch.testing.assert_close(alone, expected[2:], rtol=1e-4, atol=1e-5)


def test_patches_are_read_and_written_at_their_own_place() -> None:
    """With silent blocks and head, a patch of the output depends on its own patch of the input alone."""
    model = network()
    with torch.no_grad():
        for silent in (*model.head.parameters(), *(p for b in model.blocks for p in b.out.parameters())):
            silent.zero_()
    x_t, t, tokens, mask = inputs(1)
    changed = x_t.clone()
    changed[:, :, 4:8, 8:12] += 1
    difference = (draw(model, changed, t, tokens, mask) - draw(model, x_t, t, tokens, mask)).abs().sum(1)[0]
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:8, 8:12] = True
    assert (difference[inside] > 0).all()
    assert difference[~inside].max() < 1e-5


def test_parameter_names_are_those_of_published_weights() -> None:
    """Pinned by what they are called: renaming one makes weights unreadable."""
    names = {name.replace("blocks.1.", "blocks.0.") for name, _ in network().named_parameters()}
    assert sorted(names) == NAMES


@pytest.mark.parametrize(("change", "said"), [({"size": 18}, "size 18"), ({"width": 33}, "width 33")])
def test_shapes_that_do_not_divide(change: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(TINY, **change)


def test_guidance_is_silent_until_it_is_learned() -> None:
    """Told or not, a new network says the same; once the embedding is no longer zero, the scale matters."""
    plain, told = PixelDiT(TINY), PixelDiT(replace(TINY, guidance_channels=8))
    plain.initialize(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # no branch silent
        for p in plain.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    told.initialize(torch.Generator().manual_seed(2))
    told.load_state_dict(plain.state_dict(), strict=False)
    assert set(told.state_dict()) - set(plain.state_dict()) == {"guidance_in.weight"}
    x, t = torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([0.3, 0.9])
    tokens = torch.randint(1, 20, (2, 5), generator=generator)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    text = (*plain.encode(tokens, mask), mask)
    scale = torch.tensor([1.0, 3.0])
    assert torch.equal(plain(x, t, *text), told(x, t, *text, scale))
    with torch.no_grad():
        assert told.guidance_in is not None
        told.guidance_in.weight.normal_(generator=generator)
    assert not torch.allclose(told(x, t, *text, scale), told(x, t, *text, scale + 1), atol=1e-4)
    torch.testing.assert_close(told(x, t, *text), told(x, t, *text, torch.zeros(2)))


@pytest.mark.parametrize("channels", [0, 8])
def test_what_a_row_is_told_depends_on_no_other_row(channels: int) -> None:
    model = network(replace(TINY, width=256, heads=4, guidance_channels=channels))
    generator = torch.Generator().manual_seed(0)
    t, pooled = torch.rand(32, generator=generator), torch.randn(32, 256, generator=generator)
    scales = 5 * torch.rand(32, generator=generator) if channels else None
    with torch.inference_mode():
        all_rows = model._told(t, pooled, scales)
        last = model._told(t[-1:], pooled[-1:], None if scales is None else scales[-1:])
    assert [torch.equal(part[-1:], one) for part, one in zip(all_rows, last, strict=True)] == [True, True]
    learned = model._told(t, pooled, scales)  # while it learns: all rows in one product
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(all_rows, learned, strict=True))
