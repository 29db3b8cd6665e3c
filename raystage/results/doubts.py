"""What makes a comparison open to doubt, in sentences that stand beside its figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raystage.plans import learning_rate
from raystage.plans.cadence import AMOUNTS
from raystage.plans.keys import ended_after
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.comparison import finished_run, length_per_parameter
from raystage.results.data.data_use import Counted, uses
from raystage.results.data.data_warnings import repeat_doubts
from raystage.results.differences import differences, other_text, speed_differences
from raystage.results.interpolation import is_convex
from raystage.results.record import StageRecord
from raystage.results.savings import Savings
from raystage.results.tuning import ENOUGH_VALUES, choose, compared, edges, is_judged_on_half, tried
from raystage.units import TOKENS

# A rate that ends above a tenth of its peak is not decayed; a tenth is Chinchilla's (2203.15556, section 3.1).
_DECAYED_RATIO = 0.1
# From the protocol: with fewer budgets the interpolation decides too much.
_ENOUGH_BUDGETS = 3
_ENOUGH_SEEDS = 3
_BENT = (
    "The baseline's loss does not fall ever slower from budget to budget: noise is as large as its bend, or its "
    "smallest budgets are too short. So what lies between two budgets is less certain than it is taken for."
)
_SAME_TEXT = (
    "Values are chosen by the text that they are compared on, for stages of an older version of raystage, or evaluated "
    "on a single sequence, do not tell its halves apart: the best of several looks better than it is."
)
_RATE = "training.optimizer.lr"
# Below compute-optimal training, growing gains most (Chinchilla's 20; 2605.13405).
_OPTIMAL_TOKENS_PER_PARAMETER = 20


def doubts(
    plan: Plan, records: Mapping[str, StageRecord], savings: Savings, given_up: Sequence[StagePlan] = ()
) -> tuple[str, ...]:
    """Sentences on what makes the comparison, or without one the losses, open to doubt."""
    if not plan.baselines:
        return tuple(doubt for doubt in (_init_doubt(plan), *_repeat_doubts(plan, records)) if doubt)
    scheduled, plan = plan, compared(plan, records)
    found = (
        _seeds_doubt(scheduled),
        *_tuning_doubts(scheduled, records),
        _effort_doubt(plan, given_up),
        _decay_doubt("staged run", plan.staged),
        *(_decay_doubt("baseline", run) for run in plan.baselines),
        _budgets_doubt(plan),
        _length_doubt(plan),
        _head_start_doubt(plan),
        *_difference_doubts(plan),
        _data_doubt(plan),
        _init_doubt(plan),
        *_repeat_doubts(plan, records),
        _held_out_doubt(plan, records),
        _evaluation_doubt(plan, records),
        _workers_doubt(plan, records),
        *_speed_doubts(plan, records),
        _order_doubt(plan, records),
        *_range_doubts(savings),
    )
    return tuple(dict.fromkeys(doubt for doubt in found if doubt))


def _seeds_doubt(plan: Plan) -> str | None:
    count = 1 + len(plan.further_seeds)
    if count >= _ENOUGH_SEEDS:
        return None
    if count > 1:
        return f"Only {count} seeds: an interval over fewer than {_ENOUGH_SEEDS} says little."
    seed = plan.baselines[-1].stages[-1].seed
    return (
        f"One seed ({seed}): how far the figure moves from seed to seed is not known; "
        f"three seeds or more give an interval."
    )


def _tuning_doubts(plan: Plan, records: Mapping[str, StageRecord]) -> list[str]:
    """About values that are tuned too coarsely, and about a rate that is not tuned. plan: as the schedule has it."""
    found = _untuned_doubts(plan)
    few = [path for path, _ in plan.values if len(tried(plan, path)) < ENOUGH_VALUES]
    found += [
        f"Only {len(tried(plan, path))} value{'s' if len(tried(plan, path)) > 1 else ''} of {path} tried: fewer than "
        f"{ENOUGH_VALUES} do not enclose the best one."
        for path in few
    ]
    choice = choose(plan, records) if plan.variants else None
    if choice is None:
        return found
    for side, chosen in (("staged run", (choice.staged,)), ("baseline", choice.baseline)):
        at_edge = [(path, dict(values)[path]) for values in dict.fromkeys(chosen) for path in edges(plan, values)]
        found += [_edge_doubt(side, path, value) for path, value in at_edge if path not in few]
    return found if is_judged_on_half(plan, records) else [*found, _SAME_TEXT]


def _untuned_doubts(plan: Plan) -> list[str]:
    """About the rate and the batch, which matter most, with what the schedule says about where they come from."""
    last, tuned = plan.baselines[-1].stages[-1], dict(plan.values)
    training = last.training
    rate, batch = f"{training.optimizer.lr:g}", f"{training.global_batch} {last.unit}"
    untuned = [(_RATE, f"learning rate ({rate})"), (f"training.global_batch_{last.unit}", f"batch ({batch})")]
    names = [name for path, name in untuned if path not in tuned]
    if plan.values_from and names:
        verb = "were" if len(names) > 1 else "was"
        found = f"The baseline's {' and '.join(names)} {verb} found outside of this run: {plan.values_from}"
        return [found if found.endswith(".") else f"{found}."]
    of_rate = (
        f"One learning rate ({rate}): the baseline's rate is not tuned, "
        f"and a baseline at the wrong rate makes the saving look larger."
    )
    of_batch = f"One batch ({batch}): with another the baseline may be better, and the saving smaller."
    return [doubt for path, doubt in ((_RATE, of_rate), (untuned[1][0], of_batch)) if path not in tuned]


def _edge_doubt(side: str, path: str, value: float) -> str:
    effect = "look larger" if side == "baseline" else "look smaller"
    return (
        f"The {side}'s best {path}, {value:g}, lies at the edge of what was tried: a better one may lie beyond it, "
        f"without which the saving may {effect}."
    )


def _effort_doubt(plan: Plan, given_up: Sequence[StagePlan]) -> str | None:
    """The staged run may have been tried at several rates, through `on_reject`."""
    by_stage: dict[str, set[float]] = {}
    for stage in (*plan.staged.stages, *given_up):
        by_stage.setdefault(stage.name, set()).add(stage.training.optimizer.lr)
    most = max(len(rates_of_stage) for rates_of_stage in by_stage.values())
    if most == 1:
        return None
    return (
        f"The baseline is tuned less than the staged run, which was tried at {most} learning rates, and the baseline "
        f"at one: part of what is saved may be the better rate's."
    )


def _decay_doubt(side: str, run: RunPlan) -> str | None:
    last = run.stages[-1]
    if last.averaging:  # which stands for a decay (2507.17634)
        return None
    peak = max(max(piece.start_lr, piece.end_lr) for piece in last.rate)
    ratio = learning_rate.rate_at(last.rate, last.end) / peak
    if ratio <= _DECAYED_RATIO * (1 + 1e-9):
        return None
    return (
        f"The {side}'s rate is not decayed: it ends at {ratio:.0%} of its peak under the "
        f"{last.training.lr_schedule.kind} schedule, so its final loss is not what its budget can reach."
    )


def _budgets_doubt(plan: Plan) -> str | None:
    count = len(plan.baselines)
    if count >= _ENOUGH_BUDGETS:
        return None
    return (
        f"Only {count} baseline budget{'s' if count > 1 else ''}: fewer than {_ENOUGH_BUDGETS} do not show how the "
        f"baseline's loss bends between them."
    )


def _length_doubt(plan: Plan) -> str | None:
    ratio = length_per_parameter(plan.staged)
    if plan.staged.unit != TOKENS or ratio >= _OPTIMAL_TOKENS_PER_PARAMETER:  # the rule is one of language models
        return None
    return (
        f"Short training, {ratio:.3g} tokens per parameter: below {_OPTIMAL_TOKENS_PER_PARAMETER} the gains of "
        f"growing are at their largest, and longer training is likely to save less."
    )


def _head_start_doubt(plan: Plan) -> str | None:
    init = plan.staged.stages[0].init
    if init is None:
        return None
    return (
        f"The staged run starts from a trained model ({init.path}), whose compute is not counted, "
        f"and the baseline from nothing."
    )


def _difference_doubts(plan: Plan) -> list[str]:
    """About what the loss depends on beside the model and the text."""
    return [f"Not trained alike: {found}. Part of the difference may come from that." for found in differences(plan)]


def _data_doubt(plan: Plan) -> str | None:
    stages = other_text(plan)
    if not stages:
        return None
    where = f"stage{'s' if len(stages) > 1 else ''} {', '.join(stages)} of the staged run"
    return (
        f"Not the same text: {where} read other data than the baseline, so more than growing differs. With "
        f"baseline.data: staged the baseline reads them, too."
    )


def _init_doubt(plan: Plan) -> str | None:
    init = plan.staged.stages[0].init
    if init is None or init.trained_on.is_whole:
        return None
    return "It is not known what text the model in init was trained on: held-out text may be among it."


def _repeat_doubts(plan: Plan, records: Mapping[str, StageRecord]) -> list[str]:
    counted = (use.counted for use in uses(plan.staged, records))
    return [f"Text that was trained on is held out: the data {text}." for text in repeat_doubts(counted)]


def _held_out_doubt(plan: Plan, records: Mapping[str, StageRecord]) -> str | None:
    last = plan.staged.stages[-1]
    amount, counted = last.training.evaluate.amount, Counted.of_record(records.get(last.key))
    fewest, what = AMOUNTS[last.unit].fewest, "text" if last.unit == TOKENS else "data"
    if counted is not None:
        amount = min(amount, counted.held_out_amount)
    if amount >= fewest:
        return None
    return (
        f"Little held-out {what}: losses are of {amount:,} {last.unit}, and of fewer than {fewest:,} their difference "
        f"may be chance."
    )


def _evaluation_doubt(plan: Plan, records: Mapping[str, StageRecord]) -> str | None:
    """A stage that ended early, or that has another batch, may have been evaluated on less text."""
    counts = sorted({_evaluated_on(run.stages[-1], records) for run in (plan.staged, *plan.baselines)})
    if len(counts) == 1:
        return None
    unit, amounts = plan.staged.unit, " and ".join(f"{count:,}" for count in counts)
    return f"Not judged on as much held-out text: {amounts} {unit}. Set training.evaluate.{unit} to have one size."


def _evaluated_on(stage: StagePlan, records: Mapping[str, StageRecord]) -> int:
    record = records.get(stage.key)
    ended = ended_after(stage, record.steps) if record and record.steps < stage.steps else stage
    return ended.training.evaluate.amount


def _workers_doubt(plan: Plan, records: Mapping[str, StageRecord]) -> str | None:
    stages = [stage for run in plan.compared_runs() for stage in run.stages]
    counts = sorted({records[stage.key].num_workers for stage in stages if stage.key in records})
    if any(records[stage.key].resizes for stage in stages if stage.key in records):
        return "Workers came and went within a stage: time_saved compares wall-clock, not worker-seconds."
    if len(counts) == 1:
        return None
    return (
        f"Not the same machines throughout ({' and '.join(map(str, counts))} workers): "
        f"time_saved compares wall-clock, not worker-seconds."
    )


def _speed_doubts(plan: Plan, records: Mapping[str, StageRecord]) -> list[str]:
    """About what makes one side faster and not better."""
    found = [f"Not run alike: {one}. So time_saved is not that of growing alone." for one in speed_differences(plan)]
    devices = {records[key].environment.get("device") for key in plan.stages_by_key() if key in records} - {None}
    if len(devices) > 1:
        found.append(f"Not the same machines throughout ({' and '.join(sorted(devices))}): time_saved compares them.")
    return found


def _order_doubt(plan: Plan, records: Mapping[str, StageRecord]) -> str | None:
    on_half = is_judged_on_half(plan, records)
    runs = [finished_run(run, records, on_half) for run in plan.baselines]
    points = [(run.flops, run.eval_loss) for run in runs if run is not None and math.isfinite(run.eval_loss)]
    losses = [loss for _, loss in points]
    if losses == sorted(losses, reverse=True):
        return None if is_convex(points) else _BENT
    return (
        "The baseline's loss does not fall with every larger budget: noise is as large as the difference "
        "between budgets, and the cheapest budget that reaches the loss counts."
    )


def _range_doubts(savings: Savings) -> tuple[str | None, str | None]:
    """About the budgets of a comparison at equal FLOPs."""
    if not savings.at_equal_flops:
        return None, None
    beyond = f"No figure at equal loss: {savings.verdict.removeprefix('no saving to report: ')}."
    no_difference = f"{savings.at_equal_flops[0].upper()}{savings.at_equal_flops[1:]}."
    return (
        None if savings.equal_loss_reached else beyond,
        no_difference if savings.loss_difference_at_equal_flops is None else None,
    )
