"""Runs of raystage on hosts, and the same stages trained by processes of this machine, to compare with."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from distributed import run_workers
from hosts import PATIENCE, Host
from raystage.config.schedule import Schedule, load
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.train.worker import Job, run_job
from staged_runs import losses, records_of


class HostRun:
    """`raystage run` on a host. Its store is by default the folder `store` beside the schedule."""

    def __init__(
        self,
        host: Host,
        head: Host,
        path: Path,
        *more: str,
        store: str = "store",
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        command = ["raystage", "run", path, "--address", head.ray_address, "--wandb", "disabled", "--store", store]
        self.process = host.popen(
            [*command, *more], cwd=path.parent, environment=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.said = ""

    def say(self, text: str) -> None:
        """Wait until a line with this text is said on standard error."""
        for line in self.process.stderr:
            self.said += line
            print(line, end="")  # a test that waits in vain is ended by pytest, which then shows this
            if text in line:
                return
        raise AssertionError(f"{text!r} was never said:\n{self.said}")

    def end(self, status: int = 0) -> str:
        """Wait for the end; returns all that was said on standard error."""
        _, rest = self.process.communicate(timeout=PATIENCE)
        self.said += rest
        print(rest)
        assert self.process.returncode == status, self.said
        return self.said


def curves(path: Path) -> list[list[float]]:
    """By stage all losses of a finished run, to the last bit."""
    return losses(records_of(load(path), str(path.parent / "store")))


def on_one_host(schedule: Schedule, folder: Path) -> list[StageRecord]:
    """The records of all stages, trained by processes of this machine."""
    store = str(folder / "one")
    for stage in make_plan(schedule).staged.stages:
        run_workers(stage.training.workers.most, _carry_out, stage, store, folder=folder / f"on-{stage.name}")
    return records_of(schedule, store)


def _carry_out(stage: StagePlan, store: str) -> None:
    run_job(Job((stage,), store), lambda *message: None)
