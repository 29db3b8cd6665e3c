"""The parameter tables of mixtures of experts."""

from __future__ import annotations

from dataclasses import replace

from raystage.models.table import Axis, ParameterSpec, out, reads
from raystage.models.tables.llama import (
    ATTENTION,
    HEAD_NORMS,
    LAYER,
    LLAMA,
    LLAMA_CONSTANTS,
    MISTRAL,
    MLP,
    NORMS,
    QWEN3,
)

_EXPERTS_ON_DISK = (
    ParameterSpec(LAYER + "block_sparse_moe.gate.weight", (Axis("each", ("expert",)), reads("hidden"))),
    ParameterSpec(LAYER + "block_sparse_moe.experts.{expert}.w1.weight", (out("ffn"), reads("hidden"))),
    ParameterSpec(
        LAYER + "block_sparse_moe.experts.{expert}.w2.weight", (out("hidden"), reads("ffn")), writes_residual=True
    ),
    ParameterSpec(LAYER + "block_sparse_moe.experts.{expert}.w3.weight", (out("ffn"), reads("hidden"))),
)


_EXPERTS = (
    ParameterSpec(LAYER + "mlp.gate.weight", (Axis("each", ("expert",)), reads("hidden"))),
    ParameterSpec(LAYER + "mlp.experts.gate_up_proj", (Axis("each", ("expert",)), out("ffn", "ffn"), reads("hidden"))),
    ParameterSpec(
        LAYER + "mlp.experts.down_proj",
        (Axis("each", ("expert",)), out("hidden"), reads("ffn")),
        writes_residual=True,
    ),
)


_MIXTRAL_FIELDS = {
    **MISTRAL.fields,
    "norm_eps": ("rms_norm_eps", 1e-5),
    "num_experts": ("num_local_experts", 8),
    "experts_per_token": ("num_experts_per_tok", 2),
}


MIXTRAL = replace(
    LLAMA,
    name="mixtral",
    layer=(*ATTENTION, *_EXPERTS, *NORMS),
    optional=(),
    heads_divide_hidden=False,
    fields=_MIXTRAL_FIELDS,
    constants={**LLAMA_CONSTANTS, "sliding_window": None},
    on_disk=replace(
        LLAMA, name="mixtral", layer=(*ATTENTION, *_EXPERTS_ON_DISK, *NORMS), optional=(), fields=_MIXTRAL_FIELDS
    ),
    stored_as={
        _EXPERTS[0].name: (_EXPERTS_ON_DISK[0].name,),
        _EXPERTS[1].name: (_EXPERTS_ON_DISK[1].name, _EXPERTS_ON_DISK[3].name),
        _EXPERTS[2].name: (_EXPERTS_ON_DISK[2].name,),
    },
)


_QWEN_EXPERTS_ON_DISK = (
    _EXPERTS[0],
    ParameterSpec(LAYER + "mlp.experts.{expert}.gate_proj.weight", (out("ffn"), reads("hidden"))),
    ParameterSpec(LAYER + "mlp.experts.{expert}.up_proj.weight", (out("ffn"), reads("hidden"))),
    ParameterSpec(LAYER + "mlp.experts.{expert}.down_proj.weight", (out("hidden"), reads("ffn")), writes_residual=True),
)


_QWEN_FIELDS = {
    **QWEN3.fields,
    "num_kv_heads": ("num_key_value_heads", 4),
    "head_size": ("head_dim", None),
    "ffn_size": ("moe_intermediate_size", 768),
    "num_experts": ("num_local_experts", 128),
    "experts_per_token": ("num_experts_per_tok", 8),
}


# Every layer is a mixture, and the shares of a token's experts add up to one, as in the published models.
QWEN3_MOE = replace(
    QWEN3,
    name="qwen3_moe",
    layer=(*ATTENTION, *HEAD_NORMS, *_EXPERTS[1:], _EXPERTS[0], *NORMS),
    optional=(),
    fields=_QWEN_FIELDS,
    constants={**LLAMA_CONSTANTS, "norm_topk_prob": True},
    on_disk=replace(
        QWEN3,
        name="qwen3_moe",
        layer=(*ATTENTION, *HEAD_NORMS, *_QWEN_EXPERTS_ON_DISK, *NORMS),
        optional=(),
        fields=_QWEN_FIELDS,
    ),
    stored_as={
        _EXPERTS[1].name: (_QWEN_EXPERTS_ON_DISK[1].name, _QWEN_EXPERTS_ON_DISK[2].name),
        _EXPERTS[2].name: (_QWEN_EXPERTS_ON_DISK[3].name,),
    },
)


# The mixture that a dense family becomes.
MIXTURE_OF = {"llama": "mixtral", "mistral": "mixtral", "qwen3": "qwen3_moe"}


# The rows of a dense model that the rows of a mixture's experts come from, in the model and on disk.
UPCYCLED = {
    LAYER + "mlp.experts.gate_up_proj": (MLP[0].name, MLP[1].name),
    LAYER + "mlp.experts.down_proj": (MLP[2].name,),
    _EXPERTS_ON_DISK[1].name: (MLP[0].name,),
    _EXPERTS_ON_DISK[2].name: (MLP[2].name,),
    _EXPERTS_ON_DISK[3].name: (MLP[1].name,),
    _QWEN_EXPERTS_ON_DISK[1].name: (MLP[0].name,),
    _QWEN_EXPERTS_ON_DISK[2].name: (MLP[1].name,),
    _QWEN_EXPERTS_ON_DISK[3].name: (MLP[2].name,),
}
