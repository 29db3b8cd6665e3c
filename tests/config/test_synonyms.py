"""Keys as other trainers call them: the message names ours, with its path and unit."""

from __future__ import annotations

import pytest

from raystage.config import synonyms
from raystage.config.schedule import Schedule, parse
from raystage.config.section import _paths
from raystage.errors import InputError

BATCH = (
    "training.global_batch_tokens (the tokens of one step over all workers: sequences times context_length; "
    "global_batch_samples where progress is counted in samples, as with classification and denoising)"
)
CASES = {
    "learning_rate": "training.optimizer.lr",
    "training.learning_rate": "training.optimizer.lr",
    "training.optimizer.learning_rate": "training.optimizer.lr",
    "batch_size": BATCH,
    "training.gradient_accumulation_steps": BATCH,
    "training.per_device_train_batch_size": "training.micro_batch_size (sequences that a worker takes at a time)",
    "training.max_steps": "until.steps (of a stage)",
    "num_train_epochs": "until.epochs (passes over the data)",
    "model.seq_len": "model.context_length (in tokens)",
    "data.max_seq_len": "model.context_length (in tokens)",
    "block_size": "model.context_length (in tokens)",
    "model.n_layer": "model.num_layers",
    "model.num_hidden_layers": "model.num_layers",
    "model.n_head": "model.num_heads",
    "model.num_attention_heads": "model.num_heads",
    "model.n_embd": "model.hidden_size",
    "model.d_model": "model.hidden_size",
    "model.hidden_dim": "model.hidden_size",
    "model.intermediate_size": "model.ffn_size",
    "training.lr_scheduler": "training.lr_schedule.kind (wsd, cosine, linear, 1-sqrt, constant or piecewise)",
    "training.warmup_steps":
        "training.lr_schedule.warmup (a share below 1, or tokens: steps times global_batch_tokens)",
    "training.bf16": "training.precision (fp32 or bf16)",
    "FP16": "training.precision (fp32 or bf16)",
    "dataset": "data.path (files or folders, with data.source: text, jsonl, parquet, ...)",
    "data.train-file": "data.path (files or folders, with data.source: text, jsonl, parquet, ...)",
    "data.text_column": "data.field (of a row)",
    "num_gpus": "training.workers (how many, with training.gpus_per_worker: 1 on GPUs)",
    "training.deepspeed_config": "training.deepspeed (a mapping of its options)",
    "training.eval_steps": "training.evaluate.every (in tokens)",
    "stages[0].growth": "grow.operator (such as stack)",
}  # fmt: skip


def said_of(path: str) -> str:
    *way, name = path.split(".")
    content: dict = {"stages": [{}]}
    place = content
    for step in way:
        place = place["stages"][0] if step == "stages[0]" else place.setdefault(step, {})
    place[name] = 1
    with pytest.raises(InputError) as caught:
        parse(content)
    return str(caught.value)


@pytest.mark.parametrize("path", CASES)
def test_a_name_from_elsewhere_leads_to_ours(path: str) -> None:
    assert said_of(path) == f"{path}: unknown key; did you mean {CASES[path]}?"


def test_a_key_of_ours_at_the_wrong_place_is_sent_to_its_own() -> None:
    assert said_of("weight_decay") == "weight_decay: unknown key here; it belongs in training.optimizer"


def test_what_is_an_option_is_no_key() -> None:
    said = "output_dir: unknown key; that is an option of the command: raystage run --store"
    assert said_of("output_dir") == said


def test_every_name_leads_to_a_key_that_there_is() -> None:
    assert {key for key, _ in synonyms._SYNONYMS.values()} <= set(_paths(Schedule))


def test_the_number_of_classes_is_no_key() -> None:
    with pytest.raises(InputError, match=r"unknown key; the number of classes follows from the labels in the data"):
        parse({"name": "classes", "model": {"num_classes": 5}, "stages": [{"name": "one", "until": {"tokens": 1000}}]})
