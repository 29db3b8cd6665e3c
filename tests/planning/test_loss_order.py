"""A curriculum by the loss under an earlier stage, as planned: its key, what it costs, and what is refused."""

from __future__ import annotations

import contextlib
import io
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mixtures import NAMES, WINDOW, mixed_schedule, mixture, write_texts
from rich.console import Console

from factories import make_schedule, save_words
from raystage.cli.views.plan_json import plan_json
from raystage.config.schedule import Schedule, parse
from raystage.errors import InputError
from raystage.models.shape import flops_per_token
from raystage.planning.build import make_plan
from raystage.planning.inputs import Sources
from raystage.plans.plan import RunPlan
from raystage.plans.stage import StagePlan
from raystage.reports.plan_tables import plan_table
from raystage.results.data.mixtures import order_lines
from raystage.units import format_bytes, format_share

BY_SMALL = {"by": {"loss": "small"}}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    return tmp_path / "text"


def sorted_after(text: Path, *curricula: dict | None, small: dict | None = None, **changes: object) -> Schedule:
    """The stage `small`, a larger one with the first curriculum, and stages s1, s2, ... of its size with the others."""
    first = {"name": "small", "model": {"num_layers": 1}, "until": {"tokens": 400}, **(small or {})}
    others = [
        {"name": f"s{index}", "model": {"num_layers": 2}, "until": {"tokens": 800}, "data": {"curriculum": one}}
        for index, one in enumerate(curricula)
    ]
    others[0] |= {"grow": {"operator": "stack"}}
    return make_schedule(text, **{"stages": [first, *others], "baseline": None, **changes})


def shown(schedule: Schedule) -> str:
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(plan_table(make_plan(schedule)))
    return " ".join(console.export_text().split())


def staged(schedule: Schedule) -> tuple[StagePlan, ...]:
    return make_plan(schedule).staged.stages


# --- what it is -----------------------------------------------------------------------------------


def test_the_key_has_that_of_the_stage_that_scores_and_not_its_name(text: Path) -> None:
    small, grown = staged(sorted_after(text, BY_SMALL))
    assert grown.curriculum.facts()["model"] == {"stage": small.key}
    assert grown.scorer.shape == small.shape
    named = {"by": {"loss": "first"}}
    assert staged(sorted_after(text, named, small={"name": "first"}))[1].key == grown.key
    others = [{"from": "hard", **BY_SMALL}, {}, {"by": {"loss": "small"}, "start": 0.3}, None]
    keys = [staged(sorted_after(text, one))[1].key for one in others]
    assert len({grown.key, *keys}) == len(keys) + 1


def test_another_model_is_another_order(text: Path) -> None:
    """With another seed the model that scores is another one, and so are the names of what is read."""
    one, other = (staged(sorted_after(text, BY_SMALL, seed=seed))[1] for seed in (1, 2))
    assert one.reading.shares != other.reading.shares
    assert {one.curriculum.order, replace(one.curriculum, is_hard_first=True).order} != {other.curriculum.order}


def test_the_stage_before_is_not_changed_by_it(text: Path) -> None:
    assert staged(sorted_after(text, BY_SMALL))[0] == staged(sorted_after(text, None))[0]


def test_later_stages_read_on_in_the_order(text: Path) -> None:
    small, sorted_one, on, hard = staged(sorted_after(text, BY_SMALL, None, {"from": "hard", **BY_SMALL}))
    assert on.reading.shares == sorted_one.reading.shares != hard.reading.shares
    assert [stage.scorers for stage in (small, sorted_one, on, hard)] == [(), *[sorted_one.scorers] * 3]
    assert on.scorer is None
    assert hard.scorer == sorted_one.scorer


def test_a_model_that_a_stage_delivers_decays_in_its_order(text: Path) -> None:
    constant = {"lr_schedule": {"kind": "constant", "warmup": 100}}
    schedule = sorted_after(text, BY_SMALL, training=constant).content()
    schedule["stages"][1]["deliver"] = {"decay": 400}
    plan = make_plan(parse(schedule))
    sorted_one, decay = plan.staged.stages[-1], plan.deliveries[0].run.stages[-1]
    assert decay.scorers == sorted_one.scorers
    assert decay.reading.shares == sorted_one.reading.shares
    assert decay.scoring_flops == 0


