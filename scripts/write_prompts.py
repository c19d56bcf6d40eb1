"""Writes the prompt sets of the evaluator: python scripts/write_prompts.py. A test compares them."""

from limner.evaluate.prompts import SETS, to_line
from limner.evaluate.wording import write
from limner.text.lexicon import load_lexicon


def text(name: str) -> str:
    """The whole set: about the reviewed objects ("core") or all of them ("all")."""
    objects = [entry.name for entry in load_lexicon().entries if entry.core or name == "all"]
    return "".join(f"{to_line(prompt)}\n" for prompt in write(objects))


if __name__ == "__main__":
    for name in ("core", "all"):
        path = SETS / f"{name}.jsonl"
        path.write_text(text(name), "utf-8")
        print(path)
