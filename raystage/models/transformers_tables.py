"""The parameter tables of the model families that transformers builds: one `Family` each."""

from __future__ import annotations

from dataclasses import replace

from raystage.models.image_tables import VIT
from raystage.models.rows import input_first, layer_norm, linear, on
from raystage.models.table import Axis, Family, Head, ParameterSpec, fixed, out, reads

_LAYER = "model.layers.{layer}."


_ATTENTION = (
    ParameterSpec(_LAYER + "self_attn.q_proj.weight", (out("query"), reads("hidden"))),
    ParameterSpec(_LAYER + "self_attn.k_proj.weight", (out("key_value"), reads("hidden"))),
    ParameterSpec(_LAYER + "self_attn.v_proj.weight", (out("key_value"), reads("hidden"))),
    ParameterSpec(_LAYER + "self_attn.o_proj.weight", (out("hidden"), reads("query")), writes_residual=True),
)


_QKV_BIASES = (
    ParameterSpec(_LAYER + "self_attn.q_proj.bias", (out("query"),), "zeros"),
    ParameterSpec(_LAYER + "self_attn.k_proj.bias", (out("key_value"),), "zeros"),
    ParameterSpec(_LAYER + "self_attn.v_proj.bias", (out("key_value"),), "zeros"),
)


_QKV_WITH_BIASES = tuple(row for pair in zip(_ATTENTION[:3], _QKV_BIASES, strict=True) for row in pair)


_HEAD_NORMS = (
    ParameterSpec(_LAYER + "self_attn.q_norm.weight", (Axis("gain", ("head",)),), "ones"),
    ParameterSpec(_LAYER + "self_attn.k_norm.weight", (Axis("gain", ("head",)),), "ones"),
)


_MLP = (
    ParameterSpec(_LAYER + "mlp.gate_proj.weight", (out("ffn"), reads("hidden"))),
    ParameterSpec(_LAYER + "mlp.up_proj.weight", (out("ffn"), reads("hidden"))),
    ParameterSpec(_LAYER + "mlp.down_proj.weight", (out("hidden"), reads("ffn")), writes_residual=True),
)


_OTHER_BIASES = (
    ParameterSpec(_LAYER + "self_attn.o_proj.bias", (out("hidden"),), "zeros", writes_residual=True),
    ParameterSpec(_LAYER + "mlp.gate_proj.bias", (out("ffn"),), "zeros"),
    ParameterSpec(_LAYER + "mlp.up_proj.bias", (out("ffn"),), "zeros"),
    ParameterSpec(_LAYER + "mlp.down_proj.bias", (out("hidden"),), "zeros", writes_residual=True),
)


_NORMS = (
    ParameterSpec(_LAYER + "input_layernorm.weight", (Axis("gain", ("hidden",)),), "ones"),
    ParameterSpec(_LAYER + "post_attention_layernorm.weight", (Axis("gain", ("hidden",)),), "ones"),
)


# transformers' name of each field, and the default of its configurations.
_LLAMA_FIELDS = {
    "num_layers": ("num_hidden_layers", 32),
    "hidden_size": ("hidden_size", 4096),
    "num_heads": ("num_attention_heads", 32),
    "num_kv_heads": ("num_key_value_heads", None),  # as many as heads
    "head_size": ("head_dim", None),  # hidden_size / num_heads
    "ffn_size": ("intermediate_size", 11008),
    "vocab_size": ("vocab_size", 32000),
    "context_length": ("max_position_embeddings", 2048),
    "tied_embeddings": ("tie_word_embeddings", False),
    "norm_eps": ("rms_norm_eps", 1e-6),
}


_NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


