"""Stage keys stay: what was trained under one is found again by every later version of raystage.

A change that has to change a key on purpose writes `tests/golden/keys.json` anew (see `golden_schedules`).
"""

from __future__ import annotations

import json
from pathlib import Path

from factories import write_documents
from golden_schedules import FILE, keys_of, shipped
from raystage.planning.inputs import Sources


def test_every_schedule_has_the_keys_that_it_had(tmp_path: Path) -> None:
    write_documents(tmp_path)
    sources = Sources()
    changed = {}
    for number, one in enumerate(json.loads(FILE.read_text())):
        found = keys_of(one["schedule"], tmp_path, sources)
        if found != one["keys"]:
            changed[number] = (one["schedule"], found)
    assert not changed


def test_the_shipped_schedules_of_one_text_can_be_written_anew(tmp_path: Path) -> None:
    write_documents(tmp_path)
    found, sources = dict(shipped()), Sources()
    assert {"quickstart.yaml", "masked_lm.yaml", "lstm.yaml"} <= found.keys()
    assert not {"digits.yaml", "mixture.yaml", "few_labels.yaml"} & found.keys(), "no text takes the place of these"
    for name, content in found.items():
        assert keys_of(content, tmp_path, sources)["staged"], name
