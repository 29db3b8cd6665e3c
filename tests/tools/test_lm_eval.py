"""`raystage evaluate`: tasks of lm-eval on a stage of a store. Those that need lm-eval are left out without it."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner, Result

from exports import make_checkpoint
from factories import make_records, make_schedule
from raystage.cli.main import main
from raystage.files.filesystem import open_folder
from raystage.files.typed_json import from_json, to_json
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.reports.build import build_report
from raystage.reports.markdown import markdown
from raystage.results.report import StageTasks
from raystage.runs.driver import Driver
from raystage.storage.evaluations import keep, kept
from raystage.storage.store import Store

HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not HAS_LM_EVAL, reason="lm-eval is not installed: pip install 'raystage[lm-eval]'")

TASK = """
task: animals
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/animals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""
DOCUMENTS = [
    {"question": f"A {animal} says", "choices": ["woof", "meow", "moo!"], "answer": answer}
    for answer, animal in enumerate(["dog", "cat", "cow"] * 4)
]
for document in DOCUMENTS:
    document["answer"] %= 3


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "text").mkdir()
    return make_plan(make_schedule(tmp_path / "text", model={"context_length": 50}))


@pytest.fixture
def store(tmp_path: Path, plan: Plan) -> Store:
    """A finished run; its stages' checkpoints are random weights."""
    opened = Store(open_folder(str(tmp_path / "store")))
    for record in make_records(plan, 2.2, (2.6, 2.4, 2.1)).values():
        opened.commit_record(replace(record, checkpoint="checkpoints/end"))
        make_checkpoint(tmp_path / "store/stages" / record.key / "checkpoints/end", record.shape)
    schedule = make_schedule(tmp_path / "text", model={"context_length": 50})
    Driver(plan, schedule, opened, []).run()
    return opened


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "animals.yaml").write_text(TASK.replace("FOLDER", str(folder)))
    (folder / "animals.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    return folder


def invoke(store: Store, *arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--store", store.folder.uri])


def found(value: float) -> dict:
    task = {"metrics": {"acc": {"value": value, "stderr": 0.05}}, "num_examples": 200, "num_fewshot": None}
    return {"arc_easy": task}


def tasks_of(stage: str, key: str, value: float) -> StageTasks:
    return from_json(StageTasks, {"stage": stage, "key": key, "tasks": found(value)})


# --- in the report ----------------------------------------------------------------------------


def test_what_was_found_is_in_every_report_of_the_run_from_then_on(store: Store, plan: Plan) -> None:
    full, baseline = plan.staged.stages[1], plan.baselines[2]
    for name, key, value in (("full", full.key, 0.31), (baseline.name, baseline.stages[-1].key, 0.29)):
        keep(store, "tiny", tasks_of(name, key, value))
    report = json.loads(invoke(store, "report", "tiny", "--json").stdout)
    assert report["downstream"]["full"]["tasks"] == found(0.31)
    line = "| arc_easy: acc | 0.31 ± 0.05 (200) | 0.29 ± 0.05 (200) |"
    assert line in invoke(store, "report", "tiny", "--markdown").stdout
    assert "arc_easy: acc" in invoke(store, "report", "tiny").stdout


def test_what_was_found_of_another_stage_of_that_name_is_left_out(store: Store, plan: Plan) -> None:
    keep(store, "tiny", tasks_of("full", "another", 0.31))
    report = build_report(plan, {}, {})
    assert kept(store, "tiny", report) == {}
    assert "Downstream" not in markdown(report)


# --- what is wrong ----------------------------------------------------------------------------


@pytest.mark.skipif(HAS_LM_EVAL, reason="lm-eval is installed")
def test_without_lm_eval_one_line_says_how_to_install_it(store: Store) -> None:
    done = invoke(store, "evaluate", "tiny", "--tasks", "arc_easy")
    assert done.exit_code == 2
    assert done.stderr.startswith("raystage: --tasks: lm_eval")
    assert done.stderr.endswith("not installed; pip install 'raystage[lm-eval]'\n")


@needs_lm_eval
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["other", "--tasks", "animals"], "RUN: no run 'other' in "),
        (
            ["tiny", "--stage", "ful", "--tasks", "animals"],
            "--stage: no stage 'ful' in 'tiny'; expected one of small, ",
        ),
        (["tiny", "--tasks", "animal"], "--tasks: lm-eval has no task 'animal'; did you mean 'animals'?"),
        (["tiny", "--tasks", " , "], "--tasks: found ' , '; expected names of tasks"),
        (["tiny", "--tasks", "animals", "--include-path", "missing"], "--include-path: no folder missing; expected"),
    ],
)
def test_bad_input_is_one_line(store: Store, tasks: Path, arguments: list[str], said: str) -> None:
    done = invoke(store, "evaluate", "--include-path", tasks, *arguments)
    assert done.exit_code == 2
    assert f"raystage: {said}" in done.stderr


@needs_lm_eval
def test_a_task_without_its_data_fails_in_one_line(store: Store, tasks: Path) -> None:
    (tasks / "animals.jsonl").unlink()
    done = invoke(store, "evaluate", "tiny", "--tasks", "animals", "--include-path", tasks)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("raystage: lm-eval failed on animals (FileNotFoundError: ")


# --- a real task ------------------------------------------------------------------------------


def accuracy_of(folder: Path) -> float:
    """By hand: the answer that transformers finds most probable, given the question."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    right = 0
    for one in DOCUMENTS:
        scores = [_log_probability(model, tokenizer, one["question"], f" {choice}") for choice in one["choices"]]
        right += scores.index(max(scores)) == one["answer"]
    return right / len(DOCUMENTS)


def _log_probability(model: torch.nn.Module, tokenizer: object, question: str, answer: str) -> float:
    context, whole = (tokenizer(text)["input_ids"] for text in (question, question + answer))
    with torch.no_grad():
        logits = model(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)
    return sum(logits[place - 1, whole[place]].item() for place in range(len(context), len(whole)))


@needs_lm_eval
def test_a_task_gives_what_transformers_says_and_stays_beside_others(store: Store, tasks: Path, tmp_path: Path) -> None:
    key = store.read_run("tiny", "report.json")["stages"][-1]["key"]
    keep(store, "tiny", tasks_of("full", key, 0.31))
    out = tmp_path / "out.json"
    options = ["--tasks", "animals", "--include-path", tasks, "--out", out, "--json"]
    done = invoke(store, "evaluate", "tiny", *options)
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made == json.loads(out.read_text()) == to_json(kept(store, "tiny", store.run_report("tiny"))["full"])
    assert invoke(store, "export", key, tmp_path / "model").exit_code == 0
    animals = made["tasks"]["animals"]
    assert animals["num_examples"] == len(DOCUMENTS)
    assert animals["metrics"]["acc"]["value"] == pytest.approx(accuracy_of(tmp_path / "model"))
    assert animals["metrics"]["acc"]["stderr"] > 0
    assert made["tasks"]["arc_easy"] == found(0.31)["arc_easy"]
    limited = json.loads(invoke(store, "evaluate", "tiny", *options, "--limit", "2").stdout)
    assert limited["tasks"]["animals"]["num_examples"] == 2
