"""`raystage grow`: whole folders grown, compared with layers copied by hand, within a bound on memory."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from raystage.cli.main import main
from raystage.errors import InputError
from raystage.files.filesystem import Folder, open_folder
from raystage.files.safetensors import cut_into_shards
from raystage.growth.apply import STATES, Grown, grown_steps
from raystage.growth.depth import DEPTH_OPERATORS, GrowthOptions
from raystage.growth.explain import layer_sources
from raystage.growth.operators import OPERATORS
from raystage.growth.request import GrowthRequest, plan_growth
from raystage.growth.rules import growth_map
from raystage.models.shape import ModelShape, parameters
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Checkpoint, Manifest, ParameterEntry
from raystage.storage.shards.writing import Piece, placed, shard_name, write_shard
from raystage.storage.store import Store
from raystage.tools.grow import Source, open_source, open_target, write

LAYERS, TARGET = 2, 4
OPTIONS = {"layers": GrowthOptions(layers=(0, 1, 0, 1))}
# The operators that deepen a folder by themselves.
DEEPENING = [one.name for one in OPERATORS.values() if "num_layers" in one.grows and not one.trains]
SEED = 11
SHAPE = ModelShape("llama", LAYERS, 16, 4, 2, 4, 24, 31, 12)
KEY = "0123456789abcdef" * 4


def grow(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(main, ["grow", *map(str, arguments)])


def options_of(operator: str) -> list[str]:
    given = OPTIONS.get(operator, GrowthOptions()).given()
    return [f"--{name}={','.join(map(str, value))}" for name, value in given.items()]


# --- Hugging Face folders -----------------------------------------------------------------------


def make_llama(path: Path, dtype: torch.dtype = torch.float32, shards: str = "1GB", **changes: object) -> Path:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=12, rope_theta=5000.0, pad_token_id=None, **changes,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # norms, too, unlike any other's
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(path, max_shard_size=shards)
    return path


def load(path: Path) -> torch.nn.Module:
    model, info = transformers.LlamaForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    inputs = torch.randint(0, 31, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(inputs).logits


KINDS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "bf16": {"dtype": torch.bfloat16},
    "sharded": {"shards": "4KB"},
}


@pytest.fixture(params=KINDS)
def llama(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_llama(tmp_path / "source", **KINDS[request.param])


@pytest.mark.parametrize("operator", DEEPENING)
def test_plain_transformers_loads_the_model_with_its_layers_copied(llama: Path, operator: str, tmp_path: Path) -> None:
    done = grow(llama, tmp_path / "target", "--set", f"num_layers={TARGET}", "--operator", operator,
                *options_of(operator))  # fmt: skip
    assert done.exit_code == 0, done.output
    source, target = load(llama), load(tmp_path / "target")
    assert target.dtype == source.dtype
    if OPERATORS[operator].exact:
        assert (logits(source) - logits(target)).abs().max() <= 1e-5
    by_hand = copied_by_hand(source, target, operator)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), by_hand[name].view(torch.uint8)), name


def copied_by_hand(source: torch.nn.Module, target: torch.nn.Module, operator: str) -> dict[str, torch.Tensor]:
    """The source's tensors under the target's names; a new layer's own where the operator draws it."""
    origins = DEPTH_OPERATORS[operator].layers(LAYERS, TARGET, options_after_completion(operator))
    tensors, drawn = source.state_dict(), target.state_dict()
    result = {name: tensor for name, tensor in tensors.items() if ".layers." not in name}
    for number, origin in enumerate(origins):
        for name in (name for name in drawn if name.startswith(f"model.layers.{number}.")):
            if origin.source is None:
                assert drawn[name].float().std() > 0 or (drawn[name] == 1).all()
                result[name] = drawn[name]
                continue
            tensor = tensors[name.replace(f".{number}.", f".{origin.source}.", 1)]
            silent = origin.silenced and name.endswith(("o_proj.weight", "down_proj.weight"))
            result[name] = torch.zeros_like(tensor) if silent else tensor
    return result


def options_after_completion(operator: str) -> GrowthOptions:
    request = GrowthRequest((f"num_layers={TARGET}",), operator, options=OPTIONS.get(operator, GrowthOptions()))
    return plan_growth(SHAPE, request).request.options


