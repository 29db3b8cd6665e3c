"""What many plans read is looked up once."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_schedule
from raystage.config.schedule import parse
from raystage.errors import InputError
from raystage.planning import inputs
from raystage.planning.build import make_plan
from raystage.planning.inputs import Sources
from row_files import write_saved


def test_a_corpus_is_read_once_for_all_stages_and_schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], inputs.read_corpus
    monkeypatch.setattr(inputs, "read_corpus", lambda *source: read.append(source) or real(*source))
    known = Sources()
    alone = make_plan(make_schedule(tmp_path, seed=1))
    assert len(read) == 1
    together = [make_plan(make_schedule(tmp_path, seed=seed), sources=known) for seed in (1, 2)]
    assert len(read) == 2
    assert together[0] == alone


def test_one_corpus_split_in_two_ways_is_read_once(tmp_path: Path) -> None:
    known = Sources()
    first = make_schedule(tmp_path).data
    plan = known.data(first)
    (tmp_path / "0.txt").write_text("changed")
    second = known.data(first.model_copy(update={"validation_fraction": 0.4}))
    assert second.fingerprint == plan.fingerprint != Sources().data(first).fingerprint
    assert second.validation_fraction == 0.4


@pytest.mark.parametrize("mixed", [False, True])
def test_a_damaged_file_of_a_source_is_named(mixed: bool, tmp_path: Path) -> None:
    """And not only the schedule and its key."""
    folder = write_saved(tmp_path / "saved")
    (folder / "state.json").write_text("{")
    data = {"source": "huggingface", "path": str(folder)}
    if mixed:
        data = {"mixture": [{"name": "a", "weight": 1, **data}]}
    model = {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "context_length": 8}
    stage = {"name": "a", "until": {"steps": 1}, "data": data, "training": {"global_batch_tokens": 8}}
    with pytest.raises(InputError, match=r"saved/state\.json: .*\.path: damaged .*; expected JSON"):
        make_plan(parse({"name": "a", "model": model, "stages": [stage]}))
