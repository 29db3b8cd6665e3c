"""The objective of a stage, as planned: what it adds to a key, to the vocabulary, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_schedule, save_words
from raystage.errors import InputError
from raystage.plans.build import make_plan
from raystage.plans.plan import StagePlan

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
