"""`raystage doctor` on real clusters: one that is fit, one that is too small, one of another version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster

from conftest import QUIET, Raystage
from raystage.cluster.own import NO_API_SERVER

pytestmark = pytest.mark.end_to_end

# What a client compares with itself is what the head wrote down when it started.
GROW_OLD = """
import json, sys
import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

ray.init(address=sys.argv[1], log_to_driver=False)
known = json.loads(_internal_kv_get(b"CLUSTER_METADATA", namespace="cluster"))
known["ray_version"] = "2.9.0"
_internal_kv_put(b"CLUSTER_METADATA", json.dumps(known), overwrite=True, namespace="cluster")
"""

# Workers that take longer than they are given.
IMPATIENT = """
import os
from functools import partial

os.environ["DS_ACCELERATOR"] = "cpu"
from raystage.tools import doctor_cluster
from raystage.cli.main import main

doctor_cluster.check_workers = partial(doctor_cluster.check_workers, seconds=0.5)
main()
"""


def examine(raystage: Raystage, *options: str, status: int = 0) -> dict[str, dict]:
    """The checks by name."""
    checks = json.loads(raystage("doctor", "--json", *options, status=status).stdout)["checks"]
    return {check["check"].split(" ")[0] if "node" in check["check"] else check["check"]: check for check in checks}


@pytest.fixture
def small(raystage: Raystage, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster of one CPU, which `raystage` knows."""
    for name, value in {**QUIET, "RAY_API_SERVER_ADDRESS": NO_API_SERVER}.items():
        monkeypatch.setenv(name, value)
    head = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    raystage.environment["RAY_ADDRESS"] = cluster.address
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def test_a_cluster_that_is_fit(raystage: Raystage) -> None:
    checks = examine(raystage, "--train", "--store", "new/store")
    assert {name: check["state"] for name, check in checks.items() if check["state"] == "FAILED"} == {}
    assert "4 CPUs" in checks["node"]["found"]
    assert "MB/s for each worker" in checks["2 workers over gloo"]["found"]
    assert "answered a request without a token" in checks["token"]["found"]
    assert list(raystage.folder.iterdir()) == []


@pytest.mark.drill
def test_a_cluster_that_is_too_small_and_one_of_another_version(raystage: Raystage, small: str) -> None:
    checks = examine(raystage, "--train", status=1)
    assert checks["node"]["state"] == "ok"
    assert "2 workers with 1 CPU each do not fit" in checks["2 workers over gloo"]["found"]
    subprocess.run([sys.executable, "-c", GROW_OLD, small], env=os.environ | QUIET, check=True, capture_output=True)
    checks = examine(raystage, status=1)
    assert "found another Ray or Python there" in checks["Ray cluster"]["found"]
    assert "node" not in checks


@pytest.mark.drill
def test_workers_that_hang_are_a_failure_and_no_wait(raystage: Raystage) -> None:
    command = [sys.executable, "-c", IMPATIENT, "doctor", "--train"]
    done = subprocess.run(command, cwd=raystage.folder, env=raystage.environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "2 workers over gloo: they were not done after 0.5 s" in done.stdout
    assert done.stderr.splitlines()[-1].endswith("checks FAILED")
