"""Hosts that are lost, and hosts that the network loses: each run ends in the bits of an undisturbed one, or in one
clear message after which the same command continues it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from conftest import PATIENCE, wait_until, write_tiny
from host_runs import HostRun, curves, on_one_host
from hosts import PATIENT, Network, send_signal
from raystage.config.schedule import load
from staged_runs import losses, records_of

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(3 * PATIENCE)]

TRAINS = "small] step 1"
ELASTIC = ["--set", "training.workers={min: 1, max: 2}", "--set", "stages[0].until.steps=9000"]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    """The losses of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("calm")
    return losses(on_one_host(load(write_tiny(folder)), folder))


def test_a_link_that_is_cut_for_a_while_is_waited_for(network: Network, tiny: Path, calm: list) -> None:
    """Ray's patience with a silent node is longer than the cut: the node stays. Whether the workers do depends on Ray's
    own connections to them, which may break or not."""
    head, *_, last = network.start(3, cpus=[0, 1, 1], environment=PATIENT)
    run = HostRun(head, head, tiny)
    run.say(TRAINS)
    last.cut()
    run.say("waiting for host3 (10.77.0.3) with worker")
    last.mend()
    run.say("all nodes answer again")
    assert "was lost" not in run.end()
    assert curves(tiny) == calm


def test_hosts_that_do_not_reach_each_other_are_named_and_waited_for(network: Network, tiny: Path, calm: list) -> None:
    """The head reaches both: only the workers notice, and they wait for each other without a word."""
    head, second, third = network.start(3, cpus=[0, 1, 1])
    run = HostRun(head, head, tiny)
    run.say(TRAINS)
    second.part_from(third)
    run.say("waiting for host2 (10.77.0.2) and host3 (10.77.0.3) to reach each other")
    second.meet(third)
    run.say("all nodes reach each other again")
    run.end()
    assert curves(tiny) == calm


def test_hosts_that_never_reach_each_other_again_end_the_run_and_the_same_command_continues_it(
    network: Network, tiny: Path, calm: list
) -> None:
    head, second, third = network.start(3, cpus=[0, 1, 1])
    impatient = ["--set", "training.hang_seconds=45", "--set", "training.max_failures=20"]
    run = HostRun(head, head, tiny, *impatient)
    run.say(TRAINS)
    second.part_from(third)
    said = run.end(status=1)
    assert "(training.hang_seconds) for host2 (10.77.0.2) and host3 (10.77.0.3) to reach each other" in said
    second.meet(third)
    HostRun(head, head, tiny, *impatient).end()
    assert curves(tiny) == calm


def test_a_host_that_was_cut_off_for_too_long_trains_again_once_ray_is_started_there(
    network: Network, tiny: Path, calm: list
) -> None:
    head, *_, last = network.start(3, cpus=[0, 1, 1])
    run = HostRun(head, head, tiny)
    run.say(TRAINS)
    last.cut()
    run.say("node host3 (10.77.0.3) was lost: health check failed")
    run.say("waiting for more nodes: there is room for 1 of 2 workers")
    last.mend()
    wait_until(lambda: not last.processes("raylet/raylet"), PATIENCE, "the node that was given up is still there")
    last.start_ray(1, head)
    run.say("started again, from step")
    run.end()
    assert curves(tiny) == calm


def test_a_host_whose_processes_are_killed_trains_again_once_ray_is_started_there(
    network: Network, tiny: Path, calm: list
) -> None:
    head, *_, last = network.start(3, cpus=[0, 1, 1])
    run = HostRun(head, head, tiny)
    run.say(TRAINS)
    last.kill_processes()
    run.say("node host3 (10.77.0.3) was lost")
    last.start_ray(1, head)
    run.say("started again, from step")
    run.end()
    assert curves(tiny) == calm


def test_an_elastic_stage_shrinks_and_grows_back_although_the_coordinator_was_on_the_lost_host(
    network: Network, tiny: Path
) -> None:
    """Ray's AutoscalingCoordinator is where the first job of the cluster was, on the host that is lost."""
    head, lost, _ = network.start(3, cpus=[0, 1, 1])
    lost.run(["python", "-c", OTHER_JOB, head.ray_address])
    run = HostRun(head, head, tiny, *ELASTIC)
    run.say(TRAINS)
    lost.lose()
    run.say("node host2 (10.77.0.2) was lost")
    run.say("started again, from step")
    network.start(1, cpus=[1])
    run.say("started again, from step")
    send_signal(run.process, signal.SIGTERM)
    assert "all is saved" in run.end(status=130)


OTHER_JOB = """
import sys
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

ray.init(address=sys.argv[1])
ray.get(get_or_create_autoscaling_coordinator().get_reserved_resources.remote("nobody"))
"""


NODES = """
import json, sys
import ray

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps({node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes()}))
"""


def test_workers_save_and_move_to_another_host_before_theirs_is_taken_away(
    network: Network, tiny: Path, calm: list
) -> None:
    """A spot host's notice. Without it nothing would be saved; it is no failure."""
    head, *others = network.start(4, cpus=[0, 1, 1, 1])
    nodes = json.loads(head.run(["python", "-c", NODES, head.ray_address]).splitlines()[-1])
    rare = ["--set", "training.checkpoint.every=100M", "--set", "training.max_failures=0"]
    run = HostRun(head, head, tiny, *rare)
    run.say(TRAINS)
    going = next(host for host in others if host.processes("ray::RayTrainWorker"))
    head.run(
        ["ray", "drain-node", "--address", head.ray_address, "--node-id", nodes[going.address],
         "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
         "--deadline-remaining-seconds", str(PATIENCE)]
    )  # fmt: skip
    run.say(f"node {going.name} ({going.address}) is to be taken away")
    run.end()
    evaluated = [record.evaluations for record in records_of(load(tiny), str(tiny.parent / "store"))]
    assert [[point.loss for point in points] for points in evaluated] == [
        curve[-len(points) :] for curve, points in zip(calm, evaluated, strict=True)
    ]


def test_when_the_host_of_the_driver_is_lost_the_same_command_continues_on_another(
    network: Network, tiny: Path, calm: list
) -> None:
    """Until Ray notices, the workers go on without a driver, and what they finish is reused."""
    head, lost, *_ = network.start(4, cpus=[0, 0, 1, 1])
    run = HostRun(lost, head, tiny)
    run.say(TRAINS)
    lost.lose()
    run.process.communicate()
    HostRun(head, head, tiny).end()
    assert curves(tiny) == calm


def test_when_the_head_is_lost_the_run_says_so_and_continues_on_another_cluster(
    network: Network, tiny: Path, calm: list
) -> None:
    """The workers need no head between two starts: they may finish stages, which are reused."""
    head, *others = network.start(3, cpus=[0, 1, 1])
    run = HostRun(others[0], head, tiny)
    run.say(TRAINS)
    head.lose()
    said = run.end(status=1)
    assert "the Ray cluster has not answered" in said
    assert "the same command on a running cluster continues from the last checkpoint" in said
    for host in others:
        host.run(["ray", "stop", "--force"])
        host.start_ray(1, others[0])
    HostRun(others[0], others[0], tiny).end()
    assert curves(tiny) == calm
