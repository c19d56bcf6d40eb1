#!/usr/bin/env bash
# What waits for a CUDA device, in one go and under ten minutes. Prints everything; OUT (default: a new folder) keeps it.
#
#     bash benchmarks/gpu/run.sh [--from FOLDER]     FOLDER holds the unpacked npm packages; without it, npm fetches them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=${OUT:-$(mktemp -d)}
atlas=$out/atlas
mkdir -p "$out"
say() { printf '\n== %s\n' "$*"; }

say "the device"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
python -c 'import torch; assert torch.cuda.is_available(), "torch sees no CUDA device"; print(torch.__version__)'

say "tests that need a device"
python -m pytest -m gpu -q || [ $? -eq 5 ] # 5: there are none yet

say "the drawn world"
limner world prepare "$@" --folder "$atlas" --styles flat,glossy

say "scenes composed on the device"
python benchmarks/compose.py --atlas "$atlas" --device cuda --scenes 8192 --batch 1024

say "network calls"
python benchmarks/sampling.py --device cuda

say "training throughput of configs/mini.toml: 60 s after the loss is compiled"
for batch in 256 1024; do
    python benchmarks/training.py configs/mini.toml --seconds 60 --out "$out/run-$batch" \
        loop.device=cuda loop.compile=true "loop.batch=$batch" loop.images=100_000_000 "denoise.data.folder=$atlas"
done
