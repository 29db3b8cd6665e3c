"""`config.json` of a Hugging Face folder: the shape that it describes, and the same file with grown sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from raystage.errors import InputError
from raystage.models import rope
from raystage.models.families import FAMILIES
from raystage.models.network_config import named_head
from raystage.models.shape import ModelShape, image_positions
from raystage.models.table import Family
from raystage.models.tables.windows import read_kinds, write_kinds
from raystage.units import shown

Config = dict[str, Any]

_PER_LAYER = ("layer_types", "mlp_layer_types")  # lists with an entry for every layer in all models
# Keys under which a configuration of several models has that of the one with the layers.
_PARTS = ("text_config",)
# Names of keys that are rules by layer number. In a model that is unknown to transformers their meaning is unknown.
_BY_NUMBER = re.compile(r"pattern|interval|every|period|offset|_step$|_freq$|first_k|max_window_layers")
# Usual keys for the sizes of a model without a table; only the number of layers is needed.
_USUAL_KEYS = {
    "num_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_heads": ("num_attention_heads", "n_head"),
    "num_kv_heads": ("num_key_value_heads",),
    "head_size": ("head_dim",),
    "ffn_size": ("intermediate_size", "ffn_dim", "n_inner"),
    "vocab_size": ("vocab_size",),
    "context_length": ("max_position_embeddings", "n_positions"),
}
_LARGEST_SIZE = 2**40
# The attention window of a dense model whose configuration has none.
WINDOWS = {"mistral": 4096}
# Further keys of a mixture's configuration, and those that only a dense model's has.
_OF_MIXTURES = ("norm_topk_prob",)
_DENSE_KEYS = ("attention_bias", "mlp_bias", "pretraining_tp")

# A key of GPT-2 with which a layer computes another function in another place.
_PLACED = "scale_attn_by_inverse_layer_idx"


# --- reading ------------------------------------------------------------------------------------


def shape_of(config: Config, file: str) -> ModelShape:
    """The shape that a configuration describes, with the family's defaults.

    Of a model without a table only `num_layers` is certain; other sizes are 0 where no usual key has them. file: for
    messages. Raises InputError where a size is missing or wrong.
    """
    name = config.get("model_type")
    if not isinstance(name, str):
        expected = f"{', '.join(FAMILIES)} or another name of transformers'"
        raise InputError(f"found {shown(name)}; expected {expected}", key="model_type", file=file)
    if name not in FAMILIES:
        return _unknown_shape(config, name, file)
    return _known_shape(config, FAMILIES[name], file)


def layers_key(config: Config) -> str | None:
    """The key that has the number of layers; None where no usual key has it."""
    return next((key for key in _USUAL_KEYS["num_layers"] if type(config.get(key)) is int), None)


def layers_part(config: Config) -> tuple[tuple[str, ...], Config]:
    """The part of a configuration that has the number of layers, and the keys that lead to it."""
    for key in _PARTS if layers_key(config) is None else ():
        if isinstance(config.get(key), dict) and layers_key(config[key]) is not None:
            return (key,), config[key]
    return (), config


def with_part(config: Config, part: Config) -> Config:
    """The configuration with another part in place of the one that `layers_part` found."""
    path, _ = layers_part(config)
    return {**config, path[0]: part} if path else part


def _known_shape(config: Config, family: Family, file: str) -> ModelShape:
    values = {field: _value(config, field, *family.fields[field], file) for field in family.fields}
    if family.reads_images:
        values |= _of_images(family.name, values["image_size"], values["patch_size"], file)
    hidden, heads = values["hidden_size"], values.get("num_heads", 0)
    following = {"num_heads": 0, "num_kv_heads": heads, "head_size": hidden // max(1, heads), "ffn_size": 4 * hidden}
    if not family.has_attention:
        following = dict.fromkeys(following, 0)
    for field, value in following.items():
        if values.get(field) is None:
            values[field] = value
    if family.rotary:
        values["rope_theta"] = rope.theta_of(config, family.name, family.rope_theta)
        if family.local_rope_theta:
            values["local_rope_theta"] = rope.local_theta_of(config, family.name, family.local_rope_theta)
        if family.scales_rotary:
            found = rope.scaling_of(rope.rope_of(config), values["context_length"], family.rotary_share)
            values["rope_scaling"] = found
    kinds = read_kinds(config, values["num_layers"], family.windows, file)
    return ModelShape(family=family.name, **values, layer_kinds=kinds, **_head(config, family, file))


def _of_images(family: str, image: int, patch: int, file: str) -> dict[str, int]:
    """The vocabulary and the context of a model of images: the patches and the class token."""
    if patch > image:
        raise InputError(f"found {patch}; expected at most image_size ({image})", key="patch_size", file=file)
    return {"vocab_size": 0, "context_length": image_positions(family, image, patch)}


def _head(config: Config, family: Family, file: str) -> dict[str, Any]:
    """The head that the transformers class of the model has, where it is none of language; of a network of raystage's
    own the one that its configuration names."""
    if family.module:
        found = named_head(config, family, file)
        has_classes = found == "classes"
    else:
        name = architecture_of(config)
        found = next((key for key, head in family.heads.items() if name.endswith(head.suffix)), "")
        has_classes = bool(found) and "num_classes" in family.heads[found].sets.values()
    if not found:
        return {}
    return {"head": found, **({"num_classes": _num_classes(config, file)} if has_classes else {})}


def _num_classes(config: Config, file: str) -> int:
    """The number of its labels; transformers' two where it names none."""
    labels = config.get("id2label")
    found = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if type(found) is not int or not 1 <= found < _LARGEST_SIZE:
        raise InputError(f"found {shown(found)}; expected a whole number from 1 on", key="num_labels", file=file)
    return found


