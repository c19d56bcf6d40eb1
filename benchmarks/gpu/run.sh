#!/usr/bin/env bash
# The whole recipe of the built-in model on one CUDA device, in 25 to 30 minutes, whole or in pieces.
#
#     bash benchmarks/gpu/run.sh [--seconds N] [--state FOLDER] [--art FILE|FOLDER] [--atlas FOLDER] [--toy]
#
#   --seconds N    how long this piece may last (default 1800). It stops in time with everything saved, says which
#                  stage is next, and exits with 75; the same command goes on. 0 is "all stages are done".
#   --state F      where everything is kept (default runs/gpu).
#   --art F        art.tar.xz of scripts/pack_art.py (6 MB), or unpacked npm packages; without it npm fetches them.
#   --atlas F      a prepared atlas, instead of rendering one. It has to hold the objects and styles of the configs.
#   --toy          tiny networks, few pictures, flat and glossy, core objects, any device: does the script run?
#   --bench        only the benchmarks of this folder and the tests marked gpu.
#
# Needs Python 3.11 or later with what pyproject.toml names, and resvg-py to render the atlas; no network.
#
# Pieces: on the same machine the checkpoints in --state are all it takes. Where a machine does not outlive its piece,
# carry FOLDER/travel back and forth (7 files at most, of 15 MiB at most; under 60 MiB together): parts of a tar with
# the averaged weights of what is done and of the base in training. At the start of a piece they are unpacked where
# FOLDER holds nothing newer; training goes on from the averaged weights then, with fresh optimisers. The stages few and
# best are repeated when they were cut in the middle.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=1800 state=runs/gpu art='' atlas='' toy='' bench=''
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=$2; shift 2 ;;
    --state) state=$2; shift 2 ;;
    --art) art=$2; shift 2 ;;
    --atlas) atlas=$2; shift 2 ;;
    --toy) toy=1; shift ;;
    --bench) bench=1; shift ;;
    *) echo "unknown option $1; the head of this file names them" >&2; exit 2 ;;
    esac
done
started=$SECONDS
mkdir -p "$state"
state=$(cd "$state" && pwd)
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=$state/inductor
python=${PYTHON:-python3}
limner=("$python" -c 'from limner.cli import main; main()')
say() { printf '\n== %s  (%d s)\n' "$*" $((SECONDS - started)); }
left() { echo $((seconds - (SECONDS - started))); }

if [ -z "$toy" ]; then
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
    "$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no CUDA device"; print(torch.__version__)'
fi

# -- what a stage is ------------------------------------------------------------------------------------------------

over() { # this piece ends; stage $1 is next
    pack
    say "this piece is over; next: $1. Go on with the same command"
    exit 75
}

