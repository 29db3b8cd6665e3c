"""Every family that a schedule can name, trained on real workers and grown on the way without a change of function."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.models.families import FAMILIES, TRANSFORMERS
from raystage.results.record import StageRecord
from staged_runs import carry_out_all, records_of

pytestmark = pytest.mark.end_to_end

EXACT = {"depth": "identity", "width": "duplicate"}
SMALL = {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "ffn_size": 16}
LARGE = {"num_layers": 2, "hidden_size": 16, "num_heads": 4, "ffn_size": 24}
GROUPED = {"num_heads": 4, "num_kv_heads": 2, "head_size": 2}
WIDER_GROUPS = {"num_heads": 8, "num_kv_heads": 4, "head_size": 2}
# Where a block ends in a norm, no growth in depth is exact.
POST_NORM = {name for name, family in FAMILIES.items() if family.post_norm}
EXPERTS = {"family": "mixtral", "num_experts": 4}

# By name: the model's family, what the first and the second stage change about it, the operator.
GROWTHS = {
    **{
        family: ({"family": family}, SMALL | GROUPED, LARGE | WIDER_GROUPS, EXACT)
        for family in ("llama", "mistral", "qwen2", "qwen3", "olmo2", "phi3", "gemma")
    },
    # Of one layer with a window there are two in the end.
    "gemma2": ({"family": "gemma2", "sliding_window": 3}, SMALL | GROUPED, LARGE | WIDER_GROUPS, EXACT),
    "gemma3_text": ({"family": "gemma3_text", "sliding_window": 3}, SMALL | GROUPED, LARGE | WIDER_GROUPS, EXACT),
    "gpt2": ({"family": "gpt2"}, SMALL, LARGE, EXACT),
    "phi": ({"family": "phi"}, SMALL | GROUPED | {"head_size": 4}, LARGE | WIDER_GROUPS | {"head_size": 4}, EXACT),
    "gpt_neox": ({"family": "gpt_neox"}, SMALL | {"num_heads": 1}, LARGE | {"num_heads": 2}, EXACT),
    "gpt2 untied": ({"family": "gpt2", "tied_embeddings": False}, SMALL, LARGE, EXACT),
    "bert": ({"family": "bert"}, SMALL, LARGE, EXACT),
    "modernbert": ({"family": "modernbert", "sliding_window": 4}, SMALL, LARGE, EXACT),
    "mixtral": (EXPERTS, SMALL, LARGE, EXACT),
    "qwen3_moe": (EXPERTS | {"family": "qwen3_moe"}, SMALL | GROUPED, LARGE | WIDER_GROUPS, EXACT),
    "llama to mixtral": ({"family": "llama"}, SMALL, LARGE | EXPERTS, EXACT | {"num_experts": "upcycle"}),
}


@pytest.fixture(scope="module", params=[1, 3], ids=["ZeRO 1", "ZeRO 3"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[StageRecord]]:
    """The records of both stages of every growth, from one round of two workers."""
    folder = tmp_path_factory.mktemp("families")
    text = folder / "text"
    text.mkdir()
    schedules = {name: schedule_of(text, *growth, zero_stage=request.param) for name, growth in GROWTHS.items()}
    stores = {name: str(folder / f"store-{name}") for name in GROWTHS}
    run_workers(2, carry_out_all, schedules, stores, folder=folder / "processes")
    return {name: records_of(schedule, stores[name]) for name, schedule in schedules.items()}


def schedule_of(text: Path, model: dict, small: dict, large: dict, operator: dict, zero_stage: int) -> Schedule:
    stages = [
        {"name": "small", "model": small, "until": {"tokens": 1200}},
        {"name": "large", "model": large, "until": {"tokens": 800}, "grow": {"operator": operator}},
    ]
    training = {"workers": 2, "zero_stage": zero_stage, "optimizer": {"lr": 1e-2}}
    sizes = {"hidden_size": None, "num_heads": None, "ffn_size": None}
    objective = {"name": "masked_lm" if "bert" in model["family"] else "causal_lm"}
    return make_schedule(
        text, model={**sizes, **model}, objective=objective, stages=stages, training=training, baseline=None
    )


def test_every_family_of_a_schedule_is_here() -> None:
    of_text = {name for name, one in TRANSFORMERS.items() if one.objective}
    assert {model["family"] for model, *_ in GROWTHS.values()} == of_text


@pytest.mark.parametrize("name", GROWTHS)
def test_it_learns(trained: dict[str, list[StageRecord]], name: str) -> None:
    small, large = trained[name]
    assert small.eval_loss < small.evaluations[0].loss - 0.2
    assert large.eval_loss < small.eval_loss


@pytest.mark.parametrize("name", [name for name, (model, *_) in GROWTHS.items() if model["family"] not in POST_NORM])
def test_an_exact_growth_leaves_the_loss_where_it_was(trained: dict[str, list[StageRecord]], name: str) -> None:
    certificate = trained[name][1].growth.certificate
    assert certificate.eval_loss_after == pytest.approx(certificate.eval_loss_before, abs=2e-5)
    assert certificate.max_logit_difference < 1e-4
