"""Models of one's own size: what a diffusers folder's settings describe, in the families that are trained.

Published models are told by their tensors (`detect`). These are not in its lists, and a fresh one has no
tensors yet: the config.json of each part says what it is made of. What it says besides is for
`settings.differing` to judge.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from limner.errors import WeightsError
from limner.models.clip import CLIPTextConfig
from limner.models.flux import FluxConfig
from limner.models.kl_vae import KLVAEConfig
from limner.models.mmdit import MMDiTConfig
from limner.models.t5 import T5Config
from limner.models.unet import UNetConfig
from limner.weights import files, folders, numbers, parts, parts_flux, parts_sd3, published
from limner.weights.detect import Found
from limner.weights.maps import clip as clip_maps
from limner.weights.parts import Model, Part
from limner.weights.settings import differing

Settings = Mapping[str, Any]  # a config.json
OF_XL, OF_REFINER = 6, 5  # size ids
TRIED = ("eps", "v", "x0")  # what Stable Diffusion may predict, the usual first


def unet(said: Settings) -> UNetConfig:
    """The configuration of a UNet2DConditionModel. Raises KeyError, TypeError or ValueError for what is
    none, as the others here do."""
    channels = tuple(said["block_out_channels"])
    looks = tuple(name.startswith("CrossAttn") for name in said["down_block_types"])
    deep = said.get("transformer_layers_per_block", 1)
    deep = [deep] * len(channels) if isinstance(deep, int) else list(deep)
    heads = said["attention_head_dim"]  # diffusers means their number
    wide = isinstance(heads, list) and len(set(heads)) > 1
    sized = said.get("addition_embed_type") == "text_time"
    described = said.get("projection_class_embeddings_input_dim") or 0
    waves = (said.get("addition_time_embed_dim") or 256) if sized else 256
    sizes = (OF_REFINER if _refines(said) else OF_XL) if sized else 0
    return UNetConfig(
        inputs=said["in_channels"],
        outputs=said["out_channels"],
        channels=channels,
        depths=tuple(depth if look else 0 for depth, look in zip(deep, looks, strict=True)),
        middle=deep[-1],
        layers=said["layers_per_block"],
        context=said["cross_attention_dim"],
        heads=None if wide else heads[0] if isinstance(heads, list) else heads,
        head_channels=channels[0] // heads[0] if wide else UNetConfig().head_channels,
        pooled=described - sizes * waves,
        sizes=sizes,
        size_channels=waves,
        groups=said["norm_num_groups"],
        pointwise=not said.get("use_linear_projection", False),
        guidance=said.get("time_cond_proj_dim") or 0,
    )


def vae(said: Settings) -> KLVAEConfig:
    """The configuration of an AutoencoderKL."""
    return KLVAEConfig(
        channels=tuple(said["block_out_channels"]),
        layers=said["layers_per_block"],
        latents=said["latent_channels"],
        groups=said["norm_num_groups"],
        pointwise=said.get("use_quant_conv", True),
        scale_factor=said.get("scaling_factor", KLVAEConfig().scale_factor),
        shift=said.get("shift_factor") or 0.0,
    )


def text(said: Settings) -> CLIPTextConfig:
    """The configuration of a CLIPTextModel, with projection or without."""
    projected = "CLIPTextModelWithProjection" in said.get("architectures", ())
    return CLIPTextConfig(
        width=said["hidden_size"],
        depth=said["num_hidden_layers"],
        heads=said["num_attention_heads"],
        inner=said["intermediate_size"],
        activation="quick_gelu" if said["hidden_act"] == "quick_gelu" else "gelu",
        projection=said["projection_dim"] if projected else None,
        vocabulary=said.get("vocab_size", CLIPTextConfig().vocabulary),
        length=said.get("max_position_embeddings", CLIPTextConfig().length),
    )


def t5(said: Settings) -> T5Config:
    """The configuration of a T5EncoderModel."""
    return T5Config(
        vocabulary=said["vocab_size"],
        width=said["d_model"],
        head_width=said["d_kv"],
        heads=said["num_heads"],
        depth=said["num_layers"],
        inner=said["d_ff"],
        buckets=said.get("relative_attention_num_buckets", T5Config().buckets),
        distance=said.get("relative_attention_max_distance", T5Config().distance),
    )


def mmdit(said: Settings) -> MMDiTConfig:
    """The configuration of an SD3Transformer2DModel."""
    return MMDiTConfig(
        latents=said["in_channels"],
        patch=said["patch_size"],
        depth=said["num_layers"],
        heads=said["num_attention_heads"],
        head_width=said["attention_head_dim"],
        context=said["joint_attention_dim"],
        pooled=said["pooled_projection_dim"],
        positions=said["pos_embed_max_size"],
        normed=said.get("qk_norm") == "rms_norm",
        dual=len(said.get("dual_attention_layers") or ()),
    )


def flux(said: Settings) -> FluxConfig:
    """The configuration of a FluxTransformer2DModel."""
    patch = FluxConfig().patch
    inputs = said["in_channels"] // patch**2
    return FluxConfig(
        latents=(said.get("out_channels") or said["in_channels"]) // patch**2,
        inputs=inputs,
        heads=said["num_attention_heads"],
        axes=tuple(said.get("axes_dims_rope", FluxConfig().axes)),
        double=said["num_layers"],
        single=said["num_single_layers"],
        context=said["joint_attention_dim"],
        pooled=said["pooled_projection_dim"],
        guidance=bool(said.get("guidance_embeds")),
    )


def models(settings: Mapping[str, Settings]) -> tuple[Model, ...]:
    """The model that the settings of a folder's parts describe, if it is one of the families here."""
    main = settings.get("unet", settings.get("transformer", {}))
    make = {
        "UNet2DConditionModel": _stable_diffusion,
        "SD3Transformer2DModel": _sd3,
        "FluxTransformer2DModel": _flux,
    }.get(str(main.get("_class_name")))
    try:
        return () if make is None else (make(settings),)
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError):
        return ()


