"""What a published model is made of: its networks, and where each lies in folders and in single files; and
Stable Diffusion's. Those of other families stand in parts_*.py, all of them together in `published`.

A model is a value. What it is called is decided in `detect`, by names and shapes, never by a file's name.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from limner.models import clip, kl_vae, t5, unet
from limner.weights.keymap import KeyMap
from limner.weights.maps import clip as clip_maps
from limner.weights.maps import kl_vae as vae_maps
from limner.weights.maps import t5 as t5_maps
from limner.weights.maps import unet as unet_maps
from limner.weights.settings import BETAS, t5_settings, text_settings, unet_settings, vae_settings

Shapes = dict[str, tuple[int, ...]]
TABLE = "scheduler_config".removesuffix("_config")  # folder of what most models say about their path


def _untold(config: Any) -> Shapes:
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of network: how it is built and called."""

    build: Callable[[Any], nn.Module]  # from its configuration
    folder_keys: Callable[[Any], KeyMap]  # names in a diffusers folder <-> ours
    settings: Callable[[Any], dict[str, object]]  # its config.json, with _class_name or architectures
    library: str  # in model_index.json
    stem: str  # of its weights in a folder
    classes: tuple[str, ...]  # what model_index.json may call it
    tokenizer: str | None = None  # class of the tokenizer in the folder beside; None: it reads no text
    telling: Callable[[Any], Shapes] = _untold  # our names and shapes of a few tensors, no two configurations
    # of which are alike: by them `detect` finds the likely models before it builds any. Of main parts only


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One network of a model."""

    folder: str  # in a diffusers folder; also the part's name
    kind: Kind
    config: Any  # the configuration of its network
    prefix: str = ""  # in a single file
    prefixes: tuple[str, ...] = ()  # others that are read, too, and never written
    single_keys: Callable[[Any, str], KeyMap] | None = None
    # names in a single file, prefix and all <-> ours; None: it is in folders only

    def build(self) -> nn.Module:
        """The network, as `files.fill` wants to be given it."""
        return self.kind.build(self.config)

    @property
    def class_name(self) -> str:
        """In model_index.json."""
        settings = self.kind.settings(self.config)
        architectures = settings.get("architectures")
        return str(architectures[0] if isinstance(architectures, list) else settings["_class_name"])

    @property
    def tokenizer(self) -> str | None:
        """The folder of its tokenizer; None: it reads no text."""
        return self.folder.replace("text_encoder", "tokenizer") if self.kind.tokenizer else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A published model, whatever its weights were trained on."""

    name: str  # one word
    title: str
    family: str  # a name in families.FAMILIES
    main: str  # the part that tells it from other models
    parts: tuple[Part, ...]
    optional: frozenset[str] = frozenset()  # parts that a folder or file may lack
    predictions: tuple[str, ...]  # what its networks may predict, the usual first: "eps", "v", "x0", "flow"
    size: int  # side in pixels that it was trained at
    pipeline: str  # in model_index.json
    index: Mapping[str, object] = field(default_factory=dict, hash=False)  # what else model_index.json says
    tables: Mapping[str, Mapping[str, object]] = field(  # folder -> what its *_config.json says of a path and
        default_factory=lambda: {TABLE: BETAS},
        hash=False,  # a sampler; `predictions` are those of the first
    )

    def part(self, folder: str) -> Part:
        """The part called `folder`."""
        return next(part for part in self.parts if part.folder == folder)

    def lacking(self, names: Iterable[str]) -> list[str]:
        """Parts that are not among `names` and that it cannot do without."""
        held = {*names, *self.optional}
        return [part.folder for part in self.parts if part.folder not in held]

    @property
    def usual(self) -> str:
        """What it predicts where nothing is said: eps, if it can be."""
        return "eps" if "eps" in self.predictions else self.predictions[0]

    @property
    def single(self) -> bool:
        """Whether it is published in single files as well."""
        return all(part.single_keys or part.folder in self.optional for part in self.parts)


def unet_telling(config: unet.UNetConfig) -> Shapes:
    """What comes in, and what the middle hears."""
    return {
        "first.weight": (config.channels[0], config.inputs, 3, 3),
        "middle.0.transformer.blocks.0.text.k.weight": (config.channels[-1], config.context),
        **({"guidance.weight": (config.channels[0], config.guidance)} if config.guidance else {}),
    }


UNET = Kind(
    build=unet.UNet,
    folder_keys=unet_maps.diffusers_unet,
    settings=unet_settings,
    library="diffusers",
    stem="diffusion_pytorch_model",
    classes=("UNet2DConditionModel",),
    telling=unet_telling,
)
VAE = Kind(
    build=kl_vae.KLVAE,
    folder_keys=lambda config: vae_maps.diffusers_vae(),
    settings=vae_settings,
    library="diffusers",
    stem="diffusion_pytorch_model",
    classes=("AutoencoderKL",),
)
TEXT = Kind(
    build=clip.CLIPText,
    folder_keys=clip_maps.transformers_text,
    settings=text_settings,
    library="transformers",
    stem="model",
    classes=("CLIPTextModel", "CLIPTextModelWithProjection"),
    tokenizer="CLIPTokenizer",
)


T5 = Kind(
    build=t5.T5Encoder,
    folder_keys=t5_maps.transformers_t5,
    settings=t5_settings,
    library="transformers",
    stem="model",
    classes=("T5EncoderModel",),
    tokenizer="T5TokenizerFast",
)


