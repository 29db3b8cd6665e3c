"""`learned`: where its maps begin, that fitting lowers the loss, and that a schedule fits once and counts it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distributed import run_workers
from factories import make_schedule
from growths import GrowthCase, growth
from raystage.config.schedule import Schedule
from raystage.errors import InputError
from raystage.files.filesystem import open_folder
from raystage.growth.apply import Grown
from raystage.growth.learned import Fitting, LearnedMaps, stacked
from raystage.growth.rules import growth_map
from raystage.models.shape import flops_per_token, parameters
from raystage.objectives.causal_lm import CausalLm
from raystage.planning.build import make_plan
from raystage.storage.store import Store
from real_models import SEED, built, logits_for, made_up, reader, source_logits
from staged_runs import carry_out, records_of, train

TWICE = {"hidden_size": 32, "num_heads": 8, "num_kv_heads": 4, "ffn_size": 48}
TWICE_GPT2 = {**TWICE, "num_kv_heads": 8}
ODD = {"hidden_size": 24, "num_heads": 6, "num_kv_heads": 3, "ffn_size": 40, "num_layers": 3}
ODD_GPT2 = {**ODD, "num_kv_heads": 6}

# Of whole factors in width, and so of the source's function before anything is fitted.
WHOLE = (
    *(growth("learned", name, **TWICE) for name in ("llama", "llama tied", "mistral", "qwen2", "qwen2 tied", "qwen3")),
    *(growth("learned", name, **TWICE) for name in ("phi", "gemma", "gemma untied", "gemma2", "gemma3_text")),
    growth("learned", "gpt_neox", **TWICE_GPT2),
    *(growth("learned", name, **TWICE_GPT2, context_length=20) for name in ("gpt2", "gpt2 untied")),
    growth("learned", "llama tied", **TWICE, vocab_size=37),
    growth("learned", "llama", num_heads=8, num_kv_heads=8),
    growth("learned", "qwen2", num_heads=8, num_kv_heads=2),
    growth("learned", "llama", ffn_size=30),
)
CASES = (
    *WHOLE,
    growth("learned", "llama tied", **ODD, vocab_size=37),
    growth("learned", "gpt2", **ODD_GPT2, context_length=20),
    growth("learned", "qwen2", num_layers=5),
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
# Of images and classes, which are no sequences to fit on.
HEADED = tuple(growth("learned", name, **TWICE_GPT2) for name in ("vit", "vit pixels", "gpt2 classes"))


def of_source(case: GrowthCase, dtype: type = np.float64) -> dict[str, torch.Tensor]:
    return stacked(case.source, reader(lambda state: made_up(case.source, state), dtype), torch.device("cpu"))


def at_first(case: GrowthCase) -> dict[str, np.ndarray]:
    """The target's weights by maps that were not fitted."""
    with torch.no_grad():
        grown = LearnedMaps(case.source, case.target).double()(of_source(case))
    return {name: values.flatten().numpy() for name, values in grown.items()}


@pytest.mark.parametrize("case", [*CASES, *HEADED, growth("learned", "vit", **ODD_GPT2)], ids=str)
def test_before_it_is_fitted_the_growth_is_its_map(case: GrowthCase) -> None:
    """Even copies in width, `interleave` in depth: what the growth map of `learned` says."""
    rules = growth_map(case.source, case.target, "learned", "grow")
    expected = Grown(rules, reader(lambda state: made_up(case.source, state)), SEED)
    found = at_first(case)
    assert list(found) == [parameter.name for parameter in parameters(case.target)]
    for rule in rules:
        values = expected.slice(rule.target, "fp32", 0, rule.numel)
        np.testing.assert_allclose(found[rule.target], values, atol=1e-12, err_msg=rule.target)


@pytest.mark.parametrize("case", [*WHOLE, *HEADED], ids=str)
def test_before_it_is_fitted_whole_factors_of_width_keep_the_function(case: GrowthCase) -> None:
    network = built(case.target, at_first(case), torch.float64)
    with torch.no_grad():
        found = logits_for(network, case.source)
    torch.testing.assert_close(found, source_logits(case.source, torch.float64), rtol=0, atol=1e-10)


def sequences(shape_context: int, count: int = 8) -> torch.Tensor:
    return torch.randint(0, 31, (count, shape_context + 1), generator=torch.Generator().manual_seed(3))


def shares(*parts: tuple[torch.Tensor, float]) -> list[tuple[dict, float]]:
    return [({"tokens": tokens}, weight) for tokens, weight in parts]


def fitting_of(case: GrowthCase, dtype: torch.dtype = torch.float32) -> Fitting:
    weights = of_source(case, np.float32)
    return Fitting(LearnedMaps(case.source, case.target), weights, 3e-3, lambda tensor: None, CausalLm().loss, dtype)


@every_case
def test_fitting_lowers_the_loss_by_every_map(case: GrowthCase) -> None:
    fitting = fitting_of(case)
    before = {name: values.detach().clone() for name, values in fitting.maps.named_parameters()}
    batch = sequences(case.target.context_length)
    targets = batch[:, 1:].numel()
    losses = [fitting.step(shares((batch[:5], 1.0), (batch[5:], 1.0), (batch[:1], 0.0)), targets) for _ in range(6)]
    assert losses[-1] < losses[0]
    for name, values in fitting.maps.named_parameters():
        assert not torch.equal(values, before[name]), name


