"""Hosts that are not alike, or not as a cluster needs them. Each is named in one message; the rest trains."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

import raystage
from conftest import PATIENCE
from host_runs import HostRun, curves, on_one_host
from hosts import WATCHFUL, Host, Link, Network
from raystage.config.schedule import load
from s3_server import CREDENTIALS
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


def show_other(host: Host, file: Path, version: str, folder: Path) -> None:
    """On this host, a file that states a version states another one."""
    other = folder / file.name
    other.write_text(file.read_text().replace(version, "0.0.1", 1))
    host.show(other, file)


def test_a_host_with_another_version_of_ray_is_refused_and_of_another_package_named(
    network: Network, tiny: Path
) -> None:
    head, near = network.start(2, cpus=[1, 1])
    far = network.add()
    show_other(far, Path(ray.__file__).parent / "_version.py", ray.__version__, tiny.parent)
    starting = far.popen(
        ["ray", "start", f"--address={head.ray_address}"],
        environment={"PYTHONDONTWRITEBYTECODE": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = starting.communicate(timeout=PATIENCE)
    assert starting.returncode != 0
    assert "Version mismatch" in said
    assert "0.0.1" in said
    deepspeed = importlib.metadata.distribution("deepspeed")
    metadata = next(file for file in deepspeed.files if file.name == "METADATA")
    show_other(near, Path(deepspeed.locate_file(metadata)), deepspeed.version, tiny.parent)
    said = HostRun(head, head, tiny).end(status=1)
    assert f"node host2 has deepspeed 0.0.1 (the driver {deepspeed.version}): install the same versions" in said
    assert not list(tiny.parent.glob("store/stages/*/checkpoints/*"))


def shorten(schedule: Path) -> None:
    schedule.write_text(schedule.read_text().replace("until: {steps: 90}", "until: {steps: 16}"))


# A port where nobody listens says so at once.
ROUND_TRIP = """
import socket, sys, time
began = time.monotonic()
socket.socket().connect_ex((sys.argv[1], 9))
print(time.monotonic() - began)
"""


def test_a_slow_link_that_loses_frames_changes_nothing_but_the_time(network: Network, tiny: Path) -> None:
    """50 ms there and back, 10 Mbit/s, and one frame in a hundred lost."""
    head, near = network.start(2, cpus=[0, 1])
    far = network.add(Link(delay=0.025, bytes_per_second=10e6 / 8, loss=0.01))
    far.start_ray(1, head)
    assert float(near.run(["python", "-S", "-c", ROUND_TRIP, far.address])) >= 0.05
    shorten(tiny)  # each sum over the workers waits for the link: a step takes a second
    HostRun(head, head, tiny).end()
    assert curves(tiny) == losses(on_one_host(load(tiny), tiny.parent))


# A server with one bucket, for all hosts.
OBJECT_STORE = """
import os, sys, time
import s3_server

os.environ.update(s3_server.CREDENTIALS)
with s3_server.running(sys.argv[1]) as s3:
    print(s3.uri("bucket/runs"), flush=True)
    time.sleep(10 ** 6)
"""


def test_an_object_store_on_a_host_of_its_own_may_be_cut_off_for_a_while(network: Network, tiny: Path) -> None:
    """Saving waits and tries again; what is trained has the bits of a folder as the store."""
    head, *_ = network.start(3, cpus=[0, 1, 1], environment=WATCHFUL | CREDENTIALS)
    server = network.add()
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", OBJECT_STORE, server.address]
    with server.popen(command, environment=environment, stdout=subprocess.PIPE) as serving:
        try:
            store = serving.stdout.readline().strip()
            run = HostRun(head, head, tiny, store=store, environment=CREDENTIALS)
            run.say("small] step 1")
            server.cut()
            time.sleep(45)  # several saves of the run fall due meanwhile
            server.mend()
            run.end()
            told = head.run(
                ["raystage", "report", "tiny", "--store", store, "--json"], environment=CREDENTIALS, cwd=tiny.parent
            )
        finally:
            serving.kill()
    rows = json.loads(told[told.index("{") :])["stages"]
    trained = [[point["loss"] for point in row["train"] + row["evaluations"]] for row in rows]
    assert trained == losses(on_one_host(load(tiny), tiny.parent))


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
