"""How the built-in model comes out of its files, with the words and LoRAs of its user."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from limner.diffusion.paths import FlowPath
from limner.errors import WeightsError
from limner.families.base import Defaults, Family, Wishes
from limner.families.mini import BASE, DEFAULTS, UPSCALER, Mini
from limner.families.mini_learned import Wardrobe, with_words, words_in
from limner.models.pixel_dit import PixelDiT, PixelDiTConfig
from limner.models.upscaler import Upscaler, UpscalerConfig
from limner.text.tokenizers import WordTokenizer
from limner.weights import files, header


def load(folder: Path, device: torch.device, wishes: Wishes = Wishes()) -> Mini:
    """The model in a folder with base.safetensors and upscaler.safetensors, as `limner train` writes them,
    and the words in the folder of `wishes.embeddings`.

    Raises WeightsError when a file is missing, is of another kind, or does not fit.
    """
    base, upscaler = folder / BASE, folder / UPSCALER
    for path in (base, upscaler):
        if not path.is_file():
            raise WeightsError(
                f"{folder} has no {path.name}. A model folder holds {BASE} and {UPSCALER}: the "
                "weights.safetensors of a [denoise] and of an [upscale] run"
            )
    metadata = header.read_metadata(base)
    vocabulary = header.listed(metadata, "vocabulary", base)
    shape = header.network_config(metadata, "PixelDiT", PixelDiTConfig, base)
    if shape.vocabulary != len(vocabulary):
        raise WeightsError(f"{base}: {len(vocabulary)} words in the header for {shape.vocabulary} embeddings")
    objects, styles = (header.listed(metadata, key, base) for key in ("objects", "styles"))
    if unsaid := [word for word in (*objects, *styles) if word not in vocabulary]:
        raise WeightsError(f"{base}: the vocabulary in the header lacks {', '.join(unsaid[:5])}")
    told = header.read_metadata(upscaler)
    larger = header.network_config(told, "Upscaler", UpscalerConfig, upscaler)
    native = header.whole(told, "large", upscaler) if "large" in told else shape.size * larger.factor
    if native % larger.factor:
        raise WeightsError(f"{upscaler}: {native} pixels are no multiple of the factor {larger.factor}")
    few = _few_step(metadata, shape, base) if "few_step" in metadata else None
    words, passed_over = words_in(wishes.embeddings, shape.width)
    model = Mini(
        base=files.load(lambda: PixelDiT(shape), base, device),
        upscaler=files.load(lambda: Upscaler(larger), upscaler, device),
        tokenizer=WordTokenizer(vocabulary),
        objects=frozenset(objects),
        styles=styles,
        spells=metadata.get("spells") == "true",
        fingerprint=header.fingerprint([base, upscaler]),
        device=device,
        path=FlowPath(),
        defaults=replace(few[0] if few else DEFAULTS, size=(native, native)),
        scales=few[1] if few else None,
        wear=Wardrobe(wishes.loras).wear,
        notices=passed_over,
    )
    return with_words(model, words)


def _few_step(
    metadata: dict[str, str], shape: PixelDiTConfig, path: Path
) -> tuple[Defaults, tuple[float, float]]:
    """How weights that draw in few steps want to be used: defaults, and the guidance scales they know."""
    try:
        told = json.loads(metadata["few_step"])
        steps, scale, low, high = (told[key] for key in ("steps", "guidance", "low", "high"))
        fits = 1 <= steps <= 1000 and 0 <= low <= scale <= high <= 30 and shape.guidance_channels > 0
        if type(steps) is int and fits:
            defaults = replace(DEFAULTS, steps=steps, guidance=float(scale), sampler="lcm")
            return defaults, (float(low), float(high))
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise WeightsError(f"{path}: few_step in the header is broken; publish the weights again")


FAMILY = Family(
    name="mini",
    folder=Path(__file__).parents[1] / "weights" / "mini",
    marks=(BASE, UPSCALER),
    load=load,
)
