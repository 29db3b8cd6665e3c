"""Stages of every objective, trained on real workers: killed and resumed, on one worker and on three."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional

import started_models
from chats import TEMPLATE, save_chat_words, write_chats
from factories import make_schedule
from pages import block_with
from raystage.config.schedule import Schedule
from raystage.errors import InputError
from raystage.files.filesystem import open_folder
from raystage.objectives.opening import open_judge
from raystage.planning.build import make_plan
from raystage.results.record import StageRecord
from raystage.storage.store import Store
from raystage.tools.export import ExportOptions, export
from raystage.tools.grow import open_source
from raystage.train.texts import evaluation_set
from staged_runs import losses, train, train_each_way

pytestmark = pytest.mark.end_to_end

LOSSES = """
import torch
from torch.nn import functional

def plain(model, batch, **options):
    tokens = batch["tokens"]
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float().flatten(0, 1)
    return functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum", **options)

def counted(model, batch, **options):
    return plain(model, batch) if len(batch["tokens"]) else None

def all_of_them(batch, **options):
    return batch["tokens"][:, 1:].size
"""
NAMES = ("masked_lm", "own", "instruct", "distillation")
TAUGHT = {"temperature": 2, "alpha": 0.7, "top_k": 8}
LAYERS = [{"num_layers": 1}, {"num_layers": 2}]


def schedule_of(
    folder: Path, workers: int, objectives: tuple[object, object], family: str = "llama", chats: str = ""
) -> Schedule:
    """chats: "both" stages read conversations, or the "second" one."""
    (folder / "text").mkdir(exist_ok=True)
    (folder / "losses.py").write_text(LOSSES)
    (folder / "shown.py").write_text(block_with("def smooth", "docs/objectives.md").text)
    stages = [
        {"name": "first", "model": LAYERS[0], "until": {"tokens": 800}, "objective": objectives[0]},
        {"name": "second", "model": LAYERS[1], "until": {"tokens": 600}, "objective": objectives[1],
         "grow": {"operator": "identity"}},
    ]  # fmt: skip
    training = {"workers": workers, "optimizer": {"lr": 1e-2}, "checkpoint": {"every": 200}}
    data = {}
    if chats:
        data = {"tokenizer": str(save_chat_words(folder / "words"))}
        conversations = {"source": "jsonl", "path": str(write_chats(folder / "chats.jsonl"))}
        for stage in stages if chats == "both" else stages[1:]:
            stage["data"] = conversations
    changes = {"data": data, "stages": stages, "training": training, "baseline": None}
    return make_schedule(folder / "text", model={"family": family}, **changes)


def own(folder: Path, function: str, **more: object) -> dict:
    return {"name": "own", "function": f"{folder / 'losses.py'}:{function}", **more}


def cases_of(folder: Path) -> dict[str, tuple]:
    counted = own(folder, "counted", targets=f"{folder / 'losses.py'}:all_of_them")
    shown = {"name": "own", "function": f"{folder / 'shown.py'}:smooth", "options": {"label_smoothing": 0.1}}
    return {
        "causal_lm": (("causal_lm", "causal_lm"), "llama"),
        "own": ((own(folder, "plain"), counted), "llama"),
        "smoothed later": (("causal_lm", shown), "llama"),
        "distillation": (("causal_lm", {"name": "distillation", **TAUGHT, "teacher": "first"}), "llama"),
        "masked_lm": (("masked_lm", {"name": "masked_lm", "mask_share": 0.3}), "bert"),
        "instruct": (("instruct", "instruct"), "llama", "both"),
        "instruct later": (("causal_lm", "instruct"), "llama", "second"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objectives")


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, list[StageRecord]]:
    """By case and way the records of both stages."""
    cases = cases_of(folder)

    def schedules_of(way: str, workers: int) -> dict[str, Schedule]:
        return {name: schedule_of(folder, workers, *cases[name]) for name in (cases if way == "two" else NAMES)}

    return train_each_way(schedules_of, (3, 5), folder)  # stopped inside the first stage, and then inside the second


def test_a_function_that_computes_the_same_trains_the_same_bits(trained: dict[str, list[StageRecord]]) -> None:
    assert losses(trained["own, two"]) == losses(trained["causal_lm, two"])


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed_is_the_same(trained: dict[str, list[StageRecord]], name: str) -> None:
    assert losses(trained[f"{name}, killed"]) == losses(trained[f"{name}, one"])


@pytest.mark.parametrize("name", NAMES)
def test_three_workers_see_what_two_see(trained: dict[str, list[StageRecord]], name: str) -> None:
    for two, three in zip(losses(trained[f"{name}, two"]), losses(trained[f"{name}, three"]), strict=True):
        assert three == pytest.approx(two, rel=1e-4)


def test_a_bert_of_hugging_face_s_is_trained_on(tmp_path: Path) -> None:
    """Its first evaluation is what transformers computes; dropout is not trained with."""
    model = started_models.make(tmp_path / "bert", "bert")
    (tmp_path / "text").mkdir()
    schedule = started_models.make_schedule(tmp_path / "text", model, objective="masked_lm")
    first = train(schedule, tmp_path / "store")[0]
    stage = make_plan(schedule).staged.stages[0]
    held_out, judge = evaluation_set(stage), open_judge(stage.objective)
    batch = judge.batch(held_out, 0, held_out.count, held_out.length)
    network = transformers.AutoModelForMaskedLM.from_pretrained(model).eval()
    with torch.no_grad():
        loss = judge.loss(network, {name: torch.from_numpy(values) for name, values in batch.items()})
    targets = judge.num_targets(held_out, 0, held_out.count, held_out.length)
    assert first.evaluations[0].loss == pytest.approx(loss.item() / targets, rel=1e-5)
    assert first.eval_loss < first.evaluations[0].loss


def test_the_loss_of_answers_is_that_of_transformers(trained: dict[str, list[StageRecord]], folder: Path) -> None:
    """Of the stage's model as it was saved, computed sequence by sequence."""
    schedule = schedule_of(folder, 2, *cases_of(folder)["instruct"])
    stage, record = make_plan(schedule).staged.stages[1], trained["instruct, two"][1]
    source = open_source(stage.key, Store(open_folder(str(folder / "two-instruct"))))
    export(source, open_folder(str(folder / "exported")), ExportOptions())
    network = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "exported")
    assert tokenizer.chat_template == TEMPLATE
    held_out = evaluation_set(stage)
    total, targets = 0.0, 0
    for tokens, mask in zip(held_out.arrays["tokens"], held_out.arrays["mask"], strict=True):
        labels = torch.tensor([token if mark else -100 for token, mark in zip(tokens[1:], mask[1:], strict=True)])
        with torch.no_grad():
            logits = network(torch.from_numpy(tokens[None, :-1])).logits[0]
        total += functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100).item()
        targets += int((labels >= 0).sum())
    assert 0 < targets < 0.6 * mask.size * held_out.count
    assert record.eval_loss == pytest.approx(total / targets, rel=1e-5)


