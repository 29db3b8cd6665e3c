"""How long the stages of a plan might be, by published rules.

Nothing here changes a plan. A suggestion is a published formula, applied to the plan's own sequence of depths and total
tokens; it names its source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raystage.models.shape import num_body_params
from raystage.plans.plan import Plan
from raystage.plans.stage import StagePlan
from raystage.reports.advice import G_STACK, grows
from raystage.reports.formats import format_layers
from raystage.units import TOKENS, format_count, format_share

# MIDAS leaves the exponent open. We chose 1: time in proportion to the number of the stage.
PROP_ALPHA = 1.0
MIDAS = "MIDAS (2409.19044)"
G_STACK_FACTOR = 4
G_STACK_SHARES = (0.02, 0.5)
G_STACK_PARAMS = (4e8, 7e9)


@dataclass(frozen=True)
class Suggestion:
    """Lengths for the stages of a plan by one rule, in whole optimizer steps.

    tokens: one length for each stage. notes: assumptions of the rule that the plan does not meet.
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
        """`KEY=VALUE` for `--set`. It replaces the whole of `until`, because a stage may count steps or FLOPs now."""
        return tuple(f"stages[{index}].until={{tokens: {tokens}}}" for index, tokens in enumerate(self.tokens))


def suggest(plan: Plan) -> tuple[Suggestion, ...]:
    """Lengths for the stages at the plan's own depths and total tokens, by `prop_alpha` and by `g_stack`.

    Empty where the rules say nothing (`why_nothing`). Stages of one depth share the tokens of that depth in their
    present proportions.
    """
    if why_nothing(plan):
        return ()
    phases = _phases(plan.staged.stages)
    return (_by_prop_alpha(plan, phases), _by_g_stack(plan, phases))


def why_nothing(plan: Plan) -> str | None:
    """What the plan has that the rules do not cover; None where they do."""
    stages = plan.staged.stages
    if any(stage.unit != TOKENS for stage in stages):
        return "the rules are for language models, and a stage counts samples"
    if any(stage.training.ramp for stage in stages):
        return "a stage has a ramp"
    if len(_phases(stages)) == 1:
        return "no stage grows"
    if len({stage.objective.name for stage in stages}) > 1:
        return "the rules are for one objective, and the stages have several"
    return None


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
    """The stages in groups of equal size."""
    groups: list[list[StagePlan]] = []
    for stage in stages:
        if not groups or grows(stage):
            groups.append([])
        groups[-1].append(stage)
    return tuple(map(tuple, groups))


def _by_prop_alpha(plan: Plan, phases: Sequence[Phase]) -> Suggestion:
    count, layers = len(phases), [phase[0].shape.num_layers for phase in phases]
    wanted = prop_alpha_tokens(plan.staged.duration, count)
    notes = [f"the exponent is {PROP_ALPHA:g}, raystage's choice: tokens in proportion to the stage's number"]
    if any(depth * count != layers[-1] * number for number, depth in enumerate(layers, 1)):
        shown = ", ".join(map(str, layers))
        notes.append(f"MIDAS grows by equal steps of {layers[-1] / count:.3g} layers; the depths here are {shown}")
    return _suggestion(plan, phases, "prop_alpha", wanted, f"{MIDAS}: T_i = T * i^a / sum(j^a)", notes)


def _by_g_stack(plan: Plan, phases: Sequence[Phase]) -> Suggestion:
    """The tokens before the last growth, shared among the earlier sizes in their present proportions."""
    total, params = plan.staged.duration, num_body_params(phases[-1][0].shape)
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
        notes.append(f"its factor is {G_STACK_FACTOR}; the last growth here is {source} -> {format_layers(target)}")
    return notes


def _suggestion(
    plan: Plan, phases: Sequence[Phase], rule: str, wanted: Sequence[float], source: str, notes: Sequence[str]
) -> Suggestion:
    spread = [
        tokens
        for phase, size in zip(phases, wanted, strict=True)
        for tokens in _in_proportion(size, [stage.duration for stage in phase])
    ]
    tokens = _whole_steps(plan.staged.stages, spread)
    per_token = [stage.unit_flops(stage.shape.context_length) for stage in plan.staged.stages]
    flops = sum(count * each for count, each in zip(tokens, per_token, strict=True))
    # With different batch sizes, whole steps may not add up to the exact total.
    scratch_flops = sum(tokens) * (plan.scratch_flops // plan.staged.duration)
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
    """The nearest whole steps of each stage, at least one. The last stage gets the rest of the total."""
    sizes = [stage.training.global_batch for stage in stages]
    tokens = [size * max(1, round(each / size)) for size, each in zip(sizes[:-1], wanted[:-1], strict=True)]
    left = sum(stage.duration for stage in stages) - sum(tokens)
    return (*tokens, sizes[-1] * max(1, round(left / sizes[-1])))


def _in_proportion(total: float, parts: Sequence[int]) -> list[float]:
    return [total * part / sum(parts) for part in parts]


def _tokens(phase: Phase) -> int:
    return sum(stage.duration for stage in phase)