def unet_part(config: unet.UNetConfig) -> Part:
    """A U-Net."""
    return Part(
        folder="unet",
        kind=UNET,
        config=config,
        prefix="model.diffusion_model.",
        single_keys=unet_maps.ldm_unet,
    )


def vae_part(config: kl_vae.KLVAEConfig) -> Part:
    """An autoencoder."""
    return Part(
        folder="vae", kind=VAE, config=config, prefix=vae_maps.LDM_PREFIX, single_keys=vae_maps.ldm_vae
    )


def text_part(config: clip.CLIPTextConfig, prefix: str, folder: str = "text_encoder") -> Part:
    """A text encoder. The prefix tells in which of two namings single files have it."""
    openclip = prefix.endswith(".model.")
    keys = clip_maps.openclip_text if openclip else clip_maps.transformers_text
    return Part(folder=folder, kind=TEXT, config=config, prefix=prefix, single_keys=keys)


def t5_part(config: t5.T5Config, folder: str, prefix: str = t5_maps.T5_PREFIX) -> Part:
    """A T5."""
    return Part(folder=folder, kind=T5, config=config, prefix=prefix, single_keys=t5_maps.transformers_t5)


LCM = BETAS | {"_class_name": "LCMScheduler", "original_inference_steps": 50, "timestep_scaling": 10.0}
UNFILTERED = {"safety_checker": [None, None], "feature_extractor": [None, None]}
SD15 = Model(
    name="sd15",
    title="Stable Diffusion 1",
    family="sd",
    main="unet",
    parts=(unet_part(unet.SD15), vae_part(kl_vae.SD), text_part(clip.TEXT_L, clip_maps.SD1_PREFIX)),
    predictions=("eps", "v"),
    size=512,
    pipeline="StableDiffusionPipeline",
    index=UNFILTERED,
)
SD15_INPAINTING = replace(
    SD15,
    name="sd15-inpainting",
    title="Stable Diffusion 1 for inpainting",
    parts=(unet_part(unet.SD15_INPAINTING), *SD15.parts[1:]),
    pipeline="StableDiffusionInpaintPipeline",
)
SD15_LCM = replace(
    SD15,
    name="sd15-lcm",
    title="Stable Diffusion 1 as a latent consistency model",
    parts=(unet_part(unet.SD15_LCM), *SD15.parts[1:]),
    predictions=("eps",),
    pipeline="LatentConsistencyModelPipeline",
    tables={TABLE: LCM},
)
SD21 = Model(
    name="sd21",
    title="Stable Diffusion 2",
    family="sd",
    main="unet",
    parts=(unet_part(unet.SD21), vae_part(kl_vae.SD), text_part(clip.TEXT_H_SD2, clip_maps.SD2_PREFIX)),
    predictions=("v", "eps"),  # 768 pixels and 512 (base): one shape
    size=768,
    pipeline="StableDiffusionPipeline",
    index=UNFILTERED,
)
SD21_INPAINTING = replace(
    SD21,
    name="sd21-inpainting",
    title="Stable Diffusion 2 for inpainting",
    parts=(unet_part(unet.SD21_INPAINTING), *SD21.parts[1:]),
    predictions=("eps", "v"),
    size=512,
    pipeline="StableDiffusionInpaintPipeline",
)
SDXL = Model(
    name="sdxl",
    title="Stable Diffusion XL",
    family="sd",
    main="unet",
    parts=(
        unet_part(unet.SDXL),
        vae_part(kl_vae.SDXL),
        text_part(clip.TEXT_L, clip_maps.SDXL_FIRST_PREFIX),
        text_part(clip.TEXT_G, clip_maps.SDXL_SECOND_PREFIX, "text_encoder_2"),
    ),
    predictions=("eps", "v"),
    size=1024,
    pipeline="StableDiffusionXLPipeline",
    index={"force_zeros_for_empty_prompt": True},
)
SDXL_INPAINTING = replace(
    SDXL,
    name="sdxl-inpainting",
    title="Stable Diffusion XL for inpainting",
    parts=(unet_part(unet.SDXL_INPAINTING), *SDXL.parts[1:]),
    pipeline="StableDiffusionXLInpaintPipeline",
)
SDXL_LCM = replace(
    SDXL,
    name="sdxl-lcm",
    title="Stable Diffusion XL as a latent consistency model",
    parts=(unet_part(unet.SDXL_LCM), *SDXL.parts[1:]),
    predictions=("eps",),
    tables={TABLE: LCM},
)
SDXL_REFINER = Model(
    name="sdxl-refiner",
    title="Stable Diffusion XL refiner",
    family="sd",
    main="unet",
    parts=(
        unet_part(unet.SDXL_REFINER),
        vae_part(kl_vae.SDXL),
        text_part(clip.TEXT_G, clip_maps.SDXL_REFINER_PREFIX, "text_encoder_2"),
    ),
    predictions=("eps",),
    size=1024,
    pipeline="StableDiffusionXLImg2ImgPipeline",
    index={
        "force_zeros_for_empty_prompt": False,
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "requires_aesthetics_score": True,
    },
)
MODELS = (
    *(SD15, SD15_INPAINTING, SD15_LCM, SD21, SD21_INPAINTING),
    *(SDXL, SDXL_INPAINTING, SDXL_LCM, SDXL_REFINER),
)
