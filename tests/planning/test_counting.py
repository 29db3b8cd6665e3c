"""What a stage counts in: its objective decides, the wrong unit is refused, positions begin anew where it changes, and
files name the unit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from factories import make_record, make_records, save_words
from labelled_files import images, texts, write_jsonl, write_npz
from raystage.cli.views.plan_json import plan_json
from raystage.config.schedule import parse
from raystage.errors import InputError
from raystage.files.typed_json import to_json
from raystage.models.shape import sample_flops
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.reports.advice import grows, warnings
from raystage.reports.build import build_report
from raystage.reports.markdown import markdown
from raystage.reports.plan_tables import plan_table
from raystage.reports.suggestions import why_nothing
from raystage.reports.tables import baseline_table
from raystage.results.data.data_warnings import data_warnings
from raystage.results.data.mixtures import mixture_lines
from raystage.results.record import StageRecord
from raystage.results.report import report_from_json

VIT = {"family": "vit", "patch_size": 2, "num_layers": 1, "hidden_size": 16, "num_heads": 2}
BERT = {"family": "bert", "num_layers": 1, "hidden_size": 16, "num_heads": 2, "context_length": 8}
DIGITS = {"source": "arrays", "path": "sklearn-digits", "validation_fraction": 0.2}
OWN_RATE = {"lr_schedule": {"kind": "cosine"}}


def digits(stage: dict[str, Any], training: dict[str, Any] | None = None, **changes: Any) -> Plan:
    """A plan of one stage of classification."""
    content = {
        "name": "digits", "data": DIGITS, "model": VIT, "objective": "classification",
        "training": {"global_batch_samples": 10, **(training or {})},
        "stages": [{"name": "one", "until": {"samples": 100}, **stage}], **changes,
    }  # fmt: skip
    return make_plan(parse(content))


def masked_then_classes(folder: Path, *more: dict[str, Any], rate: dict[str, Any] | None = OWN_RATE) -> Plan:
    """A plan that counts tokens and then samples."""
    data = {"source": "jsonl", "path": str(write_jsonl(folder / "rows", texts())), "tokenizer": "bytes"}
    second = {"global_batch_samples": 4, **(rate or {})}
    content = {
        "name": "both", "data": data, "model": BERT, "training": {"global_batch_tokens": 32},
        "stages": [
            {"name": "masked", "objective": "masked_lm", "until": {"tokens": 320}},
            {"name": "classes", "objective": "classification", "until": {"samples": 40}, "training": second},
            *more,
        ],
    }  # fmt: skip
    return make_plan(parse(content))


# --- amounts --------------------------------------------------------------------------------------


def test_steps_and_flops_are_those_of_whole_samples() -> None:
    (stage,) = digits({"until": {"samples": 95}}).staged.stages
    assert (stage.unit, stage.steps, stage.duration, stage.window) == ("samples", 10, 100, 1)
    assert stage.flops == 100 * sample_flops(stage.shape, stage.shape.context_length)
    assert stage.rate[-1].end == 100


def test_epochs_are_passes_over_the_training_samples() -> None:
    (stage,) = digits({"until": {"epochs": 2}}).staged.stages
    assert stage.steps == -(-2 * stage.data.train.documents // 10)
    assert digits({"until": {"epochs": 2, "samples": 100}}).staged.stages[0].steps == 10


def test_epochs_of_text_are_tokens_where_their_number_is_known(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.mkdir()
    (path / "train.npy").write_bytes(_npy(range(1, 201)))
    (path / "held_out.npy").write_bytes(_npy(range(1, 101)))
    data = {"source": "tokens", "path": str(path / "train.npy"), "validation_path": str(path / "held_out.npy")}
    model = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "context_length": 8, "vocab_size": 257}
    content = {"name": "t", "data": data, "model": model, "training": {"global_batch_tokens": 16},
               "stages": [{"name": "one", "until": {"epochs": 4}}]}  # fmt: skip
    assert make_plan(parse(content)).staged.stages[0].steps == 4 * 200 // 16
    content["data"] = {"source": "jsonl", "path": str(write_jsonl(tmp_path / "rows", texts()))}
    (stage,) = make_plan(parse(content)).staged.stages  # bytes: a token each, and one that ends a document
    train = stage.data.train
    assert stage.steps == -(-4 * (train.num_bytes + train.documents) // 16)
    content["data"]["tokenizer"] = str(save_words(tmp_path / "words"))
    with pytest.raises(InputError, match=r"until\.epochs: found 4, but how many tokens .* expected tokens"):
        make_plan(parse(content))


def _npy(values: range) -> bytes:
    import io

    import numpy as np

    file = io.BytesIO()
    np.save(file, np.array(values, dtype=np.uint16))
    return file.getvalue()


def test_lengths_of_a_stage_are_in_its_unit() -> None:
    ramp = {"global_batch_samples": {"from": 5, "over": {"samples": 40}}}
    (stage,) = digits({}, {"ramp": {"global_batch_samples": {**ramp["global_batch_samples"], "from": 5}},
                           "global_batch_samples": 20}).staged.stages  # fmt: skip
    assert [one.batch for one in stage.step_schedule.segments] == [5, 10, 20]


def test_an_evaluation_has_at_most_the_samples_that_are_held_out() -> None:
    (stage,) = digits({}, {"evaluate": {"samples": 100_000}}).staged.stages
    assert stage.evaluation_sequences == stage.data.held_out.documents
    assert digits({}, {"evaluate": {"samples": 50}}).staged.stages[0].evaluation_sequences == 50


# --- the wrong unit -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "training", "said"),
    [
        ({"until": {"tokens": 100}}, {}, "stages[0].until.tokens: found tokens in a stage of classification, which "
         "counts samples; expected samples"),
        ({"until": {"any": [{"steps": 3}, {"tokens": 5}]}}, {},
         "stages[0].until.any[1].tokens: found tokens in a stage"),
        ({}, {"global_batch_samples": None, "global_batch_tokens": 64}, "training.global_batch_tokens: found in a "
         "stage of classification, which counts samples; expected global_batch_samples"),
        ({}, {"global_batch_samples": None}, "training.global_batch_samples: missing; expected the samples of one"),
        ({"training": {"evaluate": {"tokens": 64}}}, {}, "stages[0].training.evaluate.tokens: found tokens in a stage"),
        ({"freeze": {"layers": [0], "for": {"tokens": 5}}}, {},
         "stages[0].freeze.for.tokens: found tokens in a stage"),
        ({"freeze": {"layers": [0], "for": {}}}, {}, "stages[0].freeze.for.samples: missing; expected for example"),
        ({}, {"ramp": {"context_length": {"from": 5, "over": {"samples": 5}}}},
         "training.ramp.context_length: found in a stage that counts samples"),
        ({}, {"workers": 11},
         "training.workers: found 11; expected at most one for each of a global batch's 10 samples, or "
         "training.global_batch_samples of at least 11"),
    ],
)  # fmt: skip
def test_the_wrong_unit_is_refused_and_the_right_one_named(stage: dict, training: dict, said: str) -> None:
    with pytest.raises(InputError) as caught:
        digits(stage, training)
    assert str(caught.value).startswith(said)


def test_a_language_model_counts_no_samples(tmp_path: Path) -> None:
    data = {"source": "jsonl", "path": str(write_jsonl(tmp_path / "rows", texts()))}
    model = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "context_length": 8}
    for stage, training, said in (
        ({"until": {"samples": 10}}, {"global_batch_tokens": 16}, r"until\.samples: found samples .* expected tokens"),
        ({"until": {"steps": 5}}, {"global_batch_samples": 4}, r"expected global_batch_tokens"),
    ):
        content = {"name": "t", "data": data, "model": model, "training": training, "stages": [{"name": "a", **stage}]}
        with pytest.raises(InputError, match=said):
            make_plan(parse(content))


# --- runs that change the unit --------------------------------------------------------------------


def test_where_the_unit_changes_positions_begin_anew_and_steps_and_flops_go_on(tmp_path: Path) -> None:
    first, second = masked_then_classes(tmp_path).staged.stages
    assert (first.unit, first.start, first.duration, first.window) == ("tokens", 0, 320, 8)
    assert (second.unit, second.start, second.duration, second.window) == ("samples", 0, 40, 1)
    assert (second.start_steps, second.start_flops) == (first.steps, first.flops)
    assert (second.parent_key, second.earlier) == (first.key, ())
    assert second.growth is not None  # its head is exchanged, its body kept
    assert (first.rate[-1].end, second.rate[0].start) == (320, 0)


def test_a_stage_after_the_change_needs_a_rate_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"stages\[1\]\.training\.lr_schedule: missing; the run counts samples from stage 'classes' on"
    ):
        masked_then_classes(tmp_path, rate=None)


def test_lengths_in_two_units_are_not_added_up(tmp_path: Path) -> None:
    """Else 40 samples would be compared with 320 tokens: the total has a line for each, and nothing is predicted."""
    plan = masked_then_classes(tmp_path)
    assert plan.staged.durations == {"tokens": 320, "samples": 40}
    assert (plan.scratch_flops, plan.predicted_saving) == (None, None)
    assert not any("more FLOPs" in advice.text for advice in warnings(plan))
    assert why_nothing(plan) == "the rules are for language models, and a stage counts samples"
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(plan_table(plan))
    shown = capture.get()
    assert re.search(r"total +320 tokens .*\n +40 samples", shown)
    assert "No predicted saving: the stages count tokens and samples" in shown
    assert re.search(r"^classes .* new head ", shown, re.M)  # and no operator: nothing grows


def test_the_unit_changes_once(tmp_path: Path) -> None:
    again = {"name": "again", "objective": "masked_lm", "until": {"tokens": 320}, "training": OWN_RATE}
    with pytest.raises(InputError, match=r"objective: found masked_lm, which counts tokens again after stages that"):
        masked_then_classes(tmp_path, again)


# --- files ----------------------------------------------------------------------------------------


def test_files_have_the_unit_as_their_key() -> None:
    plan = digits({}, baseline={"budgets": [100, 200]})
    (stage,) = plan.staged.stages
    shown = plan_json(plan)
    assert (shown["stages"][0]["samples"], shown["stages"][0]["start_samples"]) == (100, 0)
    assert [run["budget_samples"] for run in shown["baseline"]["runs"]] == [100, 200]
    assert '"tokens"' not in json.dumps(shown["stages"])
    written = make_record(stage, 1.5).to_json()
    assert (written["samples"], written["unit"], written["evaluations"][0]["samples"]) == (100, "samples", 100)
    assert StageRecord.from_json(json.loads(json.dumps(written))) == make_record(stage, 1.5)


def test_a_report_of_samples_is_read_back_as_it_was() -> None:
    plan = digits({}, baseline={"budgets": [100, 200]})
    report = build_report(plan, make_records(plan, 1.4, (1.5, 1.3)), {})
    content = json.loads(json.dumps(to_json(report)))
    assert (content["unit"], content["stages"][0]["samples"], content["baseline"]["runs"][0]["budget_samples"]) == (
        "samples", 100, 100,
    )  # fmt: skip
    assert content["stages"][0]["perplexity"] is None
    assert content["samples_per_parameter"] == 100 / plan.staged.stages[0].num_params
    assert "per parameter" not in " ".join(report.warnings)  # 20 tokens are a rule for language models
    assert "samples per parameter" in baseline_table(report).columns
    assert " samples per parameter." in markdown(report)
    assert "tokens" not in markdown(report)
    assert report_from_json(content) == report


# --- mixtures ---------------------------------------------------------------------------------------


def test_a_mixture_of_samples_is_counted_in_samples(tmp_path: Path) -> None:
    """Two sources of 20 and 60 images: 60 samples of each are three passes over one and one over the other."""
    pairs, held_out = images(90), str(write_npz(tmp_path / "held_out", images(100)[90:]))
    mixture = [
        {"name": name, "source": "arrays", "path": str(write_npz(tmp_path / name, part)), "weight": 0.5,
         "validation_path": held_out, "max_repeats": 2}
        for name, part in (("few", pairs[:20]), ("many", pairs[20:80]))
    ]  # fmt: skip
    plan = digits({"until": {"samples": 120}}, data={"mixture": mixture})
    (line,) = mixture_lines(plan.staged)
    assert line == "Mixture of one: few 0.5 (60 samples, 3 passes so far), many 0.5 (60 samples, 1 pass so far)."
    few = plan_json(plan)["stages"][0]["sources"][0]
    assert few == {"name": "few", "weight": 0.5, "samples": 60, "passes": 3.0, "unit": "samples"}
    (said,) = [one for one in data_warnings(plan) if one[0] == "data.mixture.few"]
    assert said[1] == (
        "has 20 samples to train on, and run 'staged' reads 60: 3 passes over the data. Use more data, or fewer samples"
    )
    assert said[2] == "the file's max_repeats: 2"  # and not what was found about text


# --- warnings -------------------------------------------------------------------------------------


def test_a_class_that_is_not_held_out_is_named(tmp_path: Path) -> None:
    """One image of a class in twenty: it is on one side or the other."""
    pairs = [(pixels, "often") for pixels, _ in images(40)] + [(images(41)[-1][0], "once")]
    data = {"source": "arrays", "path": str(write_npz(tmp_path / "a", pairs)), "validation_fraction": 0.05}
    plan = digits({}, data=data)
    said = [text for _, text, _ in data_warnings(plan) if "holds out no sample of" in text]
    missing = [name for name, count in zip(*_held_out(plan), strict=True) if not count]
    assert [text.split(",")[0] for text in said] == [f"holds out no sample of {name}" for name in missing]
    assert missing == ["once"]


def _held_out(plan: Plan) -> tuple[tuple[str, ...], tuple[int, ...]]:
    samples = plan.staged.stages[0].data.samples
    return samples.classes, samples.held_out


def test_a_stage_that_only_exchanges_its_head_does_not_grow() -> None:
    stages = [
        {"name": "seen", "objective": "denoising", "until": {"samples": 100}},
        {"name": "one", "until": {"samples": 20}},
    ]
    plan = digits({}, stages=stages)
    assert [grows(stage) for stage in plan.staged.stages] == [False, False]
    stages[1] |= {"model": {"num_layers": 2}, "grow": {"operator": "stack"}}
    assert [grows(stage) for stage in digits({}, stages=stages).staged.stages] == [False, True]
