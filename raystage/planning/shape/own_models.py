"""The shape of a model without a table: a module of the user's own, or any architecture of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from raystage.config.stage import Model
from raystage.errors import InputError
from raystage.lazy import own_build, own_networks
from raystage.models import hub
from raystage.models.families import TRANSFORMERS
from raystage.models.own import ANY, OWN, OwnModel
from raystage.models.shape import ModelShape
from raystage.planning.draft import StageDraft
from raystage.planning.inputs import Sources
from raystage.planning.shape.images import check_square
from raystage.planning.shape.user_functions import code_of
from raystage.planning.shape.vocabulary import vocab_size

OWN_FAMILIES = (OWN, ANY)
_CONFIG = "config.json"
# Keys by the families that take them.
_KEYS = {
    "build": (OWN,), "options": (OWN,), "widths": (OWN,), "config": (ANY,), "layer_list": OWN_FAMILIES,
    "writes_residual": OWN_FAMILIES,
}  # fmt: skip
_TAKEN = {OWN: ("vocab_size", "context_length"), ANY: ("num_layers", "vocab_size", "context_length")}


def check_own_keys(model: Model) -> None:
    """Refuse keys of models without a table in one that has one, and the other way round."""
    for field, families in _KEYS.items():
        if getattr(model, field) and model.family not in families:
            problem = f"found for {model.family}; expected it with family: {' or '.join(families)}"
            raise InputError(problem, key=f"model.{field}")
    if model.family not in OWN_FAMILIES:
        return
    for field in sorted(model.model_fields_set - {"family", *_KEYS, *_TAKEN[model.family]}):
        if getattr(model, field) is not None:
            where = "options of its function" if model.family == OWN else "config.json"
            raise InputError(f"found for family: {model.family}; expected it in the {where}", key=f"model.{field}")


def resolve_own(draft: StageDraft, sources: Sources, before: ModelShape | None) -> ModelShape:
    """The shape, with what was found in the model. Runs the user's function. Raises InputError."""
    model = draft.stage.model
    check_own_keys(model)
    if model.family == OWN and draft.stage.training.activation_checkpointing:
        found = str(draft.stage.training.activation_checkpointing).lower()
        problem = f"found {found} for a module, which only its own code can compute a second time"
        raise InputError(f"{problem}; expected false", key="training.activation_checkpointing")
    sizes = _sizes(draft, before)
    head = draft.objective.entry.head
    if model.family == OWN:
        reference, code, options = _of_function(model, sources)
    else:
        reference, code, options = "", (), _of_config(model, sizes, draft.objective.entry.model)
    asked = json.dumps({"options": options, "sizes": sizes}, sort_keys=True)
    text, num_layers, widths = _looked_at(reference, code, asked, model.layer_list, tuple(sorted(model.widths.items())),
                                  model.writes_residual, head, draft.objective.entry.model)  # fmt: skip
    if model.num_layers not in (None, num_layers):
        problem = f"found {model.num_layers}, but the model that the config makes has {num_layers} layers"
        raise InputError(f"{problem}; expected model.layer_list, or as many", key="model.num_layers")
    grown = dict(widths)
    return ModelShape(
        family=model.family, num_layers=num_layers, hidden_size=grown.get("hidden_size", 0), num_heads=0,
        num_kv_heads=0, head_size=0, ffn_size=grown.get("ffn_size", 0), norm_eps=0.0, head=head, module=text,
        vocab_size=sizes["vocab_size"], context_length=sizes["context_length"], num_classes=sizes["num_classes"],
        image_size=sizes["image_size"], num_channels=sizes["num_channels"],
    )  # fmt: skip


