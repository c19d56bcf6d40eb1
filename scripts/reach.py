"""The reader's reach: how many lines of this repository are imported to draw with each family of models.

    python scripts/reach.py

Drawing starts at pipeline/run.py; loading, at pipeline/load.py, comes on top. A line counts unless it is
blank, a comment or part of a docstring; all lines stand beside.
"""

import ast
from pathlib import Path

import grimp

PACKAGE = Path(__file__).parents[1] / "src"
DRAWING, LOADING = "limner.pipeline.run", "limner.pipeline.load"


def _families() -> dict[str, str]:
    """{family: the module that draws with it} of FAMILIES, which is read and not imported."""
    tree = ast.parse((PACKAGE / "limner" / "families" / "__init__.py").read_text("utf-8"))
    (table,) = (node.value for node in tree.body if isinstance(node, ast.AnnAssign))
    assert isinstance(table, ast.Dict)
    names = [ast.literal_eval(key) for key in table.keys if key is not None]
    return {name: f"limner.families.{name}" for name in names}


FAMILIES = _families()


def reach(family: str, graph: grimp.ImportGraph) -> set[str]:
    """Our modules that are imported to draw with `family`, packages on the way included."""
    others = set(FAMILIES.values()) - {family}
    modules = (
        (graph.find_upstream_modules(DRAWING) - others)
        | graph.find_upstream_modules(family)
        | {DRAWING, family}
    )
    ours = {module for module in modules if module.split(".")[0] == "limner"}
    parts = [module.split(".") for module in ours]
    return ours | {".".join(part[:depth]) for part in parts for depth in range(1, len(part))}


def source(module: str) -> str:
    """The text of a module or package."""
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    return (path if path.exists() else path.with_suffix("") / "__init__.py").read_text("utf-8")


def code(text: str) -> int:
    """Lines that are neither blank nor a comment nor in a docstring."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        kinds = ast.Module, ast.ClassDef, ast.FunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            told |= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in told for n, line in lines)


def main() -> None:
    graph = grimp.build_graph("limner", exclude_type_checking_imports=True, cache_dir=None)
    loading = graph.find_upstream_modules(LOADING) | {LOADING}
    print(f"{'family':<24}{'files':>7}{'code':>7}{'all lines':>11}")
    for name, family in FAMILIES.items():
        sources = [source(module) for module in sorted(reach(family, graph))]
        lines = sum(len(text.splitlines()) for text in sources)
        print(f"{name:<24}{len(sources):>7}{sum(map(code, sources)):>7}{lines:>11}")
    sources = [source(module) for module in sorted(loading) if module.startswith("limner")]
    lines = sum(len(text.splitlines()) for text in sources)
    print(f"{'loading, all families':<24}{len(sources):>7}{sum(map(code, sources)):>7}{lines:>11}")


if __name__ == "__main__":
    main()
