"""Whether the model that raystage builds is the one that a `config.json` describes, or another one with the same
weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raystage.errors import InputError
from raystage.models import rope
from raystage.models.families import FAMILIES
from raystage.models.hf_config import ALIASES, WINDOWS, Config
from raystage.models.shape import ModelShape
from raystage.models.tables.windows import LAYER_TYPES
from raystage.units import shown

# Keys with the values that raystage's models have. With other values the same weights compute something else.
_AS_BUILT: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "activation_function": ("gelu_new",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "use_sliding_window": (False, None),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "partial_rotary_factor": (1.0, None),
    "router_jitter_noise": (0.0, None),
    "output_router_logits": (False, None),
}

# The same for a single family, before those above.
_AS_BUILT_OF: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "bert": {
        "hidden_act": ("gelu",),
        "type_vocab_size": (2,),
        "is_decoder": (False, None),
        "position_embedding_type": ("absolute", None),
    },
    "vit": {"hidden_act": ("gelu",), "qkv_bias": (True,)},
    "gemma": {"hidden_act": ("gelu_pytorch_tanh", "gelu"), "use_bidirectional_attention": (False, None)},
    "gemma2": {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (False, None),
        "attn_logit_softcapping": (50.0,),
        "final_logit_softcapping": (30.0,),
    },
    "gemma3_text": {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (False, None),
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
    },
    "modernbert": {
        "hidden_activation": ("gelu",),
        "norm_bias": (False,),
        "head_dim": (None,),
        "decoder_bias": (True,),
        "classifier_bias": (False,),
        "classifier_activation": ("gelu",),
        "global_attn_every_n_layers": (3, None),
    },
    "phi": {"hidden_act": ("gelu_new",), "qk_layernorm": (False,), "partial_rotary_factor": (0.5, None)},
    "gpt_neox": {
        "hidden_act": ("gelu",),
        "attention_bias": (True,),
        "use_parallel_residual": (True,),
        "is_decoder": (False, True),
        "head_dim": (None,),
        "rotary_pct": (0.25,),
        "partial_rotary_factor": (0.25, None),
    },
    "qwen3_moe": {"norm_topk_prob": (True,), "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
}

# Values of such keys in a configuration without them, where these are not as built.
_OTHER_DEFAULTS: Mapping[str, Config] = {"qwen3_moe": {"norm_topk_prob": False}}

# Keys that are read only with others that are refused.
_IDLE_OF: Mapping[str, set[str]] = {"phi3": {"original_max_position_embeddings"}}

# Further keys that transformers reads in any family. Where one is set, the model may be another one. A key that no code
# reads has no effect. A test compares this list with the code of transformers.
_READ = frozenset({
    "attention_chunk_size", "base_model_ep_plan", "base_model_fsdp_plan", "base_model_pp_plan", "base_model_tp_plan",
    "chain_hidden_post_norm", "decoder", "default_theta", "dequantize", "distributed_config",
    "embedding_size", "encoder", "first_k_dense_replace", "fusion_config", "ignore_keys_at_rope_validation",
    "is_causal", "kernel_config",
    "kv_sharing_modes", "logits_mup_width_multiplier", "mlp_layer_types", "mtp_hidden_states_first", "mtp_layer_types",
    "mtp_mlp_layer_types", "mtp_per_layer_config", "nested_rope_parameter_keys", "num_experts", "num_mtp_layers",
    "number_of_conv_states", "original_max_position_embeddings", "per_layer_config", "qk_head_dim",
    "quantization_config", "sub_configs", "text_config", "tie_last_hidden_states", "transformers_weights",
    "unpadded_vocab_size", "vision_config",
})  # fmt: skip


def check_trainable(config: Config, shape: ModelShape, file: str) -> None:
    """Raises InputError, naming the key, where the configuration describes another model than raystage builds for
    `shape`."""
    aliases = set(ALIASES.get(shape.family, {}).values())
    as_built = {**_AS_BUILT, **_AS_BUILT_OF.get(shape.family, {})}
    for key, value in {**_OTHER_DEFAULTS.get(shape.family, {}), **config}.items():
        if key in as_built:
            if value not in as_built[key]:
                raise InputError(f"found {shown(value)}; expected {shown(as_built[key][0])}", key=key, file=file)
        elif key in _READ - aliases - _IDLE_OF.get(shape.family, set()) and value not in (None, False):
            problem = f"found {shown(value)}, which the models that are trained here do not have"
            raise InputError(f"{problem}; expected a configuration without it", key=key, file=file)
    for key in _CHECKED:
        _CHECKED[key](config, shape, file)


def _check_rope(config: Config, shape: ModelShape, file: str) -> None:
    found = rope.rope_of(config)
    kind = found.get("rope_type", found.get("type", "default"))
    share = FAMILIES[shape.family].rotary_share
    is_built = kind == "default" and found.get("partial_rotary_factor", share) == share
    local = rope.rope_of(config, LAYER_TYPES["s"]) if FAMILIES[shape.family].local_rope_theta else {}
    if set(local) - {"rope_type", "rope_theta"} or local.get("rope_type", "default") != "default":
        problem = f"found {shown(dict(local))} for {LAYER_TYPES['s']}; expected a rope_theta alone"
        raise InputError(problem, key="rope_parameters", file=file)
    if not (is_built or shape.rope_scaling):
        key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
        kinds = ", ".join(rope.TRAINED if FAMILIES[shape.family].scales_rotary else rope.TRAINED[:1])
        part = "no partial_rotary_factor" if share == 1.0 else f"a partial_rotary_factor of {share}"
        expected = f"expected a rope_type of {kinds} with its numbers, and {part}"
        raise InputError(f"found {shown(dict(found))}; {expected}", key=key, file=file)


def _check_window(config: Config, shape: ModelShape, file: str) -> None:
    """A window that is as long as the context changes nothing; some families have windows."""
    if FAMILIES[shape.family].windows:
        return
    window = config.get("sliding_window", WINDOWS.get(shape.family))
    if shape.family.startswith("qwen") and not config.get("use_sliding_window"):
        return
    if window is not None and type(window) is not int:
        raise InputError(f"found {shown(window)}; expected a whole number or null", key="sliding_window", file=file)
    if window is not None and window < shape.context_length:
        problem = f"found a window of {window} in a context of {shape.context_length}; expected null"
        raise InputError(problem, key="sliding_window", file=file)


def _check_layer_types(config: Config, shape: ModelShape, file: str) -> None:
    if FAMILIES[shape.family].windows:  # of which the shape has the kinds of its layers
        return
    found = config.get("layer_types") or []
    unlike = {str(one) for one in (found if isinstance(found, list) else [found])} - {"full_attention"}
    if unlike:
        problem = f"found {shown(', '.join(sorted(unlike)))}; expected full_attention in every layer"
        raise InputError(problem, key="layer_types", file=file)


def _check_stride(config: Config, shape: ModelShape, file: str) -> None:
    """A head for pixels makes as many of every patch's state as it has."""
    found = config.get("encoder_stride", 16)
    if shape.family == "vit" and shape.head == "pixels" and found != shape.patch_size:
        problem = f"found {shown(found)}; expected {shape.patch_size}, as patch_size"
        raise InputError(problem, key="encoder_stride", file=file)


def _check_pooling(config: Config, shape: ModelShape, file: str) -> None:
    """Classes are told by a text's first token. Without a head for classes nothing is pooled."""
    found = config.get("classifier_pooling", "cls")
    if shape.head == "classes" and found != "cls":
        raise InputError(f"found {shown(found)}; expected 'cls'", key="classifier_pooling", file=file)


_CHECKED: Mapping[str, Callable[[Config, ModelShape, str], None]] = {
    "rope_parameters": _check_rope,
    "rope_scaling": _check_rope,
    "sliding_window": _check_window,
    "layer_types": _check_layer_types,
    "encoder_stride": _check_stride,
    "classifier_pooling": _check_pooling,
}
