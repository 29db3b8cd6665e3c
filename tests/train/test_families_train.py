"""Every family that a schedule can name, trained on real workers and grown on the way without a change of function."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed import run_workers
from factories import make_schedule
from grids import drilled, selected
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


CASES = [(zero_stage, name) for zero_stage in (1, 3) for name in GROWTHS]
EXACT_CASES = [(zero_stage, name) for zero_stage, name in CASES if GROWTHS[name][0]["family"] not in POST_NORM]


def chosen(cases: list[tuple[int, str]]) -> pytest.MarkDecorator:
    """Every family in every test under ZeRO 1, and some under ZeRO 3."""
    some = ("llama", "gemma2", "gpt2", "modernbert", "llama to mixtral")
    now = [(zero_stage, name) for zero_stage, name in cases if zero_stage == 1 or name in some]
    return pytest.mark.parametrize("case", drilled(cases, but=now), ids=lambda case: f"ZeRO {case[0]}, {case[1]}")


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, str], list[StageRecord]]:
    """The records of both stages of every growth, from one round of two workers."""
    folder = tmp_path_factory.mktemp("families")
    text = folder / "text"
    text.mkdir()
    schedules = {
        (zero_stage, name): schedule_of(text, *GROWTHS[name], zero_stage=zero_stage)
        for zero_stage, name in selected(request, "case", CASES)
    }
    stores = {case: str(folder / f"store-{number}") for number, case in enumerate(schedules)}
    run_workers(2, carry_out_all, schedules, stores, folder=folder / "processes")
    return {case: records_of(schedule, stores[case]) for case, schedule in schedules.items()}


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


@chosen(CASES)
def test_it_learns(trained: dict[tuple[int, str], list[StageRecord]], case: tuple[int, str]) -> None:
    small, large = trained[case]
    assert small.eval_loss < small.evaluations[0].loss - 0.2
    assert large.eval_loss < small.eval_loss


@chosen(EXACT_CASES)
def test_an_exact_growth_leaves_the_loss_where_it_was(
    trained: dict[tuple[int, str], list[StageRecord]], case: tuple[int, str]
) -> None:
    certificate = trained[case][1].growth.certificate
    assert certificate.eval_loss_after == pytest.approx(certificate.eval_loss_before, abs=2e-5)
    assert certificate.max_logit_difference < 1e-4
