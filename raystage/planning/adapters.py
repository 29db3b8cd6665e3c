"""The adapter of a stage, and what a stage with one cannot have."""

from __future__ import annotations

from importlib.util import find_spec

from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.growth.checks import refusal
from raystage.planning.draft import Context, StageDraft
from raystage.plans.adapters import find_adapter

_PACKAGE = "peft"


def fix_adapter(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: the adapter, before the length, which may be in FLOPs."""
    written = context.schedule.stages[draft.index].adapter
    if written is None:
        return draft
    if (before := context.shape_before) is None:
        problem = "found in the first stage, whose model is random; expected a stage before it, or init"
        raise InputError(problem, key="adapter")
    _check_beside(draft)
    if before.family != draft.shape.family or refusal(before, draft.shape, "stack"):
        return draft  # refused later, with what does not fit
    if find_spec(_PACKAGE) is None:
        raise InputError("found, but peft is not installed; expected pip install 'raystage[lora]'", key="adapter")
    return replaced(draft, adapter=find_adapter(written, before, draft.shape))


def _check_beside(draft: StageDraft) -> None:
    """Refuse what an adapter does not go with."""
    for key, why in (
        ("grow", "whose new parameters would not be trained; expected the growth in a stage of its own"),
        ("freeze", "but an adapter freezes the model anyway; expected adapter.lora.train for what is trained in full"),
        ("thaw", "but the model stays frozen beside an adapter; expected one of them"),
        ("average", "which ends the stage with merged weights; expected one of them"),
    ):
        if getattr(draft.stage, key) is not None:
            raise InputError(f"found in a stage with {key}, {why}", key="adapter")
    if keep_best := draft.training.checkpoint.keep_best:
        problem = f"found {keep_best} in a stage with an adapter, whose checkpoints before its end hold no whole model"
        raise InputError(f"{problem}; expected 0", key="training.checkpoint.keep_best")
    if draft.training.optimizer.name == "muon":
        problem = "found muon with an adapter, whose matrices are products of two; expected adamw, adam or sgd"
        raise InputError(problem, key="training.optimizer.name")
