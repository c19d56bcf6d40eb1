"""While the tests run, every annotation in limner is checked: shapes by jaxtyping, the rest by beartype.

The hook rewrites modules as they are imported, so it stands before the first import of one. The package
itself carries no such decorator, since checking at run time makes torch.compile recompile.
"""

import pytest
from jaxtyping import install_import_hook

install_import_hook("limner", "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
