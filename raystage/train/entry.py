"""How a stage is entered: finds what it starts from, and fills this worker's partitions through a growth map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from deepspeed import comm

from raystage.errors import CheckpointError
from raystage.files.filesystem import Folder, open_folder
from raystage.growth.apply import Grown
from raystage.growth.counts import HeadStarts, grown_head_starts
from raystage.growth.learned import Fitted, Fitting, LearnedMaps, stacked
from raystage.growth.rules import GrowthMap, Rule, growth_map, initial_map
from raystage.growth.trained import fitted_map, is_learned
from raystage.models.build import drawn_weights
from raystage.models.hf_folder import open_model
from raystage.objectives.learner import Reader
from raystage.plans.initial import INIT_KEY, InitPlan, check_same
from raystage.plans.keys import key_at, trunk_key
from raystage.plans.stage import UNCHANGED, StagePlan
from raystage.results.record import StageRecord
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.huggingface import FolderWeights
from raystage.storage.store import Store, position_of
from raystage.train import partitions
from raystage.train.collectives import from_first
from raystage.train.ending.averaging import has_members_up_to
from raystage.train.engine import DTYPES, StageEngine
from raystage.train.partitions import Partition
from raystage.train.state.opening import finished_checkpoint, opened_by_all
from raystage.train.state.shards import in_pieces

# (parameter, state, start, into) -> nothing. Sets `into`, flat float32, to the slice that begins at `start`.
ReadInto = Callable[[str, str, int, np.ndarray], None]


# --- what a stage starts from -----------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """From which checkpoint a stage starts, and through which growth map.

    source: None for a new model. resumed: the checkpoint is from within the stage. prefix: the record of the shorter
    stage that has written this checkpoint; None if the stage itself has. base: of a stage with an adapter, what all of
    the model's own weights come from; source and rules are then of what is trained.
    """

    rules: GrowthMap
    source: Checkpoint | FolderWeights | None
    resumed: bool
    prefix: StageRecord | None = None
    base: Entry | None = None

    @property
    def of_model(self) -> Entry:
        """What the model's own weights come from."""
        return self.base or self

    def close(self) -> None:
        for source in (self.source, self.of_model.source):
            if source is not None:
                source.close()


def find_entry(stage: StagePlan, store: Store) -> Entry:
    """From the furthest checkpoint within the stage, its own or its prefix's; otherwise from the parent's checkpoint
    through the growth map; otherwise from new weights.

    If another kind of optimizer has written the parent's checkpoint, only its weights are used. A checkpoint within a
    stage with an adapter holds what is trained; the model's own weights come from where the stage began.
    """
    within, prefix = from_first(lambda: _furthest(stage, store))
    if stage.adapter:
        start = find_start(stage, store)
        if within is None:
            return Entry(_first_values(stage, start.rules), start.source, resumed=False, base=start)
        return Entry(_same(stage.adapter.trained(stage.shape)), opened_by_all(within), True, prefix, start)
    if within is not None:
        same = growth_map(stage.shape, stage.shape, "identity", "grow")
        return Entry(same, opened_by_all(within), resumed=True, prefix=prefix)
    return find_start(stage, store)


def find_start(stage: StagePlan, store: Store) -> Entry:
    """What the first step of the stage starts from."""
    if stage.init is not None:
        return initial_entry(stage, stage.init)
    if stage.parent_key is None:
        return Entry(initial_map(stage.shape), None, resumed=False)
    source, growth = opened_by_all(finished_checkpoint(store, stage.parent_key)), stage.growth or UNCHANGED
    policy = growth.optimizer_state if keeps_moments(stage, source) else "reset"
    if is_learned(growth.operator):
        return Entry(fitted_map(stage.shape), source, resumed=False)
    rules = growth_map(stage.parent_shape, stage.shape, growth.operator, policy, growth.options)
    return Entry(rules, source, resumed=False)


def _first_values(stage: StagePlan, rules: GrowthMap) -> GrowthMap:
    """Of an adapter, drawn by seed and name, with B = 0; and of what is trained in full, as the stage finds it. None of
    it has moments."""
    drawn = tuple(
        Rule(one.name, one.shape, "normal" if one.is_first else "zeros", "zeros", std=one.std)
        for one in stage.adapter.matrices(stage.shape)
    )
    return (*drawn, *(replace(rule, moments="zeros") for rule in rules if rule.target in stage.adapter.in_full))


