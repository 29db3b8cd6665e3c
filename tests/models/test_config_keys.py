"""Which keys of a config.json matter: those that transformers' own code reads, and no others."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

import folders
from folders import assert_same, grow, grown
from raystage.errors import InputError
from raystage.files.reading import LocalFiles
from raystage.models import hf_config, hf_trainable
from raystage.models.families import TRANSFORMERS
from raystage.models.hf_folder import open_trainable
from raystage.planning.build import make_plan
from started_models import make, make_schedule

# What the weights compute without: names, tokens, dropout, which training leaves out, heads of other tasks.
WITHOUT_EFFECT = frozenset({
    "_name_or_path", "architectures", "attn_implementation", "dtype", "initializer_range", "max_window_layers",
    "model_type", "reorder_and_upcast_attn", "return_dict", "router_aux_loss_coef", "task_specific_params",
    "torch_dtype", "transformers_version", "use_cache", "n_ctx", "gradient_checkpointing", "rope_theta",
    "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type", "chunk_size_feed_forward",
    "output_attentions", "output_hidden_states", "is_encoder_decoder", "attention_dropout", "attn_pdrop", "embd_pdrop",
    "resid_pdrop", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "attention_probs_dropout_prob", "hidden_dropout_prob", "embedding_dropout", "mlp_dropout",
    "initializer_cutoff_factor", "cls_token_id", "sep_token_id", "deterministic_flash_attn", "sparse_prediction",
    "sparse_pred_ignore_index",
})  # fmt: skip
ROOT = Path(transformers.__file__).parent
TRAINED = list(TRANSFORMERS)
# What every model goes through, besides its own file.
SHARED = (
    "modeling_utils.py", "modeling_rope_utils.py", "masking_utils.py", "cache_utils.py", "configuration_utils.py",
    "integrations/sdpa_attention.py", "integrations/moe.py", "integrations/heterogeneity/configuration_utils.py",
    "quantizers/auto.py",
)  # fmt: skip
# Names of the class's own doings, and of heads for other tasks, dropout and first weights.
HARMLESS = {
    "_attn_implementation", "_attn_implementation_internal", "_experts_implementation",
    "_experts_implementation_internal", "_name_or_path", "_heterogeneity_spec", "classifier_dropout",
    "hidden_dropout", "num_labels", "pooler_act", "pooler_output_size", "summary_last_dropout",
    "sep_token_id", "name_or_path", "compile_config",
    "image_token_id", "mm_tokens_per_image",  # of models of images beside those of text
    "init_std", "initializer_factor", "gradient_checkpointing", "model_type", "is_heterogeneous",
    "_getattr_without_heterogeneous_validation", "_hasattr_without_heterogeneous_validation",
}  # fmt: skip
IDLE = {
    "is_llama_config": True, "transformers.js_config": {"dtype": "q4"}, "unsloth_version": "2024.9",
    "unsloth_fixed": True, "_attn_implementation_autoset": True, "_num_labels": 2, "tokenizer_class": "LlamaTokenizer",
    "model_max_length": 4096, "max_length": 20, "do_sample": True, "temperature": 0.7, "torch_dtype": "bfloat16",
    "_commit_hash": "0" * 40, "rope_interleaved": True, "max_sequence_length": 2048, "pruned_heads": {},
}  # fmt: skip


def read_by(file: Path) -> set[str]:
    """The names that a file of transformers' reads of a configuration."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and is_config(node.value):
            found.add(node.attr)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            name = node.args[1] if is_config(node.args[0]) else None
            found |= {name.value} if isinstance(name, ast.Constant) else set()
    return found


def is_config(node: ast.AST) -> bool:
    return ast.unparse(node).rpartition(".")[2] in ("config", "text_config")


@pytest.mark.parametrize("family", TRAINED)
def test_every_key_that_transformers_reads_has_been_looked_at(family: str) -> None:
    config = transformers.AutoConfig.for_model(family)
    read = {field.name for field in dataclasses.fields(config)} | set(type(config).attribute_map)
    folder = type(config).__module__.split(".")[-2]  # gemma3_text is in that of gemma3
    read |= read_by(ROOT / f"models/{folder}/modeling_{folder}.py").union(*(read_by(ROOT / one) for one in SHARED))
    sizes = {key for key, _ in TRANSFORMERS[family].fields.values()}
    known = {*sizes, *hf_trainable._AS_BUILT, *hf_trainable._CHECKED, *WITHOUT_EFFECT, *hf_trainable._READ, *HARMLESS}
    known |= set(hf_config.ALIASES.get(family, {}).values()) | set(hf_trainable._AS_BUILT_OF.get(family, {}))
    known |= set() if TRANSFORMERS[family].rotary else {"head_dim"}  # for rotary positions
    of_tokens = {"max_position_embeddings", "tie_word_embeddings", "vocab_size"}
    known |= of_tokens if TRANSFORMERS[family].reads_images else set()
    known |= hf_trainable._IDLE_OF.get(family, set())
    known |= {"intermediate_size"} if TRANSFORMERS[family].has_experts else set()  # of layers that are no mixture
    methods = {name for name in read if callable(getattr(type(config), name, None)) or name.startswith("__")}
    assert sorted(read - known - methods - set(dir(dict)) - set(dir(list))) == []


