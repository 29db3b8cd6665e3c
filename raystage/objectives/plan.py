"""The objective of a stage, as planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raystage.objectives.table import CAUSAL_LM, OBJECTIVES, ObjectiveSpec


@dataclass(frozen=True)
class ObjectivePlan:
    """name: in the table of objectives. options: what its learner is opened with, every value known.

    decisive: those of the options, and what else changes a stage's result, by content and not by place: for the key.
    num_ids: one more than the largest token id that it uses, where that is known.
    """

    name: str = CAUSAL_LM
    options: Mapping[str, Any] = field(default_factory=dict)
    decisive: Mapping[str, Any] = field(default_factory=dict)
    num_ids: int | None = None

    @property
    def entry(self) -> ObjectiveSpec:
        return OBJECTIVES[self.name]

    @property
    def judge(self) -> ObjectiveSpec:
        """Of whose loss and figures held-out data are judged by."""
        return OBJECTIVES[self.entry.judge]

    def facts(self) -> dict[str, Any]:
        """For a stage's key: nothing for `causal_lm`, whose keys are older than other objectives."""
        return {} if self.name == CAUSAL_LM else {"objective": {"name": self.name, **self.decisive}}


NEXT_TOKEN = ObjectivePlan()
