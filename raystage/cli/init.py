"""`raystage init`: a schedule to start from, as a file."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from pathlib import Path

import click

from raystage.cli.options import exits, say
from raystage.errors import InputError, RaystageError
from raystage.files.local import write_new

DEFAULT_FILE = Path("schedule.yaml")


@click.command("init")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--example", metavar="NAME", help="Copy this example instead, with the files it reads.")
@click.option("--list", "listed", is_flag=True, help="List the examples; write nothing.")
@exits
def init_command(file: Path | None, example: str | None, listed: bool) -> None:
    """Write a schedule to start from. It runs as it is, in minutes and without a GPU. Its comments say what to change.

    FILE is schedule.yaml by default; with --example it is the name of the example's file. Existing files are not
    overwritten.

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
    """Write all files, or none and raise InputError. A file beside the target may exist with the same content."""
    if not target.parent.is_dir():
        problem = f"found no folder {target.parent}; expected a file in a folder that is there"
        raise InputError(problem, key="FILE", file=str(target))
    if target.suffix not in (".yaml", ".yml"):
        problem = "expected a name that ends in .yaml (an example is named by --example)"
        raise InputError(problem, key="FILE", file=str(target))
    written: list[Path] = []
    made: list[Path] = []
    try:
        for path, content in files.items():
            if path != target and _is_there(path, content):
                continue
            if not path.parent.is_dir():
                path.parent.mkdir()
                made.append(path.parent)
            if os.path.lexists(path) or not write_new(os.path.abspath(path), content):
                raise _is_taken(path, target)
            written.append(path)
    except (InputError, OSError) as error:
        for path in written:
            path.unlink()
        for folder in made:
            folder.rmdir()
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
        problem += f", or another folder for {target}: what it reads goes beside it"
    return InputError(problem, key="FILE", file=str(path))


# --- examples --------------------------------------------------------------------------------

_PACKAGE = Path(__file__).parents[1]


STARTER = Path(__file__).parent / "starter.yaml"


# What an example reads, on a line or between braces: the schedule that a sweep varies, a text, a tokenizer's folder.
_READ = re.compile(rb"(?:^ *|[{,] *)(?:schedule|path|tokenizer): *([^\s,{}\[\]]+)", re.M)


def examples_folder() -> Path:
    """In the installed package, where setup.py puts it; in a checkout `jobs/`."""
    shipped = _PACKAGE / "examples"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "jobs"


def find_examples(folder: Path) -> dict[str, Path]:
    """The examples by name. The name of a schedule is that of its file; the name of a published recipe starts with
    `recipes/`, that of a sweep with `sweeps/`."""
    kinds = {"": "schedules", "recipes/": "schedules/recipes", "sweeps/": "sweeps"}
    return {
        f"{kind}{path.stem}": path
        for kind, inside in kinds.items()
        for path in sorted((folder / inside).glob("*.yaml"))
    }


def about(example: Path) -> str:
    """The first comment of an example."""
    first = example.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def copies(example: Path, target: Path) -> dict[Path, bytes]:
    """The files for a copy of an example at `target`, by path. What it reads is put beside it: the schedule that a
    sweep varies, a text, the folder of a tokenizer; in place of what a script has to make first, the script. Raises
    InputError if such a file has the target's name."""
    content, brought = example.read_bytes(), {}
    for named in reversed(list(_READ.finditer(content))):
        read = example.parent / named[1].decode()
        script = read.parent.with_suffix(".py")
        if not read.exists() and script.is_file():
            brought[target.with_name(script.name)] = script.read_bytes()
            made = f"{read.parent.name}/{read.name}".encode()
            content = content[: named.start(1)] + made + content[named.end(1) :]
        if not read.exists():
            continue
        if read.name == target.name:
            problem = f"found the name of a file that {example.name} reads; expected another one"
            raise InputError(problem, key="FILE", file=str(target))
        beside = target.with_name(read.name)
        brought |= copies(read, beside) if read.suffix == ".yaml" else _contents(read, beside)
        content = content[: named.start(1)] + read.name.encode() + content[named.end(1) :]
    for script in (path.name for path in brought if path.suffix == ".py"):
        content = content.replace(f"jobs/text/{script}".encode(), script.encode())  # where a comment says to run it
    return brought | {target: content}


def _contents(read: Path, beside: Path) -> dict[Path, bytes]:
    """Of a file, or of the files in a folder."""
    if read.is_file():
        return {beside: read.read_bytes()}
    return {beside / file.name: file.read_bytes() for file in sorted(read.iterdir())}
