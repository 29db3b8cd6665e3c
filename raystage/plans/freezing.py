"""Which parameters of a stage are frozen, and for how long: `freeze` and `thaw`.

A frozen parameter keeps its weights, its optimizer state and its step count, bit for bit. The other parameters train as
if the frozen ones were constants. No gradient of a frozen parameter is computed, and none of the inputs below the
lowest parameter that is trained; the FLOPs of a stage are counted without them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial

from raystage.config.stage import Grow
from raystage.config.stages.freeze import Freeze, LayerRange, Thaw
from raystage.errors import InputError
from raystage.growth.checks import changed_fields
from raystage.growth.depth import LayerOrigin
from raystage.growth.operators import is_trained, layer_origins
from raystage.models.depth import depths
from raystage.models.shape import ModelShape, parameters, table_of
from raystage.plans.adapters import AdapterPlan
from raystage.plans.initial import TeacherPlan, unit_flops
from raystage.plans.step_costs import StepCosts
from raystage.plans.steps import StepSchedule
from raystage.units import Unit

# What a growth may change in a stage with frozen layers: nothing that puts new elements into existing layers.
_GROWABLE = {"num_layers", "vocab_size", "context_length"}


@dataclass(frozen=True)
class FrozenPart:
    """Parameters, by name, that begin to train together. duration: how long they are frozen, from the stage's start;
    None: all of it."""

    names: frozenset[str]
    duration: int | None


@dataclass(frozen=True)
class Freezing:
    """layers: indices of the stage's own layers. duration: how long they are frozen, from the stage's start; None: all
    of it. others: names of further parameters. thaw: how they begin to train, if not all at once."""

    layers: tuple[int, ...]
    embeddings: bool
    duration: int | None
    others: tuple[str, ...] = ()
    thaw: Thaw | None = None

    def facts(self) -> dict[str, object]:
        """As plain values, for the key. What was added later is left out where it is not used."""
        return {
            "layers": self.layers,
            "embeddings": self.embeddings,
            "tokens": self.duration,
            **({"parameters": self.others} if self.others else {}),
            **({"thaw": {"from": self.thaw.start, "every": self.thaw.every}} if self.thaw else {}),
        }

    def names(self, shape: ModelShape) -> frozenset[str]:
        """The names of the parameters that are frozen at the stage's start. Embeddings are lookup tables; where they
        are tied, the head is among them."""
        embeddings = table_of(shape).embeddings if self.embeddings else ()
        named = {*embeddings, *self.others}
        return frozenset(p.name for p in parameters(shape) if p.layer in self.layers or p.name in named)

    def parts(self, shape: ModelShape) -> tuple[FrozenPart, ...]:
        """The parts that begin to train together, in the order in which they do."""
        return _parts(self, shape)

    def steps(self, shape: ModelShape, schedule: StepSchedule) -> Mapping[str, float]:
        """By name for how many steps from the stage's start each of the parameters is frozen: all that begin within its
        duration; infinite for the whole stage."""
        return {name: _steps(part, schedule) for part in self.parts(shape) for name in part.names}


@lru_cache(maxsize=256)
def _parts(freezing: Freezing, shape: ModelShape) -> tuple[FrozenPart, ...]:
    names, thaw = freezing.names(shape), freezing.thaw
    if thaw is None:
        return (FrozenPart(names, freezing.duration),)
    by_depth: dict[int, set[str]] = {}
    for name in names:
        by_depth.setdefault(depths(shape)[name], set()).add(name)
    order = sorted(by_depth, reverse=thaw.start == "top")
    return tuple(FrozenPart(frozenset(by_depth[depth]), thaw.every * place) for place, depth in enumerate(order, 1))


def _steps(part: FrozenPart, schedule: StepSchedule) -> float:
    return math.inf if part.duration is None else schedule.steps_for(part.duration)


def step_costs(
    shape: ModelShape,
    teacher: TeacherPlan | None,
    unit: Unit,
    schedule: StepSchedule,
    freezing: Freezing | None,
    adapter: AdapterPlan | None = None,
) -> StepCosts:
    """What the steps of a stage cost, from its start on."""
    if teacher is freezing is adapter is None:
        return _plain_costs(shape, unit, schedule)
    if adapter:
        cost = partial(unit_flops, shape, teacher, unit=unit, frozen=adapter.frozen(shape), adapter=adapter)
        return StepCosts(schedule, ((0, cost),))
    parts = freezing.parts(shape) if freezing else ()
    ends = {part: _steps(part, schedule) for part in parts}
    starts = sorted({0, *(end for end in ends.values() if end < math.inf)})
    return StepCosts(schedule, tuple((start, _cost(shape, teacher, unit, ends, start)) for start in starts))


# Cached: the stages of ten thousand trials have a few shapes.
@lru_cache(maxsize=4096)
def _plain_costs(shape: ModelShape, unit: Unit, schedule: StepSchedule) -> StepCosts:
    return StepCosts(schedule, ((0, partial(unit_flops, shape, None, unit=unit)),))


def _cost(
    shape: ModelShape, teacher: TeacherPlan | None, unit: Unit, ends: Mapping[FrozenPart, float], step: int
) -> partial:
    frozen = frozenset(name for part, end in ends.items() if end > step for name in part.names)
    return partial(unit_flops, shape, teacher, unit=unit, frozen=frozen)


def old_layers(origins: Sequence[LayerOrigin]) -> tuple[int, ...]:
    """The layers of the grown model that existed before: for each source layer the first copy that is unchanged.

    Further copies count as new, and so do layers without a source and layers that start silenced.
    """
    first: dict[int, int] = {}
    for layer, origin in enumerate(origins):
        if origin.source is not None and not (origin.new or origin.silenced):
            first.setdefault(origin.source, layer)
    return tuple(sorted(first.values()))


# --- found ------------------------------------------------------------------------------------


def find_freezing(
    freeze: Freeze | None, thaw: Thaw | None, before: ModelShape | None, shape: ModelShape, grow: Grow | None
) -> Freezing | None:
    """What a stage freezes. before: the shape of the model that it starts from.

    Raises InputError, with the stage's own key, for what does not fit.
    """
    if freeze is None and thaw is None:
        return None
    key = "thaw" if freeze is None else "freeze"
    if grow is not None:
        _check_growth(before, shape, grow, key)
    found = _all_but_head(shape, thaw) if freeze is None else _found(freeze, thaw, before, shape, grow)
    if grow is not None:
        _check_rows(found, before, shape, key)
    if len(found.names(shape)) == len(parameters(shape)):
        problem = "found all parameters of the model, of which none would train; expected some that do"
        raise InputError(problem, key="freeze")
    return found


def check_freezing_fits(freezing: Freezing, duration: int, unit: Unit) -> None:
    """Refuse what lasts longer than its stage of this duration."""
    lasts, thaw = freezing.duration, freezing.thaw
    if lasts is not None and lasts > duration:
        problem = f"found {lasts} in a stage of {duration}; expected at most as many, or no for: all of the stage"
        raise InputError(problem, key=f"freeze.for.{unit}")
    if thaw is not None and thaw.every >= duration:
        problem = f"found {thaw.every} in a stage of {duration} {unit}, in which nothing would begin to train"
        raise InputError(f"{problem}; expected less", key="thaw.every")


def _all_but_head(shape: ModelShape, thaw: Thaw) -> Freezing:
    before = tuple(name for name, depth in depths(shape).items() if depth < 0)
    others = tuple(name for name in before if name not in table_of(shape).embeddings)
    return Freezing(tuple(range(shape.num_layers)), True, None, others, thaw)


def _found(
    freeze: Freeze, thaw: Thaw | None, before: ModelShape | None, shape: ModelShape, grow: Grow | None
) -> Freezing:
    if freeze.layers is None and not freeze.embeddings and not freeze.parameters:
        expected = "expected layers: old, new or a list such as [0, 1], embeddings: true, or parameters"
        raise InputError(f"found nothing to freeze; {expected}", key="freeze")
    if thaw is not None and freeze.lasts is not None:
        problem = "found beside freeze.for, which ends the freeze of all parameters at once; expected one of them"
        raise InputError(problem, key="thaw")
    if freeze.embeddings and not table_of(shape).embeddings:
        problem = f"found true for a {shape.family}, which has no embeddings; expected layers, or parameters by name"
        raise InputError(problem, key="freeze.embeddings")
    found = Freezing(_layers(freeze, before, shape, grow), freeze.embeddings, None)
    others = tuple(name for name in _matching(freeze.parameters, shape) if name not in found.names(shape))
    return Freezing(found.layers, found.embeddings, freeze.lasts.count if freeze.lasts else None, others, thaw)


def _matching(patterns: Collection[str], shape: ModelShape) -> list[str]:
    """The names that one of the patterns matches, in the model's order."""
    names = [one.name for one in parameters(shape)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, 1, 0) or names[:1]
            problem = f"found {pattern!r}, which is no parameter of this model; expected a name such as {near[0]}"
            raise InputError(f"{problem}, or a pattern of names with *", key="freeze.parameters")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _check_growth(before: ModelShape, shape: ModelShape, grow: Grow, key: str) -> None:
    if is_trained(grow.operator):
        problem = f"found with grow.operator: {grow.operator}, whose new parts are trained along with the old ones"
        raise InputError(f"{problem}; expected another operator, or no {key}", key=key)
    wider = sorted(set(changed_fields(before, shape)) - _GROWABLE)
    if wider:
        problem = f"found in a stage that changes {wider[0]}, after which every layer has new elements among the old"
        raise InputError(f"{problem}; expected a growth of num_layers alone, or no {key}", key=key)


