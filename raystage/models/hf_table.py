"""The table of one Hugging Face folder: the rows of its family that the folder has, and everything else in it.

A folder may omit the base's prefix or the head; it may have biases or a pooler; or it may contain a model without a
table, whose layers are then found by their names.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from raystage.errors import InputError
from raystage.models.families import FAMILIES, UNKNOWN
from raystage.models.shape import ModelShape, Parameter, stored, table_of
from raystage.models.table import Family, ParameterSpec, fixed
from raystage.models.tables.mixtures import UPCYCLED

Shapes = Mapping[str, tuple[int, ...]]

# Computed tensors that some versions stored: rotary angles, causal masks, position numbers.
_BUFFER = re.compile(r"(.*\.)?(inv_freq|attn\.bias|masked_bias|position_ids)")
_NUMBERED = re.compile(r"((?:[^.]+\.)*?)(\d+)\.(.+)")
# The former names of the parameters of BERT's norms.
_OLD_NAMES = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}


def folder_table(shape: ModelShape, tensors: Shapes, folder: str) -> Family:
    """The table of a folder with these tensors. Raises InputError, naming the folder, where they are not a complete
    model of `shape`."""
    if shape.family not in FAMILIES:
        return _table_by_name(shape, tensors, folder)
    known = table_of(shape)
    table = _as_stored(known.on_disk or known, tensors)
    found = {one.name: one.shape for one in stored(shape, table)}
    _check_whole(found, tensors, folder)
    left_out = {table.head, *table.untied} if shape.ties_head else set()
    others = [name for name in tensors if name not in {*found, *left_out} and not _BUFFER.fullmatch(name)]
    _check_no_others_in_layers(table, others, folder)
    return replace(table, after=(*table.after, *(_whole(name, tensors[name]) for name in others)))


def target_table(
    table: Family, source: ModelShape, target: ModelShape, layers: Sequence[int | None], folder: str
) -> Family:
    """The table of the folder that one with `table` grows into. layers: the source layer of each target layer.

    Raises InputError where the folder has tensors whose growth is unknown.
    """
    grown = {source.units(unit) for unit in ("hidden", "vocab") if source.units(unit) != target.units(unit)}
    for row in table.after:
        if all(axis.role == "fixed" for axis in row.axes) and grown & {axis.fixed for axis in row.axes}:
            found = f"found {row.name} {[axis.fixed for axis in row.axes]}, which no row of the family names"
            problem = f"{found} and which would have to grow; expected depth alone to grow, or a folder without it"
            raise InputError(problem, file=folder)
    if target.family != source.family:
        return _mixture_table(table, FAMILIES[target.family], folder)
    return replace(table, layer=tuple(_moved(row, layers) for row in table.layer))


def _moved(row: ParameterSpec, layers: Sequence[int | None]) -> ParameterSpec:
    """The row in the target layers whose source layers have it."""
    if row.layers is None:
        return row
    return replace(row, layers=frozenset(layer for layer, source in enumerate(layers) if source in row.layers))


def _mixture_table(dense: Family, mixture: Family, folder: str) -> Family:
    """The rows of the mixture, between those of the dense folder."""
    on_disk = mixture.on_disk or mixture
    if dense.base != on_disk.base:
        found = f"found tensors without the prefix {on_disk.base!r}"
        raise InputError(f"{found}; expected a model with its head, such as a LlamaForCausalLM", file=folder)
    taken = {row.name for row in on_disk.layer}.union(*(UPCYCLED.get(row.name, ()) for row in on_disk.layer))
    lost = [row.name.format(layer=0) for row in dense.layer if row.name not in taken]
    if lost:
        raise InputError(f"found {_some(lost)}; expected none, for a {mixture.name} has no such tensors", file=folder)
    return replace(on_disk, before=dense.before, after=dense.after)


def is_buffer(name: str) -> bool:
    """Whether a tensor of that name is computed and not learned."""
    return _BUFFER.fullmatch(name) is not None


@dataclass(frozen=True)
class StoredTensorPlace:
    """A tensor of a folder and its place in a model: in `parameter`, as the flat slice from `start` on."""

    name: str
    shape: tuple[int, ...]
    parameter: str
    start: int

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


def placed(shape: ModelShape) -> tuple[StoredTensorPlace, ...]:
    """Every tensor that transformers writes for a model of `shape`, in the order of the model's parameters; of a
    network of raystage's own its buffers, too."""
    family = table_of(shape)
    sizes = {one.name: one.shape for one in stored(shape, family.on_disk or family)}
    found: list[StoredTensorPlace] = []
    for parameter in stored(shape):
        start = 0
        for name in _stored_names(family, parameter, shape):
            found.append(StoredTensorPlace(name, sizes[name], parameter.name, start))
            start = found[-1].stop
    return tuple(found)


