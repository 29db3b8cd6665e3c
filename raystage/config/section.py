"""The base of all sections of a file: typed, frozen, one laid over another; and its errors, in one line each."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from raystage.config import yaml_file
from raystage.config.synonyms import meant
from raystage.errors import InputError
from raystage.units import shown

S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A part of a file. What a section does not set, it does not change.

    null sets a key back to the value that follows from the rest, where there is such a value (heads, micro batch,
    cadences, options of DeepSpeed). Elsewhere null is an error.
    """

    # Whether its keys are looked for as if they stood at the top of a file, as those of a stage are.
    stands_alone: ClassVar[bool] = False

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, use_attribute_docstrings=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """pydantic's, without its detours: every trial of a sweep copies twenty sections."""
        if deep:
            return super().model_copy(update=update, deep=True)
        update, private = update or {}, self.__pydantic_private__
        copy = self.__class__.__new__(self.__class__)
        object.__setattr__(copy, "__dict__", {**self.__dict__, **update})
        object.__setattr__(copy, "__pydantic_fields_set__", self.__pydantic_fields_set__ | update.keys())
        object.__setattr__(copy, "__pydantic_extra__", None)  # extra="forbid"
        object.__setattr__(copy, "__pydantic_private__", None if private is None else dict(private))
        return copy

    def overlaid(self, other: Self) -> Self:
        """This section with everything that `other` sets, key by key."""
        changes = {name: _overlaid(getattr(self, name), getattr(other, name)) for name in other.model_fields_set}
        return self.model_copy(update=changes) if changes else self


def _overlaid(mine: object, theirs: object) -> object:
    """Sections and mappings are merged key by key; of any other value the second counts.

    None counts too: it sets a value back to what follows without it.
    """
    if isinstance(mine, Section) and isinstance(theirs, Section):
        return mine.overlaid(theirs)
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return mine | {key: _overlaid(mine.get(key), value) for key, value in theirs.items()}
    return theirs


