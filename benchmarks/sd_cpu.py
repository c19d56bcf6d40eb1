"""Stable Diffusion on the CPU: a guided step, the autoencoder, loading and memory, against `diffusers`.

    python benchmarks/sd_cpu.py [--size 512] [--repeats 3] [--parts step,decode,memory] [--dtype float32]

Random weights at full size, the same in both. A guided step is one call of the U-Net with two rows; ours has
the text's keys and values made before, as it draws, and the peer makes them in every call. The peer is
diffusers without compilation at its best: in each type given, channels last or not, whichever is quicker.
Calls alternate, so that a busy machine slows both. `--dtype auto` takes the types that this CPU is fast in.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from facts import machine, report
from torch import Tensor, nn

from limner.models.kl_vae import KLVAE
from limner.models.unet import UNet
from limner.util.devices import pick_precision
from limner.weights import files, folders
from limner.weights.keymap import to_theirs
from limner.weights.maps.kl_vae import diffusers_vae
from limner.weights.maps.unet import diffusers_unet
from limner.weights.parts import SD15, Part

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHILD = """
import resource, sys, time
import torch
{imports}
start = time.perf_counter()
{load}
print(time.perf_counter() - start)
side = int(sys.argv[2])
if side:
    with torch.inference_mode():
        x, t, context = torch.randn(2, 4, side, side), torch.tensor([500.0, 500.0]), torch.randn(2, 77, 768)
        unet(x, t, context)
        vae.decode(x[:1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
OURS = (
    "from pathlib import Path; from limner.families import sd_files",
    "model = sd_files.load(Path(sys.argv[1]), torch.device('cpu')); unet, vae = model.unet, model.vae",
)
THEIRS = (
    "from diffusers import AutoencoderKL, UNet2DConditionModel; from transformers import CLIPTextModel",
    """
kinds = {'unet': UNet2DConditionModel, 'vae': AutoencoderKL, 'text_encoder': CLIPTextModel}
load = lambda name: kinds[name].from_pretrained(sys.argv[1], subfolder=name, local_files_only=True)
unet, vae, text = map(load, kinds)
""",
)


def random(part: Part, seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep activations about as large as they come in, under our names."""
    generator = torch.Generator().manual_seed(seed)

    def filled(name: str, shape: torch.Size) -> Tensor:
        if len(shape) > 1:
            bound = 0.7 * (3 / shape[1:].numel()) ** 0.5
            return torch.empty(shape).uniform_(-bound, bound, generator=generator)
        scale = name.endswith("weight")  # of a normalisation
        return torch.empty(shape).uniform_(-0.1, 0.1, generator=generator) + scale

    return {name: filled(name, tensor.shape) for name, tensor in files.empty(part.build).state_dict().items()}


def peer(part: Part, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of diffusers with the same weights; they are shared where both keep them alike."""
    import diffusers

    settings = dict(part.kind.settings(part.config))
    kind = getattr(diffusers, str(settings.pop("_class_name")))
    with torch.device("meta"):
        network = kind.from_config(settings)
    keys = diffusers_unet(part.config) if part.folder == "unet" else diffusers_vae()
    network.load_state_dict(to_theirs(keys, tensors), strict=True, assign=True)
    return network.eval().requires_grad_(False)


def alternate(
    calls: Mapping[str, Callable[[], Tensor]], repeats: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Median seconds of each call, one warm-up not counted, and what it gave."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    given: dict[str, Tensor] = {}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            given[name] = call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in times.items()}, given


def compare(what: str, times: dict[str, float], given: dict[str, Tensor], exact: Tensor) -> None:
    """Ours against the best of theirs, and how far each is from their float32."""
    for name, seconds in times.items():
        off = (given[name].float() - exact).abs().max() / exact.abs().max()
        noise = (given[name].float() - exact).square().mean()
        decibel = 10 * torch.log10(exact.amax().sub(exact.amin()).square() / noise.clamp(min=1e-30))
        print(f"  {seconds:8.3f} s  {name:34} off by {off:.1e} of the largest, {decibel:.0f} dB")
    best = min((name for name in times if name.startswith("diffusers")), key=times.__getitem__)
    mine = min((name for name in times if name.startswith("limner")), key=times.__getitem__)
    report(f"{what}, {mine}", times[mine], times[best], "s", best, more_is_better=False)
    print(f"  share   {times[mine] / times[best]:10.3g} of the peer's time")


def run(part: Part, size: int, types: list[str], repeats: int) -> None:
    """A guided step of the U-Net, or the autoencoder's decoder."""
    tensors = random(part)
    normal = torch.Generator().manual_seed(1)
    side = size // 8
    is_unet = part.folder == "unet"
    x = torch.randn(1 + is_unet, 4, side, side, generator=normal)
    t = torch.tensor([500.0, 500.0])
    context = torch.randn(2, 77, 768, generator=normal)
    calls: dict[str, Callable[[], Tensor]] = {}

    def ask_ours(network: nn.Module, dtype: torch.dtype) -> Callable[[], Tensor]:
        if isinstance(network, UNet):
            text = network.text_kv(context.to(dtype))
            return lambda: network(x.to(dtype), t, text)
        assert isinstance(network, KLVAE)
        return lambda: network.decode(x.to(dtype))

    def ask_theirs(network: nn.Module, dtype: torch.dtype, last: bool) -> Callable[[], Tensor]:
        layout = torch.channels_last if last else torch.contiguous_format
        given = x.to(dtype).to(memory_format=layout)
        if is_unet:
            return lambda: network(given, t, encoder_hidden_states=context.to(dtype)).sample
        return lambda: network.decode(given).sample  # type: ignore[operator]

    for name in types:
        dtype = TYPES[name]
        cast = {key: tensor.to(dtype) for key, tensor in tensors.items()}
        calls[f"limner {name}"] = ask_ours(files.fill(part.build, cast, "random", dtype=dtype), dtype)
        for last in (False, True):
            theirs = peer(part, cast)
            if last:
                theirs = theirs.to(memory_format=torch.channels_last)
            calls[f"diffusers {name}{', channels last' if last else ''}"] = ask_theirs(theirs, dtype, last)
    if is_unet and "openvino" in sys.modules:
        calls["openvino float32"] = openvino(files.fill(part.build, tensors, "random"), x, t, context)
    times, given = alternate(calls, repeats)
    exact = given.get("diffusers float32")
    if exact is None:
        exact = ask_theirs(peer(part, tensors), torch.float32, False)()
    what = "A guided step of SD 1.5's U-Net" if is_unet else "The autoencoder's decoder"
    compare(f"{what}, {size} x {size}", times, given, exact)


def openvino(network: nn.Module, x: Tensor, t: Tensor, context: Tensor) -> Callable[[], Tensor]:
    """Our U-Net run by OpenVINO."""
    import openvino as ov

    with torch.inference_mode(False), torch.no_grad():
        traced = ov.convert_model(network, example_input=(x.clone(), t.clone(), context.clone()))
    compiled = ov.compile_model(traced, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda: torch.from_numpy(compiled([x.numpy(), t.numpy(), context.numpy()])[0])


def loading(size: int, repeats: int, memory: bool) -> None:
    """Fresh processes: seconds from a folder on a warm disk to networks that can be asked; and the most
    memory of the whole process, libraries included, through loading, a guided step and the decoder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "sd15"
        folders.write(folder, SD15, {part.folder: random(part) for part in SD15.parts})
        gc.collect()
        weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        took: dict[str, list[float]] = {"limner": [], "diffusers": []}
        peaks: dict[str, list[float]] = {"limner": [], "diffusers": []}
        for turn in range(repeats + 1 + memory):
            for name, (imports, load) in (("limner", OURS), ("diffusers", THEIRS)):
                child = CHILD.format(imports=imports, load=load)
                side = size // 8 if turn > repeats else 0
                command = [sys.executable, "-W", "ignore", "-c", child, str(folder), str(side)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, peak = map(float, done.stdout.split()[-2:])
                took[name].append(seconds)
                peaks[name].append(peak)
    ours, theirs = (statistics.median(times[1 : repeats + 1]) for times in took.values())
    said = f"Loading SD 1.5, {weights / 1e9:.2f} GB float32, warm disk"
    report(said, ours, theirs, "s", "diffusers", more_is_better=False)
    what = f"loading, a guided step at {size} px and the decoder" if memory else "loading"
    report(
        f"Most memory of the process over the size of the weights: {what}",
        *(values[-1] / weights for values in peaks.values()),
        "",
        "diffusers",
        more_is_better=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--parts", default="step,decode,memory", help="step, decode, load, memory (loads too)"
    )
    parser.add_argument("--dtype", choices=["auto", *TYPES], default="auto")
    parser.add_argument("--openvino", action="store_true", help="a row for OpenVINO, where it is installed")
    args = parser.parse_args()
    if args.openvino:
        import openvino  # noqa: F401

    fast = pick_precision(torch.device("cpu")) == torch.bfloat16
    types = [args.dtype] if args.dtype != "auto" else ["float32", *(["bfloat16"] if fast else [])]
    print(machine())
    with torch.inference_mode():
        for name in args.parts.split(","):
            if name in ("load", "memory"):
                loading(args.size, args.repeats, name == "memory")
            else:
                run(SD15.part("unet" if name == "step" else "vae"), args.size, types, args.repeats)
            gc.collect()


if __name__ == "__main__":
    main()
