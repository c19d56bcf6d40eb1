"""Maps of T5: over names and shapes of the published files."""

import pytest
import torch
import transformers

from limner.errors import WeightsError
from limner.models.t5 import T5_SMALL, T5_XXL, T5Config, T5Encoder
from limner.weights import files
from limner.weights.keymap import to_ours, to_theirs
from limner.weights.maps.t5 import T5_PREFIX, transformers_t5
from limner.weights.settings import t5_settings


def published(config: T5Config) -> dict[str, torch.Tensor]:
    """A T5EncoderModel's file, on the meta device: the embedding is in it once."""
    with torch.device("meta"):
        theirs = transformers.T5EncoderModel(transformers.T5Config(**t5_settings(config)))
    tensors = theirs.state_dict()
    tensors.pop("encoder.embed_tokens.weight", None)
    return dict(tensors)


def shapes(named: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named.items()}


@pytest.mark.parametrize("prefix", ["", T5_PREFIX])
@pytest.mark.parametrize("config", [T5_SMALL, T5_XXL], ids=["small", "xxl"])
def test_published_files_become_ours_and_again_themselves(config: T5Config, prefix: str) -> None:
    network = files.empty(lambda: T5Encoder(config))
    theirs = {prefix + name: tensor for name, tensor in published(config).items()}
    rules = transformers_t5(config, prefix)
    assert len(theirs) == 9 * config.depth + 3
    assert shapes(to_ours(rules, theirs, "test")) == shapes(network.state_dict())
    assert shapes(to_theirs(rules, network.state_dict())) == shapes(theirs)


def test_the_embedding_may_be_there_twice_or_by_its_other_name_and_a_decoder_besides() -> None:
    rules, theirs = transformers_t5(T5_SMALL), published(T5_SMALL)
    usual = to_ours(rules, theirs, "test")
    other = "encoder.embed_tokens.weight"
    copy = torch.empty(1, 1)
    for twice in ({other: copy, **theirs}, {**theirs, other: copy}):
        assert shapes(to_ours(rules, twice, "test")) == shapes(usual)
    alone = {**theirs, other: theirs["shared.weight"]}
    del alone["shared.weight"]
    assert to_ours(rules, alone, "test").keys() == usual.keys()
    whole = {**theirs, "lm_head.weight": copy, "decoder.block.0.layer.0.SelfAttention.q.weight": copy}
    assert to_ours(rules, whole, "test").keys() == usual.keys()
    with pytest.raises(WeightsError, match=r"DenseReluDense\.wi\.weight"):  # version 1.0 has no gate
        to_ours(rules, {**theirs, "encoder.block.0.layer.1.DenseReluDense.wi.weight": copy}, "test")