# --- what it costs --------------------------------------------------------------------------------


def test_scoring_is_a_forward_pass_over_all_documents_once(text: Path) -> None:
    small, grown, on, hard = staged(sorted_after(text, BY_SMALL, None, {"from": "hard", **BY_SMALL}))
    tokens = grown.data.train_tokens
    assert tokens == sum(len(path.read_bytes()) + 1 for path in text.iterdir()) - grown.data.held_out_tokens
    assert grown.scoring_flops == tokens * (flops_per_token(small.shape) // 3)
    assert [stage.scoring_flops for stage in (small, on, hard)] == [0, 0, 0]  # the losses are known by then
    plain = staged(sorted_after(text, None))[1]
    assert grown.flops - plain.flops == grown.scoring_flops
    assert (grown.training_flops, grown.steps) == (plain.training_flops, plain.steps)
    assert on.start_flops == grown.end_flops


def test_of_a_mixture_only_sources_with_a_weight_are_scored_and_each_once(tmp_path: Path) -> None:
    write_texts(tmp_path)
    stages = [
        {"name": "small", "until": {"tokens": 320}, "data": mixture(tmp_path, a=0.5, b=0.5)},
        {"name": "s0", "until": {"tokens": 320}, "data": {**mixture(tmp_path, a=1, b=0), "curriculum": BY_SMALL}},
        {"name": "s1", "until": {"tokens": 320}, "data": {**mixture(tmp_path, a=0.5, c=0.5), "curriculum": BY_SMALL}},
        {"name": "s2", "until": {"tokens": 320},
         "data": {**mixture(tmp_path, a=1), "curriculum": {"by": {"loss": "s0"}}}},
    ]  # fmt: skip
    found = staged(mixed_schedule(tmp_path, stages))
    assert [[part.name for part in stage.scored] for stage in found] == [[], ["a"], ["c"], ["a"]]


def test_tokens_that_no_plan_knows_are_estimated_the_same_everywhere(tmp_path: Path, text: Path) -> None:
    words = save_words(tmp_path / "words", "document", *map(str, range(12)))
    schedule = sorted_after(text, BY_SMALL, data={"tokenizer": str(words)})
    grown = staged(schedule)[1]
    size = grown.data.train
    assert grown.data.train_tokens is None
    assert grown.scoring_tokens == size.num_bytes // 4 + size.documents
    assert "s0 scores about" in shown(schedule)


def test_a_plan_says_what_is_scored(text: Path) -> None:
    schedule = sorted_after(text, BY_SMALL)
    plan, said = make_plan(schedule), shown(schedule)
    small, grown = plan.staged.stages
    share, size = format_share(grown.scoring_flops / grown.flops), format_bytes(4 * small.num_params)
    assert f"s0 scores {grown.scoring_tokens} tokens of documents under small before it trains: {share} of its" in said
    assert f"with all weights on every worker ({size})" in said
    assert order_lines(plan.staged)[0].startswith("Order of s0: documents by their loss under small, the lowest first")
    told = plan_json(plan)["stages"]
    assert told[1]["scoring"] == {"name": "small", "tokens": grown.scoring_tokens, "flops": grown.scoring_flops}
    assert told[1]["curriculum"]["model"] == {"stage": small.key}
    assert "scoring" not in told[0]


# --- baselines ------------------------------------------------------------------------------------


def test_a_baseline_reads_shuffled_text_and_scores_nothing(text: Path) -> None:
    plan = make_plan(sorted_after(text, BY_SMALL, baseline={"budgets": [800]}))
    shuffled = make_plan(sorted_after(text, None, baseline={"budgets": [800]}))
    assert plan.baselines == shuffled.baselines
    assert all(stage.scoring_flops == 0 and not stage.scorers for run in plan.baselines for stage in run.stages)


def test_a_baseline_cannot_read_in_the_order_of_a_stage_that_it_does_not_have(text: Path) -> None:
    said = r"^baseline\.data: found staged with stage 's0', whose text is sorted by the loss under 'small', a stage th"
    with pytest.raises(InputError, match=said):
        make_plan(sorted_after(text, BY_SMALL, baseline={"budgets": [800], "data": "staged"}))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smal", "found 'smal', which is no stage; expected an earlier stage (small)"),
        ("s0", "found 's0', the stage itself; expected an earlier stage (small)"),
        ("s1", "found 's1', a later stage; expected an earlier stage (small)"),
    ],
)
def test_what_is_no_earlier_stage_is_refused(text: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"stages[1].data.curriculum.by.loss: {said}")):
        make_plan(sorted_after(text, {"by": {"loss": name}}, None))


