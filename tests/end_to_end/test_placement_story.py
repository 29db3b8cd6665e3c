"""Where workers run: a pool of nodes that an autoscaler starts for them, and a sweep whose workers take every CPU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from test_sweep import GRID, SCHEDULE, write_sweep

from conftest import BIN, PATIENCE, QUIET, Raystage, free_port, wait_until, write_tiny

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill]

# Ray's own provider for tests: it starts nodes as processes of this machine, by the real autoscaler.
AUTOSCALER = {
    "cluster_name": "fake", "max_workers": 2, "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5, "head_node_type": "ray.head.default", "docker": {}, "auth": {}, "file_mounts": {},
    "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
    "initialization_commands": [], "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
    "head_start_ray_commands": [], "worker_start_ray_commands": [],
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "pool": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
}  # fmt: skip


def head(folder: Path, port: int, *options: str) -> Iterator[str]:
    """A head node of its own; its address."""
    log = folder / "head.log"
    command = [
        BIN / "ray", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1",
        f"--dashboard-agent-listen-port={free_port()}", "--include-dashboard=false", "--disable-usage-stats",
        "--object-store-memory=200000000", *options,
    ]  # fmt: skip
    environment = os.environ | QUIET | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with log.open("w") as output:
        started = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    process = psutil.Process(started.pid)
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text(), PATIENCE, f"no Ray head; see {log}")
        yield f"127.0.0.1:{port}"
    finally:
        for one in [process, *process.children(recursive=True)]:
            one.kill()
        started.wait(10)


@pytest.fixture
def pool_at_zero(tmp_path: Path) -> Iterator[str]:
    port, config = free_port(), tmp_path / "autoscaler.yaml"
    provider = {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}"}
    config.write_text(yaml.safe_dump({**AUTOSCALER, "provider": provider}))
    yield from head(tmp_path, port, "--num-cpus=0", f"--autoscaling-config={config}")


@pytest.fixture
def two_cpus(tmp_path: Path) -> Iterator[str]:
    yield from head(tmp_path, free_port(), "--num-cpus=2")


def test_a_pool_at_zero_grows_for_the_workers(tmp_path: Path, pool_at_zero: str) -> None:
    write_tiny(tmp_path)
    raystage = Raystage(tmp_path, pool_at_zero)
    done = raystage("run", "tiny.yaml", "--store", "store", "--wandb", "disabled", "--patience", "2m")
    assert "waiting for more nodes, for up to 2:00 (--patience): 2 workers with 1 CPU each do not fit" in done.stderr
    many = ["--patience", "0", "--set", "training.workers=40"]
    more = raystage("run", "tiny.yaml", "--store", "other", "--wandb", "disabled", *many, status=1)
    assert "40 workers with 1 CPU each do not fit on the cluster, which has places for 2" in more.stderr


def test_a_sweep_runs_where_its_workers_take_every_cpu(tmp_path: Path, two_cpus: str) -> None:
    """The processes of the trials take no CPU: with a hundredth of one the workers would wait for ever."""
    write_sweep(tmp_path, GRID)
    (tmp_path / "tiny.yaml").write_text(SCHEDULE.replace("workers: 1", "workers: 2"))
    done = Raystage(tmp_path, two_cpus)("sweep", "hunt.yaml", "--store", "store", "--wandb", "disabled")
    assert done.stderr.count(": done, eval loss") == 4
