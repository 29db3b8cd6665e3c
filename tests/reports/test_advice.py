"""Warnings, each with a schedule that gives it and one just beside that does not; suggestions worked out by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from factories import make_record, make_schedule, write_documents
from raystage.cli.main import main
from raystage.cli.views.plan_json import plan_json
from raystage.config.schedule import load
from raystage.files.filesystem import open_folder
from raystage.models.shape import num_body_params
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.reports.advice import warnings
from raystage.reports.suggestions import g_stack_tokens, prop_alpha_tokens, suggest
from raystage.storage.store import Store
from raystage.units import format_flops

QUICKSTART = Path(__file__).parents[2] / "jobs/schedules/quickstart.yaml"


@pytest.fixture
def plan_of(tmp_path: Path):
    """A plan of the factory's schedule with sections changed."""
    return lambda **changes: make_plan(make_schedule(tmp_path, **changes))


def stages(*layers_and_tokens: tuple[int, int], **last: object) -> list[dict]:
    """One stage for each pair, grown by stacking where it has more layers than the one before."""
    written: list[dict] = []
    for number, (layers, tokens) in enumerate(layers_and_tokens):
        stage = {"name": f"s{number}", "model": {"num_layers": layers}, "until": {"tokens": tokens}}
        if written and layers > written[-1]["model"]["num_layers"]:
            stage["grow"] = {"operator": "stack"}
        written.append(stage)
    written[-1] |= last
    return written


def wider(heads: int, operator: str, **grow: str) -> list[dict]:
    """Two stages, the second with `heads` heads of 4 instead of 2 and all else wider in proportion."""
    model = {"num_layers": 2, "hidden_size": 4 * heads, "num_heads": heads, "ffn_size": 8 * heads}
    return [
        stages((2, 800))[0],
        {"name": "wide", "model": model, "until": {"tokens": 1200}, "grow": {"operator": operator, **grow}},
    ]


def rate(kind: str, **changes: object) -> dict:
    return {"lr_schedule": {"kind": kind, "warmup": 100, **changes}}


# --- warnings ---------------------------------------------------------------------------------

COSINE, WSD = rate("cosine"), rate("wsd", decay=0.2)
LONGER_CONTEXT = {"num_layers": 2, "context_length": 20}
LAST = {"name": "anneal", "model": {"num_layers": 4}, "until": {"tokens": 200}}
ANNEAL = LAST | {"training": {"lr_schedule": {"kind": "linear", "warmup": 0}}}
GOING_ON = LAST | {"training": {"lr_schedule": {"kind": "linear", "from": "current"}}}

