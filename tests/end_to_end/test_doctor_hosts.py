"""`raystage doctor` on a cluster of several hosts: what is wrong between them is found, and named."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from conftest import PATIENCE
from hosts import PATIENT, Host, Link, Network

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(3 * PATIENCE)]


def examine(host: Host, head: Host, store: Path, *options: str, status: int = 0) -> dict[str, dict]:
    """The checks by name, as the doctor on `host` reports them."""
    command = ["raystage", "doctor", "--json", "--address", head.ray_address, "--store", store, *options]
    process = host.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, output + said
    return {check["check"]: check for check in json.loads(output)["checks"]}


def test_hosts_that_work_together_and_a_link_that_is_slow(network: Network, tmp_path: Path) -> None:
    head, _ = network.start(2, cpus=[1, 1])
    network.add(Link(delay=0.0, bytes_per_second=20e6 / 8, loss=0.0)).start_ray(1, head)
    checks = examine(head, head, tmp_path / "store", "--train")
    assert {name: check["found"] for name, check in checks.items() if check["state"] == "FAILED"} == {}
    found = {name: check["found"] for name, check in checks.items()}
    assert "the GCS (10.77.0.1:6379), the dashboard (127.0.0.1:8265) refused a request" in found["token"]
    assert found["ports between nodes"].startswith("3 nodes reach each other's Ray")
    assert found["writing to the store"].startswith("3 nodes at once, ")
    assert found["clocks"].startswith("3 agree within ")
    assert "3 health checks without an answer, 3 to 18 s" in found["time-outs"]
    assert found["Ray's temporary folders"].startswith("the least of 3: ")
    workers = checks["3 workers over gloo"]
    assert (workers["state"], "; on 3 nodes" in workers["found"]) == ("warning", True)
    assert "expected 60 MB/s or more" in workers["advice"]
    assert not (tmp_path / "store").exists()


def test_what_is_wrong_between_hosts_is_named_and_the_others_are_examined(network: Network, tmp_path: Path) -> None:
    """Host 2 cannot reach host 3, which has a store of its own; host 4 is cut off."""
    head, second, third, fourth = network.start(4, cpus=[1, 1, 1, 1], environment=PATIENT)
    store, own = tmp_path / "store", tmp_path / "own"
    store.mkdir()
    own.mkdir()
    third.show(own, store)
    second.run(["ip", "route", "add", "unreachable", f"{third.address}/32"])
    fourth.cut()
    checks = examine(head, head, store, status=1)
    states = {name: check["state"] for name, check in checks.items() if name.startswith("node ")}
    assert states == {
        "node 10.77.0.1": "ok", "node 10.77.0.2": "ok", "node 10.77.0.3": "FAILED", "node 10.77.0.4": "FAILED",
    }  # fmt: skip
    assert "does not see what was written to" in checks["node 10.77.0.3"]["found"]
    assert "carries out no task (no answer within 60 s)" in checks["node 10.77.0.4"]["found"]
    reading, ports = checks["reading from the store"], checks["ports between nodes"]
    assert reading["state"] == ports["state"] == "FAILED"
    assert "(on host1 (10.77.0.1): that of host3 (10.77.0.3))" in reading["found"]
    assert "host2 (10.77.0.2) -> host3 (10.77.0.3)" in ports["found"]
    assert checks["clocks"]["found"].startswith("3 agree within ")
    assert list(store.iterdir()) == []
