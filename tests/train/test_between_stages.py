"""What may change from one stage to the next: trained as a plain loop trains it, or refused before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from distributed import run_workers
from factories import make_schedule
from plain_training import evaluated, model_in, trained
from raystage.data.tokens import TokenWindows, open_streams
from raystage.errors import InputError
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.train.worker import Job, run_job

SHAPE = {"num_layers": 2, "hidden_size": 8, "num_heads": 2, "ffn_size": 16, "context_length": 10}


def two_stages(text: Path, second: dict, **file: dict) -> tuple[StagePlan, StagePlan]:
    """800 tokens, then 800 with what `second` changes; `file` changes both stages. OTHER is text of its own."""
    other = text / "other"
    other.mkdir(exist_ok=True)
    for number in range(12):
        (other / f"{number}.txt").write_text(f"{number} something else\n" * 12)
    if "data" in second and "path" in second["data"]:
        second = {**second, "data": {**second["data"], "path": str(other)}}
    (text / "text").mkdir(exist_ok=True)
    stages = [
        {"name": "first", "until": {"tokens": 800}},
        {"name": "second", "until": {"tokens": 800}, **second},
    ]
    file = {"model": SHAPE, **file} if "model" not in file else {**file, "model": {**SHAPE, **file["model"]}}
    return make_plan(make_schedule(text / "text", stages=stages, baseline=None, **file)).staged.stages


# What the second stage changes, and what the file says besides.
TRAINED: dict[str, tuple[dict, dict]] = {
    "nothing": ({}, {}),
    "other text": ({"data": {"path": "OTHER"}}, {}),
    "fewer documents held out": ({"data": {"validation_fraction": 0.3}}, {}),
    "a longer context": ({"model": {"context_length": 20}}, {}),
    "a shorter context": ({"model": {"context_length": 5}}, {}),
    "a longer context of a mixture of experts": (
        {"model": {"context_length": 20}}, {"model": {"family": "mixtral", "num_experts": 2, "experts_per_token": 2}}),
    "another norm_eps": ({"model": {"norm_eps": 1e-3}}, {}),
    "more workers": ({"training": {"workers": 2}}, {}),
    "fewer workers": ({"training": {"workers": 1}}, {"training": {"workers": 2}}),
    "ZeRO 0": ({"training": {"zero_stage": 0}}, {}),
    "ZeRO 2": ({"training": {"zero_stage": 2}}, {}),
    "ZeRO 3": ({"training": {"zero_stage": 3}}, {}),
    "an optimizer in host memory": ({"training": {"offload_optimizer": "cpu"}}, {}),
    "a larger batch": ({"training": {"global_batch_tokens": 200}}, {}),
    "a smaller batch": ({"training": {"global_batch_tokens": 50}}, {}),
    "a micro batch of one": ({"training": {"micro_batch_size": 1}}, {}),
    "no clipping": ({"training": {"gradient_clipping": 0}}, {"training": {"gradient_clipping": 0.1}}),
    "more clipping": ({"training": {"gradient_clipping": 0.05}}, {}),
    "activation checkpointing": ({"training": {"activation_checkpointing": True}}, {}),
    "another rate": ({"training": {"optimizer": {"lr": 1e-2}, "lr_schedule": {"kind": "cosine"}}}, {}),
    "other betas and decay": ({"training": {"optimizer": {"betas": [0.8, 0.99], "weight_decay": 1.0}}}, {}),
    "adam after adamw": ({"training": {"optimizer": {"name": "adam"}}}, {}),
    "sgd after adamw": ({"training": {"optimizer": {"name": "sgd", "lr": 1e-2}}}, {}),
    "adamw after sgd": ({"training": {"optimizer": {"name": "adamw"}}}, {"training": {"optimizer": {"name": "sgd"}}}),
    "more held-out text": ({"training": {"evaluate": {"tokens": 300}}}, {"training": {"evaluate": {"tokens": 100}}}),
    "options of DeepSpeed": ({"training": {"deepspeed": {"zero_optimization": {"overlap_comm": False}}}}, {}),
    "a longer context and a larger batch": (
        {"model": {"context_length": 40}, "training": {"global_batch_tokens": 120}}, {}),
    "other text in a shorter context": ({"data": {"path": "OTHER"}, "model": {"context_length": 5}}, {}),
    "more workers, ZeRO 3 and another batch": (
        {"training": {"workers": 2, "zero_stage": 3, "global_batch_tokens": 150}}, {}),
    "a shorter context under ZeRO 3 with sgd": (
        {"model": {"context_length": 5}, "training": {"zero_stage": 3, "optimizer": {"name": "sgd"}}}, {}),
    # In bf16 the loop in fp32 is near, not the same.
    "bf16": ({"training": {"precision": "bf16"}}, {}),
    "bf16 after which fp32": ({"training": {"precision": "fp32"}}, {"training": {"precision": "bf16"}}),
    "bf16 under ZeRO 3 in a longer context": (
        {"model": {"context_length": 20}, "training": {"precision": "bf16", "zero_stage": 3}}, {}),
}  # fmt: skip


def train_all(plans: dict[str, tuple[StagePlan, ...]], store: str, world: int) -> None:
    """On one of `world` workers: every stage that is for so many, unless one before it still waits for others."""
    for stages in plans.values():
        for stage in stages:
            if stage.training.workers.most == world:
                run_job(Job((stage,), store), lambda *message: None)
            elif Store(open_folder(store)).record(stage.key) is None:
                break


@dataclass(frozen=True)
class Runs:
    plans: dict[str, tuple[StagePlan, ...]]
    store: Store

    def record(self, name: str, index: int) -> StageRecord:
        return self.store.record(self.plans[name][index].key)

    def checkpoint(self, name: str, index: int) -> Checkpoint:
        return Checkpoint(self.store.finished_checkpoint(self.plans[name][index].key))

    def tolerance(self, name: str) -> float:
        in_bf16 = any(stage.training.precision == "bf16" for stage in self.plans[name])
        return 3e-3 if in_bf16 else 1e-5


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder, text = tmp_path_factory.mktemp("between"), tmp_path_factory.mktemp("text")
    plans = {name: two_stages(text, second, **file) for name, (second, file) in TRAINED.items()}
    for turn, world in enumerate((1, 2, 1)):
        run_workers(world, train_all, plans, str(folder / "store"), world, folder=folder / f"processes-{turn}")
    return Runs(plans, Store(open_folder(folder / "store")))


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", TRAINED)
def test_a_stage_begins_with_the_model_that_the_one_before_ended_with(runs: Runs, name: str) -> None:
    """On its own held-out text, and in its certificate on the other's."""
    first, second = runs.plans[name]
    model = model_in(runs.checkpoint(name, 0), second.shape)
    begun = runs.record(name, 1).evaluations[0]
    assert begun.position == first.end
    assert begun.loss == pytest.approx(evaluated(model, second), rel=runs.tolerance(name))
    certificate = runs.record(name, 1).growth.certificate
    assert certificate.eval_loss_before == runs.record(name, 0).eval_loss
    if second.shape.norm_eps == first.shape.norm_eps:
        assert certificate.eval_loss_after == pytest.approx(certificate.eval_loss_before, rel=runs.tolerance(name))


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", TRAINED)
def test_and_trains_as_a_plain_loop_does(runs: Runs, name: str) -> None:
    stage = runs.plans[name][1]
    record, source = runs.record(name, 1), runs.checkpoint(name, 0)
    assert (record.duration, record.steps, record.flops) == (stage.duration, stage.steps, stage.flops)
    plain = evaluated(trained(stage, source), stage)
    assert record.eval_loss == pytest.approx(plain, rel=runs.tolerance(name))
    # What the stage changed is more than what the comparison lets pass.
    begun = record.evaluations[0].loss
    assert abs(begun - plain) > 3 * runs.tolerance(name) * plain


