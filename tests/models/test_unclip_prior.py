"""unCLIP's prior, projections and statistics agree with diffusers' on small random weights."""

import pytest
import torch
from diffusers.models.transformers.prior_transformer import PriorTransformer
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import Tensor, nn

from limner.errors import RequestError
from limner.models.unclip_prior import (
    Normaliser,
    PriorConfig,
    ProjectionConfig,
    UnCLIPPrior,
    UnCLIPProjection,
)
from limner.weights.keymap import KeyMap, to_ours
from limner.weights.maps.unclip_prior import diffusers_normaliser, diffusers_prior, diffusers_projection

pytestmark = pytest.mark.parity
PRIOR = PriorConfig(embedding=12, context=12, length=9, width=32, depth=3, heads=4)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def filled(ours: nn.Module, theirs: nn.Module, keys: KeyMap) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours.load_state_dict(to_ours(keys, theirs.state_dict(), "test"), strict=True)
    for network in (ours, theirs):
        network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def priors() -> tuple[UnCLIPPrior, PriorTransformer]:
    torch.manual_seed(0)
    theirs = PriorTransformer(
        num_attention_heads=4, attention_head_dim=8, num_layers=3, embedding_dim=12, num_embeddings=9
    )
    ours = UnCLIPPrior(PRIOR)
    filled(ours, theirs, diffusers_prior())
    return ours, theirs


@pytest.mark.parametrize("length", [2, 5, 9])
def test_the_prior_sees_what_theirs_sees_of_a_filled_up_text(
    priors: tuple[UnCLIPPrior, PriorTransformer], length: int
) -> None:
    ours, theirs = priors
    x, pooled, context = draw(2, 12, seed=1), draw(2, 12, seed=2), draw(2, 9, 12, seed=3)
    timestep = torch.tensor([999.0, 41.0])
    expected = theirs(x, timestep, pooled, context, torch.arange(9).expand(2, -1) < length)
    drawn = ours(x, timestep, pooled, context[:, :length])
    assert apart(drawn, expected.predicted_image_embedding) < 1e-5
    assert apart(ours.unscaled(drawn), theirs.post_process_latents(drawn)) < 1e-6


def test_a_text_that_is_too_long_is_refused(priors: tuple[UnCLIPPrior, PriorTransformer]) -> None:
    with pytest.raises(RequestError, match="10 tokens is longer than the 9"):
        priors[0](draw(1, 12, seed=1), torch.zeros(1), draw(1, 12, seed=2), draw(1, 10, 12, seed=3))


def test_the_projections() -> None:
    torch.manual_seed(0)
    theirs = UnCLIPTextProjModel(clip_embeddings_dim=12, time_embed_dim=20, cross_attention_dim=16)
    ours = UnCLIPProjection(ProjectionConfig(embedding=12, context=16, time=20))
    filled(ours, theirs, diffusers_projection())
    picture, pooled, context = draw(1, 12, seed=1), draw(2, 12, seed=2), draw(2, 7, 12, seed=3)
    rows, time = theirs(
        image_embeddings=picture,
        prompt_embeds=pooled,
        text_encoder_hidden_states=context,
        do_classifier_free_guidance=True,
    )
    for index, given in enumerate((None, picture)):
        seen = ours(given, pooled[index : index + 1], context[index : index + 1])
        assert apart(seen[0][0], rows[index]) < 1e-5
        assert apart(seen[1][0], time[index]) < 1e-5


def test_the_statistics() -> None:
    theirs = StableUnCLIPImageNormalizer(12)
    ours = Normaliser(12)
    filled(ours, theirs, diffusers_normaliser())
    picture = draw(2, 12, seed=1)
    assert apart(ours(picture), theirs.scale(picture)) < 1e-6
    assert apart(ours.unscaled(picture), theirs.unscale(picture)) < 1e-6
