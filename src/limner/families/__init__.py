"""Families: which parts make a model, in which order, with which defaults."""

from limner.families import (
    cascade_files,
    dalle_files,
    flux_files,
    mini_files,
    sd3_files,
    sd_files,
    unclip_files,
)
from limner.families.base import Family

FAMILIES: dict[str, Family] = {
    "mini": mini_files.FAMILY,
    "dalle": dalle_files.FAMILY,
    "sd": sd_files.FAMILY,
    "sd3": sd3_files.FAMILY,
    "flux": flux_files.FAMILY,
    "cascade": cascade_files.FAMILY,
    "x4": cascade_files.X4_FAMILY,
    "unclip": unclip_files.FAMILY,
    "sd_unclip": unclip_files.STABLE_FAMILY,
}
READ = frozenset({"prediction", "variant", "dtype", "offload"})  # wishes of most published models
HEARS = {  # the fields of Wishes that a family's loader reads; what else is wished for is refused
    "mini": frozenset({"loras", "embeddings"}),
    "dalle": frozenset[str](),
    "sd": READ | {"loras", "embeddings", "preview"},
    "sd3": READ | {"loras", "embeddings", "preview"},
    "flux": READ | {"loras", "preview"},
    "cascade": frozenset({"variant", "dtype", "offload", "embeddings", "then"}),
    "x4": READ | {"embeddings"},
    "unclip": READ,
    "sd_unclip": READ | {"loras", "embeddings", "preview"},
}