def _value(config: Config, field: str, key: str, default: object, file: str) -> Any:
    """The value of a field; None where it follows from others."""
    found = _said(config, key, default, file)
    if field == "tied_embeddings":
        return found is True and not _is_headless(config)
    if found is None and (default is not None or field in ("num_kv_heads", "head_size", "ffn_size")):
        return default
    if field == "norm_eps":
        return _eps(found, key, file)
    if type(found) is not int or not 1 <= found < _LARGEST_SIZE:
        raise InputError(f"found {shown(found)}; expected a whole number from 1 on", key=key, file=file)
    return found


def _said(config: Config, key: str, default: object, file: str) -> object:
    """The value of a key, or of its second name."""
    alias = ALIASES.get(str(config.get("model_type")), {}).get(key)
    found = config.get(key, config.get(alias, default))
    if config.get(alias, found) != found:
        problem = f"found {shown(config[alias])}, another name of {key}, which is {shown(found)}; expected the same"
        raise InputError(problem, key=alias, file=file)
    return found


def _is_headless(config: Config) -> bool:
    """Whether the model is a GPT2Model, a BertModel or the like. Its output are hidden states, so there is no head that
    the embedding could be tied to."""
    name = architecture_of(config)
    return name.endswith("Model") and not name.endswith("HeadModel")


