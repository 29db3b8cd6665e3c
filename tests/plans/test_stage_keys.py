"""A stage's key changes with all that can change its result, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from factories import write_documents
from raystage.config import yaml_file
from raystage.config.schedule import parse
from raystage.planning.build import make_plan
from raystage.plans import keys as key_module
from raystage.plans.plan import Plan

# FOLDER/tokenizer is a tokenizer, FOLDER/texts text; FOLDER/copy holds the same of both, FOLDER/other something else.
WRITTEN = """
name: keys
seed: 7
data: {source: text, path: FOLDER/texts, validation_fraction: 0.5, tokenizer: FOLDER/tokenizer}
model: {hidden_size: 16, num_heads: 4, context_length: 8, vocab_size: 300}
training: {global_batch_tokens: 64, lr_schedule: {warmup: 64, decay: 0.25}}
stages:
  - {name: small, model: {num_layers: 2}, until: {tokens: 640}}
  - {name: full, model: {num_layers: 4}, until: {tokens: 1280}, grow: {operator: stack}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys")
    (path / "texts").mkdir()
    write_documents(path / "texts")
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "tokenizer.json").write_text("{}")
    for name in ("texts", "tokenizer"):
        for copy in ("copy", "other"):
            shutil.copytree(path / name, path / copy / name)
    (path / "other" / "texts" / "0.txt").write_text("something else")
    (path / "other" / "tokenizer" / "tokenizer.json").write_text('{"version": "2"}')
    return path


def plan_of(folder: Path, changes: str = "") -> Plan:
    content = yaml.safe_load(WRITTEN.replace("FOLDER", str(folder)))
    for change in filter(None, changes.split(" | ")):
        yaml_file.apply_override(content, change.replace("FOLDER", str(folder)))
    return make_plan(parse(content))


def keys(folder: Path, changes: str = "") -> list[str]:
    return [stage.key for stage in plan_of(folder, changes).staged.stages]


# Each changes the key of both stages.
CHANGES_ALL = [
    "seed=8",
    "data.path=FOLDER/other/texts",
    "data.path=[FOLDER/texts, FOLDER/other/texts/0.txt]",
    "data.validation_fraction=0.6",
    "data.tokenizer=bytes",
    "data.tokenizer=gpt2@1111111111111111111111111111111111111111",
    "data.tokenizer=FOLDER/other/tokenizer",
    "model.hidden_size=32",
    "model.num_heads=2",
    "model.num_kv_heads=2",
    "model.head_size=8",
    "model.ffn_size=32",
    "model.vocab_size=301",
    "model.context_length=16",
    "model.tied_embeddings=true",
    "model.rope_theta=500K",
    "model.rope_scaling={kind: linear, factor: 2}",
    "training.lr_schedule={kind: piecewise, warmup: 64, points: [{at: 640, ratio: 0.5}]}",
    "stages[0].model.num_layers=1",
    "stages[0].until.tokens=704",
    "training.workers=2",
    "training.workers={min: 1, max: 2}",
    "training.cpus_per_worker=2",
    "training.gpus_per_worker=1",
    "training.zero_stage=2",
    "training.precision=bf16",
    "training.offload_optimizer=cpu",
    "training.deterministic=true",
    "training.compile=true",
    "training.cross_entropy=chunked",
    "training.cross_entropy=liger | training.gpus_per_worker=1",
    "training.optimizer.fused=true",
    "training.global_batch_tokens=128",
    "training.micro_batch_size=2",
    "training.gradient_clipping=0.5",
    "training.activation_checkpointing=true",
    "training.activation_checkpointing=selective",
    "training.optimizer.name=adam",
    "training.optimizer.name=sgd",
    "training.optimizer={name: sgd, momentum: 0.8}",
    "training.optimizer={name: sgd, momentum: 0}",
    "training.optimizer.lr=2e-3",
    "training.optimizer.betas=[0.9, 0.99]",
    "training.optimizer.eps=1e-6",
    "training.optimizer.weight_decay=0",
    "training.lr_schedule.warmup=128",
    "training.lr_schedule.kind=cosine",
    "training.evaluate.tokens=64",
    "training.evaluate.tokens=65_536",
    "training.deepspeed.prescale_gradients=true",
    "training.deepspeed.zero_optimization.reduce_bucket_size=1000",
]

