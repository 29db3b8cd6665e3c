"""Which parameters of a stage are frozen, and for how long: `freeze`.

A frozen parameter keeps its weights, its optimizer state and its step count, bit for bit. The other parameters train as
if the frozen ones were constants. Gradients of frozen parameters are still computed, then set to zero so that they do
not count in the gradient's norm. So a stage with frozen parameters takes the same FLOPs as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raystage.config.stage import Freeze, Grow
from raystage.errors import InputError
from raystage.growth.checks import changed_fields
from raystage.growth.depth import LayerOrigin
from raystage.growth.operators import is_trained, layer_origins
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape, parameters

# What a growth may change in a stage with frozen layers: nothing that puts new elements into existing layers.
_GROWABLE = {"num_layers", "vocab_size", "context_length"}


@dataclass(frozen=True)
class Freezing:
    """layers: indices of the stage's own layers. duration: how long they are frozen, from the stage's start; None: all
    of it."""

    layers: tuple[int, ...]
    embeddings: bool
    duration: int | None

    def facts(self) -> dict[str, object]:
        return {"layers": self.layers, "embeddings": self.embeddings, "tokens": self.duration}

    def names(self, shape: ModelShape) -> frozenset[str]:
        """The names of the frozen parameters. Embeddings are lookup tables; where they are tied, the head is among
        them."""
        embeddings = FAMILIES[shape.family].embeddings if self.embeddings else ()
        return frozenset(p.name for p in parameters(shape) if p.layer in self.layers or p.name in embeddings)


def old_layers(origins: Sequence[LayerOrigin]) -> tuple[int, ...]:
    """The layers of the grown model that existed before: for each source layer the first copy that is unchanged.

    Further copies count as new, and so do layers without a source and layers that start silenced.
    """
    first: dict[int, int] = {}
    for layer, origin in enumerate(origins):
        if origin.source is not None and not (origin.new or origin.silenced):
            first.setdefault(origin.source, layer)
    return tuple(sorted(first.values()))


def find_freezing(
    freeze: Freeze | None, before: ModelShape | None, shape: ModelShape, grow: Grow | None, stage_duration: int
) -> Freezing | None:
    """What a stage of this duration freezes. before: the shape of the model that it starts from.

    Raises InputError, with the stage's own key, for what does not fit.
    """
    if freeze is None:
        return None
    if freeze.layers is None and not freeze.embeddings:
        problem = "found nothing to freeze; expected layers: old, new or a list such as [0, 1], or embeddings: true"
        raise InputError(problem, key="freeze")
    if grow is not None:
        _check_growth(freeze, before, shape, grow)
    lasts = freeze.lasts.count if freeze.lasts else None
    if lasts is not None and lasts > stage_duration:
        problem = f"found {lasts} in a stage of {stage_duration}; expected at most as many, or no for: all of the stage"
        raise InputError(problem, key="freeze.for.tokens")
    return Freezing(_layers(freeze, before, shape, grow), freeze.embeddings, lasts)


def _check_growth(freeze: Freeze, before: ModelShape, shape: ModelShape, grow: Grow) -> None:
    if is_trained(grow.operator):
        problem = f"found with grow.operator: {grow.operator}, whose new parts are trained along with the old ones"
        raise InputError(f"{problem}; expected another operator, or no freeze", key="freeze")
    changed = set(changed_fields(before, shape))
    wider = sorted(changed - _GROWABLE)
    if wider:
        problem = f"found in a stage that changes {wider[0]}, after which every layer has new elements among the old"
        raise InputError(f"{problem}; expected a growth of num_layers alone, or no freeze", key="freeze")
    longer = sorted(changed - {"num_layers"})
    if freeze.embeddings and longer:
        problem = f"found true in a stage that changes {longer[0]}, after which they have new rows among the old"
        raise InputError(f"{problem}; expected false", key="freeze.embeddings")


def _layers(freeze: Freeze, before: ModelShape | None, shape: ModelShape, grow: Grow | None) -> tuple[int, ...]:
    if freeze.layers is None:
        return ()
    if isinstance(freeze.layers, tuple):
        for layer in freeze.layers:
            if layer >= shape.num_layers:
                there = f"expected layers from 0 to {shape.num_layers - 1}"
                raise InputError(f"found {layer} in a model of {shape.num_layers} layers; {there}", key="freeze.layers")
        return tuple(sorted(set(freeze.layers)))
    if grow is None:
        problem = f"found {freeze.layers!r} in a stage without grow, which has neither old layers nor new ones"
        raise InputError(f"{problem}; expected a list such as [0, 1]", key="freeze.layers")
    old = old_layers(layer_origins(before, shape, grow.operator, grow.options))
    chosen = old if freeze.layers == "old" else tuple(layer for layer in range(shape.num_layers) if layer not in old)
    if not chosen:
        found = f"found {freeze.layers!r}, but {grow.operator} makes no {freeze.layers} layers here"
        raise InputError(f"{found}; expected another choice", key="freeze.layers")
    return chosen
