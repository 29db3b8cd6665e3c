"""A cluster of several hosts, each with an address, processes and folders of its own, and a token that all know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from conftest import PATIENCE, wait_until, write_tiny
from host_runs import HostRun, curves, on_one_host
from hosts import Host, Network
from raystage.config.schedule import load
from staged_runs import losses

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(3 * PATIENCE)]

STAGES = """
stages:
  - {name: one, model: {num_layers: 1}, until: {steps: 12}, training: {workers: 1}}
  - {name: two, model: {num_layers: 2}, until: {steps: 12}, training: {workers: 2}, grow: {operator: stack}}
  - {name: three, model: {num_layers: 2}, until: {steps: 12}, training: {workers: 3}}
"""


@pytest.mark.drill
def test_a_run_over_one_two_and_three_hosts_has_the_bits_of_one_host(network: Network, tmp_path: Path) -> None:
    """Every stage takes over weights and optimizer state that other hosts have written."""
    path = write_tiny(tmp_path)
    path.write_text(path.read_text().partition("stages:")[0] + STAGES)
    head, *_ = network.start(3, cpus=[1, 1, 1])
    HostRun(head, head, path).end()
    assert curves(path) == losses(on_one_host(load(path), tmp_path))


def nodes_of(head: Host, name: str) -> list[str]:
    """The nodes of the living actors of a class."""
    filters = ("--filter", f"class_name={name}", "--filter", "state=ALIVE")
    return [one["node_id"] for one in json.loads(head.run(["ray", "list", "actors", *filters, "--format", "json"]))]


def nodes_at(head: Host, host: Host) -> list[str]:
    filters = ("--filter", f"node_ip={host.address}")
    return [one["node_id"] for one in json.loads(head.run(["ray", "list", "nodes", *filters, "--format", "json"]))]


def test_a_host_is_lost_and_another_one_takes_its_place(network: Network, tiny: Path) -> None:
    """The story of hosts that runs in every test run; the others are drills."""
    head, last = network.start(2, cpus=[1, 1])
    run = HostRun(head, head, tiny)
    run.say("small] step 1")
    assert nodes_of(head, "ControlActor") == nodes_at(head, head)  # nothing of the driver is lost with another host
    last.lose()
    run.say("node host2 (10.77.0.2) was lost")
    network.start(1, cpus=[1])
    run.say("started again, from step")
    run.end()
    assert curves(tiny) == losses(on_one_host(load(tiny), tiny.parent))


KILLED = """
import sys
from pathlib import Path
from hosts import Host, Network

with Network(Path(sys.argv[1])) as network:
    started = network.add().popen(["sh", "-c", "sleep 1000 & exec sleep 1000"])
    print(network.hosts[0].pid, flush=True)
    started.wait()
"""


def test_nothing_is_left_of_hosts_when_the_process_that_made_them_is_killed(network: Network, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path], env=environment, stdout=subprocess.PIPE, text=True
    ) as maker:
        first = psutil.Process(int(maker.stdout.readline()))
        started = psutil.Process(maker.pid).children(recursive=True)
        maker.kill()
    assert first in started
    wait_until(lambda: not any(one.is_running() for one in started), PATIENCE, f"still there: {started}")
