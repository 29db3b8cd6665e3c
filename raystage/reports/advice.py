"""Warnings about a plan: where it asks for something that others found harmful.

A warning changes nothing. Each one names its source, and is one entry in a table of rules below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from raystage.growth.checks import changed_fields, exchanges_head
from raystage.growth.operators import WIDTHS, width_operator
from raystage.models import rope
from raystage.models.families import family_of
from raystage.models.shape import num_params
from raystage.plans.cadence import MOST_SHARE
from raystage.plans.gpu_types import gpu_warnings
from raystage.plans.learning_rate import Curve, rate_at
from raystage.plans.open_ends import waits_for_evaluations
from raystage.plans.plan import Plan
from raystage.plans.stage import StagePlan
from raystage.reports.formats import format_layers
from raystage.results.data.data_warnings import data_warnings
from raystage.results.differences import is_staged, nothing_staged
from raystage.units import format_count, format_share

# Late growth fails under a cosine (Bu). A summary of that paper says: from half of the run on, for GPT. We chose half
# as the limit: there the rate is half of its peak, and (1/4 - 1/(2 pi)) / (1/2) = 18 % of its sum is left.
LATE_COSINE_SHARE = 0.5
LATEST_GROWTH_SHARE = 0.8
# Share of a stage's training FLOPs. Small runs need more evaluation than the default for a good judgement.
LARGE_EVALUATION_SHARE = 0.25
LARGEST_FACTOR = 4
# The share of a rate down to which it is as good as reached.
STILL_HIGH = 0.9
FEWEST_BUDGETS = 3


BU = "Bu (2511.04981)"
G_STACK = "G_stack (2405.15319)"
SPARKLING = "SPARKLING (2602.02472)"


@dataclass(frozen=True)
class Advice:
    """A warning. key: the key of the schedule that it is about. source: who found that out."""

    key: str
    text: str
    source: str


# --- warnings ---------------------------------------------------------------------------------


def warnings(plan: Plan) -> tuple[Advice, ...]:
    """What in a plan was found harmful, or makes its savings figure unfair. Stages come first, in order."""
    found: list[Advice | None] = []
    for index, stage in enumerate(plan.staged.stages):
        if grows(stage):
            found += [rule(plan, index, stage) for rule in _GROWTH_RULES]
        found += [_short_stage(plan, index, stage), _beyond_scaling(plan, index, stage)]
    found.append(_costly_evaluation(plan))
    found += [rule(plan) for rule in _PLAN_RULES]
    found += [Advice(*one) for one in (*data_warnings(plan), *gpu_warnings(plan))]
    return tuple(advice for advice in found if advice)


def grows(stage: StagePlan) -> bool:
    """Whether the body of a stage's model is larger than that of its parent. Every stage after the first has a growth,
    which may add nothing, or another head."""
    before = stage.parent_shape
    if before is None or num_params(before) == stage.num_params:
        return False
    return not exchanges_head(before, stage.shape) or bool(changed_fields(before, stage.shape))


def _late_under_cosine(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    share = _share_done(stage.rate, stage.start)
    if stage.training.lr_schedule.kind != "cosine" or share < LATE_COSINE_SHARE:
        return None
    left = rate_at(stage.rate, stage.start) / stage.training.optimizer.lr
    return Advice(
        f"stages[{index}].grow",
        f"grows at {format_share(share)} of a cosine, where the rate is down to {format_share(left)}; late growth "
        f"under a cosine does not catch up. Grow in the first half, or use wsd",
        f"{BU}; half is raystage's border: 18 % of the rate's sum is left there",
    )


def _one_layer_under_cosine(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    begins_anew = _share_done(stage.rate, stage.start) == 0
    if stage.training.lr_schedule.kind != "cosine" or begins_anew or stage.parent_shape.num_layers != 1:
        return None
    return Advice(
        f"stages[{index}].grow",
        "grows from 1 layer under a cosine; such a source saves by growing late, which works under wsd and not under "
        "a cosine",
        BU,
    )


def _large_factor(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    source, target = stage.parent_shape.num_layers, stage.shape.num_layers
    if target > LARGEST_FACTOR * source:
        factor = f", a factor of {target / source:.3g}" if source else ""
        return Advice(
            f"stages[{index}].grow",
            f"grows from {source} to {format_layers(target)}{factor}; 4 is the advice and 2 the most reliable. "
            f"Larger ones went well for sources of 0 or 1 layer under wsd",
            f"{G_STACK}: factor 4; 2605.13405: factor 2; {BU}: 0 or 1 layer",
        )
    source, target = stage.parent_shape.hidden_size, stage.shape.hidden_size
    if target > LARGEST_FACTOR * source:
        return Advice(
            f"stages[{index}].grow",
            f"grows from a hidden size of {source} to {target}, a factor of {target / source:.3g}; factor 2 is the "
            f"most reliable, and nobody reports on more than 4",
            f"2605.13405: factor 2; {G_STACK}: factor 4; {SPARKLING}: width by 2",
        )
    return None


def _locked_duplicates(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    """Copies with equal fan-in and equal optimizer state are equal for ever: only `rms` leaves parting them to the
    optimizer's state alone."""
    growth, source, target = stage.growth, stage.parent_shape, stage.shape
    locked = [
        field
        for field in WIDTHS
        if getattr(target, field) > getattr(source, field) and width_operator(growth.operator, field) == "rms"
    ]
    if not locked or growth.optimizer_state == "grow":
        return None
    return Advice(
        f"stages[{index}].grow",
        f"grows {' and '.join(locked)} by rms, whose copies share their fan-in evenly, with optimizer_state: "
        f"{growth.optimizer_state}, under which their moments are equal, too: such duplicates stay equal for ever. Use "
        f"optimizer_state: grow, or duplicate",
        f"symmetry lock, measured (docs/operators.md); {SPARKLING} gives new parameters a state of their own",
    )


