"""Layers with windows and without, by turns: a copy stays of its origin's kind, and the turns stay where they can."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exports import folder_of
from factories import make_schedule
from folders import assert_same
from folders import grown as grown_folder
from growths import GrowthCase, deeper, listed, tiny
from raystage.growth.checks import refusal, with_layer_kinds
from raystage.growth.operators import layer_origins
from raystage.models.shape import ModelShape
from raystage.planning.build import make_plan
from real_models import built, logits_for, source_logits, weights


def origins(operator: str, sources: int, targets: int, family: str = "gemma2") -> tuple[list[int | None], str]:
    """The origins of the layers of a growth, and the kinds that these are."""
    source = tiny(family, num_layers=sources)
    target = with_layer_kinds(source, source.with_layers(targets), operator)
    return [one.source for one in layer_origins(source, target, operator, deeper("stack", 1, 1).options)], target.kinds


@pytest.mark.parametrize(
    ("operator", "sources", "targets", "layers", "kinds"),
    [
        # Whole periods, here of two layers: the turns go on.
        ("stack", 2, 6, [0, 1, 0, 1, 0, 1], "sfsfsf"),
        ("interleave", 4, 8, [0, 1, 0, 1, 2, 3, 2, 3], "sfsfsfsf"),
        ("interleave", 5, 7, [0, 1, 0, 1, 2, 3, 4], "sfsfsfs"),
        ("identity", 4, 6, [0, 1, 2, 3, 2, 3], "sfsfsf"),
        ("identity", 3, 5, [0, 1, 0, 1, 2], "sfsfs"),
        ("middle", 4, 6, [0, 1, 0, 1, 2, 3], "sfsfsf"),
        ("last", 4, 6, [0, 1, 2, 3, 2, 3], "sfsfsf"),
        # Others: each copy is of its origin's kind, and the turns are others than the family's.
        ("stack", 3, 6, [0, 1, 2, 0, 1, 2], "sfssfs"),
        ("interleave", 3, 4, [0, 0, 1, 2], "ssfs"),
        ("identity", 3, 4, [0, 1, 2, 2], "sfss"),
        ("stack", 1, 2, [0, 0], "ss"),
        # New layers are of the family's kinds.
        ("random", 1, 4, [0, None, None, None], "sfsf"),
    ],
)  # fmt: skip
def test_where_layers_come_from_and_what_they_are(
    operator: str, sources: int, targets: int, layers: list[int | None], kinds: str
) -> None:
    assert origins(operator, sources, targets) == (layers, kinds)


def difference(case: GrowthCase) -> float:
    """The largest difference of logits between source and target, in fp64."""
    with torch.no_grad():
        after = logits_for(built(case.target, weights(case, np.float64), torch.float64), case.source)
    return (after - source_logits(case.source, torch.float64)).abs().max().item()


def test_with_a_copy_of_another_kind_an_exact_growth_would_not_be_one() -> None:
    """What carrying the kinds is for: beyond the window the same weights compute something else."""
    case = deeper("identity", 3, 4, listed(0, 0, 1, 2), name="gemma2")
    assert case.target.layer_kinds == "ssfs"
    assert case.exact
    assert difference(case) < 1e-10
    # The same weights, in layers that go by their numbers alone.
    with torch.no_grad():
        turned = logits_for(built(replace(case.target, layer_kinds=""), weights(case), torch.float64), case.source)
    assert (turned - source_logits(case.source, torch.float64)).abs().max() > 1e-4


def test_in_contexts_up_to_the_window_both_kinds_of_gemma2_are_one_function() -> None:
    source = tiny("gemma2", num_layers=3, sliding_window=10)
    target = replace(source.with_layers(4), layer_kinds="ssfs")
    case = GrowthCase("identity", "gemma2", source, target, listed(0, 0, 1, 2))
    with torch.no_grad():
        turned = logits_for(built(replace(case.target, layer_kinds=""), weights(case), torch.float64), source)
    assert (turned - source_logits(source, torch.float64)).abs().max() < 1e-10


def test_a_target_of_other_kinds_than_its_origins_is_refused() -> None:
    source = tiny("gemma2", num_layers=3)
    field, problem = refusal(source, source.with_layers(6), "stack")
    assert field == "layer_kinds"
    assert problem == (
        "found 'sfsfsf', in which layer 3 is another kind than its origin 0; expected the kinds of 'sfs' to go along"
    )
    for field, value in (("sliding_window", 8), ("query_pre_attn_scalar", 4)):
        found = refusal(source, replace(source, **{field: value}), "stack")
        assert found == (field, f"found {value} after {getattr(source, field)}; expected {getattr(source, field)}, "
                         "for a growth keeps what a layer attends to")  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        (("--set=num_layers=4", "--operator=identity"), "sfsf"),
        (("--set=num_layers=3", "--operator=identity"), "sff"),
        (("--set=num_layers=4", "--operator=identity", "--layers=0,0,1,1"), "ssff"),
    ],
    ids=["by turns", "an odd number", "a list"],
)
def test_a_folder_grows_with_its_kinds_written_out(arguments: tuple[str, ...], kinds: str, tmp_path: Path) -> None:
    source = folder_of(tiny("gemma2", vocab_size=40), tmp_path)
    assert grown_folder(source, tmp_path / "target", *arguments)["exact"] is True
    assert_same(source, tmp_path / "target")
    written = json.loads((tmp_path / "target/config.json").read_text())
    assert "".join(name[0] for name in written["layer_types"]) == kinds


def shapes_of(folder: Path, *stages: dict, **model: object) -> list[ModelShape]:
    plan = make_plan(make_schedule(folder, model={"family": "gemma2", **model}, stages=list(stages)))
    return [stage.shape for stage in plan.staged.stages]


def test_a_schedule_carries_the_kinds_from_stage_to_stage(tmp_path: Path) -> None:
    """And the baseline has those of the last stage."""
    until = {"until": {"tokens": 1200}}
    stages = [
        {"name": "small", "model": {"num_layers": 3}, **until},
        {"name": "large", "model": {"num_layers": 6}, "grow": {"operator": "stack"}, **until},
        {"name": "same", "model": {"num_layers": 6}, **until},
        {"name": "larger", "model": {"num_layers": 8}, "grow": {"operator": "identity"}, **until},
    ]
    small, large, same, larger = shapes_of(tmp_path, *stages)
    assert (small.layer_kinds, large.layer_kinds, same.layer_kinds) == ("", "sfssfs", "sfssfs")
    assert larger.layer_kinds == "sfsssfss"  # of the layers 0 1 2 2 3 4 5 5
    assert (small.sliding_window, small.query_pre_attn_scalar) == (4096, small.head_size)
    plan = make_plan(make_schedule(tmp_path, model={"family": "gemma2", "sliding_window": 8}, stages=stages))
    assert {stage.shape.sliding_window for stage in plan.staged.stages} == {8}
    assert plan.baselines[0].stages[-1].shape == plan.staged.stages[-1].shape


def test_a_listed_order_takes_the_kinds_along() -> None:
    case = deeper("layers", 2, 4, listed(1, 0, 0, 1), name="gemma2")
    assert case.target.kinds == "fssf"
    assert case.target.layer_kinds == "fssf"


def test_published_sizes_keep_their_turns_by_whole_periods() -> None:
    """26 layers are four periods of six and two more: these stay on top, and the first period is repeated."""
    source = tiny("gemma3_text", num_layers=26)
    deeper_by_six = with_layer_kinds(source, source.with_layers(32), "interleave")
    assert deeper_by_six.layer_kinds == ""
    found = [one.source for one in layer_origins(source, deeper_by_six, "interleave", deeper("stack", 1, 1).options)]
    assert found == [*range(6), *range(6), *range(6, 26)]
    assert with_layer_kinds(source, source.with_layers(52), "stack").layer_kinds == 2 * source.kinds


def test_in_gemma3_the_kinds_differ_in_contexts_of_any_length() -> None:
    """By the base of their rotary positions."""
    source = tiny("gemma3_text", num_layers=6, sliding_window=10)
    target = with_layer_kinds(source, source.with_layers(7), "identity")
    assert target.layer_kinds == "sssssff"
    case = GrowthCase("identity", "gemma3_text", source, target)
    assert difference(case) < 1e-10
    whole = replace(case.target, layer_kinds="fffffff")
    with torch.no_grad():
        turned = logits_for(built(whole, weights(case), torch.float64), source)
    assert (turned - source_logits(source, torch.float64)).abs().max() > 1e-4
