"""Folders and single files: written, recognised and read back; and what diffusers makes of them."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from limner.errors import WeightsError
from limner.weights import detect, files, folders, single_file
from limner.weights.convert import convert, tokenizers
from limner.weights.inspect import inspect
from limner.weights.published import ALL

_spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).with_name("tiny.py"))
assert _spec is not None
assert _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    folders.write(path, tiny.MODEL, tiny.random_tensors(), extras=tokenizers(tiny.MODEL))
    return path


@pytest.fixture
def single(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    single_file.write(path, tiny.MODEL, tiny.random_tensors())
    return path


@pytest.mark.parametrize("model", tiny.MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("layout", ["folder", "single"])
def test_what_is_written_is_recognised_and_equal(tmp_path: Path, model: object, layout: str) -> None:
    tensors = tiny.random_tensors(model)
    path = tmp_path / "m.safetensors"
    (folders if layout == "folder" else single_file).write(path, model, tensors, prediction="v")
    found = detect.identify(path, models=tiny.MODELS)
    assert (found.model, found.layout, found.prediction, found.notices) == (model, layout, "v", ())
    for name, held in tensors.items():
        loaded = detect.load(found, name, dtype=torch.bfloat16).state_dict()
        assert set(loaded) == set(held)
        assert all(torch.equal(loaded[key], held[key].bfloat16()) for key in held)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parity
def test_diffusers_loads_what_is_written(folder: Path) -> None:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    found = detect.identify(folder, models=tiny.MODELS)
    generator = torch.Generator().manual_seed(1)
    latents, context = (
        torch.randn(1, 4, 8, 8, generator=generator),
        torch.randn(1, 7, 24, generator=generator),
    )
    unet = detect.load(found, "unet")
    with torch.no_grad():
        theirs = pipeline.unet(latents, torch.tensor([500]), context).sample
        ours = unet(latents, torch.tensor([500.0]), context)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        decoded = pipeline.vae.decode(latents).sample
        assert (detect.load(found, "vae").decode(latents) - decoded).abs().max() <= 1e-5 * decoded.abs().max()
    assert pipeline.tokenizer("a cat").input_ids == [49406, 320, 2368, 49407]
    assert isinstance(pipeline.unet, UNet2DConditionModel)
    assert isinstance(pipeline.vae, AutoencoderKL)


@pytest.mark.parity
def test_diffusers_loads_the_refiners_folder(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline

    path = tmp_path / "refiner"
    folders.write(path, tiny.REFINER, tiny.random_tensors(tiny.REFINER), extras=tokenizers(tiny.REFINER))
    pipeline = DiffusionPipeline.from_pretrained(path, local_files_only=True)
    assert isinstance(pipeline, StableDiffusionXLImg2ImgPipeline)
    assert (pipeline.text_encoder, pipeline.tokenizer) == (None, None)
    assert (pipeline.config.requires_aesthetics_score, pipeline.config.force_zeros_for_empty_prompt) == (
        True,
        False,
    )
    assert pipeline.tokenizer_2("a cat", padding="max_length").input_ids[:5] == [49406, 320, 2368, 49407, 0]
    generator = torch.Generator().manual_seed(1)
    latents, context, pooled = (
        torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 7, 16), (1, 16))
    )
    ids = torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0]])
    found = detect.identify(path, models=tiny.MODELS)
    unet, text = detect.load(found, "unet"), detect.load(found, "text_encoder_2")
    with torch.no_grad():
        told = {"text_embeds": pooled, "time_ids": ids}
        theirs = pipeline.unet(latents, torch.tensor([500]), context, added_cond_kwargs=told).sample
        ours = unet(latents, torch.tensor([500.0]), context, added=(pooled, ids))
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        tokens = torch.tensor([[49406, 320, 2368, 49407]])
        embeds = pipeline.text_encoder_2(tokens).text_embeds
        projected = text(text.embed(tokens), tokens).projected
        assert (projected - embeds).abs().max() <= 1e-5 * embeds.abs().max()


@pytest.mark.parity
def test_what_diffusers_saves_is_read(folder: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.save_pretrained(tmp_path / "saved", variant="fp16", max_shard_size="200KB")
    assert len(list((tmp_path / "saved" / "unet").glob("*fp16-*"))) > 1
    found = detect.identify(tmp_path / "saved", variant="fp16", models=tiny.MODELS)
    assert found.model is tiny.MODEL
    for name, held in tiny.random_tensors().items():
        assert all(torch.equal(tensor, held[key]) for key, tensor in detect.ours(found, name).items())
    alone = detect.identify(tmp_path / "saved", models=tiny.MODELS)
    assert "unet is there as fp16 only, which was taken" in alone.notices


def test_shards_are_read_back(tmp_path: Path) -> None:
    folders.write(tmp_path / "m", tiny.MODEL, tiny.random_tensors(), variant="fp16", size=100_000)
    names = sorted(p.name for p in (tmp_path / "m" / "unet").iterdir())
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in names
    assert "diffusion_pytorch_model.fp16-00001-of-00011.safetensors" in names
    found = detect.identify(tmp_path / "m", variant="fp16", models=tiny.MODELS)
    held = tiny.random_tensors()["unet"]
    assert all(torch.equal(tensor, held[key]) for key, tensor in detect.ours(found, "unet").items())
    with pytest.raises(WeightsError, match=r'variant "ema" of .*; there are: config\.json'):
        detect.identify(tmp_path / "m", variant="ema", models=tiny.MODELS)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "../m.safetensors"}, "should be a .safetensors file beside it"),
        ({"a": "m.bin"}, "should be a .safetensors file beside it"),
        ({"a": 3}, "does not say in which file"),
        ({"a": "m.safetensors", "b": "m.safetensors"}, "promises tensors that its files do not hold: b"),
        ({"b": "m.safetensors"}, "does not say that m.safetensors holds a"),
        ({"a": "n.safetensors"}, "no weights at"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, places: dict[str, object], message: str) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "m.safetensors")
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(WeightsError, match=message):
        files.read(tmp_path / "x.index.json")


def test_what_is_not_known_says_what_it_resembles(single: Path) -> None:
    tensors = load_file(single)
    tensors["more.weight"] = torch.zeros(1)
    tensors["first_stage_model.strange.weight"] = torch.zeros(1)
    tensors["model.diffusion_model.out.2.weight"] = torch.zeros(5, 16, 3, 3)
    del tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"]
    save_file(tensors, single)
    with pytest.raises(WeightsError) as caught:
        detect.identify(single, models=tiny.MODELS)
    for part in (
        "resembles Tiny Diffusion most",
        "unet: 1 of another shape: model.diffusion_model.out.2.weight (5, 16, 3, 3)",
        "vae: 1 unknown: first_stage_model.strange.weight",
        "text_encoder: 1 missing: cond_stage_model.transformer.text_model.final_layer_norm.bias",
        "of no part: more.weight",
    ):
        assert part in str(caught.value)


def test_config_that_contradicts_the_model(folder: Path) -> None:
    config = files.read_json(folder / "unet" / "config.json")
    files.write_json(
        config | {"attention_head_dim": [4, 4], "sample_size": 7}, folder / "unet" / "config.json"
    )
    with pytest.raises(WeightsError, match=r"unet: .* config\.json attention_head_dim is \[4, 4\], not 2"):
        detect.identify(folder, models=tiny.MODELS)
    files.write_json(config | {"attention_head_dim": [2, 2]}, folder / "unet" / "config.json")
    assert detect.identify(folder, models=tiny.MODELS).model is tiny.MODEL


def test_pickles_in_folders_are_refused(folder: Path) -> None:
    at = folder / "unet" / "diffusion_pytorch_model.safetensors"
    at.rename(at.with_suffix(".bin"))
    with pytest.raises(
        WeightsError, match=r"\.bin is a pickle.*`limner convert diffusion_pytorch_model\.bin`"
    ):
        detect.identify(folder, models=tiny.MODELS)


def test_a_part_is_a_folder_beside_the_index(folder: Path) -> None:
    index = files.read_json(folder / "model_index.json")
    files.write_json(index | {"../x": ["diffusers", "AutoencoderKL"]}, folder / "model_index.json")
    with pytest.raises(WeightsError, match="no folder beside it"):
        detect.identify(folder, models=tiny.MODELS)


def test_what_the_model_predicts(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    single_file.write(path, tiny.OPEN, tiny.random_tensors(tiny.OPEN), prediction="v")
    tensors = load_file(path)
    save_file(tensors, path)

    def seen(prediction: str | None = None) -> tuple[str, int]:
        found = detect.identify(path, prediction=prediction, models=tiny.MODELS)
        return found.prediction, len(found.notices)

    found = detect.identify(path, models=tiny.MODELS)
    assert found.prediction == "v"
    assert "does not say whether it predicts v or eps; v is assumed" in found.notices[0]
    assert seen("eps") == ("eps", 0)
    (tmp_path / "m.yaml").write_text('model:\n  params:\n    parameterization: "v"  # 768\n')
    assert seen() == ("v", 0)
    assert seen("eps") == ("eps", 1)
    (tmp_path / "m.yaml").write_text("model:\n  params:\n    # parameterization: v\n")
    assert seen() == ("eps", 0)
    save_file(tensors | {"v_pred": torch.zeros(0)}, path)
    assert seen() == ("v", 0)
    with pytest.raises(WeightsError, match="predicts v or eps, not 'x0'"):
        seen("x0")


def test_leftovers_of_training_are_dropped(single: Path) -> None:
    more = ("model_ema.diffusion_modelout2weight", "betas", "alphas_cumprod", "posterior_variance")
    save_file(load_file(single) | {name: torch.zeros(3) for name in more}, single)
    found = detect.identify(single, models=tiny.MODELS)
    assert found.notices == ("model.safetensors holds averaged weights as well; they are left aside",)


def test_writing_is_all_or_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="exists already"):
        folders.write(folder, tiny.MODEL, tiny.random_tensors())
    tensors = tiny.random_tensors()
    del tensors["vae"]["decoder.last.weight"]
    tensors["vae"]["strange"] = torch.zeros(1)
    with pytest.raises(WeightsError, match="without a published name: strange"):
        folders.write(tmp_path / "new", tiny.MODEL, tensors)
    with pytest.raises(WeightsError, match="cannot be written without unet"):
        folders.write(tmp_path / "new", tiny.MODEL, {"vae": {}, "text_encoder": {}})
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_convert_there_and_back(folder: Path, tmp_path: Path) -> None:
    one, _ = convert(folder, to="single", models=tiny.MODELS)
    back, _ = convert(one, tmp_path / "back", to="folder", models=tiny.MODELS)
    half, _ = convert(one, dtype="float16", models=tiny.MODELS)
    assert (one.name, half.name) == ("model.safetensors", "model-float16.safetensors")
    for file in folder.rglob("*.safetensors"):
        before, after = load_file(file), load_file(back / file.relative_to(folder))
        assert set(before) == set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert {p.relative_to(folder) for p in folder.rglob("*")} == {
        p.relative_to(back) for p in back.rglob("*")
    }
    with pytest.raises(WeightsError, match="exists already"):
        convert(folder, to="single", models=tiny.MODELS)
    with pytest.raises(WeightsError, match="unknown type 'int8'"):
        convert(folder, dtype="int8", models=tiny.MODELS)


def test_convert_a_pickle(single: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": load_file(single), "epoch": 1}, tmp_path / "old.ckpt")
    with pytest.raises(WeightsError, match=r"is a pickle: .*`limner convert old\.ckpt`"):
        detect.identify(tmp_path / "old.ckpt", models=tiny.MODELS)
    path, notices = convert(tmp_path / "old.ckpt", models=tiny.MODELS)
    assert path == tmp_path / "old.safetensors"
    assert notices == ("left out, as no tensors: epoch",)
    assert detect.identify(path, models=tiny.MODELS).model is tiny.MODEL
    path.unlink()
    made, _ = convert(
        tmp_path / "old.ckpt", tmp_path / "made", to="folder", dtype="bfloat16", models=tiny.MODELS
    )
    assert (
        detect.load(detect.identify(made, models=tiny.MODELS), "vae").encoder.first.weight.dtype
        == torch.bfloat16
    )
    assert not path.exists()
    again, _ = convert(tmp_path / "old.ckpt", to="single", models=tiny.MODELS)
    assert again == path
    half, _ = convert(tmp_path / "old.ckpt", dtype="float16", models=tiny.MODELS)  # beside a whole one
    assert half.name == "old-float16.safetensors"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "made",
        "model.safetensors",
        "old-float16.safetensors",
        "old.ckpt",
        "old.safetensors",
    ]


def test_the_settings_beside_a_pickle_are_heard(tmp_path: Path) -> None:
    single = tmp_path / "m.safetensors"
    single_file.write(single, tiny.OPEN, tiny.random_tensors(tiny.OPEN), prediction="v")
    torch.save(load_file(single), tmp_path / "old.ckpt")
    (tmp_path / "old.yaml").write_text("model:\n  params:\n    timesteps: 1000\n")
    path, notices = convert(tmp_path / "old.ckpt", tmp_path / "made", to="folder", models=tiny.MODELS)
    assert notices == ()
    assert detect.identify(path, models=tiny.MODELS).prediction == "eps"


def test_inspect(folder: Path, single: Path) -> None:
    told = str(inspect(folder, tiny.MODELS))
    assert told.startswith("Tiny Diffusion, a diffusers folder\n  ")
    assert "predicts: eps" in told
    report = inspect(single, tiny.MODELS)
    count = sum(t.numel() for part in tiny.random_tensors().values() for t in part.values())
    assert sum(row.parameters for row in report.rows) == count
    assert {row.types for row in report.rows} == {"float32"}
    assert report.metadata["modelspec.prediction_type"] == "epsilon"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "layout"),
    [
        (model, layout)
        for model in ALL
        for layout in ("folder", "single")
        if layout == "folder" or model.single
    ],
    ids=lambda one: getattr(one, "name", one),
)
def test_real_models_are_told_apart(model: Any, layout: Any) -> None:
    """On the meta device, with every published name of every part."""
    parts = {
        part.folder: {
            name: torch.empty(shape, device="meta") for name, shape in detect.manifest(part, layout).items()
        }
        for part in model.parts
        if layout == "folder" or part.single_keys
    }
    held = parts if layout == "folder" else {name: t for part in parts.values() for name, t in part.items()}
    assert detect._model(Path("x"), layout, held, ALL) is model


def test_every_network_has_a_class_that_is_looked_for() -> None:
    for model in ALL:
        assert model.main in {part.folder for part in model.parts}
        assert model.optional <= {part.folder for part in model.parts} - {model.main}
        for part in model.parts:
            assert part.class_name in part.kind.classes
            assert set(part.kind.classes) <= set(folders.NETWORKS)
    assert len({model.name for model in ALL}) == len(ALL)


FLOWING = replace(
    tiny.MODEL,
    name="flowing",
    title="Flowing Diffusion",
    optional=frozenset({"text_encoder"}),
    predictions=("flow",),
    parts=(
        replace(tiny.MODEL.parts[0], prefix="", prefixes=("net.", "model.diffusion_model.")),
        *tiny.MODEL.parts[1:],
    ),
    tables={
        "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        "prior_scheduler": {"_class_name": "UnCLIPScheduler", "prediction_type": "sample"},
    },
)


@pytest.mark.parametrize("layout", ["folder", "single"])
def test_parts_that_a_model_can_do_without(tmp_path: Path, layout: str) -> None:
    tensors = tiny.random_tensors()
    del tensors["text_encoder"]
    path = tmp_path / "m.safetensors"
    (folders if layout == "folder" else single_file).write(path, FLOWING, tensors)
    found = detect.identify(path, models=(*tiny.MODELS, FLOWING))
    assert (found.model, found.absent, found.prediction) == (FLOWING, ("text_encoder",), "flow")
    assert set(found.tensors) == {"unet", "vae"}
    for ask in (detect.ours, detect.loader):
        with pytest.raises(WeightsError, match="has no text_encoder"):
            ask(found, "text_encoder")
    assert "not in it: text_encoder" in str(inspect(path, (FLOWING,), ()))
    other = "single" if layout == "folder" else "folder"
    out, _ = convert(path, tmp_path / "out", to=other, models=(FLOWING,))
    again = detect.identify(out, models=(FLOWING,))
    assert again.absent == ("text_encoder",)
    for part, held in tensors.items():
        assert all(torch.equal(tensor, held[key]) for key, tensor in detect.ours(again, part).items())
    del tensors["unet"]
    with pytest.raises(WeightsError, match="cannot be written without unet"):
        (folders if layout == "folder" else single_file).write(tmp_path / "none", FLOWING, tensors)


def test_a_folder_keeps_what_it_says_of_each_sampler(tmp_path: Path) -> None:
    own = {"prior_scheduler": {"clip_sample_range": 5.0}}
    folders.write(tmp_path / "m", FLOWING, tiny.random_tensors(), table={"shift": 2.5}, tables=own)
    found = detect.identify(tmp_path / "m", models=(FLOWING,))
    assert found.table == {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.5}
    assert found.tables["prior_scheduler"] == FLOWING.tables["prior_scheduler"] | own["prior_scheduler"]
    back, _ = convert(tmp_path / "m", tmp_path / "n", to="folder", models=(FLOWING,))
    assert detect.identify(back, models=(FLOWING,)).tables == found.tables
    index = files.read_json(back / "model_index.json")
    assert index["prior_scheduler"] == ["diffusers", "UnCLIPScheduler"]
    with pytest.raises(WeightsError, match="predicts flow, not 'v'"):
        detect.identify(back, prediction="v", models=(FLOWING,))


@pytest.mark.parametrize("prefix", FLOWING.parts[0].prefixes)
def test_other_prefixes_are_read_and_the_first_is_written(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "m.safetensors"
    single_file.write(path, FLOWING, tiny.random_tensors())
    first = load_file(path)
    bare = [name for name in first if not name.startswith(("first_stage_model.", "cond_stage_model."))]
    save_file(
        {prefix + name if name in bare else name: tensor for name, tensor in first.items()}
        | {"betas": torch.zeros(2)},
        path,
    )
    found = detect.identify(path, models=(*tiny.MODELS, FLOWING))
    assert found.model is (
        FLOWING if prefix == "net." else tiny.MODEL
    )  # of two that fit the first of the list
    assert set(found.tensors["unet"]) >= (set(bare) if prefix == "net." else set())


def test_what_is_in_folders_only_is_not_looked_for_in_files(single: Path, tmp_path: Path) -> None:
    only = replace(
        tiny.MODEL, parts=tuple(replace(part, single_keys=None) for part in tiny.MODEL.parts), name="only"
    )
    with pytest.raises(WeightsError, match="cannot be compared"):
        detect.identify(single, models=(only,))
    with pytest.raises(WeightsError, match="written as a folder only"):
        single_file.write(tmp_path / "x.safetensors", only, tiny.random_tensors())


def test_a_picture_tower_beside_stable_diffusion_is_passed_over(folder: Path) -> None:
    index = files.read_json(folder / "model_index.json")
    tower = {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}
    files.write_json(index | tower, folder / "model_index.json")
    (folder / "image_encoder").mkdir()
    save_file({"a": torch.zeros(1)}, folder / "image_encoder" / "model.safetensors")
    files.write_json({}, folder / "image_encoder" / "config.json")
    found = detect.identify(folder, models=tiny.MODELS)
    assert found.model is tiny.MODEL
    assert set(found.tensors) == {"unet", "vae", "text_encoder"}


def test_a_model_without_one_tensor_is_no_model(single: Path) -> None:
    tensors = load_file(single)
    name = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != name}, single)
    with pytest.raises(WeightsError, match="1 missing: " + name.replace(".", r"\.")):
        detect.identify(single, models=tiny.MODELS)
    with pytest.raises(WeightsError, match="cannot be compared"):
        detect.identify(single, models=())
    assert replace(tiny.MODEL, name="x") != tiny.MODEL


@pytest.mark.parametrize("to", ["folder", "single"])
def test_training_down_to_no_signal_is_kept(folder: Path, tmp_path: Path, to: Any) -> None:
    (file,) = folder.glob(f"*/{folders.PATH_FILE}")
    files.write_json(
        files.read_json(file) | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, file
    )
    out, _ = convert(folder, tmp_path / "out.safetensors", to=to, models=tiny.MODELS)
    found = detect.identify(out, models=tiny.MODELS)
    assert found.table["rescale_betas_zero_snr"] is True
    assert found.prediction == "v"
    back, _ = convert(out, tmp_path / "back", to="folder", models=tiny.MODELS)
    assert detect.identify(back, models=tiny.MODELS).table["rescale_betas_zero_snr"] is True


def test_a_folder_of_several_stages(tmp_path: Path) -> None:
    for name, model in (("I", tiny.MODEL), ("II", tiny.OPEN)):
        folders.write(tmp_path / name, model, tiny.random_tensors(model))
    report = inspect(tmp_path, models=tiny.MODELS)
    assert report.what == "a cascade, a folder of 2 stages"
    assert report.facts == {"I": tiny.MODEL.title, "II": tiny.OPEN.title}
    assert {"I/unet", "II/vae"} <= {row.name for row in report.rows}
    with pytest.raises(WeightsError, match=r"is a cascade, .*; convert its stages one by one: .*/I, "):
        convert(tmp_path, to="single", models=tiny.MODELS)


def test_a_folder_of_our_own_training(tmp_path: Path) -> None:
    for name, network in (("vqvae", "VQVAE"), ("prior", "TokenTransformer")):
        said = {"network": json.dumps({network: {"width": 3}})}
        files.save({"w": torch.zeros(3)}, tmp_path / f"{name}.safetensors", said)
    report = inspect(tmp_path)
    assert report.what == "a DALL-E of Limner's own training, a folder of 2 networks"
    assert report.facts["prior"] == '{"TokenTransformer": {"width": 3}}'
    assert [row.parameters for row in report.rows] == [3, 3]
    with pytest.raises(WeightsError, match=r"is a DALL-E of Limner's .* cannot be converted"):
        convert(tmp_path, to="folder")


def test_what_a_model_of_one_prediction_is_asked_for(folder: Path) -> None:
    models = (replace(tiny.MODEL, predictions=("flow",)),)
    with pytest.raises(WeightsError, match="predicts flow, not 'eps'; leave prediction out"):
        detect.identify(folder, prediction="eps", models=models)
