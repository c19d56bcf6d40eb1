"""How a DALL-E comes out of a folder of own training."""

from pathlib import Path

import torch

from limner.errors import WeightsError
from limner.families.base import Family
from limner.families.dalle import DallE, Judge
from limner.families.drawn import DrawnWords
from limner.weights import dalle, header

VQVAE, PRIOR, CLIP = "vqvae.safetensors", "prior.safetensors", "clip.safetensors"  # in a model's folder


def load(folder: Path, device: torch.device) -> DallE:
    """The model in a folder with vqvae.safetensors, prior.safetensors and, to rank candidates by,
    clip.safetensors, as `limner train` writes them.

    Raises WeightsError when a file is missing, is of another kind, or does not fit.
    """
    vqvae, prior, clip = folder / VQVAE, folder / PRIOR, folder / CLIP
    for path in (vqvae, prior):
        if not path.is_file():
            raise WeightsError(
                f"{folder} has no {path.name}. A DALL-E's folder holds {VQVAE}, {PRIOR} and, to rank "
                f"candidates, {CLIP}: the weights.safetensors of a [vqvae], an [ar_prior] and a [clip] run"
            )
    codes = dalle.load_vqvae(vqvae, device)
    network, said = dalle.load_prior(prior, vqvae, device)
    shape, learned = network.config, codes.config
    if (shape.coarse_codes, shape.fine_codes, 2 * shape.side) != (
        learned.coarse_codes,
        learned.fine_codes,
        learned.fine,
    ):
        raise WeightsError(f"{prior} foretells codes of another number than {vqvae} has; train it again")
    judge = None
    if clip.is_file():
        contrast, known = dalle.load_contrast(clip, device)
        judge = Judge(network=contrast, tokenizer=known.tokenizer)
    return DallE(
        vqvae=codes,
        prior=network,
        tokenizer=said.tokenizer,
        words=DrawnWords(objects=frozenset(said.objects), styles=said.styles, spells=said.spells),
        judge=judge,
        fingerprint=header.fingerprint([vqvae, prior, *([clip] if judge else [])]),
        device=device,
    )


FAMILY = Family(
    name="dalle",
    marks=(PRIOR,),
    load=lambda path, device, wishes: load(path, device),
)
