"""What `raystage grow` is asked for, and the growth that follows: plain data, without folders or tensors."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from raystage.errors import InputError
from raystage.growth.axis_maps import AxisMap
from raystage.growth.checks import (
    UNCHANGEABLE,
    changed_positions,
    is_exact,
    refusal,
    with_layer_kinds,
    with_norm_eps,
)
from raystage.growth.depth import NO_OPTIONS, GrowthOptions, LayerOrigin
from raystage.growth.operators import complete_options, is_trained, layer_origins, operators_of
from raystage.growth.rules import GrowthMap, Rule, exact_in, growth_map
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape, Parameter, stored
from raystage.models.table import Family
from raystage.models.tables.mixtures import MIXTURE_OF
from raystage.units import parse_bool, parse_count, parse_real, shown

MOST_LAYERS = 10_000

# From a target's shape, and the source layer of each of its layers, to the tables of source and target.
Tables = Callable[[ModelShape, Sequence[int | None]], tuple[Family, Family]]


@dataclass(frozen=True)
class GrowthRequest:
    """KEY=VALUE settings of the target's shape, and how to grow to it."""

    overrides: tuple[str, ...]
    operator: str
    optimizer_state: str = "grow"
    options: GrowthOptions = NO_OPTIONS


@dataclass(frozen=True)
class PlannedGrowth:
    """A growth that can be carried out; `request` has its options complete.

    families: the tables of source and target, where they are not the registered ones.
    """

    source: ModelShape
    target: ModelShape
    request: GrowthRequest
    rules: GrowthMap
    families: tuple[Family | None, Family | None] = (None, None)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The target's parameters and buffers, one for each rule."""
        return stored(self.target, self.families[1])

    @property
    def num_params(self) -> int:
        return sum(rule.numel for rule in self.rules)

    def to_json(self) -> dict[str, Any]:
        """The map as `raystage grow --explain --json` prints it."""
        return {
            "source": self.source.to_json(),
            "target": self.target.to_json(),
            **self.how(),
            **rules_json(self.rules),
        }

    def how(self) -> dict[str, Any]:
        """The operator, its options and the policy. exact: whether the grown model computes the same function, in the
        precision `exact_in`."""
        request = self.request
        exact = is_exact(self.source, self.target, request.operator, request.options)
        return {
            "operator": request.operator,
            **request.options.given(),
            "optimizer_state": request.optimizer_state,
            "exact": exact,
            "exact_in": exact_in(self.rules) if exact else None,
        }


def rules_json(rules: GrowthMap) -> dict[str, Any]:
    """The rules, and the axis maps that they share, by number."""
    numbers: dict[AxisMap, int] = {}
    by_id = {id(axis): axis for rule in rules for axis in rule.axes}  # equal maps are usually one object
    number_of = {key: numbers.setdefault(axis, len(numbers)) for key, axis in by_id.items()}
    return {
        "axis_maps": [{**asdict(axis), "index": list(axis.index)} for axis in numbers],
        "rules": [{**_as_dict(rule), "axes": [number_of[id(axis)] for axis in rule.axes]} for rule in rules],
    }


def _as_dict(rule: Rule) -> dict[str, Any]:
    """Its fields; the offset where it has one."""
    found = asdict(replace(rule, axes=()))
    return {name: value for name, value in found.items() if name != "offset" or value}


def plan_growth(source: ModelShape, request: GrowthRequest, families: Tables | None = None) -> PlannedGrowth:
    """The growth map of a request. Raises InputError, naming the option that is wrong.

    families: the tables of source and target, where they are not the registered ones.
    """
    target = _target_shape(source, request)
    if is_trained(request.operator):
        found = f"found {request.operator}, which needs training; expected it in a schedule"
        raise InputError(f"{found}, or another operator", key="--operator")
    _check_has_table(source, target)
    _check_same_positions(source, target)
    found = refusal(source, target, request.operator, request.options)
    if found:
        field, problem = found
        raise InputError(problem, key=f"--set {field}" if hasattr(target, field) else f"--{field}")
    options = complete_options(source, target, request.operator, request.options)
    origins = layer_origins(source, target, request.operator, options)
    _check_are_copies(source, origins, request.operator)
    tables = families(target, [origin.source for origin in origins]) if families else None
    rules = growth_map(source, target, request.operator, request.optimizer_state, request.options, tables)
    return PlannedGrowth(source, target, replace(request, options=options), rules, tables or (None, None))


