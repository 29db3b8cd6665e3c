"""The average of a stage's last checkpoints, at its end, on the workers: found, computed, and held against the last.

Every worker reads the slices that its own partition needs, whatever the number of workers and the ZeRO stage that wrote
them. The optimizer's moments and step counts stay those of the last checkpoint: they describe the gradients where the
training is, and an average of them would describe no point of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch

from raystage.errors import CheckpointError
from raystage.files.filesystem import Folder
from raystage.plans.keys import key_at, trunk_key
from raystage.plans.stage import StagePlan
from raystage.results.endings import AverageRecord
from raystage.results.record import Evaluation
from raystage.storage.averaging import averaged
from raystage.storage.store import CHECKPOINTS, Store
from raystage.train import partitions
from raystage.train.engine import StageEngine
from raystage.train.state.opening import opened_by_all
from raystage.train.state.shards import in_pieces

# --- which checkpoints ------------------------------------------------------------------------


def wanted_positions(stage: StagePlan, steps: int) -> tuple[int, ...]:
    """The positions of checkpoints to keep for the average after `steps` steps: those of the planned end, or, where the
    stage may end at any time, those of an end here."""
    return stage.member_positions(steps if stage.until else stage.steps)


def is_member(stage: StagePlan, steps: int) -> bool:
    """Whether the checkpoint after so many steps of the stage is one that it may be averaged over."""
    if stage.averaging is None or not stage.averaging.saves_after(steps, stage.step_schedule):
        return False
    position = stage.start + stage.step_schedule.duration(steps)
    return stage.until is not None or position in wanted_positions(stage, steps)


def find_members(stage: StagePlan, store: Store, positions: Collection[int]) -> dict[int, Folder]:
    """The complete checkpoints at these positions of the run, as far as there are any: of the stage itself, or of a
    shorter version of it, which has the same bits there."""
    found: dict[int, Folder] = {}
    for key in _versions(stage, store) if positions else ():
        for position in set(positions) - found.keys():
            if (folder := store.checkpoint_at(key, position)) is not None:
                found[position] = folder
    return found


def _versions(stage: StagePlan, store: Store) -> Iterator[str]:
    yield stage.key
    for steps, key in store.trunk(trunk_key(stage)):
        if steps < stage.steps and key_at(stage, steps) == key:
            yield key


def has_members_up_to(stage: StagePlan, store: Store, position: int) -> bool:
    """Whether the training can continue from a position: what the average needs up to there is still in the store."""
    steps = stage.step_schedule.steps_for(position - stage.start)
    needed = [one for one in wanted_positions(stage, steps) if one < position]
    return len(find_members(stage, store, needed)) == len(needed)


# --- at the end -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Members:
    """The checkpoints of an average, the earliest first, with their weights."""

    positions: tuple[int, ...]
    weights: tuple[float, ...]
    folders: tuple[Folder, ...]

    def own(self, folder: Folder) -> tuple[str, ...]:
        """Those in the stage's own folder, as a record names them."""
        own = (folder / CHECKPOINTS).uri
        return tuple(f"{CHECKPOINTS}/{one.name}" for one in self.folders if one.uri == f"{own}/{one.name}")


def members_at_end(stage: StagePlan, store: Store, steps: int) -> Members | None:
    """The checkpoints to average after all `steps` steps; None where there is but one, as in a stage that ended early.

    Raises CheckpointError where one of them is gone.
    """
    positions = stage.member_positions(steps)
    if len(positions) < 2:
        return None
    found = find_members(stage, store, positions)
    if missing := [position for position in positions if position not in found]:
        where = store.stage_folder(stage.key).uri
        raise CheckpointError(f"{where}: no checkpoint at {stage.unit} {missing[0]}, which the stage's average needs")
    return Members(positions, stage.averaging.weights(positions), tuple(found[one] for one in positions))


def fill_average(engine: StageEngine, members: Members) -> None:
    """Set the weights that this worker's optimizer holds to the average, and buffers too; then update the model's
    weights from them.

    Collective. Needs memory for a fragment of each checkpoint besides.
    """
    with ExitStack() as opened:
        sources = [opened.enter_context(closing(opened_by_all(folder))) for folder in members.folders]
        measured = engine.buffers.partitions()
        for part in (*partitions.partitions(engine.deepspeed), *measured):
            held = part.tensors["fp32"]
            for first, last in in_pieces(0, part.stop - part.start):
                piece = part.start + first, part.start + last
                held[first:last].copy_(torch.from_numpy(averaged(sources, members.weights, part.parameter, *piece)))
    engine.buffers.fill_from(measured)
    partitions.refresh(engine.deepspeed)


def record_of(
    members: Members, folder: Folder, single: str, evaluations: Sequence[Evaluation], seconds: float
) -> AverageRecord:
    """What became of an average whose evaluation is the last one, after that of the last single checkpoint.

    folder: of the stage. single: its last checkpoint, as a record names it.
    """
    *singles, average = evaluations
    return AverageRecord(
        positions=members.positions,
        weights=members.weights,
        eval_loss=average.loss,
        single_eval_loss=singles[-1].loss,
        best_eval_loss=min(one.loss for one in singles if one.position in members.positions),
        is_kept=average.loss < singles[-1].loss,  # not where it is no number
        single=single,
        checkpoints=members.own(folder),
        seconds=seconds,
    )
