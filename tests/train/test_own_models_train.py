"""Models without a table, trained on real workers: killed and resumed, and on one worker, two and three."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import own_nets
import pytest
import transformers
from safetensors.torch import load_file

import raystage
from labelled_files import images, texts, write_jsonl, write_npz
from raystage.config.schedule import Schedule, parse
from raystage.errors import InputError
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.results.record import StageRecord
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.tools.export import ExportOptions, export
from raystage.tools.grow import open_source
from staged_runs import losses, train_each_way

pytestmark = pytest.mark.end_to_end

PLAIN = ExportOptions(tokenizer="none")
TRAINING = {
    "optimizer": {"lr": 1e-2}, "micro_batch_size": 2, "lr_schedule": {"kind": "constant", "warmup": 0},
    "checkpoint": {"every": 24},
}  # fmt: skip
OF_TEXT = {"global_batch_tokens": 192, "checkpoint": {"every": 384}}
OF_IMAGES = {"global_batch_samples": 12}
NET = Path(own_nets.__file__)
READER = {"family": "module", "build": f"{NET}:reader", "context_length": 16, "writes_residual": ["*.down.*"],
          "widths": {"hidden_size": "width", "ffn_size": "inner"}}  # fmt: skip
OPT = {"model_type": "opt", "hidden_size": 8, "ffn_dim": 16, "num_attention_heads": 2, "word_embed_proj_dim": 8,
       "max_position_embeddings": 32, "dropout": 0.0, "num_hidden_layers": 1}  # fmt: skip
# By name the data, the model, what the second stage changes of it, and the objective.
CASES = {
    "reader": ("rows", READER, {"options": {"depth": 2}}, "identity", "causal_lm"),
    "wider reader": ("rows", READER, {"options": {"width": 16, "inner": 32}}, "duplicate", "causal_lm"),
    "convolutions": ("npz", {"family": "module", "build": f"{NET}:convolutions"}, {"options": {"depth": 2}}, "stack",
                     "classification"),
    "temporal": ("rows", {"family": "module", "build": f"{NET}:temporal", "context_length": 16},
                 {"options": {"depth": 2}}, "stack", "causal_lm"),
    "opt": ("rows", {"family": "transformers", "context_length": 16, "num_layers": 1}, {"num_layers": 2}, "stack",
            "causal_lm"),
}  # fmt: skip


def schedule_of(folder: Path, workers: int, name: str) -> Schedule:
    kind, model, change, operator, objective = CASES[name]
    if kind == "npz":
        data = {"source": "arrays", "path": str(write_npz(folder / "npz", images(70)))}
        training, unit, lengths = {**TRAINING, **OF_IMAGES}, "samples", (72, 60)
    else:
        data = {"source": "jsonl", "path": str(write_jsonl(folder / "rows", texts(400))), "tokenizer": "bytes"}
        training, unit, lengths = {**TRAINING, **OF_TEXT}, "tokens", (1152, 960)
    if model["family"] == "transformers":
        (folder / "opt.json").write_text(json.dumps(OPT))
        model = {**model, "config": str(folder / "opt.json")}
    data["validation_fraction"] = 0.3
    stages = [
        {"name": "first", "until": {unit: lengths[0]}},
        {"name": "second", "until": {unit: lengths[1]}, "model": change, "grow": {"operator": operator}},
    ]
    return parse({"name": "own", "data": data, "model": model, "objective": objective, "stages": stages,
                  "training": {**training, "workers": workers}})  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, list[StageRecord]]:
    """By case and way the records of both stages."""
    return train_each_way(
        lambda way, workers: {name: schedule_of(folder, workers, name) for name in CASES}, (2, 5), folder
    )


def final(folder: Path, way: str, name: str) -> dict[str, np.ndarray]:
    """All weights and buffers at the end."""
    store = Store(open_folder(str(folder / f"{way}-{name}")))
    workers = {"two": 2, "killed": 1, "one": 1, "three": 3}[way]
    key = make_plan(schedule_of(folder, workers, name)).staged.stages[1].key
    opened = Checkpoint(store.finished_checkpoint(key))
    return {one.name: opened.read(one.name, "fp32", 0, int(np.prod(one.shape))) for one in opened.manifest.parameters}


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_is_the_same(trained: dict[str, list[StageRecord]], folder: Path, name: str) -> None:
    assert losses(trained[f"{name}, killed"]) == losses(trained[f"{name}, one"])
    one, killed = final(folder, "one", name), final(folder, "killed", name)
    assert all(np.array_equal(one[parameter], killed[parameter]) for parameter in one)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["one", "three"])
def test_any_number_of_workers_learns_the_same(
    trained: dict[str, list[StageRecord]], folder: Path, name: str, way: str
) -> None:
    """Micro batches hold the same samples, for the batch is a multiple of each number of workers."""
    for two, other in zip(losses(trained[f"{name}, two"]), losses(trained[f"{name}, {way}"]), strict=True):
        assert other == pytest.approx(two, rel=1e-3)
    ours, theirs = final(folder, "two", name), final(folder, way, name)
    for parameter, values in ours.items():
        np.testing.assert_allclose(theirs[parameter], values, rtol=0.05, atol=5e-3, err_msg=parameter)


def test_exact_growth_keeps_what_the_model_says(trained: dict[str, list[StageRecord]]) -> None:
    for name in ("reader", "wider reader"):
        certificate = trained[f"{name}, two"][1].growth.certificate
        assert certificate.exact
        assert certificate.max_logit_difference < 1e-5
        assert certificate.gradient_error < 1e-4
    assert not trained["convolutions, two"][1].growth.certificate.exact


def test_buffers_are_measured_in_every_step(trained: dict[str, list[StageRecord]], folder: Path) -> None:
    """A layer that was copied goes on from the statistics of its origin."""
    found = final(folder, "two", "convolutions")
    steps = sum(record.steps for record in trained["convolutions, two"])
    assert [found[f"blocks.{layer}.0.num_batches_tracked"].item() for layer in (0, 1)] == [steps, steps]
    assert (found["blocks.0.0.running_var"] != 1).all()


def test_what_was_learned(trained: dict[str, list[StageRecord]]) -> None:
    for name in ("reader", "opt"):
        first, second = trained[f"{name}, two"]
        assert second.eval_loss < first.evaluations[0].loss - 0.2


# --- what it is good for afterwards -------------------------------------------------------------


def exported(folder: Path, name: str) -> Path:
    stage = make_plan(schedule_of(folder, 2, name)).staged.stages[1]
    target = folder / f"exported-{name}"
    export(open_source(stage.key, Store(open_folder(str(folder / f"two-{name}")))), open_folder(str(target)), PLAIN)
    return target


def test_an_architecture_of_transformers_is_exported_as_it_saves_it(trained: dict, folder: Path) -> None:
    out = exported(folder, "opt")
    network, kept = transformers.AutoModelForCausalLM.from_pretrained(out).eval(), final(folder, "two", "opt")
    assert type(network).__name__ == "OPTForCausalLM"
    assert network.config.num_hidden_layers == 2
    for name, one in network.named_parameters():
        np.testing.assert_array_equal(one.detach().flatten().numpy(), kept[name], err_msg=name)


def test_a_module_of_ones_own_is_exported_for_its_own_code(trained: dict, folder: Path) -> None:
    """With its buffers; and no checkpoint or folder makes raystage run anybody's code."""
    out = exported(folder, "convolutions")
    said = json.loads((out / "config.json").read_text())
    assert (said["function"], said["options"]) == ("convolutions", {"depth": 2})
    network = own_nets.convolutions(said["num_labels"], said["num_channels"], **said["options"])
    found = network.load_state_dict(load_file(out / "model.safetensors"), strict=False)
    assert not found.missing_keys
    assert not found.unexpected_keys
    stage = make_plan(schedule_of(folder, 2, "convolutions")).staged.stages[1]
    with pytest.raises(InputError, match="a model of the user's own code, which nothing from elsewhere may run"):
        raystage.load_model(stage.key, str(folder / "two-convolutions"))
