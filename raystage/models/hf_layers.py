"""Layers as transformers builds them: whether the layers of a grown configuration are what their origins are.

Layers of a model may differ: by lists in the configuration, or by rules on the number of a layer (a window in every
sixth layer, no positions in every fourth, a dense first layer). A copy has to be what its origin is. So both
configurations are built as models without weights (torch's meta device), and their layers are compared: modules,
shapes, and all plain attributes except the layer's number. A list is written out where the rule alone would give
something else.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from raystage.errors import InputError
from raystage.models.hf_config import (
    Config,
    architecture_of,
    in_order,
    is_per_layer,
    layers_key,
    layers_part,
    readings,
    with_part,
)
from raystage.models.hf_table import check_alike, rows_in
from raystage.models.table import Family
from raystage.units import shown

# Attributes that say how a model is run, not what it is.
_ASIDE = ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation")
# The most combinations that are tried, where lists can be read in several ways.
_MOST_READINGS = 64
_LEFT_OUT = object()

Facts = dict[str, object]


@dataclass(frozen=True)
class _Model:
    """A configuration built as a model. lists: the configuration's lists, with default ones where none is given.

    layers: by the name of each list of modules the facts of each of them. others: the shapes of all other parameters.
    """

    lists: Mapping[str, list]
    layers: Mapping[str, list[Facts]]
    others: Mapping[str, tuple[int, ...]]


class _NoModel(Exception):
    """transformers cannot build a model from a configuration; it says why."""


def is_known(config: Config) -> bool:
    """Whether the installed transformers has this model type."""
    return config.get("model_type") in transformers.CONFIG_MAPPING


def deepened(config: Config, layers: Sequence[int], file: str, table: Family, count: int) -> Config:
    """The configuration of a model whose layers are the `layers` of this one, in that order.

    table, count: of the folder, and its number of layers. Raises InputError where there is no such configuration, or
    where this one is no model.
    """
    try:
        source = _model(config)
    except _NoModel as error:
        raise InputError(f"found a model that transformers cannot make ({error})", file=file) from None
    _check_folder(source, table, count, file)
    found, problem = _found(config, source, count, layers)
    if found is not None:
        return found
    way = _way_out(config, source, count, len(layers))
    expected = f"expected layers that can be copied there, such as --layers {','.join(map(str, way))}" if way else (
        "expected another operator or number of layers"
    )  # fmt: skip
    raise InputError(f"{problem}; {expected}", key="num_layers", file=file)


def _found(config: Config, source: _Model, count: int, layers: Sequence[int]) -> tuple[Config | None, str]:
    """The configuration; or None, and what is wrong with the best one that can be written."""
    problem = ""
    choices = list(_choices(config, source, count, layers))
    for values in itertools.islice(itertools.product(*(options for _, options in choices)), _MOST_READINGS):
        chosen = dict(zip((key for key, _ in choices), values, strict=True))
        written = _written(config, chosen, len(layers))
        wrong = _wrong(source, written, chosen, count, layers)
        if wrong is None:
            return _without_needless(config, written, chosen), ""
        problem = problem or wrong
    return None, problem


def _choices(config: Config, source: _Model, count: int, layers: Sequence[int]) -> Iterator[tuple[str, list[Any]]]:
    """For every list that may be about layers the values that it may have in the grown configuration, the likely one
    first. For a list that the configuration does not have, the last choice is to leave it out."""
    part = layers_part(config)[1]
    for key, value in part.items():
        if isinstance(value, list):
            options = readings(key, value, count, layers, source.lists)
            yield key, options if is_per_layer(key) else [value, *(one for one in options if one != value)]
    for key, value in source.lists.items():
        if part.get(key) is None and is_per_layer(key):
            yield key, [*readings(key, value, count, layers, source.lists), _LEFT_OUT]


def _written(config: Config, chosen: Mapping[str, Any], count: int) -> Config:
    part = dict(layers_part(config)[1])
    part[layers_key(part)] = count
    return with_part(config, part | {key: value for key, value in chosen.items() if value is not _LEFT_OUT})


def _without_needless(config: Config, written: Config, chosen: Mapping[str, Any]) -> Config:
    """Without lists that the configuration did not have and that are the defaults in the grown model, too."""
    given, part = layers_part(config)[1], dict(layers_part(written)[1])
    for key, value in chosen.items():
        if given.get(key) is None and value is not _LEFT_OUT:
            shorter = {name: one for name, one in part.items() if name != key}
            with contextlib.suppress(_NoModel):
                if _lists(_configured(with_part(written, shorter))).get(key) == value:
                    part = shorter
    return with_part(written, part)


def _way_out(config: Config, source: _Model, count: int, deeper: int) -> tuple[int, ...] | None:
    """A list of layers that works: all of the source's, and then those from one of them on again."""
    if deeper <= count:
        return None
    for first in sorted(range(count), key=lambda one: (one != 2 * count - deeper, one))[:8]:
        way = in_order(first, count, deeper)
        if _found(config, source, count, way)[0] is not None:
            return way
    return None


