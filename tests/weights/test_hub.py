"""Which files of a hub repository are fetched, and what is said when they cannot be. No connection is
made."""

from pathlib import Path

import pytest

from limner.errors import WeightsError
from limner.weights import hub

NAMES = (
    "model_index.json",
    "README.md",
    "v1-5.ckpt",
    "v1-5.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
    "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
    "vae/diffusion_pytorch_model.safetensors.index.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "tokenizer/vocab.json",
    "scheduler/scheduler_config.json",
)


def test_only_what_is_needed() -> None:
    plain = set(hub.wanted("a/b", NAMES, None))
    assert plain == {
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
        "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
        "vae/diffusion_pytorch_model.safetensors.index.json",
        "tokenizer/vocab.json",
        "scheduler/scheduler_config.json",
    }
    half = set(hub.wanted("a/b", NAMES, "fp16"))
    assert {name for name in half if name.endswith(".safetensors")} == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }


def test_tokenizers_and_picture_towers() -> None:
    more = (
        "tokenizer_3/spiece.model",
        "tokenizer_3/tokenizer.json",
        "tokenizer_3/old.bin",
        "prior_tokenizer/merges.txt",
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
    )
    unseen = set(hub.wanted("a/b", (*NAMES, *more), None)) - set(hub.wanted("a/b", NAMES, None))
    assert unseen == {"tokenizer_3/spiece.model", "tokenizer_3/tokenizer.json", "prior_tokenizer/merges.txt"}
    names = (*NAMES, *more, "image_normalizer/diffusion_pytorch_model.safetensors")
    assert {"image_encoder/model.safetensors", names[-1]} <= set(hub.wanted("a/b", names, None))


def test_what_has_no_safetensors() -> None:
    with pytest.raises(
        WeightsError, match="no safetensors of the variant 'bf16'; there are the variants fp16, non_ema"
    ):
        hub.wanted("a/b", NAMES, "bf16")
    with pytest.raises(WeightsError, match="no diffusers repository"):
        hub.wanted("a/b", ["x.safetensors"], None)


@pytest.mark.parametrize("model", ["mini", "a/b/c", "../x", "a/..", "", "/a/b", "a/b@../x", "a b/c"])
def test_what_is_no_id(model: str) -> None:
    assert not hub.is_id(model)
    with pytest.raises(WeightsError, match="is no hub id"):
        hub.fetch(model)


def test_a_folder_on_the_disk_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.is_id("some/model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert not hub.is_id("some/model")


def test_offline_only_the_disk_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = []

    def absent(name: str, **more: object) -> str:
        asked.append(more)
        raise huggingface_hub.errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(WeightsError, match=r"a/b@main is not wholly on this disk, and the hub cannot"):
        hub.fetch("a/b@main")
    assert asked == [{"revision": "main", "local_files_only": True}]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **more: str(tmp_path))
    with pytest.raises(WeightsError, match="not wholly on this disk"):
        hub.fetch("a/b")
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    with pytest.raises(WeightsError, match="not wholly on this disk"):
        hub.fetch("a/b")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").touch()
    assert hub.fetch("a/b") == tmp_path
    with pytest.raises(WeightsError, match="not wholly on this disk"):
        hub.fetch("a/b", "fp16")


def test_without_a_connection_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Broken(Exception):
        """As a client's transport raises it."""

    def absent(name: str, **more: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("not here")

    def unreachable(self: object, name: str, **more: object) -> list[str]:
        raise Broken("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unreachable)
    with pytest.raises(
        WeightsError, match=r"a/b is not wholly on this disk, and .* Broken: no route to host"
    ):
        hub.fetch("a/b")