# --- the same text at the same position ---------------------------------------------------------


@pytest.mark.parametrize("lengths", [(10, 20), (20, 10), (5, 40), (40, 5)], ids=str)
def test_another_context_goes_on_where_the_last_one_stopped(lengths: tuple[int, int], tmp_path: Path) -> None:
    """All tokens of an epoch once, in the order in which a run in one context reads them."""
    before, after = lengths
    first, second = two_stages(tmp_path, {"model": {"context_length": after}, "training": {"global_batch_tokens": 80}},
                               model={"context_length": before}, training={"global_batch_tokens": 40})  # fmt: skip
    assert first.window == second.window == max(lengths)
    stream = open_streams(first.data, first.shape.vocab_size, tmp_path / "cache").train
    reader = TokenWindows(stream, first.window, first.seed)
    middle = first.end // 2 // max(lengths) * max(lengths)
    assert 0 < middle < reader.windows * max(lengths)
    read = np.concatenate(
        [
            reader.sequences(0, middle // before, before)[:, :-1].ravel(),
            reader.sequences(middle // after, middle // after, after)[:, :-1].ravel(),
        ]
    )
    whole = reader.sequences(0, 2 * middle // max(lengths))[:, :-1].ravel()
    np.testing.assert_array_equal(read, whole)


def test_a_position_within_a_longer_sequence_goes_back_to_its_beginning() -> None:
    """Of what is read twice then there is less than one sequence; nothing is left out."""
    reader = TokenWindows(np.arange(1001, dtype=np.uint16), 40, seed=0)
    short = reader.sequences(0, 7, 10)[:, :-1].ravel()  # 70 tokens
    long = reader.sequences(70 // 40, 2, 40)[:, :-1].ravel()
    whole = reader.sequences(0, 3)[:, :-1].ravel()
    np.testing.assert_array_equal(np.concatenate([short[:40], long]), whole)
    np.testing.assert_array_equal(short[40:], long[:30])


def test_in_one_context_the_windows_are_the_sequences(tmp_path: Path) -> None:
    first, second = two_stages(tmp_path, {"training": {"zero_stage": 3}})
    assert first.window == second.window == first.shape.context_length


def test_the_longest_context_of_a_run_is_part_of_the_keys_of_shorter_ones(tmp_path: Path) -> None:
    alike, longer, longest = (
        two_stages(tmp_path, {"model": {"context_length": length}})[0].key for length in (10, 20, 50)
    )
    assert len({alike, longer, longest}) == 3
    assert two_stages(tmp_path, {"model": {"context_length": 5}})[0].key == alike


# --- what is refused ----------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict, dict, str]] = {
    "a wider model without a growth": (
        {"model": {"hidden_size": 16}}, {},
        "stages[1].model.hidden_size: found 16 after 8; a stage without grow keeps its shape"),
    "more layers without a growth": (
        {"model": {"num_layers": 4}}, {},
        "stages[1].grow: missing, though num_layers goes from 2 to 4; expected for example grow: {operator: stack}"),
    "fewer layers": (
        {"model": {"num_layers": 1}}, {},
        "stages[1].grow: missing, though num_layers goes from 2 to 1; expected which layers stay, for example "
        "grow: {operator: layers, layers: [0]}"),
    "another family": (
        {"model": {"family": "qwen3"}}, {},
        "stages[1].model.family: found qwen3 after llama; a stage without grow keeps its shape"),
    "tied embeddings": (
        {"model": {"tied_embeddings": True}}, {},
        "stages[1].model.tied_embeddings: found True after False; a stage without grow keeps its shape"),
    "more tokens in the vocabulary": (
        {"model": {"vocab_size": 300}}, {},
        "stages[1].model.vocab_size: found 300 after 257; a stage without grow keeps its shape"),
    "fewer experts a token": (
        {"model": {"experts_per_token": 1}}, {"model": {"family": "mixtral", "num_experts": 2}},
        "stages[1].model.experts_per_token: found 1 after 2; a stage without grow keeps its shape"),
    "more learned positions without a growth": (
        {"model": {"context_length": 20}}, {"model": {"family": "gpt2"}},
        "stages[1].model.context_length: found 20 after 10; a gpt2 learns its positions, which can become more but "
        "not fewer; expected a grow, of any operator"),
    "fewer learned positions": (
        {"model": {"context_length": 5}}, {"model": {"family": "gpt2"}},
        "stages[1].model.context_length: found 5 after 10; a gpt2 learns its positions, which can become more but "
        "not fewer; expected 10 or more"),
    "contexts that do not fit into each other": (
        {"model": {"context_length": 25}}, {},
        "model.context_length: found 10 in a run whose longest context is 25; expected a divisor of that, such as 5: "
        "all stages read the same windows of text"),
    "text held out that was trained on": (
        {"data": {"validation_fraction": 0.8}}, {},
        "stages[1].data.validation_fraction: found 0.8, which holds out 2 documents that stage 'first' was trained "
        "on; expected at most the 0.5 there"),
    "a batch that no whole sequences fill": (
        {"model": {"context_length": 40}}, {},
        "training.global_batch_tokens: found 100; expected a multiple of context_length (40), such as 80"),
    "more workers than sequences": (
        {"model": {"context_length": 100}, "training": {"workers": 2}}, {},
        "stages[1].training.workers: found 2; expected at most one for each of a global batch's 1 sequences, or "
        "training.global_batch_tokens of at least 200"),
    "an offloaded optimizer without ZeRO": (
        {"training": {"zero_stage": 0}}, {"training": {"offload_optimizer": "cpu"}},
        "training.offload_optimizer: found 'cpu' with zero_stage: 0, where nothing is offloaded; "
        "expected zero_stage 1, 2 or 3, or none"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_when_planned(name: str, tmp_path: Path) -> None:
    second, file, said = REFUSED[name]
    with pytest.raises(InputError) as refused:
        two_stages(tmp_path, second, **file)
    assert str(refused.value) == said


@pytest.mark.end_to_end
def test_learned_positions_grow_in_number_with_any_operator(tmp_path: Path) -> None:
    """The longer model says of the shorter one's text what that one said."""
    longer = {"model": {"context_length": 20}, "grow": {"operator": "stack"}}
    stages = two_stages(tmp_path, longer, model={"family": "gpt2"})
    store = tmp_path / "store"
    run_workers(1, train_all, {"gpt2": stages}, str(store), 1, folder=tmp_path / "processes")
    certificate = Store(open_folder(store)).record(stages[1].key).growth.certificate
    assert certificate.eval_loss_after == pytest.approx(certificate.eval_loss_before, rel=1e-6)
    assert certificate.max_logit_difference == pytest.approx(0, abs=1e-5)
