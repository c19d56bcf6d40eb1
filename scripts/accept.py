"""Whether weights tuned by rewards are kept: two finished evaluations, and the diversity of both models.

    python scripts/accept.py RUN_BEFORE RUN_AFTER --models FOLDER_BEFORE FOLDER_AFTER [--detector FILE]

Prints the rule's three figures. The exit code is 0 if the tuned weights are kept, and 1 if not.
"""

import argparse
import sys
from pathlib import Path

from limner.evaluate import prompts as prompt_sets
from limner.evaluate.acceptance import diversity, refusals
from limner.evaluate.compare import compare
from limner.evaluate.run import choose
from limner.evaluate.sources import drawn
from limner.pipeline.load import load
from limner.pipeline.request import Request
from limner.weights.detector import load_detector, shipped


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("runs", type=Path, nargs=2, help="folders of `limner evaluate composition`")
    parser.add_argument("--models", nargs=2, required=True, help="the models of both runs")
    parser.add_argument(
        "--detector", type=Path, help="the evaluator's, if not the one that comes with Limner"
    )
    parser.add_argument("--prompts", default="core", help="set whose prompts are drawn for diversity")
    parser.add_argument("--limit", type=int, default=4, help="prompts of each task")
    options = parser.parse_args()
    watcher = load_detector(shipped() if options.detector is None else options.detector)
    chosen = choose(
        prompt_sets.read(options.prompts), ("single_object", "two_object", "colors"), options.limit
    )
    before, after = (
        diversity(drawn(load(model, device="cpu"), Request(prompt="")), watcher, chosen)
        for model in options.models
    )
    print(f"diversity {before:.3f} -> {after:.3f}")
    reasons = refusals(compare(*options.runs), before, after)
    print("kept" if not reasons else f"not kept: {'; '.join(reasons)}")
    sys.exit(bool(reasons))


if __name__ == "__main__":
    main()