def test_fine_tuning_begins_where_the_text_ended(trained: dict[str, list[StageRecord]]) -> None:
    """The growth is judged on the text, by the next token; the stage itself by the answers."""
    first, second = trained["instruct later, two"]
    certificate = second.growth.certificate
    assert certificate.eval_loss_before == first.eval_loss
    assert certificate.eval_loss_after == pytest.approx(first.eval_loss, abs=2e-5)
    assert second.eval_loss < second.evaluations[0].loss - 0.05


def test_the_teacher_of_a_stage_may_be_in_a_folder(
    tmp_path: Path, folder: Path, trained: dict[str, list[StageRecord]]
) -> None:
    """The checkpoint of the first stage, as a folder, teaches the same bits."""
    first, second = trained["distillation, one"]
    teacher = str(folder / f"one-distillation/stages/{first.key}")
    schedule = schedule_of(tmp_path, 1, ("causal_lm", {"name": "distillation", **TAUGHT, "teacher": teacher}))
    again = train(schedule, tmp_path / "store")
    assert losses(again) == losses([first, second])
    assert (again[1].flops, again[1].key == second.key) == (second.flops, False)
    data = schedule.data.model_copy(update={"validation_fraction": 0.8})
    with pytest.raises(InputError, match=r"holds out \d+ documents that the teacher of 'second' was trained on"):
        make_plan(schedule.model_copy(update={"data": data}))


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_who_starts_as_the_teacher_has_nothing_to_learn_from_it(tmp_path: Path, zero_stage: int) -> None:
    model = started_models.make(tmp_path / "llama", "llama")
    (tmp_path / "text").mkdir()
    objective = {"name": "distillation", "teacher": str(model), "alpha": 1, "top_k": "none"}
    schedule = started_models.make_schedule(
        tmp_path / "text", model, objective=objective, training={"zero_stage": zero_stage}
    )
    (record,) = train(schedule, tmp_path / "store")
    assert record.train[0].loss == pytest.approx(0, abs=1e-3)
    assert record.evaluations[0].loss > 1  # held-out text is judged by the next token


