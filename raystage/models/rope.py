"""Scaled rotary positions: the kinds that a schedule can train, and their numbers as a shape keeps them.

| rope_type | trained | why not |
|---|---|---|
| default, linear, llama3, yarn | yes | |
| dynamic, longrope | no | the angles depend on the length of the input |
| proportional and others | no | not in the models that raystage builds |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raystage.files.reading import parse_json
from raystage.models.tables.windows import LAYER_TYPES

# By kind the required numbers, and the optional ones.
_NEEDED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": ("factor",)}
_FURTHER = {"yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")}
TRAINED = ("default", *_NEEDED)
# The base of rotary positions in a configuration without one, where it is not 10,000.
_ROPE_THETAS = {"mixtral": 1_000_000.0}
# The key of the base in older configurations, where it is not "rope_theta".
_OLD_ROPE_THETA = {"gpt_neox": "rotary_emb_base", "modernbert": "global_rope_theta"}
# The same for layers with a window, in families whose layers with one have a base of their own.
_OLD_LOCAL_ROPE_THETA = {"gemma3_text": "rope_local_base_freq", "modernbert": "local_rope_theta"}
_ORIGINAL = "original_max_position_embeddings"


def scaling_of(rope: Mapping[str, Any], context_length: int, share: float = 1.0) -> str:
    """The scaling in a configuration's `rope_parameters`, as JSON; "" where there is none that is trained.

    context_length: the length that the scaling refers to, where it has none; the result has it. share: the part of
    every head that has positions.
    """
    kind = rope.get("rope_type", rope.get("type"))
    if not isinstance(kind, str) or kind not in _NEEDED or rope.get("partial_rotary_factor", share) != share:
        return ""
    names = (*_NEEDED[kind], *_FURTHER.get(kind, ()))
    numbers = {name: rope[name] for name in names if rope.get(name) is not None}
    if kind != "linear":
        numbers[_ORIGINAL] = rope.get(_ORIGINAL) or context_length
    switch = {"truncate": rope["truncate"]} if kind == "yarn" and isinstance(rope.get("truncate"), bool) else {}
    if not set(_NEEDED[kind]) <= set(numbers) or not all(map(_is_size, numbers.values())):
        return ""
    return json.dumps({"rope_type": kind, **numbers, **switch}, sort_keys=True)


def parameters_of(scaling: str) -> dict[str, Any]:
    """The keys of a configuration for a scaling, without the base. Raises ValueError for what is no scaling."""
    return json.loads(scaling) if scaling else {}


def scaling(kind: str, numbers: Mapping[str, float], context_length: int = 0) -> str:
    """A scaling from a schedule's numbers, which have transformers' names.

    context_length: the original one, for the kinds that refer to one.
    """
    return scaling_of({"rope_type": kind, **numbers}, context_length)


def origin_of(scaling: str) -> int | None:
    """The context length, in tokens, that a scaling refers to; None where it refers to none."""
    return parameters_of(scaling).get(_ORIGINAL)


def reach_of(scaling: str) -> float | None:
    """The longest context, in tokens, that a scaling is made for; None where it does not say."""
    origin = origin_of(scaling)
    return None if origin is None else origin * parameters_of(scaling)["factor"]


def in_short(scaling: str) -> str:
    """'yarn 8x'; 'no scaling'."""
    found = parameters_of(scaling)
    return f"{found['rope_type']} {found['factor']:g}x" if found else "no scaling"


def is_scaling(text: str) -> bool:
    """Whether it is a result of `scaling_of`."""
    try:
        found = parse_json(text) if text else {}
    except ValueError:
        return False
    return isinstance(found, dict) and scaling_of(found, 0) == text


def _is_size(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < 2**63


# --- in configurations ---------------------------------------------------------------------------


def theta_of(config: Mapping[str, Any], family: str, default: float) -> float:
    """The base of the rotary positions, under its new key or its old one; of layers that attend to all."""
    found = rope_of(config).get("rope_theta", config.get(_OLD_ROPE_THETA.get(family, "rope_theta")))
    return float(found) if _is_number(found) else _ROPE_THETAS.get(family, default)


def local_theta_of(config: Mapping[str, Any], family: str, default: float) -> float:
    """The same of layers with a window, in a family where they have a base of their own."""
    found = rope_of(config, LAYER_TYPES["s"]).get("rope_theta", config.get(_OLD_LOCAL_ROPE_THETA[family]))
    return float(found) if _is_number(found) else default


def rope_parameters(base: Mapping[str, Any], theta: float, scaling: str, local_theta: float) -> dict[str, Any]:
    """A configuration's `rope_parameters`. base: what the family's always have. local_theta: of layers with a window;
    0 where all layers have the same positions."""
    whole = {**base, **parameters_of(scaling), "rope_theta": theta}
    if not local_theta:
        return whole
    return {LAYER_TYPES["f"]: whole, LAYER_TYPES["s"]: {**base, "rope_theta": local_theta}}


def _is_number(value: object) -> bool:
    """Whether it is a number that fits a float: JSON has integers of any length."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def rope_of(config: Mapping[str, Any], layers: str = LAYER_TYPES["f"]) -> Mapping[str, Any]:
    """What a configuration says of its rotary positions; of those of such layers, where it tells kinds of them apart.
    An old `rope_scaling` is for layers that attend to all."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(found, dict):
        return {}
    if any(isinstance(found.get(name), dict) for name in LAYER_TYPES.values()):
        return found[layers] if isinstance(found.get(layers), dict) else {}
    return found if layers == LAYER_TYPES["f"] else {}
