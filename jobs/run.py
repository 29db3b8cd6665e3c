"""`raystage run` or `raystage sweep` for `ray job submit`, which needs a script and does not need raystage installed:

    ray job submit --working-dir . -- python jobs/run.py jobs/schedules/quickstart.yaml --store URI
    ray job submit --working-dir . -- python jobs/run.py jobs/sweeps/quickstart.yaml --store URI

The file says which of the two it is for; arguments are those of the command. Under a Ray job RAY_ADDRESS is set, and
the run goes to that cluster.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

if importlib.util.find_spec("raystage") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raystage.cli.main import main
from raystage.config.schedule import is_sweep
from raystage.config.yaml_file import read_mapping
from raystage.errors import InputError


def command(arguments: Sequence[str]) -> str:
    """The command for the file among the arguments; what is wrong with either, the command says itself."""
    path = main.commands["run"].make_context("run", list(arguments), resilient_parsing=True).params["schedule"]
    try:
        return "sweep" if path is not None and is_sweep(read_mapping(path)) else "run"
    except InputError:
        return "run"


if __name__ == "__main__":
    main([command(sys.argv[1:]), *sys.argv[1:]])
