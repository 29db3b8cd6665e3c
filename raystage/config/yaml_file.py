"""Reading YAML as a schedule needs it: mappings only, no key twice, overrides by dotted path.

The size of a file is bounded, with aliases and merged mappings (`<<`) counted each time they are used. So no file takes
long to read or fills the memory.

Plain values follow YAML 1.2, which has fewer surprises than PyYAML's 1.1: `3e-4` is a number, `no` is text, `1:30` is
not 90, `010` is not 8, and `2024-01-01` is not a date.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import yaml

from raystage.errors import InputError
from raystage.safe_text import secrets_in
from raystage.units import kind_of, shortened, shown

# The largest file so far has 200 lines. PyYAML reads about 100 KB/s.
MOST_BYTES = 200_000
MOST_VALUES = 10_000
MOST_DEPTH = 60
_MOST_CHARACTERS_OF_A_NUMBER = 400
_TAG = "tag:yaml.org,2002:"
_NAME = r"[A-Za-z_][\w-]*"
_PATH = re.compile(rf"{_NAME}(\[\d+\])*(\.{_NAME}(\[\d+\])*)*")
_STEP = re.compile(rf"({_NAME})|\[(\d+)\]")
_PLAIN_VALUES = {
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]{0,40})", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "null": ("~|null|Null|NULL|", ["~", "n", "N", ""]),
    "merge": ("<<", "<"),
}


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML accepts or crashes on: a key given twice (it keeps the last), keys that are not text, a value
    that contains itself, sets, dates and binary data, and more values than a schedule can have."""

    yaml_implicit_resolvers: ClassVar[dict] = {}
    yaml_constructors: ClassVar[dict] = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in {"null", "bool", "int", "float", "str", "seq", "map"}
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.deep_construct = True  # a value that contains itself is then an error; PyYAML would build it
        self._depth = self._count = 0
        self._sizes: dict[yaml.Node, int] = {}  # the number of values in each, aliases expanded

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        self._depth += 1
        self._count += 1
        if self._count > MOST_VALUES:
            self._refuse_more(self.peek_event().start_mark)
        if self._depth > MOST_DEPTH:
            raise RecursionError
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[node] = self._size(node)
        return node

    def _size(self, node: yaml.Node) -> int:
        if node in self._sizes or isinstance(node, yaml.ScalarNode):
            return self._sizes.get(node, 1)
        inner = (part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,)))
        size = 1 + sum(self._sizes.get(part, 1) for part in inner)
        if size > MOST_VALUES:
            self._refuse_more(node.start_mark)
        return size

    def _refuse_more(self, mark: yaml.Mark) -> None:
        problem = f"more than {MOST_VALUES:,} values, those of an alias counted each time it is used"
        raise yaml.constructor.ConstructorError(None, None, problem, mark)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        self._check_number(node)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        self._check_number(node)
        return super().construct_yaml_float(node)

    def _check_number(self, node: yaml.ScalarNode) -> None:
        if len(node.value) > _MOST_CHARACTERS_OF_A_NUMBER:
            problem = f"found a number of {len(node.value):,} characters"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in {f"{_TAG}str", f"{_TAG}merge"}:
                raise yaml.constructor.ConstructorError(
                    None, None, "found a key that is not text; quote it", key.start_mark
                )
            if key.value in seen:
                problem = f"the key {shown(key.value)} stands here a second time"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return node


for _name in ("int", "float"):
    _Loader.add_constructor(_TAG + _name, getattr(_Loader, f"construct_yaml_{_name}"))
for _name, (_pattern, _first) in _PLAIN_VALUES.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), list(_first))


def read_mapping(path: Path) -> dict:
    """The mapping in the file at `path`. Raises InputError naming file, line and column."""
    try:
        text = _read(path)
    except FileNotFoundError:
        raise InputError("no such file; expected a YAML file", file=str(path)) from None
    except IsADirectoryError:
        raise InputError("is a folder; expected a YAML file", file=str(path)) from None
    except UnicodeDecodeError as error:
        problem = f"is not text (byte {error.start} is not UTF-8); expected a YAML file"
        raise InputError(problem, file=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); expected a YAML file", file=str(path)) from None
    try:
        content = parse_value(text)
    except ValueError as error:
        raise InputError(f"is not valid YAML: {error}", file=str(path)) from None
    if not isinstance(content, dict):
        raise InputError(f"found {kind_of(content)}; expected a mapping of keys to values", file=str(path))
    _refuse_secrets(content, file=str(path))
    return content


def _read(path: Path) -> str:
    """A text of bounded size. Raises OSError, UnicodeDecodeError, InputError."""
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise InputError("is no regular file; expected a YAML file", file=str(path))
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"has more than {MOST_BYTES:,} bytes; expected a schedule or a sweep", file=str(path))
    return content.decode("utf-8")


def apply_override(content: dict, override: str) -> None:
    """Set `a.b[1].c=VALUE` in place; VALUE is YAML. Raises InputError where the path leads nowhere."""
    path, equals, text = override.partition("=")
    label = f"--set {shortened(' '.join(override.split()), 200)}"
    steps = parse_path(path.strip())
    if not equals or not steps:
        raise InputError("expected KEY=VALUE with a key such as stages[1].until.tokens", key=label)
    try:
        value = parse_value(text)
    except ValueError as error:
        raise InputError(f"the value is not valid YAML: {error}", key=label) from None
    _refuse_secrets(value, "--set ", steps)
    set_value(content, steps, value, label)


