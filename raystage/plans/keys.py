"""Stage keys: SHA-256 of everything that can change a stage's result.

Values count, not names or paths. Two stages with equal keys compute the same bits, so only one of them is trained.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import lru_cache

from raystage.config.conditions import Until
from raystage.config.deepspeed import ONLY_LOGGED
from raystage.frozen import renewed, replaced
from raystage.growth.checks import changed_fields
from raystage.growth.counts import is_settled
from raystage.growth.operators import PART_OF, operators_of
from raystage.models.shape import ModelShape
from raystage.plans import cadence, learning_rate
from raystage.plans.stage import StagePlan
from raystage.units import SAMPLES, TOKENS, Unit

# Raise this when the code changes what a stage computes. Every key then changes, and no old result is reused.
CODE_EPOCH = 2

# What may differ between two runs of a stage without changing its result. The learning rate, the optimizer and the
# amount of held-out text are added separately.
_WITHOUT_EFFECT = {
    "hang_seconds": True,
    "max_failures": True,
    "placement": True,
    "accelerator": True,
    "node_labels": True,
    "checkpoint": True,
    "evaluate": True,
    "lr_schedule": True,
    "optimizer": True,
    "deepspeed": set(ONLY_LOGGED),
}

# Options of training that were added later: without them a key stays what it was before.
_ADDED_LATER = {
    "offload_optimizer": "none", "ramp": None, "deterministic": False, "compile": False, "cross_entropy": "whole",
}  # fmt: skip

# One for all keys: `json.dumps` makes an encoder at every call.
_ENCODER = json.JSONEncoder(sort_keys=True, check_circular=False)

# Growing one of these adds whole parameters; it adds no elements to existing ones.
_WHOLLY_NEW = {"num_layers", "num_experts"}
# Operators that start every parameter they grow without optimizer state.
_WITHOUT_STATE = {"aki", "learned"}


def key_at(stage: StagePlan, steps: int) -> str:
    """The key that the stage has if it ends after `steps` steps. With `stage.steps` it is the stage's own key.

    Another stage with this key computed exactly what this one computes in its first `steps` steps.
    """
    return _key(evaluated_after(stage, steps), steps)


def with_own_key(stage: StagePlan) -> StagePlan:
    """A stage, evaluated as its own length implies, with its key: the one at its last step."""
    return renewed(stage, key=_key(stage, stage.steps))


def trunk_key(stage: StagePlan) -> str:
    """A key shared by all stages that differ only in their length, in their learning rate, and in the amount of
    held-out text that follows from the length."""
    return _digest(_facts(stage, cadence.AMOUNTS[stage.unit].most if stage.evaluation_follows else None))


def ended_after(stage: StagePlan, steps: int) -> StagePlan:
    """The same stage, ending after `steps` steps, with the key that follows."""
    return replaced(evaluated_after(stage, steps), steps=steps, key=key_at(stage, steps))


def evaluated_after(stage: StagePlan, steps: int) -> StagePlan:
    """The stage with the amount of held-out text that a length of `steps` steps implies.

    Where the schedule sets the amount, the stage is returned unchanged.
    """
    if not stage.evaluation_follows:
        return stage
    unit_flops = stage.unit_model_flops
    flops = stage.training_flops if steps == stage.steps else stage.step_costs.of_first(steps)
    amount = cadence.default_amount(flops, stage.start_flops + flops, unit_flops, stage.unit)
    evaluate = stage.training.evaluate.model_copy(update={stage.unit: amount})
    return renewed(stage, training=stage.training.model_copy(update={"evaluate": evaluate}))


def placed(stage: StagePlan, position: int, steps: int, flops: int) -> StagePlan:
    """The stage at its real start in the run, after earlier stages that ended before their caps.

    A rate of its own moves with it. The rate of the run gets a shorter constant part, so that it still decays at its
    end.
    """
    by = stage.start - position
    if not by and stage.start_steps == steps:
        return stage
    rate = learning_rate.moved(stage.rate, by) if stage.own_rate else learning_rate.shortened(stage.rate, by)
    earlier = (*stage.earlier[:-1], *(replaced(one, end=position) for one in stage.earlier[-1:]))
    return replaced(stage, start=position, start_steps=steps, start_flops=flops, rate=rate, earlier=earlier)


def _leaves_counts(stage: StagePlan, steps: int) -> bool:
    """Whether, `steps` steps after the growth, new elements inside old parameters still need step counts of their own.

    A stage that may end early is judged by its earliest end. Checkpoints written before these counts existed lack them,
    so such a stage needs another key than it had then.
    """
    growth = stage.growth
    has_state = growth is not None and growth.optimizer_state == "grow"
    if not has_state or (stage.init and not stage.init.keeps_optimizer_state):
        return False
    by = operators_of(growth.operator)
    parts = {PART_OF.get(field, field) for field in changed_fields(stage.parent_shape, stage.shape)} - _WHOLLY_NEW
    is_mixed = any(part not in by or by[part].name not in _WITHOUT_STATE for part in parts)
    if not is_mixed:
        return False
    betas = stage.training.optimizer.used().get("betas", ())
    return not is_settled(1 if stage.until else steps + 1, math.inf, betas)


def _key(stage: StagePlan, steps: int) -> str:
    duration = stage.step_schedule.duration(steps)
    rate = learning_rate.signature(stage.rate, stage.start, stage.start + duration)
    counts = {"own_counts": True} if _leaves_counts(stage, steps) else {}
    return _digest({**_facts(stage), "rate": rate, stage.unit: duration, **counts})


def _facts(stage: StagePlan, evaluation_amount: int | None = None) -> dict[str, object]:
    """Everything that can change the stage's result, except its length and its learning rate.

    How often the stage is evaluated counts only where an evaluation can end it. evaluation_amount: used in place of the
    stage's own amount of held-out text.
    """
    training = stage.training.model_dump(exclude=_WITHOUT_EFFECT)
    other = SAMPLES if stage.unit == TOKENS else TOKENS
    training["evaluate"] = {stage.unit: evaluation_amount or stage.training.evaluate.amount}
    training["optimizer"] = stage.training.optimizer.used()
    training.pop(f"global_batch_{other}", None)
    for name, without in _ADDED_LATER.items():
        if training[name] == without:
            del training[name]
    if "ramp" in training:
        training["ramp"] = _ramp_facts(training["ramp"], other)
    return {
        "epoch": CODE_EPOCH,
        "parent": stage.parent_key,
        "growth": stage.growth.facts() if stage.growth else None,
        "shape": _shape_facts(stage.shape),
        "data": stage.data.facts(),
        "training": training,
        **stage.objective.facts(),
        **({"teacher": stage.teacher.facts()} if stage.teacher else {}),
        "seed": stage.seed,
        **({} if stage.weights_seed is None else {"weights_seed": stage.weights_seed}),
        f"start_{stage.unit}": stage.start,
        **({"window_tokens": stage.window} if stage.window != stage.sample_length(stage.shape.context_length) else {}),
        **({"window": {"mask": "document"}} if stage.within_documents else {}),
        **({"curriculum": stage.curriculum.facts()} if stage.curriculum else {}),
        **({"init": stage.init.facts()} if stage.init else {}),
        **({"freeze": stage.freezing.facts()} if stage.freezing else {}),
        **({"adapter": stage.adapter.facts()} if stage.adapter else {}),
        **({"average": stage.averaging.facts()} if stage.averaging else {}),
        **(_until_facts(stage, stage.until) if stage.until else {}),
    }


# Cached: the stages of ten thousand trials have a few shapes.
@lru_cache(maxsize=4096)
def _shape_facts(shape: ModelShape) -> dict[str, object]:
    return shape.facts()


def _ramp_facts(ramp: dict[str, object], other: Unit) -> dict[str, object]:
    """Options that were added later are left out where they are not used, and so is the other unit."""
    found = {name: value for name, value in ramp.items() if name != f"global_batch_{other}"}
    if found["scale_lr"] == "none":
        del found["scale_lr"]
    for value in found.values():
        if isinstance(value, dict):
            value["over"].pop(other, None)
    return found


def _until_facts(stage: StagePlan, until: Until) -> dict[str, object]:
    facts = {"until": until.model_dump(exclude_none=True), f"evaluate_every_{stage.unit}": stage.evaluate_every}
    earliest = stage.growth.duration if stage.growth else 0
    return facts | ({f"not_before_{stage.unit}": earliest} if earliest else {})


def _digest(facts: dict[str, object]) -> str:
    """SHA-256 of facts. The order of the keys does not matter."""
    return hashlib.sha256(_ENCODER.encode(facts).encode()).hexdigest()
