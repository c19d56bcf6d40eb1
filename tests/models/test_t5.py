import pytest
import torch
import transformers
from torch import Tensor

from limner.models.t5 import T5_SMALL, T5_XXL, T5Config, T5Encoder, buckets
from limner.weights import files
from limner.weights.keymap import to_ours
from limner.weights.maps.t5 import transformers_t5

TINY = T5Config(vocabulary=60, width=32, head_width=8, heads=6, depth=2, inner=48)


def reference() -> transformers.T5EncoderModel:
    config = transformers.T5Config(
        vocab_size=60,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    theirs = transformers.T5EncoderModel(config)
    generator = torch.Generator().manual_seed(0)
    for weight in theirs.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    return theirs.eval().requires_grad_(False)


def ours_of(theirs: torch.nn.Module) -> T5Encoder:
    tensors = to_ours(transformers_t5(TINY), theirs.state_dict(), "test")
    return files.fill(lambda: T5Encoder(TINY), tensors, "test")


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 60, (2, 150), generator=torch.Generator().manual_seed(1))


@pytest.mark.parity
def test_encoder_equals_the_reference(tokens: Tensor) -> None:
    theirs = reference()
    assert far(ours_of(theirs)(tokens), theirs(tokens).last_hidden_state) < 1e-5


@pytest.mark.parity
def test_padding_is_not_seen(tokens: Tensor) -> None:
    theirs = reference()
    mask = torch.arange(150) < torch.tensor([[150], [7]])
    want = theirs(tokens, attention_mask=mask.long()).last_hidden_state
    got = ours_of(theirs)(tokens, mask)
    assert far(got, want) < 1e-5
    other = tokens.clone()
    other[1, 7:] = 3
    assert torch.equal(ours_of(theirs)(other, mask)[1, :7], got[1, :7])


@pytest.mark.parity
def test_buckets_equal_the_reference() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    offsets = torch.arange(-400, 401)[None]
    for count, distance in ((32, 128), (16, 40)):
        want = T5Attention._relative_position_bucket(offsets, True, count, distance)
        assert torch.equal(buckets(offsets, count, distance), want)


def test_float16_does_not_overflow(tokens: Tensor) -> None:
    """The last product of the published XXL goes beyond 65,504."""
    theirs = reference()
    for block in theirs.encoder.block:
        block.layer[1].DenseReluDense.wo.weight.data *= 1e4
        block.layer[1].DenseReluDense.wi_1.weight.data *= 10
    exact = ours_of(theirs)
    half = ours_of(theirs).half()
    stream = torch.cat([block.outer.weight.abs().flatten() for block in exact.blocks])
    assert stream.max() < torch.finfo(torch.float16).max
    want = exact(tokens)
    assert exact.blocks[0](exact.token(tokens), torch.zeros(1, 6, 150, 150)).abs().max() > 65_504
    got = half(tokens)
    assert got.dtype == torch.float16
    assert far(got.float(), want) < 2e-2


def test_bfloat16_stays(tokens: Tensor) -> None:
    theirs = reference()
    got = ours_of(theirs).bfloat16()(tokens)
    assert got.dtype == torch.bfloat16
    assert far(got.float(), ours_of(theirs)(tokens)) < 0.1


def test_sizes_of_the_published_encoders() -> None:
    for config, millions in ((T5_SMALL, 35.3), (T5_XXL, 4762.3)):
        network = files.empty(lambda config=config: T5Encoder(config))
        assert abs(sum(weight.numel() for weight in network.parameters()) / 1e6 - millions) < 0.1
