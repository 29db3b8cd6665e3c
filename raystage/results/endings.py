"""What a stage ends with in place of its last checkpoint: an average of checkpoints, or a merged adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AverageRecord:
    """The average at the end of a stage, against the last single checkpoint.

    positions, weights: of its checkpoints in the run, and what each counts. best_eval_loss: the lowest of evaluations
    at these positions. is_kept: whether the stage ends with the average. single: the folder of the last checkpoint,
    from which a longer version of the stage continues. checkpoints: those that the stage has saved itself, for a longer
    version to average. seconds: of averaging, without evaluation.
    """

    positions: tuple[int, ...]
    weights: tuple[float, ...]
    eval_loss: float
    single_eval_loss: float
    best_eval_loss: float
    is_kept: bool
    single: str
    checkpoints: tuple[str, ...]
    seconds: float

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> AverageRecord:
        lists = {name: tuple(content[name]) for name in ("positions", "weights", "checkpoints")}
        return cls(**{**content, **lists})


@dataclass(frozen=True)
class AdapterRecord:
    """The adapter that a stage trained, merged at its end.

    modules: the number of matrices that it is beside. num_trained: of parameters, with those in full. eval_loss: of the
    merged model; unmerged_eval_loss: with the adapter beside the weights, in the precision of the training. keep:
    "beside" where its files lie with the checkpoint. single: the folder of the last checkpoint, from which a longer
    version of the stage continues. seconds: of merging, without evaluation.
    """

    rank: int
    alpha: float
    modules: int
    num_trained: int
    eval_loss: float
    unmerged_eval_loss: float
    keep: str
    single: str
    seconds: float
