"""What `import limner` offers, and what it costs."""

import subprocess
import sys
from types import ModuleType

import pytest

import limner

HEAVY = ["torch", "numpy", "PIL", "tokenizers", "safetensors", "einops", "typer", "rich"]


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_all_is_sorted_and_complete() -> None:
    public = {
        name
        for name in dir(limner)
        if not name.startswith("_")
        and not isinstance(getattr(limner, name), ModuleType)  # rooms, such as limner.util
        and getattr(getattr(limner, name), "__module__", "").startswith("limner")
    }
    assert limner.__all__ == sorted(public)


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name in limner.__all__ if not getattr(limner, name).__doc__] == []


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'laod'.*load"):
        _ = limner.laod  # type: ignore[attr-defined]


def test_importing_limner_imports_nothing_heavy() -> None:
    loaded = _modules_after("import limner")
    assert "limner.errors" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_the_command_line_does_not_import_torch() -> None:
    loaded = _modules_after("import limner.cli")
    assert loaded.isdisjoint({"torch", "numpy", "tokenizers", "safetensors", "transformers"})


def test_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert version("limner") == limner.__version__
