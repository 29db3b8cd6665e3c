"""A stage's training on one worker: enter it from whatever there is, train, evaluate, save, record.

Every step of the way may be the last: a worker that starts again finds the furthest whole checkpoint and goes on with
the same bits.
"""

from __future__ import annotations

import gc
import math
import platform
import time
from dataclasses import asdict, dataclass
from typing import Any

import deepspeed
import numpy as np
import torch
import transformers
from deepspeed import comm
from deepspeed.accelerator import get_accelerator

from raystage.data.tokens import Streams, TokenWindows, open_streams
from raystage.errors import CheckpointError, NonFiniteLoss
from raystage.files.filesystem import Folder
from raystage.growth.apply import grown_steps
from raystage.growth.trained import is_learned
from raystage.models.shape import flops_per_token
from raystage.objectives.metrics import added, values
from raystage.plan import learning_rate
from raystage.plan.keys import trunk_key
from raystage.plan.length import reads_clock
from raystage.plan.plan import StagePlan
from raystage.results.acceptance import check_growth
from raystage.results.costs import plus
from raystage.results.data_use import Counted
from raystage.results.record import Evaluation, GrowthRecord, Prefix, Progress, StageRecord, TrainPoint
from raystage.results.stopping import Seen, fired
from raystage.storage.store import Store
from raystage.train import partitions, probe
from raystage.train.collectives import all_gather_objects, broadcast_object
from raystage.train.energy import EnergyCount, open_meter
from raystage.train.engine import Scores, StageEngine
from raystage.train.fitting import fit
from raystage.train.handover import Entry, fill, find_entry
from raystage.train.hardware import forget_peak_memory, peak_flops_per_second, peak_memory_bytes
from raystage.train.heartbeat import Heartbeat
from raystage.train.saving import Counts, Saver, Send

POINT_EVERY_STEPS = 10
POINTS_PER_STAGE = 400


@dataclass(frozen=True)
class JobContext:
    """What all stages of a job have in common on a worker: where they come from and go to, who is told."""

    run: str
    store: Store
    saver: Saver
    send: Send
    heartbeat: Heartbeat