def test_every_objective_is_learned(trained: dict[str, list[StageRecord]]) -> None:
    for name, (first, _) in trained.items():
        assert first.eval_loss < first.evaluations[0].loss - 0.2, name


def test_a_changed_objective_changes_the_training_and_not_the_judge(trained: dict[str, list[StageRecord]]) -> None:
    plain, smoothed = trained["causal_lm, two"][1], trained["smoothed later, two"][1]
    assert smoothed.evaluations[0].loss == plain.evaluations[0].loss
    assert smoothed.train[0].loss > plain.train[0].loss + 0.05
    certificate = smoothed.growth.certificate
    assert certificate.eval_loss_after == pytest.approx(certificate.eval_loss_before, abs=2e-5)


def test_a_growth_is_judged_by_what_judged_the_model_before(trained: dict[str, list[StageRecord]]) -> None:
    """Another share of masked tokens: the losses of the two stages are of different targets."""
    first, second = trained["masked_lm, two"]
    certificate = second.growth.certificate
    assert certificate.eval_loss_before == first.eval_loss
    assert certificate.eval_loss_after == pytest.approx(first.eval_loss, abs=1e-3)  # BERT grows nearly exactly
    assert second.evaluations[0].loss != pytest.approx(first.eval_loss, abs=3e-3)


def test_steps_without_an_answer_are_steps(tmp_path: Path) -> None:
    """A step of one sequence, within long questions: it has no point in the curve, and killed it goes on the same."""
    asked = [f"w{number % 9} " * 45 for number in range(60)]
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": f"w1 {text[:2]}"}] for text in asked]
    data = {
        "source": "jsonl",
        "path": str(write_chats(tmp_path / "chats.jsonl", [*chats, *([one[0], *one] for one in chats)])),
        "tokenizer": str(save_chat_words(tmp_path / "words")),
    }
    (tmp_path / "text").mkdir()
    training = {"global_batch_tokens": 10, "optimizer": {"lr": 1e-2}, "checkpoint": {"every": 50}}
    training |= {"lr_schedule": {"kind": "constant", "warmup": 0}}
    stages = [{"name": "one", "model": LAYERS[0], "until": {"tokens": 200}}]
    schedule = make_schedule(
        tmp_path / "text", data=data, objective="instruct", stages=stages, training=training, baseline=None
    )
    (record,) = train(schedule, tmp_path / "whole")
    (again,) = train(schedule, tmp_path / "killed", stops=(3, 5))
    assert record.steps == 20
    assert 0 < len(record.train) < 20
    assert all(math.isfinite(point.loss) for point in record.train)
    assert losses([again]) == losses([record])
