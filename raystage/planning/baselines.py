"""The baselines: the last stage's model from scratch, once for each budget.

They read the last stage's text, or the texts of all stages in their order, each over the same share of the run
(`baseline.data: staged`). Runs of several budgets share what they have in common: the part of a wsd rate that does not
depend on the budget, as far as they read the same text in it. Where the last stage ends with an average of its
checkpoints, so does every budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from raystage.config.schedule import Schedule
from raystage.config.training import Evaluate
from raystage.data.order.curriculum import CurriculumPlan
from raystage.data.plan import StageText
from raystage.errors import InputError
from raystage.models.shape import num_params
from raystage.planning.averaging import averaging_problem
from raystage.planning.chain import plan_stage, run_rate
from raystage.planning.draft import StageDraft
from raystage.planning.objective import alone
from raystage.planning.resolve import text_problem
from raystage.planning.training import baseline_stage
from raystage.plans import learning_rate
from raystage.plans.plan import RunPlan
from raystage.plans.stage import StagePlan

_DATA = "baseline.data"


@dataclass(frozen=True)
class _Text:
    """What is read up to a share of the run. stages: whose text it is, in the staged run. paced: the curriculum, with
    the share of the stage after which all of the text is read."""

    end: Fraction
    data: StageText
    stages: tuple[str, ...]
    paced: tuple[CurriculumPlan, Fraction] | None = None

    def curriculum(self, length: int) -> CurriculumPlan | None:
        """The curriculum over a text of so many tokens."""
        if self.paced is None:
            return None
        curriculum, share = self.paced
        return replace(curriculum, over_tokens=max(1, round(share * length)))


@dataclass(frozen=True)
class _Leg:
    """The same in a run of a certain length. end: in steps."""

    end: int
    data: StageText
    curriculum: CurriculumPlan | None


def plan_baselines(schedule: Schedule, stages: Sequence[StageDraft], evaluate: Evaluate) -> tuple[RunPlan, ...]:
    """The baselines of a schedule, the smallest budget first. evaluate: the evaluations of the last stage.

    Raises InputError where they do not fit the stages.
    """
    if schedule.baseline is None:
        return ()
    last = alone(baseline_stage(schedule, stages))
    last = replace(last, training=last.training.model_copy(update={"evaluate": evaluate}), curriculum=None)
    texts = _texts(schedule, stages, last)
    batch = last.training.global_batch
    budgets = schedule.baseline.budgets_of(num_params(last.shape))
    written = "budgets" if schedule.baseline.budgets else "budgets_per_parameter"
    lengths = [-(-budget // batch) for budget in budgets]
    runs: list[RunPlan] = []
    for index, steps in sorted(enumerate(lengths), key=lambda pair: pair[1]):
        key = f"baseline.{written}[{index}]"
        if steps in lengths[:index]:
            found = f"found {budgets[index]}, {steps} steps of {batch} {last.unit}, a second time"
            raise InputError(f"{found}; expected each budget once", key=key)
        runs.append(_baseline(last, _legs(texts, steps, batch, key), schedule.seed, runs, key))
    return tuple(runs)


def _baseline(last: StageDraft, legs: Sequence[_Leg], seed: int, earlier: Sequence[RunPlan], key: str) -> RunPlan:
    """The last stage's model from scratch, split where its text changes, and where smaller budgets leave the trunk that
    they share with it."""
    batch, steps = last.training.global_batch, legs[-1].end
    curve = run_rate(last.training, steps * batch, key)
    averaging = last.averaging
    # A stage that goes on begins with the model that the one before delivers, and that would be its average.
    shared = set() if averaging else _trunk_borders(curve, legs, earlier, batch)
    borders = {leg.end for leg in legs} | shared
    chain: list[StagePlan] = []
    for border in sorted(borders):
        begun = chain[-1].start_steps + chain[-1].steps if chain else 0
        leg = _read_at(legs, begun)
        stage = replace(
            last, data=leg.data, curriculum=leg.curriculum, averaging=averaging if border == steps else None
        )
        if stage.averaging and (problem := averaging_problem(averaging, border - begun, last.step_schedule, last.unit)):
            raise InputError(f"{problem}, or a larger budget", key=key)
        chain.append(
            plan_stage(
                stage, f"scratch-{border * batch}", chain[-1] if chain else None, curve, seed, border - begun,
                steps * batch, grows=False,
            )
        )  # fmt: skip
    return RunPlan(f"baseline-{steps * batch}", tuple(chain))


def _trunk_borders(
    curve: learning_rate.Curve, legs: Sequence[_Leg], earlier: Sequence[RunPlan], batch: int
) -> set[int]:
    """The steps at which to split the part that a longer run has in common.

    Where smaller budgets were split, as far as rate and text were the same up to there. And where the rate begins to
    depend on the budget, for larger budgets; they read the same up to there only if the text has not changed yet. The
    pace of a curriculum depends on the budget from its start.
    """
    trunk_end = learning_rate.stable_end(curve)
    if trunk_end is None:
        return set()
    ends = {
        stage.end
        for run in earlier
        for number, stage in enumerate(run.stages, start=1)
        if _reads(legs, run.stages[:number])
        and learning_rate.signature(stage.rate, 0, stage.end) == learning_rate.signature(curve, 0, stage.end)
    }
    if trunk_end <= legs[0].end * batch and legs[0].curriculum is None:
        ends.add(trunk_end)
    return {cut for cut in (end // batch for end in ends) if 0 < cut < legs[-1].end}


# --- what they read ---------------------------------------------------------------------------


def _texts(schedule: Schedule, stages: Sequence[StageDraft], last: StageDraft) -> tuple[_Text, ...]:
    """What a baseline reads: the text of the last stage, or those of all stages."""
    if schedule.baseline.data == "last":
        return (_Text(Fraction(1), last.data, (last.name,)),)
    total, end = sum(stage.duration for stage in stages), 0
    found: list[_Text] = []
    for stage in stages:
        end += stage.duration
        names, paced = (stage.name,), None
        if stage.curriculum is not None:
            _check_score(stage)
            paced = stage.curriculum, Fraction(stage.curriculum.over_tokens, stage.duration)
        elif found and found[-1].paced is None and _is_same(found[-1].data, stage.data):
            names = (*found.pop().stages, *names)
        found.append(_Text(Fraction(end, total), stage.data, names, paced))
    if len(found) > 1:
        for stage in stages:
            _check_readable(stage, last)
    return tuple(found)


def _check_score(stage: StageDraft) -> None:
    """Refuse an order that only a model of the staged run knows: its training is no part of a baseline's cost."""
    if stage.scorer is not None:
        problem = f"whose text is sorted by the loss under {stage.scorer.name!r}, a stage that no baseline has"
        raise InputError(f"found staged with stage {stage.name!r}, {problem}; expected data: last", key=_DATA)


