"""Advice on a plan: where it asks for what others found harmful, and how long its stages might be.

Nothing here changes a plan, and nothing here is a law: each piece of advice names its source. A
warning is one entry in a table of rules below; a suggestion is a published formula applied to the
plan's own sequence of depths and total tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raystage.growth.operators import WIDTHS, width_operator
from raystage.models.shape import flops_per_token, num_body_params, num_params
from raystage.plan.build import Plan, StagePlan
from raystage.plan.cadence import MOST_SHARE
from raystage.plan.learning_rate import Curve, rate_at
from raystage.plan.length import waits_for_evaluations
from raystage.results.data_use import data_warnings
from raystage.results.differences import is_staged
from raystage.results.savings import format_share
from raystage.units import format_count

# Late growth fails under a cosine (Bu); a summary of that paper has it from half of the run on, for GPT. That half is
# the border is our choice: there the rate is down to a half, and (1/4 - 1/(2 pi)) / (1/2) = 18 % of its sum is left.
LATE_COSINE_SHARE = 0.5
LATEST_GROWTH_SHARE = 0.8
# Of a stage's training FLOPs. Small runs that are to be judged well have to pay more than the default does.
LARGE_EVALUATION_SHARE = 0.25
LARGEST_FACTOR = 4
FEWEST_BUDGETS = 3

# MIDAS leaves the exponent open. 1, time in proportion to the stage's number, is our choice of it.
PROP_ALPHA = 1.0
G_STACK_FACTOR = 4
G_STACK_SHARES = (0.02, 0.5)
G_STACK_PARAMS = (4e8, 7e9)

BU = "Bu (2511.04981)"
G_STACK = "G_stack (2405.15319)"
MIDAS = "MIDAS (2409.19044)"
SPARKLING = "SPARKLING (2602.02472)"


@dataclass(frozen=True)
class Advice:
    """A warning. `key` is the key of the schedule that it is about; `source` says who found that out."""

    key: str
    text: str
    source: str


@dataclass(frozen=True)
class Suggestion:
    """Lengths for the stages of a plan by one rule, in whole optimizer steps.

    tokens: one length for each stage. notes: what the rule took for granted and the plan does not have.
    """

    rule: str
    tokens: tuple[int, ...]
    flops: int
    predicted_saving: float
    last_growth_share: float
    source: str
    notes: tuple[str, ...]

    @property
    def overrides(self) -> tuple[str, ...]:
        """`KEY=VALUE` for `--set`. The whole of `until`, since a stage may count steps or FLOPs so far."""
        return tuple(f"stages[{index}].until={{tokens: {tokens}}}" for index, tokens in enumerate(self.tokens))


# --- warnings ---------------------------------------------------------------------------------


def warnings(plan: Plan) -> tuple[Advice, ...]:
    """What a plan asks for that was found harmful, or that makes its savings figure unfair: stages first, in order."""
    found: list[Advice | None] = []
    for index, stage in enumerate(plan.staged.stages):
        if _grows(stage):
            found += [rule(plan, index, stage) for rule in _GROWTH_RULES]
        found.append(_short_stage(plan, index, stage))
    found.append(_costly_evaluation(plan))
    found += [rule(plan) for rule in _PLAN_RULES]
    found += [Advice(*one) for one in data_warnings(plan)]
    return tuple(advice for advice in found if advice)


def _grows(stage: StagePlan) -> bool:
    """A stage that only changes the data or the layout is entered by a growth too, one that adds nothing."""
    return stage.parent_shape is not None and num_params(stage.parent_shape) != stage.num_params


def _late_under_cosine(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    share = _share_done(stage.rate, stage.start_tokens)
    if stage.training.lr_schedule.kind != "cosine" or share < LATE_COSINE_SHARE:
        return None
    left = rate_at(stage.rate, stage.start_tokens) / stage.training.optimizer.lr
    return Advice(
        f"stages[{index}].grow",
        f"grows at {format_share(share)} of a cosine, where the rate is down to {format_share(left)}; late growth "
        f"under a cosine does not catch up. Grow in the first half, or use wsd",
        f"{BU}; half is raystage's border: 18 % of the rate's sum is left there",
    )


def _one_layer_under_cosine(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    begins_anew = _share_done(stage.rate, stage.start_tokens) == 0
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
            f"grows from {source} to {target} layers{factor}; 4 is the advice and 2 the most "
            f"reliable. Larger ones went well for sources of 0 or 1 layer under wsd",
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


def _locked_twins(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
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
        f"{growth.optimizer_state}, under which their moments are alike, too: such twins stay equal for ever. Use "
        f"optimizer_state: grow, or duplicate",
        f"symmetry lock, measured (docs/operators.md); {SPARKLING} gives new parameters a state of their own",
    )


def _inside_decay(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    decay_start = _decay_start(stage.rate)
    begins_anew = _share_done(stage.rate, stage.start_tokens) == 0
    if stage.training.lr_schedule.kind != "wsd" or begins_anew or stage.start_tokens < decay_start:
        return None
    return Advice(
        f"stages[{index}].grow",
        f"grows at {format_count(stage.start_tokens)} tokens, though the rate decays from "
        f"{format_count(decay_start)} tokens on; the grown model needs some of the stable phase to catch up",
        f"{BU}: grow before the end of the stable phase, by the steps that catching up takes",
    )


def _beyond_cap(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    share = stage.start_tokens / plan.staged.tokens
    if share <= LATEST_GROWTH_SHARE:
        return None
    return Advice(
        f"stages[{index}].grow",
        f"grows at {format_share(share)} of the tokens; beyond {format_share(LATEST_GROWTH_SHARE)} too few are left "
        f"to catch up",
        f"{BU}: at most 0.8 of the run",
    )


def _short_stage(plan: Plan, index: int, stage: StagePlan) -> Advice | None:
    warmup = _warmup_tokens(stage.rate)
    if stage.tokens > warmup:
        return None
    return Advice(
        f"stages[{index}].until",
        f"ends after {format_count(stage.tokens)} tokens, and the warm-up of its rate takes {format_count(warmup)}; "
        f"a stage that short can hardly matter",
        "raystage's own rule of thumb",
    )


def _costly_evaluation(plan: Plan) -> Advice | None:
    """Of the stage where it is worst. What follows by default costs no more than that, but where a stage is very short:
    there the figures are no good anyway."""
    share, index = max((stage.evaluation_share, index) for index, stage in enumerate(plan.staged.stages))
    stage = plan.staged.stages[index]
    written = stage.training.evaluate
    is_asked_for = written.every or not stage.evaluation_follows or waits_for_evaluations(stage.until, stage.accept)
    if share <= LARGE_EVALUATION_SHARE or not is_asked_for:
        return None
    return Advice(
        "training.evaluate",
        f"takes {stage.evaluations} evaluations of {format_count(written.tokens)} tokens in stage {stage.name}, "
        f"{format_share(share)} of its training FLOPs; evaluate less often or on less text, or leave both out for at "
        f"most {format_share(MOST_SHARE)}",
        "raystage's own rule of thumb",
    )


def _never_decays(plan: Plan) -> Advice | None:
    """The baselines' rate is the last stage's, or one that falls (`baseline`)."""
    last = plan.staged.stages[-1]
    if not plan.baselines or _decay_start(last.rate) < math.inf:
        return None
    return Advice(
        _rate_key(plan, last),
        "never decays, and losses before the decay do not compare fairly: stacking's gain over a fully decayed "
        "baseline was found to be much smaller. Use wsd with a decay",
        "2307.06440; point 3 of raystage's protocol: only fully decayed values count",
    )


def _nothing_staged(plan: Plan) -> Advice | None:
    if not plan.baselines or is_staged(plan):
        return None
    return Advice(
        "stages",
        "train one model on the same text in the same context: nothing is staged, and the report will give no saving",
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
    if plan.predicted_saving >= 0:
        return None
    return Advice(
        "stages",
        f"cost {format_share(-plan.predicted_saving)} more FLOPs than the last stage's model from scratch at equal "
        f"tokens",
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
    _late_under_cosine, _one_layer_under_cosine, _large_factor, _locked_twins, _inside_decay, _beyond_cap,
)  # fmt: skip
_PLAN_RULES: tuple[Callable[[Plan], Advice | None], ...] = (
    _nothing_staged, _never_decays, _few_budgets, _costs_more, _unequal_starts, _unknown_text,
)  # fmt: skip


def _share_done(curve: Curve, tokens: int) -> float:
    """How much of a curve lies before a position; 0 for a stage that begins with a rate of its own."""
    start, end = curve[0].start_tokens, curve[-1].end_tokens
    return (tokens - start) / (end - start)


def _decay_start(curve: Curve) -> float:
    """Where the rate first falls; infinite where it never does."""
    return min((piece.start_tokens for piece in curve if piece.end_lr < piece.start_lr), default=math.inf)


def _warmup_tokens(curve: Curve) -> int:
    first = curve[0]
    return first.end_tokens - first.start_tokens if first.start_lr < first.end_lr else 0


def _rate_key(plan: Plan, last: StagePlan) -> str:
    """A rate that does not span the whole run is the stage's own."""
    spans_run = last.rate[0].start_tokens == 0 and last.rate[-1].end_tokens == plan.staged.tokens
    return "training.lr_schedule" if spans_run else f"stages[{len(plan.staged.stages) - 1}].training.lr_schedule"


