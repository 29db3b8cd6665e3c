"""Writes the checkpoints of a job, in background threads if the schedule asks for that.

At a save in the background every worker copies what it saves into host memory and continues training. Its thread writes
the copy; the first worker's thread commits the manifest when all shards are written. The threads communicate through a
process group that nothing else uses, so that the training never waits for a thread. All threads end with the same
outcome. It is read only where all workers wait for it, so that an error is raised on all of them at once.

The two phases are "snapshot" and "persist" of CheckFreq (Mohan et al., FAST 2021).
"""

from __future__ import annotations

import copy
import math
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

from raystage.files.filesystem import Folder
from raystage.growth.counts import HeadStarts
from raystage.plans.stage import StagePlan
from raystage.results.record import Progress
from raystage.storage import checkpoint
from raystage.storage.shards.contents import Shards
from raystage.storage.shards.telling import Told, packed_steps, placed_as_told, told, unpacked_steps
from raystage.storage.shards.writing import shard_name
from raystage.storage.store import Store
from raystage.train.collectives import broadcast_object, gather_objects, portable
from raystage.train.ending.averaging import wanted_positions
from raystage.train.partitions import Partition
from raystage.train.state.shards import Fragment, fragments_of, held_shapes, make_manifest, write_fragments

Result = TypeVar("Result")
Send = Callable[[str, str, Any], None]

# The largest block of host memory, in elements: 256 MiB. torch rounds pinned memory up to a power of two, which could
# nearly double a single block for everything.
BLOCK_NUMEL = 2**26
# Of the saving thread. If no core is free, a thread of niceness 10 gets a tenth of the time of the training's threads.
NICENESS = 10


@dataclass(frozen=True)
class Counts:
    """steps: of the parameters of which this worker holds a part. head_starts: of all parameters."""

    steps: dict[str, int]
    head_starts: Mapping[str, HeadStarts]


@dataclass(frozen=True)
class _Save:
    """A checkpoint that is being written: this worker's part of it."""

    stage: StagePlan
    folder: Folder
    fragments: list[Fragment]
    counts: Counts
    is_delivered: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """The elements of every parameter of the checkpoint."""
        return {name: math.prod(shape) for name, shape in held_shapes(self.stage, self.is_delivered).items()}


