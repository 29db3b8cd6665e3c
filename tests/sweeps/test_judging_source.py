"""Trials that are judged by the held-out loss on one source of a mixture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from mixtures import mixture, write_texts
from test_trial_objectives import report

from factories import make_record
from raystage.errors import InputError
from raystage.results.sweep_report import ObjectiveRow
from raystage.sweeps.config import Objective, Sweep, load
from raystage.sweeps.reports.summary import metric_of
from raystage.sweeps.trial import ToTune, last_metrics, measure
from raystage.sweeps.trials import Planner, plan_sweep

WEIGHT = "stages.narrow.data.mixture.b.weight"
ON_B = {"metric": "eval_loss", "source": "b"}


def sweep_of(folder: Path, objective: Any, space: dict | None = None, first: Any = None, **sections: Any) -> Sweep:
    """Two stages on the sources a and b; what varies is the share of b in the second."""
    texts = folder / "texts"
    write_texts(texts)
    schedule = {
        "name": "mixed",
        "model": {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "ffn_size": 16, "context_length": 16},
        "training": {"global_batch_tokens": 64, "lr_schedule": {"kind": "constant"}},
        "stages": [
            {"name": "broad", "until": {"tokens": 320}, "data": first or mixture(texts, a=0.5, b=0.5)},
            {"name": "narrow", "until": {"tokens": 320}, "data": mixture(texts, a="rest", b=0.5)},
        ],
    }
    (folder / "mixed.yaml").write_text(yaml.safe_dump(schedule))
    content = {"name": "weights", "schedule": "mixed.yaml", "objective": objective,
               "space": space or {WEIGHT: {"grid": [0, 0.5]}}, **sections}  # fmt: skip
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    return load(folder / "sweep.yaml")


# --- figures ----------------------------------------------------------------------------------


def with_sources(*losses: dict[str, float]) -> Any:
    """A run with an evaluation of each, whose own loss is 9."""
    found = report([(1_000 * number, 9.0) for number in range(1, 1 + len(losses))])
    (stage,) = found.stages
    points = (replace(point, sources=one) for point, one in zip(stage.evaluations, losses, strict=True))
    return replace(found, stages=(replace(stage, evaluations=tuple(points)),))


def test_every_loss_is_that_of_the_source() -> None:
    run = with_sources({"a": 3.0, "b": 4.0}, {"a": 2.0, "b": 3.5}, {"a": 1.0, "b": 3.75})
    assert measure(Objective(**ON_B), run) == 3.75
    assert measure(Objective(metric="flops_to_loss", target=3.5, source="b"), run) == 2_000
    assert measure(Objective(metric="flops_to_loss", target=0.5, source="a"), run) is None
    assert measure(Objective(metric="eval_loss_at_flops", at=2_000, source="b"), run) == 3.5
    assert measure(Objective(metric="eval_loss"), run) == 9.0
    assert last_metrics(run, "b")["eval_loss"] == 3.75


def test_tune_compares_by_the_first_source_on_the_way_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Planner(sweep_of(tmp_path, ON_B)).trial(0, {"stages[1].data.mixture.b.weight": 0}).plan.staged
    contents = {part.name: part.data.content for part in run.stages[0].evaluated}
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr("raystage.sweeps.trial.tune.report", reports.append)
    point = replace(make_record(run.stages[0], 9.0).end, sources={contents["a"]: 2.0, contents["b"]: 3.0})
    ToTune([], "b").evaluated(run, run.stages[0], point)
    assert [one["eval_loss"] for one in reports] == [3.0]


def test_a_figure_says_of_which_source_it_is() -> None:
    assert metric_of(ObjectiveRow(**ON_B)).words == "held-out loss on b"
    names = [Objective(metric="eval_loss", source=source).name for source in (None, "a")]
    assert names == ["eval_loss", "eval_loss/a"]


# --- what does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric", [{}, {"metric": "flops_to_loss", "target": 2.0}, {"metric": "eval_loss_at_flops", "at": 9}]
)
def test_weights_that_vary_need_a_source(tmp_path: Path, metric: dict) -> None:
    """A mean by each trial's own weights would choose the mixture that is easiest to predict."""
    with pytest.raises(InputError, match=r"objective.source: missing, and the space varies .*mixture.*own weights"):
        sweep_of(tmp_path, metric)
    with pytest.raises(InputError, match=r"objective\[1\].source: missing"):
        sweep_of(tmp_path, [ON_B, metric])


def test_where_no_weight_varies_the_mean_is_the_same_for_all(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"metric": "eval_loss"}, {"stages[1].until.tokens": {"grid": [320, 640]}})
    assert len(plan_sweep(sweep).trials) == 2


def test_several_sources_are_several_objectives(tmp_path: Path) -> None:
    both = [ON_B, {"metric": "eval_loss", "source": "a"}]
    assert [one.name for one in plan_sweep(sweep_of(tmp_path, both)).sweep.objective] == ["eval_loss/b", "eval_loss/a"]
    with pytest.raises(InputError, match=r"objective\[1\]: found eval_loss/b a second time"):
        sweep_of(tmp_path, [ON_B, ON_B])


def test_a_source_that_no_trial_is_evaluated_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"objective.source: found 'c', on which stage 'narrow' is not"):
        plan_sweep(sweep_of(tmp_path, {"metric": "eval_loss", "source": "c"}))


def test_trials_that_may_end_early_are_evaluated_on_it_in_every_stage(tmp_path: Path) -> None:
    first, asha = mixture(tmp_path / "texts", a=1), {"name": "asha", "grace": {"tokens": 100}}
    with pytest.raises(InputError, match=r"objective.source: found 'b', on which stage 'broad' is not evaluated"):
        plan_sweep(sweep_of(tmp_path, ON_B, first=first, scheduler=asha))
    assert plan_sweep(sweep_of(tmp_path, ON_B, first=first)).trials


def test_a_saving_is_of_whole_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found source with compute_saved"):
        sweep_of(tmp_path, {"metric": "compute_saved", "source": "b"})