def _stored_names(family: Family, parameter: Parameter, shape: ModelShape) -> list[str]:
    """The tensors that lie end to end in a parameter: usually the parameter itself, else its parts, expert by
    expert."""
    rows = family.stored_as.get(parameter.spec.name, (parameter.spec.name,))
    experts = range(shape.num_experts) if any("{expert}" in row for row in rows) else (None,)
    return [row.format(layer=parameter.layer, expert=expert) for expert in experts for row in rows]


# --- a family's own rows ------------------------------------------------------------------------


def _as_stored(table: Family, tensors: Shapes) -> Family:
    """The rows that the folder has, under their names in the folder."""
    is_bare = _is_bare(table, tensors)
    name = _naming(table, is_bare, tensors)
    optional = [row for row in table.optional if name(row.name).format(layer=0) in tensors]
    after = table.after if _has_head(table, is_bare, tensors) else _of_base(table)

    def named(*rows: ParameterSpec) -> tuple[ParameterSpec, ...]:
        return tuple(_with_fixed_sizes(replace(row, name=name(row.name)), tensors) for row in rows)

    return replace(
        table,
        before=named(*table.before),
        layer=named(*table.layer, *(row for row in optional if "{layer}" in row.name)),
        after=named(*after, *(row for row in optional if "{layer}" not in row.name)),
        embeddings=tuple(map(name, table.embeddings)),
        stand_ins={name(row): name(other) for row, other in table.stand_ins.items()},
        optional=(),
        base="" if is_bare else table.base,
    )


def _is_bare(table: Family, tensors: Shapes) -> bool:
    """Whether the folder omits the base's prefix."""
    first = table.before[0].name
    return bool(table.base) and first not in tensors and first.removeprefix(table.base) in tensors


def _naming(table: Family, is_bare: bool, tensors: Shapes) -> Callable[[str], str]:
    """From a row's name in the table to its name in the folder."""
    old = any(name.endswith(tuple(_OLD_NAMES.values())) for name in tensors)

    def name(row: str) -> str:
        row = old_name(row) if old else row
        return row.removeprefix(table.base) if is_bare else row

    return name


def old_name(name: str) -> str:
    """The former name of a parameter of BERT's norms; other names as they are."""
    for new_end, old_end in _OLD_NAMES.items():
        if name.endswith(new_end):
            return name.removesuffix(new_end) + old_end
    return name


def _has_head(table: Family, is_bare: bool, tensors: Shapes) -> bool:
    """Whether the folder's model has the head of the table: it has a part of it, or nothing else in its place."""
    head = {row.name for row in table.after} - {row.name for row in _of_base(table)}
    others = [name for name in tensors if not name.startswith(table.base) and not _BUFFER.fullmatch(name)]
    return any(name in tensors for name in head) or not (is_bare or others)


def _of_base(table: Family) -> tuple[ParameterSpec, ...]:
    return tuple(row for row in table.after if row.name.startswith(table.base))


def _with_fixed_sizes(row: ParameterSpec, tensors: Shapes) -> ParameterSpec:
    """The row with the folder's sizes of axes that never grow, such as the number of token types."""
    found = tensors.get(row.name, ())
    if len(found) != len(row.axes):
        return row
    axes = zip(row.axes, found, strict=True)
    return replace(row, axes=tuple(fixed(size) if axis.role == "fixed" else axis for axis, size in axes))