# Each changes the key of the second stage alone.
CHANGES_SECOND = [
    "stages[1].until.tokens=1344",
    "stages[1].model.num_layers=6",
    "stages[1].model.rope_theta=500K",
    "stages[1].model.rope_scaling={kind: yarn, factor: 2}",
    "stages[1].training.lr_schedule={from: current, kind: linear}",
    "training.lr_schedule.decay_shape=1-sqrt",
    "stages[1].grow.operator=interleave",
    "stages[1].grow.operator=identity",
    "stages[1].grow={operator: identity, layers: [0, 1, 0, 1]}",
    "stages[1].grow.operator=middle",
    "stages[1].grow={operator: middle, block: 1}",
    "stages[1].grow.operator=last",
    "stages[1].grow.operator=first",
    "stages[1].grow={operator: layers, layers: [0, 1, 0, 1]}",
    "stages[1].grow={operator: layers, layers: [0, 1, 1, 0]}",
    "stages[1].grow.operator=random",
    "stages[1].grow={operator: identity, rewarm: {tokens: 64}}",
    "stages[1].grow={operator: identity, rewarm: {tokens: 640}}",
    "stages[1].grow={operator: identity, rewarm: {factor: 1.5, tokens: 64}}",
    "stages[1].training.optimizer.name=sgd",
    "stages[1].grow.optimizer_state=reset",
    "stages[1].grow.optimizer_state=keep",
    "stages[1].training.optimizer.lr=2e-3",
    "stages[1].training.lr_schedule={}",
    "stages[1].training.workers=2",
    "stages[1].training.zero_stage=3",
    "stages[1].training.deepspeed.zero_optimization.overlap_comm=false",
    "stages[1].data.path=FOLDER/other/texts",
    "training.lr_schedule.decay=0.3",
    "training.lr_schedule.min_lr_ratio=0.1",
]

# None of these changes any key.
CHANGES_NOTHING = [
    "name=other",
    "stages[0].name=first",
    "data.path=FOLDER/copy/texts",
    "data.path=[FOLDER/texts]",
    "stages[1].data.path=FOLDER/copy/texts",
    "data.tokenizer=FOLDER/copy/tokenizer",
    "stages[0].until.tokens=0.64K",
    "stages[0].until.tokens='640'",
    "stages[0].until.tokens=600",  # a stage ends with the step that reaches its budget
    "stages[0].until={steps: 10}",
    "training.max_failures=0",
    "training.hang_seconds=5m",
    "training.workers={min: 1, max: 1}",
    "training.checkpoint.every=64",
    "training.checkpoint={keep_last: 5, keep_best: 1}",
    "training.checkpoint.background=false",
    "training.evaluate.every=64",
    "training.evaluate.metrics=[{function: raystage.objectives.metrics:per_class, options: {tokens: [10]}}]",
    "training.evaluate.tokens=4096",  # by default a stage as short as these is evaluated on no more
    "stages[1].accept.overfitting.evaluations=2",
    "training.deepspeed={}",
    "training.deepspeed={steps_per_print: 10, wall_clock_breakdown: true, flops_profiler: {enabled: true}}",
    "training.deepspeed={prescale_gradients: null}",
    "training.lr_schedule.decay=480",
    "training.lr_schedule.decay_shape=linear",
    "training.lr_schedule={kind: piecewise, warmup: 64, points: [{at: 0.75, ratio: 1}, {at: 1, ratio: 0}]}",
    "model.rope_theta=10K",
    "stages[1].model.rope_scaling={kind: none}",
    "training.optimizer={name: adamw, lr: 1e-3, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1}",
    "training.workers=1 | training.zero_stage=1 | training.precision=fp32",
    "training.offload_optimizer=none",
    "training.deterministic=false",
    "training.compile=false | training.optimizer.fused=false | training.cross_entropy=whole",
    "training.micro_batch_size=8",
    "training.gradient_clipping='1'",
    "model.num_kv_heads=4 | model.head_size=4 | model.ffn_size=64 | model.family=llama",
    "stages[1].model={num_layers: 4, hidden_size: 16}",
    "stages[1].grow.optimizer_state=grow",
    "stages[1].grow.rewarm=null",
    "stages[1].grow={operator: stack, layers: null, block: null}",
    "baseline={budgets: [640]}",
]


