"""Hosts that are not alike, or not as a cluster needs them. Each is named in one message; the rest trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import raystage
from conftest import PATIENCE
from host_runs import HostRun, curves, on_one_host
from hosts import Network
from raystage.config.schedule import load
from staged_runs import losses

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(3 * PATIENCE)]


def test_a_store_that_each_host_has_for_itself_is_refused_before_anything_is_trained(
    network: Network, tiny: Path
) -> None:
    head, *_ = hosts = network.start(3, cpus=[0, 1, 1])
    (tiny.parent / "store").mkdir()
    for host in hosts:
        own = tiny.parent / "own" / host.name
        own.mkdir(parents=True)
        host.show(own, tiny.parent / "store")
    said = HostRun(head, head, tiny).end(status=2)
    assert said.count("raystage: --store: node host") == 1
    assert "does not see what the driver has written there" in said
    assert "expected storage that every node sees under the same name" in said
    assert "Traceback" not in said
    assert not list((tiny.parent / "own").glob("*/stages/*/checkpoints/*"))


def test_a_host_with_another_raystage_is_named(network: Network, tiny: Path) -> None:
    head, *_, last = network.start(3, cpus=[0, 1, 1])
    code = Path(raystage.__file__).parent
    other = shutil.copytree(code, tiny.parent / "raystage", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "units.py").write_text((other / "units.py").read_text() + "\n# changed\n")
    last.show(other, code)
    said = HostRun(head, head, tiny).end(status=1)
    assert f"node host3 has {code}" in said
    assert "install the driver's raystage on every node" in said


def test_a_slow_link_changes_nothing_but_the_time(network: Network, tiny: Path) -> None:
    head, *others = network.start(3, cpus=[0, 1, 1])
    for host in others:
        host.slow("20mbit")
    HostRun(head, head, tiny).end()
    assert curves(tiny) == losses(on_one_host(load(tiny), tiny.parent))


def test_a_full_tmp_that_keeps_a_host_from_starting_workers_is_waited_for_and_said(
    network: Network, tiny: Path
) -> None:
    """Ray itself only says so in the log of the run's controller, and tries again without limit."""
    head, *_, last = network.start(3, cpus=[0, 1, 1])
    last.fill_tmp()
    run = HostRun(head, head, tiny)
    run.say(
        "waiting for Ray to start 2 workers with 1 CPU each: 2 of 2 CPUs are free now. If this lasts, a node starts"
    )
    last.run(["rm", "/tmp/filled"])
    run.end()
    assert curves(tiny) == losses(on_one_host(load(tiny), tiny.parent))
