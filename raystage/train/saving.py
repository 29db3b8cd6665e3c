"""A job's checkpoints, written by threads of their own while the training goes on.

At a save every worker copies what it saves into host memory and trains on; its thread writes the copy, and the first
worker's commits the manifest once all shards are written. The threads agree through a process group that nothing else
uses, so that no collective of the training depends on how far a thread is. Every thread ends with the same outcome, and
it is looked at only where all workers wait for it: an error comes up on all of them at once.

Copying apart from writing is the "snapshot" and "persist" of CheckFreq (Mohan et al., FAST 2021).
"""

from __future__ import annotations

import copy
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator

from raystage.errors import RaystageError
from raystage.files.filesystem import Folder
from raystage.growth.counts import HeadStarts
from raystage.plan.plan import StagePlan
from raystage.results.record import Progress
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Shard
from raystage.storage.store import Store
from raystage.train.collectives import all_gather_objects
from raystage.train.handover import Held, held_by, make_manifest, write_held
from raystage.train.partitions import Partition

Result = TypeVar("Result")
Send = Callable[[str, str, Any], None]

# The longest stretch of host memory asked for at once, in elements: 256 MiB. torch rounds pinned memory up to a power
# of two, which would nearly double one stretch for all.
BLOCK_NUMEL = 2**26
# How nice a thread is: where no core is free, one of 10 gets a tenth of the time that the training's threads get.
NICENESS = 10


@dataclass(frozen=True)
class Counts:
    """The optimizer steps of the parameters that this worker knows, and of all parameters the head starts."""

    steps: dict[str, int]
    head_starts: Mapping[str, HeadStarts]


@dataclass(frozen=True)
class _Save:
    """A checkpoint on its way: what this worker writes of it, and the optimizer steps that it knows."""

    stage: StagePlan
    folder: Folder
    held: list[Held]
    counts: Counts


class Saver:
    """Writes checkpoints, one at a time. All workers make one at the same point, and call it at the same points.

    attempt: part of the names of what is written. `send(kind, stage key, what)` is called on the first worker only, by
    the thread that trains. in_background: whether `begin` will be called.
    """

    def __init__(self, store: Store, attempt: str, send: Send, in_background: bool) -> None:
        self.store, self.attempt = store, attempt
        self._send = send
        self._rank, self._world = comm.get_rank(), comm.get_world_size()
        self._group = torch.distributed.new_group(backend="gloo") if in_background else None
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raystage-save", initializer=_be_nice)
        self._copies = HostCopies()
        self._running: tuple[_Save, Future[None]] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        """Let what is being written come to its end. A thread that Python's own end met would abort the process; this
        one ends by itself, at the latest when the group's time runs out."""
        self._threads.shutdown()
        if self._group is not None:
            torch.distributed.destroy_process_group(self._group)

    def save(
        self,
        stage: StagePlan,
        parts: Iterable[Partition],
        counts: Counts,
        standing: Callable[[], Progress],
        write_beside: Callable[[Folder], None] | None = None,
    ) -> None:
        """Save, and return when it is done. `write_beside` writes more into the folder, before the manifest.

        Collective, like `begin` and `wait`. Raises on all workers what one of them ran into: StorageError.
        """
        self.wait()
        task = self._task(stage, standing().tokens, held_by(parts), counts)
        written = self._written(task, None)
        if write_beside is not None:
            write_beside(task.folder)
        self._committed(task, written, standing(), None)
        self._say_saved(task)

    def begin(
        self, stage: StagePlan, parts: Iterable[Partition], counts: Counts, standing: Callable[[], Progress]
    ) -> None:
        """Save, and return when all that is saved is copied. What goes wrong then comes up at the next call of `wait`,
        `save` or `begin`. Raises what the save before this one ran into."""
        self.wait()
        held = self._copies.of(held_by(parts))
        progress = copy.deepcopy(standing())
        task = self._task(stage, progress.tokens, held, counts)
        self._running = task, self._threads.submit(self._finish, task, progress)

    def wait(self) -> None:
        """Wait for the save that is going on, if one is. Raises what it ran into."""
        if self._running is not None:
            (task, future), self._running = self._running, None
            future.result()
            self._say_saved(task)

    def tell(self) -> None:
        """Say of a save that it is done, if it is: for the first worker alone, between two steps."""
        if self._rank == 0 and self._running is not None:
            future = self._running[1]
            if future.done() and future.exception() is None:
                self.wait()

    def _task(self, stage: StagePlan, tokens: int, held: list[Held], counts: Counts) -> _Save:
        return _Save(stage, self.store.checkpoint_folder(stage.key, tokens, self.attempt), held, counts)

    def _say_saved(self, task: _Save) -> None:
        if self._rank == 0:
            self._send("saved", task.stage.key, task.folder.name)

    def _finish(self, task: _Save, progress: Progress) -> None:
        """What a thread does."""
        self._committed(task, self._written(task, self._group), progress, self._group)

    def _written(self, task: _Save, group: Any) -> list[tuple[Shard, dict[str, int]]]:
        """Write this worker's shard. Returns every worker's, with the steps that it knows."""
        name = checkpoint.shard_name(self._rank, self._world)
        return _agreed(lambda: (write_held(task.held, task.folder, name), task.counts.steps), group)

    def _committed(self, task: _Save, written: list, progress: Progress, group: Any) -> None:
        """Write the manifest and let older checkpoints go, on the first worker; the others wait for it."""

        def commit() -> None:
            steps = {name: step for _, known in written for name, step in known.items()}
            shards = tuple(shard for shard, _ in written)
            checkpoint.commit(task.folder, make_manifest(task.stage, shards, steps, progress, task.counts.head_starts))
            keep = task.stage.training.checkpoint
            self.store.drop_older_checkpoints(
                task.stage.key, keep.keep_last, keep.keep_best, progress.evaluations, task.folder.name
            )

        _agreed(commit if self._rank == 0 else lambda: None, group)


