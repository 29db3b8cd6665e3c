"""The driver of a Ray job: `raystage run` or `raystage sweep` with what `raystage submit` has sent along."""

from __future__ import annotations

import json
import os
import sys

from raystage.cli.jobs.inside import SUBMISSION
from raystage.cli.main import main
from raystage.cli.options import exits
from raystage.cluster.job_variables import set_variables
from raystage.cluster.ray_private import take_parcel
from raystage.errors import RaystageError
from raystage.jobs.start import VARIABLE

TAKE_SECONDS = 30.0


@exits
def prepare() -> None:
    """Set the variables that were sent, and what the run names as the command that continues it."""
    job = json.loads(os.environ.pop(VARIABLE))
    os.environ[SUBMISSION] = job["command"]
    if job["parcel"]:
        content = take_parcel(os.environ["RAY_ADDRESS"], job["parcel"], TAKE_SECONDS)
        if content is None:
            raise RaystageError("what was sent to this job (keys) is gone from the cluster; submit it again")
        set_variables(json.loads(content))


if __name__ == "__main__":
    if VARIABLE in os.environ:
        prepare()
    main(sys.argv[1:], prog_name="raystage")
