"""How a text is read, as planned: documents that are kept apart, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chats import save_chat_words, write_chats
from factories import make_schedule
from raystage.config.schedule import Schedule, parse
from raystage.data.order.curriculum import CurriculumPlan
from raystage.errors import InputError
from raystage.objectives.plan import ObjectivePlan
from raystage.objectives.table import OBJECTIVES
from raystage.planning.build import make_plan
from raystage.planning.draft import Context, StageDraft
from raystage.planning.inputs import Sources
from raystage.planning.order import fix_curriculum
from raystage.plans.keys import key_at, placed, trunk_key
from raystage.results.data.data_use import amounts_read, uses
from raystage.results.data.mixtures import order_lines
from token_writers import write_megatron, write_nanogpt

APART = {"window": {"mask": "document"}}
TOKENS = [[one % 7, 5, 3, 9] for one in range(60)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    return tmp_path / "text"


def on_tokens(schedule: Schedule, path: Path, **more: object) -> Schedule:
    content = schedule.content()
    content["model"]["vocab_size"] = 16
    content["data"] = {"source": "tokens", "path": str(path), "validation_fraction": 0.4, **APART, **more}
    return parse(content)


def test_documents_kept_apart_are_part_of_the_key_and_nothing_else_is(text: Path) -> None:
    across, apart = make_plan(make_schedule(text)), make_plan(make_schedule(text, data=APART))
    none = make_plan(make_schedule(text, data={"window": {"mask": "none"}}))
    assert none == across
    assert not set(across.stage_keys()) & set(apart.stage_keys())
    for one, other in zip(across.staged.stages, apart.staged.stages, strict=True):
        assert not one.within_documents
        assert replace(other, key="", parent_key=None) == replace(one, key="", parent_key=None, within_documents=True)
    assert all(stage.within_documents for run in apart.baselines for stage in run.stages)


def test_a_stage_may_keep_documents_apart_that_the_stage_before_did_not(text: Path) -> None:
    schedule = make_schedule(text).content()
    schedule["stages"][1]["data"] = APART
    stages = make_plan(parse(schedule)).staged.stages
    assert [stage.within_documents for stage in stages] == [False, True]
    assert stages[0].key == make_plan(make_schedule(text)).staged.stages[0].key


def test_an_objective_that_cannot_keep_documents_apart_is_refused(text: Path) -> None:
    (text.parent / "losses.py").write_text("def loss(model, batch):\n    return 0\n")
    own = {"name": "own", "function": f"{text.parent / 'losses.py'}:loss"}
    said = r"^data.window.mask: found document with the objective own; expected one that keeps documents apart"
    with pytest.raises(InputError, match=said):
        make_plan(make_schedule(text, data=APART, objective=own))


@pytest.mark.parametrize("objective", [{"name": "instruct"}, {"name": "masked_lm"}, {"name": "causal_lm"}])
def test_objectives_that_keep_documents_apart(objective: dict, text: Path) -> None:
    data, model = dict(APART), {"family": "bert"} if objective["name"] == "masked_lm" else {}
    schedule = make_schedule(text, model=model, objective=objective).content() | {"baseline": None}
    if objective["name"] == "instruct":
        data |= {"source": "jsonl", "path": str(write_chats(text.parent / "chats.jsonl")), "validation_fraction": 0.5,
                 "tokenizer": str(save_chat_words(text.parent / "words"))}  # fmt: skip
        schedule["data"] = data
    else:
        schedule["data"] |= data
    assert all(stage.within_documents for stage in make_plan(parse(schedule)).staged.stages)


def test_tokens_need_to_say_where_documents_end(text: Path) -> None:
    schedule, folders = make_schedule(text), [text.parent / name for name in ("plain", "indexed")]
    for folder in folders:
        folder.mkdir()
    plain, indexed = write_nanogpt(folders[0], TOKENS * 1000), write_megatron(folders[1], TOKENS)
    said = r"^data.window.mask: found document, but nothing says where the documents in .*a\.bin end"
    with pytest.raises(InputError, match=said):
        make_plan(on_tokens(schedule, plain, format="uint16"))
    assert make_plan(on_tokens(schedule, plain, format="uint16", end_token=9)).staged.stages[0].within_documents
    assert make_plan(on_tokens(schedule, indexed)).staged.stages[0].within_documents


def test_a_wrong_mask_is_one_message(text: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.window\.mask: .*none.*document"):
        make_schedule(text, data={"window": {"mask": "documents"}})


# --- curricula ----------------------------------------------------------------------------------


def curricula(text: Path, *written: dict | None, **changes: object) -> Schedule:
    """A stage for each of them, of 800 tokens and one layer."""
    stages = [
        {"name": f"s{index}", "model": {"num_layers": 1}, "until": {"tokens": 800}, "data": {"curriculum": one}}
        for index, one in enumerate(written)
    ]
    return make_schedule(text, **{"stages": stages, "baseline": None, **changes})


def test_a_curriculum_has_everything_from_its_stage(text: Path) -> None:
    (stage,) = make_plan(curricula(text, {})).staged.stages
    assert stage.curriculum == CurriculumPlan("length", False, 0.2, "sqrt", 400)
    written = {"by": "length", "from": "hard", "start": 0.5, "pacing": "step", "over": 300}
    (stage,) = make_plan(curricula(text, written)).staged.stages
    assert stage.curriculum == CurriculumPlan("length", True, 0.5, "step", 300, 4)


def test_the_key_says_what_the_order_is_and_nothing_of_the_length(text: Path) -> None:
    """So that a longer stage continues from a shorter one, where the order is the same up to there."""
    plain = make_plan(curricula(text, None)).staged.stages[0]
    stages = [{"name": "s0", "model": {"num_layers": 1}, "until": {"tokens": 800}}]
    assert plain.key == make_plan(make_schedule(text, stages=stages, baseline=None)).staged.stages[0].key
    others = [{}, {"from": "hard"}, {"start": 0.3}, {"pacing": "linear"}, {"pacing": "step"}, {"over": 300}]
    others += [{"over": 0.75}, {"pacing": "step", "levels": 5}]
    keys = [make_plan(curricula(text, one)).staged.stages[0].key for one in others]
    assert len({plain.key, *keys}) == len(keys) + 1
    short, long = (
        make_plan(curricula(text, {"over": 400}, stages=[
            {"name": "s", "model": {"num_layers": 1}, "until": {"tokens": tokens},
             "data": {"curriculum": {"over": 400}}}],
            training={"lr_schedule": {"kind": "constant"}, "evaluate": {"tokens": 50}})).staged.stages[0]
        for tokens in (800, 1600)
    )  # fmt: skip
    assert key_at(long, short.steps) == short.key
    assert trunk_key(long) == trunk_key(short)


def test_a_baseline_reads_shuffled_text_with_the_same_windows(text: Path) -> None:
    plan = make_plan(make_schedule(text, data={"curriculum": {}, **APART}))
    assert all(stage.curriculum for stage in plan.staged.stages)
    for run in plan.baselines:
        assert all(stage.curriculum is None and stage.reading is None for stage in run.stages)
        assert all(stage.within_documents for stage in run.stages)
    shuffled = make_plan(make_schedule(text, data=APART))
    assert [run.stages for run in plan.baselines] == [run.stages for run in shuffled.baselines]


def test_cursors_go_on_and_tokens_are_those_of_the_text(text: Path) -> None:
    plan = make_plan(curricula(text, None, {}, None, {"from": "hard"}))
    stages, content = plan.staged.stages, plan.staged.stages[0].data.content
    assert [stage.reading is None for stage in stages] == [True, False, False, False]
    sorted_name = stages[1].reading.shares[0][0]
    assert stages[2].reading.shares == stages[1].reading.shares != stages[3].reading.shares
    assert stages[2].reading.at(160) == (sorted_name, 80)
    assert stages[3].reading.at(240)[1] == 0
    assert [amounts_read(stage) for stage in stages] == [{content: 800}] * 4
    (use,) = uses(plan.staged)
    assert use.read == 3200


def test_after_a_stage_that_ended_early_the_text_goes_on_from_its_real_end(text: Path) -> None:
    schedule = curricula(text, {}, None, training={"lr_schedule": {"kind": "constant"}}).content()
    schedule["stages"][0]["until"] = {"tokens": 800, "eval_loss": 1.0}
    _, second = make_plan(parse(schedule)).staged.stages
    moved = placed(second, 300, 3, 10**6)
    assert moved.reading.at(30) == (second.reading.shares[0][0], 30)
    assert [pace.first for (paces,) in [moved.paces.values()] for pace in paces] == [0, 30]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"by": "size"}, r"stages\[0\]\.data\.curriculum\.by: found 'size'; expected length"),
        ({"by": {"loss": {"stage": "s0"}}}, r"data\.curriculum\.by: loss: found .*; expected text"),
        (
            {"by": {"loss": "s0", "column": "x"}},
            r"curriculum\.by: found column beside loss; expected one of them",
        ),
        ({"by": {}}, r"data\.curriculum\.by: found neither column nor loss; expected one of them"),
        ({"start": 0}, r"stages\[0\]\.data\.curriculum\.start"),
        ({"over": 0}, r"found over: 0; expected a fraction of the stage"),
        ({"over": 900}, r"stages\[0\]\.data\.curriculum\.over: found 900 in a stage of 800 tokens; expected at most"),
        ({"levels": 3}, r"found levels with pacing: sqrt; expected pacing: step beside them"),
        ({"pacing": "cosine"}, r"stages\[0\]\.data\.curriculum\.pacing"),
        ({"from": "middle"}, r"stages\[0\]\.data\.curriculum\.from"),
    ],
)
def test_a_wrong_curriculum_is_one_message(text: Path, written: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_plan(curricula(text, written))


def test_no_sequence_begins_within_another_where_there_is_a_curriculum(text: Path) -> None:
    schedule = curricula(text, None, {}).content()
    schedule["model"]["context_length"] = 20
    schedule["stages"][0] |= {"model": {"num_layers": 1, "context_length": 10}, "until": {"tokens": 90},
                              "training": {"global_batch_tokens": 90}}  # fmt: skip
    said = r"found a batch of 90 in a run with a curriculum, which later reads longer sequences; expected a mult"
    with pytest.raises(InputError, match=said):
        make_plan(parse(schedule))


def test_a_plan_says_in_which_order_text_is_read(text: Path) -> None:
    written = {"start": 0.25, "over": 300}
    plan = make_plan(curricula(text, None, written, {"from": "hard"}, data=APART))
    said = "Order of {}: documents by their length, the {} first; {} % of the text at its start, "
    said += "all of it after {} tokens."
    assert order_lines(plan.staged) == [
        said.format("s1", "lowest", "25.0", 300),
        said.format("s2", "highest", "20.0", 400),
        "Documents are kept apart in s0, s1, s2.",
    ]
    assert order_lines(make_plan(make_schedule(text)).staged) == []


def test_samples_have_no_curriculum(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = replace(OBJECTIVES["causal_lm"], name="counted", unit="samples")
    monkeypatch.setitem(OBJECTIVES, "counted", counted)
    draft = StageDraft(0, curricula(text, {}).resolved(0), 0, False, objective=ObjectivePlan("counted"))
    with pytest.raises(
        InputError, match=r"^data\.curriculum: found a curriculum with the objective counted, which reads"
    ):
        fix_curriculum(draft, Context(curricula(text, {}), None, Sources()))