class Saver:
    """Writes checkpoints, one at a time. All workers call its methods at the same points.

    attempt: part of the names of the checkpoint folders. send(kind, stage key, what): called on the first worker only,
    by the thread that trains. in_background: whether `begin` will be called.
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
        """Wait for a checkpoint that is being written. If the thread still ran at the end of Python, the process would
        abort. It ends by itself, at the latest after the timeout of the process group."""
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
        delivered: str = "",
    ) -> None:
        """Save, and return when the checkpoint is complete.

        standing: gives the progress to save. write_beside: writes more into the folder, before the manifest.
        delivered: what is made of the stage's checkpoints, "average" or "merged": no training continues from it.
        Collective, like `begin` and `wait`. Raises StorageError on all workers if one of them meets it.
        """
        self.wait()
        task = self._task(stage, standing().position, fragments_of(parts), counts)
        if delivered:
            folder = self.store.delivered_folder(stage.key, delivered, self.attempt)
            task = replace(task, folder=folder, is_delivered=True)
        written = self._written(task, None)
        if write_beside is not None:
            write_beside(task.folder)
        self._committed(task, written, standing(), None)
        self._say_saved(task)

    def begin(
        self, stage: StagePlan, parts: Iterable[Partition], counts: Counts, standing: Callable[[], Progress]
    ) -> None:
        """Copy what is to be saved, and return; a thread writes the copy. The next call of `wait`, `save` or `begin`
        raises the error that it meets."""
        self.wait()
        copies = self._copies.of(fragments_of(parts))
        progress = copy.deepcopy(standing())
        task = self._task(stage, progress.position, copies, counts)
        self._running = task, self._threads.submit(self._finish, task, progress)

    def wait(self) -> None:
        """Wait for the save in the background, if there is one. Raises the error that it met."""
        if self._running is not None:
            (task, future), self._running = self._running, None
            future.result()
            self._say_saved(task)

    def tell(self) -> None:
        """Send the driver a message if a save in the background is complete. Called between two steps; not
        collective."""
        if self._rank == 0 and self._running is not None:
            future = self._running[1]
            if future.done() and future.exception() is None:
                self.wait()

    def _task(self, stage: StagePlan, position: int, fragments: list[Fragment], counts: Counts) -> _Save:
        return _Save(stage, self.store.checkpoint_folder(stage.key, position, self.attempt), fragments, counts)

    def _say_saved(self, task: _Save) -> None:
        if self._rank == 0:
            self._send("saved", task.stage.key, task.folder.name)

    def _finish(self, task: _Save, progress: Progress) -> None:
        """The work of the thread."""
        self._committed(task, self._written(task, self._group), progress, self._group)

    def _written(self, task: _Save, group: Any) -> list[tuple[Told, dict[int, int]]]:
        """Write this worker's shard. Returns, on the first worker, what is to be known of all shards, each with the
        steps that its worker knows."""

        def write() -> tuple[Told, dict[int, int]]:
            written = write_fragments(task.fragments, task.folder, shard_name(self._rank, self._world))
            sizes = task.sizes
            return told(written, sizes, self._rank, self._world), packed_steps(task.counts.steps, sizes)

        return _agreed(write, group)

    def _committed(self, task: _Save, written: list, progress: Progress, group: Any) -> None:
        """On the first worker, write the manifest and delete older checkpoints. The others wait for it."""

        def commit() -> None:
            steps = unpacked_steps((known for _, known in written), task.sizes)
            shards: Shards = placed_as_told([one for one, _ in written], task.sizes)
            starts, delivered = task.counts.head_starts, task.is_delivered
            checkpoint.commit(task.folder, make_manifest(task.stage, shards, steps, progress, starts, delivered))
            if not task.is_delivered:
                self._drop_older(task, progress)

        _agreed(commit if self._rank == 0 else lambda: None, group)

    def _drop_older(self, task: _Save, progress: Progress) -> None:
        stage, keep = task.stage, task.stage.training.checkpoint
        averaged = wanted_positions(stage, progress.steps - stage.start_steps)
        self.store.drop_older_checkpoints(
            stage.key, keep.keep_last, keep.keep_best, progress.evaluations, task.folder.name, averaged
        )


class HostCopies:
    """Host memory for a copy of what a worker saves. The next save uses it again if it needs the same size."""

    def __init__(self) -> None:
        self._blocks: list[torch.Tensor] = []

    def of(self, fragments: list[Fragment]) -> list[Fragment]:
        """The fragments with copied values, which are valid until the next call. Copies from a GPU are in pinned
        memory."""
        from_device = any(one.values.device.type != "cpu" for one in fragments)
        groups = list(_in_blocks(fragments))
        sizes = [sum(one.values.numel() for one in group) for group in groups]
        if sizes != [block.numel() for block in self._blocks]:
            self._blocks.clear()  # free this memory before more is allocated
            self._blocks += [torch.empty(size, dtype=torch.float32, pin_memory=from_device) for size in sizes]
        copies = []
        for block, group in zip(self._blocks, groups, strict=True):
            for one, target in zip(group, block.split([one.values.numel() for one in group]), strict=True):
                copies.append(replace(one, values=target.copy_(one.values, non_blocking=True)))
        if from_device:
            get_accelerator().synchronize()
        return copies


def _in_blocks(fragments: list[Fragment]) -> Iterator[list[Fragment]]:
    """In order, in groups that fit into one block each."""
    group: list[Fragment] = []
    numel = 0
    for one in fragments:
        if group and numel + one.values.numel() > BLOCK_NUMEL:
            yield group
            group, numel = [], 0
        group.append(one)
        numel += one.values.numel()
    if group:
        yield group


def _be_nice() -> None:
    """Give the training priority. Only on Linux does each thread have a niceness of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _agreed(action: Callable[[], Result], group: Any) -> list[Result]:
    """Run `action` on all workers of the group. Returns all results, by rank, on the first worker, and nothing on the
    others. If it fails on one worker, this raises on all of them."""
    own: Exception | None = None
    result = None
    try:
        result = action()
    except Exception as error:  # raised below, after the others have been told
        own = error
    outcomes = gather_objects((result, own and portable(own)), group)
    first = broadcast_object(next((error for _, error in outcomes if error is not None), None), group)
    if own is not None:
        raise own
    if first is not None:
        raise first
    return [result for result, _ in outcomes]
