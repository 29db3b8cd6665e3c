"""An adapter under every objective, on one worker that is killed within the stage: a head that the stage puts on is
trained in full, and of the rest only what has an adapter changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chats import save_chat_words, write_chats
from distributed import run_workers
from factories import make_schedule
from labelled_files import images, texts, write_jsonl, write_npz
from raystage.config.schedule import Schedule, parse
from raystage.files.filesystem import open_folder
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.tools.load import load_model
from staged_runs import carry_out_all, records_of

pytestmark = pytest.mark.end_to_end

LLAMA = {"family": "llama", "context_length": 24, "hidden_size": 8, "num_heads": 2, "ffn_size": 16, "num_layers": 2}
SAMPLES = {
    "optimizer": {"lr": 1e-2}, "global_batch_samples": 10, "micro_batch_size": 2, "checkpoint": {"every": 30},
    "evaluate": {"samples": 17}, "lr_schedule": {"kind": "constant", "warmup": 0},
}  # fmt: skip
TOKENS = {"optimizer": {"lr": 1e-2}, "checkpoint": {"every": 200}, "evaluate": {"tokens": 200}}
TAUGHT = {"name": "distillation", "teacher": "base", "temperature": 2}
VIT = {"family": "vit", "patch_size": 4, "hidden_size": 8, "num_heads": 2, "ffn_size": 16, "num_layers": 2}
# Of each: the data, the model, the objectives of both stages, and what is trained in full.
CASES: dict[str, tuple[str, dict, tuple, set[str]]] = {
    "images, then their classes": (
        "npz", VIT, ("denoising", "classification"), {"classifier.weight", "classifier.bias"}),
    "classes again": ("npz", VIT, ("classification", "classification"), set()),
    "classes of texts": ("jsonl", LLAMA, ("classification", "classification"), set()),
    "masked tokens": ("text", {"family": "bert", "num_layers": 2}, ("masked_lm", "masked_lm"), set()),
    "a teacher": ("text", {"num_layers": 2}, ("causal_lm", TAUGHT), set()),
    "conversations": ("chats", {"num_layers": 2}, ("causal_lm", "instruct"), set()),
}  # fmt: skip


def schedule_of(folder: Path, case: str) -> Schedule:
    kind, model, (first, second), _ = CASES[case]
    unit, amounts = ("samples", (60, 80)) if kind in ("npz", "jsonl") else ("tokens", (400, 800))
    stages = [
        {"name": "base", "until": {unit: amounts[0]}, "objective": first},
        {"name": "tuned", "until": {unit: amounts[1]}, "objective": second,
         "adapter": {"lora": {"rank": 2, "dropout": 0.1}}},
    ]  # fmt: skip
    if unit == "samples":
        data = {"source": "arrays", "path": str(write_npz(folder / "npz", images(70)))} if kind == "npz" else {
            "source": "jsonl", "path": str(write_jsonl(folder / "rows", texts(70))), "tokenizer": "bytes"}  # fmt: skip
        data["validation_fraction"] = 0.3
        return parse({"name": "samples", "data": data, "model": model, "training": SAMPLES, "stages": stages})
    data = {}
    if kind == "chats":
        data = {"tokenizer": str(save_chat_words(folder / "words"))}
        stages[1]["data"] = {"source": "jsonl", "path": str(write_chats(folder / "chats.jsonl"))}
    (folder / "text").mkdir(exist_ok=True)
    changes = {"data": data, "stages": stages, "training": TOKENS, "baseline": None}
    return make_schedule(folder / "text", model=model, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Schedule, str]]:
    """By case its schedule, and the store where all of it was trained."""
    folder = tmp_path_factory.mktemp("adapted")
    schedules = {case: schedule_of(folder, case) for case in CASES}
    stores = {case: str(folder / f"store-{number}") for number, case in enumerate(CASES)}
    run_workers(1, carry_out_all, schedules, stores, (4,), folder=folder / "processes")
    return {case: (schedules[case], stores[case]) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_only_the_adapter_and_a_new_head_change_the_model(trained: dict, case: str) -> None:
    schedule, path = trained[case]
    (base, stage), store = make_plan(schedule).staged.stages, Store(open_folder(path))
    before, after = (Checkpoint(store.finished_checkpoint(one.key)) for one in (base, stage))
    assert set(stage.adapter.in_full) == CASES[case][3]
    for one in parameters(stage.shape):
        found = after.read(one.name, "fp32", 0, one.numel)
        if one.name in stage.adapter.in_full:
            assert found.any(), one.name
            continue
        is_same = np.array_equal(found, before.read(one.name, "fp32", 0, one.numel))
        assert is_same is (one.name not in stage.adapter.weights), one.name


@pytest.mark.parametrize("case", [case for case, (kind, *_) in CASES.items() if kind in ("text", "chats")])
def test_it_learns(trained: dict, case: str) -> None:
    schedule, path = trained[case]
    record = records_of(schedule, path)[1]
    assert record.evaluations[-1].loss < record.evaluations[0].loss
    assert (record.adapter.rank, record.adapter.eval_loss) == (2, record.eval_loss)


@pytest.mark.parametrize("case", ["images, then their classes", "conversations"])
def test_what_it_ends_with_is_a_model_like_any_other(trained: dict, case: str) -> None:
    schedule, path = trained[case]
    stage = make_plan(schedule).staged.stages[1]
    network = load_model(stage.key, path)
    assert {name for name, _ in network.named_parameters()} == {one.name for one in parameters(stage.shape)}