def unpublished(path: Path) -> tuple[Model, ...]:
    """As `models`, of the folder at `path`; none where a published model has the same shapes, and of what is
    no diffusers folder."""
    if not (path / folders.INDEX).is_file():
        return ()
    found = models(settings(path))
    known = {tuple(map(_shape, model.parts)) for model in published.ALL}
    return tuple(model for model in found if tuple(map(_shape, model.parts)) not in known)


def _shape(part: Part) -> object:
    """What of a part a folder's settings tell."""
    config = part.config
    return part.folder, replace(config, left_out=0) if isinstance(config, CLIPTextConfig) else config


def settings(path: Path) -> dict[str, Settings]:
    """The config.json of each network that a folder's model_index.json names. Raises WeightsError where one
    is missing, or says a number that is none."""
    index = files.read_json(path / folders.INDEX)
    parts = [
        name
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[1] in folders.NETWORKS
        if Path(name).name == name and (entry[1] not in folders.LEFT_OUT or (path / name).is_dir())
    ]
    return {name: numbers.network(path / name / "config.json") for name in parts}


def folder(path: Path, prediction: str | None = None) -> Found:
    """The model that the settings of a folder describe, with the tensors of those parts that have some.
    `prediction` None: as the folder says.

    Raises WeightsError when it describes none of the families here, or parts that Limner does not build so.
    """
    said = settings(path)
    found = models(said)
    if not found:
        raise WeightsError(
            f"{path} describes no Stable Diffusion and no FLUX: its settings are not those of a "
            "UNet2DConditionModel of theirs, an SD3Transformer2DModel or a FluxTransformer2DModel"
        )
    (model,) = found
    for part in model.parts:
        wrong = differing(part.kind.settings(part.config), dict(said.get(part.folder, {})))
        if wrong:
            told = ", ".join(f"{key} is {theirs!r}, not {ours!r}" for key, (ours, theirs) in wrong.items())
            raise WeightsError(f"{path / part.folder}: Limner builds no such network: {told}")
    tables = folders.samplers(path)
    table = tables.get(next(iter(model.tables)), {})
    predicted = prediction or (folders.prediction(path, table) if table else model.usual)
    if predicted not in model.predictions:
        raise WeightsError(f"a {model.title} predicts {' or '.join(model.predictions)}, not {predicted!r}")
    held = {
        part.folder: folders.read_part(path / part.folder)[0]
        for part in model.parts
        if any((path / part.folder).glob("*.safetensors*"))
    }
    return Found(
        model=model,
        path=path,
        layout="folder",
        tensors=held,
        prediction=predicted,
        table=table,
        tables=tables,
        absent=tuple(part.folder for part in model.parts if part.folder not in said),
        notices=(),
        metadata={},
    )