def test_the_first_stage_has_nothing_to_be_scored_by(text: Path) -> None:
    said = r"^data\.curriculum\.by\.loss: found 's0', a later stage; expected it in a stage after the first one"
    with pytest.raises(InputError, match=said):
        make_plan(sorted_after(text, None, data={"curriculum": {"by": {"loss": "s0"}}}))


def test_a_model_that_does_not_learn_the_next_token_is_refused(text: Path) -> None:
    bert = {"model": {"family": "bert", "num_layers": 1}, "objective": {"name": "masked_lm"}}
    schedule = sorted_after(text, {"by": {"loss": "masked"}}).content()
    schedule["stages"].insert(0, {"name": "masked", "until": {"tokens": 400}, **bert})
    schedule["stages"] = [schedule["stages"][0], {**schedule["stages"][2], **bert}]
    del schedule["stages"][1]["grow"]
    said = r"by\.loss: found 'masked', a bert; expected a model that learns the next token"
    with pytest.raises(InputError, match=said):
        make_plan(parse(schedule))


def test_a_stage_with_another_tokenizer_is_refused(tmp_path: Path, text: Path) -> None:
    words = str(save_words(tmp_path / "words", "document", *map(str, range(12))))
    model = {"num_layers": 2, "vocab_size": 300}
    schedule = sorted_after(text, BY_SMALL, data={"tokenizer": words}, model={"vocab_size": 300}).content()
    schedule["stages"][0]["data"] = {"tokenizer": "bytes"}
    schedule["stages"][1]["model"] = model
    said = r"by\.loss: found 'small', which was trained with another tokenizer than .*; expected the same, for its loss"
    with pytest.raises(InputError, match=said):
        make_plan(parse(schedule))


# --- the law: every source is read on and on ------------------------------------------------------


def random_run(folder: Path, rng: random.Random) -> list[dict[str, Any]]:
    """Mixtures at random after a first stage, in the order of curricula by the loss or the length, or shuffled."""
    stages: list[dict[str, Any]] = []
    for index in range(rng.randint(3, 6)):
        names = rng.sample(NAMES, rng.randint(1, len(NAMES)))
        weights = dict.fromkeys(names[:-1], 0.25) | {names[-1]: "rest"}
        by = rng.choice([None, None, "length", *({"loss": one["name"]} for one in stages)])
        data = mixture(folder, **weights) | ({"curriculum": {"by": by, "start": 0.3}} if by and index else {})
        batch = WINDOW * rng.randint(1, 6)
        stages.append({"name": f"s{index}", "until": {"tokens": rng.randint(batch, 900)}, "data": data})
        stages[-1]["training"] = {"global_batch_tokens": batch}
        stages[-1]["model"] = {"context_length": WINDOW}
    return stages


def random_runs(folder: Path, seed: int) -> Iterator[RunPlan]:
    sources, rng = Sources(), random.Random(seed)
    for _ in range(60):
        with contextlib.suppress(InputError):
            yield make_plan(mixed_schedule(folder, random_run(folder, rng)), sources=sources).staged


def test_every_order_of_every_source_is_read_window_after_window(tmp_path: Path) -> None:
    """Each of its own windows once, in a row, whatever is read in between; so its pool gives none twice."""
    write_texts(tmp_path)
    count = 0
    for run in random_runs(tmp_path, 3):
        reached: dict[str, int] = {}
        for stage in run.stages:
            first, last = stage.start // WINDOW, -(-stage.end // WINDOW)
            for number in range(first, last):
                name, index = stage.reading.at(number)
                assert index == reached.get(name, 0)
                reached[name] = index + 1
            for name, paces in stage.paces.items():
                assert [pace.first for pace in paces] == sorted(pace.first for pace in paces)
                assert paces[-1].first <= reached.get(name, 0)
        count += sum(stage.scorer is not None for stage in run.stages)
    assert count > 30
