"""`raystage init`: a schedule to start from, in a file of one's own."""

from __future__ import annotations

import difflib
import os
import shlex
from pathlib import Path

import click

from raystage.cli.options import exits, say
from raystage.cli.starters import STARTER, about, copies, examples_folder, find_examples
from raystage.errors import InputError, RaystageError
from raystage.files.local import write_new

DEFAULT_FILE = Path("schedule.yaml")


@click.command("init")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--example", metavar="NAME", help="Copy this example instead; a sweep brings the schedule it varies.")
@click.option("--list", "listed", is_flag=True, help="List the examples; write nothing.")
@exits
def init_command(file: Path | None, example: str | None, listed: bool) -> None:
    """Write a schedule to start from: it runs as it is, in minutes and without a GPU, and its comments say what to
    change.

    FILE is schedule.yaml unless given, with --example the name of the example's own file. What is there already is
    not overwritten.

    \b
    Example:
      raystage init mine.yaml
      raystage init --list
      raystage init --example growth
      raystage init --example sweeps/quickstart my-sweep.yaml
    """
    if listed:
        if example is not None or file is not None:
            other = "--example" if example is not None else f"FILE {str(file)!r}"
            raise InputError(f"found {other} too; expected it alone", key="--list")
        _list()
        return
    if example is None:
        target, command = file or DEFAULT_FILE, "run"
        _write({target: STARTER.read_bytes()}, target)
    else:
        source = _example(example)
        target, command = file or Path(source.name), "sweep" if example.startswith("sweeps/") else "run"
        _write(copies(source, target), target)
    name = shlex.quote(str(target))
    say(f"next: raystage plan {name}, then raystage {command} {name}")


def _list() -> None:
    examples = _examples()
    width = max(map(len, examples))
    for name, path in examples.items():
        say(f"{name:{width}}  {about(path)}")


def _example(name: str) -> Path:
    """The file of an example. Raises InputError."""
    examples = _examples()
    if name not in examples:
        close = difflib.get_close_matches(name, examples, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(examples)}"
        raise InputError(f"found {name!r}; {hint}", key="--example")
    return examples[name]


def _examples() -> dict[str, Path]:
    folder = examples_folder()
    examples = find_examples(folder)
    if not examples:
        raise RaystageError(f"{folder}: no examples are installed; expected schedules/ and sweeps/ there")
    return examples


def _write(files: dict[Path, bytes], target: Path) -> None:
    """Write them all, or none and raise InputError. A file beside the target may be there as it would be written."""
    if not target.parent.is_dir():
        problem = f"found no folder {target.parent}; expected a file in a folder that is there"
        raise InputError(problem, key="FILE", file=str(target))
    if target.suffix not in (".yaml", ".yml"):
        problem = "expected a name that ends in .yaml (an example is named by --example)"
        raise InputError(problem, key="FILE", file=str(target))
    written: list[Path] = []
    try:
        for path, content in files.items():
            if path != target and _is_there(path, content):
                continue
            if os.path.lexists(path) or not write_new(os.path.abspath(path), content):
                raise _is_taken(path, target)
            written.append(path)
    except (InputError, OSError) as error:
        for path in written:
            path.unlink()
        if isinstance(error, InputError):
            raise
        problem = f"cannot be written ({error.strerror}); expected a folder that can be written to"
        raise InputError(problem, key="FILE", file=str(target)) from None
    for path in written:
        say(f"wrote {path}")


def _is_there(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _is_taken(path: Path, target: Path) -> InputError:
    problem = "is there already, and is not overwritten; expected a new file"
    if path != target:
        problem += f", or another folder for {target}: the schedule that it varies goes beside it"
    return InputError(problem, key="FILE", file=str(path))