def _same(shapes: Mapping[str, tuple[int, ...]]) -> GrowthMap:
    """Parameters as a checkpoint has them."""
    return tuple(Rule(name, one, "copy", "copy", (name,), one) for name, one in shapes.items())


def keeps_moments(stage: StagePlan, source: Checkpoint | FolderWeights) -> bool:
    """Whether the source has every state that the stage's optimizer keeps. Muon can take over Adam's moments; it has no
    second ones of matrices that Adam could take over."""
    optimizer = stage.training.optimizer
    if isinstance(source, Checkpoint) and source.manifest.optimizer.get("name") == "muon" != optimizer.name:
        return False
    return source.has(optimizer.moments)


def _furthest(stage: StagePlan, store: Store) -> tuple[Folder | None, StageRecord | None]:
    """The furthest checkpoint within the stage, and the record of the prefix that has written it, if one has."""
    own = next((one for one in store.checkpoints(stage.key) if _goes_on(stage, store, position_of(one.name))), None)
    done = position_of(own.name) - stage.start if own else 0
    prefix = find_prefix(stage, store, stage.step_schedule.steps_for(done))
    if prefix is None or not _goes_on(stage, store, stage.start + prefix.duration):
        return own, None
    return store.stage_folder(prefix.key) / prefix.last_checkpoint, prefix


def _goes_on(stage: StagePlan, store: Store, position: int) -> bool:
    """Whether the stage can end as planned from here: with the checkpoints before it that it is averaged over."""
    return stage.averaging is None or has_members_up_to(stage, store, position)


def find_prefix(stage: StagePlan, store: Store, beyond_steps: int = 0) -> StageRecord | None:
    """The longest finished stage that is the same as this one but shorter, with more than `beyond_steps` steps."""
    for steps, key in store.trunk(trunk_key(stage)):
        if beyond_steps < steps < stage.steps and key_at(stage, steps) == key:
            record = store.readable_record(key)
            if record is not None:
                return record
    return None


def initial_entry(stage: StagePlan, init: InitPlan) -> Entry:
    """From what the schedule's `init` names. Raises InputError if this worker finds it changed since it was planned."""
    source, growth = open_planned(init), stage.growth or UNCHANGED
    keeps = init.keeps_optimizer_state and keeps_moments(stage, source)
    policy = growth.optimizer_state if keeps else "reset"
    return Entry(growth_map(init.shape, stage.shape, growth.operator, policy, growth.options), source, resumed=False)


def open_planned(init: InitPlan, key: str = INIT_KEY) -> Checkpoint | FolderWeights:
    """The weights of a model from outside of the run. key: that names it in a schedule. Raises InputError as above."""
    folder = open_folder(check_same(init, key))
    return opened_by_all(folder) if init.is_checkpoint else FolderWeights(open_model(folder))


# --- filling the partitions -------------------------------------------------------------------


def fit_learned(engine: StageEngine, source: Checkpoint, windows: Reader) -> Fitted:
    """The grown weights of a `learned` growth, fitted on the first batches of the stage's own training data.

    Collective; the same on every worker. Each step takes a global batch, divided between the workers as in training, at
    the stage's own optimizer.lr. Every worker reads all of the source. Until this returns it holds one model of the
    target's size in fp32 and its gradients, whatever the ZeRO stage; activations are not recomputed.
    """
    stage = engine.stage
    batch, length = stage.training.global_batch, stage.sample_length(stage.shape.context_length)
    fitting = Fitting(
        LearnedMaps(stage.parent_shape, stage.shape),
        stacked(stage.parent_shape, source.read, engine.device),
        stage.training.optimizer.lr,
        comm.all_reduce,
        engine.learner.loss,
        DTYPES[stage.training.precision],
    )
    for step in range(stage.growth.options.fit_steps):
        first = (stage.start + step * batch) // length
        place = first, batch // length, length
        targets = engine.learner.num_targets(windows, *place)
        fitting.step(engine.shares(windows, *place), targets)
    return fitting.fitted()


