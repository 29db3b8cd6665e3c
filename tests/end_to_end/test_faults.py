"""Each fault of the table in docs/operations.md that needs a cluster, caused for real; the rest is tested elsewhere:

a worker or the driver killed, NaN                 test_staged_run.py
a rejected growth                                  test_growth_workers.py
half checkpoints, flipped bits, foreign shards     test_checkpoint_damage.py, test_checkpoint_faults.py
object stores, full disks                          test_object_store.py, test_checkpoint_faults.py
random kills                                       test_chaos.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from conftest import (
    BIN,
    PATIENCE,
    QUIET,
    RayCluster,
    Raystage,
    losses_in,
    other_ray_processes,
    poison,
    processes_named,
    said_until,
    wait_until,
    write_tiny,
)
from raystage.cluster.own import NO_API_SERVER
from wandb_reader import run_files

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(3 * PATIENCE)]

RUN = ["--wandb", "disabled", "--json"]
SMALL_NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, cluster: RayCluster) -> dict:
    """The curves of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("calm")
    return losses_in(Raystage(folder, cluster.address)("run", write_tiny(folder), *RUN).stdout)


@pytest.fixture
def nodes(raystage: Raystage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose head computes nothing, for nodes to be added to and taken from; `raystage` runs on it."""
    # It has no API server, and would ask that of another cluster on this machine whether its Train runs are alive.
    for name, value in {**QUIET, "RAY_API_SERVER_ADDRESS": NO_API_SERVER}.items():
        monkeypatch.setenv(name, value)
    # A node that is gone is noticed in a few seconds; Ray's own patience is longer.
    watchful = {"health_check_period_ms": 1000, "health_check_timeout_ms": 5000, "health_check_failure_threshold": 3}
    head = SMALL_NODE | {"num_cpus": 0, "include_dashboard": False, "_system_config": watchful}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    raystage.environment["RAY_ADDRESS"] = cluster.address
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_workers_that_hang_are_started_again_and_the_bits_are_those_of_a_calm_run(
    raystage: Raystage, tiny: Path, cluster: RayCluster, calm: dict
) -> None:
    """One of two workers is stopped, so that the other waits for it for ever."""
    process = raystage.start("run", tiny, *RUN, "--store", "hung", "--set", "training.hang_seconds=10s")
    said_until(process, "small] step 1")
    cluster.workers()[-1].send_signal(signal.SIGSTOP)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "made no progress for" in errors
    assert "started again, from step" in errors
    assert losses_in(output) == calm


def test_a_controller_that_dies_before_its_workers_start_leaves_their_room_to_the_next(
    raystage: Raystage, tiny: Path, calm: dict, nodes: Cluster
) -> None:
    """On a cluster with room for one run alone."""
    for _ in range(2):
        nodes.add_node(**SMALL_NODE)
    process = raystage.start("run", tiny, *RUN, "--store", "headless")
    wait_until(lambda: processes_named(psutil.Process(), "ray::RayTrainWorker"), PATIENCE, "no worker was started")
    (controller,) = processes_named(psutil.Process(), "ray::TrainController")
    controller.kill()
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert losses_in(output) == calm


HOLDER = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
ray.get(ray.util.placement_group([{"CPU": 3}]).ready())
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(cluster: RayCluster) -> Iterator[subprocess.Popen]:
    """Another job, which has three of the cluster's four CPUs until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, cluster.address], env=os.environ | QUIET,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        yield process
        process.kill()


def test_who_waits_for_the_room_that_another_job_has_says_so_and_goes_on(
    raystage: Raystage, tiny: Path, calm: dict, holder: subprocess.Popen
) -> None:
    """Three of four CPUs are somebody else's, and two are needed."""
    assert holder.stdout.readline() == "held\n"
    process = raystage.start("run", tiny, *RUN, "--store", "waits")
    said = said_until(process, "waiting for free resources")
    assert "waiting for free resources for 2 workers with 1 CPU each: 1 of 4 CPUs are free now" in said
    holder.communicate()
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "waiting for free resources" not in errors
    assert losses_in(output) == calm


def test_ctrl_c_stops_at_once_and_the_same_command_goes_on(raystage: Raystage, tiny: Path, calm: dict) -> None:
    command = ["run", tiny, *RUN, "--store", "stopped"]
    process = raystage.start(*command)
    said_until(process, "full] step")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)  # at once, even on a busy machine
    assert (process.returncode, output) == (130, ""), errors
    assert raystage.report_in("stopped", "tiny")["state"] == "ABORTED"
    assert losses_in(raystage(*command).stdout) == calm


def saved_on_the_way(store: Path) -> list[int]:
    """The tokens at which checkpoints were saved within the tiny run's stages. On a fast machine the first stage, of 90
    steps, may end before the workers hear that they are to leave."""
    saved = (store / "stages").glob("*/checkpoints/*/manifest.json")
    return [tokens for path in saved if (tokens := int(path.parent.name.split("-")[0])) % (90 * 4096)]