def keys_of(section: type[Section]) -> dict[str, FieldInfo]:
    """The fields by their keys in a file: their names, or their aliases where the name is a Python keyword."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def field_of(section: type[Section], key: str) -> str | None:
    """The name of the field that has this key in a file."""
    return next((name for name, field in section.model_fields.items() if (field.alias or name) == key), None)


def explain(error: ValidationError, root: type[Section]) -> InputError:
    """The first error in a file of the section `root`. Unknown keys come first, because they may cause missing ones."""
    found = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")[0]
    location = found["loc"]
    if found["type"] == "extra_forbidden":
        problem = _unknown_key(location, root)
    elif found["type"] == "missing":
        problem = _missing_key(location, root)
    else:
        problem = _wrong_value(found) + _example(found, root)
    return InputError(problem, key=yaml_file.dotted(location))


def read_section(section: type[S], value: dict) -> S:
    """A section that is one of several forms of a key: pydantic would say of it that it is none of the others either.

    Raises ValueError, which names the key within it.
    """
    try:
        return section.model_validate(value)
    except ValidationError as error:
        found = explain(error, section)
        raise ValueError(f"{found.key}: {found.problem}" if found.key else found.problem) from None


def _wrong_value(found: dict) -> str:
    context, value = found.get("ctx", {}), shown(found["input"])
    match found["type"]:
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return f"found {value}; expected {context['expected']}{_suggest(found['input'], context['expected'])}"
        case "greater_than":
            return f"found {value}; expected more than {context['gt']:g}"
        case "greater_than_equal":
            return f"found {value}; expected at least {context['ge']:g}"
        case "less_than":
            return f"found {value}; expected less than {context['lt']:,.10g}"
        case "less_than_equal":
            return f"found {value}; expected at most {context['le']:,.10g}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"found {value}; expected a mapping of keys to values"
        case "tuple_type":
            return f"found {value}; expected a list"
        case "too_short":
            return f"found {_entries(found['input'])}; expected {_at_least(context)}"
        case "too_long":
            return f"found {_entries(found['input'])}; expected {_at_most(context)}"
        case "string_type":
            return f"found {value}; expected text"
        case "string_too_short":
            return f"found {value}; expected text that is not empty"
        case "string_too_long":
            return f"found {len(found['input']):,} characters; expected at most {context['max_length']:,}"
    return f"found {value}; {found['msg'][0].lower()}{found['msg'][1:]}"


def _example(found: dict, root: type[Section]) -> str:
    """An example of a mapping, for a message about a key that has a plain value in its place."""
    location = found["loc"]
    if found["type"] not in ("model_type", "model_attributes_type") or not location or isinstance(location[-1], int):
        return ""
    field = keys_of(_section_at(location[:-1], root)).get(location[-1])
    return f", for example {location[-1]}: {field.examples[0]}" if field and field.examples else ""


def _entries(value: typing.Sized) -> str:
    return "1 entry" if len(value) == 1 else f"{len(value)} entries"


def _at_least(context: dict) -> str:
    return "at least one" if context["min_length"] == 1 else str(context["min_length"])


def _at_most(context: dict) -> str:
    """For a pair the exact number, else a limit."""
    most = context["max_length"]
    return str(most) if most == 2 else f"at most {most}"


def _suggest(value: object, expected: str) -> str:
    close = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", expected), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _missing_key(location: tuple, root: type[Section]) -> str:
    field = keys_of(_section_at(location[:-1], root))[location[-1]]
    return f"missing; expected for example {location[-1]}: {field.examples[0]}"


def _unknown_key(location: tuple, root: type[Section]) -> str:
    name, known = str(location[-1]), sorted(keys_of(_section_at(location[:-1], root)))
    homes = {section for section, _, key in (path.rpartition(".") for path in _paths(root)) if key == name}
    homes -= {home for home in homes if home.startswith("baseline.") and home.removeprefix("baseline.") in homes}
    if len(homes) == 1:
        top = "the file itself" if name in root.model_fields else "a stage"
        return f"unknown key here; it belongs in {homes.pop() or top}"
    if said := meant(name, frozenset(_paths(root))):
        return f"unknown key; {said}"
    close = difflib.get_close_matches(name[:100], known, 1)
    if close:
        return f"unknown key; did you mean {close[0]!r}?"
    return f"unknown key; known here: {', '.join(known)}"


def _paths(section: type[Section], prefix: str = "", above: tuple[type[Section], ...] = ()) -> typing.Iterator[str]:
    """'training', 'training.optimizer', 'training.optimizer.lr' and so on; those of a stage without 'stages'.

    A section that contains itself is entered once.
    """
    for name, field in keys_of(section).items():
        yield prefix + name
        for inner in _sections_in(field.annotation):
            if inner not in (*above, section):
                yield from _paths(inner, "" if inner.stands_alone else f"{prefix}{name}.", (*above, section))


def check_path(location: tuple | list, root: type[Section]) -> None:
    """Raises InputError where a path such as ['stages', 1, 'until', 'tokens'] is not one that a file of `root` may set.

    Its key is the path up to the first unknown step. Indices are not checked, nor are names in their place.
    """
    section: type[Section] | None = root
    may_be_name = False
    for position, step in enumerate(location):
        if isinstance(step, int) or (may_be_name and step not in keys_of(section)):
            may_be_name = False
            continue
        here = tuple(location[: position + 1])
        if section is None:
            before = yaml_file.dotted(location[:position])
            raise InputError(f"{before} is a value; expected no key in it", key=yaml_file.dotted(here))
        if step not in keys_of(section):
            raise InputError(_unknown_key(here, root), key=yaml_file.dotted(here))
        annotation = keys_of(section)[step].annotation
        section = next(_sections_in(annotation), None)
        may_be_name = section is not None and "name" in section.model_fields
        if section is None and _is_mapping(annotation):
            return  # a mapping of any keys, such as DeepSpeed's


def _is_mapping(annotation: object) -> bool:
    return typing.get_origin(annotation) is dict or any(map(_is_mapping, typing.get_args(annotation)))


def _section_at(location: tuple, root: type[Section]) -> type[Section]:
    """The section class at the location of a pydantic error."""
    section, steps = root, iter(location)
    for step in steps:
        if isinstance(step, str):
            annotation = keys_of(section)[step].annotation
            section = next(_sections_in(annotation))
            if _is_mapping(annotation):
                next(steps, None)  # the key of the mapping
    return section


def _sections_in(annotation: object) -> typing.Iterator[type[Section]]:
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, Section)
    ):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _sections_in(inner)
