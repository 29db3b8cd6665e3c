"""What another attempt changes, and which gates are refused. Figures are worked out by hand."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from factories import make_schedule
from raystage.config.schedule import Schedule, parse
from raystage.errors import InputError
from raystage.planning.resolve import resolve
from raystage.plans.gates import check_gates, overridden, planned_retries

# --- another attempt --------------------------------------------------------------------------

WRITTEN: dict = {
    "name": "a",
    "seed": 7,
    "training": {"global_batch_tokens": 64, "optimizer": {"lr": "2e-3"}},
    "stages": [
        {"name": "small", "until": {"tokens": "1K"}, "seed": 40},
        {"name": "full", "until": {"tokens": 900}, "training": {"optimizer": {"weight_decay": 0.2}}},
    ],
}


@pytest.mark.parametrize(
    ("stage", "key", "value", "first", "second"),
    [
        (1, "training.optimizer.lr", "*0.5", 0.001, 0.0005),  # the file's
        (1, "training.optimizer.lr", "*0.1", 0.0002, 0.00002),  # as decimals
        (1, "training.optimizer.lr", "-1e-4", 0.0019, 0.0018),
        (1, "training.optimizer.lr", 5e-4, 5e-4, 5e-4),
        (1, "training.optimizer.weight_decay", "*2", 0.4, 0.8),  # the stage's own
        (1, "training.optimizer.momentum", "+0.02", 0.92, 0.94),  # the default
        (1, "training.optimizer.name", "sgd", "sgd", "sgd"),
        (1, "training.global_batch_tokens", "*2", 128, 256),
        (1, "seed", "+1", 8, 9),  # the file's
        (0, "seed", "-1", 39, 38),  # the stage's own
        (0, "until.tokens", "+1K", 2000, 3000),
        (0, "until.tokens", "*0.5", 500, 250),
        (0, "training.gradient_clipping", "*2", 2.0, 4.0),
        (0, "training.workers", "*1.5", 1.5, 2.25),  # for `parse` to refuse: nothing is rounded in silence
        (0, "data.path", "+texts", "+texts", "+texts"),  # not every text that begins so is a number's
        (0, "training.micro_batch_size", None, None, None),
    ],
)
def test_what_an_attempt_changes(stage: int, key: str, value: object, first: object, second: object) -> None:
    for number, expected in ((1, first), (2, second)):
        changed = overridden(WRITTEN, stage, {key: value}, number)
        place = changed["stages"][stage]
        for step in key.split("."):
            place = place[step]
        assert (place, type(place)) == (expected, type(expected))


def test_an_attempt_changes_nothing_else() -> None:
    before = copy.deepcopy(WRITTEN)
    changed = overridden(WRITTEN, 1, {"training.optimizer.lr": "*0.5", "seed": 3}, 1)
    assert before == WRITTEN
    assert changed["stages"][1].pop("seed") == 3
    assert changed["stages"][1]["training"]["optimizer"].pop("lr") == 0.001
    assert changed == before


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training.optimizer.name", "*2", "stages[1].training.optimizer.name: found '*2' for 'adamw', "
         "which is no number; expected a plain value"),
        ("training.micro_batch_size", "*2", "stages[1].training.micro_batch_size: found '*2' for nothing, "
         "which is no number; expected a plain value"),
        ("training.activation_checkpointing", "+1", "stages[1].training.activation_checkpointing: found '+1' for "
         "false, which is no number; expected a plain value"),
        ("until.tokens.more", 5, "stages[1].until.tokens.more: stages[1].until.tokens is the value 900; "
         "expected a mapping that 'more' can be set in"),
    ],
)  # fmt: skip
def test_what_no_attempt_can_change(key: str, value: object, said: str) -> None:
    with pytest.raises(InputError) as caught:
        overridden(WRITTEN, 1, {key: value}, 1)
    assert str(caught.value) == said


def gated(folder: Path, on_reject: object) -> Schedule:
    """2 layers, then 4, which are rejected unless they end below 2."""
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
        {"name": "full", "model": {"num_layers": 4}, "until": {"tokens": 1200}, "grow": {"operator": "stack"},
         "accept": {"eval_loss_below": 2}, "on_reject": on_reject},
    ]  # fmt: skip
    return make_schedule(folder, stages=stages)


def test_a_retry_changes_the_stage_and_a_rewind_the_one_it_goes_back_to(tmp_path: Path) -> None:
    change = {"times": 2, "set": {"training.optimizer.lr": "*0.5"}}

    def rates(on_reject: dict) -> list[tuple[int, list[float]]]:
        found = []
        for attempt in planned_retries(gated(tmp_path, on_reject)):
            stages = [attempt.schedule.resolved(index) for index in range(2)]
            found.append((attempt.number, [stage.training.optimizer.lr for stage in stages]))
        return found

    assert rates({"retry": change}) == [(1, [2e-3, 1e-3]), (2, [2e-3, 5e-4])]
    assert rates({"rewind": {"to": "small", **change}}) == [(1, [1e-3, 2e-3]), (2, [5e-4, 2e-3])]


@pytest.mark.parametrize("on_reject", ["abort", None, {"extend": {"tokens": "200K", "times": 3}}])
def test_where_nothing_is_set_there_is_no_other_schedule(on_reject: object, tmp_path: Path) -> None:
    assert list(planned_retries(gated(tmp_path, on_reject))) == []


@pytest.mark.parametrize(
    "on_reject",
    [
        "abort",
        {"extend": {"tokens": "200K", "times": 3}},
        {"rewind": {"to": "small", "set": {"training.optimizer.lr": 1e-3}}},
        {"retry": {"times": 2, "set": {"seed": "+1", "training.optimizer.lr": "*0.5"}}},
    ],
)
def test_a_schedule_s_content_makes_the_same_schedule(on_reject: object, tmp_path: Path) -> None:
    schedule = gated(tmp_path, on_reject)
    assert parse(schedule.content()) == schedule
    assert parse(schedule.model_dump(mode="json", by_alias=True)).stages == schedule.stages


def test_a_growth_from_init_has_no_certificate_to_ask_of() -> None:
    stage = {"name": "a", "until": {"steps": 1}, "grow": {"operator": "stack"}, "accept": {"twin_distance_above": 0}}
    with pytest.raises(InputError) as caught:
        check_gates(parse({"name": "a", "init": {"from": "my/llama"}, "stages": [stage]}))
    assert str(caught.value) == (
        "stages[0].accept.twin_distance_above: found in the first stage, whose growth from init has no certificate; "
        "remove it"
    )


def test_every_attempt_is_resolved_before_the_first_step(tmp_path: Path) -> None:
    """A batch of 100 tokens has 10 sequences: enough for 4 workers, not for 16."""
    schedule = gated(tmp_path, {"retry": {"times": 3, "set": {"training.workers": "*4"}}})
    with pytest.raises(InputError) as caught:
        resolve(schedule)
    assert str(caught.value) == (
        "stages[1].on_reject.retry.set: attempt 2 cannot be planned: stages[1].training.workers: found 16; "
        "expected at most one for each of a global batch's 10 sequences, or "
        "training.global_batch_tokens of at least 160"
    )
