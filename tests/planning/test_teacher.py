"""A stage with a teacher, as planned: what is in its key, what the teacher costs, and which teachers are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import started_models
from exports import folder_of
from factories import make_schedule, save_words
from growths import SOURCES
from raystage.errors import InputError
from raystage.growth.rules import growth_map
from raystage.models.shape import flops_per_token, num_params
from raystage.objectives.plan import NEXT_TOKEN
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.differences import differences

TWO = [
    {"name": "small", "model": {"num_layers": 1}, "until": {"tokens": 400}},
    {"name": "full", "model": {"num_layers": 2}, "until": {"tokens": 400}, "grow": {"operator": "stack"}},
]


def stages_of(folder: Path, **changes: object) -> tuple[StagePlan, ...]:
    return make_plan(make_schedule(folder, **{"baseline": None, **changes})).staged.stages


def taught(folder: Path, objective: dict, small: dict | None = None, **changes: object) -> tuple[StagePlan, ...]:
    stages = [{**TWO[0], **(small or {})}, {**TWO[1], "objective": {"name": "distillation", **objective}}]
    return stages_of(folder, stages=stages, **changes)


def test_the_key_of_a_student_has_that_of_its_teacher_and_what_weighs_it(tmp_path: Path) -> None:
    small, full = taught(tmp_path, {"teacher": "small"})
    assert (full.teacher.key, full.teacher.shape) == (small.key, small.shape)
    assert full.objective.options == {"temperature": 1.0, "alpha": 0.5, "top_k": 64}
    others = [
        taught(tmp_path, {"teacher": "small", **more})[1].key
        for more in ({"temperature": 2}, {"alpha": 0.7}, {"top_k": 8}, {"top_k": "none"})
    ]
    renamed = taught(tmp_path, {"teacher": "first"}, small={"name": "first"})[1].key
    assert renamed == full.key
    assert len({full.key, stages_of(tmp_path, stages=TWO)[1].key, *others}) == 6


def test_the_forward_passes_of_the_teacher_count(tmp_path: Path) -> None:
    plain, full = stages_of(tmp_path, stages=TWO)[1], taught(tmp_path, {"teacher": "small"})[1]
    forward = 400 * flops_per_token(full.teacher.shape) // 3
    assert full.teacher_flops == forward == full.flops - plain.flops
    assert full.evaluation_flops == plain.evaluation_flops  # only the student is evaluated
    memory, tokens = full.memory, full.training.micro_batch_size * full.shape.context_length
    assert memory.teacher_bytes == 4 * num_params(full.teacher.shape) + 8 * tokens * full.teacher.shape.vocab_size
    assert memory.total_bytes == plain.memory.total_bytes + memory.teacher_bytes


def test_a_cap_in_flops_pays_the_teacher(tmp_path: Path) -> None:
    stages = [TWO[0], {**TWO[1], "until": {"flops": 5 * stages_of(tmp_path, stages=TWO)[1].flops}}]
    objective = {"name": "distillation", "teacher": "small"}
    plain = stages_of(tmp_path, stages=stages)[1]
    paying = stages_of(tmp_path, stages=[stages[0], {**stages[1], "objective": objective}])[1]
    assert paying.steps < plain.steps


def test_a_baseline_has_no_teacher_that_only_the_staged_run_trained(tmp_path: Path) -> None:
    stages = [TWO[0], {**TWO[1], "objective": {"name": "distillation", "teacher": "small"}}]
    plan = make_plan(make_schedule(tmp_path, stages=stages, baseline={"budgets": [800]}))
    (baseline,) = plan.baselines[0].stages[:1]
    assert (baseline.objective, baseline.teacher) == (NEXT_TOKEN, None)
    assert plan.scratch_flops == 800 * flops_per_token(baseline.shape)
    assert any(one.startswith("objective (causal_lm in the baseline") for one in differences(plan))


STUDENT = {"name": "student", "model": {"num_layers": 1}, "until": {"tokens": 400}}
LEARNS = {"objective": {"name": "distillation", "teacher": "full"}}


def test_a_student_has_some_of_the_layers_of_its_teacher(tmp_path: Path) -> None:
    """A teacher and a smaller student in one run. The student goes on with the optimizer's state of what it keeps."""
    keeps = {"grow": {"operator": "layers", "layers": [1]}}
    _, full, student = stages_of(tmp_path, stages=[*TWO, {**STUDENT, **LEARNS, **keeps}])
    assert (student.teacher.key, student.parent_key) == (full.key, full.key)
    assert (student.teacher.shape.num_layers, student.shape.num_layers) == (2, 1)
    rules = growth_map(student.parent_shape, student.shape, "layers", "grow", student.growth.options)
    assert {rule.source for rule in rules if ".layers." in rule.target} == {
        rule.target.replace(".0.", ".1.") for rule in rules if ".layers." in rule.target
    }
    assert {(rule.weights, rule.moments) for rule in rules} == {("copy", "copy")}
    assert student.start_flops == full.end_flops, "the teacher's training counts"