_NEEDS_TABLE = "--family FILE with a table of it (see docs/families.md)"


def _check_has_table(source: ModelShape, target: ModelShape) -> None:
    """Refuse a growth in width of a model without a table."""
    if source.family in FAMILIES:
        return
    for field in (one.name for one in fields(ModelShape)):
        if field != "num_layers" and getattr(source, field) != getattr(target, field):
            found = f"found no table for the model_type {shown(source.family)}, whose depth alone can grow"
            raise InputError(f"{found}; expected num_layers, or {_NEEDS_TABLE}", key=f"--set {field}")


def _check_same_positions(source: ModelShape, target: ModelShape) -> None:
    """Refuse other rotary positions: no operator makes up for them, only training does."""
    for field in changed_positions(source, target):
        found = f"found {shown(getattr(target, field))} after {shown(getattr(source, field))}, which takes training"
        raise InputError(f"{found}; expected model.{field} in a stage of a schedule", key=f"--set {field}")


def _check_are_copies(source: ModelShape, origins: tuple[LayerOrigin, ...], operator: str) -> None:
    """Refuse new layers for a model without a table: nothing says what to silence, or how to draw new weights."""
    if source.family not in FAMILIES and any(one.new for one in origins):
        found = f"found {operator}, but nothing says which tensors of the model_type {shown(source.family)} write"
        problem = f"{found} to the residual stream, or how new ones begin; expected copies, as of stack"
        raise InputError(f"{problem}, or {_NEEDS_TABLE}", key="--operator")


def _target_shape(source: ModelShape, request: GrowthRequest) -> ModelShape:
    """The source's shape with KEY=VALUE applied, and what follows from that."""
    known = [field.name for field in fields(ModelShape) if field.name not in UNCHANGEABLE]
    changes: dict[str, Any] = {}
    for override in request.overrides:
        name, equals, value = (part.strip() for part in override.partition("="))
        if not equals:
            raise InputError("expected KEY=VALUE, for example num_layers=12", key=f"--set {override}")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
            raise InputError(f"unknown key; {hint}", key=f"--set {name}")
        changes[name] = _value(name, value)
    target = replace(source, **(_following(source, request, changes) | changes))
    if "norm_eps" not in changes and target.hidden_size != source.hidden_size and source.family in FAMILIES:
        target = with_norm_eps(source, target, request.operator)
    if target.num_layers > MOST_LAYERS:
        raise InputError(f"found {target.num_layers}; expected at most {MOST_LAYERS}", key="--set num_layers")
    return with_layer_kinds(source, target, request.operator, request.options)


def _following(source: ModelShape, request: GrowthRequest, changes: dict[str, Any]) -> dict[str, Any]:
    """Fields that follow from the changes: heads where they fill the hidden size, the family of a mixture."""
    following: dict[str, Any] = {}
    family = FAMILIES.get(source.family)
    if family and family.heads_fill_hidden and "hidden_size" in changes and "num_heads" not in changes:
        if changes["hidden_size"] % source.head_size:
            expected = f"a multiple of {source.head_size}, the size of a head, since heads fill it"
            raise InputError(f"found {changes['hidden_size']}; expected {expected}", key="--set hidden_size")
        following["num_heads"] = changes["hidden_size"] // source.head_size
    if family and family.heads_fill_hidden and ("num_heads" in changes or following):
        following["num_kv_heads"] = changes.get("num_heads", following.get("num_heads"))
    if "num_experts" in operators_of(request.operator) and "num_experts" in changes:
        following["family"] = MIXTURE_OF.get(source.family, "mixtral")
        following["experts_per_token"] = source.experts_per_token or min(2, changes["num_experts"])
    return following


def _value(name: str, text: str) -> Any:
    """A field's value from the command line: a name, true or false, a number or a count such as 12 or 4K."""
    if name == "family":
        if text not in FAMILIES:
            raise InputError(f"found {shown(text)}; expected one of {', '.join(FAMILIES)}", key="--set family")
        return text
    try:
        if name == "norm_eps":
            return parse_real(text)
        value = parse_bool(text) if name == "tied_embeddings" else parse_count(text)
    except ValueError as error:
        raise InputError(str(error), key=f"--set {name}") from None
    if value < 1 and name not in ("tied_embeddings", "num_layers"):
        raise InputError(f"found {shown(value)}; expected a whole number from 1 on", key=f"--set {name}")
    return value