# --- what is the same ---------------------------------------------------------------------------


def _wrong(source: _Model, written: Config, chosen: Mapping[str, Any], count: int, layers: Sequence[int]) -> str | None:
    """How a copy differs from its origin; None where all are equal."""
    try:
        target = _model(written)
    except _NoModel as error:
        return f"found a model that transformers cannot make with {len(layers)} layers ({error})"
    for key, value in chosen.items():
        before, after = source.lists.get(key, []), target.lists.get(key)
        expected = readings(key, before, count, layers, source.lists) if value is _LEFT_OUT else [value]
        if is_per_layer(key) and key in source.lists and after not in expected:
            found = f"found {key}, of which transformers makes {shown(after)} for {len(layers)} layers"
            return f"{found} where their origins have {shown(expected[0])}"
    deeper = [name for name, them in target.layers.items()
              if len(them) == len(layers) and len(source.layers.get(name, ())) == count]  # fmt: skip
    if not deeper:
        return f"found no list of {count} layers that become {len(layers)} in transformers' model"
    inside = tuple(f"{name}." for name in deeper)
    others = _outside(source, inside) ^ _outside(target, inside)
    if others:
        return f"found {min(others)[0]}, which is another tensor in a model of {len(layers)} layers"
    return next(filter(None, (_difference(name, source, target, layers) for name in deeper)), None)


def _outside(model: _Model, inside: tuple[str, ...]) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, shape) for name, shape in model.others.items() if not name.startswith(inside)}


def _difference(name: str, source: _Model, target: _Model, layers: Sequence[int]) -> str | None:
    before, after = source.layers[name], target.layers[name]
    numbers = {fact for fact, _ in _numbers(before) & _numbers(after)}
    # Some layers hold the lists of all layers; these were compared before.
    lists = [
        (_plain(kind(mine)), _plain(kind(target.lists.get(key, []))))
        for key, mine in source.lists.items() if is_per_layer(key) for kind in (list, tuple)
    ]  # fmt: skip
    for place, origin in enumerate(layers):
        for fact in sorted({*before[origin], *after[place]} - numbers):
            one, other = before[origin].get(fact), after[place].get(fact)
            if one != other and (one, other) not in lists:
                found = f"found {name}.{place} as a copy of {name}.{origin}, whose {fact} is {shown(one)}"
                return f"{found}; in its place transformers makes it {shown(other)}"
    return None


def _numbers(layers: Sequence[Facts]) -> set[tuple[str, int]]:
    """The facts that are only a layer's number, in all layers that have them, with the number they start from."""
    starts: dict[str, set[int | None]] = defaultdict(set)
    for number, facts in enumerate(layers):
        for fact, value in facts.items():
            starts[fact].add(value - number if type(value) is int else None)
    return {(fact, *start) for fact, start in starts.items() if len(start) == 1 and None not in start}


