import torch
from torch import Tensor

from limner.nn.joint import JointBlock, Stream


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, CONTEXT, VECTOR = normal(2, 6, 16), normal(2, 3, 16, seed=1), normal(2, 16, seed=2)


def test_both_streams_look_at_each_other() -> None:
    block = JointBlock(16, 2, normed=True)
    x, context = block(X, CONTEXT, VECTOR)
    other_x, _ = block(X, CONTEXT + 1, VECTOR + 1)
    _, other_context = block(X.flip(2), CONTEXT, VECTOR)
    assert (x.shape, context.shape) == (X.shape, CONTEXT.shape)
    assert not torch.allclose(x, other_x)
    assert not torch.allclose(context, other_context)
    mixed = torch.randperm(6, generator=torch.Generator().manual_seed(3))  # tokens know no order
    torch.testing.assert_close(block(X[:, mixed], CONTEXT, VECTOR)[0], x[:, mixed])


def test_turns_are_told_of_all_tokens_text_first() -> None:
    block = JointBlock(16, 2, normed=False)
    seen = []

    def turn(heads: Tensor) -> Tensor:
        seen.append(heads)
        return heads

    turned = block(X, CONTEXT, VECTOR, turn)
    torch.testing.assert_close(turned, block(X, CONTEXT, VECTOR))
    assert [tuple(heads.shape) for heads in seen] == [(2, 2, 9, 8)] * 2
    keys = block.text.enter(CONTEXT, block.text.modulation(VECTOR))[1]
    torch.testing.assert_close(seen[1][:, :, :3], keys)


def test_the_text_of_the_last_block_ends_there() -> None:
    block = JointBlock(16, 2, normed=False, dual=True, last=True)
    x, context = block(X, CONTEXT, VECTOR)
    assert torch.equal(context, CONTEXT)
    assert not torch.allclose(x, X)
    assert {name.split(".")[0] for name, _ in block.text.named_parameters()} == {"modulation", "attention"}


def test_a_stream_alone_is_closed_by_its_gates() -> None:
    stream = Stream(16, 2, normed=False, dual=True)
    assert not torch.allclose(stream(X, VECTOR), X)
    torch.nn.init.zeros_(stream.modulation.linear.weight)
    torch.nn.init.zeros_(stream.modulation.linear.bias)
    assert torch.equal(stream(X, VECTOR), X)
