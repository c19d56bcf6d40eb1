"""Grids of sections are the tables that DeepFloyd IF was published with."""

import pytest

from limner.diffusion import respacing
from limner.diffusion.paths import VPPath
from limner.errors import RequestError


def test_smart_grids_are_deepfloyds_tables() -> None:
    from diffusers.pipelines.deepfloyd_if import timesteps

    path = VPPath.cosine()
    for steps in (27, 50, 100, 185):
        assert respacing.smart(path, steps).t[:-1].tolist() == getattr(timesteps, f"smart{steps}_timesteps")
    assert respacing.sections(path, (10, 10, 3, 2, 2)).t[:-1].tolist() == timesteps.fast27_timesteps
    with pytest.raises(RequestError, match="27, 50, 100, 185 steps, got 28"):
        respacing.smart(path, 28)
    with pytest.raises(RequestError, match="at most 200"):
        respacing.sections(path, (1, 1, 1, 1, 201))
