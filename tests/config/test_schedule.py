"""What a good schedule means; what is wrong with others is in test_bad_input."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from factories import write_documents
from labelled_files import write_language_stand_ins
from raystage.config.deepspeed import DEEPSPEED_OPTIONS, read_deepspeed
from raystage.config.schedule import Schedule, load, parse
from raystage.config.stage import Grow
from raystage.config.training import LrSchedule, Training
from raystage.config.types import Workers, parse_span
from raystage.errors import InputError
from raystage.growth.operators import OPERATORS, OPTIMIZER_STATE_POLICIES
from raystage.planning.build import make_plan
from raystage.planning.resolve import resolve

STAGES = [{"name": "small", "until": {"steps": 1}}, {"name": "full", "until": {"steps": 1}}]


def two_stages(file: dict, stage: dict) -> Schedule:
    """A schedule whose file sets `file` in training and whose second stage sets `stage` there."""
    return parse({"name": "a", "training": file, "stages": [STAGES[0], {**STAGES[1], "training": stage}]})


@pytest.mark.parametrize(
    ("file", "stage", "field", "value"),
    [
        ({}, {}, "workers", Workers.exactly(1)),
        ({"workers": 2}, {}, "workers", Workers.exactly(2)),
        ({"workers": 2}, {"workers": 3}, "workers", Workers.exactly(3)),
        ({"workers": 2}, {"zero_stage": 3}, "workers", Workers.exactly(2)),
        ({"workers": 2}, {"workers": 1}, "workers", Workers.exactly(1)),  # a default, written out, is set too
        ({"micro_batch_size": 4}, {"micro_batch_size": None}, "micro_batch_size", None),
        ({"deepspeed": {"dump_state": True}}, {}, "deepspeed", {"dump_state": True}),
        ({"deepspeed": {"dump_state": True}}, {"deepspeed": {}}, "deepspeed", {"dump_state": True}),
        (
            {"deepspeed": {"dump_state": True, "zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 5}}},
            {"deepspeed": {"zero_optimization": {"reduce_bucket_size": 6}}},
            "deepspeed",
            {"dump_state": True, "zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 6}},
        ),
    ],
)
def test_a_stage_is_laid_over_the_file(file: dict, stage: dict, field: str, value: object) -> None:
    schedule = two_stages(file, stage)
    assert getattr(schedule.resolved(1).training, field) == value
    assert schedule.resolved(0).training == schedule.training


def test_sections_inside_sections_are_laid_over_each_other() -> None:
    schedule = two_stages({"optimizer": {"lr": 3e-4, "eps": 1e-6}}, {"optimizer": {"lr": 1e-4, "betas": [0.8, 0.9]}})
    optimizer = schedule.resolved(1).training.optimizer
    assert (optimizer.lr, optimizer.eps, optimizer.betas, optimizer.weight_decay) == (1e-4, 1e-6, (0.8, 0.9), 0.1)
    assert schedule.resolved(0).training.optimizer.lr == 3e-4


@pytest.mark.parametrize(
    ("file", "stage", "passed_on"),
    [
        ({"dump_state": True}, {"dump_state": None}, {}),
        ({"zero_optimization": {"overlap_comm": True}}, {"zero_optimization": None}, {}),
        (
            {"zero_optimization": {"overlap_comm": "yes", "sub_group_size": "1M"}},
            {"zero_optimization": {"overlap_comm": None}},
            {"zero_optimization": {"sub_group_size": 1000000}},
        ),
        ({"dump_state": None}, {}, {}),
    ],
)
def test_null_takes_an_option_of_deepspeed_back(file: dict, stage: dict, passed_on: dict, texts: Path) -> None:
    schedule = parse(
        {
            "name": "a",
            "data": {"source": "text", "path": str(texts), "validation_fraction": 0.5},
            "model": {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "context_length": 8},
            "training": {"global_batch_tokens": 8, "deepspeed": file},
            "stages": [STAGES[0], {**STAGES[1], "training": {"deepspeed": stage}}],
        }
    )
    assert resolve(schedule)[1].training.deepspeed == passed_on


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"steps_per_print": "1K"}, {"steps_per_print": 1000}),
        ({"prescale_gradients": "no"}, {"prescale_gradients": False}),
        ({"gradient_predivide_factor": "2"}, {"gradient_predivide_factor": 2.0}),
        (
            {"zero_optimization": {"reduce_bucket_size": "5e8"}},
            {"zero_optimization": {"reduce_bucket_size": 500000000}},
        ),
        ({"flops_profiler": {"module_depth": -1}}, {"flops_profiler": {"module_depth": -1}}),
        ({"comms_logger": {}}, {"comms_logger": {}}),
    ],
)
def test_options_of_deepspeed_are_of_the_kind_it_wants(written: dict, read: dict) -> None:
    assert read_deepspeed(written, DEEPSPEED_OPTIONS) == read


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    write_documents(tmp_path / "texts")
    return tmp_path / "texts"


def test_paths_are_absolute(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked for in the working directory, then beside the file, then left for the message."""
    (tmp_path / "here" / "texts").mkdir(parents=True)
    file = tmp_path / "a.yaml"
    stage = "{name: small, until: {steps: 1}, data: {path: [texts, nowhere]}}"
    file.write_text(f"name: a\ndata: {{source: text, path: texts}}\nstages: [{stage}]")
    monkeypatch.chdir(tmp_path / "here")
    found = load(file)
    assert found.data.path == (str(tmp_path / "here" / "texts"),)
    assert found.stages[0].data.path == (str(tmp_path / "here" / "texts"), str(tmp_path / "here" / "nowhere"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load(file).data.path == (str(texts),)
    assert load(Path("..") / "a.yaml").data.path == (str(texts),)


def test_a_home_folder_is_meant_by_its_tilde(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(texts.parent))
    schedule = parse({"name": "a", "data": {"source": "text", "path": "~/texts"}, "stages": STAGES})
    assert schedule.data.path == (str(texts),)


@pytest.mark.parametrize(("tokenizer", "folder"), [("own", True), ("bytes", False), ("gpt2", False)])
def test_a_tokenizer_is_a_path_where_there_is_such_a_folder(
    tokenizer: str, folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own", "bytes"):
        (tmp_path / name).mkdir()
    schedule = parse({"name": "a", "data": {"tokenizer": tokenizer}, "stages": STAGES})
    assert schedule.data.tokenizer == (str(tmp_path / tokenizer) if folder else tokenizer)


def test_a_schedule_knows_its_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: a\nstages: [{name: small, until: {steps: 1}}]")
    assert load(file).file == str(file)
    assert parse({"name": "a", "stages": STAGES}).file is None


def test_overrides_are_laid_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: a\nstages: [{name: small, until: {steps: 1}}]")
    schedule = load(file, ("seed=3", "seed=4", "training.optimizer.lr=3e-4", "stages[0].until={tokens: 5K}"))
    assert (schedule.seed, schedule.training.optimizer.lr, schedule.stages[0].until.tokens) == (4, 3e-4, 5000)


@pytest.mark.parametrize(
    ("written", "span"), [(0, 0), (0.2, 0.2), ("2e-1", 0.2), ("50K", 50000), (2, 2), ("1.5K", 1500)]
)
def test_spans(written: object, span: float) -> None:
    assert parse_span(written) == span


def test_what_a_schedule_offers_is_what_there_is() -> None:
    assert [Grow(operator=name).operator for name in OPERATORS] == list(OPERATORS)
    assert get_args(Grow.model_fields["optimizer_state"].annotation) == OPTIMIZER_STATE_POLICIES
    assert LrSchedule().kind == "wsd"


def test_the_quickstart() -> None:
    plan = make_plan(load(Path(__file__).parents[2] / "jobs" / "schedules" / "quickstart.yaml"))
    assert [stage.shape.num_layers for stage in plan.staged.stages] == [3, 6, 12]
    assert [stage.steps for stage in plan.staged.stages] == [500, 500, 1000]
    assert [run.duration for run in plan.baselines] == [160000, 220032, 300032]
    assert 0 < plan.predicted_saving < 1


def test_shipped_schedules_are_good(tmp_path: Path) -> None:
    """With stand-ins for the sentences that jobs/text/languages.py writes."""
    jobs = shutil.copytree(Path(__file__).parents[2] / "jobs", tmp_path / "jobs")
    write_language_stand_ins(jobs / "text/languages")
    files = sorted((jobs / "schedules").glob("*.yaml"))
    assert len(files) > 16
    for file in files:
        assert make_plan(load(file)).staged.stages, os.fspath(file)


def test_workers_are_a_number_or_a_range() -> None:
    plain, elastic = Training(workers=4), Training(workers={"min": 2, "max": 8})
    assert (plain.workers, plain.workers.is_elastic, f"{plain.workers}") == (Workers(4, 4), False, "4")
    assert (elastic.workers, elastic.workers.is_elastic, f"{elastic.workers}") == (Workers(8, 2), True, "2 to 8")
    assert plain.model_dump()["workers"] == 4
    assert Training.model_validate(elastic.model_dump(by_alias=True)).workers.least == 2
    assert elastic.overlaid(plain).workers.least == 4
    assert pickle.loads(pickle.dumps(elastic)).workers.least == 2


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"min": 3, "max": 2}, "training.workers: found a min of 3 above the max of 2"),
        ({"min": 2}, "expected a number of workers, or {min: 2, max: 8}"),
        ({"min": 0, "max": 2}, "training.workers: found 0; expected more than 0"),
        ("two", "training.workers: found 'two'; expected a number"),
    ],
)
def test_wrong_workers(workers: object, message: str) -> None:
    content = {"name": "a", "stages": [{"name": "s", "until": {"steps": 1}}], "training": {"workers": workers}}
    with pytest.raises(InputError, match=re.escape(message)):
        parse(content)


def test_a_copy_of_a_section_is_as_pydantic_makes_it() -> None:
    """The schedule's own copies are quicker: values, what is set, and what is private must be the same."""
    schedule = parse({"name": "x", "stages": [{"name": "a", "until": {"tokens": 10}}]})
    schedule._file = "x.yaml"
    update = {"seed": 5, "name": "y"}
    own, theirs = schedule.model_copy(update=update), BaseModel.model_copy(schedule, update=update)
    assert own == theirs
    assert own.model_fields_set == theirs.model_fields_set >= {"name", "seed"}
    own._file = "z.yaml"
    assert (schedule.file, theirs.file, own.file, schedule.seed) == ("x.yaml", "x.yaml", "z.yaml", 0)
    assert schedule.model_copy(deep=True) == schedule
