"""`config.json` of a network of raystage's own, which transformers does not know."""

from __future__ import annotations

import json
from typing import Any

from raystage.errors import InputError
from raystage.models.families import FAMILIES
from raystage.models.own import own_model
from raystage.models.shape import ModelShape
from raystage.models.table import Family
from raystage.units import shown

Config = dict[str, Any]


def network_config(shape: ModelShape) -> Config:
    """The configuration of a network of raystage's own, from which `hf_config.shape_of` has its shape again."""
    sizes = {key: getattr(shape, field) for field, (key, _) in FAMILIES[shape.family].fields.items()}
    classes = {"num_labels": shape.num_classes} if shape.num_classes else {}
    if shape.module:
        own = own_model(shape.module)
        sizes = {"function": own.code[0], "options": json.loads(own.options), "vocab_size": shape.vocab_size,
                 "image_size": shape.image_size, "num_channels": shape.num_channels}  # fmt: skip
    return {"model_type": shape.family, "library_name": "raystage", **sizes, "head": shape.head, **classes}


def named_head(config: Config, family: Family, file: str) -> str:
    """The head that a configuration names. Raises InputError where the family has none of that name."""
    found, able = config.get("head", ""), [*([""] if family.objective else []), *family.heads]
    if found not in able:
        expected = " or ".join(map(shown, able))
        raise InputError(f"found {shown(found)}; expected {expected}", key="head", file=file)
    return found
