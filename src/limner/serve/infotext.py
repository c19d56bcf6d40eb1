"""Settings read back out of a picture: what AUTOMATIC1111's web UI and its kin write, and what we do."""

import json
import re
from collections.abc import Mapping

from limner.errors import RequestError
from limner.pipeline.postprocess import EMPHASES, SAMPLER_NAMES
from limner.pipeline.request import LONGEST_PROMPT, Request

PAIR = re.compile(r'\s*(\w[\w \-/]{0,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
ENOUGH = 3  # pairs that make a line one of settings
LONGEST = 4 * LONGEST_PROMPT  # characters that are looked at
SAMPLERS = {shown.lower(): name for name, shown in SAMPLER_NAMES.items()}
WEIGHINGS = {shown: name for name, shown in EMPHASES.items() if shown}
NUMBERS = {  # infotext -> ours
    "Steps": ("steps", int),
    "CFG scale": ("guidance", float),
    "Seed": ("seed", int),
    "Denoising strength": ("strength", float),
    "Clip skip": ("clip_skip", int),
    "CFG Rescale phi": ("rescale", float),
}
SHOWN = (  # fields of a request that stand for themselves, without pictures and files
    "prompt", "negative_prompt", "seed", "steps", "guidance", "sampler", "size", "style", "model", "grid",
    "strength", "enlarge", "enlarge_strength", "tiling", "clip_skip", "emphasis", "rescale", "skip_layers",
    "rerank", "temperature", "top_k", "top_p",
)  # fmt: skip
NAME = re.compile(r"[\w][\w. +-]{0,99}")


def parse(text: str) -> dict[str, object]:
    """Fields of a request out of infotext; {} when it says nothing that we know."""
    lines = text[:LONGEST].replace("\r\n", "\n").strip().split("\n")
    told: dict[str, object] = {}
    if lines and len(pairs := PAIR.findall(lines[-1][:5000])) >= ENOUGH:
        told = _settings({key.strip(): _bare(value.strip()) for key, value in pairs})
        lines = lines[:-1]
    parts: dict[str, list[str]] = {"prompt": [], "negative_prompt": []}
    into = "prompt"
    for line in lines:
        if line.startswith("Negative prompt:"):
            into, line = "negative_prompt", line.removeprefix("Negative prompt:").strip()
        parts[into].append(line)
    told |= {name: "\n".join(some).strip() for name, some in parts.items() if some}
    return plain_settings(told)


def plain_settings(told: Mapping[str, object]) -> dict[str, object]:
    """Of a request's plain values those that stand for themselves and are right: no pictures, no files."""
    good: dict[str, object] = {}
    for name in SHOWN:
        if (value := told.get(name)) in (None, ""):
            continue
        if isinstance(value, str):
            value = value.replace("\0", "")  # which no database keeps
        if name == "model" and not (isinstance(value, str) and NAME.fullmatch(value)):
            continue  # a folder or a file: where it lies is nobody else's business
        try:
            Request.from_dict({"prompt": "", "count": 1, name: value})
        except RequestError:
            continue
        good[name] = value
    return good


def _settings(said: Mapping[str, str]) -> dict[str, object]:
    told: dict[str, object] = {}
    for key, (name, kind) in NUMBERS.items():
        try:
            told[name] = kind(said[key])
        except (KeyError, ValueError):
            continue
    if match := re.fullmatch("([0-9]{1,5})x([0-9]{1,5})", said.get("Size", "")):
        told["size"] = [int(match[2]), int(match[1])]
    if (sampler := said.get("Sampler", "").lower()) in SAMPLERS:
        told["sampler"] = SAMPLERS[sampler]
    if grid := said.get("Schedule type"):
        told["grid"] = grid.lower()
    if "Emphasis" in said:
        told["emphasis"] = WEIGHINGS.get(said["Emphasis"], said["Emphasis"])
    for key, name in (("Model", "model"), ("Style", "style")):
        if key in said:
            told[name] = said[key]
    if said.get("Tiling") == "True":
        told["tiling"] = True
    return told


def _bare(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value