class HostCopies:
    """Host memory for a copy of what a worker saves, used again by the next save of as much."""

    def __init__(self) -> None:
        self._blocks: list[torch.Tensor] = []

    def of(self, held: list[Held]) -> list[Held]:
        """The same with its values copied; until the next call. From a GPU they come into pinned memory."""
        from_device = any(one.values.device.type != "cpu" for one in held)
        groups = list(_in_blocks(held))
        sizes = [sum(one.values.numel() for one in group) for group in groups]
        if sizes != [block.numel() for block in self._blocks]:
            self._blocks.clear()  # let go of what there is before more is asked for
            self._blocks += [torch.empty(size, dtype=torch.float32, pin_memory=from_device) for size in sizes]
        copies = []
        for block, group in zip(self._blocks, groups, strict=True):
            for one, room in zip(group, block.split([one.values.numel() for one in group]), strict=True):
                copies.append(replace(one, values=room.copy_(one.values, non_blocking=True)))
        if from_device:
            get_accelerator().synchronize()
        return copies


def _in_blocks(held: list[Held]) -> Iterator[list[Held]]:
    """In order, as many together as fit into a block."""
    group: list[Held] = []
    numel = 0
    for one in held:
        if group and numel + one.values.numel() > BLOCK_NUMEL:
            yield group
            group, numel = [], 0
        group.append(one)
        numel += one.values.numel()
    if group:
        yield group


def _be_nice() -> None:
    """Let the training go first. On Linux alone threads have a niceness of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _agreed(action: Callable[[], Result], group: Any) -> list[Result]:
    """What `action` gives on each of the group's workers, by rank. Raises on all of them where it fails on one."""
    own: Exception | None = None
    result = None
    try:
        result = action()
    except Exception as error:  # raised below, once the others know
        own = error
    told = all_gather_objects((result, own and _told(own)), group)
    if own is not None:
        raise own
    for _, error in told:
        if error is not None:
            raise error
    return [result for result, _ in told]


def _told(error: Exception) -> Exception:
    """An error as the other workers get it: raystage's own as it is, any other in words, since it may not travel."""
    if isinstance(error, RaystageError):
        return error
    return RuntimeError(f"worker {comm.get_rank()} could not save: {type(error).__name__}: {error}")