def _check_readable(stage: StageDraft, last: StageDraft) -> None:
    """Refuse the text of a stage that the last stage's model could not be trained on as the last stage is."""
    problem = None
    if stage.until is not None:
        problem = "which may end early, so that its share of the run is not known; expected stages of fixed length"
    elif alone(stage).objective != last.objective:
        names = f"{alone(stage).objective.name} from its text, and the baseline {last.objective.name}"
        problem = f"which learns {names}; expected one objective for all stages"
    elif stage.within_documents != last.within_documents:
        problem = "whose window.mask is not the last stage's; expected the same in all stages"
    elif stage.data.tokenizer_fingerprint != last.data.tokenizer_fingerprint:
        problem = "whose text has another tokenizer than the last stage's; expected one for all stages"
    else:
        as_last = replace(last, data=stage.data)
        short = next(filter(None, (text_problem(as_last, part) for part in stage.data.parts)), None)
        problem = f"whose text does not fit the last stage's context: {short}" if short else None
    if problem:
        raise InputError(f"found staged with stage {stage.name!r}, {problem}, or data: last", key=_DATA)


def _legs(texts: Sequence[_Text], steps: int, batch: int, key: str) -> tuple[_Leg, ...]:
    """The texts in a run of so many steps: every text ends at the step nearest to its share."""
    legs: list[_Leg] = []
    for text in texts:
        end, begun = round(text.end * steps), legs[-1].end if legs else 0
        if end <= begun:
            of = " and ".join(text.stages)
            problem = f"found a budget of {steps} steps, of which the text of {of} gets none (data: staged)"
            raise InputError(f"{problem}; expected a larger budget", key=key)
        legs.append(_Leg(end, text.data, text.curriculum((end - begun) * batch)))
    return tuple(legs)


def _read_at(legs: Sequence[_Leg], step: int) -> _Leg:
    return next(leg for leg in legs if step < leg.end)


def _reads(legs: Sequence[_Leg], stages: Sequence[StagePlan]) -> bool:
    """Whether a run with these legs reads the same as stages that begin a run."""
    return all(
        stage.curriculum is None
        and stage.start_steps < legs[-1].end
        and _read_at(legs, stage.start_steps).curriculum is None
        and stage.start_steps + stage.steps <= _read_at(legs, stage.start_steps).end
        and _is_same(_read_at(legs, stage.start_steps).data, stage.data)
        for stage in stages
    )


def _is_same(one: StageText, other: StageText) -> bool:
    """Whether two stages read the same, by content. Mostly it is one object: a plan looks up every text once."""
    return one is other or one.facts() == other.facts()
