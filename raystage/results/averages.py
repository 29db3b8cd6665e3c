"""What became of the average of a stage's last checkpoints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AverageRecord:
    """The average at the end of a stage, against the last single checkpoint.

    positions, weights: of its checkpoints in the run, and what each counts. eval_loss: of the average;
    single_eval_loss: of the last checkpoint. is_kept: whether the stage ends with the average. best_eval_loss: the
    lowest of the evaluations at the checkpoints' positions. single: the last checkpoint's folder, from which a longer
    version of the stage continues. checkpoints: folders of those that the stage has saved itself, for a longer version
    to average. seconds: of averaging, without evaluation.
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
    def from_json(cls, content: dict) -> AverageRecord:
        lists = {name: tuple(content[name]) for name in ("positions", "weights", "checkpoints")}
        return cls(**{**content, **lists})
