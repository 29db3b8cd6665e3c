"""What `adapter` puts on which matrices, what it does to keys, memory and baselines, and what is refused."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from factories import make_schedule
from raystage.cli.views.plan_json import plan_json
from raystage.errors import InputError
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.plans.stage import StagePlan
from raystage.reports.plan_tables import plan_table
from raystage.runs.progress import describe_stage
from raystage.storage.jobs import continues
from raystage.units import format_count, format_share

ON = ["q_proj", "v_proj"]


def plan_of(folder: Path, second: dict, first: dict | None = None, **file: object) -> Plan:
    """2 layers for 800 tokens, and 800 more with what `second` says."""
    stages = [
        {"name": "base", "model": {"num_layers": 2}, "until": {"tokens": 800}, **(first or {})},
        {"name": "tuned", "model": {"num_layers": 2}, "until": {"tokens": 800}, **second},
    ]
    return make_plan(make_schedule(folder, **{"stages": stages, "baseline": None, **file}))


def tuned(folder: Path, lora: dict, **more: object) -> StagePlan:
    return plan_of(folder, {"adapter": {"lora": {"rank": 2, **lora}}, **more}).staged.stages[1]


def printed(plan: Plan) -> str:
    """As `raystage plan` shows it, in one line."""
    console = Console(width=200, file=StringIO())
    console.print(plan_table(plan))
    return " ".join(console.file.getvalue().split())


ATTENTION = {f"self_attn.{one}_proj" for one in "qkvo"}
MLP = {f"mlp.{one}_proj" for one in ("gate", "up", "down")}


@pytest.mark.parametrize(
    ("on", "modules"),
    [
        ([], {f"model.layers.{layer}.{one}" for layer in (0, 1) for one in ATTENTION | MLP}),
        (ON, {f"model.layers.{layer}.self_attn.{one}" for layer in (0, 1) for one in ON}),
        ("mlp.up_proj", {f"model.layers.{layer}.mlp.up_proj" for layer in (0, 1)}),
        (["*.1.mlp.*"], {f"model.layers.1.{one}" for one in MLP}),
        (["model.layers.0.self_attn.o_proj"], {"model.layers.0.self_attn.o_proj"}),
    ],
)
def test_modules_are_named_by_their_ends_or_by_patterns(on: object, modules: set[str], tmp_path: Path) -> None:
    assert set(tuned(tmp_path, {"on": on} if on else {}).adapter.modules) == modules


def test_what_is_trained_is_two_matrices_for_each(tmp_path: Path) -> None:
    """The model has a hidden size of 8, and queries and values of 8."""
    stage = tuned(tmp_path, {"on": ON})
    assert stage.adapter.trained(stage.shape)["model.layers.0.self_attn.q_proj.lora_A.weight"] == (2, 8)
    assert stage.adapter.trained(stage.shape)["model.layers.0.self_attn.q_proj.lora_B.weight"] == (8, 2)
    assert stage.num_trained == 2 * 2 * (2 * 8 + 8 * 2)
    assert stage.adapter.frozen(stage.shape) == {one.name for one in parameters(stage.shape)}


def test_parameters_can_be_trained_in_full_beside_it(tmp_path: Path) -> None:
    stage = tuned(tmp_path, {"on": ON, "train": ["*norm.weight", "lm_head.*"]})
    names = {f"model.layers.{layer}.{one}_layernorm.weight" for layer in (0, 1) for one in ("input", "post_attention")}
    assert set(stage.adapter.in_full) == {*names, "model.norm.weight", "lm_head.weight"}
    assert stage.num_trained == 128 + 5 * 8 + 8 * stage.shape.vocab_size


def test_a_key_has_all_that_can_change_the_result(tmp_path: Path) -> None:
    plain = plan_of(tmp_path, {}).staged.stages[1].key
    written = [{}, {"rank": 4}, {"alpha": 1}, {"dropout": 0.1}, {"on": ["q_proj"]}, {"train": ["lm_head.*"]}]
    keys = [tuned(tmp_path, {"on": ON, **one}).key for one in written]
    assert len({plain, *keys}) == 1 + len(keys)
    # Values count, not how they are written.
    assert tuned(tmp_path, {"on": ["self_attn.v_proj", "q_proj"], "alpha": 4}).key == keys[0]
    beside = plan_of(tmp_path, {"adapter": {"lora": {"rank": 2, "on": ON}, "keep": "beside"}}).staged.stages[1].key
    assert beside != keys[0]


def test_only_what_is_trained_has_gradients_and_optimizer_state(tmp_path: Path) -> None:
    stage, full = tuned(tmp_path, {"on": ON}), plan_of(tmp_path, {}).staged.stages[1]
    share = stage.num_trained / stage.num_params
    assert stage.memory.optimizer_bytes == full.memory.optimizer_bytes * share
    assert stage.memory.gradients_bytes == full.memory.gradients_bytes * share
    assert stage.memory.weights_bytes == full.memory.weights_bytes * (1 + share)
    assert stage.memory.activations_bytes == full.memory.activations_bytes
    assert 0.6 * full.flops < stage.flops < 0.8 * full.flops


def test_a_plan_says_what_is_trained(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"adapter": {"lora": {"rank": 2, "on": ON, "train": ["lm_head.*"]}, "keep": "beside"}})
    stage = plan.staged.stages[1]
    shown = printed(plan)
    trained = f"{format_count(stage.num_trained)} parameters, {format_share(stage.num_trained / stage.num_params)}"
    assert f"tuned trains LoRA of rank 2 on 4 matrices, with 1 parameter in full: {trained} of the model's." in shown
    assert "merged into the weights, and it is kept beside them" in shown
    assert "LoRA of rank 2 (2.18K trained)" in describe_stage(stage)
    found = plan_json(plan)["stages"][1]["adapter"]
    assert found["lora"]["rank"] == 2
    assert (found["num_trained"], found["train"], found["keep"]) == (2184, ("lm_head.weight",), "beside")


def test_baselines_have_none_and_no_engine_goes_on_with_it(tmp_path: Path) -> None:
    second = {"adapter": {"lora": {"rank": 2, "on": ON}}}
    plan = plan_of(tmp_path, second, baseline={"budgets": [1000, 2000]})
    assert {stage.adapter for run in plan.baselines for stage in run.stages} == {None}
    base, stage = plan.staged.stages
    assert not continues(base, stage)


def test_the_rate_of_a_matrix_by_depth_is_that_of_its_weight(tmp_path: Path) -> None:
    stage = tuned(tmp_path, {"on": ON}, training={"optimizer": {"lr_by_depth": 0.5}})
    factors = stage.rate_factors
    assert factors["model.layers.1.self_attn.q_proj.lora_B.weight"] == 1
    assert factors["model.layers.0.self_attn.q_proj.lora_A.weight"] == 0.5


LORA = {"adapter": {"lora": {"rank": 2}}}
REFUSED: dict[str, tuple[dict, str, str]] = {
    "an unknown module": (
        {"adapter": {"lora": {"rank": 2, "on": ["q_proj", "c_attn"]}}}, "adapter.lora.on",
        "found 'c_attn', which no module of this llama is; expected some of q_proj, k_proj, v_proj, o_proj,"),
    "the head": ({"adapter": {"lora": {"rank": 2, "on": ["lm_head"]}}}, "adapter.lora.on", "which is no linear layer"),
    "a norm": ({"adapter": {"lora": {"rank": 2, "on": ["*layernorm"]}}}, "adapter.lora.on", "which is no linear layer"),
    "too high a rank": ({"adapter": {"lora": {"rank": 9}}}, "adapter.lora.rank", "expected at most 8"),
    "an unknown parameter": (
        {"adapter": {"lora": {"rank": 2, "train": ["score.*"]}}}, "adapter.lora.train", "no parameter of this model"),
    "both ways": (
        {"adapter": {"lora": {"rank": 2, "train": ["*.q_proj.*"]}}}, "adapter.lora.train", "expected either of them"),
    "with a growth": (
        {**LORA, "model": {"num_layers": 4}, "grow": {"operator": "stack"}}, "adapter", "in a stage of its own"),
    "with a freeze": ({**LORA, "freeze": {"layers": [0]}}, "adapter", "expected adapter.lora.train"),
    "with a thaw": ({**LORA, "thaw": {"every": 100}}, "adapter", "expected one of them"),
    "with an average": ({**LORA, "average": {"last": 2, "every": 200}}, "adapter", "expected one of them"),
    "with muon": ({**LORA, "training": {"optimizer": {"name": "muon"}}}, "optimizer.name", "expected adamw, adam"),
    "with best checkpoints": (
        {**LORA, "training": {"checkpoint": {"keep_best": 1}}}, "checkpoint.keep_best", "hold no whole model"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    second, key, problem = REFUSED[case]
    with pytest.raises(InputError) as error:
        plan_of(tmp_path, second)
    assert error.value.key.endswith(key)
    assert problem in str(error.value)


def test_there_must_be_a_model_to_adapt(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="whose model is random; expected a stage before it, or init"):
        plan_of(tmp_path, {}, first=LORA)


def test_experts_and_routers_are_no_linear_layers(tmp_path: Path) -> None:
    model = {"family": "mixtral", "num_experts": 4}
    whole = plan_of(tmp_path, LORA, model=model).staged.stages[1].adapter.modules
    assert {name.rpartition(".")[2] for name in whole} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    for module in ("mlp.gate", "mlp.experts.down_proj"):
        with pytest.raises(InputError, match="no linear layer of its own"):
            plan_of(tmp_path, {"adapter": {"lora": {"rank": 2, "on": [module]}}}, model=model)


def test_a_model_without_a_table_of_transformers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found for the family lstm, .* expected a family of transformers"):
        make_plan(make_schedule(tmp_path, baseline=None, model={"family": "lstm", "num_heads": None}, stages=[
            {"name": "base", "model": {"num_layers": 1}, "until": {"tokens": 800}},
            {"name": "tuned", "model": {"num_layers": 1}, "until": {"tokens": 800}, **LORA}]))  # fmt: skip