def _refines(said: Settings) -> bool:
    """Whether a U-Net is told of one size less, as XL's refiner is. Its pooled text is as wide as the text it
    reads, which comes from one tower."""
    return bool(
        said["projection_class_embeddings_input_dim"]
        == said["cross_attention_dim"] + OF_REFINER * said["addition_time_embed_dim"]
    )


def _stable_diffusion(settings: Mapping[str, Settings]) -> Model:
    config = unet(settings["unet"])
    odd = ("class_embed_type", "num_class_embeds", "only_cross_attention", "encoder_hid_dim")
    other = settings["unet"].get("addition_embed_type") not in (None, "text_time")
    if other or any(settings["unet"].get(name) for name in odd):
        raise ValueError("of another family")
    base = {OF_XL: parts.SDXL, OF_REFINER: parts.SDXL_REFINER}.get(config.sizes, parts.SD15)
    prefixes = {part.folder: part.prefix for part in base.parts}
    if not config.pointwise and not config.sizes:
        base, prefixes = parts.SD21, prefixes | {"text_encoder": clip_maps.SD2_PREFIX}
    texts = [
        parts.text_part(text(settings[part.folder]), prefixes[part.folder], part.folder)
        for part in base.parts
        if part.folder.startswith("text_encoder")
    ]
    return _like(base, parts.unet_part(config), _vae(settings, base), *texts, predictions=TRIED)


def _sd3(settings: Mapping[str, Settings]) -> Model:
    base = parts_sd3.SD3_MEDIUM
    config, prefixes = mmdit(settings["transformer"]), {part.folder: part.prefix for part in base.parts}
    clips = [
        parts.text_part(text(settings[name]), prefixes[name], name)
        for name in ("text_encoder", "text_encoder_2")
    ]
    third = t5(settings["text_encoder_3"]) if "text_encoder_3" in settings else base.parts[-1].config
    long = parts.t5_part(third, "text_encoder_3")
    return _like(base, parts_sd3.transformer_part(config), _vae(settings, base), *clips, long)


def _flux(settings: Mapping[str, Settings]) -> Model:
    config = flux(settings["transformer"])
    base = parts_flux.FLUX_DEV if config.guidance else parts_flux.FLUX_SCHNELL
    prefixes = {part.folder: part.prefix for part in base.parts}
    first = parts.text_part(text(settings["text_encoder"]), prefixes["text_encoder"])
    second = parts.t5_part(t5(settings["text_encoder_2"]), "text_encoder_2")
    return _like(base, parts_flux.flux_part(config), _vae(settings, base), first, second)


def _vae(settings: Mapping[str, Settings], base: Model) -> Part:
    return replace(base.part("vae"), config=vae(settings["vae"]))


def _like(base: Model, *own: Part, predictions: tuple[str, ...] = ("flow",)) -> Model:
    """A model of the family of `base`, with parts of its own; its size is that of its folder's U-Net."""
    return replace(
        base,
        name=f"{base.name}-own",
        title=f"{base.title} of another size",
        parts=own,
        predictions=predictions,
    )