# name: what gives the warning, what is just beside it, the warning's key, words of its text, its source
CASES = {
    "late under cosine": (
        {"training": COSINE, "stages": stages((2, 1000), (4, 1000))},
        {"training": COSINE, "stages": stages((2, 900), (4, 1100))},
        "stages[1].grow", "at 50.0 % of a cosine", "2511.04981",
    ),
    "late under cosine, not with a rate of its own": (
        {"training": COSINE, "stages": stages((2, 1500), (4, 500))},
        {"training": rate("constant"), "stages": stages((2, 1500), (4, 500), training=COSINE)},
        "stages[1].grow", "where the rate is down to 16.1 %", "2511.04981",
    ),
    "1 layer under cosine": (
        {"training": COSINE, "stages": stages((1, 500), (2, 1500))},
        {"training": COSINE, "stages": stages((2, 500), (4, 1500))},
        "stages[1].grow", "from 1 layer under a cosine", "2511.04981",
    ),
    "1 layer, the rate": (
        {"training": COSINE, "stages": stages((1, 500), (2, 1500))},
        {"training": WSD, "stages": stages((1, 500), (2, 1500))},
        "stages[1].grow", "from 1 layer under a cosine", "2511.04981",
    ),
    "factor above 4": (
        {"stages": stages((1, 800), (5, 1200))},
        {"stages": stages((1, 800), (4, 1200))},
        "stages[1].grow", "from 1 to 5 layers, a factor of 5", "2405.15319",
    ),
    "hidden factor above 4": (
        {"stages": wider(12, "duplicate")},
        {"stages": wider(8, "duplicate")},
        "stages[1].grow", "from a hidden size of 8 to 48, a factor of 6", "2605.13405",
    ),
    "twins for ever": (
        {"stages": wider(4, "rms", optimizer_state="reset")},
        {"stages": wider(4, "rms")},
        "stages[1].grow", "by rms, whose copies share their fan-in evenly, with optimizer_state: reset", "symmetry",
    ),
    "twins for ever, where state of another shape is dropped": (
        {"stages": wider(4, "rms", optimizer_state="keep")},
        {"stages": wider(4, "duplicate", optimizer_state="keep")},
        "stages[1].grow", "grows hidden_size and ffn_size and num_heads by rms", "symmetry",
    ),
    "inside the decay": (
        {"training": WSD, "stages": stages((2, 1600), (4, 400))},
        {"training": WSD, "stages": stages((2, 1500), (4, 500))},
        "stages[1].grow", "at 1.6K tokens, though the rate decays from 1.6K tokens on", "2511.04981",
    ),
    "inside the decay, all of the run": (
        {"training": rate("wsd", warmup=0, decay=2000), "stages": stages((2, 800), (4, 1200)), "baseline": None},
        {"training": rate("wsd", warmup=0, decay=1200), "stages": stages((2, 700), (4, 1300)), "baseline": None},
        "stages[1].grow", "decays from 0 tokens on", "2511.04981",
    ),
    "inside the decay, the third stage": (
        {"training": WSD, "stages": stages((2, 800), (4, 800), (8, 400))},
        {"training": WSD, "stages": stages((2, 800), (4, 700), (8, 500))},
        "stages[2].grow", "though the rate decays", "2511.04981",
    ),
    "beyond 0.8": (
        {"training": rate("wsd", decay=0.1), "stages": stages((2, 1700), (4, 300))},
        {"training": rate("wsd", decay=0.1), "stages": stages((2, 1600), (4, 400))},
        "stages[1].grow", "at 85.0 % of the tokens; beyond 80.0 %", "2511.04981",
    ),
    "shorter than its warm-up": (
        {"stages": stages((2, 100), (4, 1900))},
        {"stages": stages((2, 200), (4, 1800))},
        "stages[0].until", "ends after 100 tokens, and the warm-up of its rate takes 100", "raystage",
    ),
    "never decayed": (
        {"training": rate("constant")},
        {"training": rate("constant"), "baseline": None},
        "training.lr_schedule", "never decays", "2307.06440",
    ),
    "never decayed, in the last stage": (
        {"stages": stages((2, 800), (4, 1200), training=rate("wsd", decay=0))},
        {"stages": stages((2, 800), (4, 1200), training=rate("wsd", decay=0.1))},
        "stages[1].training.lr_schedule", "never decays", "2307.06440",
    ),
    "decayed in a step is decayed": (
        {"training": rate("piecewise", points=[{"at": 1, "ratio": 1}])},
        {"training": rate("piecewise", points=[{"at": 0.8, "ratio": 0.1, "shape": "step"}])},
        "training.lr_schedule", "never decays", "2307.06440",
    ),
    "a decay that is cut off": (
        {"training": rate("wsd", decay=0.4), "stages": [*stages((2, 800), (4, 1000)), ANNEAL], "baseline": None},
        {"training": rate("constant"), "stages": [*stages((2, 800), (4, 1000)), ANNEAL], "baseline": None},
        "training.lr_schedule", "falls over the length of the whole run, and stage anneal begins", "rates",
    ),
    "a decay that goes on elsewhere": (
        {"training": rate("cosine"), "stages": [*stages((2, 800), (4, 1000)), ANNEAL], "baseline": None},
        {"training": rate("cosine"), "stages": [*stages((2, 800), (4, 1000)), GOING_ON], "baseline": None},
        "training.lr_schedule", "use kind: piecewise", "rates",
    ),
    "nothing staged": (
        {"stages": stages((4, 800), (4, 1200))},
        {"stages": stages((2, 800), (4, 1200))},
        "stages", "train one model on the same text", "only what is staged",
    ),
    "few budgets": (
        {"baseline": {"budgets": [1000, 2000]}},
        {"baseline": {"budgets": [1000, 1500, 2000]}},
        "baseline.budgets", "has 2 budgets", "protocol",
    ),
    "one budget": (
        {"baseline": {"budgets": [1000]}},
        {"baseline": None},
        "baseline.budgets", "has 1 budget;", "protocol",
    ),
    "costs more": (
        {"stages": [stages((2, 800))[0] | {"model": LONGER_CONTEXT}, stages((2, 1200), name="last")[0]]},
        {"stages": stages((1, 800), (2, 1200))},
        "stages", "more FLOPs than the last stage's model from scratch", "FLOPs",
    ),
    "a type of GPU that Ray does not name": (
        {"training": {"gpus_per_worker": 1, "accelerator": "h1000"}},
        {"training": {"gpus_per_worker": 1, "accelerator": "H100"}},
        "training.accelerator", "did you mean H100?", "ray.util.accelerators",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_warning_and_a_schedule_just_beside_it(plan_of, name):
    giving, beside, key, text, source = CASES[name]
    found = warnings(plan_of(**giving))
    assert [advice.key for advice in found] == [key]
    assert text in found[0].text
    assert source in found[0].source
    assert warnings(plan_of(**beside)) == ()


def test_several_warnings_stand_in_the_order_of_the_schedule(plan_of):
    plan = plan_of(training=COSINE, stages=stages((1, 1700), (6, 300)), baseline={"budgets": [1000]})
    assert [advice.key for advice in warnings(plan)] == ["stages[1].grow"] * 4 + ["baseline.budgets"]


def test_a_stage_that_does_not_grow_gets_no_warning_about_growth(plan_of):
    assert warnings(plan_of(training=COSINE, stages=stages((1, 1900), (1, 200)), baseline=None)) == ()


def test_the_quickstart_gives_no_warning():
    assert warnings(make_plan(load(QUICKSTART))) == ()


def test_the_warnings_of_a_plan_as_json(plan_of):
    content = json.loads(json.dumps(plan_json(plan_of(baseline={"budgets": [1000]}))))
    assert [set(advice) for advice in content["warnings"]] == [{"key", "text", "source"}]
    assert plan_json(plan_of())["warnings"] == []


# --- suggestions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "count", "alpha", "expected"),
    [
        (1200, 3, 1.0, (200, 400, 600)),  # sixths: 1, 2, 3
        (1400, 3, 2.0, (100, 400, 900)),  # fourteenths: 1, 4, 9
        (3600, 3, 3.0, (100, 800, 2700)),  # thirty-sixths: 1, 8, 27
        (900, 3, 0.0, (300, 300, 300)),
        (500, 1, 1.0, (500,)),
    ],
)
def test_prop_alpha_by_hand(total, count, alpha, expected):
    assert prop_alpha_tokens(total, count, alpha) == pytest.approx(expected)


def test_prop_alpha_is_proportional_unless_told():
    assert prop_alpha_tokens(300, 2) == pytest.approx((100, 200))


@pytest.mark.parametrize(
    ("params", "tokens", "expected"),
    [
        # log10 C = 22.9243: 0.88 * 9.84510 + 163.27 / 22.9243 - 5.74 = 8.66369 + 7.12214 - 5.74 = 10.04583
        (7e9, 2e12, 11.11e9),
        (13e9, 2e12, 15.84e9),
        (70e9, 2e12, 42.48e9),
        (8e9, 15e12, 6.58e9),
    ],
)
def test_g_stack_gives_the_table_of_its_authors(params, tokens, expected):
    """The table in the README of github.com/tongxuluo/prts, where C is 6 N D."""
    assert g_stack_tokens(params, 6 * params * tokens) == pytest.approx(expected, rel=5e-3)


def test_suggestions_for_the_schedules_own_depths_and_total(plan_of):
    """2,400 tokens in steps of 100: sixths for prop_alpha; for g_stack a formula far beyond one half."""
    plan = plan_of(stages=stages((2, 300), (4, 900), (8, 1200)))
    prop_alpha, g_stack = suggest(plan)
    assert (prop_alpha.rule, prop_alpha.tokens) == ("prop_alpha", (400, 800, 1200))
    assert (g_stack.rule, g_stack.tokens) == ("g_stack", (300, 900, 1200))  # 1,200 before, as 1 to 3
    assert prop_alpha.last_growth_share == g_stack.last_growth_share == 0.5
    assert g_stack.flops == plan.staged.flops
    assert g_stack.predicted_saving == pytest.approx(plan.predicted_saving)
    assert prop_alpha.flops - g_stack.flops == 100 * (per_token(plan, 0) - per_token(plan, 1))
    assert prop_alpha.overrides[1] == "stages[1].until={tokens: 800}"


def per_token(plan: Plan, index: int) -> float:
    return plan.staged.stages[index].flops / plan.staged.stages[index].duration


def test_stages_of_one_depth_share_its_tokens_as_they_do_now(plan_of):
    """Two depths: a third of 3,000 tokens for the first, two thirds for the second in parts of 1 to 3."""
    plan = plan_of(stages=stages((2, 1000), (4, 500), (4, 1500)))
    prop_alpha, g_stack = suggest(plan)
    assert prop_alpha.tokens == (1000, 500, 1500)
    assert g_stack.tokens == (1500, 400, 1100)  # 375 and 1,125: whole steps
    assert prop_alpha.last_growth_share == pytest.approx(1 / 3)


def test_every_stage_is_suggested_a_step_at_least(plan_of):
    plan = plan_of(stages=stages(*((depth, 100) for depth in (1, 2, 4, 8, 16))))
    for suggestion in suggest(plan):
        assert min(suggestion.tokens) >= 100
        assert all(tokens % 100 == 0 for tokens in suggestion.tokens)


def test_nothing_is_suggested_where_no_stage_grows(plan_of):
    assert suggest(plan_of(stages=stages((2, 1000), (2, 1000)))) == ()


def large(plan: Plan, **sizes: int) -> Plan:
    """The same schedule with 1e11 tokens in each of two stages, and layers of 50M parameters."""
    sizes = {"hidden_size": 2048, "ffn_size": 5461, "head_size": 1024} | sizes
    grown = []
    for stage in plan.staged.stages:
        shape = replace(stage.shape, **sizes)
        source = replace(stage.parent_shape, **sizes) if stage.parent_shape else None
        grown.append(replace(stage, shape=shape, parent_shape=source, steps=10**9))
    tokens, flops = 2 * 10**11, grown[-1].flops // grown[-1].duration
    return replace(plan, staged=replace(plan.staged, stages=tuple(grown)), scratch_flops=tokens * flops)


def test_g_stack_inside_its_range_is_the_formula_and_says_nothing(plan_of):
    plan = large(plan_of(stages=stages((6, 800), (24, 1200))))
    params = num_body_params(plan.staged.stages[-1].shape)
    assert 4e8 < params < 7e9
    formula = g_stack_tokens(params, plan.scratch_flops)
    assert 0.02 < formula / 2e11 < 0.5
    g_stack = suggest(plan)[1]
    assert g_stack.tokens == pytest.approx((formula, 2e11 - formula), abs=50)
    assert g_stack.notes == ()


@pytest.mark.parametrize(
    ("layers", "sizes", "said"),
    [
        ((4, 16), {"hidden_size": 512}, "this model has 201M without its embedding and head"),
        ((6, 12), {}, "its factor is 4; the last growth here is 6 -> 12 layers"),
        ((40, 160), {}, "this model has 8.05B without its embedding and head"),
    ],
)
def test_g_stack_says_what_it_was_not_fitted_for(plan_of, layers, sizes, said):
    plan = large(plan_of(stages=stages((layers[0], 800), (layers[1], 1200))), **sizes)
    assert any(said in note for note in suggest(plan)[1].notes)


def test_notes_of_a_small_schedule(plan_of):
    prop_alpha, g_stack = suggest(plan_of(stages=stages((3, 600), (6, 600), (12, 1200))))
    assert "MIDAS grows by equal steps of 4 layers; the depths here are 3, 6, 12" in prop_alpha.notes
    said = "\n".join(g_stack.notes)
    assert "held to 50.0 % of the run" in said
    assert "fitted for 410M to 3B parameters" in said
    assert "grows once" in said


def test_equal_steps_of_depth_are_what_midas_has(plan_of):
    prop_alpha = suggest(plan_of(stages=stages((2, 600), (4, 600))))[0]
    assert not any("MIDAS grows by" in note for note in prop_alpha.notes)


# --- the command line -------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A schedule whose first stage counts steps: 24 of 100 tokens in all."""
    (tmp_path / "texts").mkdir()
    write_documents(tmp_path / "texts", 24)
    content = {
        "name": "cli",
        "data": {"source": "text", "path": "texts", "validation_fraction": 0.5},
        "model": {"hidden_size": 8, "num_heads": 2, "ffn_size": 16, "context_length": 10},
        "training": {"global_batch_tokens": 100},
        "stages": stages((2, 800), (4, 1600)),
        "baseline": {"budgets": ["1K", "1.5K", "2.4K"]},
    }
    content["stages"][0]["until"] = {"steps": 6}
    content["stages"][1]["until"] = {"tokens": "1.8K"}
    (tmp_path / "cli.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "cli.yaml"


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(main, ["plan", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_prints_warnings_after_the_table(file):
    assert "Warning" not in invoke(file)
    words = " ".join(invoke(file, "--set", "training.lr_schedule.kind=constant").split())
    warning = words.index("Warning: training.lr_schedule: never decays")
    assert words.index("Predicted saving at equal tokens") < warning
    assert "(2307.06440; " in words[warning:]


def test_the_command_prints_warnings_as_json(file):
    content = json.loads(invoke(file, "--set", "baseline.budgets=[1K]", "--json"))
    assert [advice["key"] for advice in content["warnings"]] == ["baseline.budgets"]
    assert "suggestions" not in content


def test_the_suggested_options_give_the_suggested_plan(file):
    """Out of what is printed, pasted back: stages of 800 and 1,600 tokens (thirds), though one counted steps."""
    printed = invoke(file, "--suggest")
    table = printed[printed.index("suggested lengths") :]
    row = next(line for line in table.splitlines() if line.startswith("s0"))
    assert row.split() == ["s0", "2", "600", "800", "1.2K"]
    options = re.findall(r"--set '(.*)'", printed)
    assert options[:2] == ["stages[0].until={tokens: 800}", "stages[1].until={tokens: 1600}"]
    pasted = invoke(file, "--json", "--set", options[0], "--set", options[1])
    assert [stage["tokens"] for stage in json.loads(pasted)["stages"]] == [800, 1600]


def test_suggestions_as_json(file):
    prop_alpha, g_stack = json.loads(invoke(file, "--suggest", "--json"))["suggestions"]
    assert (prop_alpha["rule"], prop_alpha["tokens"]) == ("prop_alpha", [800, 1600])
    assert (g_stack["rule"], g_stack["tokens"]) == ("g_stack", [1200, 1200])
    assert prop_alpha["overrides"][0] == "stages[0].until={tokens: 800}"
    assert set(prop_alpha) == {
        "rule", "tokens", "flops", "predicted_saving", "last_growth_share", "source", "notes", "overrides",
    }  # fmt: skip


def test_the_command_says_when_there_is_nothing_to_suggest(file):
    no_growth = ("--set", "stages[1].model.num_layers=2", "--set", "stages[1].grow=null")
    assert "Nothing to suggest: no stage grows." in invoke(file, "--suggest", *no_growth)
    assert json.loads(invoke(file, "--suggest", "--json", *no_growth))["suggestions"] == []


def test_a_plan_says_what_a_store_has_of_it(file: Path, tmp_path: Path) -> None:
    made, uri = make_plan(load(file)), tmp_path / "store"
    assert "finished" not in json.loads(invoke(file, "--json"))  # none is looked at
    assert json.loads(invoke(file, "--json", "--store", uri))["finished"] == []
    assert not uri.exists()
    first = made.staged.stages[0]
    Store(open_folder(uri)).commit_record(make_record(first, 2.0))
    found = json.loads(invoke(file, "--json", "--store", uri))
    assert (found["finished"], found["flops_left"]) == ([first.key], found["flops_of_all_runs"] - first.flops)
    shown = " ".join(invoke(file, "--store", uri).split())
    assert f"The store has 1 of its {len(made.stages_by_key())} stages: {format_flops(found['flops_left'])} of" in shown
