"""Published recipes: the one of public size and its small twin say the same, and the page shows what they plan."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import recipes
from pages import PAGES
from raystage.config.schedule import load
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan

# Parameters of the published models, in billions, and how far ours may be from them. DeepSeek-V3 has latent attention.
PUBLISHED = {
    "smollm3": (3.08, 0.01),  # https://hf.co/HuggingFaceTB/SmolLM3-3B
    "olmo3": (7.3, 0.01),  # https://hf.co/allenai/Olmo-3-1025-7B
    "llama3": (405, 0.01),  # 2407.21783
    "deepseek_v3": (671, 0.1),  # 2412.19437
    "qwen3": (8.2, 0.01),  # 2505.09388
}


@pytest.fixture(params=recipes.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """Every recipe of public size, planned on stand-ins for its tokens."""
    write, folder = recipes.stand_ins().write, tmp_path_factory.mktemp("recipes")
    return {name: make_plan(load(write(recipes.FOLDER / f"{name}.yaml", folder / name))) for name in recipes.NAMES}


def small(name: str) -> Plan:
    return make_plan(load(recipes.FOLDER / f"{name}-small.yaml"))


def test_every_recipe_is_known() -> None:
    assert {path.stem.removesuffix("-small") for path in recipes.FOLDER.glob("*.yaml")} == set(recipes.NAMES)


def test_a_recipe_plans_at_public_size(name: str, planned: dict[str, Plan]) -> None:
    expected, tolerance = PUBLISHED[name]
    assert planned[name].staged.stages[-1].num_params / 1e9 == pytest.approx(expected, rel=tolerance)
    assert not planned[name].baselines, "from scratch at public size would cost as much again"


def test_a_small_twin_has_the_same_stages(name: str, planned: dict[str, Plan]) -> None:
    large, twin = planned[name].staged.stages, small(name).staged.stages
    assert [stage.name for stage in large] == [stage.name for stage in twin]
    for one, other in zip(large, twin, strict=True):
        assert one.shape.family == other.shape.family
        assert bool(one.shape.rope_scaling) == bool(other.shape.rope_scaling), one.name
        assert one.within_documents == other.within_documents, one.name
        assert (one.accept is None) == (other.accept is None), one.name
        assert one.training.lr_schedule.kind == other.training.lr_schedule.kind, one.name
    longer, longer_too = (
        [before.shape.context_length < after.shape.context_length for before, after in pairwise(stages)]
        for stages in (large, twin)
    )
    assert longer == longer_too


def test_a_recipe_says_where_its_numbers_are_from_and_what_it_leaves_out(name: str) -> None:
    header = (recipes.FOLDER / f"{name}.yaml").read_text().partition("\nname:")[0]
    assert re.search(r"^# Sources[.:].*(\d{4}\.\d{5}|https://)", header, re.M | re.S)
    assert re.search(r"^# What this schedule does not say:\n#   - ", header, re.M)


def test_the_page_shows_what_they_plan(name: str, planned: dict[str, Plan]) -> None:
    page = PAGES["docs/recipes.md"]
    for row in (recipes.row(name, planned[name]), recipes.row(f"{name}-small", small(name))):
        assert row in page, f"docs/recipes.md has no row\n{row}"


def test_stand_ins_differ_so_that_no_source_is_another(tmp_path: Path) -> None:
    recipes.stand_ins().write(recipes.FOLDER / "qwen3.yaml", tmp_path)
    files = sorted(tmp_path.rglob("*.npy"))
    assert len({path.read_bytes() for path in files}) == len(files) == 12
    assert yaml.safe_load((tmp_path / "qwen3.yaml").read_text())["name"] == "qwen3"
