"""An adapter on real workers (gloo processes, DeepSpeed): nothing but the adapter is trained, as in a plain loop over
peft's own model, and the stage ends with the merged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import pytest
import torch

from distributed import run_workers
from exports import exported, load
from factories import make_schedule
from plain_training import evaluated, loss_of, model_in
from raystage.config.schedule import Schedule
from raystage.data.tokens import TokenWindows, open_streams
from raystage.errors import InputError
from raystage.files.filesystem import open_folder
from raystage.growth.apply import drawn
from raystage.growth.rules import Rule
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.plans import learning_rate
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.tools.grow import open_source
from staged_runs import carry_out_all, records_of

# peft asks transformers' models whether they recompute activations by a name that these will drop.
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

WORKERS = 2
ON = {"on": ["q_proj", "down_proj"]}
SGD = {"optimizer": {"name": "sgd", "lr": 0.3}}
# Of each: the family, the adapter, how it trains.
CASES: dict[str, tuple[str, dict, dict]] = {
    **{
        f"ZeRO {zero_stage}, {precision}": ("llama", ON, {"zero_stage": zero_stage, "precision": precision})
        for zero_stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")
    },
    "all matrices, activations computed again": ("llama", {}, {"zero_stage": 2, "activation_checkpointing": True}),
    "norms and head in full": (
        "llama", {**ON, "train": ["*norm.weight", "lm_head.*"]}, {"zero_stage": 3}),
    "offloaded": ("llama", ON, {"zero_stage": 2, "offload_optimizer": "cpu"}),
    "sgd": ("llama", {**ON, "alpha": 1}, {"zero_stage": 3, **SGD}),
    "stored inputs first": ("gpt2", {"on": ["c_attn", "mlp.c_proj"]}, {"zero_stage": 3}),
    "rates by depth": ("llama", ON, {"optimizer": {"lr": 5e-3, "lr_by_depth": 0.5}}),
}  # fmt: skip


def schedule_of(text: Path, case: str, workers: int = WORKERS, tokens: int = 800, **more: object) -> Schedule:
    """A model of two layers, adapted for `tokens`, and trained on without an adapter."""
    family, lora, training = CASES[case]
    alike = {"workers": workers, "gradient_clipping": 0.3, "optimizer": {"lr": 5e-3}, "checkpoint": {"every": 200},
             "evaluate": {"tokens": 200}, **more}  # fmt: skip
    of_optimizer = {"optimizer": {"name": training.get("optimizer", {}).get("name", "adamw")}}
    stages = [
        {"name": "base", "until": {"tokens": 400}, "training": of_optimizer},
        {"name": "tuned", "until": {"tokens": tokens}, "training": training,
         "adapter": {"lora": {"rank": 3, **lora}, "keep": "beside"}},
        {"name": "on", "until": {"tokens": 200}, "training": of_optimizer},
    ]  # fmt: skip
    model = {"num_layers": 2, "family": family}
    return make_schedule(text, stages=stages, training=alike, model=model, baseline=None)


def train_all(schedules: Mapping[str, Schedule], store: str) -> None:
    carry_out_all(schedules, dict.fromkeys(schedules, store))


@dataclass(frozen=True)
class Runs:
    schedules: dict[str, Schedule]
    store: Store

    def stage(self, case: str, index: int = 1) -> StagePlan:
        return make_plan(self.schedules[case]).staged.stages[index]

    def end(self, case: str, index: int = 1) -> Checkpoint:
        return Checkpoint(self.store.finished_checkpoint(self.stage(case, index).key))

    def within(self, case: str) -> Checkpoint:
        record = self.store.record(self.stage(case).key)
        return Checkpoint(self.store.stage_folder(record.key) / record.last_checkpoint)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder, text = tmp_path_factory.mktemp("adapted"), tmp_path_factory.mktemp("text")
    schedules = {case: schedule_of(text, case) for case in CASES}
    run_workers(WORKERS, train_all, schedules, str(folder / "store"), folder=folder / "processes")
    return Runs(schedules, Store(open_folder(folder / "store")))


def first_values(stage: StagePlan) -> dict[str, np.ndarray]:
    """A as it is drawn by seed and name, and B of zeros."""
    found = {}
    for one in stage.adapter.matrices(stage.shape):
        rule = Rule(one.name, one.shape, "normal", "zeros", std=one.std)
        values = drawn(rule, 0, rule.numel, stage.seed) if one.is_first else np.zeros(rule.numel, dtype=np.float32)
        found[one.name] = values.reshape(one.shape)
    return found


def adapted(stage: StagePlan, base: Checkpoint) -> torch.nn.Module:
    """peft's own model, with the first values."""
    plan = stage.adapter
    config = peft.LoraConfig(
        r=plan.rank,
        lora_alpha=plan.alpha,
        target_modules=list(plan.modules),
        fan_in_fan_out=stage.shape.family == "gpt2",
    )
    model = peft.get_peft_model(model_in(base, stage.shape), config)
    for name, values in first_values(stage).items():
        matrix = name.removesuffix(".weight")
        model.get_parameter(f"base_model.model.{matrix}.default.weight").data.copy_(torch.from_numpy(values))
    for name, parameter in model.named_parameters():
        parameter.requires_grad |= plain_name(name) in plan.in_full
    return model


