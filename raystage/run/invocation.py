"""One start of a run by one driver: who and where it is, and what is to be done when it has ended."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Protocol

from raystage.errors import InputError
from raystage.files.filesystem import Folder
from raystage.storage.holder import ProcessName
from raystage.storage.processes import this_process

LOG_FILE = "run.log"


@dataclass(frozen=True)
class Attempt:
    """folder: the run's own in the store. command: what starts the run again. address: of the cluster, None: its own.

    worker_logs: where the logs of its workers are, None before there is a cluster. wandb_run_ids: by name of the run.
    """

    name: str
    command: str
    folder: Folder
    store: Folder
    address: str | None = None
    worker_logs: Callable[[], str | None] = lambda: None
    wandb_run_ids: Mapping[str, str] = field(default_factory=dict)
    process: ProcessName = field(default_factory=this_process)
    started_at: float = field(default_factory=time.time)
    version: str = field(default_factory=lambda: metadata.version("raystage"))

    @property
    def log(self) -> str:
        return (self.folder / LOG_FILE).uri


class Follower(Protocol):
    """A listener that is told how the run ended, too: None where it reached its end."""

    def ended(self, error: BaseException | None) -> None: ...


@contextlib.contextmanager
def following(attempt: Attempt, followers: Sequence[Follower]) -> Iterator[None]:
    """Tell the followers how what is done within this ends; an error gets what to do next as its notes."""
    try:
        yield
    except BaseException as error:
        for follower in followers:
            follower.ended(error)
        for line in next_steps(attempt, error):
            error.add_note(line)
        raise
    for follower in followers:
        follower.ended(None)


def next_steps(attempt: Attempt, error: BaseException | None) -> list[str]:
    """What to do now, and where to read more, in lines; wrong input says itself what would be right."""
    if isinstance(error, InputError):
        return []
    lines = [] if error is None else [f"to go on: {attempt.command}"]
    workers = attempt.worker_logs()
    return [*lines, f"log: {attempt.log}" + (f"; the workers' logs: {workers}" if workers and error else "")]


def run_command(
    schedule: str,
    overrides: Sequence[str] = (),
    store: str | None = None,
    name: str | None = None,
    address: str | None = None,
    wandb_mode: str | None = None,
) -> str:
    """The command line that goes on with a run, what was not given left out, to be pasted into a shell."""
    parts = ["raystage", "run", schedule]
    for override in overrides:
        parts += ["--set", override]
    for option, value in (("--store", store), ("--name", name), ("--address", address), ("--wandb", wandb_mode)):
        parts += [option, value] if value is not None else []
    return shlex.join(parts)


def sweep_command(
    sweep: str, overrides: Sequence[str], store: str | None, address: str | None, wandb_mode: str | None
) -> str:
    """The command line that goes on with a sweep; its name is among the overrides."""
    return run_command(sweep, overrides, store, None, address, wandb_mode).replace("raystage run", "raystage sweep", 1)