def test_the_config_is_the_sources_but_for_its_depth(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    change_json(source / "config.json", layer_types=["full_attention", "other"], of_mine={"kept": [1, None]})
    (source / "tokenizer.json").write_bytes(b"any bytes \xff")
    (source / "tokenizer_config.json").write_text("{}")
    (source / "notes.txt").write_text("not the model's")
    assert grow(source, tmp_path / "target", "--set=num_layers=6", "--operator=interleave").exit_code == 0
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("source", "target"))
    types = ["full_attention"] * 3 + ["other"] * 3
    assert after == before | {"num_hidden_layers": 6, "layer_types": types}
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "target").iterdir()} == names
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "target" / name).read_bytes() == (source / name).read_bytes()


def test_a_large_model_is_cut_into_shards_with_an_index(tmp_path: Path) -> None:
    source = open_source(str(make_llama(tmp_path / "source", torch.bfloat16)), Store(open_folder(tmp_path / "store")))
    growth = plan_growth(source.shape, GrowthRequest(("num_layers=4",), "stack"))
    done = write(source, growth, open_target(str(tmp_path / "target")), max_shard_bytes=5000)
    index = json.loads((tmp_path / "target/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 3
    held = {name: file for file in files for name in load_file(tmp_path / "target" / file)}
    assert held == index["weight_map"]
    assert all((tmp_path / "target" / file).stat().st_size < 5000 + 2000 for file in files)
    assert index["metadata"] == {"total_parameters": done["num_params"], "total_size": 2 * done["num_params"]}
    assert torch.equal(load(tmp_path / "target").model.layers[3].mlp.up_proj.weight,
                       load(tmp_path / "source").model.layers[1].mlp.up_proj.weight)  # fmt: skip
    with safe_open(tmp_path / "target" / files[0], "pt") as file:
        assert json.loads(file.metadata()["grown_from"])["operator"] == "stack"


def test_tensors_of_several_types_stay_as_they_are_and_aligned(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source", torch.bfloat16)
    tensors = load_file(source / "model.safetensors")
    tensors = {name: value.float() if "norm" in name else value for name, value in tensors.items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)  # as old models have it
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert grow(source, tmp_path / "target", "--set=num_layers=4", "--operator=random").exit_code == 0
    grown = load_file(tmp_path / "target/model.safetensors")
    assert {name: value.dtype == torch.float32 for name, value in grown.items()} == {
        name: "norm" in name for name in grown
    }
    with open(tmp_path / "target/model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    assert all(e["data_offsets"][0] % (4 if e["dtype"] == "F32" else 2) == 0 for e in header.values() if "dtype" in e)


def test_a_head_stored_twice_is_left_out_where_it_is_tied(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source", tie_word_embeddings=True)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert grow(source, tmp_path / "target", "--set=num_layers=4", "--operator=identity").exit_code == 0
    assert "lm_head.weight" not in load_file(tmp_path / "target/model.safetensors")
    assert (logits(load(source)) - logits(load(tmp_path / "target"))).abs().max() <= 1e-5


# --- raystage checkpoints -----------------------------------------------------------------------


def make_checkpoint(
    folder: Folder, shape: ModelShape = SHAPE, workers: int = 2, states: tuple[str, ...] = STATES
) -> Manifest:
    """A checkpoint such as `workers` leave: every state of every parameter cut among them, steps of their own."""
    generator = np.random.default_rng(5)
    pieces: list[list[Piece]] = [[] for _ in range(workers)]
    for parameter in parameters(shape):
        for state in states:
            values = generator.random(parameter.numel, dtype=np.float32)
            start = 0
            for rank, part in enumerate(np.array_split(values, workers)):
                pieces[rank].append((parameter.name, state, start, part))
                start += part.size
    shards = placed(write_shard(folder, shard_name(rank, workers), own) for rank, own in enumerate(pieces))
    manifest = Manifest(
        model=shape,
        parameters=tuple(
            ParameterEntry(p.name, p.shape, "float32", 40 + number % 7) for number, p in enumerate(parameters(shape))
        ),
        shards=shards,
        stage_key=KEY,
        step=46,
        tokens=4600,
        data_cursor={"tokens": 4600, "seed": SEED},
        rng={"seed": SEED},
        optimizer={"name": "adamw", "lr": 1e-3},
        progress={"steps": 46, "tokens": 4600, "flops": 10**9, "seconds": 7.5, "evaluations": [{"loss": 2.0}]},
    )
    checkpoint.commit(folder, manifest)
    return manifest


def test_a_checkpoint_with_momentum_grows_with_the_state_it_has(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "source")
    make_checkpoint(folder, states=("fp32", "momentum_buffer"))
    arguments = ("--set=ffn_size=48", "--operator=duplicate")
    assert grow(folder.path, tmp_path / "target", *arguments).exit_code == 0
    source, target = Checkpoint(folder), Checkpoint(open_folder(tmp_path / "target"))
    assert target.states == ("fp32", "momentum_buffer")
    name, size = "model.layers.1.mlp.down_proj.weight", 16 * 24
    momentum = source.read(name, "momentum_buffer", 0, size).reshape(16, 24)
    grown = target.read(name, "momentum_buffer", 0, 2 * size).reshape(16, 48)
    np.testing.assert_array_equal(grown, np.hstack([momentum, np.zeros_like(momentum)]))


def test_new_elements_of_a_grown_checkpoint_count_their_own_steps(tmp_path: Path) -> None:
    """Once more after a second growth, at the same count; with momentum no count matters, and none is kept."""
    make_checkpoint(open_folder(tmp_path / "source"))
    make_checkpoint(open_folder(tmp_path / "momentum"), states=("fp32", "momentum_buffer"))
    for source, target, size in (("source", "wide", 48), ("wide", "wider", 64), ("momentum", "heavy", 48)):
        done = grow(tmp_path / source, tmp_path / target, f"--set=ffn_size={size}", "--operator=zero_pad")
        assert done.exit_code == 0, done.output
    name = "model.layers.1.mlp.down_proj.weight"
    step = Checkpoint(open_folder(tmp_path / "source")).steps[name]
    found = {one: Checkpoint(open_folder(tmp_path / one)).head_starts for one in ("source", "wide", "wider", "heavy")}
    assert found["wide"][name] == ((0,) * 16, (0,) * 24 + (step,) * 24)
    assert found["wider"][name] == ((0,) * 16, (0,) * 24 + (step,) * 40)
    assert found["source"] == found["heavy"] == {}


@pytest.mark.parametrize("policy", ["grow", "reset", "keep"])
@pytest.mark.parametrize("operator", DEEPENING)
def test_a_grown_checkpoint_holds_what_the_workers_would_read(operator: str, policy: str, tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "source")
    make_checkpoint(folder)
    done = grow(folder.path, tmp_path / "target", "--set", f"num_layers={TARGET}", "--operator", operator,
                "--optimizer-state", policy, *options_of(operator))  # fmt: skip
    assert done.exit_code == 0, done.output
    source, target = Checkpoint(folder), Checkpoint(open_folder(tmp_path / "target"))
    shape = SHAPE.with_layers(TARGET)
    rules = growth_map(SHAPE, shape, operator, policy, OPTIONS.get(operator, GrowthOptions()))
    grown = Grown(rules, source.read, SEED)
    for rule, parameter in zip(rules, parameters(shape), strict=True):
        for state in STATES:
            for start, stop in ((0, parameter.numel), (parameter.numel // 3, parameter.numel // 2)):
                np.testing.assert_array_equal(
                    target.read(rule.target, state, start, stop),
                    grown.slice(rule.target, state, start, stop),
                )
    assert target.steps == grown_steps(rules, source.steps)
    assert target.manifest.model == shape
    assert [(p.name, p.shape) for p in target.manifest.parameters] == [(p.name, p.shape) for p in parameters(shape)]


def test_a_grown_checkpoint_says_where_it_comes_from_and_stands_where_its_source_stood(tmp_path: Path) -> None:
    source = make_checkpoint(open_folder(tmp_path / "source"))
    assert grow(tmp_path / "source", tmp_path / "target", "--set=num_layers=6").exit_code == 0
    grown = checkpoint.read_manifest(open_folder(tmp_path / "target"))
    for same in ("step", "tokens", "data_cursor", "rng", "optimizer"):
        assert getattr(grown, same) == getattr(source, same)
    assert grown.stage_key == ""
    assert {name: grown.progress[name] for name in ("steps", "tokens", "flops", "seconds", "evaluations")} == {
        "steps": 46, "tokens": 4600, "flops": 10**9, "seconds": 0.0, "evaluations": [],
    }  # fmt: skip
    assert grown.grown_from == {
        "source": str(tmp_path / "source"), "stage_key": None, "num_layers": 2, "seed": SEED,
        "operator": "stack", "optimizer_state": "grow", "exact": False, "exact_in": None,
    }  # fmt: skip


def test_a_checkpoint_without_layers_grows_new_ones(tmp_path: Path) -> None:
    make_checkpoint(open_folder(tmp_path / "source"), SHAPE.with_layers(0))
    done = grow(tmp_path / "source", tmp_path / "target", "--set=num_layers=2", "--operator=random")
    assert done.exit_code == 0, done.output
    target = Checkpoint(open_folder(tmp_path / "target"))
    assert target.read("model.layers.1.mlp.up_proj.weight", "fp32", 0, 24 * 16).std() == pytest.approx(0.02, rel=0.2)
    assert target.steps["model.layers.1.mlp.up_proj.weight"] == 0


def test_growing_in_two_steps_is_growing_in_one(tmp_path: Path) -> None:
    make_checkpoint(open_folder(tmp_path / "2"))
    for source, target in ((2, 4), (4, 8), (2, 8)):
        name = "8 at once" if (source, target) == (2, 8) else str(target)
        assert grow(tmp_path / str(source), tmp_path / name, f"--set=num_layers={target}").exit_code == 0
    shards = [(tmp_path / name / "shard-00000-of-00001.safetensors").read_bytes() for name in ("8", "8 at once")]
    assert shards[0] == shards[1]


def test_a_checkpoint_is_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystage.tools.grow.CHUNK_BYTES", 400)
    make_checkpoint(open_folder(tmp_path / "source"))
    source = open_source(str(tmp_path / "source"), Store(open_folder(tmp_path / "store")))
    growth = plan_growth(source.shape, GrowthRequest(("num_layers=4",), "random"))
    write(source, growth, open_target(str(tmp_path / "target")), max_shard_bytes=10_000)
    target = Checkpoint(open_folder(tmp_path / "target"))
    assert len(target.manifest.shards) > 3
    grown = Grown(growth.rules, source.model.read, SEED)
    for rule in growth.rules:
        np.testing.assert_array_equal(
            target.read(rule.target, "fp32", 0, rule.numel), grown.slice(rule.target, "fp32", 0, rule.numel)
        )


def test_a_finished_stage_is_found_by_the_beginning_of_its_key(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    for number, key in enumerate((KEY, KEY[:8])):
        done = grow(key, tmp_path / str(number), "--set=num_layers=4", "--store", tmp_path / "store", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["kind"] == "checkpoint"
        assert checkpoint.read_manifest(open_folder(tmp_path / str(number))).grown_from["stage_key"] == KEY


def make_store(path: Path) -> None:
    """A store with a finished stage under KEY, one more that begins with ten times the digit 0, and two with 7."""
    store = Store(open_folder(path))
    make_checkpoint(store.stage_folder(KEY) / "checkpoints/1")
    record = {"key": KEY, "parent_key": None, "name": "small", "shape": SHAPE.__dict__, "num_params": 1,
              "num_workers": 1, "zero_stage": 1, "tokens": 1, "steps": 1, "flops": 1, "seconds": 1.0,
              "evaluation_seconds": 1.0, "evaluation_flops": 1, "peak_memory_bytes": 1, "eval_loss": 1.0,
              "checkpoint": "checkpoints/1", "growth": None, "train": [], "evaluations": []}  # fmt: skip
    store.stage_folder(KEY).write_whole("record.json", json.dumps(record).encode())
    for unfinished in ("0" * 64, "7" * 64, "7" * 63 + "8"):
        store.stage_folder(unfinished).make()


# --- what it prints -----------------------------------------------------------------------------


def test_explain_shows_every_layer_once_and_writes_nothing(tmp_path: Path) -> None:
    make_checkpoint(open_folder(tmp_path / "source"))
    before = sorted(tmp_path.rglob("*"))
    done = grow(tmp_path / "source", tmp_path / "target", "--set=num_layers=4", "--operator=identity", "--explain")
    assert done.exit_code == 0, done.output
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in done.stdout.splitlines()[3:]]
    assert rows == [
        ["model.embed_tokens.weight", "model.embed_tokens.weight", "copy", "copy"],
        ["model.layers.0.*", "model.layers.0.*", "copy", "copy"],
        ["model.layers.1: the other 7", "model.layers.0: the other 7", "copy", "zeros"],
        ["model.layers.1: o_proj, down_proj", "-", "zeros", "zeros"],
        ["model.layers.2.*", "model.layers.1.*", "copy", "copy"],
        ["model.layers.3: the other 7", "model.layers.1: the other 7", "copy", "zeros"],
        ["model.layers.3: o_proj, down_proj", "-", "zeros", "zeros"],
        ["model.norm.weight", "model.norm.weight", "copy", "copy"],
        ["lm_head.weight", "lm_head.weight", "copy", "copy"],
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_explain_as_json_is_the_map(tmp_path: Path) -> None:
    done = grow(make_llama(tmp_path / "source"), "--set=num_layers=4", "--explain", "--json")
    shown = json.loads(done.stdout)
    assert shown["rules"][-1]["sources"] == ["lm_head.weight"]
    assert len(shown["rules"]) == 9 * 4 + 3
    assert (shown["operator"], shown["source"]["num_kv_heads"], shown["target"]["num_layers"]) == ("stack", 2, 4)
    assert list(tmp_path.iterdir()) == [tmp_path / "source"]


def test_the_result_is_told_in_a_line_or_as_json(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source")
    told = grow(source, tmp_path / "a", "--set=num_layers=4")
    assert told.stdout.startswith("stack: 2 -> 4 layers, ")
    done = json.loads(grow(source, tmp_path / "b", "--set=num_layers=4", "--json").stdout)
    assert (done["kind"], done["source_num_layers"], done["num_layers"]) == ("huggingface", 2, 4)
    assert done["files"] == ["config.json", "generation_config.json", "model.safetensors"]
    assert done["bytes"] == sum(path.stat().st_size for path in (tmp_path / "b").iterdir())


def test_new_layers_have_no_source_layer() -> None:
    growth = plan_growth(SHAPE, GrowthRequest(("num_layers=4",), "random"))
    assert layer_sources(growth.source, growth.target, growth.rules) == (0, 1, None, None)


@pytest.mark.parametrize(
    ("operator", "layers", "exact"),
    [("stack", None, True), ("layers", (0, 1), True), ("layers", (1, 0), False), ("identity", None, True)],
)
def test_as_deep_as_before_is_exact_where_the_order_is_kept(
    operator: str, layers: tuple[int, ...] | None, exact: bool
) -> None:
    growth = plan_growth(SHAPE, GrowthRequest(("num_layers=2",), operator, options=GrowthOptions(layers)))
    assert growth.how()["exact"] == exact


def test_shards_are_filled_in_order() -> None:
    assert cut_into_shards([3, 3, 3, 10, 1, 1], 6) == [range(0, 2), range(2, 3), range(3, 4), range(4, 6)]
    assert cut_into_shards([3], 6) == [range(0, 1)]


# --- memory -------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from raystage.tools.grow import open_source, open_target, planned, write
from raystage.growth.request import GrowthRequest
from raystage.files.filesystem import open_folder
from raystage.storage.store import Store

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024

Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
before = resident("VmRSS")
source = open_source(sys.argv[1], Store(open_folder(".raystage")))
request = GrowthRequest(tuple(sys.argv[4:]), sys.argv[3])
write(source, planned(source, request), open_target(sys.argv[2]))
print(resident("VmHWM") - before)
"""
LARGE = ModelShape("llama", 4, 1024, 16, 4, 64, 3072, 16000, 64)  # 85M parameters: 324 MiB of fp32
WITH_STATE = replace(LARGE, hidden_size=512, num_heads=8, ffn_size=1536, vocab_size=18000)  # 29M: 340 MiB in all


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    ("kind", "operator"),
    [("huggingface", "random"), ("huggingface", "duplicate"), ("checkpoint", "stack"), ("checkpoint", "zero_pad")],
)
def test_growing_holds_little_of_the_model(kind: str, operator: str, tmp_path: Path) -> None:
    """About 330 MiB grown under 120 MiB above what the interpreter and its imports take."""
    make = make_large_llama if kind == "huggingface" else make_checkpoint
    make(open_folder(tmp_path / "source"), LARGE if kind == "huggingface" else WITH_STATE)
    size = sum(path.stat().st_size for path in (tmp_path / "source").iterdir())
    assert size > 300 * 2**20
    wider = LARGE.hidden_size if kind == "huggingface" else WITH_STATE.hidden_size
    sizes = ["num_layers=8"] if operator in DEEPENING else [f"hidden_size={2 * wider}"]
    command = [sys.executable, "-c", MEASURE, tmp_path / "source", tmp_path / "target", operator, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"{kind}, {operator}: {size / 2**20:.0f} MiB grown in {done.stdout.strip()} MiB")
    assert int(done.stdout) < 120
    assert sum(path.stat().st_size for path in (tmp_path / "target").iterdir()) > 1.3 * size
    shutil.rmtree(tmp_path / "target")


def make_large_llama(folder: Folder, shape: ModelShape) -> None:
    path = Path(folder.path)
    path.mkdir()
    save_file({p.name: torch.ones(p.shape) for p in parameters(shape)}, path / "model.safetensors")
    config = {"model_type": "llama", "num_hidden_layers": shape.num_layers, "hidden_size": shape.hidden_size,
              "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_kv_heads,
              "intermediate_size": shape.ffn_size, "vocab_size": shape.vocab_size}  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))


# --- wrong input --------------------------------------------------------------------------------


def change_json(path: Path, **changes: object) -> None:
    """As if it had been written so: without the checksum that a manifest has."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "checksum"}))


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def flip_last_byte(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


def without(path: Path, name: str) -> None:
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})


def with_tensor(path: Path, name: str, *shape: int) -> None:
    save_file(load_file(path) | {name: torch.ones(shape)}, path, metadata={"format": "pt"})


# What is done to the folder of that kind, the arguments after SOURCE and TARGET, and what is said of it.
HF, CKPT, STAGES = "huggingface", "checkpoint", "store"
FOUR = "--set=num_layers=4"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
CASES = {
    "no such folder": (HF, lambda at: shutil.rmtree(at), [FOUR],
                       "FOLDER: SOURCE: no such folder; expected a raystage checkpoint, a Hugging Face folder, a "
                       "stage key (8 hex digits or more) or a stage's name such as mine/full"),
    "no model folder": (HF, lambda at: (at / CONFIG).unlink(), [FOUR],
                        "FOLDER: SOURCE: no manifest.json or config.json in it; expected a raystage checkpoint"),
    "another family": (HF, lambda at: change_json(at / CONFIG, model_type="gpt2"), [FOUR],
                       "FOLDER: found no tensor for transformer.wte.weight and "),
    "no family": (HF, lambda at: (at / CONFIG).write_text("{}"), [FOUR],
                  "FOLDER/config.json: model_type: found nothing; expected llama"),
    "config cut": (HF, lambda at: cut(at / CONFIG, 9), [FOUR], "FOLDER/config.json: damaged ("),
    "config a list": (HF, lambda at: (at / CONFIG).write_text("[]"), [FOUR],
                      "FOLDER/config.json: damaged; expected a JSON object"),
    "a size that is none": (HF, lambda at: change_json(at / CONFIG, hidden_size="16"), [FOUR],
                            "FOLDER/config.json: hidden_size: found '16'; expected a whole number from 1 on"),
    "other sizes": (HF, lambda at: change_json(at / CONFIG, intermediate_size=25), [FOUR],
                    "FOLDER: model.layers.0.mlp.gate_proj.weight: found the shape [24, 16]; expected [25, 16]"),
    "layer list too short": (HF, lambda at: change_json(at / CONFIG, layer_types=["full_attention"]), [FOUR],
                             "FOLDER/config.json: layer_types: found ['full_attention']; expected a list with an "
                             "entry for each layer"),
    "no weights": (HF, lambda at: (at / WEIGHTS).unlink(), [FOUR],
                   "FOLDER: found neither model.safetensors nor model.safetensors.index.json; expected a model saved "
                   "as safetensors"),
    "a tensor missing": (HF, lambda at: without(at / WEIGHTS, "model.norm.weight"), [FOUR],
                         "FOLDER: found no tensor for model.norm.weight; expected a whole model"),
    "a layer missing": (HF, lambda at: change_json(at / CONFIG, num_hidden_layers=3), [FOUR],
                        "FOLDER: found no tensor for model.layers.2.self_attn.q_proj.weight and 8 more; expected"),
    "biases of one layer": (HF, lambda at: with_tensor(at / WEIGHTS, "model.layers.0.self_attn.q_proj.bias", 16),
                            [FOUR], "FOLDER: found no tensor for model.layers.1.self_attn.q_proj.bias; expected"),
    "adapters": (HF, lambda at: with_tensor(at / WEIGHTS, "model.layers.0.self_attn.q_proj.lora_A.weight", 2, 16),
                 [FOUR], "FOLDER: found model.layers.0.self_attn.q_proj.lora_A.weight; expected a llama without "
                         "adapters or quantization"),
    "no eps": (HF, lambda at: change_json(at / CONFIG, rms_norm_eps="small"), [FOUR],
               "FOLDER/config.json: rms_norm_eps: found 'small'; expected a small number such as 1e-6"),
    "weights cut": (HF, lambda at: cut(at / WEIGHTS, 4), [FOUR],
                    "FOLDER/model.safetensors: damaged (found 21724 bytes; expected 21728); expected safetensors"),
    "weights empty": (HF, lambda at: (at / WEIGHTS).write_bytes(b""), [FOUR], "FOLDER/model.safetensors: damaged ("),
    "weights no safetensors": (HF, lambda at: (at / WEIGHTS).write_bytes(b"PK\3\4" * 99), [FOUR],
                               "FOLDER/model.safetensors: damaged (found a header of 289157608118635344 bytes in a "
                               "file of 396; expected at most 25000000); expected safetensors"),
    "header no JSON": (HF, lambda at: (at / WEIGHTS).write_bytes(struct.pack("<Q", 8) + b"{]______"), [FOUR],
                       "FOLDER/model.safetensors: damaged ("),
    "header a list": (HF, lambda at: (at / WEIGHTS).write_bytes(struct.pack("<Q", 8) + b"[1,2,3] "), [FOUR],
                      "FOLDER/model.safetensors: damaged ("),
    "index leads out": (HF, lambda at: ((at / WEIGHTS).unlink(), (at / INDEX).write_text(
                            '{"weight_map": {"lm_head.weight": "../x.safetensors"}}')), [FOUR],
                        "FOLDER/model.safetensors.index.json: weight_map: found '../x.safetensors'; expected names of "
                        ".safetensors files in this folder"),
    "a shard missing": (HF, lambda at: ((at / WEIGHTS).unlink(), (at / INDEX).write_text(
                            '{"weight_map": {"lm_head.weight": "x.safetensors"}}')), [FOUR],
                        "FOLDER/x.safetensors: no such file; expected safetensors"),
    "manifest damaged": (CKPT, lambda at: cut(at / "manifest.json", 9), [FOUR],
                         "SOURCE: FOLDER/manifest.json: damaged ("),
    "family of a manifest": (CKPT, lambda at: change_json(at / "manifest.json", model=SHAPE.__dict__ | {
                                 "family": "x"}), [FOUR], "SOURCE: FOLDER/manifest.json: found the family 'x'"),
    "parameter not listed": (CKPT, lambda at: change_json(at / "manifest.json", parameters=[], layout=[]), [FOUR],
                             "SOURCE: FOLDER/manifest.json: damaged (model.embed_tokens.weight is not in it)"),
    "shard cut": (CKPT, lambda at: cut(at / "shard-00001-of-00002.safetensors", 4), [FOUR],
                  "SOURCE: FOLDER/shard-00001-of-00002.safetensors: found "),
    "byte flipped": (CKPT, lambda at: flip_last_byte(at / "shard-00001-of-00002.safetensors"), [FOUR],
                     "SOURCE: FOLDER/shard-00001-of-00002.safetensors: damaged; its index, the checksums at its end,"),
    "key unknown": (STAGES, "abcdef01", [FOUR], "FOLDER: SOURCE: no stage key begins with 'abcdef01'"),
    "key of several": (STAGES, "77777777", [FOUR], "FOLDER: SOURCE: 2 stage keys begin with '77777777'; expected just"),
    "key of an unfinished": (STAGES, "00000000", [FOUR], "no record.json; the stage is not finished"),
    "key too short": (STAGES, "0123456", [FOUR], "SOURCE: no such folder; expected a raystage checkpoint"),
    "target not empty": (HF, lambda at: (at.parent / "target/x").mkdir(parents=True), [FOUR],
                         "TARGET_FOLDER: TARGET: exists and is not empty; expected a new folder"),
    "target a file": (HF, lambda at: (at.parent / "target").write_text(""), [FOUR],
                      "TARGET_FOLDER: TARGET: is a file; expected a new folder"),
    "unknown key": (HF, None, ["--set=num_layer=4"], "--set num_layer: unknown key; did you mean 'num_layers'?"),
    "transformers' key": (HF, None, ["--set=num_hidden_layers=4"],
                          "--set num_hidden_layers: unknown key; did you mean 'num_layers'?"),
    "nothing like it": (HF, None, ["--set=x=4"], "--set x: unknown key; known here: family, num_layers, hidden_size"),
    "no value": (HF, None, ["--set=num_layers"], "--set num_layers: expected KEY=VALUE, for example num_layers=12"),
    "no number": (HF, None, ["--set=num_layers=four"], "--set num_layers: found 'four'; expected a number such as"),
    "no context": (HF, None, ["--set=context_length=0"], "--set context_length: found 0; expected a whole number from"),
    "too deep": (HF, None, ["--set=num_layers=1B"], "--set num_layers: found 1000000000; expected at most 10000"),
    "no multiple": (HF, None, ["--set=num_layers=5"],
                    "--set num_layers: found 5 layers after 2; expected a multiple to stack (2, 4, 6, 8, ...)"),
    "fewer": (HF, None, ["--set=num_layers=1", "--operator=interleave"],
              "--set num_layers: found 1 layers after 2; expected at least 2"),
    "width": (HF, None, ["--set=hidden_size=32"], "--set hidden_size: found 32 after 16; stack grows num_layers only"),
    "heads that fill no width": (HF, None, ["--set=hidden_size=18", "--operator=duplicate"],
                                 "--set num_heads: found 4 heads for a hidden size of 18; expected a divisor of it"),
    "trained": (HF, None, ["--set=hidden_size=32", "--operator=masked"],
                "--operator: found masked, which needs training; expected it in a schedule, or another operator"),
    "biases of a mixture": (HF, lambda at: [with_tensor(at / WEIGHTS, f"model.layers.{layer}.mlp.up_proj.bias", 24)
                                            for layer in range(2)],
                            ["--set=num_experts=2", "--operator=upcycle"],
                            "FOLDER: found model.layers.0.mlp.up_proj.bias; expected none, for a mixtral has no such"),
    "no list": (HF, None, [FOUR, "--operator=layers"], "--layers: missing; expected a list of 4"),
    "not a list": (HF, None, [FOUR, "--operator=layers", "--layers=0,a"],
                   "--layers: found '0,a'; expected layer numbers such as 0,1,2,0,1,2"),
    "option of another": (HF, None, [FOUR, "--block=2"], "--block: found 2, but stack takes no block"),
    "no such operator": (HF, None, [FOUR, "--operator=stac"], "--operator: found the operator 'stac'; expected "),
    "nothing set": (HF, None, [], "Missing option '--set'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_one_message_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    kind, spoil, arguments, message = CASES[case]
    folder, target = tmp_path / "source", tmp_path / "target"
    source: object = folder
    if kind == STAGES:
        make_store(folder)
        source, arguments = spoil, [*arguments, "--store", str(folder)]
    else:
        make_llama(folder) if kind == HF else make_checkpoint(open_folder(folder))
        (spoil or (lambda at: None))(folder)
    before = sorted(tmp_path.rglob("*"))
    done = grow(source, target, *arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    said = done.stderr.removeprefix("raystage: ")
    assert message.replace("TARGET_FOLDER", str(target)).replace("FOLDER", str(folder)) in said
    assert done.stderr.startswith("Usage: ") or said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", [HF, CKPT])
def test_what_makes_a_folder_a_model_is_written_last(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what was killed half-way is taken for nothing."""
    make_llama(tmp_path / "source") if kind == HF else make_checkpoint(open_folder(tmp_path / "source"))
    target, seen = open_folder(tmp_path / "target"), list[tuple[str, int]]()
    write_whole = Folder.write_whole

    def watched(folder: Folder, name: str, content: bytes) -> None:
        if folder.uri == target.uri:  # and not the lease, which counts up beside it in a thread of its own
            seen.append((name, len(folder.names())))
        write_whole(folder, name, content)

    monkeypatch.setattr(Folder, "write_whole", watched)
    assert grow(tmp_path / "source", tmp_path / "target", FOUR).exit_code == 0
    assert seen[-1] == (CONFIG if kind == HF else "manifest.json", len(list((tmp_path / "target").iterdir())) - 1)


def test_a_target_is_needed_but_to_explain(tmp_path: Path) -> None:
    done = grow(make_llama(tmp_path / "source"), FOUR)
    assert (done.exit_code, done.stderr) == (2, "raystage: TARGET: missing; expected a new folder (or --explain)\n")


def test_what_the_system_refuses_is_a_failure_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = grow(make_llama(tmp_path / "source"), tmp_path / "file/target", FOUR)
    assert done.exit_code == 1
    assert done.stderr.startswith("raystage: ")
    assert done.stderr.count("\n") == 1


def test_a_tensor_of_a_type_that_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    path = make_llama(tmp_path / "source")
    tensors = load_file(path / WEIGHTS)
    save_file({name: value.to(torch.float8_e4m3fn) for name, value in tensors.items()}, path / WEIGHTS)
    source = open_source(str(path), Store(open_folder(tmp_path / "store")))
    growth = plan_growth(source.shape, GrowthRequest(("num_layers=4",), "identity"))
    with pytest.raises(InputError, match="found the type F8_E4M3; expected one of F64, F32, F16, BF16"):
        write(source, growth, open_target(str(tmp_path / "target")))
    assert isinstance(source, Source)
    assert grow(path, tmp_path / "copies", FOUR).exit_code == 0
