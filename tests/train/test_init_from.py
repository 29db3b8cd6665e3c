"""`init: {from: ...}`: runs that start from Hugging Face folders and checkpoints, on real workers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

from factories import make_records
from raystage.cli.main import main
from raystage.cli.views.plan_json import plan_json
from raystage.config.schedule import Init, Schedule, parse
from raystage.errors import InputError
from raystage.files.filesystem import open_folder
from raystage.growth.apply import Grown
from raystage.models.hf_folder import open_model
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.plans.initial import find_init
from raystage.plans.plan import Plan
from raystage.reports.advice import warnings
from raystage.results.comparison import measure_savings
from raystage.results.data.data_use import Counted
from raystage.results.doubts import doubts
from raystage.sources.table import read_corpus
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.huggingface import FolderWeights
from raystage.storage.store import Store
from raystage.tools.certify import load
from raystage.tools.grow import open_source
from raystage.train.entry import initial_entry
from raystage.train.texts import evaluation_set
from staged_runs import records_of, train
from started_models import FOLDERS, make, make_schedule

PROTOCOL = "point 5 of raystage's protocol: every stage counts"
MODEL = {"num_layers": 2, "hidden_size": 16, "num_heads": 4, "context_length": 12}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    return folder


def loss_of(path: Path, plan: Plan) -> float:
    """Of plain transformers' model, on what the first stage is evaluated on."""
    network = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = torch.from_numpy(evaluation_set(plan.staged.stages[0]).tokens)
    with torch.no_grad():
        logits = network(input_ids=ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


# --- Hugging Face folders -----------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "shards"), [(torch.float32, "1GB"), (torch.bfloat16, "4KB"), (torch.float16, "1GB")])
@pytest.mark.parametrize("family", FOLDERS)
def test_every_slice_is_transformers_own(tmp_path: Path, family: str, dtype: torch.dtype, shards: str) -> None:
    path = make(tmp_path / "model", family, dtype, shards)
    network = FOLDERS[family][0].from_pretrained(path, dtype=torch.float32)
    weights = FolderWeights(open_model(open_folder(path)))
    for name, parameter in network.named_parameters():
        values, cut = parameter.detach().flatten().numpy(), parameter.numel() // 3
        found = [weights.read(name, "fp32", *span) for span in ((0, cut), (cut, values.size), (cut, cut))]
        assert found[0].dtype == np.float32
        assert np.array_equal(np.concatenate(found), values), name
    weights.close()


@pytest.mark.parametrize(("family", "zero_stage"), [("llama", 3), ("gpt2", 1), ("qwen2", 3), ("mixtral", 1)])
def test_a_run_starts_as_the_folder_s_model_and_leaves_as_one(
    tmp_path: Path, texts: Path, family: str, zero_stage: int
) -> None:
    path = make(tmp_path / "model", family, torch.bfloat16, "4KB")
    schedule = make_schedule(texts, path, training={"workers": 2, "zero_stage": zero_stage})
    plan = make_plan(schedule)
    (record,) = train(schedule, tmp_path / "store")
    assert record.evaluations[0].loss == pytest.approx(loss_of(path, plan), rel=1e-6)
    done = CliRunner().invoke(
        main, ["export", record.key, str(tmp_path / "out"), "--store", str(tmp_path / "store"), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert record.eval_loss == pytest.approx(loss_of(tmp_path / "out", plan), rel=1e-6)
    assert abs(record.eval_loss - record.evaluations[0].loss) > 1e-4
    trained = load(open_source(record.key, Store(open_folder(tmp_path / "store"))))
    outside = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(outside(input_ids=ids).logits, trained(input_ids=ids).logits)


def test_the_first_stage_may_grow_at_once(tmp_path: Path, texts: Path) -> None:
    """By an operator that keeps the function; the second stage goes on from there."""
    path = make(tmp_path / "model", "llama")
    stages = [
        {"name": "wide", "model": {"num_layers": 4}, "grow": {"operator": "identity"}, "until": {"steps": 1}},
        {"name": "deep", "model": {"num_layers": 6}, "grow": {"operator": "identity"}, "until": {"steps": 1}},
    ]
    schedule = make_schedule(texts, path, stages=stages)
    first, second = train(schedule, tmp_path / "store")
    assert first.evaluations[0].loss == pytest.approx(loss_of(path, make_plan(schedule)), rel=1e-6)
    assert second.evaluations[0].loss == pytest.approx(first.eval_loss, rel=1e-6)
    assert (first.growth, second.growth.operator) == (None, "identity")
    assert [stage.shape.rope_theta for stage in make_plan(schedule).staged.stages] == [500_000.0] * 2


def test_a_shorter_context_is_the_same_model(tmp_path: Path, texts: Path) -> None:
    path = make(tmp_path / "model", "llama", max_position_embeddings=64)
    schedule = make_schedule(texts, path, model={"context_length": 12})
    (record,) = train(schedule, tmp_path / "store")
    assert record.evaluations[0].loss == pytest.approx(loss_of(path, make_plan(schedule)), rel=1e-6)


# --- checkpoints --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The texts, and the folder of a stage that was trained on them for three steps by two workers."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "texts").mkdir()
    stages = [{"name": "first", "until": {"steps": 3}}]
    schedule = make_schedule(folder / "texts", None, model=MODEL, stages=stages, training={"workers": 2})
    (record,) = train(schedule, folder / "store")
    return folder / "texts", folder / "store/stages" / record.key


def checkpoint_of(stage: Path) -> Path:
    return stage / json.loads((stage / "record.json").read_text())["checkpoint"]


@pytest.mark.parametrize(
    ("what", "policy", "steps"), [("stage", None, 5), ("checkpoint", "grow", 5), ("checkpoint", "reset", 2)]
)
def test_a_checkpoint_brings_its_steps(
    trained: tuple[Path, Path], tmp_path: Path, what: str, policy: str | None, steps: int
) -> None:
    texts, stage = trained
    schedule = make_schedule(texts, stage if what == "stage" else checkpoint_of(stage))
    schedule = schedule.model_copy(update={"init": schedule.init.model_copy(update={"optimizer_state": policy})})
    (record,) = train(schedule, tmp_path / "store")
    before = json.loads((stage / "record.json").read_text())["eval_loss"]
    assert record.evaluations[0].loss == pytest.approx(before, rel=1e-6)
    source = Checkpoint(Store(open_folder(tmp_path / "store")).finished_checkpoint(record.key))
    assert set(source.steps.values()) == {steps}
    assert (record.duration, record.parent_key) == (192, None)


def test_a_checkpoint_brings_its_moments(trained: tuple[Path, Path]) -> None:
    texts, stage = trained
    (first,) = make_plan(make_schedule(texts, stage)).staged.stages
    entry = initial_entry(first, first.init)
    source, grown = Checkpoint(open_folder(checkpoint_of(stage))), Grown(entry.rules, entry.source.read, 0)
    for one in parameters(first.shape):
        for state in ("fp32", "exp_avg", "exp_avg_sq"):
            assert np.array_equal(
                grown.slice(one.name, state, 0, one.numel), source.read(one.name, state, 0, one.numel)
            )
    assert any(source.read(one.name, "exp_avg", 0, one.numel).any() for one in parameters(first.shape))


@pytest.mark.parametrize("what", ["stage", "checkpoint"])
def test_text_that_the_model_was_trained_on_is_not_held_out(trained: tuple[Path, Path], what: str) -> None:
    """A larger fraction holds documents out that the stage was trained on; other text is no matter."""
    texts, stage = trained
    start = stage if what == "stage" else checkpoint_of(stage)
    plan = make_plan(make_schedule(texts, start, baseline={"budgets": [192]}))
    assert plan.staged.stages[0].trained_on.is_whole
    assert [one.source for one in warnings(plan) if one.key == "init"] == [PROTOCOL]
    with pytest.raises(InputError) as refused:
        make_plan(make_schedule(texts, start, data={"validation_fraction": 0.8}))
    assert str(refused.value) == (
        "data.validation_fraction: found 0.8, which holds out 2 documents that the model in init was trained on; "
        "expected at most the 0.5 there"
    )


def test_what_a_model_was_trained_on_goes_from_run_to_run(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """The model that came out of the second run has seen the first one's text."""
    texts, stage = trained
    other = tmp_path / "other"
    other.mkdir()
    for number in range(12):
        (other / f"{number}.txt").write_text(f"another {number}\n" * 10)
    text = {"source": "text", "path": str(other), "validation_fraction": 0.5}
    schedule = parse({**make_schedule(texts, stage).content(), "data": text})
    (record,) = train(schedule, tmp_path / "store")
    seen = find_init(Init.model_validate({"from": str(tmp_path / "store/stages" / record.key)})).trained_on
    assert (len(seen.texts), seen.is_whole) == (2, True)
    assert Counted.of_record(record).train_tokens == sum(
        len(document.read()) + 1 for document in read_corpus("text", (str(other),)).split(0.5)[0]
    )


def test_of_a_folder_it_is_not_known_what_it_was_trained_on(tmp_path: Path, texts: Path) -> None:
    plan = make_plan(make_schedule(texts, make(tmp_path / "model", "llama"), baseline={"budgets": [192]}))
    (said,) = (one for one in warnings(plan) if one.key == "init" and one.source != PROTOCOL)
    assert "not known what text it was trained on" in said.text
    records = make_records(plan, 2.0, (2.5,))
    found = doubts(plan, records, measure_savings(plan, records))
    assert [one for one in found if "the model in init was trained on: held-out text may be among it" in one]


# --- keys ---------------------------------------------------------------------------------------


def key_of(schedule: Schedule) -> str:
    return make_plan(schedule).staged.stages[0].key


def test_the_key_knows_the_content_not_the_place(tmp_path: Path, texts: Path) -> None:
    one, same = make(tmp_path / "one", "llama"), make(tmp_path / "same", "llama")
    assert key_of(make_schedule(texts, one)) == key_of(make_schedule(texts, same))
    weights = same / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert key_of(make_schedule(texts, one)) != key_of(make_schedule(texts, same))


def test_the_key_knows_what_becomes_of_the_optimizer(trained: tuple[Path, Path]) -> None:
    texts, stage = trained
    kept, reset = (make_schedule(texts, stage, init={"optimizer_state": one}) for one in ("grow", "reset"))
    assert key_of(kept) == key_of(make_schedule(texts, stage)) != key_of(reset)


def test_another_model_on_a_worker_is_refused(tmp_path: Path, texts: Path) -> None:
    path = make(tmp_path / "model", "llama")
    (stage,) = make_plan(make_schedule(texts, path)).staged.stages
    make(path, "llama", rms_norm_eps=1e-5)
    with pytest.raises(InputError, match=r"found another model .* than was planned with"):
        initial_entry(stage, stage.init)
    moved = replace(stage.init, path=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no such folder on this worker"):
        initial_entry(stage, moved)


def test_baselines_start_from_nothing(tmp_path: Path, texts: Path) -> None:
    plan = make_plan(make_schedule(texts, make(tmp_path / "model", "llama"), baseline={"budgets": [192]}))
    assert plan.staged.stages[0].init is not None
    assert [stage.init for run in plan.baselines for stage in run.stages] == [None]
    assert plan.baselines[0].stages[0].shape == plan.staged.stages[0].shape
    assert "init" in [one.key for one in warnings(plan)]
    assert plan_json(plan)["stages"][0]["init"] == {
        "from": str(tmp_path / "model"),
        "fingerprint": plan.staged.stages[0].init.fingerprint,
        "keeps_optimizer_state": False,
    }
    scratch = make_plan(make_schedule(texts, None, model=MODEL, baseline={"budgets": [192]}))
    assert "init" not in [one.key for one in warnings(scratch)]


# --- bad input ----------------------------------------------------------------------------------

BAD_CONFIGS = {
    "scaled rope": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters: found "),
    "biases": ("llama", {"attention_bias": True}, "attention_bias: found true; expected false"),
    "activation": ("llama", {"hidden_act": "relu"}, "hidden_act: found 'relu'; expected 'silu'"),
    "window": ("mistral", {"sliding_window": 5}, "sliding_window: found a window of 5 in a context of 12"),
    "windows": ("qwen2", {"use_sliding_window": True}, "use_sliding_window: found true; expected false"),
    "scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: found true"),
    "unknown": ("llama", {"attention_chunk_size": 4}, "attention_chunk_size: found 4, which the models"),
    "foreign": ("llama", {"model_type": "cohere2"}, "model_type: found 'cohere2'; expected one of llama, "),
    "objective": ("llama", {"model_type": "bert"}, "hidden_act: found 'silu'; expected 'gelu'"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_model_that_would_be_another_is_refused(tmp_path: Path, texts: Path, case: str) -> None:
    family, changes, message = BAD_CONFIGS[case]
    path = make(tmp_path / "model", family)
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as found:
        make_plan(make_schedule(texts, path))
    assert f"config.json: {message}" in str(found.value)


BAD = {
    "no such folder": ({"init": {"from": "no where"}}, "init.from: found 'no where', which is no folder here"),
    "no such hub name": ({"init": {"from": "nobody/nothing"}}, "init.from: found 'nobody/nothing', no folder here,"),
    "a URI": ({"init": {"from": "s3://bucket/model"}}, "init.from: found the URI 's3://bucket/model'"),
    "no from": ({"init": {"from": None}}, "init.from: found nothing; expected text"),
    "unknown key": ({"init": {"form": "x"}}, "init.form: unknown key; did you mean 'from'?"),
    "no optimizer state": ({"init": {"optimizer_state": "grow"}}, "init.optimizer_state: found grow, but a Hugging"),
    "another depth": ({"model": {"num_layers": 3}}, "num_layers goes from 2 to 3; expected for example grow:"),
    "another width": ({"model": {"hidden_size": 32}}, "model.hidden_size: found 32 after 16; a stage without grow"),
    "training operator": (
        {"stages": [{"name": "a", "until": {"steps": 9}, "model": {"num_layers": 4},
                     "grow": {"operator": "masked", "grow_tokens": 96}}]},
        "stages[0].grow.operator: found masked, which needs training"),
    "a limit": (
        {"stages": [{"name": "a", "until": {"steps": 9}, "model": {"num_layers": 4},
                     "grow": {"operator": "stack", "require": {"loss_increase_below": 1}}}]},
        "stages[0].grow.require: found in the first stage"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_schedules_are_one_message(tmp_path: Path, texts: Path, case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(InputError) as found:
        make_plan(make_schedule(texts, make(tmp_path / "model", "llama"), **changes))
    assert message in str(found.value)


@pytest.mark.parametrize("damage", ["no weights", "no config", "cut short", "no file of an index", "another tensor"])
def test_damaged_folders_are_refused(tmp_path: Path, texts: Path, damage: str) -> None:
    path = make(tmp_path / "model", "llama", shards="4KB" if damage == "no file of an index" else "1GB")
    weights = path / "model.safetensors"
    match damage:
        case "no weights":
            weights.unlink()
        case "no config":
            (path / "config.json").write_text("{")
        case "cut short":
            weights.write_bytes(weights.read_bytes()[:-4])
        case "no file of an index":
            next(path.glob("model-00002-*")).unlink()
        case _:
            content = weights.read_bytes()
            weights.write_bytes(content.replace(b"model.norm.weight", b"model.morn.weight"))
    with pytest.raises(InputError, match=str(path)):
        enter(make_schedule(texts, path))


def enter(schedule: Schedule) -> None:
    """Plan and open, as the driver and then each worker do."""
    (stage,) = make_plan(schedule).staged.stages
    initial_entry(stage, stage.init)


def test_a_schedule_without_init_has_the_records_it_had(tmp_path: Path, texts: Path) -> None:
    """`init` is left out of the key where it is not given."""
    schedule = make_schedule(texts, None, model=MODEL)
    (stage,) = make_plan(schedule).staged.stages
    assert (stage.init, stage.growth, stage.parent_shape) == (None, None, None)
    assert records_of(schedule, str(tmp_path / "store")) == [None]


def test_growth_leaves_the_rotary_base_alone(tmp_path: Path) -> None:
    path = make(tmp_path / "model", "llama")
    done = CliRunner().invoke(
        main, ["grow", str(path), str(tmp_path / "out"), "--set=rope_theta=1000", "--set=num_layers=4"]
    )
    assert done.exit_code == 2, done.output
    assert "rope_theta: found 1000 after 500000" in done.stderr
