"""`masked`: closed, the mask hides all that is new; open, nothing of it is left; in between, new parts learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distributed import run_workers
from factories import make_schedule
from growths import GrowthCase, deeper, growth
from raystage.config.schedule import Schedule
from raystage.errors import InputError
from raystage.growth.apply import is_new
from raystage.growth.depth import GrowthOptions
from raystage.growth.masked import GrowthMask, mask_sites
from raystage.growth.trained import mask_value
from raystage.planning.build import make_plan
from real_models import built, logits_for, source_logits, weights
from staged_runs import carry_out, records_of, train

OPTIONS = GrowthOptions(grow_tokens=100)
WIDE = {"hidden_size": 24, "num_heads": 6, "num_kv_heads": 3, "ffn_size": 40}
WIDE_GPT2 = {"hidden_size": 24, "num_heads": 6, "num_kv_heads": 6, "ffn_size": 40}

# Width by no whole factor, heads with and without new groups, depth, and all at once with more tokens and positions.
CASES = (
    *(growth("masked", name, OPTIONS, **change)
      for name in ("llama", "llama tied", "qwen2", "qwen3", "mistral", "phi3", "gemma", "gemma2", "gemma3_text")
      for change in ({"hidden_size": 24}, WIDE, {**WIDE, "num_layers": 5, "vocab_size": 37, "context_length": 20})),
    *(growth("masked", "phi", OPTIONS, **change) for change in (WIDE, {**WIDE, "num_layers": 5})),
    *(growth("masked", "llama", OPTIONS, **change)
      for change in ({"ffn_size": 25}, {"num_heads": 8}, {"num_heads": 8, "num_kv_heads": 4})),
    growth("masked", "qwen2", OPTIONS, num_heads=12, num_kv_heads=4),
    *(growth("masked", name, OPTIONS, **change)
      for name in ("gpt2", "gpt2 untied", "gpt_neox")
      for change in (WIDE_GPT2, {"ffn_size": 25}, {**WIDE_GPT2, "num_layers": 5, "context_length": 20})),
    *(growth("masked", name, OPTIONS, **WIDE_GPT2, num_layers=5) for name in ("vit", "vit pixels", "gpt2 classes")),
    *(deeper("masked", 2, 4, OPTIONS, name) for name in ("llama", "qwen2", "gpt2")),
    deeper("masked", 0, 2, OPTIONS),
    growth("num_layers=identity, hidden_size=masked, ffn_size=duplicate", "llama", OPTIONS,
           num_layers=4, hidden_size=24, ffn_size=48),
    growth("num_layers=masked, ffn_size=zero_pad", "gpt2", OPTIONS, num_layers=3, ffn_size=40),
)  # fmt: skip
PURE = [case for case in CASES if "=" not in case.operator]  # `identity` silences layers of its own
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def masked(case: GrowthCase, dtype: torch.dtype) -> tuple[torch.nn.Module, GrowthMask]:
    """The grown model, its new weights drawn, and its mask."""
    network = built(case.target, weights(case), dtype)
    return network, GrowthMask(network, case.source, case.target, case.operator, case.options)


@every_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_behind_a_closed_mask_the_model_computes_the_sources_function(
    case: GrowthCase, dtype: torch.dtype, tolerance: float
) -> None:
    network, mask = masked(case, dtype)
    mask.set(0.0)
    with torch.no_grad():
        found = logits_for(network, case.source)
    torch.testing.assert_close(found, source_logits(case.source, dtype), rtol=0, atol=tolerance)


@every_case
def test_an_open_mask_leaves_the_plain_model(case: GrowthCase) -> None:
    """Bit for bit, and back again."""
    network, mask = masked(case, torch.float32)
    with torch.no_grad():
        plain = logits_for(network, case.source)
        for value, is_plain in ((0.25, False), (1.0, True), (0.5, False), (1.0, True)):
            mask.set(value)
            assert torch.equal(logits_for(network, case.source), plain) == is_plain


@pytest.mark.parametrize("case", PURE, ids=str)
def test_behind_a_mask_that_opens_all_that_is_new_learns(case: GrowthCase) -> None:
    network, mask = masked(case, torch.float64)
    mask.set(0.5)
    logits_for(network, case.source).square().sum().backward()
    for rule in case.map():
        gradient = network.get_parameter(rule.target).grad.flatten().numpy()
        new = is_new(rule, 0, rule.numel)
        assert (gradient != 0).any(), rule.target
        assert not new.any() or (gradient[new] != 0).any(), rule.target


def test_the_function_goes_from_the_sources_to_the_plain_models() -> None:
    case = growth("masked", "gpt2", OPTIONS, **WIDE_GPT2, num_layers=3)
    network, mask = masked(case, torch.float64)
    found = []
    with torch.no_grad():
        for value in (0.0, 1e-6, 1 - 1e-6, 1.0):
            mask.set(value)
            found.append(logits_for(network, case.source))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(found[2], found[3], rtol=0, atol=1e-3)
    assert (found[0] - found[3]).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")  # of transformers 5.x, by name
def test_the_mask_holds_where_layers_are_computed_a_second_time() -> None:
    """Activation checkpointing runs a layer's forward again in the backward pass."""
    case, found = growth("masked", "llama", OPTIONS, **WIDE, num_layers=3), []
    for checkpointing in (False, True):
        network, mask = masked(case, torch.float32)
        if checkpointing:
            network.gradient_checkpointing_enable({"use_reentrant": False})
            network.train()  # without dropout in any case
        mask.set(0.3)
        logits_for(network, case.source).square().sum().backward()
        found.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_mask_acts_on_a_module_once() -> None:
    """A weight and a bias, or a gain and a shift, belong to one module."""
    sites = mask_sites(CASES[-1].target, frozenset({"hidden", "ffn", "query"}), frozenset({2}))
    assert len(sites) == len(set(sites))
    assert ("transformer.h.0.attn.c_proj", "output", "hidden") in [(s.module, s.where, s.units) for s in sites]
    assert ("transformer.h.2.attn.c_proj", "output", "layer") in [(s.module, s.where, s.units) for s in sites]


