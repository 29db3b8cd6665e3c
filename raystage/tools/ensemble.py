"""Several finished models as one, on this machine: `raystage ensemble`, and the ensembles of a run (`tools.measured`).

Every member answers every held-out sample. The ensemble's answer is the mean of their probabilities, or, where an image
is made, the mean of the images. Beside it stand each member, the model with the mean of their weights where all have
one shape, and what each costs. The result is kept beside the run (`storage.evaluations`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raystage.errors import InputError
from raystage.files.typed_json import finite
from raystage.growth.explain import head_in_words
from raystage.models.families import TRAINED
from raystage.objectives.judging import Scores, Tally, log_mean
from raystage.objectives.learner import Answer, HeldOut, Judge, Model
from raystage.objectives.metrics import MetricSums
from raystage.objectives.opening import open_judge
from raystage.plans.initial import unit_flops
from raystage.plans.plan import Plan
from raystage.plans.stage import StagePlan
from raystage.results.ledger import net_cost
from raystage.results.record import StageRecord
from raystage.results.report import Ensemble, EnsembleRow
from raystage.storage.averaging import Weights, averaged
from raystage.storage.huggingface import FolderWeights
from raystage.storage.store import Store
from raystage.tools.grow import Source, as_input_errors, open_source
from raystage.train.evaluation import combined
from raystage.train.teacher import frozen_model
from raystage.train.texts import EvaluationSet, open_held_out
from raystage.units import shown

CHECKPOINT = "CHECKPOINT"
PREDICTION, AVERAGE = "mean prediction", "mean weights"
# What has to be the same in two models that answer with the same choices.
_ANSWERS = ("head", "vocab_size", "num_classes", "image_size", "num_channels")


@dataclass(frozen=True)
class Member:
    """A model of the ensemble. name: as the user gave it, or that of its run."""

    name: str
    source: Source


# --- which models -----------------------------------------------------------------------------


def members_of(plan: Plan, named: Sequence[str], store: Store, stage: StagePlan) -> tuple[Member, ...]:
    """The models that are named; where none is, the members of the stage, or what the runs of all seeds of the plan end
    with.

    Raises InputError where there are fewer than two, or where one is not finished.
    """
    if named:
        return tuple(Member(one, open_source(one, store, CHECKPOINT)) for one in named)
    ensemble = plan.ensemble_of(stage.key)
    if ensemble is not None:
        return tuple(_finished(one.name, one, store, "members", "ensemble") for one in ensemble.members)
    runs = [plan.staged, *(one.staged for one in plan.further_seeds)]
    if len(runs) < 2:
        problem = "missing, and the schedule has one seed"
        expected = "expected two models or more, seeds: 2 or more, or a stage with ensemble"
        raise InputError(f"{problem}; {expected}", key=CHECKPOINT)
    return tuple(_finished(run.name, run.stages[-1], store, "runs of all seeds", "seeds") for run in runs)


def _finished(name: str, stage: StagePlan, store: Store, who: str, key: str) -> Member:
    """name: of the member, or of the run that ends with it. who: all members, in words. key: what asks for them."""
    if store.record(stage.key) is None:
        what = name if name == stage.name else f"the last stage of {name}"
        raise InputError(f"{what} is not finished; expected the {who} to be trained", key=key)
    return Member(name, open_source(stage.key, store, CHECKPOINT))


def check_members(members: Sequence[Member], stage: StagePlan) -> None:
    """Refuse models that cannot answer the held-out samples of a stage with the same choices. Raises InputError."""
    if len(members) < 2:
        raise InputError("found one model; expected two or more", key=CHECKPOINT)
    for one in members:
        shape, file = one.source.shape, one.source.uri
        if shape.family not in TRAINED:
            problem = f"found the family {shown(shape.family)}; expected one of {', '.join(TRAINED)}"
            raise InputError(problem, key=CHECKPOINT, file=file)
        if shape.head != stage.shape.head:
            problem = f"found a model for {head_in_words(shape)}; expected one for {head_in_words(stage.shape)}"
            raise InputError(f"{problem}, as stage {stage.name!r} has", key=CHECKPOINT, file=file)
        for name in _ANSWERS:
            if (found := getattr(shape, name)) != (expected := getattr(stage.shape, name)):
                problem = f"found {name} {shown(found)}; expected {shown(expected)}, as stage {stage.name!r} has"
                raise InputError(problem, key=CHECKPOINT, file=file)
        if shape.context_length < stage.shape.context_length:
            problem = f"found a context of {shape.context_length}; expected {stage.shape.context_length} or more"
            raise InputError(problem, key=CHECKPOINT, file=file)
        _check_tokens(one, stage)


def _check_tokens(member: Member, stage: StagePlan) -> None:
    """Refuse a checkpoint that was trained with another tokenizer, as far as that is known."""
    if not member.source.is_checkpoint or stage.data.samples is not None:
        return
    known = member.source.model.manifest.data_cursor.get("tokenizer_fingerprint")
    if known not in (None, stage.data.tokenizer_fingerprint):
        problem = f"found a model that was trained with another tokenizer than that of stage {stage.name!r}"
        raise InputError(f"{problem}; expected the same", key=CHECKPOINT, file=member.source.uri)


# --- measuring --------------------------------------------------------------------------------


def measure(stage: StagePlan, members: Sequence[Member], store: Store, name: str = "") -> Ensemble:
    """The members, their mean prediction and their mean weights on the held-out samples of `stage`, by its objective.

    Holds all members in memory at once. name: of the result, the stage's unless given. Raises InputError.
    """
    check_members(members, stage)
    began = time.monotonic()
    alike = all(one.source.shape == members[0].source.shape for one in members)
    with as_input_errors(CHECKPOINT), torch.no_grad(), ExitStack() as opened:
        sources = [opened.enter_context(closing(_weights(one.source))) for one in members]
        models = [frozen_model(one.source.shape, source, torch.float32)
                  for one, source in zip(members, sources, strict=True)]  # fmt: skip
        means = [frozen_model(members[0].source.shape, _Mean(sources), torch.float32)] if alike else []
    scores = evaluate(stage, [*models, *means], len(models))
    rows = [_member_row(*pair, stage, store) for pair in zip(members, scores, strict=False)]
    together = _flops_of([one.source.stage_key for one in members], store)
    forward = sum(row.forward_flops for row in rows)
    weights = [_row(AVERAGE, None, scores[len(models)], together, rows[0].forward_flops)] if alike else [None]
    return finite(
        Ensemble(
            name=name or stage.name,
            stage=stage.name,
            key=stage.key,
            members=tuple(rows),
            prediction=_row(PREDICTION, None, scores[-1], together, forward),
            weights=weights[0],
            seconds=time.monotonic() - began,
            unit=stage.unit,
            loss_unit=stage.objective.judge.loss_unit,
        )
    )


def evaluate(stage: StagePlan, models: Sequence[Model], combine: int) -> list[Scores]:
    """The scores of each model on the held-out samples of a stage, and last those of the first `combine` together."""
    judge, sets = open_judge(stage.objective), open_held_out(stage)
    by_set = [_scores_on(one.held_out, judge, models, combine, stage.training.micro_batch_size) for one in sets]
    return [_over_sets(judge, sets, found) for found in zip(*by_set, strict=True)]


def _over_sets(judge: Judge, sets: Sequence[EvaluationSet], found: Sequence[Scores]) -> Scores:
    return found[0] if len(found) == 1 else combined(judge, sets, found)


@torch.no_grad()
def _scores_on(held_out: HeldOut, judge: Judge, models: Sequence[Model], combine: int, micro: int) -> list[Scores]:
    tallies = [Tally(judge, held_out, 0, MetricSums(())) for _ in range(len(models) + 1)]
    for start in range(0, held_out.count, micro):
        arrays = judge.batch(held_out, start, min(micro, held_out.count - start), held_out.length)
        batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
        answers = [judge.answer(model, batch) for model in models]
        answers.append(mean_answer(answers[:combine]))
        for tally, answer in zip(tallies, answers, strict=True):
            tally.add(batch, answer, 1.0)
    return [tally.scores() for tally in tallies]


def mean_answer(answers: Sequence[Answer]) -> Answer:
    """What several models say together of one batch: the logarithms of the means of their probabilities as scores, or,
    where an image is made, the mean of the images."""
    targets = answers[0].targets
    if targets.is_floating_point():
        return Answer(torch.stack([one.outputs for one in answers]).mean(0), targets)
    return Answer(log_mean([one.outputs for one in answers]), targets)


@dataclass(frozen=True)
class _Mean:
    """The mean of the weights of several models, to read slices of."""

    sources: Sequence[Weights]

    def read(self, parameter: str, state: str, start: int, stop: int) -> np.ndarray:
        return averaged(self.sources, (1 / len(self.sources),) * len(self.sources), parameter, start, stop)


def _weights(source: Source) -> Any:
    return source.model if source.is_checkpoint else FolderWeights(source.model)


# --- what it costs ----------------------------------------------------------------------------


def _member_row(member: Member, scores: Scores, stage: StagePlan, store: Store) -> EnsembleRow:
    key, length = member.source.stage_key, stage.shape.context_length
    forward = unit_flops(member.source.shape, None, length, stage.unit) // 3
    return _row(member.name, key, scores, _flops_of([key], store), forward)


def _row(name: str, key: str | None, scores: Scores, training: int | None, forward: int) -> EnsembleRow:
    return EnsembleRow(
        name=name, key=key, eval_loss=scores.loss, accuracy=scores.figures.accuracy, training_flops=training,
        forward_flops=forward,
    )  # fmt: skip


def _flops_of(keys: Sequence[str | None], store: Store) -> int | None:
    """What it took to train these stages with all stages before them, each counted once; None where that is not known:
    of a model that is no stage of the store."""
    records: dict[str, StageRecord] = {}
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key in records:
            continue
        record = store.readable_record(key) if key else None
        if record is None:
            return None
        records[key] = record
        prefix = record.prefix and store.readable_record(record.prefix.key)
        waiting += [one for one in (record.parent_key, prefix and prefix.key) if one]
    return net_cost(records.values()).flops
