"""Writes the pages that follow from the code: docs/schedule.md from the types of schedules and sweeps, docs/cli.md from
the commands.

    python docs/generate.py            # writes both pages
    python docs/generate.py --check    # changes nothing; exit status 1 if a page is out of date

A test compares both pages with what this script makes. What a key means is the docstring below its field in
`raystage/config` (or `raystage/sweeps/config.py`); what a command does is its docstring in `raystage/cli`.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import annotated_types
import click
from pydantic.fields import FieldInfo

from raystage.cli.main import main
from raystage.config.schedule import Schedule
from raystage.config.section import Section, keys_of
from raystage.sweeps.config import Sweep

FOLDER = Path(__file__).parent
SWEEP_TITLE = "The sweep file"

SCHEDULE_INTRO = """# Schedule reference

This page is generated from the code (`docs/generate.py`). It lists every key of a schedule and of a sweep file. Other
pages explain how the keys work together: [training](training.md), [data](data.md), [models](models.md),
[growth](growth.md), [lengths and gates](lengths-and-gates.md), [savings](savings.md), [sweeps](sweeps.md).

- A stage takes the file's `data`, `model` and `training`, and overrides them key by key.
- Whole numbers take suffixes: `500K`, `10M`, `1.5B`. Numbers take exponents: `3e-4`. Durations take units: `90s`,
  `30m`, `2h`.
- An unknown key is an error, and the message proposes a known one.
- `null` gives a key back the value that follows from the rest, if there is such a value.
- "-" in the column "default": the value follows from the rest, or the key may be left out.
"""

CLI_INTRO = """# Command line

This page is generated from the code (`docs/generate.py`). `raystage COMMAND --help` prints the same.

With `--json` a command prints one JSON object on standard output; progress and logs go to standard error.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | the run failed |
| 2 | the input is wrong: one message names the file, the key, what was found and what was expected |
| 130 | interrupted; the same command continues |
"""

# What a value looks like in a file, by the function that reads it.
FORMS = {
    "parse_count": "whole number",
    "parse_real": "number",
    "_parse_bound": "number",
    "parse_seconds": "duration",
    "parse_bool": "`true` or `false`",
    "parse_recomputed": "`true`, `false` or `selective`",
    "parse_span": "fraction below 1, or tokens",
    "parse_position": "fraction up to 1, or tokens",
    "parse_base": "number",
    "parse_top_k": "whole number, or `none`",
    "parse_workers": "whole number, or `{min: 2, max: 8}`",
    "parse_operator": "operator, or one for each part that grows",
    "_as_layers": "`old`, `new`, or a list of layers",
    "_as_metric": "`file.py:function` or `module:function`, or a mapping",
}
PLAIN = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", typing.Any: "any value"}


# --- the schedule -----------------------------------------------------------------------------


def schedule_page() -> str:
    return "\n".join([SCHEDULE_INTRO, *_sections(Schedule, "The schedule"), *_sections(Sweep, SWEEP_TITLE)])


def _sections(root: type[Section], title: str) -> Iterator[str]:
    """A heading and a table for a file's own keys, then for every section in it, each section once."""
    places = _told_apart(dict(_places(root, "")), title)
    yield from _section(root, f"## {title}", places)
    for section, place in places.items():
        if section is not root:
            yield from _section(section, f"### `{place}`", places)


def _told_apart(places: dict[type[Section], str], title: str) -> dict[type[Section], str]:
    """With another heading where a section of the sweep file stands at a key that the schedule has, too."""
    if title != SWEEP_TITLE:
        return places
    taken = {_slug(place) for place in dict(_places(Schedule, "")).values()}
    return {one: f"{place} of a sweep" if _slug(place) in taken and place else place for one, place in places.items()}


def _places(section: type[Section], place: str) -> Iterator[tuple[type[Section], str]]:
    """Every section of a file with the dotted place where it first stands, depth first."""
    found = {section: place}
    for key, field in keys_of(section).items():
        for inner in _sections_in(field.annotation):
            if inner not in found:
                here = f"{place}.{key}".removeprefix(".") + _list_mark(field.annotation)
                found |= {one: where for one, where in _places(inner, here) if one not in found}
    yield from found.items()


def _list_mark(annotation: object) -> str:
    """'[]' for a list of sections, '.NAME' for a mapping of names to sections."""
    kinds = {typing.get_origin(annotation), *map(typing.get_origin, typing.get_args(annotation))}
    return "[]" if tuple in kinds else ".NAME" if dict in kinds else ""


def _sections_in(annotation: object) -> Iterator[type[Section]]:
    if inspect.isclass(annotation) and typing.get_origin(annotation) is None and issubclass(annotation, Section):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _sections_in(inner)