def test_a_mask_opens_in_a_straight_line() -> None:
    assert [mask_value(100, tokens) for tokens in (0, 25, 99, 100, 250)] == [0, 0.25, 0.99, 1, 1]


# --- in a schedule --------------------------------------------------------------------------------


def schedule_of(folder: Path, grow: dict, model: dict, training: dict | None = None, family: str = "llama") -> Schedule:
    """3 steps of 2 layers, then 6 of what `model` says, whose mask `grow` opens."""
    folder.mkdir(exist_ok=True)
    return make_schedule(
        folder,
        model={"family": family, "head_size": 4},
        training={"checkpoint": {"every": 200}, "evaluate": {"every": 200}, **(training or {})},
        stages=[
            {"name": "small", "model": {"num_layers": 2}, "until": {"steps": 3}},
            {"name": "full", "model": model, "until": {"steps": 6}, "grow": grow},
        ],
    )


MASKED = {"operator": "masked", "grow_tokens": 400}
LARGER = {"num_layers": 3, "hidden_size": 12, "num_heads": 3, "ffn_size": 20}


@pytest.mark.parametrize(
    ("grow", "model", "message"),
    [
        ({"operator": "masked"}, {"num_layers": 3},
         r"stages\[1\].grow.grow_tokens: missing; expected the tokens over which masked opens its mask, at most "),
        ({**MASKED, "grow_tokens": 601}, {"num_layers": 3},
         r"stages\[1\].grow.grow_tokens: found 601; expected at most the stage's 600 tokens"),
        ({"operator": {"num_layers": "masked", "num_experts": "upcycle"}, "grow_tokens": 300},
         {"num_layers": 3, "family": "mixtral", "num_experts": 2},
         r"stages\[1\].grow.operator: found masked for a mixtral, which is a mixture of experts; masked grows llama"),
    ],
)  # fmt: skip
def test_what_a_mask_cannot_do_is_refused(tmp_path: Path, grow: dict, model: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(schedule_of(tmp_path, grow, model))


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("zero_stage", "precision", "family"), [(1, "fp32", "llama"), (3, "bf16", "qwen2"), (3, "fp32", "gpt2")]
)
def test_a_stage_behind_a_mask_begins_where_the_one_before_ended(
    tmp_path: Path, zero_stage: int, precision: str, family: str
) -> None:
    training = {"workers": 2, "zero_stage": zero_stage, "precision": precision}
    schedule = schedule_of(tmp_path / "text", MASKED, LARGER, training, family)
    small, full = train(schedule, tmp_path / "store")
    tolerance = 1e-6 if precision == "fp32" else 3e-3
    assert full.evaluations[0].loss == pytest.approx(small.eval_loss, rel=tolerance)
    assert full.growth.certificate.eval_loss_after == pytest.approx(small.eval_loss, rel=tolerance)
    assert full.eval_loss < full.evaluations[0].loss


def stopped_and_started_again(schedule: Schedule, store: str) -> None:
    """In one worker process: once in one go, once stopped while the mask opens."""
    carry_out(schedule, f"{store}/calm")
    carry_out(schedule, f"{store}/stopped", "saved", 3)  # the small stage's end, then 200 and 400 tokens into the next
    carry_out(schedule, f"{store}/stopped")


@pytest.mark.end_to_end
def test_a_stage_stopped_while_its_mask_opens_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path / "text", {**MASKED, "grow_tokens": 550}, LARGER)
    run_workers(1, stopped_and_started_again, schedule, str(tmp_path), folder=tmp_path / "processes")
    calm, again = (records_of(schedule, str(tmp_path / name))[1] for name in ("calm", "stopped"))
    assert [point.loss for point in calm.evaluations] == [point.loss for point in again.evaluations]
    assert [point.loss for point in calm.train] == [point.loss for point in again.train]