def _refuse_secrets(value: object, label: str = "", steps: Iterable = (), file: str | None = None) -> None:
    """Raises InputError for a secret: what is written here is kept in run files, reports and W&B."""
    for place, found in secrets_in(value, tuple(steps)):
        problem = f"found {found}; expected none, because this is kept in run files: give it in the environment"
        raise InputError(problem, key=label + dotted(place), file=file)


def set_value(content: dict, steps: list[str | int], value: object, label: str) -> None:
    """Set the value at a path in place; missing mappings on the way are created. Raises InputError, naming `label`.

    An entry of a list may be named by its `name` in place of its index: mixture.web.weight.
    """
    place: dict | list = content
    for position, step in enumerate(steps[:-1]):
        step = index_of(place, step)
        steps = [*steps[:position], step, *steps[position + 1 :]]
        _check_step(place, steps, position, label)
        child = place.get(step) if isinstance(place, dict) else place[step]
        place[step] = _copied(child, steps[position + 1])
        place = place[step]
    _check_step(place, steps, len(steps) - 1, label)
    place[steps[-1]] = value


def index_of(place: object, step: str | int) -> str | int:
    """The index of the entry of a list that has the name `step`; any other step as it is."""
    names = _names_in(place) if isinstance(step, str) else []
    return names.index(step) if step in names else step


def with_stage_index(path: str, content: dict, label: str) -> str:
    """A path with the index of a stage in place of its name. Raises InputError, naming `label`."""
    steps = parse_path(path)
    if len(steps) < 2 or steps[0] != "stages":
        return path
    stages = content["stages"]
    steps[1] = index_of(stages, steps[1])
    if isinstance(steps[1], str):
        problem = f"found the stage {steps[1]!r}; expected {' or '.join(_names_in(stages))}"
        raise InputError(problem, key=label)
    return dotted(steps)


def _names_in(place: object) -> list[str]:
    """The names of a list's entries, if all have one."""
    if not isinstance(place, list) or not all(isinstance(one, dict) and "name" in one for one in place):
        return []
    return [str(one["name"]) for one in place]


def _copied(child: object, following: str | int) -> object:
    """A copy that can be changed: with an anchor one value may stand in several places."""
    if child is None and isinstance(following, str):
        return {}
    return child.copy() if isinstance(child, (dict, list)) else child


def _check_step(place: object, steps: list[str | int], position: int, label: str) -> None:
    step = steps[position]
    if isinstance(place, dict) if isinstance(step, str) else isinstance(place, list) and step < len(place):
        return
    before = dotted(steps[:position]) or "the file"
    names = _names_in(place)
    if isinstance(step, str) and names:
        raise InputError(f"{before} has no entry of the name {step!r}; expected {' or '.join(names)}", key=label)
    if isinstance(step, str):
        raise InputError(f"{before} is {kind_of(place)}; expected a mapping that {step!r} can be set in", key=label)
    if not isinstance(place, list):
        raise InputError(f"{before} is {kind_of(place)}; expected a list that has an entry [{step}]", key=label)
    raise InputError(f"found [{step}], but {before} has {len(place)} entries, counted from 0", key=label)


def parse_path(path: str) -> list[str | int]:
    """'stages[1].until.tokens' -> ['stages', 1, 'until', 'tokens']; [] for what is not a path."""
    return list(_steps(path))


# Cached: ten thousand trials of a sweep set the same few paths.
@lru_cache(maxsize=1024)
def _steps(path: str) -> tuple[str | int, ...]:
    if not _PATH.fullmatch(path):
        return ()
    return tuple(name or int(index) for name, index in _STEP.findall(path))


def dotted(steps: tuple | list) -> str:
    """['stages', 1, 'until'] -> 'stages[1].until'. A key with odd characters is quoted."""
    text = ""
    for step in steps:
        name = shortened(str(step) if str(step).isprintable() else repr(step), 120)
        text += f"[{step}]" if isinstance(step, int) else f".{name}" if text else name
    return text


def parse_value(text: str) -> object:
    """The value in a YAML text. Raises ValueError, which says in one line what is wrong and where."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(_describe(error)) from None
    except RecursionError:
        raise ValueError("values are nested too deep") from None
    except (ValueError, KeyError, OverflowError) as error:  # raised by PyYAML on !!int x, !!bool x and "\\U99999999"
        raise ValueError(f"a value does not fit its tag or escape ({shortened(str(error), 200)})") from None


def _describe(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character {chr(error.character)!r} at position {error.position} is not allowed in it"
    problem, mark = " ".join(str(error.problem).split()), error.problem_mark
    if problem.startswith("but "):
        problem = f"{error.context}, {problem}"
    if "'\\t'" in problem:
        problem = "found a tab; YAML indents with spaces"
    return f"line {mark.line + 1}, column {mark.column + 1}: {shortened(problem, 300)}"
