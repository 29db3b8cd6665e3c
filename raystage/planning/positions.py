"""The rotary positions of a stage's model: what the stage asks for, else those of the model before."""

from __future__ import annotations

from raystage.config.positions import RopeScaling
from raystage.config.schedule import Schedule
from raystage.config.stage import Model
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.growth.checks import POSITIONS
from raystage.models import rope
from raystage.models.families import FAMILIES, TRAINED
from raystage.models.shape import ModelShape


def asked_positions(schedule: Schedule, index: int) -> Model:
    """What a stage asks of its rotary positions. The file's values are for the first stage: a later stage continues
    with those of the stage before."""
    written = schedule.stages[index].model
    if index:
        return written
    given = {name: getattr(written, name) for name in POSITIONS if name in written.model_fields_set}
    return schedule.model.model_copy(update=given)


def with_positions(before: ModelShape | None, shape: ModelShape, asked: Model) -> ModelShape:
    """With the rotary positions that are asked for, else those of the model before."""
    if not FAMILIES[shape.family].rotary:
        for name in POSITIONS:
            if getattr(asked, name) is not None:
                able = ", ".join(name for name in TRAINED if FAMILIES[name].rotary)
                problem = f"found in a {shape.family}, which has no rotary positions; expected family: {able}"
                raise InputError(problem, key=f"model.{name}")
        return shape
    if before is not None and any(getattr(shape, name) != getattr(before, name) for name in POSITIONS):
        shape = replaced(shape, **{name: getattr(before, name) for name in POSITIONS})
    if asked.rope_theta is not None:
        shape = replaced(shape, rope_theta=asked.rope_theta)
    if asked.local_rope_theta is not None:
        if not FAMILIES[shape.family].local_rope_theta:
            able = ", ".join(name for name in TRAINED if FAMILIES[name].local_rope_theta)
            problem = f"found in a {shape.family}, whose layers all have the same positions; expected family: {able}"
            raise InputError(problem, key="model.local_rope_theta")
        shape = replaced(shape, local_rope_theta=asked.local_rope_theta)
    if asked.rope_scaling is not None:
        _check_scales(shape.family)
        shape = replaced(shape, rope_scaling=_scaling(before, asked.rope_scaling))
    return shape


def _check_scales(family: str) -> None:
    """Refuse a scaling where transformers' model knows none, or has several kinds of positions."""
    if not FAMILIES[family].scales_rotary:
        able = ", ".join(name for name in TRAINED if FAMILIES[name].rotary and FAMILIES[name].scales_rotary)
        problem = f"found in a {family}, whose positions cannot be scaled; expected family: {able}"
        raise InputError(problem, key="model.rope_scaling")


def _scaling(before: ModelShape | None, asked: RopeScaling) -> str:
    """A scaling as a shape has it. The context that it refers to is, where not given, the one that the model had before
    it was first scaled."""
    if asked.kind == "none":
        return ""
    numbers = asked.given()
    origin = numbers.pop("original_context_length", None)
    if origin is None and before is not None:
        origin = rope.origin_of(before.rope_scaling) or before.context_length
    if asked.has_origin and origin is None:
        problem = "missing; expected the context length that the model was trained with, since no model is before it"
        raise InputError(problem, key="model.rope_scaling.original_context_length")
    return rope.scaling(asked.kind, numbers, origin or 0)