def test_the_fitted_loss_is_that_of_the_fitted_model() -> None:
    """In micro batches as whole, and in any slices."""
    case = CASES[-3]
    fitting, batch = fitting_of(case), sequences(case.target.context_length)
    for _ in range(2):
        fitting.step(shares((batch[:3], 1.0), (batch[3:], 1.0)), batch[:, 1:].numel())
    fitted = fitting.fitted()
    whole = {p.name: fitted.slice(p.name, "fp32", 0, p.numel) for p in parameters(case.target)}
    network = built(case.target, whole, torch.float32)
    with torch.no_grad():
        logits = network(input_ids=batch[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).item()
    assert fitting.step(shares((batch, 1.0)), batch[:, 1:].numel()) == pytest.approx(expected, rel=1e-5)
    name = "model.norm.weight"
    assert fitted.slice(name, "fp32", 2, 5).tolist() == whole[name][2:5].tolist()
    assert not fitted.slice(name, "exp_avg", 2, 5).any()


def test_a_target_in_bf16_is_fitted_by_maps_in_fp32() -> None:
    case = CASES[-2]
    fitting, batch = fitting_of(case, torch.bfloat16), sequences(case.target.context_length)
    losses = [fitting.step(shares((batch, 1.0)), batch[:, 1:].numel()) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert {values.dtype for values in fitting.maps.parameters()} == {torch.float32}


# --- in a schedule --------------------------------------------------------------------------------

LEARNED = {"operator": "learned", "fit_steps": 4}
LARGER = {"num_layers": 3, "hidden_size": 16, "num_heads": 4, "ffn_size": 20}


def schedule_of(folder: Path, model: dict | None = None, grow: dict | None = None, **training: object) -> Schedule:
    """3 steps of 2 layers, then 4 of a model that is learned from them."""
    folder.mkdir(exist_ok=True)
    return make_schedule(
        folder,
        model={"head_size": 4},
        training={"workers": 2, "checkpoint": {"every": 200}, **training},
        stages=[
            {"name": "small", "model": {"num_layers": 2}, "until": {"steps": 3}},
            {"name": "full", "model": model or LARGER, "until": {"steps": 4}, "grow": grow or LEARNED},
        ],
    )


@pytest.mark.parametrize(
    ("model", "operator", "message"),
    [
        ({"num_layers": 2}, "learned", "found learned in a stage that grows neither depth nor width"),
        ({"num_layers": 4, "hidden_size": 16}, {"num_layers": "stack", "hidden_size": "learned"},
         "found stack beside learned, whose maps are fitted together; expected operator: learned for all that grows"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused(tmp_path: Path, model: dict, operator: str | dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(schedule_of(tmp_path, model, {"operator": operator}))


def test_a_mixture_of_experts_is_not_learned(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path, {"num_layers": 3})
    mixture = schedule.model.model_copy(update={"family": "mixtral", "num_experts": 2})
    with pytest.raises(InputError, match=r"grow.operator: found learned for a mixtral, which is a mixture of experts"):
        make_plan(schedule.model_copy(update={"model": mixture}))


def test_a_plan_counts_the_fitting(tmp_path: Path) -> None:
    small, full = make_plan(schedule_of(tmp_path)).staged.stages
    assert full.growth_flops == 4 * 100 * flops_per_token(full.shape)
    assert full.flops == full.growth_flops + 400 * flops_per_token(full.shape)
    assert small.growth_flops == 0
    by_default = make_plan(schedule_of(tmp_path, grow={"operator": "learned"})).staged.stages[1]
    assert by_default.growth_flops == 25 * full.growth_flops
    assert full.shape.norm_eps == small.shape.norm_eps


@pytest.mark.end_to_end
@pytest.mark.parametrize(("zero_stage", "precision"), [(1, "fp32"), (3, "bf16")])
def test_a_learned_stage_records_what_was_planned(tmp_path: Path, zero_stage: int, precision: str) -> None:
    schedule = schedule_of(tmp_path / "text", zero_stage=zero_stage, precision=precision)
    planned = make_plan(schedule).staged.stages[1]
    _, full = train(schedule, tmp_path / "store")
    assert full.flops == planned.flops
    assert full.growth.flops == planned.growth_flops > 0
    assert full.evaluations[0].flops == planned.start_flops + planned.growth_flops
    assert full.evaluations[-1].flops == planned.end_flops
    assert full.evaluations[0].loss == pytest.approx(full.growth.certificate.eval_loss_after)
    assert full.eval_loss < full.evaluations[0].loss


def carried_out_twice(schedule: Schedule, store: str) -> list[list[str]]:
    """In one go; and stopped right after fitting, with the source gone when it goes on."""
    carry_out(schedule, f"{store}/calm")
    first = carry_out(schedule, f"{store}/stopped", "saved", 3)  # two of the small stage, then the fitted model
    source = make_plan(schedule).staged.stages[0]
    checkpoints = Store(open_folder(f"{store}/stopped")).stage_folder(source.key) / "checkpoints"
    for name in checkpoints.names():
        (checkpoints / name).delete()
    return [first, carry_out(schedule, f"{store}/stopped")]


@pytest.mark.end_to_end
def test_a_restart_does_not_fit_again(tmp_path: Path) -> None:
    """It could not: what the maps were fitted on is gone. And it goes on with the same bits."""
    schedule = schedule_of(tmp_path / "text", workers=1)
    first, second = run_workers(1, carried_out_twice, schedule, str(tmp_path), folder=tmp_path / "processes")[0]
    assert first[-2:] == ["grown", "saved"]
    assert second[0] == "resumed"
    calm, again = (records_of(schedule, str(tmp_path / name))[1] for name in ("calm", "stopped"))
    assert [point.loss for point in calm.evaluations] == [point.loss for point in again.evaluations]
    assert [point.loss for point in calm.train] == [point.loss for point in again.train]
    assert replace(calm.growth, seconds=0) == replace(again.growth, seconds=0)
