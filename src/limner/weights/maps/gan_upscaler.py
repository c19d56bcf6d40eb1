"""Names of the tensors of RRDBNet and Compact, as their authors published them.

    body.0.rdb1.conv1, conv_up1, conv_hr          Real-ESRGAN and all that is trained with BasicSR
    RRDB_trunk.0.RDB1.conv1, upconv1, HRconv      ESRGAN's second code, BSRGAN, RealSR
    model.1.sub.0.RDB1.conv1.0, model.3, model.8  ESRGAN's first code and most models of its community: the
                                                  layers of sequences, activations and resizings counted

Files that were saved in training have all of that below `params_ema` (averaged weights) or `params`. Sizes
differ from file to file, so a configuration is read off the shapes; afterwards every tensor has to fit it.
"""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from limner.models.gan_upscaler import CompactConfig, RRDBNetConfig
from limner.weights.keymap import KeyMap, Rule
from limner.weights.maps.unet import layers

PREFIXES = ("", "params_ema.", "params.")  # of all names in a file
BLOCK = re.compile(r"(?:body|RRDB_trunk|model\.1\.sub)\.(\d{1,6})\.(?:rdb|RDB)1\.conv1(?:\.0)?\.weight")


def realesrgan(config: RRDBNetConfig, prefix: str = "") -> KeyMap:
    """Real-ESRGAN's naming <-> RRDBNet."""
    return (
        *_blocks(prefix + "body.{i}.rdb"),
        *layers(
            *((f"{prefix}conv_up{i + 1}", f"up.{i}") for i in range(config.doublings)),
            *_ends(prefix, "conv_first", "conv_body", "conv_hr", "conv_last"),
        ),
    )


def esrgan(config: RRDBNetConfig, prefix: str = "") -> KeyMap:
    """The naming of ESRGAN's second code <-> RRDBNet."""
    return (
        *_blocks(prefix + "RRDB_trunk.{i}.RDB"),
        *layers(
            *((f"{prefix}upconv{i + 1}", f"up.{i}") for i in range(config.doublings)),
            *_ends(prefix, "conv_first", "trunk_conv", "HRconv", "conv_last"),
        ),
    )


def first_esrgan(config: RRDBNetConfig, prefix: str = "") -> KeyMap:
    """The naming of ESRGAN's first code <-> RRDBNet. Behind the blocks each doubling is three entries of a
    sequence: resize, convolution, activation."""
    rest = 2 + 3 * config.doublings
    middle = f"model.1.sub.{config.blocks}"
    return (
        *_blocks(prefix + "model.1.sub.{i}.RDB", ".0"),
        *layers(
            *((f"{prefix}model.{3 + 3 * i}", f"up.{i}") for i in range(config.doublings)),
            *_ends(prefix, "model.0", middle, f"model.{rest}", f"model.{rest + 2}"),
        ),
    )


def compact(config: CompactConfig, prefix: str = "") -> KeyMap:
    """The naming of SRVGGNetCompact <-> Compact: convolutions and activations take turns in one list."""
    inner = range(config.depth)
    return (
        *layers(
            (f"{prefix}body.0", "first"),
            *((f"{prefix}body.{2 * i + 2}", f"inner.{i}") for i in inner),
            (f"{prefix}body.{2 * config.depth + 2}", "last"),
        ),
        *(Rule(f"{prefix}body.{2 * i + 1}.weight", f"slopes.{i}") for i in range(config.depth + 1)),
    )


def shape_of(tensors: Mapping[str, Tensor]) -> RRDBNetConfig | CompactConfig | None:
    """The configuration that published tensors would be of, if they are of either network at all. Whether
    every one of them fits it is not looked at; numbers in names are believed up to how many names there
    are."""
    prefix = next((p for p in PREFIXES[1:] if any(name.startswith(p) for name in tensors)), "")
    shapes = {name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        if "body.1.weight" in shapes and "body.0.weight" in shapes:
            last = max(int(name.split(".")[1]) for name in shapes if name.startswith("body."))
            features, depth = shapes["body.0.weight"][0], last // 2 - 1
            factor = math.isqrt(shapes[f"body.{last}.weight"][0] // 3)
            if not 0 < depth <= len(shapes) or not factor:
                return None
            return CompactConfig(features=features, depth=depth, factor=factor)
        return _rrdbnet(shapes)
    except (KeyError, IndexError, ValueError, ArithmeticError):  # something else that shares a name with them
        return None


def _rrdbnet(shapes: Mapping[str, tuple[int, ...]]) -> RRDBNetConfig | None:
    found = {name: int(match[1]) for name in shapes if (match := BLOCK.fullmatch(name))}
    if not found or max(found.values()) > len(shapes):
        return None
    first = shapes["conv_first.weight" if "conv_first.weight" in shapes else "model.0.weight"]
    growth = shapes[next(iter(found))][0]
    if "model.0.weight" in shapes:
        places = (re.fullmatch(r"model\.(\d{1,2})\.weight", name) for name in shapes)
        doublings = (max(int(place[1]) for place in places if place) - 4) // 3
    else:
        doublings = sum(bool(re.fullmatch(r"(conv_up|upconv)\d\.weight", name)) for name in shapes)
    return RRDBNetConfig(
        blocks=1 + max(found.values()),
        features=first[0],
        growth=growth,
        fold=math.isqrt(first[1] // 3),
        doublings=doublings,
    )


def _blocks(before: str, after: str = "") -> KeyMap:
    return layers(
        *(
            (f"{before}{j}.conv{k}{after}", f"blocks.{{i}}.dense.{j - 1}.layers.{k - 1}")
            for j in (1, 2, 3)
            for k in (1, 2, 3, 4, 5)
        )
    )


def _ends(prefix: str, *theirs: str) -> tuple[tuple[str, str], ...]:
    ours = ("first", "middle", "high", "last")
    return tuple((prefix + name, our) for name, our in zip(theirs, ours, strict=True))
