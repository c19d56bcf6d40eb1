"""Families: which parts make a model, in which order, with which defaults."""

from limner.families import mini, sd_files
from limner.families.base import Family

FAMILIES: dict[str, Family] = {"mini": mini.FAMILY, "sd": sd_files.FAMILY}