def test_a_student_of_fewer_layers_says_which(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        stages_of(tmp_path, stages=[*TWO, {**STUDENT, **LEARNS}])
    assert str(caught.value) == (
        "stages[2].grow: missing, though num_layers goes from 2 to 1; expected which layers stay, for example "
        "grow: {operator: layers, layers: [0]}"
    )


@pytest.mark.parametrize(
    ("objective", "problem"),
    [
        ({}, "missing; expected the model to learn from"),
        (
            {"teacher": "full"},
            r"found 'full', the stage itself; expected an earlier stage \(small\), a folder or a hub",
        ),
        (
            {"teacher": "smal"},
            r"found 'smal', which is no stage and no folder here; expected an earlier stage \(small\)",
        ),
        ({"teacher": "/"}, r"objective\.teacher: /: found no config\.json"),
    ],
)
def test_a_teacher_that_is_none_is_refused(tmp_path: Path, objective: dict, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        taught(tmp_path, objective)


def test_a_teacher_that_is_a_later_stage_is_refused(tmp_path: Path) -> None:
    objective = {"name": "distillation", "teacher": "full"}
    with pytest.raises(
        InputError, match=r"stages\[0\]\.objective\.teacher: found 'full', a later stage; expected a fold"
    ):
        stages_of(tmp_path, stages=[{**TWO[0], "objective": objective}, TWO[1]])


def test_an_option_of_distillation_is_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"objective\.alpha: found 0\.7 with causal_lm; expected it with name: distil"):
        stages_of(tmp_path, model={"num_layers": 1}, objective={"alpha": 0.7})


def test_a_teacher_from_a_folder_is_identified_by_its_weights(tmp_path: Path) -> None:
    models = [started_models.make(tmp_path / name, "llama") for name in ("here", "there")]
    (tmp_path / "text").mkdir()
    full = [taught(tmp_path / "text", {"teacher": str(one)})[1] for one in models]
    assert full[0].key == full[1].key
    assert (full[0].teacher.shape.vocab_size, full[0].teacher.key) == (260, None)
    assert not full[0].trained_on.is_whole  # nobody knows what its teacher has read
    other = started_models.make(tmp_path / "other", "llama", torch.bfloat16)
    assert taught(tmp_path / "text", {"teacher": str(other)})[1].key != full[0].key


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        ("llama", {"max_position_embeddings": 8}, "whose context has 8 tokens; expected at least the model's 10"),
        ("llama", {"vocab_size": 200}, "its vocabulary: found 200; expected at least 257"),
        ("bert", {}, "a bert; expected a model that learns the next token"),
    ],
)
def test_a_teacher_that_cannot_read_the_text_is_refused(
    tmp_path: Path, family: str, changes: dict, problem: str
) -> None:
    model = started_models.make(tmp_path / "model", family, **changes)
    (tmp_path / "text").mkdir()
    with pytest.raises(InputError, match=problem):
        taught(tmp_path / "text", {"teacher": str(model)})