def _padded_channels(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    before, after = stage.parent_shape.hidden_size, stage.shape.hidden_size
    is_batch_norm = family_of(stage.shape.family).norm == "batch"
    if not is_batch_norm or before == after or width_operator(stage.growth.operator, "hidden_size") != "zero_pad":
        return None
    return Advice(
        f"stages[{index}].grow",
        f"pads {before} channels with zeros to {after}: exact at the growth, but a batch norm scales each channel to "
        f"unit variance, so the first update makes the new ones as loud as the old. duplicate ended at a lower loss",
        "measured at a rate of 3e-3 (docs/architectures.md)",
    )


def _inside_decay(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    decay_start = _decay_start(stage.rate)
    begins_anew = _share_done(stage.rate, stage.start) == 0
    if stage.training.lr_schedule.kind != "wsd" or begins_anew or stage.start < decay_start:
        return None
    return Advice(
        f"stages[{index}].grow",
        f"grows at {format_count(stage.start)} {stage.unit}, though the rate decays from "
        f"{format_count(decay_start)} {stage.unit} on; the grown model needs some of the stable phase to catch up",
        f"{BU}: grow before the end of the stable phase, by the steps that catching up takes",
    )


def _beyond_cap(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    share = stage.start / plan.staged.duration
    if share <= LATEST_GROWTH_SHARE:
        return None
    return Advice(
        f"stages[{index}].grow",
        f"grows at {format_share(share)} of the tokens; beyond {format_share(LATEST_GROWTH_SHARE)} too few are left "
        f"to catch up",
        f"{BU}: at most 0.8 of the run",
    )


def _short_stage(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    warmup = _warmup_length(stage.rate)
    if stage.duration > warmup:
        return None
    return Advice(
        f"stages[{index}].until",
        f"ends after {format_count(stage.duration)} {stage.unit}, and the warm-up of its rate takes "
        f"{format_count(warmup)}; a stage that short can hardly matter",
        "raystage's own rule of thumb",
    )


def _beyond_scaling(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    reach = rope.reach_of(stage.shape.rope_scaling)
    if reach is None or stage.shape.context_length <= reach:
        return None
    scaling = rope.parameters_of(stage.shape.rope_scaling)
    return Advice(
        f"stages[{index}].model.rope_scaling",
        f"is made for contexts of up to {reach:.0f} tokens ({scaling['factor']:g} times "
        f"{rope.origin_of(stage.shape.rope_scaling)}), and the stage has one of {stage.shape.context_length}",
        "YaRN (2309.00071): the factor is the new context length divided by the old one",
    )


def _costly_evaluation(plan: Plan) -> Advice | None:
    """About the stage where the share is largest. The default number of evaluations costs no more than that, except in
    very short stages, whose figures mean little anyway."""
    share, index = max((stage.evaluation_share, index) for index, stage in enumerate(plan.staged.stages))
    stage = plan.staged.stages[index]
    written = stage.training.evaluate
    is_asked_for = written.every or not stage.evaluation_follows or waits_for_evaluations(stage.until, stage.accept)
    if share <= LARGE_EVALUATION_SHARE or not is_asked_for:
        return None
    return Advice(
        "training.evaluate",
        f"takes {stage.evaluations} evaluations of {format_count(written.amount)} {stage.unit} in stage {stage.name}, "
        f"{format_share(share)} of its training FLOPs; evaluate less often or on less text, or leave both out for at "
        f"most {format_share(MOST_SHARE)}",
        "raystage's own rule of thumb",
    )


def _never_decays(plan: Plan) -> Advice | None:
    """The baselines use the learning-rate schedule of the last stage, or one that decays (`baseline`)."""
    last = plan.staged.stages[-1]
    if not plan.baselines or last.averaging or _decay_start(last.rate) < math.inf:
        return None
    return Advice(
        _rate_key(plan, last),
        "never decays, and losses before the decay do not compare fairly: stacking's gain over a fully decayed "
        "baseline was found to be much smaller. Use wsd with a decay",
        "2307.06440; point 3 of raystage's protocol: only fully decayed values count",
    )


def _cut_decay(plan: Plan) -> Advice | None:
    """A rate of the run is planned over all stages, also over those that have a rate of their own instead."""
    for stage, after in pairwise(plan.staged.stages):
        begins_anew = after.own_rate and after.training.lr_schedule.start is None
        reached, left = rate_at(stage.rate, stage.end), stage.rate[-1].end_lr
        has_begun = _decay_start(stage.rate) < stage.end
        if stage.own_rate or not begins_anew or not has_begun or left >= reached * STILL_HIGH:
            continue
        return Advice(
            "training.lr_schedule",
            f"falls over the length of the whole run, and stage {after.name} begins with a rate of its own where it is "
            f"down to {reached:.3g} and not to {left:.3g}; give stage {stage.name} the decay, as lr_schedule "
            f"{{from: current, kind: linear}}, or use kind: piecewise",
            "the rates of this plan",
        )
    return None


def _nothing_staged(plan: Plan) -> Advice | None:
    if not plan.baselines or is_staged(plan):
        return None
    return Advice(
        "stages",
        f"{nothing_staged(plan)}: nothing is staged, and the report will give no saving",
        "only what is staged can save by staging",
    )


def _few_budgets(plan: Plan) -> Advice | None:
    count = len(plan.baselines)
    if count == 0 or count >= FEWEST_BUDGETS:
        return None
    return Advice(
        "baseline.budgets",
        f"has {'1 budget' if count == 1 else f'{count} budgets'}; equal loss is found between the losses of three or "
        f"more",
        "point 4 of raystage's protocol: scratch runs at three or more budgets",
    )


def _costs_more(plan: Plan) -> Advice | None:
    if plan.predicted_saving is None or plan.predicted_saving >= 0:
        return None
    return Advice(
        "stages",
        f"cost {format_share(-plan.predicted_saving)} more FLOPs than the last stage's model from scratch at equal "
        f"{plan.staged.unit}",
        "the FLOPs of this plan",
    )


def _unequal_starts(plan: Plan) -> Advice | None:
    if not plan.baselines or plan.staged.stages[0].init is None:
        return None
    return Advice(
        "init",
        "gives the stages a trained model to start from, and the baselines none: what is saved leaves out what that "
        "model had cost",
        "point 5 of raystage's protocol: every stage counts",
    )


def _unknown_text(plan: Plan) -> Advice | None:
    init = plan.staged.stages[0].init
    if init is None or init.trained_on.is_whole:
        return None
    return Advice(
        "init",
        "gives a model of which it is not known what text it was trained on; held-out text may be among it, and the "
        "evaluation loss then lower than on new text",
        "only checkpoints of this and later versions of raystage keep what they were trained on",
    )


_GROWTH_RULES: tuple[Callable[[Plan, int, StagePlan], Advice | None], ...] = (
    _late_under_cosine, _one_layer_under_cosine, _large_factor, _locked_duplicates, _padded_channels, _inside_decay,
    _beyond_cap,
)  # fmt: skip


_PLAN_RULES: tuple[Callable[[Plan], Advice | None], ...] = (
    _nothing_staged, _cut_decay, _never_decays, _few_budgets, _costs_more, _unequal_starts, _unknown_text,
)  # fmt: skip


def _share_done(curve: Curve, position: int) -> float:
    """The share of a learning-rate schedule before a position; 0 if the stage starts a schedule of its own."""
    start, end = curve[0].start, curve[-1].end
    return (position - start) / (end - start)


def _decay_start(curve: Curve) -> float:
    """Where the learning rate first falls, also in a step; infinite if it never does."""
    falls = [piece.start for piece in curve if piece.end_lr < piece.start_lr]
    steps = [after.start for before, after in pairwise(curve) if after.start_lr < before.end_lr]
    return min((*falls, *steps), default=math.inf)


def _warmup_length(curve: Curve) -> int:
    first = curve[0]
    return first.end - first.start if first.start_lr < first.end_lr else 0


def _rate_key(plan: Plan, last: StagePlan) -> str:
    """The key of the schedule for the learning rate. One that does not span the whole run belongs to the stage."""
    spans_run = last.rate[0].start == 0 and last.rate[-1].end == plan.staged.duration
    return "training.lr_schedule" if spans_run else f"stages[{len(plan.staged.stages) - 1}].training.lr_schedule"
