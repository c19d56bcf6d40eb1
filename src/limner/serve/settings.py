"""Everything about a server that its owner may choose: options of `limner serve`, or LIMNER_* in the
environment."""

import ipaddress
import re
from pathlib import Path, PurePath
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from limner.errors import ConfigError

NAME = re.compile(r"\w[\w. +-]{0,99}")  # of a model, as clients see it
Several = Annotated[tuple[str, ...], NoDecode]  # in the environment: separated by commas


class Settings(BaseSettings):
    """How to serve. Raises pydantic's ValidationError, a ValueError, for what is out of range or unknown."""

    model_config = SettingsConfigDict(env_prefix="LIMNER_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", min_length=1, max_length=255)  # interface; loopback is this machine alone
    port: int = Field(7860, ge=0, le=65535)  # 0: any that is free
    data: Path = Path("limner-data")  # folder of the pictures and, without `database`, of the queue
    name: str | None = None  # of this machine, where several share one database
    database: str | None = None  # SQLAlchemy URL, such as postgresql+psycopg://...; None: SQLite in `data`
    model: Several = ("mini",)  # what may be drawn with, or NAME=WHAT; the first where a request names none
    device: Several = ("auto",)  # auto, cpu, mps, or one or several such as cuda:0, cuda:1
    workers: int = Field(1, ge=1, le=64)  # processes that draw, on each device
    loras: Path | None = None  # folder of the files that <lora:NAME:WEIGHT> names
    embeddings: Path | None = None  # folder of learned words
    controls: Path | None = None  # folder of control networks, which requests name
    upscaler: str = "mini"  # what makes finished pictures larger, as `limner upscale` takes it
    keep: int = Field(1, ge=1, le=64)  # models that a process holds at once
    batch: int | None = Field(None, ge=1, le=64)  # most pictures drawn together; None: as was measured to pay
    dtype: str | None = None  # of the weights; None: what suits the device
    offload: bool = False  # keep one network at hand at a time

    queue: int = Field(1000, ge=1, le=1_000_000)  # most jobs that wait, of all owners together
    waiting: int = Field(
        100, ge=1, le=1_000_000
    )  # most unfinished jobs of one owner, unless a key says other
    rate: float = Field(20.0, gt=0, le=10_000)  # new jobs a second of one owner, on average
    burst: int = Field(100, ge=1, le=100_000)  # new jobs at once, after a pause
    most_cost: float = Field(20_000.0, gt=0, le=1e9)  # of one job, in megapixel-steps; see limits.cost_of
    most_count: int = Field(16, ge=1, le=64)  # pictures of one job
    most_side: int = Field(2048, ge=64, le=8192)  # pixels, of a picture that is drawn
    most_steps: int = Field(250, ge=1, le=1000)  # of a sampler
    upload_bytes: int = Field(64 << 20, ge=1 << 10, le=1 << 30)  # of a request that brings pictures
    body_bytes: int = Field(1 << 20, ge=1 << 10, le=1 << 24)  # of any other request
    upload_pixels: int = Field(16_000_000, ge=256, le=64_000_000)  # of a picture that is brought
    body_seconds: float = Field(60.0, gt=0, le=3600)  # within which a request's body must have come
    connections: int = Field(500, ge=8, le=100_000)  # open at the same time
    streams: int = Field(32, ge=1, le=10_000)  # event streams of one owner at the same time

    hosts: Several = ()  # names that this server is called by, besides those of its interface
    origins: Several = ()  # such as https://art.example: where the page stands, if a proxy hides that
    metadata: str = Field("full", pattern="^(none|minimal|full)$")  # in files, for those without a key
    drain: float = Field(30.0, ge=0, le=3600)  # seconds for what is being drawn, once told to stop
    heartbeat: float = Field(15.0, gt=0, le=300)  # seconds between signs of life in a stream of events
    session_days: float = Field(30.0, gt=0, le=3650)  # that a browser stays signed in
    secret: SecretStr | None = None  # signs sessions; None: a file in `data`; the same on every machine

    @field_validator("model", "device", "hosts", "origins", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("model", "device")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one")
        return value

    @property
    def models(self) -> dict[str, str]:
        """Models by the names that clients know: as was said, or else without folders and ending. Raises
        ConfigError when two have one name."""
        named: dict[str, str] = {}
        for said in self.model:
            name, equals, what = said.partition("=")
            if not equals:
                name, what = PurePath(said).name.removesuffix(".safetensors") or said, said
            if not NAME.fullmatch(name):
                raise ConfigError(f'"{name}" is no name of a model; say --model NAME={what}')
            if name in named:
                raise ConfigError(f'two models are called "{name}"; say --model OTHER-NAME={what}')
            named[name] = what
        return named

    @property
    def database_url(self) -> str:
        """Where the queue is kept."""
        return self.database or f"sqlite:///{(self.data / 'limner.db').resolve()}"

    @property
    def pictures(self) -> Path:
        """Folder of the pictures."""
        return self.data / "pictures"

    @property
    def loopback(self) -> bool:
        """Whether nobody but this machine can reach the interface."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name: where it leads may change
            return False
