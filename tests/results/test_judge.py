"""Whether a finished stage is accepted. Figures are worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from factories import make_growth, make_record, make_schedule
from raystage.config.conditions import Accept
from raystage.planning.build import make_plan
from raystage.results.acceptance import judge
from raystage.results.record import Evaluation, StageRecord, TrainPoint


def accept(**written: object) -> Accept:
    return Accept.model_validate(written)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> StageRecord:
    """Ended at 2.2, with an accuracy of 0.45; its growth raised the loss by 0.5, moved logits by 3 and parted copies
    by 0.02."""
    stage = make_plan(make_schedule(tmp_path_factory.mktemp("texts"))).staged.stages[1]
    record = make_record(stage, 2.2)
    growth = make_growth(stage, 2.0, 2.5)
    growth = replace(growth, certificate=replace(growth.certificate, gradient_error=1e-4))
    return replace(record, growth=growth, evaluations=(replace(record.evaluations[0], accuracy=0.45),))


# --- the judgement ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "holds", "does_not", "said"),
    [
        ("eval_loss_below", 2.21, 2.2, "expected less than 2.2, found 2.2"),
        ("accuracy_above", 0.44, 0.45, "expected more than 0.45, found 0.45"),
        ("loss_increase_below", 0.51, 0.5, "expected less than 0.5, found 0.5"),
        ("max_logit_difference_below", 3.1, 2.9, "expected less than 2.9, found 3"),
        ("gradient_error_below", 1e-3, 1e-5, "expected less than 1e-05, found 0.0001"),
        ("twin_distance_above", 0.01, 0.02, "expected more than 0.02, found 0.02"),
    ],
)
def test_each_condition_is_held_against_its_figure(
    condition: str, holds: float, does_not: float, said: str, grown: StageRecord
) -> None:
    assert judge(accept(**{condition: holds}), grown) == ()
    assert judge(accept(**{condition: does_not}), grown) == (f"{condition}: {said}",)


def test_every_condition_that_does_not_hold_is_named(grown: StageRecord) -> None:
    asked = accept(eval_loss_below=2.0, accuracy_above=0.4, loss_increase_below=0.1, twin_distance_above=1e-6)
    assert [reason.split(":")[0] for reason in judge(asked, grown)] == ["eval_loss_below", "loss_increase_below"]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_what_is_no_number_does_not_hold(loss: float, grown: StageRecord) -> None:
    assert len(judge(accept(eval_loss_below=100), replace(grown, eval_loss=loss))) == 1


@pytest.mark.parametrize(
    ("condition", "missing", "said"),
    [
        ("accuracy_above", "evaluations", "expected more than 0.5, found none (it was not measured)"),
        ("gradient_error_below", "gradient_error",
         "expected less than 0.5, found none (the operator predicts no gradient exactly)"),
        ("twin_distance_above", "twin_distance", "expected more than 0.5, found none "
         "(the growth made no copies, or the stage ended before they were compared)"),
        ("loss_increase_below", "growth", "found none, the stage has no certificate of a growth"),
        ("twin_distance_above", "growth", "found none, the stage has no certificate of a growth"),
    ],
)  # fmt: skip
def test_what_was_not_measured_does_not_hold(condition: str, missing: str, said: str, grown: StageRecord) -> None:
    if missing == "growth":
        record = replace(grown, growth=None)
    elif missing == "evaluations":
        record = replace(grown, evaluations=(replace(grown.evaluations[0], accuracy=None),))
    else:
        certificate = replace(grown.growth.certificate, **{missing: None})
        record = replace(grown, growth=replace(grown.growth, certificate=certificate))
    assert judge(accept(**{condition: 0.5}), record) == (f"{condition}: {said}",)


def test_a_metric_of_the_schedule_must_end_within_its_bounds(grown: StageRecord) -> None:
    record = replace(grown, evaluations=(replace(grown.end, metrics={"f1": 0.4}),))
    assert judge(accept(metrics={"f1": {"above": 0.3, "below": 0.5}}), record) == ()
    assert judge(accept(metrics={"f1": {"above": 0.4}}), record) == (
        "metrics.f1.above: expected more than 0.4, found 0.4",
    )
    assert judge(accept(metrics={"other": {"below": -1}}), record) == (
        "metrics.other.below: expected less than -1, found none (it was not measured)",
    )


def test_accuracy_is_that_of_the_last_evaluation(grown: StageRecord) -> None:
    first, last = (replace(grown.evaluations[0], accuracy=value) for value in (0.9, 0.1))
    assert len(judge(accept(accuracy_above=0.5), replace(grown, evaluations=(first, last)))) == 1


# --- overfitting ------------------------------------------------------------------------------

OVERFITTING = accept(overfitting={"evaluations": 2})


def curves(record: StageRecord, held_out: tuple[float, ...], train: tuple[tuple[int, float], ...]) -> StageRecord:
    """Evaluated on entering at 1,000 tokens and every 100 after it; train: (tokens after the start, loss)."""
    return replace(
        record,
        evaluations=tuple(Evaluation(1000 + 100 * n, 0, 0, 0.0, loss) for n, loss in enumerate(held_out)),
        train=tuple(TrainPoint(1000 + tokens, 0, 0, 0.0, loss, 0.1, 1.0, 1.0) for tokens, loss in train),
    )


FALLING = ((100, 2.5), (200, 2.3), (300, 2.2), (400, 2.0))


@pytest.mark.parametrize(
    ("held_out", "train", "rejected"),
    [
        ((3.0, 2.8, 2.6, 2.7, 2.9), FALLING, True),
        ((3.0, 2.8, 2.6, 2.5, 2.9), FALLING, False),  # it rose once
        ((3.0, 2.8, 2.6, 2.6, 2.9), FALLING, False),
        ((3.0, 2.8, 2.6, 2.7, 2.9), ((100, 2.5), (200, 2.1), (300, 2.2), (400, 2.0)), False),  # training rose, too
        ((3.0, 2.8, 2.6, 2.7, 2.9), ((100, 2.5), (200, 2.3), (300, 2.2), (400, 2.2)), False),
        ((2.6, 2.6, 2.7, 2.9), ((100, 2.5), (200, 2.3), (300, 2.2)), True),  # the fewest that can tell
        ((3.0, 2.8, 2.6, math.nan, 2.9), FALLING, False),
        # Of the second 100, 90 tokens at 2.4 and 10 at 1.0 are 2.26; it falls from 2.3 over 2.26 to 2.2. Points that
        # all weighed the same would make it 1.7, and rise from there.
        ((3.0, 2.6, 2.7, 2.9), ((100, 2.3), (190, 2.4), (200, 1.0), (300, 2.2)), True),
        ((3.0, 2.6, 2.7, 2.9), ((100, 2.3), (200, 2.2)), False),  # nothing is known of the third 100
    ],
)
def test_overfitting(
    held_out: tuple[float, ...], train: tuple[tuple[int, float], ...], rejected: bool, grown: StageRecord
) -> None:
    assert bool(judge(OVERFITTING, curves(grown, held_out, train))) is rejected


def test_what_is_said_of_overfitting(grown: StageRecord) -> None:
    assert judge(OVERFITTING, curves(grown, (3.0, 2.8, 2.6, 2.7, 2.9), FALLING)) == (
        "overfitting: over the last 2 evaluations the held-out loss rose each time, from 2.6000 to 2.9000, "
        "while the training loss fell, from 2.3000 to 2.0000",
    )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_evaluations_show_nothing_and_so_are_rejected(count: int, grown: StageRecord) -> None:
    assert judge(OVERFITTING, curves(grown, (3.0, 2.6, 2.7)[:count], FALLING[:count])) == (
        f"overfitting: expected at least 4 evaluations, found {count}; evaluate more often, or remove it",
    )
