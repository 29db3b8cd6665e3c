"""Models whose parameters no table lists: a `torch.nn.Module` of the user's own, and any other architecture of
transformers. What was found by looking at such a model once, when a plan was made (`models.networks.inspection`), is
kept in its shape: checkpoints and growth need no code of the user's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from raystage.models.table import Axis, Family, Head, ParameterSpec

# Families of the schedule without a table of their own.
OWN, ANY = "module", "transformers"


@dataclass(frozen=True)
class OwnModel:
    """A model as it was found.

    reference: the user's function that builds it ("" of an architecture of transformers). code: the name of the
    function, and the SHA-256 of its file. options: what it is built from, as JSON. before, layer, after: its
    parameters and buffers. embeddings: the names of lookup tables. norm: what its norms are, as in `Family`.

    costs: numbers (c, a, b) such that a forward pass over one sample of n positions takes c + a*n + b*n^2 FLOPs.
    """

    reference: str
    code: tuple[str, ...]
    options: str
    before: tuple[ParameterSpec, ...]
    layer: tuple[ParameterSpec, ...]
    after: tuple[ParameterSpec, ...]
    embeddings: tuple[str, ...]
    norm: str
    costs: tuple[str, str, str]

    def flops(self, length: int) -> int:
        """Training FLOPs of one sample: three times a forward pass."""
        constant, linear, square = map(Fraction, self.costs)
        return int(3 * (constant + linear * length + square * length**2))

    def to_text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, default=sorted)

    def facts(self) -> str:
        """All that a key depends on: not where the user's file lies."""
        return replace(self, reference="").to_text()

    def same_rows(self, other: OwnModel) -> bool:
        """Whether two models differ in nothing but sizes that grow."""
        return all(
            {_anywhere(row) for row in getattr(self, place)} == {_anywhere(row) for row in getattr(other, place)}
            for place in ("before", "layer", "after")
        )


def _anywhere(row: ParameterSpec) -> ParameterSpec:
    return replace(row, layers=None)


@lru_cache(maxsize=1024)
def own_model(text: str) -> OwnModel:
    """The reverse of `to_text`. Raises ValueError, KeyError or TypeError for other text."""
    content = json.loads(text)
    rows = {place: tuple(map(_row, content.pop(place))) for place in ("before", "layer", "after")}
    lists = {name: tuple(content.pop(name)) for name in ("code", "embeddings", "costs")}
    return OwnModel(**content, **rows, **lists)


def _row(content: dict[str, Any]) -> ParameterSpec:
    axes = tuple(Axis(one["role"], tuple(one["units"]), one["fixed"]) for one in content.pop("axes"))
    layers = content.pop("layers")
    return ParameterSpec(**content, axes=axes, layers=None if layers is None else frozenset(layers))


def is_own_model(text: object) -> bool:
    """Whether a manifest's text can be one. None names a function: what comes from elsewhere runs no code."""
    try:
        return isinstance(text, str) and (not text or not own_model(text).reference)
    except (ValueError, KeyError, TypeError):
        return False


@lru_cache(maxsize=1024)
def own_table(text: str, family: str) -> Family:
    """The table of such a model."""
    own = own_model(text)
    return replace(
        BARE[family], before=own.before, layer=own.layer, after=own.after, embeddings=own.embeddings, norm=own.norm,
        heads={},
    )  # fmt: skip


_HEADS = {"classes": Head("", ()), "pixels": Head("", (), output="reconstruction")}
# What holds of every such model before one was looked at. Their function decides what they learn.
BARE = {
    name: Family(
        name=name, before=(), layer=(), after=(), embeddings=(), head="", rotary=False, objective="",
        module="raystage.models.networks.own_build", heads=_HEADS,
    )
    for name in (OWN, ANY)
}  # fmt: skip
