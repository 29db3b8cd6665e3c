"""The plan of a schedule or of a sweep as plain values, which `raystage plan --json` prints."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from raystage.files.typed_json import to_json
from raystage.plans.initial import TeacherPlan
from raystage.plans.plan import Plan, RunPlan, Variant, flops_shared
from raystage.plans.rates import rates_of
from raystage.plans.stage import Growth, StagePlan
from raystage.reports.advice import warnings
from raystage.reports.suggestions import suggest
from raystage.results.branches.family import delivered_family
from raystage.results.branches.members import members_of_ensembles
from raystage.results.data.data_use import data_rows
from raystage.results.data.mixtures import SourceRead, sources_read
from raystage.results.differences import baseline_reads
from raystage.sweeps.tree import Node
from raystage.sweeps.trials import SweepPlan, Trial


def plan_json(plan: Plan) -> dict[str, Any]:
    """Every stage with its values, key, FLOPs and memory; the baselines; the further values and seeds to train; the
    saving that FLOPs alone predict; the warnings."""
    reads = sources_read(plan.staged)
    return {
        "name": plan.name,
        "stages": [_stage(stage, plan.staged) | _sources(reads.get(stage.name, [])) for stage in plan.staged.stages],
        "baseline": {
            "runs": [_baseline(run) for run in plan.baselines],
            **({"data": of_baseline} if (of_baseline := baseline_reads(plan)) else {}),
            "flops_shared": plan.baseline_flops_shared(),
            "flops_apart": sum(run.flops for run in plan.baselines),
        },
        **({"delivered": to_json(family)} if (family := delivered_family(plan)) else {}),
        **({"members": to_json(members)} if (members := members_of_ensembles(plan)) else {}),
        "variants": [_variant(one) for one in plan.variants],
        "further_seeds": [_variant(one) for one in plan.further_seeds],
        "runs": [run.name for run in plan.runs()],
        "flops_of_all_runs": flops_shared(plan.runs()),
        "flops": plan.staged_flops,
        "scratch_flops": plan.scratch_flops,
        "predicted_saving": plan.predicted_saving,
        "data": to_json(data_rows(plan.staged)),
        "warnings": to_json(warnings(plan)),
    }


def left_json(plan: Plan, finished: Collection[str]) -> dict[str, Any]:
    """The keys of the finished stages, and the FLOPs that are left to train for all runs of the plan."""
    keys = [key for key in plan.stages_by_key() if key in finished]
    return {"finished": keys, "flops_left": plan.flops_left(finished)}


def unchecked_of(*plans: Plan) -> list[str]:
    """The functions that the plans name and that were not imported, each once."""
    stages = [stage for plan in plans for run in plan.runs() for stage in run.stages]
    names = (metric.function for stage in stages for metric in stage.training.evaluate.metrics)
    return list(dict.fromkeys(names))


def unchecked_line(functions: list[str]) -> str:
    """What a plan that was made without code does not know, in words."""
    if not functions:
        return "No code was run (--no-code), and the plan names none."
    names = ", ".join(functions)
    return f"No code was run (--no-code). Not known: whether {names} can be imported, and called with these options."


def suggestions_json(plan: Plan) -> list[dict[str, Any]]:
    """Each suggestion with the tokens of its stages. `overrides` are values for `--set`."""
    return [{**asdict(one), "overrides": one.overrides} for one in suggest(plan)]


def _stage(stage: StagePlan, run: RunPlan) -> dict[str, Any]:
    training = stage.training
    return {
        "name": stage.name,
        "key": stage.key,
        "parent_key": stage.parent_key,
        **stage.shape.facts(),
        "num_params": stage.num_params,
        stage.unit: stage.duration,
        "steps": stage.steps,
        f"start_{stage.unit}": stage.start,
        **({"until": stage.until.model_dump(exclude_none=True)} if stage.until else {}),
        "lr": dict(zip(("start", "peak", "end"), rates_of(stage), strict=True)),
        "flops": stage.flops,
        "flops_share": stage.flops / run.flops,
        "evaluations": stage.evaluations,
        "evaluation_flops": stage.evaluation_flops,
        "evaluation_share": stage.evaluation_share,
        "repeated_at_most": {stage.unit: stage.most_repeated, "seconds": training.checkpoint.every_seconds},
        "memory": stage.memory.as_dict(),
        "num_workers": training.workers.most,
        **({"min_workers": training.workers.least} if training.workers.is_elastic else {}),
        "zero_stage": training.zero_stage,
        "precision": training.precision,
        "growth": _growth(stage.growth) if stage.growth else None,
        **({"curriculum": stage.curriculum.facts()} if stage.curriculum else {}),
        **({"scoring": _scoring(stage)} if stage.scored else {}),
        **({"window": {"mask": "document"}} if stage.within_documents else {}),
        **({"freeze": stage.freezing.facts()} if stage.freezing else {}),
        **({"adapter": {**stage.adapter.facts(), "num_trained": stage.num_trained}} if stage.adapter else {}),
        **({"average": stage.averaging.facts()} if stage.averaging else {}),
        **({"teacher": _teacher(stage)} if stage.teacher else {}),
        **({"init": {"from": stage.init.hub or stage.init.path, **stage.init.facts()}} if stage.init else {}),
    }


def _sources(reads: list[SourceRead]) -> dict[str, Any]:
    """Of a stage with a mixture what it reads of each source."""
    return {"sources": to_json(reads)} if reads else {}


def _teacher(stage: StagePlan) -> dict[str, Any]:
    """flops: of its forward passes. They are part of the stage's."""
    teacher = stage.teacher
    if not teacher.others:
        return {**_source(teacher), **teacher.facts(), "flops": stage.teacher_flops}
    return {"mean_of": [{**_source(one), **one.facts()} for one in teacher.all], "flops": stage.teacher_flops}


