"""W&B: one W&B run for each run of the schedule, kept by the driver; offline by default.

A `WandbTracker` is a `RunCallback` that turns what it is told into rows. Every row has `tokens` (or `samples`) and
`flops`, counted from the start of its run, so that either can be the axis of a curve:

    train/*    loss, lr, gradient_norm, speed (or samples_per_second), mfu
    eval/*     loss, perplexity, accuracy, and the schedule's own metrics
    growth/*   at the first token of a stage: what its growth did
    stage/*    at the first token of a stage: what it is; at its last token: its results, too
    savings/*  in the summary of the staged run

Finished checkpoints are artifacts that refer to their manifest; no weights are uploaded. Training never fails because
of W&B: after the first error of W&B there is one warning, and tracking ends. A service of W&B that has ended is started
once more before: a signal to every process of a job ends it, while the workers still save.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import wandb
from wandb.sdk.mailbox import MailboxClosedError

from raystage.plans.gates import Rejection
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.data.mixtures import losses_by_name
from raystage.results.record import Evaluation, GrowthRecord, StageRecord, TrainPoint
from raystage.results.report import SavingsPart
from raystage.runs.events import RunCallback
from raystage.runs.wandb_rows import (
    Row,
    artifact_name,
    checkpoint_metadata,
    duplicates_row,
    evaluation_row,
    growth_row,
    result_row,
    run_config,
    savings_summary,
    stage_row,
    train_row,
)
from raystage.units import UNITS, Unit, unit_of

Mode = Literal["offline", "online", "disabled"]

DEFAULT_PROJECT = "raystage"

# How long the end of a run waits for its uploads. What is left stays on the disk for `wandb sync`.
_UPLOAD_SECONDS = 120
_ARTIFACT_SECONDS = 30
# W&B names the folder of a run by the second in which it begins, and refuses one that is there.
_FOLDER_SECONDS = 1.0
# What calls of W&B raise when its service has ended.
_SERVICE_ENDED = (ConnectionError, MailboxClosedError)

_logger = logging.getLogger(__name__)


class WandbTracker(RunCallback):
    """Keeps one W&B run for each run of `plan`. The staged one is open until `ended`, a baseline until it is finished.

    config: the schedule as plain values. checkpoint_uri: gives the path or URI of a finished stage's checkpoint.
    directory: where `wandb/` is made, by default the working directory. project: by default WANDB_PROJECT or
    "raystage". group, job_type: a sweep gives its own name and "trial". run_ids: by name of the run the W&B id of an
    earlier invocation, which is continued.
    """

    def __init__(
        self,
        plan: Plan,
        config: Mapping[str, Any],
        checkpoint_uri: Callable[[StageRecord], str],
        *,
        mode: Mode = "offline",
        directory: str | Path | None = None,
        project: str | None = None,
        group: str | None = None,
        job_type: str = "staged",
        run_ids: Mapping[str, str] | None = None,
    ) -> None:
        self._plan = plan
        self._config = config
        self._checkpoint_uri = checkpoint_uri
        self._mode = mode
        self._directory = directory
        self._project = project or os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT)
        self._group = group or plan.name
        self._job_type = job_type
        self._resumed_ids = dict(run_ids or {})
        self._ids = {run.name: self._resumed_ids.get(run.name) or secrets.token_hex(4) for run in plan.runs()}
        self._open: dict[str, _OpenRun] = {}
        self._artifacts: dict[str, wandb.Artifact] = {}
        self._session: Any = None
        self._gave_up = self._has_restarted = False
        self._attempts = 0

    @property
    def run_ids(self) -> dict[str, str]:
        """By name of the run its W&B id, which is known before the run begins."""
        return dict(self._ids)

    def run_started(self, run: RunPlan) -> None:
        if self._mode != "disabled":
            self._call(partial(self._start, run))

    def stage_started(self, run: RunPlan, stage: StagePlan, reused: bool) -> None:
        self._log(run, "stage", stage_row(run, stage))

    def grown(self, run: RunPlan, stage: StagePlan, growth: GrowthRecord) -> None:
        self._log(run, "growth", growth_row(stage, growth))

    def trained(self, run: RunPlan, stage: StagePlan, point: TrainPoint) -> None:
        self._log(run, "train", train_row(point, stage.unit))

    def evaluated(self, run: RunPlan, stage: StagePlan, point: Evaluation) -> None:
        self._log(run, "eval", evaluation_row(point, stage, losses_by_name(point, run)))

    def rejected(self, run: RunPlan, stage: StagePlan, rejection: Rejection) -> None:
        """The next attempt covers the same positions again: the curves go back, and get a number of their own."""
        if run.name in self._open:
            self._attempts += 1
            self._open[run.name].go_back()
            row = {stage.unit: stage.start, "flops": stage.start_flops, "stage/attempt": self._attempts}
            self._log(run, "stage", row)

    def stage_finished(self, run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool) -> None:
        if record.growth and record.growth.certificate.twin_steps is not None:
            self._log(run, "growth", duplicates_row(stage, record.growth))
        self._log(run, "stage", result_row(run, stage, record, reused))
        if run.name in self._open:
            self._call(partial(self._log_checkpoint, run, stage, record))

    def run_finished(self, run: RunPlan, records: tuple[StageRecord, ...]) -> None:
        if run.name != self._plan.staged.name:
            self._finish(run.name, exit_code=0)

    def savings(self, savings: SavingsPart) -> None:
        """Put every field that has a value into the staged run's summary."""
        opened = self._open.get(self._plan.staged.name)
        if opened:
            self._call(lambda: opened.run.summary.update(savings_summary(savings, self._plan.staged.unit)))

    def ended(self, error: BaseException | None) -> None:
        """Finish the W&B runs that are still open, and stop W&B's service process unless others need it."""
        for name in list(self._open):
            self._finish(name, exit_code=int(error is not None), always=True)
        if self._session is not None and not self._is_shared():
            # If the service is dead, teardown raises an error or even calls sys.exit.
            with contextlib.suppress(Exception, SystemExit):
                wandb.teardown()
        self._session = None

    def _is_shared(self) -> bool:
        """Whether others have a W&B run open. A run of this tracker is still active only if the service has died."""
        active = self._session.most_recent_active_run
        return active is not None and active.id not in self._ids.values()

    # --- calls of W&B -------------------------------------------------------------------------

    def _start(self, run: RunPlan) -> None:
        resumed = self._mode == "online" and run.name in self._resumed_ids
        self._open[run.name] = _OpenRun(opened := self._begin(run, resumed))
        _define_metrics(opened, [stage.unit for stage in run.stages])

    def _begin(self, run: RunPlan, resumed: bool) -> wandb.Run:
        settings = _quiet_settings(self._mode)
        if self._session is None:
            # Before the first run, because wandb prints messages before it reads the settings of a run.
            self._session = wandb.setup(settings)
        return wandb.init(
            id=self._ids[run.name],
            resume="allow" if resumed else None,
            project=self._project,
            group=self._group,
            job_type=self._job_type if (kind := self._plan.kind_of(run.name)) == "staged" else kind,
            name=f"{self._plan.name}-{run.name}",
            config=run_config(self._config, self._plan, run),
            dir=self._directory,
            reinit="create_new",
            settings=settings,
        )

    def _restart(self) -> bool:
        """Start W&B's service once more, and the open runs in it under their ids, as a later command does.

        The service has a session of its own, but it is a Go program: it accepts a SIGTERM although that is blocked.
        What it was sent before that is in the first folder of the run. Returns whether this was the first time.
        """
        if self._has_restarted:
            return False
        self._has_restarted = True
        with contextlib.suppress(Exception, SystemExit):
            wandb.teardown()
        self._session = None
        time.sleep(_FOLDER_SECONDS)
        for run in self._plan.runs():
            if run.name in self._open:
                self._open[run.name].run = self._begin(run, resumed=self._mode == "online")
        return True

    def _log(self, run: RunPlan, curve: str, row: Row) -> None:
        opened = self._open.get(run.name)
        if opened and opened.is_new(curve, row):
            self._call(lambda: opened.run.log(row))

    def _log_checkpoint(self, run: RunPlan, stage: StagePlan, record: StageRecord) -> None:
        opened, parent = self._open[run.name].run, self._artifacts.get(stage.parent_key or "")
        if parent is not None and self._mode == "online":
            # Offline, wandb refuses use_artifact. Then only the metadata name the parent.
            _declare_parent(opened, parent)
        uri = _as_uri(self._checkpoint_uri(record))
        metadata = checkpoint_metadata(record, uri, parent.name if parent is not None else None)
        artifact = wandb.Artifact(artifact_name(self._plan.name, run, stage), type="checkpoint", metadata=metadata)
        _refer_to(artifact, uri, record.key)
        self._artifacts[stage.key] = opened.log_artifact(artifact)

    def _finish(self, name: str, exit_code: int, always: bool = False) -> None:
        if name in self._open and (always or not self._gave_up):
            self._call(lambda: self._open[name].run.finish(exit_code=exit_code), always=True)
            del self._open[name]

    def _call(self, call: Callable[[], object], always: bool = False) -> None:
        """Call W&B. If that fails, warn once and do not call it again; but first, once, try a new service."""
        if self._gave_up and not always:
            return
        try:
            try:
                call()
            except _SERVICE_ENDED:
                if self._gave_up or not self._restart():
                    raise
                call()
        # Training continues whatever W&B raises: wandb.errors.Error (no key, no server), OSError (service gone,
        # disk full), but also bare Exceptions such as MailboxClosedError, and ValueError from its server's answers.
        except Exception as error:
            if not self._gave_up:
                _logger.warning("W&B stops here, training continues without it: %s: %s", type(error).__name__, error)
            self._gave_up = True