@pytest.mark.parametrize("change", CHANGES_ALL)
def test_what_changes_every_key(change: str, folder: Path) -> None:
    assert not set(keys(folder)) & set(keys(folder, change))


@pytest.mark.parametrize("change", CHANGES_SECOND)
def test_what_changes_the_second_key(change: str, folder: Path) -> None:
    before, after = keys(folder), keys(folder, change)
    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("change", CHANGES_NOTHING)
def test_what_changes_no_key(change: str, folder: Path) -> None:
    assert keys(folder) == keys(folder, change)


def test_all_changes_lead_to_different_keys(folder: Path) -> None:
    found = [keys(folder, change)[1] for change in [*CHANGES_ALL, *CHANGES_SECOND, ""]]
    assert len(set(found)) == len(found)


def test_a_block_that_follows_anyway_changes_no_key(folder: Path) -> None:
    left_out, given = (f"stages[1].grow={{operator: middle, block: {block}}}" for block in ("null", 2))
    assert keys(folder, left_out) == keys(folder, given)


def test_identitys_order_is_in_the_key_where_it_was_another_one_before(folder: Path) -> None:
    """By a factor that is not whole; by others a list is one more fact, as it was."""

    def key(layers: int, options: str = "") -> str:
        return keys(folder, f"stages[1].model.num_layers={layers} | stages[1].grow={{operator: identity{options}}}")[1]

    assert key(3) == key(3, ", layers: [0, 1, 1]") != key(3, ", layers: [0, 0, 1]")
    assert key(4) != key(4, ", layers: [0, 0, 1, 1]")


def test_what_another_optimizer_would_use_changes_no_key_and_is_no_error(folder: Path) -> None:
    """A stage with SGD takes Adam's betas over from the file and does not see them."""
    sgd = "stages[1].training.optimizer.name=sgd"
    first, second = keys(folder, sgd)
    other_first, other_second = keys(folder, f"{sgd} | stages[1].training.optimizer.momentum=0.9")
    assert (first, second) == (other_first, other_second)
    plan = plan_of(folder, f"training.optimizer.betas=[0.9, 0.99] | {sgd}")
    assert plan.staged.stages[1].training.optimizer.used() == {
        "name": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.1,
    }  # fmt: skip


def test_the_order_of_keys_in_the_file_does_not_matter(folder: Path) -> None:
    content = yaml.safe_load(WRITTEN.replace("FOLDER", str(folder)))
    turned = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in content.items()
    }
    plan = make_plan(parse(dict(reversed(turned.items()))))
    assert [stage.key for stage in plan.staged.stages] == keys(folder)


def test_the_epoch_of_the_code_changes_every_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(folder)
    monkeypatch.setattr(key_module, "CODE_EPOCH", key_module.CODE_EPOCH + 1)
    assert not set(before) & set(keys(folder))


def test_keys_are_chained(folder: Path) -> None:
    first, second = plan_of(folder).staged.stages
    assert (first.parent_key, second.parent_key) == (None, first.key)
    assert all(len(key) == 64 and int(key, 16) >= 0 for key in (first.key, second.key))


def test_under_wsd_schedules_share_what_comes_before_they_part(folder: Path) -> None:
    """The first stage lies before the decay of either run; under cosine its rate depends on the whole."""
    for kind, shared in (("wsd", True), ("constant", True), ("cosine", False), ("linear", False)):
        schedule = f"training.lr_schedule={{kind: {kind}, warmup: 64, decay: 0.25}}"
        short, long = keys(folder, schedule), keys(folder, f"{schedule} | stages[1].until.tokens=2560")
        assert (short[0] == long[0]) is shared
        assert short[1] != long[1]
