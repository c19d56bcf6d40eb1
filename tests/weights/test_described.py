"""What a folder's settings describe is the configuration that they were written from."""

from dataclasses import replace
from pathlib import Path

import pytest

from limner.errors import WeightsError
from limner.models import clip, flux, kl_vae, mmdit, t5, unet
from limner.weights import described, files, parts, parts_flux, parts_sd3, published
from limner.weights.settings import (
    flux_settings,
    mmdit_settings,
    t5_settings,
    text_settings,
    unet_settings,
    vae_settings,
)


def test_settings_are_read_as_they_are_written() -> None:
    small = replace(unet.SD15, channels=(16, 32), depths=(1, 0), layers=1, context=24, heads=2, groups=8)
    for config in (unet.SD15, unet.SD15_LCM, unet.SD21, unet.SDXL, unet.SDXL_REFINER, small):
        assert described.unet(unet_settings(config)) == config
    for autoencoder in (kl_vae.SD, kl_vae.SDXL, kl_vae.SD3, kl_vae.FLUX):
        assert described.vae(vae_settings(autoencoder)) == autoencoder
    for tower in (clip.TEXT_L, clip.TEXT_G, replace(clip.TEXT_H_SD2, left_out=0)):
        assert described.text(text_settings(tower)) == tower
    for long in (t5.T5_SMALL, t5.T5_XXL):
        assert described.t5(t5_settings(long)) == long
    for transformer in (mmdit.SD3_MEDIUM, mmdit.SD35_MEDIUM, mmdit.SD35_LARGE):
        assert described.mmdit(mmdit_settings(transformer)) == transformer
    for packed in (flux.FLUX_DEV, flux.FLUX_SCHNELL):
        assert described.flux(flux_settings(packed)) == packed


@pytest.mark.parametrize(
    "model",
    [parts.SD15, parts.SD21, parts.SDXL, parts.SDXL_REFINER, parts_sd3.SD35_LARGE, parts_flux.FLUX_DEV],
)
def test_published_models_are_left_to_those_who_know_them(tmp_path: Path, model: parts.Model) -> None:
    index: dict[str, object] = {"_class_name": model.pipeline}
    for part in model.parts:
        index[part.folder] = [part.kind.library, part.class_name]
        files.write_json(part.kind.settings(part.config), tmp_path / part.folder / "config.json")
    files.write_json(index, tmp_path / "model_index.json")
    (found,) = described.models(described.settings(tmp_path))
    assert (found.family, found.pipeline, found.main) == (model.family, model.pipeline, model.main)
    assert described.unpublished(tmp_path) == ()
    fresh = described.folder(tmp_path)
    assert fresh.tensors == {}
    assert fresh.prediction == model.usual if model.family == "sd" else fresh.prediction == "flow"


def test_other_families_are_none_of_these(tmp_path: Path) -> None:
    for model in published.ALL:
        if model.family not in ("sd", "sd3", "flux"):
            said = {part.folder: part.kind.settings(part.config) for part in model.parts}
            assert described.models(said) == ()
    files.write_json({"_class_name": "Nothing"}, tmp_path / "model_index.json")
    with pytest.raises(WeightsError, match="describes no Stable Diffusion"):
        described.folder(tmp_path)