def _scoring(stage: StagePlan) -> dict[str, Any]:
    """flops: of scoring documents. They are part of the stage's."""
    return {"name": stage.scorer.name, "tokens": stage.scoring_tokens, "flops": stage.scoring_flops}


def _source(teacher: TeacherPlan) -> dict[str, Any]:
    return {"name": teacher.name} if teacher.init is None else {"from": teacher.init.hub or teacher.init.path}


def _growth(growth: Growth) -> dict[str, Any]:
    require = growth.require.model_dump(exclude_none=True)
    return growth.facts() | ({"require": require} if require else {})


def _baseline(run: RunPlan) -> dict[str, Any]:
    """A budget in whole steps, with its stages. Stages with equal keys are trained once."""
    return {f"budget_{run.unit}": run.duration, **_chain(run)}


def _chain(run: RunPlan) -> dict[str, Any]:
    return {
        "name": run.name,
        run.unit: run.duration,
        "flops": run.flops,
        "stages": [
            {"name": one.name, "key": one.key, one.unit: one.duration, "flops": one.flops} for one in run.stages
        ],
    }


def _variant(variant: Variant) -> dict[str, Any]:
    """values: of the staged run and of each baseline. A further seed has the written ones until the best are known."""
    return {
        "seed": variant.seed,
        "values": {"staged": dict(variant.staged_values), "baseline": [dict(one) for one in variant.baseline_values]},
        "staged": _chain(variant.staged),
        "baseline": [_baseline(run) for run in variant.baselines],
    }


def sweep_json(plan: SweepPlan) -> dict[str, Any]:
    """Every trial with its config and the keys of its stages, every stage once, and the cost of the sweep."""
    tree = plan.tree
    return {
        "name": plan.sweep.name,
        "algorithm": plan.sweep.search.algorithm,
        "is_foreseen": plan.is_foreseen,
        "trials": [_trial(trial) for trial in plan.trials],
        "order": list(tree.order),
        "stages": [_node(node) for node in tree.nodes.values()],
        "flops_apart": tree.flops_apart,
        "flops_shared": tree.flops_shared,
        "flops_left": tree.flops_left,
        "sharing_factor": tree.sharing_factor,
        "longest_flops": tree.longest_flops,
        "apart": list(tree.apart),
        "baseline_flops": plan.baselines.flops_shared if plan.baselines else 0,
        "baseline_flops_left": plan.baselines.flops_left if plan.baselines else 0,
    }


def _trial(trial: Trial) -> dict[str, Any]:
    staged = trial.plan.staged
    return {
        "number": trial.number,
        "config": trial.config,
        "stages": [stage.key for stage in staged.stages],
        staged.unit: staged.duration,
        "flops": staged.flops,
    }


def _node(node: Node) -> dict[str, Any]:
    return {
        "name": node.stage.name,
        "label": node.label,
        "key": node.stage.key,
        "parent_key": node.stage.parent_key,
        "donor_key": node.prefix_key,
        node.stage.unit: node.stage.duration,
        "flops": node.stage.flops,
        "own_flops": node.own_flops,
        "is_finished": node.is_finished,
        "trials": list(node.trials),
    }