def test_a_classifier_teaches_no_tokens(tmp_path: Path) -> None:
    model = folder_of(SOURCES["llama classes"], tmp_path)
    (tmp_path / "text").mkdir()
    with pytest.raises(InputError, match="a model for 5 classes; expected a model that learns the next token"):
        taught(tmp_path / "text", {"teacher": str(model)})


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    words = [save_words(tmp_path / name, *names) for name, names in (("ab", "ab"), ("ba", "ba"), ("more", "abc"))]
    model = started_models.make(tmp_path / "model", "llama")
    (tmp_path / "text").mkdir()
    for file in words[0].iterdir():
        shutil.copy(file, model / file.name)
    for place, fits in zip(words, (True, False, False), strict=True):
        data = {"tokenizer": str(place)}
        if fits:
            assert taught(tmp_path / "text", {"teacher": str(model)}, data=data)
            continue
        with pytest.raises(InputError, match="was trained with another tokenizer than"):
            taught(tmp_path / "text", {"teacher": str(model)}, data=data)


# --- several teachers -------------------------------------------------------------------------


def three(folder: Path, teacher: object, **changes: object) -> tuple[StagePlan, ...]:
    """Two stages, and one that learns from them."""
    stages = [
        {"name": "first", "model": {"num_layers": 1}, "until": {"tokens": 400}},
        {"name": "second", "model": {"num_layers": 1}, "until": {"tokens": 400}},
        {**TWO[1], "objective": {"name": "distillation", "teacher": teacher}},
    ]
    return stages_of(folder, stages=stages, **changes)


def test_of_several_teachers_each_is_in_the_key_and_costs_a_forward_pass(tmp_path: Path) -> None:
    first, second, full = three(tmp_path, ["first", "second"])
    alone = three(tmp_path, "first")[2]
    assert [one.key for one in full.teacher.all] == [first.key, second.key]
    assert full.teacher.facts() == {"mean_of": [{"stage": first.key}, {"stage": second.key}]}
    assert full.teacher_flops == 2 * alone.teacher_flops
    assert full.memory.teacher_bytes == 2 * alone.memory.teacher_bytes
    assert len({full.key, alone.key, three(tmp_path, "second")[2].key}) == 3


def test_a_baseline_keeps_teachers_that_are_all_from_elsewhere(tmp_path: Path) -> None:
    models = [str(started_models.make(tmp_path / name, "llama", kind)) for name, kind in
              (("one", torch.float32), ("other", torch.bfloat16))]  # fmt: skip
    (tmp_path / "text").mkdir()
    first, _, full = three(tmp_path / "text", ["first", models[0]])
    assert [one.key for one in full.teacher.all] == [first.key, None]
    assert not full.trained_on.is_whole
    for teacher, is_kept in ((models, True), (["small", models[0]], False)):
        stages = [TWO[0], {**TWO[1], "objective": {"name": "distillation", "teacher": teacher}}]
        plan = make_plan(make_schedule(tmp_path / "text", stages=stages, baseline={"budgets": [400]}))
        baseline = plan.baselines[0].stages[-1]
        assert baseline.teacher == (plan.staged.stages[1].teacher if is_kept else None)


@pytest.mark.parametrize("teacher", [["first"], ["first", "first"], [], ["first", 3], "", 3, [["first", "second"]]])
def test_what_is_no_list_of_teachers(tmp_path: Path, teacher: object) -> None:
    with pytest.raises(InputError, match=r"teacher: found .*; expected a model, or a list of 2 to 16 different ones"):
        three(tmp_path, teacher)


def test_one_of_several_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stages\[2\]\.objective\.teacher: found 'third', which is no stage"):
        three(tmp_path, ["first", "third"])
