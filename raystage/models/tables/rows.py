"""Rows and keys that several tables are made of."""

from __future__ import annotations

from dataclasses import replace

from raystage.models.table import Axis, Head, ParameterSpec, out, reads

# Keys of tokens that no model here has a use for.
NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

# The scores of the classes, from the last token of a text.
SCORES = {
    "classes": Head(
        "ForSequenceClassification",
        (ParameterSpec("score.weight", (out("class"), reads("hidden")), acts_on="sample"),),
        {"num_labels": "num_classes"},
    )
}


def layer_norm(name: str, feeds_head: bool = False) -> tuple[ParameterSpec, ParameterSpec]:
    """Gains and shifts of a norm of the residual stream."""
    return (
        ParameterSpec(name + ".weight", (Axis("gain", ("hidden",)),), "ones", feeds_head=feeds_head),
        ParameterSpec(name + ".bias", (Axis("shift", ("hidden",)),), "zeros", feeds_head=feeds_head),
    )


def input_first(name: str, source: str, *targets: str, writes_residual: bool = False) -> tuple[ParameterSpec, ...]:
    """GPT-2's projections: stored (inputs, outputs), with a bias."""
    return (
        ParameterSpec(name + ".weight", (reads(source), out(*targets)), writes_residual=writes_residual),
        ParameterSpec(name + ".bias", (out(*targets),), "zeros", writes_residual=writes_residual),
    )


def linear(name: str, source: str, target: str, writes_residual: bool = False) -> tuple[ParameterSpec, ...]:
    """A projection of one kind of units to another, with a bias."""
    return (
        ParameterSpec(name + ".weight", (out(target), reads(source)), writes_residual=writes_residual),
        ParameterSpec(name + ".bias", (out(target),), "zeros", writes_residual=writes_residual),
    )


def on(acts_on: str, rows: tuple[ParameterSpec, ...]) -> tuple[ParameterSpec, ...]:
    """The rows with what they act on; see `ParameterSpec`."""
    return tuple(replace(row, acts_on=acts_on) for row in rows)
