"""`raystage run` for `ray job submit`, which needs a script and does not need raystage installed:

    ray job submit --working-dir . -- python jobs/run.py jobs/schedules/quickstart.yaml --store URI

Arguments are those of `raystage run`. Under a Ray job RAY_ADDRESS is set, and the run goes to that cluster.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("raystage") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raystage.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