# --- suggestions ------------------------------------------------------------------------------


def suggest(plan: Plan) -> tuple[Suggestion, ...]:
    """Lengths for the stages at the plan's own depths and total tokens, by `prop_alpha` and by `g_stack`.

    Nothing where no stage grows, or one has a ramp, of which the rules know nothing. Stages of one depth share that
    depth's tokens in their present proportions.
    """
    phases = _phases(plan.staged.stages)
    if len(phases) == 1 or any(stage.training.ramp for stage in plan.staged.stages):
        return ()
    return (_by_prop_alpha(plan, phases), _by_g_stack(plan, phases))


def prop_alpha_tokens(total_tokens: float, num_stages: int, alpha: float = PROP_ALPHA) -> tuple[float, ...]:
    """The tokens of k stages: `T_i = T * i^a / sum(j^a)`, i and j from 1 to k.

    Source: MIDAS (2409.19044), where stage i has `i * L / k` layers. The exponent is open there; 1 is our default.
    """
    weights = [number**alpha for number in range(1, num_stages + 1)]
    return tuple(total_tokens * weight / sum(weights) for weight in weights)


def g_stack_tokens(body_params: int, flops: float) -> float:
    """Tokens before growing: `log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74`.

    N are the grown model's parameters without embedding and head, C the FLOPs of training it on all the tokens.
    Source: G_stack (2405.15319), for growth by a factor of 4.
    """
    return 10 ** (0.88 * math.log10(body_params) + 163.27 / math.log10(flops) - 5.74)


