"""A small model of every family of transformers that can be made without a download, and itself with copied layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from raystage.models.build import build
from raystage.models.shape import ModelShape

VOCABULARY, LENGTH = 64, 20
_MOST = 10**7
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# Taken where a configuration has such a key.
_SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "lru_width", "attention_hidden_size"), 16),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window", "attention_chunk_size"), 4),
    **dict.fromkeys(("head_dim", "d_kv", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "state_size"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 8),
    **dict.fromkeys(("n_group", "topk_group", "n_groups", "mamba_n_groups"), 1),
    "vocab_size": VOCABULARY, "num_key_value_heads": 2, "num_experts_per_tok": 2, "mamba_d_head": 8,
    "mamba_d_state": 4, "mamba_head_dim": 8, "time_step_rank": 4, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
# What some need besides.
_MORE = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "dbrx": {"d_model": 16},
}


def families() -> list[str]:
    """The model types that `AutoModelForCausalLM` knows."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def config_of(family: str, layers: int, **more: object) -> transformers.PreTrainedConfig:
    kind = transformers.CONFIG_MAPPING[family]
    known = kind().to_dict()
    sizes = {key: value for key, value in _SIZES.items() if key in known}
    depth = {key: layers for key in _DEPTHS if key in known}
    return kind(**{**sizes, **depth, **_MORE.get(family, {}), **more})


def model_of(config: transformers.PreTrainedConfig) -> torch.nn.Module:
    """With weights as they are drawn, and then some: biases and gains must count, too.

    Raises ValueError where it would not be small, some configurations having sizes that nobody set.
    """
    with torch.device("meta"):
        size = sum(one.numel() for one in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if size > _MOST:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(1)
    network = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network


def logits_of(network: torch.nn.Module) -> torch.Tensor:
    """Longer than the windows are."""
    ids = torch.randint(3, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return network(input_ids=ids, use_cache=False).logits


def layers_of(network: torch.nn.Module, count: int) -> tuple[str, torch.nn.ModuleList]:
    """The outermost list of so many modules."""
    return next(
        (name, module) for name, module in network.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    )  # fmt: skip


def with_copies(network: torch.nn.Module, order: Sequence[int], count: int) -> torch.nn.Module:
    """The same model whose layers are copies of its `count`, as listed, with all that they know of themselves.

    What the model around them keeps of its layers, and their configuration, is in lists with an entry for each.
    """
    deeper = copy.deepcopy(network)
    name, layers = layers_of(deeper, count)
    deeper.set_submodule(name, torch.nn.ModuleList(copy.deepcopy(layers[origin]) for origin in order))
    owners = {id(one): one for module in deeper.modules() for one in (module, getattr(module, "config", None))}
    for owner in [one for one in owners.values() if one is not None]:
        for key, value in list(vars(owner).items()):
            if key in _DEPTHS and value == count:
                setattr(owner, key, len(order))
            if isinstance(value, list) and len(value) == count and "layer" in key:
                setattr(owner, key, [value[origin] for origin in order])
    return deeper


def random_network(shape: ModelShape) -> torch.nn.Module:
    """Of a known family, with weights that are large enough for every layer to count."""
    torch.manual_seed(0)
    network = build(shape).eval()
    with torch.no_grad():
        for one in network.parameters():
            one.normal_(0, 0.3)
    return network
