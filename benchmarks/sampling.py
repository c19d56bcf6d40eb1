"""Seconds per network call of the built-in model, against a DiT of the `diffusers` package of the same size.

    python benchmarks/sampling.py [--size 48] [--count 4] [--device cpu] [--repeats 20]

Both have random weights, the same number of parameters (the peer's layers are chosen for that), the same
picture size, patch and width, and run in the precision that limner chooses for the device. A call sees every
picture twice, with and without its prompt, as guidance needs.
"""

import argparse

import torch
from diffusers import DiTTransformer2DModel
from facts import machine, report, seconds

from limner.models.pixel_dit import PixelDiT, PixelDiTConfig
from limner.util.devices import autocast, pick_precision

VOCABULARY = 450  # about what the built-in model knows


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def peer_of(config: PixelDiTConfig, size: int) -> DiTTransformer2DModel:
    """The DiT whose parameter count is nearest to `size`; its conditioning is a class."""

    def build(layers: int) -> DiTTransformer2DModel:
        return DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.width // config.heads,
            in_channels=3,
            out_channels=3,
            num_layers=layers,
            sample_size=config.size,
            patch_size=config.patch,
            num_embeds_ada_norm=1000,
        )

    return min((build(layers) for layers in range(1, 13)), key=lambda model: abs(parameters(model) - size))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--depth", type=int, default=PixelDiTConfig().depth)
    parser.add_argument("--count", type=int, default=4, help="pictures, each seen twice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()

    device = torch.device(args.device)
    precision = pick_precision(device)
    config = PixelDiTConfig(vocabulary=VOCABULARY, size=args.size, depth=args.depth)
    ours = PixelDiT(config)
    ours.initialize(torch.Generator().manual_seed(0))
    peer = peer_of(config, parameters(ours))
    ours, peer = ours.to(device).eval(), peer.to(device).eval()

    rows = 2 * args.count
    x_t = torch.randn(rows, 3, args.size, args.size, device=device)
    t = torch.full((rows,), 0.5, device=device)
    tokens = torch.randint(4, VOCABULARY, (rows, 24), device=device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    classes = torch.zeros(rows, dtype=torch.long, device=device)
    with torch.inference_mode(), autocast(device, precision):
        context, pooled = ours.encode(tokens, mask)
        mine = seconds(lambda: ours(x_t, t, context, pooled, mask), args.repeats, args.device)
        theirs = seconds(
            lambda: peer(x_t, timestep=(1000 * t).long(), class_labels=classes).sample,
            args.repeats,
            args.device,
        )

    print(machine(args.device), str(precision).removeprefix("torch."), sep=", ")
    size, peer_size = (f"{parameters(model) / 1e6:.1f} M parameters" for model in (ours, peer))
    report(
        f"A network call, {args.count} guided pictures of {args.size} px, {size}",
        mine,
        theirs,
        "s",
        f"diffusers DiTTransformer2DModel, {peer_size}",
        more_is_better=False,
    )


if __name__ == "__main__":
    main()
