"""The JSON of AUTOMATIC1111's web UI, as its API of version 1.10 reads and writes it.

What a client leaves out is our model's choice, where the web UI has numbers that suit one of its own. Fields
that we do not know are passed over, and named in `info`.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from limner.pipeline.request import NUMBERS
from limner.serve.schemas import TEXT, Prompt
from limner.util.rng import SEED_LIMIT

Text = Annotated[str, Field(max_length=10_000, pattern=TEXT)]
Name = Annotated[str, Field(max_length=200, pattern=TEXT)]
Base64 = Annotated[str, Field(max_length=1 << 30, description="a file in base64, or a data: URI of one")]
Seed = Annotated[int, Field(ge=-1, lt=SEED_LIMIT - 64)]
Side = Annotated[int, Field(ge=16, le=8192)]
Whole = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=1, le=4, allow_inf_nan=False)]
Several = Annotated[int, Field(ge=1, le=64)]


class DrawIn(BaseModel):
    """What txt2img and img2img have in common; null is as good as not given."""

    model_config = ConfigDict(extra="allow")

    prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    styles: Annotated[list[Name], Field(max_length=10)] | None = None  # one style of the model
    seed: Seed | None = None  # -1: any
    sampler_name: Name | None = None  # None: the model's own
    sampler_index: Name | None = None  # the same, as it used to be called
    scheduler: Name | None = None  # where the sampler stops; None and Automatic: the model's own
    batch_size: Several | None = None
    n_iter: Several | None = None  # batches
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    cfg_scale: Annotated[float, Field(ge=NUMBERS["guidance"][0], le=NUMBERS["guidance"][1])] | None = None
    width: Side | None = None
    height: Side | None = None
    denoising_strength: Share | None = None
    tiling: bool | None = None
    override_settings: dict[str, Any] | None = None  # for this request; as `options`
    infotext: Text | None = None  # settings, where no field says otherwise
    send_images: bool | None = None
    # -- what makes no difference here: pictures are kept, and shown as they form
    save_images: bool | None = None
    do_not_save_samples: bool | None = None
    do_not_save_grid: bool | None = None
    force_task_id: Name | None = None
    override_settings_restore_afterwards: bool | None = None
    # -- what there is not here; `a1111_asked` knows which values of it mean nothing
    subseed: Whole | None = None
    subseed_strength: Real | None = None
    seed_resize_from_h: Whole | None = None
    seed_resize_from_w: Whole | None = None
    restore_faces: bool | None = None
    eta: Real | None = None
    s_min_uncond: Real | None = None
    s_churn: Real | None = None
    s_tmax: Real | None = None
    s_tmin: Real | None = None
    s_noise: Real | None = None
    disable_extra_networks: bool | None = None
    refiner_checkpoint: Name | None = None
    refiner_switch_at: Real | None = None
    script_name: Name | None = None
    script_args: Annotated[list[Any], Field(max_length=1000)] | None = None
    alwayson_scripts: dict[str, Any] | None = None
    comments: dict[str, Any] | None = None


class Txt2ImgIn(DrawIn):
    """POST /sdapi/v1/txt2img."""

    enable_hr: bool | None = None  # draw again, larger
    hr_scale: Scale | None = None
    hr_resize_x: Annotated[int, Field(ge=0, le=8192)] | None = None  # 0: as hr_scale says
    hr_resize_y: Annotated[int, Field(ge=0, le=8192)] | None = None
    # -- what there is not here
    hr_upscaler: Name | None = None
    hr_second_pass_steps: Whole | None = None
    hr_checkpoint_name: Name | None = None
    hr_sampler_name: Name | None = None
    hr_scheduler: Name | None = None
    hr_prompt: Prompt | None = None
    hr_negative_prompt: Prompt | None = None
    firstphase_width: Whole | None = None
    firstphase_height: Whole | None = None


class Img2ImgIn(DrawIn):
    """POST /sdapi/v1/img2img."""

    init_images: Annotated[list[Base64], Field(max_length=16)] | None = None  # one
    mask: Base64 | None = None  # white where to draw
    mask_blur: Annotated[int, Field(ge=0, le=256)] | None = None  # pixels over which it fades
    mask_blur_x: Annotated[int, Field(ge=0, le=256)] | None = None
    mask_blur_y: Annotated[int, Field(ge=0, le=256)] | None = None
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] | None = None  # 1: black where to draw
    resize_mode: Annotated[int, Field(ge=0, le=3)] | None = None  # 0 stretch, 1 crop, 2 fill, 3 as 0
    include_init_images: bool | None = None
    # -- what there is not here
    inpainting_fill: Annotated[int, Field(ge=0, le=3)] | None = None
    inpaint_full_res: bool | Annotated[int, Field(ge=0, le=1)] | None = None
    inpaint_full_res_padding: Whole | None = None
    mask_round: bool | None = None
    initial_noise_multiplier: Real | None = None
    image_cfg_scale: Real | None = None
    latent_mask: Base64 | None = None


class ExtraIn(BaseModel):
    """POST /sdapi/v1/extra-single-image."""

    model_config = ConfigDict(extra="ignore")

    image: Base64
    resize_mode: Annotated[int, Field(ge=0, le=1)] = 0  # 0: so many times larger; 1: to a size
    upscaling_resize: Annotated[float, Field(ge=1, le=8, allow_inf_nan=False)] = 2.0
    upscaling_resize_w: Side = 512
    upscaling_resize_h: Side = 512
    upscaling_crop: bool = True  # what is beside a size; else it stays inside
    upscaler_1: Name | None = "None"
    upscaler_2: Name | None = "None"
    extras_upscaler_2_visibility: Share = 0.0
    gfpgan_visibility: Share = 0.0
    codeformer_visibility: Share = 0.0
    codeformer_weight: Share = 0.0
    show_extras_results: bool = True
    upscale_first: bool = False


class PngInfoIn(BaseModel):
    """POST /sdapi/v1/png-info."""

    image: Base64


class DrawnOut(BaseModel):
    """Pictures, what was asked for, and as JSON in a text what was done."""

    images: list[Base64]
    parameters: dict[str, Any]
    info: str


class ExtraOut(BaseModel):
    """A larger picture."""

    html_info: str
    image: Base64


class PngInfoOut(BaseModel):
    """What a picture says of itself."""

    info: str
    items: dict[str, str]
    parameters: dict[str, str]


class ProgressState(BaseModel):
    """Of the job that is drawn."""

    skipped: bool
    interrupted: bool
    stopping_generation: bool
    job: str
    job_count: int
    job_timestamp: str
    job_no: int
    sampling_step: int
    sampling_steps: int


class ProgressOut(BaseModel):
    """How far your oldest job is that has not ended."""

    progress: Share
    eta_relative: Annotated[float, Field(ge=0)]  # seconds
    state: ProgressState
    current_image: Base64 | None
    textinfo: str | None
    current_task: str | None


class SamplerOut(BaseModel):
    """A sampler."""

    name: str
    aliases: list[str]
    options: dict[str, str]


class SchedulerOut(BaseModel):
    """Where a sampler stops."""

    name: str
    label: str
    aliases: list[str] | None
    default_rho: float
    need_inner_model: bool


class CheckpointOut(BaseModel):
    """A model; no path is told."""

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    filename: str
    config: str | None


class LoraOut(BaseModel):
    """What <lora:NAME:1> names; no path is told."""

    name: str
    alias: str
    path: str
    metadata: dict[str, Any]


class UpscalerOut(BaseModel):
    """What makes pictures larger."""

    name: str
    model_name: str | None
    model_path: str | None
    model_url: str | None
    scale: float


class StyleOut(BaseModel):
    """A style of the default model."""

    name: str
    prompt: str | None
    negative_prompt: str | None


class MemoryOut(BaseModel):
    """Of the server's process, in bytes."""

    ram: dict[str, Any]
    cuda: dict[str, Any]


class FaultOut(BaseModel):
    """Every answer of status 400 and above."""

    error: str
    detail: str | list[dict[str, Any]]
    body: str
    errors: str