def _check_whole(expected: Shapes, tensors: Shapes, folder: str) -> None:
    """Raises InputError where a parameter is missing or has another shape."""
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise InputError(f"found no tensor for {_some(missing)}; expected a whole model", file=folder)
    for name, shape in expected.items():
        if tensors[name] != shape:
            problem = f"found the shape {list(tensors[name])}; expected {list(shape)}"
            raise InputError(problem, key=name, file=folder)


def _check_no_others_in_layers(table: Family, others: Collection[str], folder: str) -> None:
    """Raises InputError for further tensors inside of layers; tensors beside the layers can stay as they are."""
    prefixes = tuple({row.name.partition("{layer}")[0] for row in table.layer})
    unknown = [name for name in others if name.startswith(prefixes)]
    if unknown:
        problem = f"found {_some(unknown)}; expected a {table.name} without adapters or quantization"
        raise InputError(problem, file=folder)


# --- models without a table ---------------------------------------------------------------------


def _table_by_name(shape: ModelShape, tensors: Shapes, folder: str) -> Family:
    """A table of whole tensors: those of layers, found by their numbers, and the others."""
    prefix = _layer_prefix(shape, tensors, folder)
    rows: dict[tuple[str, tuple[int, ...]], set[int]] = defaultdict(set)
    for number in range(shape.num_layers):
        for rest, size in _of_layer(f"{prefix}{number}.", tensors).items():
            rows[rest, size].add(number)
    others = (_whole(name, size) for name, size in tensors.items() if not re.match(re.escape(prefix) + r"\d+\.", name))
    layer = tuple(
        replace(
            _whole(rest, size),
            name=f"{prefix}{{layer}}.{_literal(rest)}",
            layers=None if len(layers) == shape.num_layers else frozenset(layers),
        )
        for (rest, size), layers in rows.items()
    )
    return replace(UNKNOWN, name=shape.family, layer=layer, after=tuple(others))


def rows_in(table: Family, layer: int) -> frozenset[ParameterSpec]:
    """The rows that a layer has."""
    return frozenset(row for row in table.layer if row.is_in(layer))


def check_alike(table: Family, layers: int, folder: str) -> None:
    """Raises InputError where layers of a folder do not all have the same tensors in the same shapes."""
    for layer in range(1, layers):
        unlike = rows_in(table, layer) ^ rows_in(table, 0)
        if unlike:
            prefix = table.layer[0].name.partition("{layer}")[0]
            names = sorted({row.name.partition("{layer}.")[2] for row in unlike})
            found = f"found {prefix}{layer} unlike {prefix}0 in {_some(names)}"
            raise InputError(f"{found}; expected layers that are all alike", file=folder)


def _layer_prefix(shape: ModelShape, tensors: Shapes, folder: str) -> str:
    """The text before the layers' numbers: the one list of names with as many entries as there are layers."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in tensors:
        match = _NUMBERED.fullmatch(name)
        if match:
            numbers[match[1]].add(int(match[2]))
    fitting = [prefix for prefix, found in numbers.items() if found == set(range(shape.num_layers))]
    if len(fitting) != 1:
        found = f"found {len(fitting)} lists of {shape.num_layers} layers among the tensors of a {shape.family}"
        expected = "expected just one, such as model.layers.0 and so on, for a model_type without a table"
        raise InputError(f"{found}{''.join(f' ({prefix}0)' for prefix in fitting)}; {expected}", file=folder)
    return fitting[0]


def _of_layer(prefix: str, tensors: Shapes) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): size for name, size in tensors.items() if name.startswith(prefix)}


def _whole(name: str, size: tuple[int, ...]) -> ParameterSpec:
    """A tensor of which nothing is known, so that it stays as it is."""
    return ParameterSpec(_literal(name), tuple(map(fixed, size)))


def _literal(name: str) -> str:
    """The name as a row has it, where braces have a meaning."""
    return name.replace("{", "{{").replace("}", "}}")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
