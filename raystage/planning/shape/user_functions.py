"""The files that functions of the user's own are in: their content is part of a stage's key."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from raystage.errors import InputError
from raystage.planning.inputs import Sources
from raystage.user_code import file_of, forget_others, split_reference


def code_of(reference: str | None, key: str, sources: Sources) -> list[str] | None:
    """The name of a function, and the SHA-256 of the file that it is in: a change of the code changes the key."""
    if reference is None:
        return None
    place, name = split_reference(reference)
    path = file_of(reference) or _module_file(place, key)
    try:
        found = sources.code(path)
        forget_others(reference, found)
        return [name, found]
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror}); expected the file that {name} is in"
        raise InputError(problem, key=key) from None


def _module_file(module: str, key: str) -> str:
    """The source file of an installed module. Importing the packages above it is all of its code that runs."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise InputError(f"found no module {module!r}; expected one that is installed, or file.py:function", key=key)
    return spec.origin
