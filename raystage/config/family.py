"""A user's own model family, as a YAML file: typed and checked, then a `Family` like any other.

    name: starcoder2                       # the model_type in config.json
    norm: layer                            # rms or layer
    base: model.                           # what a model without a head leaves out of its names
    fields:                                # the key in config.json of each size, and what it is where left out
      hidden_size: hidden_size
      num_layers: {key: num_hidden_layers, default: 30}
    before:                                # parameters before the layers, of every layer, and after them
      - {name: model.embed_tokens.weight, axes: [out: vocab, out: hidden]}
    layer:
      - {name: "model.layers.{layer}.mlp.c_proj.weight", axes: [out: hidden, in: ffn], writes_residual: true}
    after:
      - {name: lm_head.weight, axes: [out: vocab, in: hidden]}
    embeddings: [model.embed_tokens.weight]
    head: lm_head.weight

docs/families.md says what each key means and has a whole table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from raystage.config import yaml_file
from raystage.errors import InputError
from raystage.models.table import TEXT_UNITS, Axis, Family, ParameterSpec
from raystage.units import parse_bool, parse_real, shown

_ROLES = ("out", "in", "gain", "shift", "each", "fixed")
# The sizes that every model needs, and those that follow from others where the table does not name them.
_NEEDED = ("num_layers", "hidden_size", "num_heads", "vocab_size", "context_length", "norm_eps")
_FOLLOWING = ("num_kv_heads", "head_size", "ffn_size", "tied_embeddings")


def _axis(value: object) -> Axis:
    """`{out: hidden}`, `{out: [query, key_value, key_value]}` or `{fixed: 2}`."""
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"found {shown(value)}; expected one role with its units, such as out: hidden")
    ((role, units),) = value.items()
    if role not in _ROLES:
        raise ValueError(f"found the role {shown(role)}; expected one of {', '.join(_ROLES)}")
    if role == "fixed":
        if type(units) is not int or units < 1:
            raise ValueError(f"found the size {shown(units)}; expected a whole number from 1 on")
        return Axis("fixed", fixed=units)
    units = units if isinstance(units, list) else [units]
    for unit in units:
        if unit not in TEXT_UNITS:
            raise ValueError(f"found the unit {shown(unit)}; expected one of {', '.join(TEXT_UNITS)}")
    return Axis(role, tuple(units))


def _key(value: object) -> object:
    return {"key": value} if isinstance(value, str) else value


Flag = Annotated[bool, BeforeValidator(parse_bool)]
Positive = Annotated[float, BeforeValidator(parse_real), Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class _Key(_Section):
    """The key in config.json that has a size, and the size where config.json lacks the key."""

    key: Text
    default: int | float | bool | None = None


class _Row(_Section):
    """One parameter; see `models.table.ParameterSpec`."""

    name: Text
    axes: Annotated[tuple[Annotated[Axis, BeforeValidator(_axis)], ...], Field(min_length=1)]
    init: Literal["normal", "ones", "zeros"] = "normal"
    writes_residual: Flag = False
    feeds_head: Flag = False

    def spec(self) -> ParameterSpec:
        return ParameterSpec(self.name, self.axes, self.init, self.writes_residual, feeds_head=self.feeds_head)


class _Table(_Section):
    """A whole file; `models.table.Family` says what the keys mean."""

    name: Text
    fields: dict[Literal[(*_NEEDED, *_FOLLOWING)], Annotated[_Key, BeforeValidator(_key)]]
    before: tuple[_Row, ...]
    layer: Annotated[tuple[_Row, ...], Field(min_length=1)]
    after: tuple[_Row, ...]
    optional: tuple[_Row, ...] = ()
    embeddings: tuple[Text, ...]
    head: Text
    untied: tuple[Text, ...] = ()
    base: str = ""
    norm: Literal["rms", "layer"] = "rms"
    post_norm: Flag = False
    heads_fill_hidden: Flag = False
    heads_divide_hidden: Flag = False
    rotary: Flag = True
    init_std: Positive = 0.02

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        missing = [field for field in _NEEDED if field not in self.fields]
        if missing:
            raise ValueError(f"fields: {missing[0]} is missing; expected its key in config.json")
        for place in ("before", "layer", "after", "optional"):
            for row in getattr(self, place):
                if ("{layer}" in row.name) != (place == "layer") and place != "optional":
                    expected = "'{layer}' in it" if place == "layer" else "a name without '{layer}'"
                    raise ValueError(f"{place}: found {row.name}; expected {expected}")
        names = [row.name for row in (*self.before, *self.layer, *self.after, *self.optional)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"found {twice} twice; expected every parameter once")
        _check_named("embeddings", self.embeddings, self.before)
        _check_named("head", (self.head,), self.after)
        _check_named("untied", self.untied, self.after)
        return self

    def family(self) -> Family:
        rows = {place: tuple(row.spec() for row in getattr(self, place))
                for place in ("before", "layer", "after", "optional")}  # fmt: skip
        plain = {name: getattr(self, name) for name in type(self).model_fields if name not in {*rows, "fields"}}
        fields = {field: (one.key, _default(field, one)) for field, one in self.fields.items()}
        return Family(**rows, **plain, fields=fields)


def _check_named(key: str, names: tuple[str, ...], rows: tuple[_Row, ...]) -> None:
    known = [row.name for row in rows]
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: found {shown(name)}; expected one of {', '.join(known) or 'no name'}")


def _default(field: str, one: _Key) -> Any:
    return bool(one.default) if field == "tied_embeddings" else one.default


def read_family(path: Path) -> Family:
    """The family that the YAML file at `path` describes. Raises InputError, naming file and key."""
    content = yaml_file.read_mapping(path)
    try:
        return _Table.model_validate(content).family()
    except ValidationError as error:
        first = error.errors()[0]
        key = yaml_file.dotted([step for step in first["loc"] if step != "[key]"])
        raise InputError(_problem(first), key=key or None, file=str(path)) from None


def _problem(error: Any) -> str:
    """A pydantic error as "found ...; expected ..."."""
    context = error.get("ctx", {})
    match error["type"]:
        case "value_error":
            return str(context["error"])
        case "missing":
            return "missing; see docs/families.md"
        case "extra_forbidden":
            return f"unknown key; known here: {', '.join(_known_keys(error['loc']))}"
        case "literal_error":
            return f"found {shown(error['input'])}; expected {context['expected']}"
    return f"found {shown(error['input'])}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _known_keys(location: tuple) -> list[str]:
    section = _Table if len(location) == 1 else _Key if location[0] == "fields" else _Row
    return list(section.model_fields)
