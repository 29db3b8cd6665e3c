"""The user's own functions that a schedule names: `package.module:function`, or `file.py:function`.

A module must be installed where the workers run. A file must be visible to every worker, like the text, and may import
only what is installed.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from raystage.errors import InputError
from raystage.units import shown

# Functions that raystage ships, by the place that schedules of earlier versions name.
_MOVED = {"raystage.metrics": "raystage.objectives.metrics"}
_FORMS = "package.module:function or file.py:function"
_RAYSTAGE, _PYTHON, _PACKAGES = Path(__file__).parent, Path(inspect.__file__).parent, "site-packages"
# By file of the user's code the SHA-256 of what this process loaded of it.
_loaded: dict[str, str] = {}


def split_reference(reference: str) -> tuple[str, str]:
    """('package.module', 'function'). Raises ValueError."""
    place, _, function = reference.rpartition(":")
    if not place or not function.isidentifier():
        raise ValueError(f"found {shown(reference)}; expected {_FORMS}")
    return place, function


def file_of(reference: str) -> str | None:
    """The file of a reference; None where it names a module."""
    place, _ = split_reference(reference)
    return place if place.endswith(".py") else None


@lru_cache
def find(reference: str) -> Callable[..., Any]:
    """The function. Importing runs the code of the module. Raises InputError."""
    place, name = split_reference(reference)
    place = _MOVED.get(place, place)
    try:
        with printed_aside():
            module = _load_file(place) if file_of(reference) else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # whatever the user's module does when it is imported
        raise InputError(f"{reference} cannot be imported ({said_by(error)}); expected {_FORMS}") from None
    found = getattr(module, name, None)
    if not callable(found):
        what = "no such function" if found is None else f"a {type(found).__name__}, not a function"
        raise InputError(f"{reference} is {what}; {_others(module, name)}")
    return found


def check_code(reference: str, planned: str, key: str) -> None:
    """Raises InputError where this process has other code than was planned with.

    planned: the SHA-256 of the file that the function is in.
    """
    forget_others(reference, planned)
    found = _digest(reference)
    if found != planned:
        problem = f"the code of {reference} on this machine ({found[:12]}) is not what was planned with"
        raise InputError(f"{problem} ({planned[:12]}); expected a file that stays as it is (start again)", key=key)


def forget_others(reference: str, planned: str) -> None:
    """Load a file once more at its next use if this process has loaded something else of it: it was edited since."""
    file = file_of(reference)
    if _loaded.get(file, planned) != planned:
        del _loaded[file]
        find.cache_clear()


def _digest(reference: str) -> str:
    """The SHA-256 of the file of a function: of a file as it was loaded, of a module as it lies there."""
    function, file = find(reference), file_of(reference)
    if file is not None:
        return _loaded[file]
    place, _ = split_reference(reference)
    origin = getattr(sys.modules.get(place), "__file__", None) or inspect.getfile(function)
    return hashlib.sha256(Path(origin).read_bytes()).hexdigest()


def call(reference: str, key: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """What a function of the user's own returns. Raises InputError for whatever it raises, and where it would end the
    process."""
    function = find(reference)
    try:
        return function(*arguments, **options)
    except (Exception, SystemExit) as error:
        raise InputError(f"{reference} failed ({said_by(error)})", key=key) from error


def printed_aside() -> contextlib.redirect_stdout:
    """Within this context the user's code prints to standard error: what a command itself prints may be JSON."""
    return contextlib.redirect_stdout(sys.stderr)


def check_call(reference: str, arguments: int, options: Mapping[str, Any]) -> None:
    """Raises InputError for a function that does not take this many arguments and these options."""
    function = find(reference)
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have no signature
        return
    try:
        signature.bind(*[None] * arguments, **options)
    except TypeError as error:
        given = f" and the options {', '.join(options)}" if options else ""
        raise InputError(
            f"{reference}{signature} cannot be called with {arguments} arguments{given}: {error}"
        ) from None


def said_by(error: BaseException) -> str:
    """An error of the user's code in one line: its type, its message, and where it was raised: the last line that is
    not in an installed package, if there is one."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # the message is the user's code, too
        lines = []
    frames = [one for one in traceback.extract_tb(error.__traceback__) if _is_shown(Path(one.filename))]
    own = [one for one in frames if _PACKAGES not in Path(one.filename).parts]
    where = next((f" at {one.filename}:{one.lineno}" for one in reversed(own or frames)), "")
    return type(error).__name__ + (f": {lines[0]}" if lines else "") + where


def _is_shown(file: Path) -> bool:
    """Whether a line of this file can be what is wrong: not raystage's own, not Python's, no code without a file."""
    is_python = file.is_relative_to(_PYTHON) and _PACKAGES not in file.parts
    return file.is_absolute() and not is_python and not file.is_relative_to(_RAYSTAGE)


def _load_file(place: str) -> ModuleType:
    """The module of a file, under a name of its own."""
    path = Path(place)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    name = f"raystage_hook_{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    content = path.read_bytes()  # and not what Python may have kept of an earlier second
    try:
        exec(compile(content, str(path), "exec", dont_inherit=True), vars(module))
        _loaded[place] = hashlib.sha256(content).hexdigest()
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _others(module: ModuleType, name: str) -> str:
    known = sorted(key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_"))
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there are {', '.join(known)}" if known else "there is no function in it"
