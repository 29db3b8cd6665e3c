"""A stage's training on one worker: enter it, train, evaluate, save, record.

A worker may stop after any step. One that starts again finds the furthest whole checkpoint, and continues with the
same bits.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator

from raystage.errors import CheckpointError
from raystage.files.filesystem import Folder
from raystage.growth.apply import grown_steps
from raystage.growth.trained import is_learned
from raystage.objectives.judging import Scores
from raystage.plans import learning_rate
from raystage.plans.keys import trunk_key
from raystage.plans.stage import StagePlan
from raystage.plans.steps import rate_factor
from raystage.results.acceptance import check_growth
from raystage.results.data.data_use import counted_json
from raystage.results.endings import AdapterRecord, AverageRecord
from raystage.results.record import Evaluation, GrowthRecord, Progress, StageRecord
from raystage.storage.store import CHECKPOINTS, Store
from raystage.train import partitions, probe
from raystage.train.accounting import Accounting
from raystage.train.collectives import broadcast_object
from raystage.train.devices import forget_peak_memory, peak_memory_bytes
from raystage.train.ending import averaging, merging
from raystage.train.ending.record import finished_record
from raystage.train.ending.stopping import fired_now, is_time_up
from raystage.train.engine import StageEngine
from raystage.train.entry import Entry, fill, find_entry, fit_learned
from raystage.train.evaluation import Evaluator
from raystage.train.heartbeat import Heartbeat
from raystage.train.reading.ahead import ReadAhead
from raystage.train.reading.micro_batches import StepBatches
from raystage.train.saving import Counts, Saver, Send
from raystage.train.scoring.losses import Losses, find_losses
from raystage.train.teacher import models_of
from raystage.train.texts import open_texts
from raystage.train.timing.due import SaveClock, crossed, point_steps
from raystage.train.timing.together import done_together


@dataclass(frozen=True)
class JobContext:
    """What all stages of a job have in common on a worker.

    run: the name of the run that the job belongs to. send(kind, stage key, what): takes messages for the driver; called
    on the first worker only.
    """

    run: str
    store: Store
    saver: Saver
    send: Send
    heartbeat: Heartbeat


class StageRunner:
    """One stage on one worker. losses: that its text is sorted by. known: the scores of the engine's model on this
    stage's held-out text, if known."""

    def __init__(
        self, stage: StagePlan, context: JobContext, engine: StageEngine, losses: Losses, known: Scores | None = None
    ) -> None:
        self.stage, self.context, self.engine = stage, context, engine
        self.store, self.saver, self.heartbeat = context.store, context.saver, context.heartbeat
        self.save_clock = SaveClock(stage.training.checkpoint.every_seconds)
        self.heartbeat.does("reading the text")
        self.texts = done_together(lambda: open_texts(stage, losses.by_name), self.heartbeat)
        self.windows = self.texts.train
        self.accounting = Accounting(stage, engine, losses.record)
        self.evaluator = Evaluator(stage, engine, self.texts.held_out, self.accounting, known)

    @property
    def progress(self) -> Progress:
        return self.accounting.progress

    # --- entering and leaving -----------------------------------------------------------------

    @classmethod
    def enter(cls, stage: StagePlan, context: JobContext) -> StageRunner:
        """Build the stage's model and fill this worker's part of it."""
        forget_peak_memory()
        losses = find_losses(stage, context.store, context.heartbeat)
        entry = find_entry(stage, context.store)
        source_steps = entry.source.steps if entry.source else {}
        steps = grown_steps(entry.rules, source_steps)
        done = entry.source.manifest.step - stage.start_steps if entry.resumed else 0
        runner = cls(stage, context, StageEngine(stage, steps, done, models_of(stage, context.store)), losses)
        began = time.monotonic()
        fitted = None
        if stage.growth is not None and is_learned(stage.growth.operator) and not entry.resumed:
            fitted = fit_learned(runner.engine, entry.source, runner.windows)
        fill(runner.engine, entry, steps, stage.drawn_with, fitted)
        seconds = time.monotonic() - began
        if entry.resumed:
            runner.accounting.resume(Progress.from_json(entry.source.manifest.progress), entry.prefix)
            runner._send("resumed", runner.progress)
        elif stage.growth is not None and stage.parent_key is not None:
            runner.progress.flops += stage.growth_flops
            runner._certify(entry, seconds)
        # The first worker decides for all: they must stop together.
        check_growth(stage, broadcast_object(runner.progress.growth))
        entry.close()
        runner.accounting.start()
        if fitted is not None:  # so that workers that start again need not fit again
            runner._save(last=False, wait=True)
        return runner

    def into(self, stage: StagePlan) -> StageRunner:
        """Continue with a stage that differs from this one only in its place in the run."""
        self.engine.end_growth()
        losses = find_losses(stage, self.store, self.heartbeat)
        return StageRunner(stage, self.context, self.engine, losses, self.evaluator.last)

    def leave(self) -> None:
        """Give the engine's memory back: the next stage builds another engine. The last call on this object."""
        self.engine.destroy()
        del self.engine, self.accounting, self.evaluator  # the latter two refer to the engine
        gc.collect()  # an engine and its hooks refer to each other
        get_accelerator().empty_cache()

    def _certify(self, entry: Entry, seconds: float) -> None:
        """Measure what the growth did."""
        joules = self.accounting.joules_of_growth()
        before = self.store.record(self.stage.parent_key).eval_loss
        loss_after, of_model = self.evaluator.loss_after_growth, entry.of_model
        growth = GrowthRecord(
            operator=self.stage.growth.operator,
            optimizer_state=self.stage.growth.optimizer_state,
            seconds=seconds,
            certificate=probe.certify(self.engine, of_model.rules, of_model.source, before, loss_after, seconds),
            flops=self.stage.growth_flops,
            energy_joules=joules,
        )
        self.accounting.count_growth(growth)
        self._send("grown", growth)

    # --- training -----------------------------------------------------------------------------

    def train(self) -> bool:
        """Train to the end of the stage, save, and commit its record; or save and leave, if the driver asks for it.

        Returns whether the stage is finished.
        """
        self._send("started", self.progress.steps - self.stage.start_steps)
        if not self.progress.evaluations:
            self._evaluate()
        with ReadAhead(self.engine.steps_of(self.stage, self.windows, self.progress)) as ahead:
            ended = self._train(ahead)
        if ended is not None:
            self._finish(ended)
        return ended is not None

    def _train(self, ahead: ReadAhead) -> str | None:
        """Step until the stage ends. Returns why it ends; None if the driver asked to leave before that."""
        ended = self._end()
        while ended is None:
            before = self.progress.position
            self._step(ahead.next_step())
            self.saver.tell()
            self._compare_duplicates()
            is_pointed = self.progress.steps % point_steps(self.stage.steps) == 0
            if is_pointed:
                self._point()
            is_over = self._is_at_cap() or (is_pointed and is_time_up(self.stage, self.progress))
            if is_over or crossed(self.stage.evaluate_every, before, self.progress.position):
                self._point()
                self._evaluate()
                ended = self._end()
            is_due = crossed(self.stage.checkpoint_every, before, self.progress.position, self.stage.start)
            is_due |= averaging.is_member(self.stage, self.progress.steps - self.stage.start_steps)
            if ended or is_due:
                self._point()
                self._save(last=ended is not None, wait=bool(ended))
            asked = self.heartbeat.stepped(self.save_clock.is_due)
            if (asked.leave or asked.save) and not (ended or is_due):
                self._save_between_points(asked.leave)
            if asked.leave and not ended:
                self.saver.wait()
                return None
        return ended

    def _is_at_cap(self) -> bool:
        return self.progress.steps == self.stage.start_steps + self.stage.steps

    def _end(self) -> str | None:
        """Why the stage ends here: it is at its cap, or at an evaluation at which `until` holds. None if it does not.

        Workers that start again here come to the same answer: it depends only on what the checkpoint has.
        """
        if self._is_at_cap():
            return self._fired() or f"steps: all {self.stage.steps} of them"
        is_evaluated = self.progress.evaluations[-1].position == self.progress.position
        return self._fired() if is_evaluated else None

    def _fired(self) -> str | None:
        return fired_now(self.stage, self.progress)

    def _step(self, batches: StepBatches) -> None:
        stage, progress, batch = self.stage, self.progress, batches.amount
        # The rate in the middle of the step: it is zero neither in the first step nor in the last.
        lr = learning_rate.rate_at(stage.rate, progress.position + batch / 2) * rate_factor(stage.training, batch)
        loss = self.engine.train_step(batches, lr, progress.steps)
        flops = stage.step_costs.of_step(progress.steps - stage.start_steps)
        self.accounting.count_step(loss, batches.targets, batch, flops, lr)

    def _compare_duplicates(self) -> None:
        """Complete the certificate once duplicates have had time to become different."""
        step = self.progress.steps - self.stage.start_steps
        if probe.are_duplicates_due(self.stage, self.progress.growth, step):
            with self.accounting.measuring():
                self.progress.growth = probe.with_duplicates(self.engine, self.progress.growth, step)

    def _point(self) -> None:
        if point := self.accounting.make_point():
            self._send("trained", point)

    def _evaluate(self) -> None:
        """The last evaluation of a stage that ends with another model than it trained is told with that model's."""
        self.heartbeat.does("evaluating")
        point = self.evaluator.evaluate()
        if not (self.stage.averaging or self.stage.adapter) or self._end() is None:
            self._send("evaluated", point)

    # --- saving -------------------------------------------------------------------------------

    def _save(self, last: bool, wait: bool, delivered: str = "") -> None:
        """Every worker writes its own shard, then the first one the manifest. wait: until that is done, in any case."""
        self.heartbeat.does("saving")
        self.save_clock.restart()
        parts = [*partitions.partitions(self.engine.deepspeed), *self.engine.buffers.partitions()]
        counts = Counts(partitions.get_steps(self.engine.deepspeed), self.engine.head_starts)
        if wait or not self.stage.training.checkpoint.background:
            beside = self._write_probe if last and not self.stage.adapter else None
            self.saver.save(self.stage, parts, counts, self._standing, beside, delivered)
        else:
            self.saver.begin(self.stage, parts, counts, self._standing)

    def _save_between_points(self, leaves: bool) -> None:
        """Not where a loss is no number: the next point ends the training, and the last good checkpoint stays."""
        with self.accounting.pending_aside() as are_finite:
            if leaves or are_finite:
                self._save(last=False, wait=leaves)

    def _standing(self) -> Progress:
        self.accounting.tick()
        self.progress.num_workers = self.engine.world
        return self.progress

    def _write_probe(self, folder: Folder) -> None:
        probe.write_probe(self.engine, folder, self.evaluator.judging)

    def _finish(self, ended: str) -> None:
        """Commit the record: the stage is finished."""
        singles = tuple(self.progress.evaluations)
        average = self._average() if self.stage.averaging else None
        adapter = self._merge() if self.stage.adapter else None
        self.accounting.count_energy()  # of the last checkpoint
        peak = torch.tensor(float(peak_memory_bytes()), dtype=torch.float64, device=self.engine.device)
        comm.all_reduce(peak, op=comm.ReduceOp.MAX)
        if self.engine.rank == 0:
            found = self._record(int(peak.item()), ended, singles, self._delivered(average))
            found = replace(found, average=average, adapter=adapter)
            record = self.store.commit_record(found, trunk_key(self.stage))
            self._send("finished", record)
        comm.barrier()

    def _average(self) -> AverageRecord | None:
        """Average the stage's last checkpoints. Where that is the better model, the stage ends with it: it is saved,
        and its evaluation takes the place of the last one."""
        stage, progress = self.stage, self.progress
        members = broadcast_object(averaging.members_at_end(stage, self.store, progress.steps - stage.start_steps))
        if members is None:
            self._send("evaluated", progress.evaluations[-1])
            return None
        self.heartbeat.does("averaging")
        began = time.monotonic()
        averaging.fill_average(self.engine, members)
        seconds = time.monotonic() - began
        self.evaluator.evaluate()
        folder, single = self.store.stage_folder(stage.key), self._final_checkpoint()
        average = averaging.record_of(members, folder, single, progress.evaluations, seconds)
        del progress.evaluations[-2 if average.is_kept else -1]
        if average.is_kept:
            self._save(last=True, wait=True, delivered="average")
        self._send("evaluated", progress.evaluations[-1])
        return average

    def _merge(self) -> AdapterRecord:
        """Merge the adapter into the weights. The stage ends with that model, and its evaluation takes the place of the
        last one."""
        stage, evaluations = self.stage, self.progress.evaluations
        self.heartbeat.does("merging the adapter")
        merged = merging.merge(self.engine, self.store)
        self.evaluator.evaluate()
        found = merging.record_of(stage, evaluations, self._final_checkpoint(), merged.seconds)
        del evaluations[-2]

        def beside(folder: Folder) -> None:
            self._write_probe(folder)
            merging.write_files(stage, merged.trained, folder)

        self.saver.save(stage, merged.parts, Counts({}, {}), self._standing, beside, "merged")
        self._send("evaluated", evaluations[-1])
        return found

    def _record(self, peak_bytes: int, ended: str, singles: Sequence[Evaluation], delivered: str) -> StageRecord:
        """singles: the evaluations of the model as it was trained. delivered: the checkpoint that it ends with."""
        best = self.store.best_checkpoints(self.stage.key, self.stage.training.checkpoint.keep_best, singles)
        return replace(
            finished_record(self.stage, self.progress, delivered),
            num_workers=self.engine.world,
            peak_memory_bytes=peak_bytes,
            data=counted_json(self.stage, self.texts.counted),
            best_checkpoints=best,
            stopped_by=ended,
            compiled_graphs=self.engine.compiled_graphs,
            trained_for=self.context.run,
        )

    def _delivered(self, average: AverageRecord | None) -> str:
        """The checkpoint that the next stage starts from, as a record names it."""
        kind = "merged" if self.stage.adapter else "average" if average and average.is_kept else ""
        if not kind:
            return self._final_checkpoint()
        return f"{CHECKPOINTS}/{self.store.delivered_folder(self.stage.key, kind, self.saver.attempt).name}"

    def _final_checkpoint(self) -> str:
        """Where this stage ended. It was written before if only the record was missing when the stage was entered."""
        latest = self.store.latest_checkpoint(self.stage.key, self.saver.attempt)
        if latest is None:
            raise CheckpointError(f"{self.store.stage_folder(self.stage.key).uri}: no checkpoint of the finished stage")
        return f"{CHECKPOINTS}/{latest.name}"

    def _send(self, kind: str, what: Any) -> None:
        if self.engine.rank == 0:
            self.context.send(kind, self.stage.key, what)
