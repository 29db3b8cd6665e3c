"""Models to start a run from: small Hugging Face folders of every family, and schedules that begin with them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from factories import write_documents
from raystage.config.schedule import Schedule, parse

SIZES = {
    "vocab_size": 260, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 12,
}  # fmt: skip
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
FOLDERS = {
    "llama": (transformers.LlamaForCausalLM, {**SIZES, **THETA, "rms_norm_eps": 1e-3}),
    "mistral": (transformers.MistralForCausalLM, {**SIZES, "head_dim": 6}),
    "qwen2": (transformers.Qwen2ForCausalLM, {**SIZES, "tie_word_embeddings": True}),
    "qwen3": (transformers.Qwen3ForCausalLM, {**SIZES, "head_dim": 8}),
    "gpt2": (transformers.GPT2LMHeadModel,
             {"vocab_size": 260, "n_embd": 16, "n_inner": 24, "n_layer": 2, "n_head": 4, "n_positions": 12}),
    "bert": (transformers.BertForMaskedLM, {**SIZES, "hidden_dropout_prob": 0.3}),
    "olmo2": (transformers.Olmo2ForCausalLM, SIZES),
    "phi3": (transformers.Phi3ForCausalLM, {**SIZES, "pad_token_id": None}),
    "phi": (transformers.PhiForCausalLM, {**SIZES, "num_attention_heads": 2}),
    "gemma": (transformers.GemmaForCausalLM, {**SIZES, "head_dim": 6}),
    "gemma2": (transformers.Gemma2ForCausalLM,
               {**SIZES, "head_dim": 6, "sliding_window": 5, "query_pre_attn_scalar": 3}),
    "gemma3_text": (transformers.Gemma3ForCausalLM,
                    {**SIZES, "head_dim": 6, "sliding_window": 5, "query_pre_attn_scalar": 3,
                     "layer_types": ["full_attention", "sliding_attention"]}),
    "modernbert": (transformers.ModernBertForMaskedLM,
                   {**SIZES, "num_hidden_layers": 4, "local_attention": 4, "pad_token_id": None}),
    "gpt_neox": (transformers.GPTNeoXForCausalLM, {**SIZES, "num_attention_heads": 2, "num_key_value_heads": 2}),
    "qwen3_moe": (transformers.Qwen3MoeForCausalLM,
                  {**SIZES, "moe_intermediate_size": 24, "num_experts": 3, "num_experts_per_tok": 2,
                   "norm_topk_prob": True}),
    "mixtral": (transformers.MixtralForCausalLM, {**SIZES, "num_local_experts": 3}),
}  # fmt: skip


def make(path: Path, family: str, dtype: torch.dtype = torch.float32, shards: str = "1GB", **changes: object) -> Path:
    """A folder of a model none of whose parameters is like another."""
    model_class, sizes = FOLDERS[family]
    torch.manual_seed(3)
    model = model_class(model_class.config_class(**{**sizes, **changes})).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(path, max_shard_size=shards)
    return path


def make_schedule(folder: Path, start: Path | None, **changes: object) -> Schedule:
    """Two steps from the model in `start`, on texts that lie in `folder`."""
    write_documents(folder)
    content = {
        "name": "tiny",
        "data": {"source": "text", "path": str(folder), "validation_fraction": 0.5},
        "training": {"global_batch_tokens": 96, "optimizer": {"lr": 1e-3}, "lr_schedule": {"kind": "constant"}},
        "stages": [{"name": "first", "until": {"steps": 2}}],
    }
    if start is not None:
        content["init"] = {"from": str(start)}
    for key, change in changes.items():
        content[key] = {**content.get(key, {}), **change} if isinstance(change, dict) else change
    return parse(content)
