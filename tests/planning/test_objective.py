"""The objective of a stage, as planned: what it adds to a key, to the vocabulary, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from chats import TEMPLATE, conversations, save_chat_words, write_chats
from factories import make_schedule, save_words
from raystage.config.stage import Data
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan

BERT = {"family": "bert", "num_layers": 1}
ONE = [{"name": "one", "until": {"tokens": 800}}]
LOSS = """
def loss(model, batch, **options):
    return model(input_ids=batch["tokens"]).logits.sum()

def targets(batch, **options):
    return 3
"""


def stages_of(folder: Path, **changes: object) -> tuple[StagePlan, ...]:
    return make_plan(make_schedule(folder, **{"baseline": None, "stages": ONE, **changes})).staged.stages


def test_a_mask_token_that_is_missing_gets_an_id_of_its_own(tmp_path: Path) -> None:
    (stage,) = stages_of(tmp_path, model=BERT, objective="masked_lm")
    assert stage.objective.options == {"mask_share": 0.15, "mask_id": 257, "num_ids": 257}
    assert stage.shape.vocab_size == 258


@pytest.mark.parametrize(("written", "expected"), [({}, 5), ({"mask_token": "document"}, 3)])
def test_a_mask_token_of_the_tokenizer_is_used(tmp_path: Path, written: dict, expected: int) -> None:
    words = save_words(tmp_path / "words", "a", "document", *map(str, range(12)))
    objective = {"name": "masked_lm", **written}
    if not written:
        config = words / "tokenizer_config.json"
        config.write_text(config.read_text().replace('"unk_token"', '"mask_token": "1", "unk_token"'))
    text = tmp_path / "text"
    text.mkdir()
    (stage,) = stages_of(text, model=BERT, objective=objective, data={"tokenizer": str(words)})
    assert stage.objective.options["mask_id"] == expected
    assert stage.shape.vocab_size == stage.data.tokenizer_size


def test_a_mask_token_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"objective\.mask_token: found 'x', which is no token of 'bytes'"):
        stages_of(tmp_path, model=BERT, objective={"name": "masked_lm", "mask_token": "x"})


def test_what_decides_is_in_the_key_and_nothing_else(tmp_path: Path) -> None:
    keys = {
        share: stages_of(tmp_path, model=BERT, objective={"name": "masked_lm", "mask_share": share})[0].key
        for share in (0.15, 0.3)
    }
    assert len(set(keys.values())) == 2
    plain, named = (
        stages_of(tmp_path, model={"num_layers": 1}, **more)[0] for more in ({}, {"objective": "causal_lm"})
    )
    assert plain.key == named.key


def test_the_code_of_a_function_is_in_the_key_and_its_place_is_not(tmp_path: Path) -> None:
    here, there = tmp_path / "here.py", tmp_path / "there.py"
    here.write_text(LOSS)
    there.write_text(LOSS)
    text = tmp_path / "text"
    text.mkdir()

    def key(file: Path, function: str = "loss", **options: object) -> str:
        objective = {"name": "own", "function": f"{file}:{function}", "options": options}
        return stages_of(text, model={"num_layers": 1}, objective=objective)[0].key

    first = key(here)
    assert key(there) == first
    assert key(here, smooth=0.1) != first
    there.write_text(LOSS + "\n# changed\n")
    assert key(there) != first


def test_a_stage_that_names_an_objective_says_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "loss.py"
    file.write_text(LOSS)
    text = tmp_path / "text"
    text.mkdir()
    stages = [
        {"name": "first", "until": {"tokens": 400}, "objective": "causal_lm"},
        {"name": "second", "until": {"tokens": 400}, "objective": {"options": {"b": 2}}},
    ]
    objective = {"name": "own", "function": f"{file}:loss", "options": {"a": 1}}
    first, second = stages_of(text, model={"num_layers": 1}, objective=objective, stages=stages)
    assert first.objective.name == "causal_lm"
    assert second.objective.options["options"] == {"a": 1, "b": 2}
    assert second.parent_objective == first.objective


def test_a_function_that_takes_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "loss.py"
    file.write_text("def loss(model):\n    return 0\n")
    text = tmp_path / "text"
    text.mkdir()
    with pytest.raises(InputError, match=r"objective\.function: .*cannot be called with 2 arguments"):
        stages_of(text, model={"num_layers": 1}, objective={"name": "own", "function": f"{file}:loss"})


# --- instruct


def chat_stage(folder: Path, name: str = "a", template: str | None = TEMPLATE, **data: object) -> StagePlan:
    """name: of the folder in which tokenizer and conversations lie."""
    tokenizer = save_chat_words(folder / f"{name}/words", template)
    path = write_chats(folder / f"{name}/chats.jsonl")
    data = {"source": "jsonl", "path": str(path), "tokenizer": str(tokenizer), **data}
    (folder / "text").mkdir(exist_ok=True)
    model, training = {"num_layers": 1}, {"evaluate": {"tokens": 100}}
    return stages_of(folder / "text", model=model, training=training, objective="instruct", data=data)[0]


def test_a_chat_template_is_in_the_key_and_its_place_is_not(tmp_path: Path) -> None:
    first, elsewhere = chat_stage(tmp_path), chat_stage(tmp_path, "b")
    assert first.key == elsewhere.key
    assert first.data.chat_template == TEMPLATE
    assert first.shape.vocab_size == 16
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    assert chat_stage(tmp_path, chat_template=str(tmp_path / "own.jinja")).key == first.key
    (tmp_path / "own.jinja").write_text(TEMPLATE + "w1")
    assert chat_stage(tmp_path, chat_template=str(tmp_path / "own.jinja")).key != first.key
    assert chat_stage(tmp_path, template=TEMPLATE + "w1").key != first.key


def test_conversations_may_lie_in_another_field(tmp_path: Path) -> None:
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(write_chats(tmp_path / "chats.jsonl").read_text().replace('"messages"', '"turns"'))
    assert chat_stage(tmp_path, path=str(renamed), field="turns").key == chat_stage(tmp_path).key


def test_a_mixture_of_conversations_has_one_template(tmp_path: Path) -> None:
    tokenizer = str(save_chat_words(tmp_path / "words"))
    entries = [
        {"name": name, "source": "jsonl", "path": str(write_chats(tmp_path / f"{name}.jsonl", chats)), "weight": 0.5}
        for name, chats in (("one", conversations(80)[::2]), ("two", conversations(80)[1::2]))
    ]
    (tmp_path / "text").mkdir()
    plain = make_schedule(tmp_path / "text", baseline=None, stages=ONE, model={"num_layers": 1}, objective="instruct")
    data = Data(mixture=entries, tokenizer=tokenizer)
    (stage,) = make_plan(plain.model_copy(update={"data": data})).staged.stages
    assert [part.data.options.are_chats for part in stage.data.parts] == [True, True]
    assert stage.data.chat_template == TEMPLATE


CLOCK = TEMPLATE + "{{ strftime_now('%d') }}"
REFUSED = {
    "bytes": ({"tokenizer": "bytes"}, "data.tokenizer: found 'bytes', which has no tokens for the roles of a conver"),
    "no template": ({"template": None}, "data.chat_template: the tokenizer '.*' has no chat template; expected a file"),
    "no block": ({"template": "w1"}, r"data.chat_template: .* does not mark answers; expected {% generation %}\.\.\."),
    "clock": ({"template": CLOCK}, r"data.chat_template: .* reads the clock \(strftime_now\), so that it gives other"),
    "text": ({"source": "text"}, "data.source: found text with objective: instruct, which reads conversations; expec"),
    "an end": ({"end_token": "</s>"}, "data.end_token: found '</s>' with objective: instruct, whose chat template"),
    "no file": ({"chat_template": "nowhere.jinja"}, "data.chat_template: .*nowhere.jinja cannot be read"),
    "a folder": ({"chat_template": "."}, "data.chat_template: .* cannot be read .Is a directory"),
    "field": ({"field": "id"}, "data.path: .*chats.jsonl', line 1: found 0 in the field 'id'; expected a list of mess"),
    "no field": ({"field": "chat"}, "data.field: .*chats.jsonl', line 1: found no field 'chat'; it has 'id', 'messa"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_gives_no_answers_is_refused(case: str, tmp_path: Path) -> None:
    changes, said = REFUSED[case]
    with pytest.raises(InputError, match=said):
        chat_stage(tmp_path, **changes)


def test_a_template_for_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.chat_template: .* reads text; expected it with objective: instruct"):
        stages_of(tmp_path, model={"num_layers": 1}, data={"chat_template": "a.jinja"})
