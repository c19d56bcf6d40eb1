"""Stable Diffusion's U-Net on a CUDA device, against `diffusers` as it is and compiled by block.

    python benchmarks/sd_gpu.py [--model sd15] [--size 512] [--pictures 1] [--repeats 20] [--dtype bfloat16]
    python benchmarks/sd_gpu.py --device cpu --size 64 --tiny     # that everything runs, with small networks

Random weights, the same in both. A guided step is one call with two rows a picture. Ours: channels last, the
text's keys and values made before; then the same compiled by block, and captured as a CUDA graph. A share is
that of the rate of the card's matrix products in the same type, measured here; the work of a step is counted.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from facts import machine, report, seconds
from sd_cpu import TYPES, peer, random
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from limner.models.unet import Block, UNet
from limner.weights import files
from limner.weights.parts import SD15, SDXL, Part

SMALL = {"channels": (32, 64), "depths": (1, 1), "context": 32, "groups": 8, "layers": 1, "heads": 2}
Call = Callable[[], Tensor]


def rate(device: str, dtype: torch.dtype, side: int = 8192) -> float:
    """FLOP/s of matrix products, at their best."""
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: one @ other, 10, device)


def graph(call: Call) -> Call:
    """`call` captured once and replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = call()

    def replay() -> Tensor:
        captured.replay()
        return result

    return replay


def compiled(network: nn.Module, blocks: tuple[str, ...]) -> nn.Module:
    """Compile every module whose class is named; equal ones share the work."""
    for module in network.modules():
        if type(module).__name__ in blocks:
            module.compile()
    return network


def calls(part: Part, args: argparse.Namespace) -> dict[str, Call]:
    """What is measured, by name. Compiling is done in the first call."""
    config, dtype, device = part.config, TYPES[args.dtype], args.device
    generator = torch.Generator().manual_seed(1)
    rows, side = 2 * args.pictures, args.size // 8

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x = draw(rows, config.inputs, side, side).contiguous(memory_format=torch.channels_last)
    t = torch.full((rows,), 500.0, device=device)
    context = draw(rows, 77, config.context)
    added = None
    if config.sizes:
        added = draw(rows, config.pooled), torch.full((rows, 6), float(args.size), device=device)
    tensors = {name: tensor.to(device, dtype) for name, tensor in random(part).items()}

    def ours() -> UNet:
        network = files.fill(lambda: UNet(config), tensors, "random")
        return network.to(memory_format=torch.channels_last)

    def ask(network: UNet) -> Call:
        text = network.text_kv(context)
        return lambda: network(x, t, text, added=added)

    def theirs() -> nn.Module:
        return peer(part, tensors).to(memory_format=torch.channels_last)

    def ask_theirs(network: nn.Module) -> Call:
        told = None if added is None else {"text_embeds": added[0], "time_ids": added[1]}
        return lambda: network(x, t, encoder_hidden_states=context, added_cond_kwargs=told).sample

    found = {"limner": ask(ours()), "diffusers": ask_theirs(theirs())}
    if args.compile:
        found["limner, compiled by block"] = ask(compiled(ours(), (Block.__name__,)))  # type: ignore[arg-type]
        blocks = ("ResnetBlock2D", "Transformer2DModel")
        found["diffusers, compiled by block"] = ask_theirs(compiled(theirs(), blocks))
    if device.startswith("cuda"):
        for name in [name for name in found if name.startswith("limner")]:
            found[f"{name}, one graph"] = graph(found[name])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["sd15", "sdxl"], default="sd15")
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dtype", choices=list(TYPES), default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true", help="a small network, to see that everything runs")
    args = parser.parse_args()

    part = (SD15 if args.model == "sd15" else SDXL).part("unet")
    if args.tiny:
        part = replace(part, config=replace(part.config, **SMALL, middle=1))
    print(machine(args.device), args.dtype, sep=", ")
    with torch.inference_mode():
        best = rate(args.device, TYPES[args.dtype], 512 if args.tiny else 8192)
        found = calls(part, args)
        with FlopCounterMode(display=False) as counter:
            exact = found["diffusers"]().float()
        work = counter.get_total_flops()
        print(f"  {work / 1e12:.3g} TFLOP a step; matrix products run at {best / 1e12:.3g} TFLOP/s")
        times = {}
        for name, call in found.items():
            times[name] = seconds(call, args.repeats, args.device)
            off = (call().float() - exact).abs().max() / exact.abs().max()
            share = work / times[name] / best
            print(f"  {1 / times[name]:8.2f} steps/s  {share:6.1%} of that rate  {name}, off by {off:.1e}")
    mine, theirs = (
        min((name for name in times if name.startswith(who)), key=times.__getitem__)
        for who in ("limner", "diffusers")
    )
    report(
        f"A guided step of {args.model}, {args.pictures} of {args.size} px: {mine}",
        1 / times[mine],
        1 / times[theirs],
        "steps/s",
        theirs,
        more_is_better=True,
    )


if __name__ == "__main__":
    main()
