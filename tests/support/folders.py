"""Hugging Face folders of small models of every family, grown by the command line and loaded by plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from click.testing import CliRunner, Result

from raystage.cli.main import main

VOCAB, LENGTH = 31, 12
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": LENGTH, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT2 = {
    "vocab_size": VOCAB, "n_embd": 16, "n_inner": 24, "n_layer": 2, "n_head": 4, "n_positions": LENGTH,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
KINDS = ["sliding_attention", "full_attention"]
MODELS = {
    "llama": (transformers.LlamaForCausalLM, GROUPED),
    "llama with biases": (transformers.LlamaForCausalLM, {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "llama, tied": (transformers.LlamaForCausalLM, {**GROUPED, "tie_word_embeddings": True}),
    "llama without a head": (transformers.LlamaModel, GROUPED),
    "mistral": (transformers.MistralForCausalLM, {**GROUPED, "sliding_window": 7}),
    "qwen2": (transformers.Qwen2ForCausalLM, GROUPED),
    "qwen3": (transformers.Qwen3ForCausalLM, {**GROUPED, "head_dim": 4}),
    "gpt2": (transformers.GPT2LMHeadModel, GPT2),
    "gpt2 without a head": (transformers.GPT2Model, GPT2),
    "bert": (transformers.BertForMaskedLM, SIZES),
    "bert, untied": (transformers.BertForMaskedLM, {**SIZES, "tie_word_embeddings": False}),
    "bert without a head": (transformers.BertModel, SIZES),
    "olmo2": (transformers.Olmo2ForCausalLM, GROUPED),
    "phi3": (transformers.Phi3ForCausalLM, GROUPED),
    "phi": (transformers.PhiForCausalLM, GROUPED),
    "gemma": (transformers.GemmaForCausalLM, {**GROUPED, "head_dim": 4}),
    "gemma2": (
        transformers.Gemma2ForCausalLM,
        {**GROUPED, "head_dim": 4, "sliding_window": 5, "query_pre_attn_scalar": 3},
    ),
    "gemma3_text": (
        transformers.Gemma3ForCausalLM,
        {**GROUPED, "head_dim": 4, "sliding_window": 5, "query_pre_attn_scalar": 3, "layer_types": KINDS},
    ),
    "modernbert": (
        transformers.ModernBertForMaskedLM,
        {**SIZES, "local_attention": 4, "cls_token_id": None, "sep_token_id": None},
    ),
    "gpt_neox": (transformers.GPTNeoXForCausalLM, SIZES),
    "qwen3_moe": (
        transformers.Qwen3MoeForCausalLM,
        {
            **GROUPED,
            "head_dim": 4,
            "moe_intermediate_size": 24,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
    ),
    "mixtral": (transformers.MixtralForCausalLM, {**GROUPED, "num_local_experts": 3}),
}
BERTS = [name for name in MODELS if name.startswith("bert")]
# Whose heads take as much of the hidden size as there is of them, so that they grow along.
FILLED = [*BERTS, "modernbert", "gpt2", "gpt2 without a head", "gpt_neox"]
DEEP = ("--set=num_layers=4",)
WIDE = ("--set=hidden_size=32", "--set=ffn_size=48")
HEADS = ("--set=num_heads=8", "--set=num_kv_heads=4")
ODD = ("--set=hidden_size=24", "--set=ffn_size=28")


def make(name: str, path: Path, dtype: torch.dtype = torch.float32, shards: str = "1GB") -> Path:
    """A folder of a model none of whose parameters is like another."""
    model_class, sizes = MODELS[name]
    torch.manual_seed(3)
    model = model_class(model_class.config_class(**sizes)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(path, max_shard_size=shards)
    return path


def grow(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(main, ["grow", *map(str, arguments)])


def grown(*arguments: object) -> dict[str, object]:
    done = grow(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def load(path: Path, model_class: type | None = None) -> torch.nn.Module:
    """What plain transformers makes of the folder, every tensor found and none left over."""
    config = transformers.AutoConfig.from_pretrained(path)
    model_class = model_class or getattr(transformers, config.architectures[0])
    model, info = model_class.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def outputs(model: torch.nn.Module) -> torch.Tensor:
    """Logits, or the last hidden states of a model without a head, where it is no padding: a row of three has some."""
    ids = torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    with torch.no_grad():
        result = model(input_ids=ids, attention_mask=mask)[0]
    return result[mask.bool()] if result.ndim == 3 else result


def assert_same(source: Path, target: Path) -> None:
    before, after = outputs(load(source)), outputs(load(target))
    difference = (before - after[..., : before.shape[-1]]).abs().max()
    assert difference <= 1e-5 * max(1.0, before.abs().max())


def width_of(name: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """More width, and more heads where these do not grow along."""
    return arguments if name in FILLED else (*arguments, *HEADS)