_LLAMA_CONSTANTS = {**_NO_SPECIAL_TOKENS, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


# The scores of the classes, from the last token of a text.
_SCORES = {
    "classes": Head(
        "ForSequenceClassification",
        (ParameterSpec("score.weight", (out("class"), reads("hidden")), acts_on="sample"),),
        {"num_labels": "num_classes"},
    )
}


LLAMA = Family(
    name="llama",
    before=(ParameterSpec("model.embed_tokens.weight", (out("vocab"), out("hidden"))),),
    layer=(*_ATTENTION, *_MLP, *_NORMS),
    after=(
        ParameterSpec("model.norm.weight", (Axis("gain", ("hidden",)),), "ones", feeds_head=True),
        ParameterSpec("lm_head.weight", (out("vocab"), reads("hidden"))),
    ),
    embeddings=("model.embed_tokens.weight",),
    head="lm_head.weight",
    optional=(*_QKV_BIASES, *_OTHER_BIASES),
    base="model.",
    heads_divide_hidden=True,
    fields=_LLAMA_FIELDS,
    constants=_LLAMA_CONSTANTS,
    heads=_SCORES,
)


MISTRAL = replace(
    LLAMA,
    name="mistral",
    optional=(),
    heads_divide_hidden=False,
    fields={
        **_LLAMA_FIELDS,
        "num_kv_heads": ("num_key_value_heads", 8),
        "ffn_size": ("intermediate_size", 14336),
        "context_length": ("max_position_embeddings", 4096 * 32),
    },
    constants={**_LLAMA_CONSTANTS, "sliding_window": None},
)


QWEN2 = replace(
    LLAMA,
    name="qwen2",
    layer=(*_QKV_WITH_BIASES, _ATTENTION[3], *_MLP, *_NORMS),
    optional=(),
    heads_divide_hidden=False,
    fields={
        **_LLAMA_FIELDS,
        "num_kv_heads": ("num_key_value_heads", 32),
        "ffn_size": ("intermediate_size", 22016),
        "vocab_size": ("vocab_size", 151936),
        "context_length": ("max_position_embeddings", 32768),
    },
)


QWEN3 = replace(
    LLAMA,
    name="qwen3",
    layer=(*_ATTENTION, *_HEAD_NORMS, *_MLP, *_NORMS),
    optional=(*_QKV_BIASES, _OTHER_BIASES[0]),
    heads_divide_hidden=False,
    fields={**QWEN2.fields, "head_size": ("head_dim", 128)},
)


_EXPERTS_ON_DISK = (
    ParameterSpec(_LAYER + "block_sparse_moe.gate.weight", (Axis("each", ("expert",)), reads("hidden"))),
    ParameterSpec(_LAYER + "block_sparse_moe.experts.{expert}.w1.weight", (out("ffn"), reads("hidden"))),
    ParameterSpec(
        _LAYER + "block_sparse_moe.experts.{expert}.w2.weight", (out("hidden"), reads("ffn")), writes_residual=True
    ),
    ParameterSpec(_LAYER + "block_sparse_moe.experts.{expert}.w3.weight", (out("ffn"), reads("hidden"))),
)


_EXPERTS = (
    ParameterSpec(_LAYER + "mlp.gate.weight", (Axis("each", ("expert",)), reads("hidden"))),
    ParameterSpec(_LAYER + "mlp.experts.gate_up_proj", (Axis("each", ("expert",)), out("ffn", "ffn"), reads("hidden"))),
    ParameterSpec(
        _LAYER + "mlp.experts.down_proj",
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
    layer=(*_ATTENTION, *_EXPERTS, *_NORMS),
    optional=(),
    heads_divide_hidden=False,
    fields=_MIXTRAL_FIELDS,
    constants={**_LLAMA_CONSTANTS, "sliding_window": None},
    on_disk=replace(
        LLAMA, name="mixtral", layer=(*_ATTENTION, *_EXPERTS_ON_DISK, *_NORMS), optional=(), fields=_MIXTRAL_FIELDS
    ),
    stored_as={
        _EXPERTS[0].name: (_EXPERTS_ON_DISK[0].name,),
        _EXPERTS[1].name: (_EXPERTS_ON_DISK[1].name, _EXPERTS_ON_DISK[3].name),
        _EXPERTS[2].name: (_EXPERTS_ON_DISK[2].name,),
    },
)


# The rows of a dense model that the rows of a mixture's experts come from, in the model and on disk.
UPCYCLED = {
    _LAYER + "mlp.experts.gate_up_proj": (_MLP[0].name, _MLP[1].name),
    _LAYER + "mlp.experts.down_proj": (_MLP[2].name,),
    _EXPERTS_ON_DISK[1].name: (_MLP[0].name,),
    _EXPERTS_ON_DISK[2].name: (_MLP[2].name,),
    _EXPERTS_ON_DISK[3].name: (_MLP[1].name,),
}


_H = "transformer.h.{layer}."


GPT2 = Family(
    name="gpt2",
    before=(
        ParameterSpec("transformer.wte.weight", (out("vocab"), out("hidden"))),
        ParameterSpec("transformer.wpe.weight", (out("position"), out("hidden"))),
    ),
    layer=(
        *layer_norm(_H + "ln_1"),
        *input_first(_H + "attn.c_attn", "hidden", "query", "key_value", "key_value"),
        *input_first(_H + "attn.c_proj", "query", "hidden", writes_residual=True),
        *layer_norm(_H + "ln_2"),
        *input_first(_H + "mlp.c_fc", "hidden", "ffn"),
        *input_first(_H + "mlp.c_proj", "ffn", "hidden", writes_residual=True),
    ),
    after=(
        *layer_norm("transformer.ln_f", feeds_head=True),
        ParameterSpec("lm_head.weight", (out("vocab"), reads("hidden"))),
    ),
    embeddings=("transformer.wte.weight", "transformer.wpe.weight"),
    head="lm_head.weight",
    base="transformer.",
    norm="layer",
    heads_fill_hidden=True,
    rotary=False,
    fields={
        "num_layers": ("n_layer", 12),
        "hidden_size": ("n_embd", 768),
        "num_heads": ("n_head", 12),
        "ffn_size": ("n_inner", None),  # four times the hidden size
        "vocab_size": ("vocab_size", 50257),
        "context_length": ("n_positions", 1024),
        "tied_embeddings": ("tie_word_embeddings", True),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
    },
    constants={
        **_NO_SPECIAL_TOKENS, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0,
    },
    heads=_SCORES,
)  # fmt: skip


_B, _E = "bert.encoder.layer.{layer}.", "bert.embeddings."


BERT = Family(
    name="bert",
    before=(
        ParameterSpec(_E + "word_embeddings.weight", (out("vocab"), out("hidden"))),
        ParameterSpec(_E + "position_embeddings.weight", (out("position"), out("hidden"))),
        ParameterSpec(_E + "token_type_embeddings.weight", (fixed(2), out("hidden"))),
        *layer_norm(_E + "LayerNorm"),
    ),
    layer=(
        *linear(_B + "attention.self.query", "hidden", "query"),
        *linear(_B + "attention.self.key", "hidden", "key_value"),
        *linear(_B + "attention.self.value", "hidden", "key_value"),
        *linear(_B + "attention.output.dense", "query", "hidden", writes_residual=True),
        *layer_norm(_B + "attention.output.LayerNorm"),
        *linear(_B + "intermediate.dense", "hidden", "ffn"),
        *linear(_B + "output.dense", "ffn", "hidden", writes_residual=True),
        *layer_norm(_B + "output.LayerNorm"),
    ),
    after=(
        ParameterSpec("cls.predictions.bias", (out("vocab"),), "zeros"),
        *linear("cls.predictions.transform.dense", "hidden", "hidden"),
        *layer_norm("cls.predictions.transform.LayerNorm", feeds_head=True),
        ParameterSpec("cls.predictions.decoder.weight", (out("vocab"), reads("hidden"))),
        ParameterSpec("cls.predictions.decoder.bias", (out("vocab"),), "zeros"),
    ),
    embeddings=(_E + "word_embeddings.weight", _E + "position_embeddings.weight", _E + "token_type_embeddings.weight"),
    head="cls.predictions.decoder.weight",
    untied=("cls.predictions.decoder.bias",),
    ties={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    # The pooler, and whether two sentences follow each other (BertForPreTraining).
    optional=on(
        "sample",
        (
            *linear("bert.pooler.dense", "hidden", "hidden"),
            ParameterSpec("cls.seq_relationship.weight", (fixed(2), reads("hidden"))),
            ParameterSpec("cls.seq_relationship.bias", (fixed(2),), "zeros"),
        ),
    ),
    base="bert.",
    norm="layer",
    post_norm=True,
    heads_fill_hidden=True,
    rotary=False,
    objective="masked tokens",
    fields={
        "num_layers": ("num_hidden_layers", 12),
        "hidden_size": ("hidden_size", 768),
        "num_heads": ("num_attention_heads", 12),
        "ffn_size": ("intermediate_size", 3072),
        "vocab_size": ("vocab_size", 30522),
        "context_length": ("max_position_embeddings", 512),
        "tied_embeddings": ("tie_word_embeddings", True),
        "norm_eps": ("layer_norm_eps", 1e-12),
    },
    constants={**_NO_SPECIAL_TOKENS, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    heads={
        "classes": Head(
            "ForSequenceClassification",
            (
                *on("sample", linear("bert.pooler.dense", "hidden", "hidden")),
                *on("sample", linear("classifier", "hidden", "class")),
            ),
            {"num_labels": "num_classes"},
        )
    },
)


BUILT_IN = (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, BERT, MIXTRAL, VIT)
