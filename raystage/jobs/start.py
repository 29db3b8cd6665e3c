"""The program that a Ray job of `raystage submit` begins with. `raystage submit` sends a copy of this file.

It must say what is wrong where the cluster has no raystage, or another one. So it imports nothing but the standard
library before it has looked.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path

JOB_FILE = "job.json"
# What the driver is told in its environment: the content of the file, as it is.
VARIABLE = "RAYSTAGE_JOB"


def main() -> int:
    told = Path(__file__).with_name(JOB_FILE).read_text(encoding="utf-8")
    job = json.loads(told)
    if problem := wrong_version(job["version"]):
        print(f"raystage: {problem}", file=sys.stderr, flush=True)
        return 2
    os.environ[VARIABLE] = told
    os.chdir(job["folder"])
    driver = [sys.executable, "-P", "-m", "raystage.cli.jobs.driver", *sys.argv[1:]]
    return importlib.import_module("raystage.jobs.apart").run_apart(driver)


def wrong_version(submitted: str) -> str | None:
    """What is wrong with the raystage of this Python; None if it is the one that has submitted the job."""
    if importlib.util.find_spec("raystage") is None:
        found = f"no raystage for {sys.executable}"
    else:
        versions = [one.version for one in importlib.metadata.distributions(name="raystage")]
        if submitted in versions[:1]:
            return None
        found = f"raystage {versions[0] if versions else 'of an unknown version'}"
    return (
        f"the cluster has {found}; expected {submitted}, which has submitted the job: use the same version on both "
        "sides, or submit with --install"
    )


if __name__ == "__main__":
    sys.exit(main())
