"""Folders of every family, made by `save_pretrained`, grown, and loaded by plain transformers again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from folders import (
    BERTS,
    DEEP,
    FILLED,
    GPT2,
    GROUPED,
    HEADS,
    LENGTH,
    MODELS,
    ODD,
    SIZES,
    WIDE,
    assert_same,
    grow,
    grown,
    load,
    make,
    outputs,
    width_of,
)

# --- exact growth -------------------------------------------------------------------------------


# What a model without a head puts out are hidden states, which are the source's, then others.
@pytest.mark.parametrize("name", [name for name in MODELS if name not in BERTS])
def test_identity_keeps_the_function_in_depth(name: str, tmp_path: Path) -> None:
    source = make(name, tmp_path / "source")
    assert grown(source, tmp_path / "target", *DEEP, "--operator=identity")["exact"] is True
    assert_same(source, tmp_path / "target")


@pytest.mark.parametrize("name", MODELS)
def test_duplicate_keeps_the_function_in_width(name: str, tmp_path: Path) -> None:
    source = make(name, tmp_path / "source")
    assert grown(source, tmp_path / "target", *width_of(name, WIDE), "--operator=duplicate")["exact"] is True
    assert_same(source, tmp_path / "target")


@pytest.mark.parametrize("operator", ["duplicate", "zero_pad"])
@pytest.mark.parametrize("name", MODELS)
def test_growth_by_no_whole_factor_is_exact_where_it_says_so(name: str, operator: str, tmp_path: Path) -> None:
    source = make(name, tmp_path / "source")
    exact = grown(source, tmp_path / "target", *ODD, f"--operator={operator}")["exact"]
    # Norms whose output is the stream; norms of queries and keys, which share the eps.
    norms_all_else = name in (*BERTS, "qwen3", "qwen3_moe", "olmo2", "gemma3_text", "modernbert")
    layer_norms = name.startswith(("gpt", "phi")) and name != "phi3" and operator == "zero_pad"
    assert exact is not (norms_all_else or layer_norms)
    if exact:
        assert_same(source, tmp_path / "target")
    else:
        assert outputs(load(tmp_path / "target")).isfinite().all()


@pytest.mark.parametrize("operator", ["duplicate", "zero_pad"])
@pytest.mark.parametrize("name", MODELS)
def test_inner_units_grow_without_a_trace(name: str, operator: str, tmp_path: Path) -> None:
    source = make(name, tmp_path / "source")
    # A norm over the queries of all heads takes copies, but no empty heads.
    more_heads = () if name in FILLED or (name, operator) == ("olmo2", "zero_pad") else HEADS
    done = grown(source, tmp_path / "target", "--set=ffn_size=44", *more_heads, f"--operator={operator}")
    assert done["exact"] is True
    assert_same(source, tmp_path / "target")


@pytest.mark.parametrize("name", MODELS)
def test_depth_width_vocabulary_and_context_in_one_step(name: str, tmp_path: Path) -> None:
    source = make(name, tmp_path / "source")
    deep = () if name in BERTS else DEEP
    arguments = (*deep, *width_of(name, WIDE), "--set=vocab_size=40", "--set=context_length=20")
    done = grown(source, tmp_path / "target", *arguments, "--operator=depth=identity,width=duplicate")
    assert done["exact"] is True
    config = load(tmp_path / "target").config
    assert (config.vocab_size, config.max_position_embeddings, config.hidden_size) == (40, 20, 32)
    model, before = load(tmp_path / "target"), outputs(load(source))
    after = outputs(model)[..., : before.shape[-1]]
    assert (before - after).abs().max() <= 1e-5 * max(1.0, before.abs().max())
    assert model.num_parameters() == done["num_params"]


@pytest.mark.parametrize("operator", ["rms", "aki", "depth=stack,width=aki", "depth=random,width=rms"])
@pytest.mark.parametrize("name", MODELS)
def test_operators_that_are_not_exact_give_models_that_run(name: str, operator: str, tmp_path: Path) -> None:
    deep = DEEP if "depth" in operator else ()
    done = grown(make(name, tmp_path / "source"), tmp_path / "target", *deep, *width_of(name, WIDE),
                 f"--operator={operator}")  # fmt: skip
    assert done["exact"] is False
    assert outputs(load(tmp_path / "target")).isfinite().all()


@pytest.mark.parametrize("name", BERTS)
def test_no_growth_in_depth_is_exact_where_norms_come_last(name: str, tmp_path: Path) -> None:
    source = make(name, tmp_path / "source")
    for operator in ("identity", "stack"):
        assert grown(source, tmp_path / operator, *DEEP, f"--operator={operator}")["exact"] is False
        assert outputs(load(tmp_path / operator)).isfinite().all()
    assert "not exact" in grow(source, *DEEP, "--operator=identity", "--explain").stdout


@pytest.mark.parametrize("name", ["llama", "llama, tied", "mistral"])
def test_a_dense_folder_becomes_a_mixture_with_its_function(name: str, tmp_path: Path) -> None:
    source = make(name, tmp_path / "source")
    done = grown(source, tmp_path / "target", "--set=num_experts=4", "--operator=upcycle")
    assert done["exact"] is True
    assert_same(source, tmp_path / "target")
    before, after = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("source", "target"))
    assert after["architectures"] == ["MixtralForCausalLM"]
    assert (after["model_type"], after["num_local_experts"], after["num_experts_per_tok"]) == ("mixtral", 4, 2)
    for same in ("rope_parameters", "rms_norm_eps", "head_dim", "num_key_value_heads", "tie_word_embeddings"):
        assert after[same] == before[same]
    assert after["sliding_window"] == before.get("sliding_window")
    routers = load(tmp_path / "target").model.layers[0].mlp.gate.weight
    assert routers.std() > 0.01


def test_a_qwen3_becomes_a_mixture_of_its_own_kind(tmp_path: Path) -> None:
    source = make("qwen3", tmp_path / "source")
    assert grown(source, tmp_path / "target", "--set=num_experts=4", "--operator=upcycle")["exact"] is True
    assert_same(source, tmp_path / "target")
    after = json.loads((tmp_path / "target/config.json").read_text())
    assert (after["architectures"], after["model_type"]) == (["Qwen3MoeForCausalLM"], "qwen3_moe")
    assert (after["num_local_experts"], after["norm_topk_prob"]) == (4, True)


def test_a_mixture_is_made_deeper_and_wider_on_the_way(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    grown(source, tmp_path / "target", *DEEP, *WIDE, *HEADS, "--set=num_experts=3",
          "--operator=depth=identity,width=duplicate,num_experts=upcycle")  # fmt: skip
    assert_same(source, tmp_path / "target")


def test_defaults_that_the_families_do_not_share_are_written(tmp_path: Path) -> None:
    """An old config that says nothing of angles, eps and key/value heads."""
    source = make("llama", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    for key in ("rope_parameters", "rms_norm_eps", "head_dim"):
        del config[key]
    (source / "config.json").write_text(json.dumps(config))
    grown(source, tmp_path / "target", "--set=num_experts=2", "--operator=upcycle")
    assert_same(source, tmp_path / "target")


# --- types and files ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_mapped_tensors_keep_their_type(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = make(name, tmp_path / "source", dtype, shards="4KB")
    assert (source / "model.safetensors.index.json").exists()
    grown(source, tmp_path / "target", *width_of(name, WIDE), "--operator=duplicate")
    tensors = load_file(tmp_path / "target/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    if dtype == torch.float64:
        assert_same(source, tmp_path / "target")
        return
    before, after = load(source).double(), load(tmp_path / "target").double()
    assert (outputs(before) - outputs(after)).abs().max() <= 3 * torch.finfo(dtype).eps * outputs(before).abs().max()


@pytest.mark.parametrize(
    ("arguments", "precision"),
    [
        ((*DEEP, "--operator=identity"), "any"),
        (("--set=hidden_size=40", "--operator=zero_pad"), "fp32"),
        ((*WIDE, "--operator=duplicate"), "fp32"),
        ((*DEEP, "--operator=stack"), None),
    ],
)
def test_an_exact_growth_says_in_which_precision_it_is(
    arguments: tuple[str, ...], precision: str | None, tmp_path: Path
) -> None:
    """In bf16 weights that are scaled are rounded once more, which the logits show."""

    def moved(dtype: torch.dtype) -> float:
        source, target = make("llama", tmp_path / f"{dtype}", dtype), tmp_path / f"{dtype} grown"
        found = grown(source, target, *arguments)
        assert (found["exact"], found["exact_in"]) == (precision is not None, precision)
        before, after = outputs(load(source).to(dtype)).double(), outputs(load(target).to(dtype)).double()
        return float((before - after).abs().max() / before.abs().max())

    half, single = moved(torch.bfloat16), moved(torch.float32)
    assert (half == 0) == (single == 0) == (precision == "any")
    assert (single < 1e-5) == (precision is not None)
    assert precision != "fp32" or half > 1e-3
    shown = " ".join(grow(tmp_path / "torch.bfloat16", *arguments, "--explain").stdout.split())
    assert {"any": "(the same function;", "fp32": "(the same function in fp32;", None: "(not exact;"}[
        precision
    ] in shown


def test_what_the_shape_brings_along_stands_in_the_config(tmp_path: Path) -> None:
    source = make("gpt2", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    grown(source, tmp_path / "target", "--set=hidden_size=32", "--operator=duplicate")
    after = json.loads((tmp_path / "target/config.json").read_text())
    assert after == config | {"n_embd": 32, "n_head": 8}
    llama = make("llama", tmp_path / "llama")
    grown(llama, tmp_path / "wide", "--set=hidden_size=24", "--operator=zero_pad")
    before, after = (json.loads((tmp_path / one / "config.json").read_text()) for one in ("llama", "wide"))
    assert after == before | {"hidden_size": 24, "rms_norm_eps": before["rms_norm_eps"] * 16 / 24}


def test_what_follows_from_other_sizes_is_written_where_it_follows_no_more(tmp_path: Path) -> None:
    source = make("gpt2", tmp_path / "source")
    path = source / "config.json"
    make_with = {**GPT2, "n_inner": None}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**make_with)).save_pretrained(source)
    assert json.loads(path.read_text())["n_inner"] is None
    grown(source, tmp_path / "target", "--set=hidden_size=32", "--operator=duplicate")
    assert json.loads((tmp_path / "target/config.json").read_text())["n_inner"] == 64
    assert_same(source, tmp_path / "target")


def test_windows_go_with_their_layers(tmp_path: Path) -> None:
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1))  # fmt: skip
    model.save_pretrained(tmp_path / "source")
    path = tmp_path / "source/config.json"
    config = json.loads(path.read_text())
    whole, window = config["layer_types"]
    del config["layer_types"]
    path.write_text(json.dumps(config))
    grown(tmp_path / "source", tmp_path / "target", *DEEP, "--operator=identity")
    after = json.loads((tmp_path / "target/config.json").read_text())
    assert (after["layer_types"], after["max_window_layers"]) == ([whole, whole, window, window], 2)
    assert_same(tmp_path / "source", tmp_path / "target")


def change_tensors(folder: Path, change: object) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_old_names_and_buffers_are_understood(tmp_path: Path) -> None:
    bert = make("bert", tmp_path / "bert")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for new, before in old.items():
            tensors = {name.replace(new, before): tensor for name, tensor in tensors.items()}
        return tensors | {"bert.embeddings.position_ids": torch.arange(LENGTH)[None]}

    before = outputs(load(bert))
    change_tensors(bert, renamed)
    grown(bert, tmp_path / "target", *WIDE, "--operator=duplicate")
    assert (outputs(load(tmp_path / "target")) - before).abs().max() <= 1e-5 * before.abs().max()
    gpt2 = make("gpt2 without a head", tmp_path / "gpt2")
    change_tensors(gpt2, lambda tensors: tensors | {f"h.{layer}.attn.bias": torch.ones(1, 1, 12, 12).tril()
                                                    for layer in range(2)})  # fmt: skip
    grown(gpt2, tmp_path / "deeper", *DEEP, "--operator=identity")
    assert "h.0.attn.bias" not in load_file(tmp_path / "deeper/model.safetensors")
    assert_same(gpt2, tmp_path / "deeper")


def test_an_unknown_head_is_copied_in_depth_and_named_in_width(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.BertForTokenClassification(transformers.BertConfig(**SIZES, type_vocab_size=3))
    model.save_pretrained(tmp_path / "source")
    grown(tmp_path / "source", tmp_path / "deeper", *DEEP)
    assert torch.equal(load(tmp_path / "deeper").classifier.weight, model.classifier.weight)
    done = grow(tmp_path / "source", tmp_path / "wider", *WIDE, "--operator=duplicate")
    assert (done.exit_code, done.stderr) == (2, (
        f"raystage: {tmp_path}/source: found classifier.weight [2, 16], which no row of the family names and which "
        "would have to grow; expected depth alone to grow, or a folder without it\n"))  # fmt: skip
    grown(tmp_path / "source", tmp_path / "inside", "--set=ffn_size=48", "--operator=duplicate")
    assert_same(tmp_path / "source", tmp_path / "inside")


# --- models without a table ---------------------------------------------------------------------


def make_stablelm(path: Path) -> Path:
    torch.manual_seed(1)
    transformers.StableLmForCausalLM(transformers.StableLmConfig(**SIZES)).save_pretrained(path)
    return path


@pytest.mark.parametrize("operator", ["stack", "interleave", "last"])
def test_a_model_without_a_table_grows_in_depth(operator: str, tmp_path: Path) -> None:
    source = make_stablelm(tmp_path / "source")
    assert grown(source, tmp_path / "target", *DEEP, f"--operator={operator}")["exact"] is False
    before, after = load(source), load(tmp_path / "target")
    order = {"stack": (0, 1, 0, 1), "interleave": (0, 0, 1, 1), "last": (0, 1, 0, 1)}[operator]
    for layer, origin in zip(after.model.layers, order, strict=True):
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, before.model.layers[origin].state_dict()[name])
    assert torch.equal(after.get_output_embeddings().weight, before.get_output_embeddings().weight)
    shown = grow(source, *DEEP, f"--operator={operator}", "--explain").stdout
    assert [line for line in shown.splitlines() if line.startswith("model.layers.3.*")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set=hidden_size=32", "--operator=duplicate"),
         "--set hidden_size: found no table for the model_type 'stablelm', whose depth alone can grow; expected "
         "num_layers, or --family FILE with a table of it (see docs/families.md)"),
        (("--set=context_length=32",), "--set context_length: found no table for the model_type 'stablelm'"),
        ((*DEEP, "--operator=identity"),
         "--operator: found identity, but nothing says which tensors of the model_type 'stablelm' write to the "
         "residual stream, or how new ones begin; expected copies, as of stack, or --family FILE"),
        ((*DEEP, "--operator=random"), "--operator: found random, but nothing says"),
        ((*DEEP, "--operator=masked"), "--operator: found masked, which needs training"),
    ],
)  # fmt: skip
def test_what_a_model_without_a_table_cannot_do(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = grow(make_stablelm(tmp_path / "source"), tmp_path / "target", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_layers_that_cannot_be_found_by_name_are_told(tmp_path: Path) -> None:
    source = make_stablelm(tmp_path / "source")
    path = source / "config.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"num_hidden_layers": 3}))
    assert "found 0 lists of 3 layers among the tensors of a stablelm" in grow(source, tmp_path / "t", *DEEP).stderr
    path.write_text(json.dumps({key: value for key, value in whole.items() if key != "num_hidden_layers"}))
    assert "found no number of layers for the model_type 'stablelm'" in grow(source, tmp_path / "t", *DEEP).stderr
    path.write_text(json.dumps(whole))
    change_tensors(source, lambda tensors: tensors | {"model.layers.1.extra": torch.ones(3)})
    assert "found model.layers.1 unlike model.layers.0 in extra" in grow(source, tmp_path / "t", *DEEP).stderr


# --- what it prints -----------------------------------------------------------------------------


def test_explain_shows_what_each_axis_becomes(tmp_path: Path) -> None:
    source = make("bert", tmp_path / "source")
    done = grow(source, *WIDE, "--operator=duplicate", "--explain")
    assert done.exit_code == 0, done.output
    title, *lines = done.stdout.splitlines()
    assert title.startswith("duplicate: hidden size 16 -> 32, FFN size 24 -> 48, 4 -> 8 heads, 4 -> 8 key/value heads")
    shown = " ".join(" ".join(lines).split())
    for units in ("hidden duplicate 16 > 32", "ffn duplicate 24 > 48", "heads duplicate 4 > 8"):
        assert units in shown
    assert " attention.output.dense " in shown  # of several that are called dense


def test_explain_shows_what_experts_are_made_of(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    lines = grow(source, "--set=num_experts=2", "--operator=upcycle", "--explain").stdout.splitlines()
    assert lines[0].startswith("upcycle: 0 -> 2 experts (the same function")
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[3:]]
    for target, origin in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        assert [f"model.layers.1: {target}", f"model.layers.1: {origin}", "copy", "copy"] in rows


def test_layers_that_know_their_place_are_not_moved(tmp_path: Path) -> None:
    source = make("gpt2", tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | {"scale_attn_by_inverse_layer_idx": True}
    (source / "config.json").write_text(json.dumps(config))
    done = grow(source, tmp_path / "target", *DEEP, "--operator=identity")
    assert done.exit_code == 2
    assert "config.json: scale_attn_by_inverse_layer_idx: found true" in done.stderr
    assert not (tmp_path / "target").exists()


def test_the_closing_line_says_what_grew(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    done = grow(source, tmp_path / "target", *DEEP, *WIDE, *HEADS, "--operator=depth=stack,width=zero_pad")
    assert done.stdout.startswith(
        "depth stack, width zero_pad: 2 -> 4 layers, hidden size 16 -> 32, FFN size 24 -> 48, 4 -> 8 heads, "
        "2 -> 4 key/value heads, "
    ), done.stdout


def test_a_map_as_json_has_every_axis_map_once(tmp_path: Path) -> None:
    shown = json.loads(grow(make("gpt2", tmp_path / "s"), *WIDE, "--operator=duplicate", "--explain", "--json").stdout)
    maps = [json.dumps(one) for one in shown["axis_maps"]]
    assert len(maps) == len(set(maps))
    by_target = {rule["target"]: rule for rule in shown["rules"]}
    numbers = by_target["transformer.h.1.attn.c_attn.weight"]["axes"]
    assert [len(shown["axis_maps"][number]["index"]) for number in numbers] == [32, 3 * 32]