def fill(engine: StageEngine, entry: Entry, steps: dict[str, int], seed: int, fitted: Fitted | None = None) -> None:
    """Compute and set every slice that this worker's optimizer holds, then update the model's weights from them.

    steps: the optimizer steps of each parameter. fitted: of a `learned` growth, whose weights no rule gives.
    """
    read = entry.source.read if entry.source else _nothing_to_read
    grown = fitted or Grown(entry.rules, read, seed, partial(drawn_weights, engine.stage.shape, seed))
    source = _checkpoint(entry.source) if fitted is None else None
    fill_partitions(partitions.partitions(engine.deepspeed), grown, source)
    if entry.base:
        own = Grown(entry.base.rules, entry.base.source.read, seed)
        fill_partitions(partitions.untrained(engine.deepspeed), own, _checkpoint(entry.base.source))
    measured = engine.buffers.partitions()
    fill_partitions(measured, grown, source)
    engine.buffers.fill_from(measured)
    partitions.set_steps(engine.deepspeed, steps)
    partitions.refresh(engine.deepspeed)
    done = entry.source.manifest.step - engine.stage.start_steps if entry.resumed else 0
    engine.count_new_apart(_head_starts(engine, entry, steps, done))
    engine.open_mask(done)


def _checkpoint(source: Checkpoint | FolderWeights | None) -> Checkpoint | None:
    return source if isinstance(source, Checkpoint) else None


def _head_starts(engine: StageEngine, entry: Entry, steps: dict[str, int], done: int) -> dict[str, HeadStarts]:
    """Of the elements that growth made new among old ones, now or earlier.

    A checkpoint from within a stage has none if they make no difference any more, or if an older version wrote it. In
    the second case those of the stage's own growth, `done` steps ago, are computed here.
    """
    if entry.base or not isinstance(entry.source, Checkpoint):
        return {}
    found = grown_head_starts(entry.rules, entry.source.head_starts, entry.source.steps)
    if entry.resumed and not found:
        for rule in engine.growth:
            found |= grown_head_starts((rule,), {}, dict.fromkeys(rule.sources, steps[rule.target] - done))
    return found


def fill_partitions(parts: Iterable[Partition], grown: Grown | Fitted, source: Checkpoint | None = None) -> None:
    """Set every slice that the partitions hold, in place. Needs memory for one fragment besides, and for what is read
    ahead (`shards.ahead`).

    source: what `grown` reads, if that is a checkpoint: it is read in few requests, and what is a plain copy comes
    directly into its place.
    """
    pieces = [piece for part in parts for state in part.tensors for piece in _pieces(part, state, grown, source)]
    if source is None:
        for piece in pieces:
            _set(piece, grown)
        return
    for piece in source.in_reading_order(pieces, lambda one: grown.reads(one.part.parameter, one.state, *one.slice)):
        _set(piece, grown, source.read_into)
    source.forget()


@dataclass(frozen=True)
class _Piece:
    """The part [first, last) of one tensor of a partition."""

    part: Partition
    state: str
    first: int
    last: int

    @property
    def slice(self) -> tuple[int, int]:
        """Where it lies in the parameter."""
        return self.part.start + self.first, self.part.start + self.last


def _pieces(part: Partition, state: str, grown: Grown | Fitted, source: Checkpoint | None) -> Iterator[_Piece]:
    """What is a plain copy is also cut as the source is, so that a piece needs no second fragment."""
    name = grown.copy_of(part.parameter, state) if source else None
    for start, stop in source.cuts(name, state, part.start, part.stop) if name else [(part.start, part.stop)]:
        for cut in in_pieces(start - part.start, stop - part.start):
            yield _Piece(part, state, *cut)


def _set(piece: _Piece, grown: Grown | Fitted, read_into: ReadInto | None = None) -> None:
    parameter, state = piece.part.parameter, piece.state
    held = piece.part.tensors[state][piece.first : piece.last]
    is_direct = read_into and held.device.type == "cpu" and held.dtype == torch.float32
    source = grown.copy_of(parameter, state) if is_direct else None
    if source is not None:
        read_into(source, state, piece.slice[0], held.detach().numpy())
        return
    values = grown.slice(parameter, state, *piece.slice)
    held.copy_(torch.from_numpy(np.require(values, requirements=["C", "W"])))


def _nothing_to_read(parameter: str, state: str, start: int, stop: int) -> np.ndarray:
    raise CheckpointError(f"{state} of {parameter} has no source to be read from")
