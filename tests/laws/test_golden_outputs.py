"""Refactorings change no growth map, no bit of a training, no key of a shipped sweep, no figure of a report.

A change that is meant to writes the golden files anew (see `golden_outputs`).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from golden_outputs import GOLDEN, growth_maps, one_map_per_operator, report, sweep_keys, sweep_report, training
from raystage.files.typed_json import to_json
from raystage.results.sweep_report import sweep_report_from_json

# Another processor rounds sums of fp32 otherwise.
CLOSE = 1e-5


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def test_every_growth_has_the_map_that_it_had() -> None:
    found, expected = growth_maps(), golden("maps")
    assert {case for case in expected if found.get(case) != expected[case]} == set()
    assert found.keys() == expected.keys()


def test_the_first_growth_of_every_operator_has_the_values_that_it_had() -> None:
    found, expected = one_map_per_operator(), golden("maps_in_full")
    assert found.keys() == expected.keys()
    for case, rules in expected.items():
        assert json.loads(json.dumps(found[case])) == rules, case


def test_every_trial_of_a_shipped_sweep_has_the_keys_that_it_had() -> None:
    assert sweep_keys() == golden("sweeps")


def test_a_report_says_what_it_said() -> None:
    found, expected = report(), golden("report")
    assert found.keys() == expected.keys()
    for part, content in expected.items():
        assert found[part] == content, part


def test_a_sweeps_report_says_what_it_said_and_is_read_whole() -> None:
    found, expected = sweep_report(), golden("sweep_report")
    assert json.dumps(found) == json.dumps(expected)  # in the same order
    assert to_json(sweep_report_from_json(expected)) == expected


def test_a_training_has_the_bits_that_it_had() -> None:
    found, expected = training(), golden("training")
    bits = [found.pop("processor"), expected.pop("processor")]
    if bits[0] == bits[1]:
        assert found == expected
        return
    for curve in ("losses", "evaluations"):
        for stage, losses in zip(found[curve], expected[curve], strict=True):
            assert stage == pytest.approx(losses, rel=CLOSE)
    assert found["manifest"].keys() == expected["manifest"].keys()
    for part in expected["manifest"].keys() - {"shards", "progress"}:
        assert found["manifest"][part] == expected["manifest"][part], part
