"""What growth asks of models without a table (`models.own`): their parts are known by name and shape alone."""

from __future__ import annotations

from raystage.growth.depth import GrowthOptions, LayerOrigin, Refusal
from raystage.growth.operators import layer_origins
from raystage.models.own import own_model
from raystage.models.shape import ModelShape, Parameter, stored, table_of


def has_other_parts(source: ModelShape, target: ModelShape) -> bool:
    """Whether two such models differ in more than depth and the sizes that grow."""
    return bool(source.module and target.module) and not own_model(source.module).same_rows(own_model(target.module))


def own_refusal(source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions) -> Refusal | None:
    """Why layers cannot be the copies that an operator makes of them, or cannot be silenced; None where they can. The
    body is meant: with another head, what stands after the layers may differ."""
    if not target.module:
        return None
    origins = layer_origins(source, target, operator, options)
    if any(one.silenced for one in origins) and not any(row.writes_residual for row in table_of(target).layer):
        found = f"found {operator}, but nothing says which parameters write to the residual stream"
        return "operator", f"{found}; expected patterns of them in model.writes_residual, or another operator"
    found = {(one.spec.name, one.layer): one for one in stored(source)}
    unlike = (_unlike(one, origins[one.layer], found) for one in stored(target) if one.layer is not None)
    problem = next(filter(None, unlike), None)
    if problem is None:
        return None
    return "operator", f"{problem}, as {operator} has it; expected layers that are alike, or another operator"


def _unlike(one: Parameter, origin: LayerOrigin, found: dict[tuple[str, int | None], Parameter]) -> str | None:
    if origin.source is None:
        return None
    source = found.get((one.spec.name, origin.source))
    if source is not None and source.spec.axes == one.spec.axes:
        return None
    what = f"layer {origin.source}, which has none" if source is None else f"{source.name} {list(source.shape)}"
    return f"found {one.name} {list(one.shape)} made of {what}"
