"""`raystage run` or `raystage sweep` for `ray job submit`, which needs a script and does not need raystage installed:

    ray job submit --working-dir . -- python jobs/run.py jobs/schedules/quickstart.yaml --store URI
    ray job submit --working-dir . -- python jobs/run.py jobs/sweeps/quickstart.yaml --store URI

The file says which of the two it is for; arguments are those of the command. Under a Ray job RAY_ADDRESS is set, and
the run goes to that cluster. It runs apart from the job's entrypoint, so that `ray job stop` lets it save.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if importlib.util.find_spec("raystage") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raystage.cli.jobs.inside import SUBMISSION, continuing, in_job
from raystage.cli.main import main
from raystage.config.schedule import is_sweep
from raystage.config.yaml_file import read_mapping
from raystage.errors import InputError
from raystage.jobs.apart import run_apart


def command(arguments: Sequence[str]) -> str:
    """The command for the file among the arguments; what is wrong with either, the command says itself."""
    path = main.commands["run"].make_context("run", list(arguments), resilient_parsing=True).params["schedule"]
    try:
        return "sweep" if path is not None and is_sweep(read_mapping(path)) else "run"
    except InputError:
        return "run"


if __name__ == "__main__":
    whole = [command(sys.argv[1:]), *sys.argv[1:]]
    if in_job():
        os.environ[SUBMISSION] = continuing("", sys.argv)
        sys.exit(run_apart([sys.executable, "-P", "-m", "raystage.cli.jobs.driver", *whole]))
    main(whole)