Phase = tuple[StagePlan, ...]


def _phases(stages: Sequence[StagePlan]) -> tuple[Phase, ...]:
    """The stages in groups of one size each."""
    groups: list[list[StagePlan]] = []
    for stage in stages:
        if not groups or _grows(stage):
            groups.append([])
        groups[-1].append(stage)
    return tuple(map(tuple, groups))


def _by_prop_alpha(plan: Plan, phases: Sequence[Phase]) -> Suggestion:
    count, layers = len(phases), [phase[0].shape.num_layers for phase in phases]
    wanted = prop_alpha_tokens(plan.staged.tokens, count)
    notes = [f"the exponent is {PROP_ALPHA:g}, raystage's choice: tokens in proportion to the stage's number"]
    if any(depth * count != layers[-1] * number for number, depth in enumerate(layers, 1)):
        shown = ", ".join(map(str, layers))
        notes.append(f"MIDAS grows by equal steps of {layers[-1] / count:.3g} layers; the depths here are {shown}")
    return _suggestion(plan, phases, "prop_alpha", wanted, f"{MIDAS}: T_i = T * i^a / sum(j^a)", notes)


def _by_g_stack(plan: Plan, phases: Sequence[Phase]) -> Suggestion:
    """The tokens before growing lie before the last growth, over the earlier sizes in their present proportions."""
    total, params = plan.staged.tokens, num_body_params(phases[-1][0].shape)
    formula = g_stack_tokens(params, plan.scratch_flops)
    low, high = (share * total for share in G_STACK_SHARES)
    before = min(max(formula, low), high)
    wanted = (*_in_proportion(before, list(map(_tokens, phases[:-1]))), total - before)
    notes = [*_clamp_notes(formula, before, total), *_fit_notes(params), *_factor_notes(phases)]
    source = f"{G_STACK}: log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74 tokens before growing"
    return _suggestion(plan, phases, "g_stack", wanted, source, notes)


