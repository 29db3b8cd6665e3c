"""How a text is read, as planned: documents that are kept apart, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chats import save_chat_words, write_chats
from factories import make_schedule
from raystage.config.schedule import Schedule, parse
from raystage.errors import InputError
from raystage.planning.build import make_plan
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