@lru_cache(maxsize=256)
def _looked_at(
    reference: str, code: tuple[str, ...], asked: str, layers: str | None, widths: tuple[tuple[str, str], ...],
    writes_residual: tuple[str, ...], head: str, learns: str,
) -> tuple[str, int, tuple[tuple[str, int], ...]]:  # fmt: skip
    """What was found in the model, as text; its depth, and the sizes that grow. A sweep asks the same many times."""
    content = json.loads(asked)
    options, sizes = content["options"], content["sizes"]
    wanted = own_networks.Wanted(
        reference, options, layers, dict(widths), writes_residual, sizes, head, learns, sizes["context_length"]
    )
    found = own_networks.inspect_model(wanted)
    kept = OwnModel(
        reference, code, json.dumps(options, sort_keys=True), found.before, found.layer, found.after, found.embeddings,
        found.norm, found.costs,
    )  # fmt: skip
    return kept.to_text(), found.num_layers, tuple(found.widths.items())


def _sizes(draft: StageDraft, before: ModelShape | None) -> dict[str, int]:
    """The sizes that follow from data and objective; 0 where there is no such thing."""
    model, data = draft.stage.model, draft.data
    classes = data.samples.num_classes if draft.objective.entry.head == "classes" else 0
    image = data.samples.image if data.samples else None
    if image is None:
        if model.context_length is None:
            raise InputError("missing; expected the length of a sequence in tokens", key="model.context_length")
        known = vocab_size(model, data, draft.objective)
        known = max(known, before.vocab_size) if before and model.vocab_size is None else known
        return {"vocab_size": known, "context_length": model.context_length, "num_classes": classes,
                "image_size": 0, "num_channels": 0}  # fmt: skip
    channels, height, width = image
    check_square(height, width)
    return {"vocab_size": 0, "context_length": 1, "num_classes": classes, "image_size": height,
            "num_channels": channels}  # fmt: skip


def _of_function(model: Model, sources: Sources) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    if model.build is None:
        problem = "missing; expected the function that makes the module, for example build: my/net.py:make"
        raise InputError(problem, key="model.build")
    if not sources.with_code:
        problem = "found a module of the user's own, whose parameters only its code tells"
        raise InputError(f"{problem}; expected a plan with code", key="model.build")
    try:
        json.dumps(model.options, allow_nan=False)
    except (TypeError, ValueError) as error:
        problem = f"found a value that is neither text, a number, a flag, a list nor a mapping ({error})"
        raise InputError(f"{problem}; expected such values", key="model.options") from None
    return model.build, tuple(code_of(model.build, "model.build", sources)), dict(model.options)


# --- transformers -------------------------------------------------------------------------------


def _of_config(model: Model, sizes: Mapping[str, int], learns: str) -> dict[str, Any]:
    if model.config is None:
        problem = "missing; expected a config.json, a folder with one, or a name on the Hugging Face Hub"
        raise InputError(problem, key="model.config")
    content, file = _config(model.config)
    kind = content.get("model_type")
    if "auto_map" in content:  # also of an architecture that transformers does not know
        problem = "found auto_map, code of the model's own, which is not run"
        raise InputError(f"{problem}; expected an architecture of transformers, or family: module", key="model.config")
    if kind in TRANSFORMERS:
        problem = f"found the model_type {kind}, which has a table; expected family: {kind}"
        raise InputError(f"{problem}, with its sizes as keys", key="model.config")
    return {"config": own_build.completed(content, file, model.num_layers, dict(sizes)), "learns": learns}


def _config(place: str) -> tuple[dict[str, Any], Path]:
    path = Path(place)
    if path.is_dir():
        path = path / _CONFIG
    elif not path.is_file() and not place.endswith(".json") and hub.is_name(place):
        path = hub.snapshot(place, (_CONFIG,), "model.config") / _CONFIG
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"found {place!r} ({error.strerror}); expected a config.json", key="model.config") from None
    except ValueError as error:
        raise InputError(f"not JSON ({error}); expected a config.json", key="model.config", file=str(path)) from None
    if not isinstance(content, dict):
        raise InputError("found no mapping; expected a config.json", key="model.config", file=str(path))
    return content, path
