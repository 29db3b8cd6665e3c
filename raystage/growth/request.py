"""What `raystage grow` is asked for, and the growth that follows: pure data, no folder and no tensor."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from raystage.errors import InputError
from raystage.growth.explain import layer_sources
from raystage.growth.operator import (
    NO_OPTIONS,
    OPERATORS,
    GrowthMap,
    GrowthOptions,
    complete_options,
    growth_map,
    refusal,
)
from raystage.shape import ModelShape
from raystage.units import parse_bool, parse_count, shown

MOST_LAYERS = 10_000


@dataclass(frozen=True)
class GrowthRequest:
    """What is asked for: KEY=VALUE settings of the target's shape, and how to get there."""

    overrides: tuple[str, ...]
    operator: str
    optimizer_state: str = "grow"
    options: GrowthOptions = NO_OPTIONS


@dataclass(frozen=True)
class Growth:
    """A growth that can be carried out; `request` with its options complete."""

    source: ModelShape
    target: ModelShape
    request: GrowthRequest
    rules: GrowthMap

    def to_json(self) -> dict[str, Any]:
        """The map as `raystage grow --explain --json` prints it."""
        return {
            "source": asdict(self.source),
            "target": asdict(self.target),
            **self.how(),
            "rules": [asdict(rule) for rule in self.rules],
        }

    def how(self) -> dict[str, Any]:
        """The operator, its options and the policy; exact: the grown model computes the same function."""
        unchanged = layer_sources(self.source, self.target, self.rules) == tuple(range(self.source.num_layers))
        return {
            "operator": self.request.operator,
            **self.request.options.given(),
            "optimizer_state": self.request.optimizer_state,
            "exact": OPERATORS[self.request.operator].exact or unchanged,
        }


def plan_growth(source: ModelShape, request: GrowthRequest) -> Growth:
    """The growth map for what is asked. Raises InputError, naming the option that is wrong."""
    target = _target_shape(source, request.overrides)
    found = refusal(source, target, request.operator, request.options)
    if found:
        field, problem = found
        raise InputError(problem, key=f"--set {field}" if hasattr(target, field) else f"--{field}")
    options = complete_options(source, target, request.operator, request.options)
    rules = growth_map(source, target, request.operator, request.optimizer_state, request.options)
    return Growth(source, target, replace(request, options=options), rules)


def _target_shape(source: ModelShape, overrides: Sequence[str]) -> ModelShape:
    """The source's shape with KEY=VALUE set in it."""
    known = [field.name for field in fields(ModelShape)]
    changes: dict[str, Any] = {}
    for override in overrides:
        name, equals, value = (part.strip() for part in override.partition("="))
        if not equals:
            raise InputError("expected KEY=VALUE, for example num_layers=12", key=f"--set {override}")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
            raise InputError(f"unknown key; {hint}", key=f"--set {name}")
        changes[name] = _value(name, value)
    target = replace(source, **changes)
    if target.num_layers > MOST_LAYERS:
        raise InputError(f"found {target.num_layers}; expected at most {MOST_LAYERS}", key="--set num_layers")
    return target


def _value(name: str, text: str) -> Any:
    """A field's value from the command line: a name, true or false, or a count such as 12 or 4K."""
    if name == "family":
        return text
    try:
        value = parse_bool(text) if name == "tied_embeddings" else parse_count(text)
    except ValueError as error:
        raise InputError(str(error), key=f"--set {name}") from None
    if value < 1 and name not in ("tied_embeddings", "num_layers"):
        raise InputError(f"found {shown(value)}; expected a whole number from 1 on", key=f"--set {name}")
    return value