def _check_folder(source: _Model, table: Family, count: int, file: str) -> None:
    """Layers with different tensors in the folder must be different in transformers' model, too."""
    parted = [rows_in(table, layer) == rows_in(table, 0) for layer in range(count)]
    if parted not in ([_shapes(one) == _shapes(facts[0]) for one in facts] for facts in source.layers.values()):
        check_alike(table, count, file.rpartition("/")[0])
        found = f"found no list of {count} layers in transformers' model that differ as the folder's tensors do"
        raise InputError(f"{found}; expected the model that its config.json describes", file=file)


def _shapes(facts: Facts) -> set[tuple[str, object]]:
    return {(name, value) for name, value in facts.items() if name.endswith(" (shape)")}


# --- what transformers makes --------------------------------------------------------------------


def _configured(config: Config) -> transformers.PreTrainedConfig:
    plain = {key: _decoded(value) for key, value in config.items() if key not in _ASIDE}
    with _quiet():
        return transformers.CONFIG_MAPPING[config["model_type"]].from_dict(plain)


def _decoded(value: Any) -> Any:
    """A value as transformers reads it from a file: `{"__float__": "Infinity"}` is a number."""
    if isinstance(value, dict):
        is_number = set(value) == {"__float__"}
        return float(value["__float__"]) if is_number else {key: _decoded(one) for key, one in value.items()}
    return [_decoded(one) for one in value] if isinstance(value, list) else value


def _model(config: Config) -> _Model:
    with _quiet():
        made = _configured(config)
        made._attn_implementation = "eager"
        with torch.device("meta"):
            network = _class_of(config)(made)
    lists = {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.ModuleList)}
    outermost = {
        name: module for name, module in lists.items()
        if len(module) and not any(name.startswith(f"{other}.") for other in lists)
    }  # fmt: skip
    return _Model(
        lists=_lists(made),
        layers={name: [_facts(layer) for layer in module] for name, module in outermost.items()},
        others={name: tuple(one.shape) for name, one in network.named_parameters()},
    )


def _class_of(config: Config) -> Callable[[transformers.PreTrainedConfig], torch.nn.Module]:
    found = getattr(transformers, architecture_of(config), None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    return transformers.AutoModel.from_config


def _lists(made: transformers.PreTrainedConfig) -> dict[str, list]:
    text = made.get_text_config()
    found = text.to_dict() | {key: value for key, value in vars(text).items() if not key.startswith("_")}
    return {key: list(value) for key, value in found.items() if isinstance(value, list | tuple)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The warnings of transformers are for training, so they are suppressed. Raises _NoModel."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    except _NoModel:
        raise
    except Exception as error:  # whatever a model's own code raises
        reason = str(error).strip() or type(error).__name__
        raise _NoModel(" ".join(reason.split())[:200]) from None
    finally:
        transformers.logging.set_verbosity(verbosity)


def _facts(layer: torch.nn.Module) -> Facts:
    """What identifies a layer: classes and plain attributes of its modules, and the shapes of its tensors."""
    facts: Facts = {}
    for name, module in layer.named_modules():
        facts[name or "class"] = type(module).__name__
        for key, value in vars(module).items():
            if not key.startswith("_") and key != "training" and (plain := _plain(value)) is not _LEFT_OUT:
                facts[f"{name}.{key}".lstrip(".")] = plain
    for name, tensor in itertools.chain(layer.named_parameters(), layer.named_buffers()):
        facts[f"{name} (shape)"] = tuple(tensor.shape)
    return facts


def _plain(value: object) -> object:
    """A value that can be compared; _LEFT_OUT for one that cannot."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    if isinstance(value, list | tuple | set):
        return _together(type(value).__name__, value)
    if isinstance(value, dict):
        return _together("dict", itertools.chain(value.keys(), value.values()))
    if isinstance(value, functools.partial):
        return _together("partial", (value.func, *value.args, *value.keywords.values()))
    return value.__qualname__ if callable(value) and hasattr(value, "__qualname__") else _LEFT_OUT


def _together(kind: str, values: Iterable[object]) -> object:
    found = [_plain(one) for one in values]
    return _LEFT_OUT if any(one is _LEFT_OUT for one in found) else (kind, *found)