def _check_rows(freezing: Freezing, before: ModelShape, shape: ModelShape, key: str) -> None:
    """Refuse to freeze a parameter that gets new rows: those would stay as they were drawn."""
    longer = sorted(set(changed_fields(before, shape)) - {"num_layers"})
    if longer and freezing.embeddings and key == "freeze":
        problem = f"found true in a stage that changes {longer[0]}, after which they have new rows among the old"
        raise InputError(f"{problem}; expected false", key="freeze.embeddings")
    frozen, old = freezing.names(shape), {one.name: one.shape for one in parameters(before)}
    grown = [one.name for one in parameters(shape) if one.name in frozen and old.get(one.name, one.shape) != one.shape]
    if longer and grown:
        problem = f"found {grown[0]} frozen in a stage that changes {longer[0]}, after which it has new rows"
        raise InputError(f"{problem}; expected others", key=key)


def _layers(freeze: Freeze, before: ModelShape | None, shape: ModelShape, grow: Grow | None) -> tuple[int, ...]:
    if freeze.layers is None:
        return ()
    if isinstance(freeze.layers, LayerRange):
        return _in_range(freeze.layers, shape.num_layers)
    if isinstance(freeze.layers, tuple):
        for layer in freeze.layers:
            if layer >= shape.num_layers:
                there = f"expected layers from 0 to {shape.num_layers - 1}"
                raise InputError(f"found {layer} in a model of {shape.num_layers} layers; {there}", key="freeze.layers")
        return tuple(sorted(set(freeze.layers)))
    if grow is None:
        problem = f"found {freeze.layers!r} in a stage without grow, which has neither old layers nor new ones"
        raise InputError(f"{problem}; expected a list such as [0, 1]", key="freeze.layers")
    old = old_layers(layer_origins(before, shape, grow.operator, grow.options))
    chosen = old if freeze.layers == "old" else tuple(layer for layer in range(shape.num_layers) if layer not in old)
    if not chosen:
        found = f"found {freeze.layers!r}, but {grow.operator} makes no {freeze.layers} layers here"
        raise InputError(f"{found}; expected another choice", key="freeze.layers")
    return chosen


def _in_range(written: LayerRange, num_layers: int) -> tuple[int, ...]:
    there = f"in a model of {num_layers} layers"
    if written.start >= num_layers:
        raise InputError(f"found {written.start} {there}; expected less", key="freeze.layers.from")
    if written.below is not None and written.below > num_layers:
        raise InputError(f"found {written.below} {there}; expected at most as many", key="freeze.layers.below")
    return tuple(range(written.start, num_layers if written.below is None else written.below))
