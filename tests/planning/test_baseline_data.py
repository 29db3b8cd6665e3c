"""What baselines read where the stages read different texts: `baseline: {data: last | staged}`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mixtures import mixed_schedule, mixture, write_texts

from changing_texts import changing_plan, write_named_texts
from factories import make_schedule, write_documents
from raystage.cli.main import main
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan, RunPlan
from raystage.results.data.data_use import amounts_read
from raystage.results.differences import baseline_reads, is_staged, other_text


def read_by(run: RunPlan) -> list[tuple[str, int]]:
    """What a run reads, in order: the last letter of the path of its text, and so many tokens."""
    found: list[tuple[str, int]] = []
    for stage in run.stages:
        name = Path(stage.data.path[0]).name
        before = found.pop()[1] if found and found[-1][0] == name else 0
        found.append((name, before + stage.duration))
    return found


def test_by_default_a_baseline_reads_the_last_text(tmp_path: Path) -> None:
    plan = changing_plan(tmp_path, None)
    assert [read_by(run) for run in plan.baselines] == [[("b", 1000)], [("b", 1500)], [("b", 2000)]]
    assert baseline_reads(plan) == "last"
    assert other_text(plan) == ["a0"]
    assert [stage.key for run in changing_plan(tmp_path, "last").runs() for stage in run.stages] == [
        stage.key for run in plan.runs() for stage in run.stages
    ]


def test_a_staged_baseline_reads_every_text_over_its_share(tmp_path: Path) -> None:
    plan = changing_plan(tmp_path, "staged")
    assert [read_by(run) for run in plan.baselines] == [
        [("a", 500), ("b", 500)],
        [("a", 800), ("b", 700)],  # whole steps of 100 tokens; the half of 15 is rounded to 8
        [("a", 1000), ("b", 1000)],
    ]
    assert all(stage.shape.num_layers == 4 for run in plan.baselines for stage in run.stages)
    assert [run.duration for run in plan.baselines] == [1000, 1500, 2000]
    assert baseline_reads(plan) == "staged"
    assert other_text(plan) == []


def test_texts_that_follow_each_other_twice_are_read_once(tmp_path: Path) -> None:
    """Where the same text is read in stages in a row, the baseline is not split between them."""
    runs = changing_plan(tmp_path, "staged", "aabb", training={"lr_schedule": {"kind": "cosine"}}).baselines
    assert [len(run.stages) for run in runs] == [2, 2, 2]
    assert read_by(changing_plan(tmp_path, "staged", "abca").baselines[2]) == [
        ("a", 500),
        ("b", 500),
        ("c", 500),
        ("a", 500),
    ]


def test_one_text_is_one_text_however_it_is_asked_for(tmp_path: Path) -> None:
    last, staged = changing_plan(tmp_path, None, "aa"), changing_plan(tmp_path, "staged", "aa")
    assert [stage.key for run in last.runs() for stage in run.stages] == [
        stage.key for run in staged.runs() for stage in run.stages
    ]
    assert baseline_reads(last) is None
    assert baseline_reads(staged) is None


def test_budgets_share_a_trunk_as_far_as_they_read_the_same(tmp_path: Path) -> None:
    """Every budget turns to the second text at half of its length. Up to half of the smallest all are the same."""
    rate = {"lr_schedule": {"kind": "constant", "warmup": 100}}
    small, middle, large = changing_plan(tmp_path, "staged", training=rate).baselines
    assert small.stages[0].key == middle.stages[0].key == large.stages[0].key
    assert small.stages[0].duration == 500
    assert (middle.stages[1].end, large.stages[1].end) == (800, 800)
    assert middle.stages[1].key == large.stages[1].key
    assert len({stage.key for run in (small, middle, large) for stage in run.stages}) == 6
    assert middle.stages[2].key != large.stages[2].key
    for run in (small, middle, large):
        assert [stage.start for stage in run.stages] == [0, *(stage.end for stage in run.stages[:-1])]


def test_a_decay_ends_the_trunk_before_the_text_changes(tmp_path: Path) -> None:
    """Under wsd with a decay over seven tenths, the trunk of a budget ends before its second text."""
    rate = {"lr_schedule": {"kind": "wsd", "warmup": 100, "decay": 0.7}}
    small, middle, large = changing_plan(tmp_path, "staged", training=rate).baselines
    assert [stage.end for stage in small.stages] == [300, 500, 1000]
    assert [stage.end for stage in middle.stages] == [300, 400, 800, 1500]
    assert small.stages[0].key == middle.stages[0].key == large.stages[0].key
    assert middle.stages[1].key == large.stages[1].key
    alone = changing_plan(tmp_path, "staged", training=rate, baseline={"budgets": [1500]}).baselines[0]
    assert alone.stages[-1].key != middle.stages[-1].key, "a key has the stages before it"
    assert [stage.end for stage in alone.stages] == [400, 800, 1500]


def paced(folder: Path, data: str, curriculum: dict[str, Any] | None = None, **changes: Any) -> Plan:
    """Two stages on one text, of 400 and 600 tokens. The second has a curriculum, over half of it unless given."""
    known = write_named_texts(folder)["a"]
    stages = [
        {"name": "one", "data": known, "until": {"tokens": 400}},
        {"name": "two", "data": {**known, "curriculum": curriculum or {"over": 0.5}}, "until": {"tokens": 600}},
    ]
    baseline = {"budgets": [1000, 1500, 2000], "data": data}
    return make_plan(
        make_schedule(folder, **{"model": {"num_layers": 2}, "stages": stages, "baseline": baseline, **changes})
    )


def test_a_curriculum_has_its_pace_over_the_same_share_of_a_baseline(tmp_path: Path) -> None:
    plan = paced(tmp_path, "staged")
    for run, length in zip(plan.baselines, (600, 900, 1200), strict=True):
        *shuffled, last = run.stages
        assert (last.duration, last.curriculum.over_tokens) == (length, length // 2)
        assert replace(last.curriculum, over_tokens=300) == plan.staged.stages[1].curriculum
        assert not any(stage.curriculum for stage in shuffled)
        assert [last.curriculum.share(share * length) for share in (0, 0.1, 0.3, 0.5)] == [
            plan.staged.stages[1].curriculum.share(share * 600) for share in (0, 0.1, 0.3, 0.5)
        ]
    in_tokens = paced(tmp_path, "staged", {"over": 200}).baselines
    assert [run.stages[-1].curriculum.over_tokens for run in in_tokens] == [200, 300, 400]


def test_budgets_share_no_curriculum(tmp_path: Path) -> None:
    """A trunk within a curriculum would begin it anew where it is split."""
    rate = {"lr_schedule": {"kind": "constant", "warmup": 100}}
    small, middle, large = paced(tmp_path, "staged", training=rate).baselines
    assert [stage.end for stage in small.stages] == [400, 1000]
    assert [stage.end for stage in middle.stages] == [400, 600, 1500]
    assert [stage.end for stage in large.stages] == [400, 600, 800, 2000]
    assert small.stages[0].key == middle.stages[0].key == large.stages[0].key
    assert middle.stages[1].key == large.stages[1].key


def test_a_curriculum_on_one_side_only_is_staging(tmp_path: Path) -> None:
    last, staged = paced(tmp_path, "last"), paced(tmp_path, "staged")
    assert (baseline_reads(last), baseline_reads(staged)) == ("last", "staged")
    assert (is_staged(last), is_staged(staged)) == (True, False)
    assert not any(stage.curriculum for run in last.baselines for stage in run.stages)


def test_sources_of_mixtures_go_on_where_the_baseline_left_them(tmp_path: Path) -> None:
    write_texts(tmp_path)
    stages = [
        {"name": "one", "until": {"tokens": 512}, "data": mixture(tmp_path, a=0.5, b="rest")},
        {"name": "two", "until": {"tokens": 512}, "data": mixture(tmp_path, b=0.25, c="rest")},
    ]
    baseline = {"budgets": [1024], "data": "staged"}
    plan = make_plan(mixed_schedule(tmp_path, stages, baseline=baseline))
    (run,) = plan.baselines
    staged, read = plan.staged.stages, run.stages
    assert [stage.data.facts() for stage in read] == [stage.data.facts() for stage in staged]
    assert [amounts_read(stage) for stage in read] == [amounts_read(stage) for stage in staged]
    assert read[1].reading.cursors == staged[1].reading.cursors
    assert read[-1].evaluated == staged[-1].evaluated


def test_the_loss_at_the_end_is_that_of_the_last_text(tmp_path: Path) -> None:
    plan = changing_plan(tmp_path, "staged")
    for run in plan.baselines:
        assert run.stages[-1].evaluated == plan.staged.stages[-1].evaluated
        assert run.stages[-1].training.evaluate == plan.staged.stages[-1].training.evaluate


def test_the_same_model_on_the_same_texts_is_not_staged(tmp_path: Path) -> None:
    stages = [
        {"name": name, "data": data, "model": {"num_layers": 2}, "until": {"tokens": 500}}
        for name, data in list(write_named_texts(tmp_path).items())[:2]
    ]
    last, staged = (
        make_plan(make_schedule(tmp_path, stages=stages, baseline={"budgets": [1000], "data": data}))
        for data in ("last", "staged")
    )
    assert is_staged(last)
    assert not is_staged(staged)


def test_every_seed_and_every_tuned_value_reads_the_same(tmp_path: Path) -> None:
    plan = changing_plan(tmp_path, "staged", seeds=2, baseline={"tune": {"training.global_batch_tokens": [50, 100]}})
    variants = (*plan.candidates, *plan.further_seeds)
    assert len(variants) == 3
    for one in variants:
        assert [[name for name, _ in read_by(run)] for run in one.baselines] == [["a", "b"]] * 3


@pytest.mark.parametrize(
    ("changes", "reads", "expected"),
    [
        (
            {"baseline": {"budgets": [100]}}, "ab",
            r"baseline.budgets\[0\]: found a budget of 1 steps, of which the text of a0 gets none \(data: staged\)",
        ),
        ({"baseline": {"data": "all"}}, "ab", r"baseline.data: found 'all'; expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(changes: dict, reads: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=expected):
        changing_plan(tmp_path, "staged", reads, **changes)


def changed(folder: Path, **first: Any) -> None:
    """Plan two stages on two texts, of which the first stage has other keys, too."""
    known = write_named_texts(folder)
    stages = [
        {"name": "one", "data": known["a"], "until": {"tokens": 500}, **first},
        {"name": "two", "data": known["b"], "until": {"tokens": 500}},
    ]
    baseline = {"budgets": [1000], "data": "staged"}
    make_plan(make_schedule(folder, model={"num_layers": 2}, stages=stages, baseline=baseline))


def test_a_stage_that_may_end_early_has_no_known_share(tmp_path: Path) -> None:
    expected = r"baseline.data: found staged with stage 'one', which may end early, .*; expected stages of fixed length"
    with pytest.raises(InputError, match=expected):
        changed(tmp_path, until={"tokens": 500, "eval_loss": 2.0})


def test_a_stage_with_another_objective_is_refused(tmp_path: Path) -> None:
    loss = tmp_path / "losses.py"
    loss.write_text("def own(model, batch):\n    return model(input_ids=batch['tokens']).logits.sum()\n")
    expected = (
        r"baseline.data: found staged with stage 'one', which learns own from its text, and the baseline causal_lm"
    )
    with pytest.raises(InputError, match=expected):
        changed(tmp_path, objective={"name": "own", "function": f"{loss}:own"})


def test_windows_that_keep_documents_apart_in_one_stage_only_are_refused(tmp_path: Path) -> None:
    known = write_named_texts(tmp_path)
    with pytest.raises(InputError, match=r"found staged with stage 'one', whose window.mask is not the last stage's"):
        changed(tmp_path, data={**known["a"], "window": {"mask": "document"}})


def test_a_text_too_short_for_the_last_context_is_refused(tmp_path: Path) -> None:
    known = write_named_texts(tmp_path)
    (tmp_path / "short").mkdir()
    for number in range(4):
        (tmp_path / "short" / f"{number}.txt").write_text(f"short {number}\n" * 5)
    stages = [
        {"name": "one", "data": {"path": str(tmp_path / "short")}, "until": {"tokens": 500}},
        {"name": "two", "data": known["b"], "model": {"context_length": 500}, "until": {"tokens": 500}},
    ]
    training = {"global_batch_tokens": 500}
    baseline = {"budgets": [1000], "data": "staged"}
    with pytest.raises(InputError, match=r"found staged with stage 'one', whose text does not fit|data.path: found"):
        make_plan(make_schedule(tmp_path, model={"num_layers": 2}, training=training, stages=stages, baseline=baseline))


def test_the_plan_says_what_the_baselines_read(tmp_path: Path) -> None:
    known = write_named_texts(tmp_path / "texts")
    write_documents(tmp_path / "texts")
    stages = [
        {"name": name, "data": data, "model": {"num_layers": 2}, "until": {"tokens": 500}}
        for name, data in list(known.items())[:2]
    ]
    said = {}
    for data in ("last", "staged"):
        schedule = make_schedule(tmp_path / "texts", stages=stages, baseline={"budgets": [1000], "data": data})
        file = tmp_path / f"{data}.yaml"
        file.write_text(json.dumps(schedule.content()))
        shown = CliRunner().invoke(main, ["plan", str(file)])
        assert shown.exit_code == 0, shown.output
        in_json = json.loads(CliRunner().invoke(main, ["plan", str(file), "--json"]).stdout)["baseline"]
        said[data] = " ".join(shown.output.split()), in_json["data"]
    assert "FLOPs), on the last stage's text alone, shuffled." in said["last"][0]
    assert "FLOPs), on the texts of all stages, each over the same share of the run." in said["staged"][0]
    assert [kind for _, kind in said.values()] == ["last", "staged"]
