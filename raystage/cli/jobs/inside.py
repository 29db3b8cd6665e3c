"""What a command does differently inside of a Ray job."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# In the driver of a job of `raystage submit`: the command line that submits the job again.
SUBMISSION = "RAYSTAGE_SUBMISSION"
# Ray sets this for the driver of every job.
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# A working directory that goes with a job is unpacked here: a copy that is deleted later.
_JOB_COPY = "runtime_resources/working_dir_files"

# What W&B calls its folder.
WANDB_FOLDER = "wandb"


def in_job(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the driver of a Ray job."""
    return _JOB_CONFIG in environment


def in_job_copy() -> bool:
    """Whether the working directory is a copy that is deleted with the job."""
    return _JOB_COPY in str(Path.cwd())


def wandb_place(folder: Any) -> tuple[str | None, Any]:
    """Where W&B writes the run that has this folder in the store: None for the working directory; and where in the
    store that is copied to. In a job the working directory goes with the job, or with the pod."""
    if not in_job():
        return None, None
    return (folder.path, None) if folder.is_local else (None, folder / WANDB_FOLDER)


def how_to_sync(folder: Any) -> str:
    """How what W&B wrote offline in a job is uploaded."""
    place = (folder / WANDB_FOLDER).uri
    if folder.is_local:
        return f"W&B: wandb sync {shlex.quote(place)}/offline-run-*"
    return f"W&B: {place}; to upload it, copy it to a disk, and there: wandb sync offline-run-*"


def continuing(command: str, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
    """What continues a run that was started by `command`: in a Ray job the submission of the job.

    arguments: of this process, the program first.
    """
    if submission := environment.get(SUBMISSION):
        return submission
    if not in_job(environment):
        return command
    program, *rest = arguments
    started = ["python", program] if program.endswith(".py") else [os.path.basename(program)]
    copied = ["--working-dir", "."] if in_job_copy() else []
    return shlex.join(["ray", "job", "submit", *copied, "--", *started, *rest])