def test_a_driver_that_is_asked_to_end_has_the_workers_save_first(raystage: Raystage, tiny: Path, calm: dict) -> None:
    """SIGTERM, with checkpoints so far apart that nothing would have been saved."""
    chaos = ["run", tiny, *RUN, "--store", "asked", "--set", "training.checkpoint.every=100M"]
    process = raystage.start(*chaos)
    said_until(process, "small] step 1")
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (130, ""), errors
    assert "all is saved; the same command continues" in errors
    (position,) = saved_on_the_way(raystage.folder / "asked")
    assert position >= 16 * 4096
    # Only of evaluations: every checkpoint begins a new point of the training curve.
    assert losses_in(raystage(*chaos).stdout)["evaluations"] == calm["evaluations"]


def test_a_signal_to_every_process_of_a_run_saves_and_ends_with_its_driver(
    raystage: Raystage, tiny: Path, calm: dict, cluster: RayCluster
) -> None:
    """As systemd and SLURM send it. The run has a cluster of its own, whose processes would end before the workers have
    saved, and a working directory from which nothing must be imported."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        raystage.environment.pop(name, None)
    poison(raystage.folder)
    before = other_ray_processes(cluster)
    command = ["run", tiny, "--json", "--store", "own", "--set", "training.checkpoint.every=100M"]
    process = raystage.start(*command)
    said_until(process, "small] step 1")
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        one.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (130, ""), errors
    assert "all is saved; the same command continues" in errors
    assert run_files(raystage.folder)  # W&B's own process may have ended: what it had by then is on the disk
    assert len(saved_on_the_way(raystage.folder / "own")) == 1
    wait_until(
        lambda: other_ray_processes(cluster) <= before, PATIENCE, "processes of the run's cluster are still there"
    )
    assert losses_in(raystage(*command).stdout)["evaluations"] == calm["evaluations"]


def test_a_node_that_is_lost_is_done_without_as_soon_as_another_comes(
    raystage: Raystage, tiny: Path, calm: dict, nodes: Cluster
) -> None:
    lost = nodes.add_node(**SMALL_NODE)
    nodes.add_node(**SMALL_NODE)
    process = raystage.start("run", tiny, *RUN, "--store", "lost")
    said_until(process, "small] step 1")
    nodes.remove_node(lost, allow_graceful=False)
    nodes.add_node(**SMALL_NODE)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "started again, from step" in errors
    assert losses_in(output) == calm


def test_workers_save_and_move_before_their_node_is_taken_away(
    raystage: Raystage, tiny: Path, calm: dict, nodes: Cluster
) -> None:
    """A spot node's notice, which Ray knows as a drain. Without it nothing would be saved; it is no failure."""
    going = nodes.add_node(**SMALL_NODE)
    nodes.add_node(**SMALL_NODE)
    rare = ["--set", "training.checkpoint.every=100M", "--set", "training.max_failures=0"]
    process = raystage.start("run", tiny, *RUN, *rare, "--store", "moved")
    said_until(process, "small] step 1")
    nodes.add_node(**SMALL_NODE)
    drain = [BIN / "ray", "drain-node", "--address", nodes.address, "--node-id", going.node_id,
             "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
             "--deadline-remaining-seconds", str(PATIENCE)]  # fmt: skip
    subprocess.run(drain, env=raystage.environment, check=True, capture_output=True)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "is to be taken away" in errors
    assert losses_in(output)["evaluations"] == calm["evaluations"]


def test_an_elastic_stage_goes_on_with_the_workers_that_there_is_room_for(
    raystage: Raystage, tiny: Path, calm: dict, nodes: Cluster
) -> None:
    """Room for two of three, then for one. The batches are the same, summed up in another order."""
    lost = nodes.add_node(**SMALL_NODE)
    nodes.add_node(**SMALL_NODE)
    elastic = ["--set", "training.workers={min: 1, max: 3}"]
    process = raystage.start("run", tiny, *RUN, *elastic, "--store", "elastic")
    assert "1 to 3 workers" in said_until(process, "small] step 1")
    nodes.remove_node(lost, allow_graceful=False)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    rows = json.loads(output)["stages"]
    assert [(row["num_workers"], row["resizes"]) for row in rows] == [(1, 1), (1, 0)]
    for found, expected in zip(losses_in(output)["evaluations"], calm["evaluations"], strict=True):
        assert found == pytest.approx(expected, rel=1e-3)


def test_a_lost_node_that_nothing_comes_for_ends_the_run_with_what_is_missing(
    raystage: Raystage, tiny: Path, nodes: Cluster
) -> None:
    lost = nodes.add_node(**SMALL_NODE)
    nodes.add_node(**SMALL_NODE)
    process = raystage.start("run", tiny, *RUN, "--set", "training.hang_seconds=20s")
    said_until(process, "small] step 1")
    nodes.remove_node(lost, allow_graceful=False)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, errors
    assert "2 workers with 1 CPU each do not fit on the cluster, which has places for 1" in errors


def test_a_driver_whose_cluster_is_killed_says_so_and_goes_on_with_another(
    raystage: Raystage, tiny: Path, calm: dict, nodes: Cluster, cluster: RayCluster
) -> None:
    for _ in range(2):
        nodes.add_node(**SMALL_NODE)
    process = raystage.start("run", tiny, *RUN, "--store", "killed")
    said_until(process, "small] step 1")
    for node in [*nodes.worker_nodes, nodes.head_node]:
        node.kill_all_processes(check_alive=False, allow_graceful=False)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, errors
    assert "the same command" in errors
    raystage.environment["RAY_ADDRESS"] = cluster.address
    assert losses_in(raystage("run", tiny, *RUN, "--store", "killed").stdout) == calm