def architecture_of(config: Config) -> str:
    """The transformers class of the model; "" where the configuration has none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _eps(found: object, key: str, file: str) -> float:
    if type(found) not in (int, float) or not 0 <= found < 1:
        raise InputError(f"found {shown(found)}; expected a small number such as 1e-6", key=key, file=file)
    return float(found)


def _unknown_shape(config: Config, name: str, file: str) -> ModelShape:
    part = layers_part(config)[1]
    key = layers_key(part)
    if key is not None and not 1 <= part[key] < _LARGEST_SIZE:
        raise InputError(f"found {shown(part[key])}; expected a whole number from 1 on", key=key, file=file)
    if key is None:
        found = f"found no number of layers for the model_type {name!r}, which has no table here"
        raise InputError(f"{found}; expected one of {', '.join(_USUAL_KEYS['num_layers'])}", file=file)
    values = {
        field: next((part[key] for key in keys if type(part.get(key)) is int), 0) for field, keys in _USUAL_KEYS.items()
    }
    return ModelShape(family=name, **values, tied_embeddings=config.get("tie_word_embeddings") is True)


# Second names of sizes. In transformers they take precedence.
ALIASES: Mapping[str, Mapping[str, str]] = {
    "gpt2": {
        "n_embd": "hidden_size", "n_positions": "max_position_embeddings", "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
    },
    "mixtral": {"num_local_experts": "num_experts"},
    "qwen3_moe": {"num_local_experts": "num_experts"},
}  # fmt: skip


# --- lists of layers ----------------------------------------------------------------------------


def is_per_layer(key: str) -> bool:
    """Whether a list of that name is about layers. For other names only the model can tell."""
    return "layer" in key or "block" in key or key == "attention_types"


def readings(key: str, value: list, count: int, layers: Sequence[int], lists: Mapping[str, list]) -> list[list]:
    """What a list may become in a model with `layers`, indices of the layers of a model of `count`; the likely one
    first.

    It may have an entry for each layer, it may have the numbers of some layers, or it may not be about layers. lists:
    the configuration's lists as the model reads them.
    """
    if key == "attention_types":  # of GPT-Neo: a short form of attention_layers
        kinds = lists.get("attention_layers", [])
        return [[[[kinds[layer] for layer in layers], 1]]] if len(kinds) == count else [value]
    each = [[value[layer] for layer in layers]] if len(value) == count else []
    are_numbers = all(type(one) is int and 0 <= one < count for one in value) and len(set(value)) == len(value)
    some = [[place for place, layer in enumerate(layers) if layer in value]] if are_numbers else []
    ordered = [*some, *each] if value == list(range(count)) else [*each, *some]
    return [one for place, one in enumerate([*ordered, value]) if one not in [*ordered, value][:place]]


def in_order(first: int, layers: int, count: int) -> tuple[int, ...]:
    """All layers, then the layers from `first` on again until there are `count`."""
    return (*range(layers), *islice(cycle(range(first, layers)), count - layers))


def by_name(config: Config, count: int, layers: Sequence[int], file: str) -> Config:
    """The configuration with its lists of layers for a model with `layers`, indices of its own `count` layers.

    Raises InputError where a list that every model has per layer does not have an entry for each.
    """
    part = dict(layers_part(config)[1])
    for key, entries in list(part.items()):
        is_list = isinstance(entries, list)
        if key in _PER_LAYER and entries is not None and not (is_list and len(entries) == count):
            problem = f"found {shown(entries)}; expected a list with an entry for each layer"
            raise InputError(problem, key=key, file=file)
        if is_list and is_per_layer(key):
            part[key] = readings(key, entries, count, layers, part)[0]
    return with_part(config, part)


def check_no_rule(config: Config, file: str) -> None:
    """Raises InputError where a configuration has a rule by layer number and no list in its place."""
    part = layers_part(config)[1]
    for key, value in part.items():
        goes_on = isinstance(value, str) or (type(value) is int and value > 1)
        if _BY_NUMBER.search(key) and goes_on and not isinstance(part.get("layer_types"), list):
            found = (
                f"found {shown(value)}, which may go by a layer's number, in a model that transformers does not know"
            )
            raise InputError(f"{found}; expected a list of layer_types", key=key, file=file)


# --- writing ------------------------------------------------------------------------------------


def grown_config(config: Config, source: ModelShape, target: ModelShape, layers: tuple[int, ...], file: str) -> Config:
    """The source's configuration with the sizes of the target, all other keys unchanged and in order.

    layers: for each target layer the source layer that it is a copy of.
    """
    if config.get(_PLACED) is True and layers != tuple(range(source.num_layers)):
        problem = "found true, which scales a layer's attention by its place; expected false, or as many layers"
        raise InputError(problem, key=_PLACED, file=file)
    grown = dict(config)
    if target.family not in FAMILIES:
        part = layers_part(grown)[1]
        return with_part(grown, part | {layers_key(part): target.num_layers})
    if source.family != target.family:
        grown = _as_mixture(config, source, target)
    fields, is_own = FAMILIES[target.family].fields, not target.layer_kinds
    write_kinds(grown, target.kinds, is_own, FAMILIES[target.family].windows, fields["num_layers"][0])
    _set_sizes(grown, target, file)
    _set_windows(grown, config, source, layers)
    return grown


def _set_sizes(config: Config, target: ModelShape, file: str) -> None:
    """Make the configuration describe `target`, in place. Sizes that no longer follow from others are written out."""
    fields = {field: key for field, (key, _) in FAMILIES[target.family].fields.items()}
    for _ in range(2):  # setting a size changes what follows from it
        said = shape_of(config, file)
        for field, key in fields.items():
            if getattr(said, field) != getattr(target, field):
                config[key] = getattr(target, field)
                if (alias := ALIASES.get(target.family, {}).get(key)) in config:
                    config[alias] = config[key]


def _set_windows(grown: Config, config: Config, source: ModelShape, layers: tuple[int, ...]) -> None:
    """For Qwen: the layers from `max_window_layers` on use a window. Where only this number tells which layers, the
    grown configuration lists them, because copies need not be in a row."""
    most = config.get("max_window_layers")
    if type(most) is not int:
        return
    everywhere = [layer < most for layer in layers]
    grown["max_window_layers"] = max(most, len(layers)) if most >= source.num_layers else sum(everywhere)
    windowed = config.get("use_sliding_window") and config.get("sliding_window") is not None
    if windowed and config.get("layer_types") is None:
        grown["layer_types"] = ["full_attention" if whole else "sliding_attention" for whole in everywhere]


def _as_mixture(config: Config, source: ModelShape, target: ModelShape) -> Config:
    """A dense model's configuration as that of a mixture, with every size written out, since the defaults differ."""
    grown = {key: value for key, value in config.items() if key not in _DENSE_KEYS}
    before, after = FAMILIES[source.family], FAMILIES[target.family]
    name = architecture_of(config) or f"{_class_prefix(before)}ForCausalLM"
    grown["architectures"] = [name.replace(_class_prefix(before), _class_prefix(after))]
    grown["model_type"] = after.name
    grown |= {key: getattr(target, field) for field, (key, _) in after.fields.items()}
    grown |= {key: after.constants[key] for key in _OF_MIXTURES if key in after.constants}
    # Without these keys the two would use different rotary angles and different windows.
    own = before.constants["rope_parameters"]
    if "rope_parameters" not in grown and "rope_theta" not in grown:
        grown |= {"rope_theta": own["rope_theta"]} if "rope_scaling" in grown else {"rope_parameters": dict(own)}
    grown.setdefault("sliding_window", WINDOWS.get(before.name))
    return grown


def _class_prefix(family: Family) -> str:
    """How the names of its classes in transformers begin."""
    return "".join(part.capitalize() for part in family.name.split("_"))