def _section(section: type[Section], heading: str, places: dict[type[Section], str]) -> Iterator[str]:
    yield f"{heading}\n"
    if about := section.__dict__.get("__doc__"):
        yield f"{_code_marked(inspect.cleandoc(about))}\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    for key, field in keys_of(section).items():
        cells = (f"`{key}`", _value(field, places), _default(field), _meaning(field))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _code_marked(text: str) -> str:
    """A docstring as Markdown: stars and angle brackets stand for themselves, except in code."""
    parts = text.split("`")
    return "`".join(
        part if index % 2 else part.replace("*", r"\*").replace("<", "&lt;") for index, part in enumerate(parts)
    )


def _meaning(field: FieldInfo) -> str:
    text = " ".join(inspect.cleandoc(field.description or "").split())
    example = f"Example: `{field.examples[0]}`." if field.examples and field.is_required() else ""
    return " ".join(filter(None, (_code_marked(text), example)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, Section) or value in ((), {}):
        return "-"
    return f"`{_written(value)}`"


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Section):
        named = zip(keys_of(type(value)), type(value).model_fields, strict=True)
        given = {key: one for key, name in named if (one := getattr(value, name)) is not None}
        return f"{{{', '.join(f'{key}: {_written(one)}' for key, one in given.items())}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _value(field: FieldInfo, places: dict[type[Section], str]) -> str:
    return _form(field.annotation, field.metadata, places)


def _form(annotation: object, metadata: list | tuple, places: dict[type[Section], str]) -> str:
    """What a value looks like in a file, from its type and what is annotated to it."""
    flat = [one for item in metadata for one in (item.metadata if isinstance(item, FieldInfo) else [item])]
    readers = [getattr(getattr(item, "func", None), "__name__", "") for item in flat]
    form = next((FORMS[name] for name in readers if name in FORMS), None)
    alone = f"{_plain_form(typing.get_args(annotation)[0], places)}, or a list" if "_as_list" in readers else None
    return f"{form or alone or _plain_form(annotation, places)}{_bounds(flat)}"


def _plain_form(annotation: object, places: dict[type[Section], str]) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _form(arguments[0], arguments[1:], places)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_plain_form(one, places) for one in arguments if one is not type(None))
    if origin is typing.Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is tuple:
        return f"list: {_plain_form(arguments[0], places)}"
    if origin is dict:
        return "mapping" if arguments[1] is typing.Any else f"mapping: {_plain_form(arguments[1], places)}"
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        place = places.get(annotation)
        return f"[mapping](#{_slug(place)})" if place else "mapping"
    return PLAIN.get(annotation, "text")


def _slug(place: str) -> str:
    """The anchor that GitHub and the site both give a heading of this text."""
    return "".join(letter for letter in place.lower().replace(" ", "-") if letter.isalnum() or letter in "_-")


def _bounds(metadata: list) -> str:
    words = []
    for one in metadata:
        match one:
            case annotated_types.Gt():
                words.append(f"above {_written(one.gt)}")
            case annotated_types.Ge():
                words.append(f"at least {_written(one.ge)}")
            case annotated_types.Lt():
                words.append(f"below {_written(one.lt)}")
            case annotated_types.Le():
                words.append(f"at most {_written(one.le)}")
    return f", {' and '.join(words)}" if words else ""


# --- the command line -------------------------------------------------------------------------


def cli_page() -> str:
    return "\n".join([CLI_INTRO, *_commands(main, "raystage")])


def _commands(group: click.Group, path: str) -> Iterator[str]:
    for name in group.list_commands(click.Context(group, info_name=path)):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield f"## {path} {name}\n\n{_help(command)}\n"
            yield from _commands(command, f"{path} {name}")
        else:
            yield from _command(command, f"{path} {name}")


def _command(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    yield f"## {path}\n"
    yield f"```text\n{path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    yield f"{_help(command)}\n"
    options = [one for one in command.get_params(context) if isinstance(one, click.Option) and "--help" not in one.opts]
    rows = [record for one in options if (record := one.get_help_record(context))]
    if rows:
        yield "| option | meaning |\n|---|---|"
        for names, text in rows:
            yield f"| `{_cell(names)}` | {_cell(_code_marked(text))} |"
        yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _help(command: click.Command) -> str:
    """The docstring as Markdown; what click prints as it stands are examples."""
    return "\n\n".join(
        _example(paragraph) if paragraph.startswith("\b") else _code_marked(" ".join(paragraph.split()))
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n")
    )


def _example(paragraph: str) -> str:
    first, *lines = paragraph.removeprefix("\b").strip("\n").splitlines()
    if not lines:
        return f"```text\n{first.strip()}\n```"  # a line of a file
    body = inspect.cleandoc("\n".join(["", *lines]))
    return f"{first}\n\n```sh\n{body}\n```"


PAGES = {"schedule.md": schedule_page, "cli.md": cli_page}


def run(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the generated pages of docs/.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is out of date")
    check = parser.parse_args(arguments).check
    old = []
    for name, page in PAGES.items():
        path, text = FOLDER / name, page().rstrip("\n") + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            old.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and old:
        print(f"out of date: {', '.join(old)}; run: python docs/generate.py", file=sys.stderr)
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(run())