class StageRunner:
    """One stage on one worker."""

    def __init__(self, stage: StagePlan, context: JobContext, engine: StageEngine) -> None:
        self.stage, self.context, self.engine = stage, context, engine
        self.store, self.saver, self.heartbeat = context.store, context.saver, context.heartbeat
        self.progress = Progress.at_start(stage)
        self.heartbeat.does("reading the text")
        streams = open_streams(stage.data, stage.shape.vocab_size)
        self.counted = Counted.of_index(streams.index)
        self.reader = TokenWindows(streams.train, stage.window_tokens, stage.seed)
        self.held_out = evaluation_set(stage, streams)
        self._entered: Scores | None = None  # what the model that entered says to `held_out`, where that is known
        self._ended: Scores | None = None  # what it said to it last
        self._loss = torch.zeros((), device=engine.device)
        self._tokens, self._flops = 0, 0  # of the steps that `_loss` is of
        meter = open_meter()
        self._energy = EnergyCount(meter, all_gather_objects(meter and meter.name), engine.rank, self._sum)
        self._mark = time.monotonic()

    # --- entering -----------------------------------------------------------------------------

    @classmethod
    def enter(cls, stage: StagePlan, context: JobContext) -> StageRunner:
        """Build the stage's model and fill this worker's part of it."""
        forget_peak_memory()
        entry = find_entry(stage, context.store)
        source_steps = entry.source.steps if entry.source else {}
        steps = grown_steps(entry.rules, source_steps)
        done = entry.source.manifest.step - stage.start_steps if entry.resumed else 0
        runner = cls(stage, context, StageEngine(stage, steps, done))
        began = time.monotonic()
        fitted = None
        if stage.growth is not None and is_learned(stage.growth.operator) and not entry.resumed:
            fitted = fit(runner.engine, entry.source, runner.reader)
        fill(runner.engine, entry, steps, stage.seed, fitted)
        seconds = time.monotonic() - began
        if entry.resumed:
            runner.progress = Progress.from_json(entry.source.manifest.progress)
            runner._take_up_pending()
            runner._count_resize(entry)
            if entry.prefix:
                runner.progress.prefix = as_prefix(entry.prefix)
            runner._send("resumed", runner.progress)
        elif stage.growth is not None and stage.parent_key is not None:
            runner.progress.flops += stage.growth_flops
            runner._certify(entry, seconds)
        # One worker's word for all: they must stop together.
        check_growth(stage, broadcast_object(runner.progress.growth))
        if entry.source:
            entry.source.close()
        runner._begin_anew()
        if fitted is not None:  # so that no restart fits again
            runner._save(last=False, wait=True)
        return runner

    def into(self, stage: StagePlan) -> StageRunner:
        """Go on with a stage that differs from this one in nothing but its place in the run."""
        self.engine.end_growth()
        runner = StageRunner(stage, self.context, self.engine)
        runner._entered = self._ended
        return runner

    def leave(self) -> None:
        """Give the engine's memory back: the next stage builds another. Nothing can be done with this one any more."""
        self.engine.destroy()
        del self.engine
        gc.collect()  # an engine and its hooks refer to each other
        get_accelerator().empty_cache()

    def _certify(self, entry: Entry, seconds: float) -> None:
        """Measure what growing did, and say so."""
        joules = self._energy.since_last()
        before = self.store.record(self.stage.parent_key).eval_loss

        def loss_after(held_out: np.ndarray) -> float:
            """On the text that the source was evaluated on: mostly that of this stage, which then has its first."""
            if not np.array_equal(held_out, self.held_out):
                return self.engine.evaluate(held_out).loss
            self._entered = self._score()
            return self._entered.loss

        self.progress.growth = GrowthRecord(
            operator=self.stage.growth.operator,
            optimizer_state=self.stage.growth.optimizer_state,
            seconds=seconds,
            certificate=probe.certify(self.engine, entry.rules, entry.source, before, loss_after, seconds),
            flops=self.stage.growth_flops,
            energy_joules=joules,
        )
        self.progress.seconds += seconds
        self.progress.energy_joules = plus(self.progress.energy_joules, joules)
        self._send("grown", self.progress.growth)

    # --- training -----------------------------------------------------------------------------

    def train(self) -> bool:
        """Train to the end of the stage, save, and commit its record; or save and leave, where the driver asks for it.

        Returns whether the stage is finished.
        """
        self._send("started", self.progress.steps - self.stage.start_steps)
        if not self.progress.evaluations:
            self._evaluate()
        ended = self._end()
        while ended is None:
            before = self.progress.tokens
            self._step()
            self.saver.tell()
            self._compare_duplicates()
            is_pointed = self.progress.steps % self._point_steps() == 0
            if is_pointed:
                self._point()
            is_over = self._is_at_cap() or (is_pointed and self._is_time_up())
            if is_over or crossed(self.stage.evaluate_every_tokens, before, self.progress.tokens):
                self._point()
                self._evaluate()
                ended = self._end()
            is_due = crossed(self.stage.checkpoint_every_tokens, before, self.progress.tokens, self.stage)
            if ended or is_due:
                self._point()
                self._save(last=ended is not None, wait=bool(ended) or not self.stage.training.checkpoint.background)
            if self.heartbeat.stepped() and not ended:
                if not is_due:
                    self._set_pending_aside()
                    self._save(last=False, wait=True)
                self.saver.wait()
                return False
        self._finish(ended)
        return True

    def _is_at_cap(self) -> bool:
        return self.progress.steps == self.stage.start_steps + self.stage.steps

    def _end(self) -> str | None:
        """Why the stage ends here, where it does: at its cap, or at an evaluation that shows what `until` waits for.

        Asked again by workers that start again here, it is the same: all it looks at is in the checkpoint.
        """
        if self._is_at_cap():
            return self._fired() or f"steps: all {self.stage.steps} of them"
        is_evaluated = self.progress.evaluations[-1].tokens == self.progress.tokens
        return self._fired() if is_evaluated else None

    def _is_time_up(self) -> bool:
        return self.stage.until is not None and reads_clock(self.stage.until) and self._fired() is not None

    def _fired(self) -> str | None:
        """What of `until` is the case. Not within the warm-up: the rate after the stage could not make up for that;
        nor before a growth's rewarm or mask is over, which the next stage knows nothing of."""
        stage, progress = self.stage, self.progress
        growth_end = stage.start_tokens + (stage.growth.tokens if stage.growth else 0)
        if stage.until is None or progress.tokens < max(learning_rate.warmup_end(stage.rate), growth_end):
            return None
        seen = Seen(
            tokens=progress.tokens - stage.start_tokens,
            steps=progress.steps - stage.start_steps,
            flops=progress.flops - stage.start_flops,
            seconds=broadcast_object(progress.seconds) if reads_clock(stage.until) else progress.seconds,
            evaluations=tuple(progress.evaluations),
        )
        return fired(stage.until, seen)

    def _step(self) -> None:
        stage, progress = self.stage, self.progress
        piece = stage.step_schedule.at(progress.steps - stage.start_steps)
        batch, length = piece.batch_tokens, piece.context_length
        flops = batch * stage.token_flops(length)
        sequences = self.reader.sequences(progress.tokens // length, batch // length, length)
        # The rate in the middle of the step: neither the first step nor the last is taken at zero.
        lr = learning_rate.rate_at(stage.rate, progress.tokens + batch / 2)
        self._loss += self.engine.train_step(sequences, lr, progress.steps)
        self._lr = lr
        progress.steps += 1
        progress.tokens += batch
        progress.flops += flops
        self._tokens, self._flops = self._tokens + batch, self._flops + flops
        progress.pending_steps += 1

    def _compare_duplicates(self) -> None:
        """Complete the certificate once copies have had time to part. Like evaluation it counts as no training."""
        step = self.progress.steps - self.stage.start_steps
        if probe.are_duplicates_due(self.stage, self.progress.growth, step):
            self._count_energy()
            began = time.monotonic()
            self.progress.growth = probe.with_duplicates(self.engine, self.progress.growth, step)
            elapsed = time.monotonic() - began
            self.progress.evaluation_seconds += elapsed
            self._mark += elapsed
            self._count_evaluation_energy()

    def _point_steps(self) -> int:
        return max(min(POINT_EVERY_STEPS, self.stage.steps // 20), self.stage.steps // POINTS_PER_STAGE, 1)

    def _point(self) -> None:
        """Close the stretch since the last point. Raises NonFiniteLoss, on all workers alike."""
        progress = self.progress
        if not progress.pending_steps:
            return
        loss = self.engine.sum_over_workers(self._loss) / self._tokens
        seconds = self._tick() + progress.pending_seconds
        self._count_energy()
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"stage {self.stage.name}: the training loss is {loss} at step {progress.steps} "
                f"({progress.tokens} tokens); the last good checkpoint is kept. "
                f"Try a lower training.optimizer.lr (now {self._lr:.3g}) or a longer warm-up"
            )
        speed, flops_speed = (count / seconds if seconds > 0 else 0.0 for count in (self._tokens, self._flops))
        peak = peak_flops_per_second(self.stage.training.precision)
        point = TrainPoint(
            tokens=progress.tokens,
            steps=progress.steps,
            flops=progress.flops,
            seconds=progress.seconds,
            loss=loss,
            lr=self._lr,
            gradient_norm=self.engine.gradient_norm(),
            tokens_per_second=speed,
            mfu=flops_speed / (peak * self.engine.world) if peak else None,
        )
        progress.train.append(point)
        progress.pending_steps, progress.pending_seconds = 0, 0.0
        self._loss.zero_()
        self._tokens, self._flops = 0, 0
        self._send("trained", point)

    def _set_pending_aside(self) -> None:
        """Put the stretch since the last point into the progress, to be gone on with: no point is made where a run
        that nobody interrupts makes none."""
        if self.progress.pending_steps:
            self.progress.pending_seconds += self._tick()
            self._count_energy()
        self.progress.pending_losses = all_gather_objects(self._loss.item())

    def _take_up_pending(self) -> None:
        """Each worker its own sum; of another number of workers the first one takes all."""
        done, course = self.progress.steps - self.stage.start_steps, self.stage.step_schedule
        before = done - self.progress.pending_steps
        self._tokens = course.tokens(done) - course.tokens(before)
        self._flops = course.flops(done, self.stage.token_flops) - course.flops(before, self.stage.token_flops)
        losses, self.progress.pending_losses = self.progress.pending_losses, []
        if len(losses) == self.engine.world:
            self._loss.fill_(losses[self.engine.rank])
        elif self.engine.rank == 0:
            self._loss.fill_(math.fsum(losses))

    def _count_resize(self, entry: Entry) -> None:
        before = self.progress.num_workers
        if before not in (0, self.engine.world) and not entry.prefix:
            self.progress.resizes += 1

    def _evaluate(self) -> None:
        self.heartbeat.does("evaluating")
        self._tick()
        self._count_energy()
        progress = self.progress
        scores, self._entered = self._entered or self._score(), None
        self._ended = scores
        metrics = values(added(all_gather_objects(scores.sums)))
        self._mark = time.monotonic()
        self._count_evaluation_energy()
        place = progress.tokens, progress.steps, progress.flops, progress.seconds
        point = Evaluation(*place, scores.loss, scores.accuracy, metrics, *(scores.halves or ()))
        progress.evaluations.append(point)
        self._send("evaluated", point)

    def _score(self) -> Scores:
        """What the model as it stands says to all of `held_out`; counted as evaluation."""
        began = time.monotonic()
        scores = self.engine.evaluate(self.held_out, self.stage.training.evaluate.metrics)
        self.progress.evaluation_seconds += time.monotonic() - began
        self.progress.evaluation_flops += self.held_out[:, 1:].size * flops_per_token(self.stage.shape) // 3
        return scores

    # --- saving -------------------------------------------------------------------------------

    def _save(self, last: bool, wait: bool) -> None:
        """Every worker writes its own shard, then the first one the manifest: now, or while the training goes on."""
        self.heartbeat.does("saving")
        parts = partitions.partitions(self.engine.deepspeed)
        counts = Counts(partitions.get_steps(self.engine.deepspeed), self.engine.head_starts)
        if wait:
            self.saver.save(self.stage, parts, counts, self._standing, self._write_probe if last else None)
        else:
            self.saver.begin(self.stage, parts, counts, self._standing)

    def _standing(self) -> Progress:
        self._tick()
        self.progress.num_workers = self.engine.world
        return self.progress

    def _write_probe(self, folder: Folder) -> None:
        probe.write_probe(self.engine, folder, self.held_out)

    def _finish(self, ended: str) -> None:
        """Commit the record: the stage is finished."""
        self._count_energy()  # of the last checkpoint
        peak = torch.tensor(float(peak_memory_bytes()), dtype=torch.float64, device=self.engine.device)
        comm.all_reduce(peak, op=comm.ReduceOp.MAX)
        if self.engine.rank == 0:
            record = self.store.commit_record(self._record(int(peak.item()), ended), trunk_key(self.stage))
            self._send("finished", record)
        comm.barrier()

    def _record(self, peak_bytes: int, ended: str) -> StageRecord:
        stage, progress = self.stage, self.progress
        return StageRecord(
            data=asdict(self.counted),
            key=stage.key,
            parent_key=stage.parent_key,
            name=stage.name,
            shape=stage.shape,
            num_params=stage.num_params,
            num_workers=self.engine.world,
            zero_stage=stage.training.zero_stage,
            tokens=progress.tokens - stage.start_tokens,
            steps=progress.steps - stage.start_steps,
            flops=progress.flops - stage.start_flops,
            seconds=progress.seconds,
            evaluation_seconds=progress.evaluation_seconds,
            evaluation_flops=progress.evaluation_flops,
            peak_memory_bytes=peak_bytes,
            eval_loss=progress.evaluations[-1].loss,
            checkpoint=self._final_checkpoint(),
            best_checkpoints=self.store.best_checkpoints(
                stage.key, stage.training.checkpoint.keep_best, progress.evaluations
            ),
            growth=progress.growth,
            prefix=progress.prefix,
            stopped_by=ended,
            trained_for=self.context.run,
            resizes=progress.resizes,
            train=tuple(progress.train),
            evaluations=tuple(progress.evaluations),
            environment=environment(),
            energy_joules=progress.energy_joules,
            evaluation_energy_joules=progress.evaluation_energy_joules,
        )

    def _final_checkpoint(self) -> str:
        """Where this stage ended: written just now, or found on entering a stage that had only its record to write."""
        latest = self.store.latest_checkpoint(self.stage.key, self.saver.attempt)
        if latest is None:
            raise CheckpointError(f"{self.store.stage_folder(self.stage.key).uri}: no checkpoint of the finished stage")
        return f"checkpoints/{latest.name}"

    def _begin_anew(self) -> None:
        """What has come before is not counted: entering the stage, but for its growth."""
        self._energy.since_last()
        self._mark = time.monotonic()

    def _count_energy(self) -> None:
        """As the seconds are, but on all workers alike: it is the sum over them."""
        self.progress.energy_joules = plus(self.progress.energy_joules, self._energy.since_last())

    def _count_evaluation_energy(self) -> None:
        joules = plus(self.progress.evaluation_energy_joules, self._energy.since_last())
        self.progress.evaluation_energy_joules = joules

    def _sum(self, own: float) -> float:
        return self.engine.sum_over_workers(torch.tensor(own, dtype=torch.float64, device=self.engine.device))

    def _tick(self) -> float:
        """Add the time since the last mark to the stage's seconds."""
        now = time.monotonic()
        elapsed, self._mark = now - self._mark, now
        self.progress.seconds += elapsed
        return elapsed

    def _send(self, kind: str, what: Any) -> None:
        if self.engine.rank == 0:
            self.context.send(kind, self.stage.key, what)


def evaluation_set(stage: StagePlan, streams: Streams | None = None) -> np.ndarray:
    """The held-out sequences of a stage: (count, context_length + 1), fixed by its data alone.

    streams: of the stage's data, where they are open already.
    """
    streams = streams or open_streams(stage.data, stage.shape.vocab_size)
    reader = TokenWindows(streams.held_out, stage.shape.context_length, stage.seed)
    return reader.spread(max(1, stage.training.evaluate.tokens // stage.shape.context_length))


def as_prefix(record: StageRecord) -> Prefix:
    return Prefix(record.key, record.tokens, record.flops, record.seconds, record.energy_joules)


def crossed(every: int, before: int, after: int, stage: StagePlan | None = None) -> bool:
    """Whether a multiple of `every` lies in (before, after], counted from the run's or the stage's start."""
    start = stage.start_tokens if stage else 0
    return (after - start) // every > (before - start) // every


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
        "device": get_accelerator().device_name(),
        "host": platform.node(),
    }