@pytest.mark.parametrize("family", TRAINED)
def test_second_names_are_transformers_own(family: str) -> None:
    own = type(transformers.AutoConfig.for_model(family)).attribute_map
    assert {name: key for key, name in hf_config.ALIASES.get(family, {}).items()} == own


def say(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_keys_that_compute_nothing_are_let_through(tmp_path: Path) -> None:
    source = make(tmp_path / "model", "llama")
    say(source, **IDLE)
    assert open_trainable(LocalFiles(source)).shape.num_layers == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: found {'quant_method': 'fp8'}"),
        ({"per_layer_config": {"0": {"head_dim": 2}}}, "per_layer_config: found "),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights: found 'other.safetensors'"),
        ({"is_causal": True}, "is_causal: found true"),
        ({"hidden_act": "relu"}, "hidden_act: found 'relu'; expected 'silu'"),
        ({"hidden_size": 24}, "model.embed_tokens.weight: found the shape [260, 16]; expected [260, 24]"),
        ({"vocab_size": 259}, "model.embed_tokens.weight: found the shape [260, 16]; expected [259, 16]"),
        ({"num_hidden_layers": 3}, "found no tensor for model.layers.2"),
    ],
)
def test_what_another_model_would_be_is_refused_when_planned(tmp_path: Path, changes: dict, message: str) -> None:
    source = make(tmp_path / "model", "llama")
    say(source, **changes)
    (tmp_path / "texts").mkdir()
    with pytest.raises(InputError) as caught:
        make_plan(make_schedule(tmp_path / "texts", source))
    assert str(caught.value).startswith(str(source))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("phi", {"partial_rotary_factor": 0.4}, "partial_rotary_factor: found 0.4; expected 0.5"),
        ("gpt_neox", {"use_parallel_residual": False}, "use_parallel_residual: found false; expected true"),
        ("gpt_neox", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.0}},
         "expected a rope_type of default, linear, llama3, yarn with its numbers, and a partial_rotary_factor of 0.25"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "expected a rope_type of default "),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention: found true; expected false"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob: found false; expected true"),
        ("qwen3_moe", {"norm_topk_prob": None}, "norm_topk_prob: found false; expected true"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers: found [0]; expected []"),
        ("modernbert", {"norm_bias": True}, "norm_bias: found true; expected false"),
        ("gemma2", {"attn_logit_softcapping": 40.0}, "attn_logit_softcapping: found 40.0; expected 50.0"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping: found 30.0; expected nothing"),
        ("olmo2", {"attention_bias": True}, "attention_bias: found true; expected false"),
    ],
)  # fmt: skip
def test_what_a_family_s_models_do_not_have_is_refused(
    tmp_path: Path, family: str, changes: dict, message: str
) -> None:
    """None: the configuration lacks the key, whose default is another model."""
    file = make(tmp_path / "model", family) / "config.json"
    said = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in said.items() if value is not None or key not in changes}))
    with pytest.raises(InputError) as caught:
        open_trainable(LocalFiles(file.parent))
    assert message in str(caught.value)


def test_weights_of_eight_bits_are_refused_when_planned(tmp_path: Path) -> None:
    source = make(tmp_path / "model", "llama")
    file = source / "model.safetensors"
    tensors = folders.load(source).state_dict()
    save_file({name: one.to(torch.float8_e4m3fn).contiguous() for name, one in tensors.items()}, file)
    (tmp_path / "texts").mkdir()
    with pytest.raises(InputError, match=r"found F8_E4M3 \[260, 16\]; expected \[260, 16\] of F64, F32, F16, BF16"):
        make_plan(make_schedule(tmp_path / "texts", source))


def test_a_size_s_second_name_grows_along(tmp_path: Path) -> None:
    source = folders.make("gpt2", tmp_path / "source")
    say(source, hidden_size=16, num_hidden_layers=2)
    grown(source, tmp_path / "out", "--operator=depth=identity,width=duplicate", *folders.WIDE, *folders.DEEP)
    assert_same(source, tmp_path / "out")
    say(source, hidden_size=17)
    done = grow(source, tmp_path / "other", *folders.DEEP)
    assert (done.exit_code, "hidden_size: found 17, another name of n_embd" in done.stderr) == (2, True), done.output