def plain_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.", ".")


def trained(stage: StagePlan, model: torch.nn.Module) -> None:
    """Train it by a plain loop."""
    options = stage.training.optimizer
    groups = [
        {"params": [one], "weight_decay": options.weight_decay if one.dim() >= 2 else 0.0,
         "factor": stage.rate_factors.get(plain_name(name), 1.0)}
        for name, one in model.named_parameters() if one.requires_grad
    ]  # fmt: skip
    made = (
        torch.optim.SGD(groups, lr=1.0, momentum=options.momentum)
        if options.name == "sgd"
        else torch.optim.AdamW(groups, lr=1.0, betas=options.betas, eps=options.eps)
    )
    reader = TokenWindows(open_streams(stage.data, stage.shape.vocab_size).train, stage.window, stage.seed)
    batch, length = stage.training.global_batch, stage.shape.context_length
    for step in range(stage.steps):
        tokens = stage.start + step * batch
        for group in made.param_groups:
            group["lr"] = learning_rate.rate_at(stage.rate, tokens + batch / 2) * group["factor"]
        made.zero_grad()
        loss_of(model, reader.sequences(tokens // length, batch // length, length)).backward()
        own = [one for group in made.param_groups for one in group["params"]]
        torch.nn.utils.clip_grad_norm_(own, stage.training.gradient_clipping)
        made.step()


def weight(source: Checkpoint, name: str, shape: tuple[int, ...]) -> np.ndarray:
    return source.read(name, "fp32", 0, math.prod(shape)).reshape(shape)


@pytest.mark.parametrize("case", CASES)
def test_it_trains_as_a_plain_loop_over_pefts_model_and_ends_merged(runs: Runs, case: str) -> None:
    stage, base, found = runs.stage(case), runs.end(case, 0), runs.end(case)
    model = adapted(stage, base)
    trained(stage, model)
    merged = model.merge_and_unload()
    # Adam's first steps are as long for a gradient that is all but zero, whose sign bf16 may turn.
    much, loss = (0.5, 5e-3) if stage.training.precision == "bf16" else (2e-3, 1e-5)
    for one in parameters(stage.shape):
        expected, before = merged.get_parameter(one.name).detach().numpy(), weight(base, one.name, one.shape)
        moved, left = expected - before, weight(found, one.name, one.shape) - expected
        if one.name in stage.adapter.weights or one.name in stage.adapter.in_full:
            assert 0 < np.linalg.norm(left) + 1e-12 <= much * np.linalg.norm(moved) + 1e-12, one.name
        else:
            assert not moved.any(), one.name
            assert not left.any(), one.name
    assert runs.store.record(stage.key).eval_loss == pytest.approx(evaluated(merged, stage), rel=loss)


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_are_those_of_before_and_the_product(runs: Runs, case: str) -> None:
    """From the fp32 weights of the checkpoint before, also where the training computed in bf16."""
    stage, base, found, within = runs.stage(case), runs.end(case, 0), runs.end(case), runs.within(case)
    held = stage.adapter.trained(stage.shape)
    for one in parameters(stage.shape):
        if one.name in stage.adapter.weights:
            module = one.name.removesuffix(".weight")
            a, b = (weight(within, name := f"{module}.lora_{side}.weight", held[name]) for side in "AB")
            product = b.astype(np.float64) @ a
            expected = weight(base, one.name, one.shape) + stage.adapter.scale * (
                product.T if stage.shape.family == "gpt2" else product
            )
            assert np.array_equal(weight(found, one.name, one.shape), expected.astype(np.float32)), one.name


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_within_hold_what_is_trained_with_its_moments_and_the_last_one_the_model_alone(
    runs: Runs, case: str
) -> None:
    stage, within, found = runs.stage(case), runs.within(case), runs.end(case)
    assert {entry.name: entry.shape for entry in within.manifest.parameters} == stage.adapter.trained(stage.shape)
    assert within.states == ("fp32", *stage.training.optimizer.moments)
    assert within.manifest.adapter["lora"]["rank"] == 3
    assert set(within.steps.values()) == {stage.steps}
    assert found.states == ("fp32",)
    assert {entry.name for entry in found.manifest.parameters} == {one.name for one in parameters(stage.shape)}
    assert set(found.steps.values()) == {0}
    assert found.manifest.adapter is None


@pytest.mark.parametrize("case", [case for case in CASES if "bf16" not in case])
def test_with_the_first_values_the_model_is_what_it_was(runs: Runs, case: str) -> None:
    """The loss with the adapter on, and the logits, are the same to the last bit."""
    certificate = runs.store.record(runs.stage(case).key).growth.certificate
    assert certificate.eval_loss_after == certificate.eval_loss_before
    assert certificate.max_logit_difference == 0
    assert certificate.gradient_error <= 1e-6


@pytest.mark.parametrize("case", CASES)
def test_the_next_stage_goes_on_from_the_merged_model_with_new_moments(runs: Runs, case: str) -> None:
    tuned, following = (runs.store.record(runs.stage(case, index).key) for index in (1, 2))
    assert tuned.adapter.eval_loss == tuned.eval_loss == tuned.evaluations[-1].loss
    assert following.growth.certificate.eval_loss_before == tuned.eval_loss
    assert set(runs.end(case, 2).steps.values()) == {2}
    # In fp32 merging changes nothing but the order of sums, and the next stage, which is in fp32, computes the same.
    if runs.stage(case).training.precision == "fp32":
        assert following.growth.certificate.max_logit_difference == 0
        assert tuned.adapter.unmerged_eval_loss == pytest.approx(tuned.eval_loss, abs=2e-6)


def test_only_what_a_finished_stage_ends_with_is_a_model(runs: Runs) -> None:
    within = runs.within("sgd").folder
    with pytest.raises(InputError, match="found an adapter without its model, from within a stage"):
        open_source(within.uri, runs.store)


@pytest.mark.parametrize("case", ["ZeRO 0, fp32", "norms and head in full", "stored inputs first", "ZeRO 3, bf16"])
def test_peft_loads_the_adapter_that_is_kept_beside_onto_the_model_before(
    runs: Runs, case: str, tmp_path: Path
) -> None:
    """And it says what the merged model says, to fp32 rounding."""
    for name, index in (("base", 0), ("merged", 1)):
        exported(Path(runs.end(case, index).folder.path), tmp_path / name)
    assert not (tmp_path / "base" / "adapter").exists()
    base, merged = (load(tmp_path / name) for name in ("base", "merged"))
    model = peft.PeftModel.from_pretrained(base, tmp_path / "merged" / "adapter")
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        found, expected = model(input_ids=tokens).logits, merged(input_ids=tokens).logits
        with model.disable_adapter():
            plain = model(input_ids=tokens).logits
    assert (found - expected).abs().max() <= 1e-5 < (plain - expected).abs().max()


# --- killed, with any number of workers, longer -----------------------------------------------


def trained_in(folder: Path, text: Path, workers: int, stops: tuple[int, ...] = (), tokens: int = 800) -> StageRecord:
    """At a constant rate, under which a longer stage begins as a shorter one does."""
    schedule = schedule_of(text, "ZeRO 3, fp32", workers, tokens, lr_schedule={"kind": "constant", "warmup": 100})
    store = str(folder / f"{workers}-{bool(stops)}")
    run_workers(workers, carry_out_all, {"": schedule}, {"": store}, stops, folder=Path(f"{store}-{tokens}-processes"))
    return records_of(schedule, store)[1]


@pytest.fixture(scope="module")
def three_ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageRecord]:
    folder, text = tmp_path_factory.mktemp("ways"), tmp_path_factory.mktemp("words")
    found = {"one": trained_in(folder, text, 1), "killed": trained_in(folder, text, 1, (2, 3, 5)),
             "three": trained_in(folder, text, 3)}  # fmt: skip
    return {**found, "longer": trained_in(folder, text, 1, tokens=1200)}


def losses(record: StageRecord) -> list[float]:
    return [point.loss for point in (*record.train, *record.evaluations)]


def test_a_killed_stage_ends_with_the_same_bits(three_ways: dict[str, StageRecord]) -> None:
    """Killed within the stage, and between its last checkpoint and the merged one."""
    assert losses(three_ways["killed"]) == losses(three_ways["one"])
    assert three_ways["killed"].adapter.unmerged_eval_loss == three_ways["one"].adapter.unmerged_eval_loss


def test_the_number_of_workers_changes_rounding_alone(three_ways: dict[str, StageRecord]) -> None:
    assert losses(three_ways["three"]) == pytest.approx(losses(three_ways["one"]), abs=5e-6)


def test_a_longer_stage_continues_from_the_adapter_before_it_was_merged(three_ways: dict[str, StageRecord]) -> None:
    longer, shorter = three_ways["longer"], three_ways["one"]
    assert longer.prefix.key == shorter.key
    assert longer.steps == shorter.steps + 4
    assert losses(longer)[:4] == losses(shorter)[:4]
