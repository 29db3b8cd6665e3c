"""A plan as plain values: what `raystage plan --json` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from raystage.advice import suggest, warnings
from raystage.plan import Growth, Plan, RunPlan, StagePlan


def plan_json(plan: Plan) -> dict[str, Any]:
    """Every stage with its values, key, FLOPs and memory; the baselines; the saving that FLOPs alone predict;
    the warnings."""
    return {
        "name": plan.name,
        "stages": [_stage(stage, plan.staged) for stage in plan.staged.stages],
        "baseline": {
            "runs": [_baseline(run) for run in plan.baselines],
            "flops_shared": plan.baseline_flops_shared(),
            "flops_apart": sum(run.flops for run in plan.baselines),
        },
        "flops": plan.staged.flops,
        "scratch_flops": plan.scratch_flops,
        "predicted_saving": plan.predicted_saving,
        "warnings": [asdict(advice) for advice in warnings(plan)],
    }


def suggestions_json(plan: Plan) -> list[dict[str, Any]]:
    """Each suggestion with its stages' tokens; `overrides` are what `--set` takes."""
    return [{**asdict(one), "overrides": one.overrides} for one in suggest(plan)]


def _stage(stage: StagePlan, run: RunPlan) -> dict[str, Any]:
    training = stage.training
    return {
        "name": stage.name,
        "key": stage.key,
        "parent_key": stage.parent_key,
        **asdict(stage.shape),
        "num_params": stage.num_params,
        "tokens": stage.tokens,
        "steps": stage.steps,
        "start_tokens": stage.start_tokens,
        **({"until": stage.until.model_dump(exclude_none=True)} if stage.until else {}),
        "flops": stage.flops,
        "flops_share": stage.flops / run.flops,
        "memory": stage.memory.as_dict(),
        "num_workers": training.workers,
        "zero_stage": training.zero_stage,
        "precision": training.precision,
        "growth": _growth(stage.growth) if stage.growth else None,
        **({"freeze": stage.freezing.facts()} if stage.freezing else {}),
        **({"init": {"from": stage.init.path, **stage.init.facts()}} if stage.init else {}),
    }


def _growth(growth: Growth) -> dict[str, Any]:
    require = growth.require.model_dump(exclude_none=True)
    return growth.facts() | ({"require": require} if require else {})


def _baseline(run: RunPlan) -> dict[str, Any]:
    """A budget in whole steps, and the stretches it is trained in; equal keys are trained once."""
    return {
        "name": run.name,
        "budget_tokens": run.tokens,
        "tokens": run.tokens,
        "flops": run.flops,
        "stages": [
            {"name": stage.name, "key": stage.key, "tokens": stage.tokens, "flops": stage.flops} for stage in run.stages
        ],
    }