def _clamp_notes(formula: float, before: float, total: int) -> list[str]:
    if formula == before:
        return []
    return [f"the formula says {format_count(formula)} tokens, held to {format_share(before / total)} of the run"]


def _fit_notes(params: int) -> list[str]:
    low, high = G_STACK_PARAMS
    if low <= params <= high:
        return []
    return [
        f"fitted for 410M to 3B parameters and not to be trusted beyond {format_count(low)} to {format_count(high)}; "
        f"this model has {format_count(params)} without its embedding and head"
    ]


def _factor_notes(phases: Sequence[Phase]) -> list[str]:
    source, target = (phase[0].shape.num_layers for phase in phases[-2:])
    notes = []
    if len(phases) > 2:
        notes.append("G_stack grows once: its tokens before growing lie before the last growth")
    if target != G_STACK_FACTOR * source:
        notes.append(f"its factor is {G_STACK_FACTOR}; the last growth here is {source} -> {target} layers")
    return notes


def _suggestion(
    plan: Plan, phases: Sequence[Phase], rule: str, wanted: Sequence[float], source: str, notes: Sequence[str]
) -> Suggestion:
    spread = [
        tokens
        for phase, size in zip(phases, wanted, strict=True)
        for tokens in _in_proportion(size, [stage.tokens for stage in phase])
    ]
    tokens = _whole_steps(plan.staged.stages, spread)
    per_token = [flops_per_token(stage.shape) for stage in plan.staged.stages]
    flops = sum(count * each for count, each in zip(tokens, per_token, strict=True))
    # Whole steps of batches that differ may not add up to the very total.
    scratch_flops = sum(tokens) * per_token[-1]
    return Suggestion(
        rule=rule,
        tokens=tokens,
        flops=flops,
        predicted_saving=1 - flops / scratch_flops,
        last_growth_share=sum(tokens[: -len(phases[-1])]) / sum(tokens),
        source=source,
        notes=tuple(notes),
    )


def _whole_steps(stages: Sequence[StagePlan], wanted: Sequence[float]) -> tuple[int, ...]:
    """The nearest whole steps of each stage, at least one; the last stage has what is left of the total."""
    sizes = [stage.training.global_batch_tokens for stage in stages]
    tokens = [size * max(1, round(each / size)) for size, each in zip(sizes[:-1], wanted[:-1], strict=True)]
    left = sum(stage.tokens for stage in stages) - sum(tokens)
    return (*tokens, sizes[-1] * max(1, round(left / sizes[-1])))


def _in_proportion(total: float, parts: Sequence[int]) -> list[float]:
    return [total * part / sum(parts) for part in parts]


def _tokens(phase: Phase) -> int:
    return sum(stage.tokens for stage in phase)
