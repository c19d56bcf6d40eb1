"""The error tree in the docstring is the tree in the code."""

import inspect

import limner.errors as errors


def _tree_in_docstring() -> dict[str, str]:
    """Name of each error in the drawn tree -> name of the error it hangs from, by indentation."""
    parents: dict[str, str] = {}
    trail: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        word = line.lstrip(" │├└─").split(" ", 1)[0]
        if not word.endswith("Error"):
            continue
        depth = len(line) - len(line.lstrip(" │├└─"))
        while trail and trail[-1][0] >= depth:
            trail.pop()
        parents[word] = trail[-1][1] if trail else "Exception"
        trail.append((depth, word))
    return parents


def test_docstring_draws_the_tree_that_exists() -> None:
    classes = {
        name: cls.__bases__[0].__name__
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, Exception) and cls.__module__ == errors.__name__
    }
    assert _tree_in_docstring() == classes
    assert classes["LimnerError"] == "Exception"


def test_every_error_says_what_it_is_for() -> None:
    assert all(getattr(errors, name).__doc__ for name in _tree_in_docstring())
