"""The family of models that a run delivers, and what it costs beside training each of them from scratch.

Both sides train each model for as many tokens or samples. That is no equal loss: the table has every model's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raystage.files.typed_json import LEFT_OUT_IF_DEFAULT, unit_key
from raystage.plans.plan import Delivery, Plan, flops_shared
from raystage.results.record import StageRecord
from raystage.units import TOKENS, Unit

FOLDER = "delivered"  # in the folder of the run, with a folder for each model


@dataclass(frozen=True, kw_only=True)
class DeliveredModel:
    """A model that a stage delivers. stage: its name; name, key: of the stage that ends with the model.

    duration, flops: of its whole run, and decay: of the part that only it needs. scratch_flops: of the same model over
    the same length; None where its run counts in two units. eval_loss_before: where the decay begins. Losses are None
    until the stage is finished.
    """

    stage: str
    name: str
    key: str
    num_layers: int
    num_params: int
    duration: int = field(metadata=unit_key())
    decay: int = field(metadata=unit_key("decay_{}"))
    flops: int
    scratch_flops: int | None
    eval_loss_before: float | None
    eval_loss: float | None
    unit: Unit = field(default=TOKENS, metadata=LEFT_OUT_IF_DEFAULT)


@dataclass(frozen=True)
class DeliveredFamily:
    """The delivered models in the order of their stages. flops: of all of them together, what they share once.
    apart_flops: of each from scratch; None where that is not known."""

    models: tuple[DeliveredModel, ...]
    flops: int
    apart_flops: int | None

    @property
    def saved(self) -> float | None:
        """The share of the FLOPs that the family saves, at equal lengths."""
        return None if self.apart_flops is None else 1 - self.flops / self.apart_flops


def delivered_family(plan: Plan, records: Mapping[str, StageRecord] | None = None) -> DeliveredFamily | None:
    """What the stages of a plan deliver; None where none does. Lengths and FLOPs are those of the plan."""
    if not plan.deliveries:
        return None
    models = tuple(_model(one, records or {}) for one in plan.deliveries)
    apart = [one.scratch_flops for one in models]
    runs = [run for one in plan.deliveries for run in (one.run, *plan.teaching(one.run))]
    known = None if None in apart else sum(apart)
    return DeliveredFamily(models, flops_shared(runs), known)


def _model(one: Delivery, records: Mapping[str, StageRecord]) -> DeliveredModel:
    last, unit_flops = one.model, one.model.model_flops(one.model.shape.context_length)
    return DeliveredModel(
        stage=one.stage,
        name=last.name,
        key=last.key,
        num_layers=last.shape.num_layers,
        num_params=last.num_params,
        duration=one.run.duration,
        decay=last.duration if one.decays else 0,
        flops=one.run.flops,
        scratch_flops=one.run.duration * unit_flops if len(one.run.durations) == 1 else None,
        eval_loss_before=_loss(one.branches_at.key, records),
        eval_loss=_loss(last.key, records),
        unit=last.unit,
    )


def _loss(key: str, records: Mapping[str, StageRecord]) -> float | None:
    return records[key].eval_loss if key in records else None