class _OpenRun:
    """A W&B run, and up to where its curves are logged."""

    def __init__(self, run: wandb.Run) -> None:
        self.run = run
        self._before = {unit: int(run.summary.get(unit) or 0) if run.resumed else 0 for unit in UNITS}
        self._reached: dict[tuple[str, str], int] = {}

    def go_back(self) -> None:
        """Another attempt begins: its points are new, although they are at earlier positions."""
        self._before = dict.fromkeys(UNITS, 0)
        self._reached.clear()

    def is_new(self, curve: str, row: Row) -> bool:
        """Whether a row has not been logged yet by an earlier invocation or before the workers were started again.

        Steps that are trained again from a checkpoint have the same values. Logged twice they would break the curve.
        """
        unit = unit_of(row)
        position, place = row[unit], (curve, unit)
        if position < self._before[unit] or (curve in ("train", "eval") and position <= self._reached.get(place, -1)):
            return False
        self._reached[place] = position
        return True


def _quiet_settings(mode: Mode) -> wandb.Settings:
    """W&B prints nothing, and stores nothing about the machine or the code."""
    return wandb.Settings(
        mode=mode,
        silent=True,
        quiet=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        label_disable=True,
        finish_timeout=_UPLOAD_SECONDS,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _define_metrics(run: wandb.Run, units: Collection[Unit]) -> None:
    """The curves are over what the stages count in, and over FLOPs where that changes from stage to stage."""
    axes = [*dict.fromkeys(units), "flops"]
    for axis in axes:
        run.define_metric(axis)
    for curves in ("train/*", "eval/*", "stage/*", "growth/*"):
        run.define_metric(curves, step_metric=axes[0] if len(axes) == 2 else "flops")


def _declare_parent(run: wandb.Run, parent: wandb.Artifact) -> None:
    """Let W&B's lineage show the parent. If the parent is not uploaded yet, or was refused, only this is missing."""
    try:
        run.use_artifact(parent.wait(timeout=_ARTIFACT_SECONDS))
    except (wandb.errors.Error, ValueError) as error:
        _logger.warning("W&B will not show what came from %s: %s", parent.name, error)


def _refer_to(artifact: wandb.Artifact, uri: str, key: str) -> None:
    """Let the artifact refer to the checkpoint.

    wandb can refer to s3:// and gs:// only with their client libraries, and to a local file only if it is visible.
    Otherwise the artifact has a file with the same facts in place of the reference.
    """
    try:
        artifact.add_reference(uri, name="manifest.json", checksum=False)
    except (wandb.errors.Error, ValueError):
        with artifact.new_file("checkpoint.json") as file:
            json.dump({"key": key, "manifest": uri}, file)


def _as_uri(place: str) -> str:
    return place if "://" in place else Path(place).absolute().as_uri()
