from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from limner.errors import RequestError
from limner.models.clip import (
    CLIP,
    CLIPText,
    CLIPTextConfig,
    CLIPVision,
    CLIPVisionConfig,
    clip_pixels,
)
from limner.weights.keymap import to_ours
from limner.weights.maps.clip import transformers_clip, transformers_text, transformers_vision

TEXT = CLIPTextConfig(width=32, depth=3, heads=4, inner=48, projection=24, vocabulary=100, length=16, end=99)
VISION = CLIPVisionConfig(width=32, depth=2, heads=4, inner=48, projection=24, size=28, patch=7)
ENDS = ((1, 5, 99, 7, 99, 2), (3, 4, 5, 6, 7, 99))  # where the text ends differs; the first 99 counts


def reference_text(activation: str = "quick_gelu") -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        projection_dim=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        hidden_act=activation,
        eos_token_id=99,
    )


def reference_vision(activation: str = "quick_gelu") -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=7,
        hidden_act=activation,
    )


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """Every weight of a size that shows, biases and scales of norms included."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    return network.eval().requires_grad_(False)


def far(a: Tensor, b: Tensor) -> float:
    """Relative difference: max|a - b| / max|b|."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parity
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_tower_equals_the_reference(activation: str) -> None:
    theirs = shaken(transformers.CLIPTextModelWithProjection(reference_text(activation)))
    config = replace(TEXT, activation=activation)
    ours = CLIPText(config).requires_grad_(False)
    ours.load_state_dict(to_ours(transformers_text(config), theirs.state_dict(), "test"))
    tokens = torch.tensor(ENDS)
    want = theirs(tokens, output_hidden_states=True)
    for skip, norm in ((1, True), (1, False), (2, True), (2, False), (3, False)):
        got = ours(ours.embed(tokens), tokens, skip=skip, norm=norm)
        layer = want.hidden_states[-skip]
        expected = theirs.text_model.final_layer_norm(layer) if norm else layer
        assert far(got.context, expected) < 1e-5
        assert far(got.last, want.last_hidden_state) < 1e-5
        assert far(got.projected, want.text_embeds) < 1e-5
    plain = transformers.CLIPTextModel(reference_text(activation)).eval().requires_grad_(False)
    plain.load_state_dict(theirs.text_model.state_dict())
    assert far(got.pooled, plain(tokens).pooler_output) < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_picture_tower_equals_the_reference(activation: str) -> None:
    theirs = shaken(transformers.CLIPVisionModelWithProjection(reference_vision(activation)))
    ours = CLIPVision(replace(VISION, activation=activation)).requires_grad_(False)
    ours.load_state_dict(to_ours(transformers_vision(), theirs.state_dict(), "test"))
    prepared = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    got, want = ours(prepared), theirs(prepared)
    assert far(got.last, want.last_hidden_state) < 1e-5
    assert far(got.projected, want.image_embeds) < 1e-5


@pytest.mark.parity
def test_similarity_equals_the_reference() -> None:
    config = transformers.CLIPConfig(
        text_config=reference_text().to_dict(), vision_config=reference_vision().to_dict(), projection_dim=24
    )
    theirs = shaken(transformers.CLIPModel(config))
    ours = CLIP(TEXT, VISION).requires_grad_(False)
    ours.load_state_dict(to_ours(transformers_clip(TEXT), theirs.state_dict(), "test"))
    pixels = torch.rand(3, 3, 40, 60, generator=torch.Generator().manual_seed(2)) * 2 - 1
    tokens = torch.tensor(ENDS)
    want = theirs(input_ids=tokens, pixel_values=clip_pixels(pixels, 28))
    cosines = ours.similarity(pixels, tokens)
    assert cosines.shape == (3, 2)
    assert cosines.abs().max() <= 1
    assert far(ours.logit_scale.exp() * cosines, want.logits_per_image) < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("size", [(300, 500), (512, 512), (100, 70)])
def test_preparation_equals_the_reference(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    want = transformers.CLIPImageProcessorPil()(picture, return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    got = clip_pixels(pixels)
    assert got.shape == want.shape == (1, 3, 224, 224)
    level = 1 / 255 / 0.26  # the normalised height of one of 256 levels
    assert (got - want).abs().max() < 2.1 * level  # at sharp edges
    assert (got - want).abs().mean() < 0.05 * level


def test_context_sees_no_later_token() -> None:
    torch.manual_seed(0)
    network = CLIPText(TEXT).eval()
    one, other = torch.tensor([[1, 2, 3, 99]]), torch.tensor([[1, 2, 3, 50]])
    a, b = (network(network.embed(tokens), tokens) for tokens in (one, other))
    assert torch.equal(a.context[:, :3], b.context[:, :3])
    assert not torch.allclose(a.context[:, 3], b.context[:, 3])


def test_learned_vectors_take_the_place_of_tokens() -> None:
    torch.manual_seed(0)
    network = CLIPText(TEXT).eval()
    tokens, swapped = torch.tensor([[1, 2, 99]]), torch.tensor([[1, 7, 99]])
    vectors = network.embed(tokens).clone()
    vectors[0, 1] = network.token.weight[7]
    assert torch.equal(network(vectors, tokens).last, network(network.embed(swapped), swapped).last)


def test_what_cannot_be_encoded_says_why() -> None:
    network = CLIPText(TEXT)
    tokens = torch.zeros(1, 17, dtype=torch.long)
    with pytest.raises(RequestError, match=r"17 tokens are more than 16.*chunks"):
        network(network.embed(tokens), tokens)
    few = tokens[:, :4]
    for skip in (0, 4):
        with pytest.raises(RequestError, match=f"clip-skip {skip} is not between 1 and the 3"):
            network(network.embed(few), few, skip=skip)
    with pytest.raises(ValueError, match="text ends in None dimensions, pictures in 24"):
        CLIP(replace(TEXT, projection=None), VISION)