pack() { # $state/travel: what another machine needs
    local files=() last='' name
    for name in base best few; do [ -e "$state/$name.done" ] && last=$name; done
    [ "$last" = few ] || [ ! -e "$state/chosen" ] || last=$(cat "$state/chosen") # few begins with it
    for name in detector reward upscaler ${last:-base}; do
        for file in "$name/weights.safetensors" "$name.images" "$name.done"; do
            [ -e "$state/$file" ] && files+=("$file")
        done
    done
    for name in base best few; do [ -e "$state/$name.done" ] && files+=("$name.done"); done
    for file in chosen report.txt; do [ -e "$state/$file" ] && files+=("$file"); done
    rm -rf "$state/travel"
    [ ${#files[@]} -gt 0 ] || return 0
    mkdir "$state/travel"
    printf '%s\n' "${files[@]}" | sort -u | tar -C "$state" -cf - -T - | split -b 15M - "$state/travel/part-"
    du -sh "$state/travel"
}

train() { # train STAGE CONFIG SHARE-OF-SECONDS [KEY=VALUE ...]
    local stage=$1 config=$2 share=$3 images code=0 sets=()
    shift 3
    [ -e "$state/$stage.done" ] && return 0
    local settings=("${common[@]}" "$@")
    if [ ! -e "$state/$stage.images" ]; then
        [ "$(left)" -gt 90 ] || [ -n "$toy" ] || over "$stage"
        say "$stage: how many pictures in $share s"
        if [ -n "$toy" ]; then images=16; else
            images=$("$python" benchmarks/gpu/pace.py "$config" --seconds "$share" "${settings[@]}" | tail -n 1)
        fi
        echo "$images" >"$state/$stage.images.partial" && mv "$state/$stage.images.partial" "$state/$stage.images"
    fi
    images=$(cat "$state/$stage.images")
    [ "$(left)" -gt 60 ] || over "$stage"
    say "$stage: $images pictures"
    for setting in "${settings[@]}" "loop.images=$images"; do sets+=(--set "$setting"); done
    [ ! -e "$state/$stage/weights.safetensors" ] && [ ! -e "$state/$stage/checkpoints" ] ||
        sets+=(--resume)
    # SIGINT is Ctrl-C: the loop saves its checkpoint and stops
    timeout --signal=INT --kill-after=25 $(($(left) - 30)) "${limner[@]}" train "$config" \
        --out "$state/$stage" "${sets[@]}" 2>&1 | tail -n 5 || code=${PIPESTATUS[0]}
    [ "$code" -ne 124 ] && [ "$code" -ne 130 ] && [ "$code" -ne 137 ] || over "$stage"
    [ "$code" -eq 0 ] || exit "$code"
    tail -n 1 "$state/$stage/log.jsonl"
    touch "$state/$stage.done"
}

model() { # a model folder out of base $1
    mkdir -p "$state/model-$1"
    ln -sf "$state/$1/weights.safetensors" "$state/model-$1/base.safetensors"
    ln -sf "$state/upscaler/weights.safetensors" "$state/model-$1/upscaler.safetensors"
}

evaluate() { # evaluate NAME BASE LIMIT
    [ -e "$state/evaluation-$1/composition.json" ] && return 0
    [ "$(left)" -gt 60 ] || [ -n "$toy" ] || over "evaluate $1"
    say "evaluation of $1"
    model "$2"
    local code=0
    timeout --signal=INT $(($(left) - 20)) "${limner[@]}" evaluate composition --model "$state/model-$2" \
        --detector "$state/detector/weights.safetensors" --world "$atlas" --prompts "$prompts" --limit "$3" \
        "${judging[@]}" --out "$state/evaluation-$1.partial" | tee "$state/report.txt" || code=$?
    [ "$code" -ne 124 ] && [ "$code" -ne 130 ] || over "evaluate $1"
    [ "$code" -eq 0 ] || exit "$code"
    mv "$state/evaluation-$1.partial" "$state/evaluation-$1"
}

# -- what came from another machine -----------------------------------------------------------------------------------

if compgen -G "$state/travel/part-*" >/dev/null && [ ! -e "$state/here" ]; then
    say "unpacking what travelled"
    cat "$state"/travel/part-* | tar -C "$state" -xf - --skip-old-files
fi
touch "$state/here" # this machine's own state: newer than what travelled

# -- the drawn world --------------------------------------------------------------------------------------------------

objects=all styles=(flat glossy classic sticker) prompts=all
[ -z "$toy" ] || objects=core styles=(flat glossy) prompts=core
listed=$(printf '"%s",' "${styles[@]}")
listed="[${listed%,}]"
if [ -z "$atlas" ]; then
    atlas=$state/atlas
    if [ ! -e "$atlas/atlas.json" ]; then
        say "the drawn world"
        source=()
        if [ -f "$art" ]; then
            mkdir -p "$state/art" && tar -C "$state/art" -xf "$art"
            source=(--from "$state/art")
        elif [ -n "$art" ]; then source=(--from "$art"); fi
        jobs_=()
        for style in "${styles[@]}"; do # one process each: rendering is what takes long
            "${limner[@]}" world prepare "${source[@]}" --folder "$atlas.$style" --styles "$style" \
                --objects "$objects" &
            jobs_[${#jobs_[@]}]=$!
        done
        for job in "${jobs_[@]}"; do wait "$job"; done
        "$python" - "$atlas" "${styles[@]}" <<'PY'
import json, shutil, sys
from pathlib import Path

atlas, styles = Path(sys.argv[1]), sys.argv[2:]
atlas.mkdir(exist_ok=True)
index = {"objects": [], "styles": [], "sources": {}}
for style in styles:
    part = Path(f"{atlas}.{style}")
    told = json.loads((part / "atlas.json").read_text())
    assert index["objects"] in ([], told["objects"])
    index = {
        "objects": told["objects"],
        "styles": [*index["styles"], *told["styles"]],
        "sources": index["sources"] | told["sources"],
    }
    for path in part.glob("*.npy"):
        path.replace(atlas / path.name)
    shutil.rmtree(part)
(atlas / "atlas.json").write_text(json.dumps(index, indent=1))
PY
    fi
fi

if [ -n "$bench" ]; then
    "$python" -m pytest -m gpu -q || [ $? -eq 5 ] # 5: there are none yet
    "$python" benchmarks/compose.py --atlas "$atlas" --device cuda --scenes 8192 --batch 1024
    "$python" benchmarks/sampling.py --device cuda
    for batch in 256 1024; do
        "$python" benchmarks/training.py configs/mini.toml --seconds 60 loop.device=cuda loop.compile=true \
            "loop.batch=$batch" loop.images=100_000_000 "denoise.data.folder=$atlas"
    done
    exit 0
fi

# -- the stages -------------------------------------------------------------------------------------------------------

under() { # under TABLE KEY=VALUE ...: the settings of a table, one a line
    local table=$1
    shift
    printf "$table.%s\n" "$@"
}
data=("folder=\"$atlas\"" "objects=\"$objects\"" "styles=$listed")
shape=(size=128 patch=8 width=384 depth=8 heads=6 bottleneck=128 text_depth=2) # as in configs/mini-gpu.toml
scenes=(word=0.15 jitter=0.012 stretch=0.03)
common=(loop.checkpoint_seconds=60.0 loop.sheet_seconds=240.0)
compiled=(loop.compile=true) eyes=(loop.batch=256) second=(loop.batch=256) enlarger=(loop.batch=64)
judging=(--count 4) limit=20 quick=8
if [ -z "$toy" ]; then
    common+=(loop.device=cuda loop.precision=bfloat16)
    small=128 large=512 batch=512 tuned=256 drawn=(samples=8)
else
    shape=(size=32 patch=8 width=32 depth=2 heads=2 bottleneck=16 text_depth=1 head_channels=8)
    compiled=(loop.compile=false)
    tiny=(channels=16 growth=8 levels=2 embedding=16 size=64)
    mapfile -t eyes < <(under detect.model "${tiny[@]}")
    second=("${eyes[@]}")
    mapfile -t enlarger < <(under upscale.model channels=8 depth=2; echo upscale.crop=32)
    for name in eyes second enlarger; do declare -n one=$name; one+=(loop.batch=8); done
    judging=(--count 2 --steps 2 --no-references) limit=1 quick=1
    small=32 large=64 batch=8 tuned=8 drawn=(samples=2 steps=2)
fi
network() { # network TABLE: what a base is made of and learns from
    under "$1.model" "${shape[@]}"
    under "$1.world" "${scenes[@]}"
    under "$1.data" "${data[@]}"
}
mapfile -t see < <(under detect.data "${data[@]}")
mapfile -t enlarge < <(under upscale.data "${data[@]}"; under upscale "size=$small" "large=$large")
mapfile -t denoise < <(network denoise)
mapfile -t best < <(network best_of.base; under best_of "${drawn[@]}")
mapfile -t few < <(network few_step.base)

train detector configs/detector.toml 140 "${eyes[@]}" "${see[@]}"
train base configs/mini-gpu.toml 680 "${compiled[@]}" "${denoise[@]}" "loop.batch=$batch"
train upscaler configs/mini-upscaler.toml 90 "${enlarger[@]}" "${enlarge[@]}"
train reward configs/detector-reward.toml 90 "${second[@]}" "${see[@]}"
train best configs/mini-best.toml 140 "${compiled[@]}" "${best[@]}" "loop.batch=$tuned" \
    "loop.start=\"$state/base/weights.safetensors\"" "best_of.detector=\"$state/reward/weights.safetensors\""
if [ ! -e "$state/chosen" ]; then
    evaluate base base "$quick"
    evaluate best best "$quick"
    say "are the tuned weights kept?"
    code=0
    "$python" scripts/accept.py "$state/evaluation-base" "$state/evaluation-best" --limit 2 --prompts "$prompts" \
        --models "$state/model-base" "$state/model-best" --detector "$state/detector/weights.safetensors" || code=$?
    case $code in
    0) echo best >"$state/chosen" ;;
    1) echo base >"$state/chosen" ;;
    *) exit "$code" ;;
    esac
fi
chosen=$(cat "$state/chosen")
train few configs/mini-few.toml 170 "${compiled[@]}" "${few[@]}" "loop.batch=$tuned" \
    "loop.start=\"$state/$chosen/weights.safetensors\""
evaluate few few "$limit"
pack
say "done: $state/model-few draws in four steps; $state/model-$chosen in sixteen; the report is $state/evaluation-few"
